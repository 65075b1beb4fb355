"""Cancelling a run of the page while it has no job in the queue: during the copy, between two pictures."""

import asyncio
import dataclasses
import shutil
import threading
import time
from types import SimpleNamespace

import pytest

pytest.importorskip("gradio", reason="the extra `web` is not installed")

from clearsr.web import page_actions
from clearsr.web.jobs import StoppedError
from clearsr.web.page_parts import Page
from clearsr.web.runs import Run
from clearsr.web.upscaler import Upscaler

PAGE = Page(**{field.name: field.name for field in dataclasses.fields(Page)})  # updates by name


@pytest.fixture
def service(serve):
    with serve() as client:
        yield client.server.service


@pytest.fixture
def page(service, picture):
    """An open page: `page.actions`, its `request`, and `page.values(count)`: what it sends with pictures."""
    storage = service.storage.folder("page")

    def values(count=1):
        pictures = []
        for name in "abc"[:count]:
            path = storage / f"{name}.png"
            path.write_bytes(picture())
            pictures.append({"path": str(path), "orig_name": path.name})
        others = {name: None for name in PAGE.named_inputs()}
        return {**others, "detail": 0, "keep_metadata": True, "pictures": pictures}

    actions = page_actions.Actions(service, PAGE)
    return SimpleNamespace(actions=actions, request=SimpleNamespace(session_hash="one"), values=values)


def press(page, action, count=1, on_update=lambda update: None):
    """Press a button, and look at each update; returns what the page shows in the end."""

    async def follow():
        shown = {}
        async for update in getattr(page.actions, action)(page.values(count), page.request):
            shown |= update
            await asyncio.to_thread(on_update, update)  # Gradio calls `cancel` from another thread, too
        return shown

    return asyncio.run(asyncio.wait_for(follow(), 60))


def jobs_seen(monkeypatch):
    """The names of pictures that are upscaled from here on."""
    seen, upscale = [], Upscaler.upscale

    def noted(self, ticket, source, *others, **options):
        seen.append(source.name)
        return upscale(self, ticket, source, *others, **options)

    monkeypatch.setattr(Upscaler, "upscale", noted)
    return seen


def assert_next_run_works(page, service):
    assert service.queue.counts() == (0, 0)
    shown = press(page, "run")
    assert "Done." in shown["status"]
    assert shown["slider"] == (shown["done"][0].before, shown["done"][0].result)
    assert shown["run"]["interactive"] and not shown["cancel"]["visible"]


@pytest.mark.parametrize("count", [1, 3])
def test_cancel_while_the_first_picture_is_copied(page, service, monkeypatch, count):
    copies, copy = [], shutil.copyfile

    def slow_copy(source, target):
        copies.append(source)
        copy(source, target)
        page.actions.cancel(page.request)

    seen = jobs_seen(monkeypatch)
    with monkeypatch.context() as patched:
        patched.setattr(page_actions.shutil, "copyfile", slow_copy)
        shown = press(page, "run", count)
    assert "Cancelled." in shown["status"]
    assert "Done" not in shown["status"]
    assert (len(copies), seen, shown["done"], shown["slider"]) == (1, [], [], None)
    assert not shown["png"]["interactive"]
    assert shown["run"]["interactive"] and not shown["cancel"]["visible"]
    assert not list(service.storage.root.glob("page/*/input"))  # the copy is gone, too
    assert_next_run_works(page, service)


def test_cancel_between_two_pictures_keeps_the_first(page, service, monkeypatch):
    def cancel_after_a_picture(update):
        if "gallery" in update and update["gallery"]["value"]:
            page.actions.cancel(page.request)

    seen = jobs_seen(monkeypatch)
    shown = press(page, "run", 3, cancel_after_a_picture)
    assert "Done: 1 of 3." in shown["status"]
    assert "Cancelled." in shown["status"]
    assert seen == ["a.png"]
    (first,) = shown["done"]
    assert shown["slider"] == (first.before, first.result)
    assert_next_run_works(page, service)


def test_cancel_does_not_leave_an_early_look_at_the_second_picture(page, service, monkeypatch):
    upscale, looks = Upscaler.upscale, []

    def endless_from_the_second(self, ticket, source, target, *others, **options):
        if source.name == "a.png":
            return upscale(self, ticket, source, target, *others, **options)
        preview = target.with_name("preview-1.jpg")
        ticket.report(1, 4, source.name, preview)
        while True:
            ticket.check()
            time.sleep(0.01)

    def cancel_at_a_look(update):
        if "slider" in update and "preview" in update["slider"][1]:
            looks.append(update)
            page.actions.cancel(page.request)

    with monkeypatch.context() as patched:
        patched.setattr(Upscaler, "upscale", endless_from_the_second)
        shown = press(page, "run", 2, cancel_at_a_look)
    assert looks
    assert "Cancelled." in shown["status"]
    (first,) = shown["done"]
    assert shown["slider"] == (first.before, first.result)
    assert_next_run_works(page, service)


def test_cancel_while_the_picture_to_compare_is_copied(page, service, monkeypatch):
    copy = shutil.copyfile

    def slow_copy(source, target):
        copy(source, target)
        page.actions.cancel(page.request)

    with monkeypatch.context() as patched:
        patched.setattr(page_actions.shutil, "copyfile", slow_copy)
        shown = press(page, "compare")
    assert "Cancelled." in shown["status"]
    assert "sheet" not in shown
    assert shown["compare"]["interactive"] and not shown["cancel"]["visible"]
    assert_next_run_works(page, service)


def test_cancel_from_another_thread_just_as_the_place_is_taken(service, monkeypatch):
    run, reserve, seen = Run(service), service.queue.reserve, []

    def reserve_late():
        ticket = reserve()
        run.cancel()  # the ticket is taken, and not yet known to the run
        return ticket

    async def follow():
        async for _ in run.queued(lambda _: seen.append("must not run")):
            pass

    monkeypatch.setattr(service.queue, "reserve", reserve_late)
    with pytest.raises(StoppedError):
        asyncio.run(follow())
    assert seen == []
    assert service.queue.counts() == (0, 0)


def test_the_end_of_one_run_leaves_the_pages_other_one_which_cancel_still_ends(page, service, monkeypatch):
    free, tickets, reserve = threading.Event(), [], service.queue.reserve
    blocking = service.queue.reserve()
    service.queue.start(blocking, lambda _: free.wait(30))  # so that both wait
    monkeypatch.setattr(service.queue, "reserve", lambda: tickets.append(reserve()) or tickets[-1])

    async def both():
        run = page.actions.run(page.values(), page.request)
        compare = page.actions.compare(page.values(), page.request)
        for count, action in enumerate((run, compare), 1):
            while len(tickets) < count:
                await anext(action)
        await run.aclose()
        page.actions.cancel(SimpleNamespace(session_hash="another"))
        assert [ticket.future.done() for ticket in tickets] == [True, False]
        page.actions.cancel(page.request)
        return [update async for update in compare]

    try:
        *_, said, end = asyncio.run(asyncio.wait_for(both(), 60))
    finally:
        free.set()
    assert "Cancelled." in said["status"]
    assert not end["cancel"]["visible"]
    blocking.future.result(30)
    assert_next_run_works(page, service)
