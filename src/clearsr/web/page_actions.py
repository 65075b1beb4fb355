"""What the page's buttons do: hand pictures to the queue and tell the page how far they are."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr

from clearsr.config.sampling import SamplingConfig
from clearsr.errors import Notice, collected
from clearsr.files.plan import mark_of
from clearsr.web.api import Service, safe_name
from clearsr.web.errors import RequestError
from clearsr.web.fields import (
    bad_setting,
    check_fields,
    command_line,
    detail_of,
    output_of,
    strengths_of,
)
from clearsr.web.jobs import Ticket
from clearsr.web.look import note, progress, summary, warning
from clearsr.web.page_parts import (
    Finished,
    Page,
    Picked,
    copy_of_run,
    duration,
    memory,
    outcome,
    picked,
    told,
)
from clearsr.web.runs import Run
from clearsr.web.upscaler import before_picture, copy_of, failures_told

GRID = ((0.0, 0.01, 0.03), (0.0, 0.01, 0.03))  # the paper's strengths, and none

NO_PICTURE = "Drop one or more pictures above, or choose an example."

Update = dict[Any, Any]


class Actions:
    """The functions behind the events, with the runs of all open pages, so that each can cancel its own."""

    def __init__(self, service: Service, page: Page) -> None:
        self._service, self._page = service, page
        self._runs: list[Run] = []

    def estimate(self, files: Any, upscale: float, steps: int) -> str:
        """Sizes, time and memory of what would be done."""
        if not files:
            return note(NO_PICTURE)
        upscaler, seconds, gigabytes = self._service.upscaler, 0.0, 0.0
        try:
            pictures = picked(files, self._service.storage.root)
            sizes = [upscaler.check(Path(file.path), upscale) for file in pictures]
        except RequestError as error:
            return warning(str(error))
        config = upscaler.pipeline.configure(upscale=upscale, steps=int(steps))
        for size in sizes:
            needed = upscaler.estimate(size, config)
            seconds, gigabytes = seconds + needed.seconds, max(gigabytes, needed.gigabytes)
        (height, width), count = sizes[0], len(sizes)
        what = f"{width}×{height} → {round(width * upscale)}×{round(height * upscale)}"
        what = what if count == 1 else f"{count} pictures"
        return note(f"{what} · about {duration(seconds)} · {memory(gigabytes)}")

    async def run(self, values: dict[Any, Any], request: gr.Request) -> AsyncIterator[Update]:
        """Upscale the pictures one after the other, with the page kept up to date."""
        page, given = self._page, self._given(values)
        pictures: list[Picked] = given["pictures"]
        if not pictures:
            yield {page.status: warning("There is no picture yet: drop one, or choose an example.")}
            return
        finished: list[Finished] = []
        failures: list[RequestError] = []
        with self._running(request) as run:
            yield {
                page.status: progress(0, 1, "Waiting for a place in the queue"),
                page.run: gr.update(interactive=False), page.cancel: gr.update(visible=True),
                page.png: gr.update(value=None, interactive=False),
                page.copy: gr.update(value=None, interactive=False), page.summary: "", page.done: [],
                page.gallery: gr.update(value=None, visible=False),
            }  # fmt: skip
            for number, file in enumerate(pictures, 1):
                place = f"{number} of {len(pictures)} · " if len(pictures) > 1 else ""
                try:
                    async for update in self._one(file, given, place, finished, run):
                        yield update
                except RequestError as error:
                    failures.append(error)
                    if error.code in ("cancelled", "shutting_down"):
                        break
                if finished:
                    yield {page.gallery: gr.update(
                        value=[(f.result, Path(f.result).name) for f in finished], visible=len(pictures) > 1
                    )}  # fmt: skip
        end: Update = {
            page.status: outcome(len(finished), len(pictures), failures), page.done: finished,
            page.run: gr.update(interactive=True), page.cancel: self._cancel_of(request),
        }  # fmt: skip
        if failures:  # what is shown may be an early look at a result that there will not be
            end[page.slider] = self._shown(finished[-1])[0] if finished else None
        yield end

    async def compare(self, values: dict[Any, Any], request: gr.Request) -> AsyncIterator[Update]:
        """Draw the grid of alpha and beta for the first picture."""
        page, given = self._page, self._given(values)
        if not given["pictures"]:
            yield {page.status: warning("There is no picture yet: drop one, or choose an example.")}
            return
        upscaler = self._service.upscaler
        with self._running(request) as run:
            yield {page.cancel: gr.update(visible=True), page.compare: gr.update(interactive=False)}
            try:
                source, folder = await self._take(given["pictures"][0])
                sampling = self._sampling(given)
                await asyncio.to_thread(upscaler.check, source, 1.0)
                target = folder / f"{source.stem}_alpha_beta.png"
                async for step in run.queued(
                    lambda ticket: upscaler.compare(ticket, source, sampling, GRID, target)
                ):
                    yield {page.status: progress(step.done, step.steps, f"Comparing settings · {step.note}")}
                yield {page.status: note("The comparison is drawn."), page.sheet: str(target)}
            except RequestError as error:
                yield {page.status: outcome(0, 1, [error])}
        yield {page.cancel: self._cancel_of(request), page.compare: gr.update(interactive=True)}

    async def upscale_one(
        self,
        picture: Any,
        detail: float = 0,
        upscale: float = 4,
        seed: int = 0,
        settings: dict[str, Any] | None = None,
    ) -> str:
        """For programs: one picture in, the path of the result out.

        Args:
            settings: further fields, by the names that `POST /v1/upscale` has for them.
        """
        if not picture:
            raise gr.Error("picture: none was given", print_exception=False)
        finished: list[Finished] = []
        try:
            if not isinstance(settings or {}, dict):
                raise bad_setting("settings: must be an object of settings by name")
            check_fields(settings or {})
            given = {"detail": detail, "upscale": upscale, "seed": seed, **(settings or {})}
            (file,) = picked(picture, self._service.storage.root)
            async for _ in self._one(file, given, "", finished, Run(self._service)):
                pass
        except RequestError as error:
            raise gr.Error(str(error), print_exception=False) from None
        return finished[0].result

    def cancel(self, request: gr.Request) -> None:
        """End what this page has begun."""
        for run in self._runs_of(request):
            run.cancel()

    def show(self, done: list[Finished], event: gr.SelectData) -> tuple[Any, ...]:
        """Put a picture of the gallery into the before/after view."""
        return self._shown(Finished(*done[int(event.index)]))

    async def _one(
        self, file: Picked, given: Mapping[str, Any], place: str, finished: list[Finished], run: Run
    ) -> AsyncIterator[Update]:
        """One picture through the queue; adds what became of it to `finished`.

        Raises:
            RequestError: why there is no result.
        """
        page, upscaler = self._page, self._service.upscaler
        run.check()
        source, folder = await self._take(file)
        try:
            sampling = self._sampling(given)
            height, width = await asyncio.to_thread(upscaler.check, source, sampling.upscale)
            size = max(1, round(height * sampling.upscale)), max(1, round(width * sampling.upscale))
            suffix, output = output_of(given)
            stem = folder / f"{source.stem}{mark_of(sampling.upscale)}"
            target = Path(f"{stem}{suffix}")
            copy, copied = copy_of_run(given, stem, size)
            before = folder / "before.jpg"
            expected = upscaler.estimate((height, width), sampling)

            notices: list[Notice] = []

            def work(ticket: Ticket) -> None:
                with failures_told(source), collected():  # said once, by what follows
                    before_picture(source, before, size)
                found = upscaler.upscale(ticket, source, target, sampling, output, bool(run.session))
                notices.extend(found)
                if copy is not None:
                    with failures_told(target), collected() as more:
                        copy_of(target, copy, copied)
                    notices.extend(notice for notice in more if notice not in found)

            shown: Path | None = None
            async for step in run.queued(work):
                update: Update = {page.status: told(step, place, expected.seconds)}
                if step.preview is not None and step.preview != shown:
                    shown = step.preview
                    update[page.slider] = (str(before), str(shown))
                yield update
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        said = f"{width}×{height} → {size[1]}×{size[0]}"
        result = Finished(
            str(before),
            str(target),
            str(copy) if copy else None,
            said,
            command_line(source.name, sampling, upscaler.pipeline.defaults, output),
            tuple(notice.text for notice in notices),
        )
        finished.append(result)
        yield dict(zip((page.slider, page.png, page.copy, page.summary), self._shown(result), strict=True))

    async def _take(self, file: Picked) -> tuple[Path, Path]:
        """A folder for the picture, with the upload in it under its own name."""
        folder = await asyncio.to_thread(self._service.storage.folder, "page")
        source = folder / "input" / safe_name(file.name or Path(file.path).name)
        source.parent.mkdir()
        await asyncio.to_thread(shutil.copyfile, file.path, source)
        return source, folder

    def _given(self, values: dict[Any, Any]) -> dict[str, Any]:
        given = {name: values[component] for name, component in self._page.named_inputs().items()}
        return {**given, "pictures": picked(given["pictures"], self._service.storage.root)}

    def _sampling(self, given: Mapping[str, Any]) -> SamplingConfig:
        """The settings of a run; strengths by the dial unless it was left alone or they are given."""
        base = self._service.upscaler.pipeline.defaults
        fields = {key: value for key, value in given.items() if value not in (None, "")}
        detail = given["detail"]
        if not isinstance(detail, int | float):
            raise bad_setting(f"detail: must be a number from -100 to 100 (got {detail!r})")
        if detail != detail_of(base.lsa.strengths):
            alpha, beta = strengths_of(detail)
            fields = {"alpha": alpha, "beta": beta, **fields}
        return self._service.upscaler.sampling(fields)

    def _shown(self, result: Finished) -> tuple[Any, ...]:
        """Updates of before/after view, both downloads and the summary."""
        kind = Path(result.copy).suffix[1:].upper() if result.copy else "copy"
        return (
            (result.before, result.result),
            gr.update(value=result.result, interactive=True),
            gr.update(label=f"Download {kind}", value=result.copy, interactive=result.copy is not None),
            summary(result.caption, result.command, result.warnings),
        )

    @contextmanager
    def _running(self, request: gr.Request) -> Iterator[Run]:
        """A run of this page; within the block it can be cancelled, after it nothing of it goes on."""
        run = Run(self._service, str(request.session_hash))
        self._runs.append(run)
        try:
            yield run
        finally:
            self._runs.remove(run)
            run.cancel()

    def _runs_of(self, request: gr.Request) -> list[Run]:
        """What this page has begun. A copy is looked through: `cancel` is called from other threads."""
        return [run for run in tuple(self._runs) if run.session == str(request.session_hash)]

    def _cancel_of(self, request: gr.Request) -> Any:
        """Update of the button: it stays while there is something else that it would end."""
        return gr.update(visible=bool(self._runs_of(request)))
