"""HTTP for the page, and for programs that want to see how far a picture is: jobs, settings, estimates.

POST /v1/jobs gives an id at once; its events tell how far it is, its result is there in every format, and
DELETE ends it. Who knows the id, which cannot be guessed, may see it.
"""

import asyncio
import json
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from clearsr.config.output import OutputConfig
from clearsr.config.sampling import SamplingConfig
from clearsr.web.api import Upload, file_response, receive, taken
from clearsr.web.description import settings
from clearsr.web.errors import RequestError
from clearsr.web.fields import (
    OUTPUT_FIELDS,
    RUN_FIELDS,
    bad_setting,
    check_fields,
    command_line,
    curl_line,
    detail_of,
    output_of,
)
from clearsr.web.jobs import StoppedError
from clearsr.web.runs import MOST_COPIES, Copy, Grid, Run, Service

if TYPE_CHECKING:
    from clearsr.web.upscaler import Upscaler

Start = Callable[[Upload, "Upscaler"], Awaitable[Run]]
GRID: Grid = ((0.0, 0.01, 0.03), (0.0, 0.01, 0.03))  # the paper's strengths, and none
_LOOK_EVERY = 0.15  # seconds between looks at a job
_BEAT_EVERY = 15.0  # seconds, so that a proxy keeps the connection
_NO_STORE = {"Cache-Control": "no-store"}


def routes_of(service: Service) -> list[Route]:
    """The routes."""
    jobs = Jobs(service)
    return [
        Route("/v1/jobs", jobs.upscale, methods=["POST"]),
        Route("/v1/comparisons", jobs.compare, methods=["POST"]),
        Route("/v1/jobs/{id}", jobs.one, methods=["GET", "DELETE"]),
        Route("/v1/jobs/{id}/events", jobs.events),
        Route("/v1/jobs/{id}/preview", jobs.preview),
        Route("/v1/jobs/{id}/result", jobs.result),
        Route("/v1/jobs/{id}/cells/{number:int}", jobs.cell),
        Route("/v1/look", jobs.look, methods=["POST"]),
        Route("/v1/estimate", jobs.estimate),
        Route("/v1/settings", jobs.settings),
        Route("/v1/examples/{name}", jobs.example),
    ]


class Jobs:
    """What is done at the routes."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def upscale(self, request: Request) -> Response:
        """Take a picture, and begin."""
        return await self._begin(request, self._start_upscale)

    async def compare(self, request: Request) -> Response:
        """Take a picture, and begin to compare settings on it."""
        return await self._begin(request, self._start_comparison)

    async def _begin(self, request: Request, start: Start) -> Response:
        service = self._service
        async with taken(request, service, RUN_FIELDS) as (upload, upscaler):
            run = await start(upload, upscaler)
        service.remember(run)
        if await request.is_disconnected():  # nobody will ever know its id
            service.forget(run)
        place = f"/v1/jobs/{run.id}"
        content = {**run.state(), "events": f"{place}/events", "result": f"{place}/result"}
        return JSONResponse(content, 201, {"Location": place, **_NO_STORE})

    async def _start_upscale(self, upload: Upload, upscaler: "Upscaler") -> Run:
        source, service = upload.source, self._service
        sampling = upscaler.sampling(upload.fields)
        _, output = output_of(upload.fields, source.name)
        size = await asyncio.to_thread(upscaler.check, source, sampling)
        command = command_line(source.name, sampling, upscaler.pipeline.defaults, output)
        expected = upscaler.estimate(size, sampling)
        target = upload.folder / "result" / upscaler.output_name(source, sampling, ".png")
        target.parent.mkdir()
        ticket = service.queue.reserve()
        run = Run(source.name, upload.folder, ticket, sampling, output, command, started=upload.began)
        run.expected = None if expected is None else expected.seconds
        service.start(run, lambda ticket: upscaler.upscale(ticket, source, target, sampling, output, True))
        return run

    async def _start_comparison(self, upload: Upload, upscaler: "Upscaler") -> Run:
        source, folder = upload.source, upload.folder
        sampling = upscaler.sampling(upload.fields)
        await asyncio.to_thread(upscaler.check, source, None)
        ticket = self._service.queue.reserve()
        run = Run(source.name, folder, ticket, sampling, grid=GRID, started=upload.began)
        self._service.start(run, lambda ticket: upscaler.compare(ticket, source, folder, sampling, GRID))
        return run

    async def one(self, request: Request) -> Response:
        """How far a job is; with DELETE, end it and delete its files."""
        run = self._find(request)
        if request.method == "DELETE":
            self._service.forget(run)
            return Response(status_code=204)
        return JSONResponse(run.state(), headers=_NO_STORE)

    async def events(self, request: Request) -> Response:
        """The same whenever there is news, until its end."""
        run = self._find(request)
        headers = {**_NO_STORE, "X-Accel-Buffering": "no"}
        return StreamingResponse(_events(run, self._service), media_type="text/event-stream", headers=headers)

    async def preview(self, request: Request) -> Response:
        """The last early look."""
        path = self._find(request).ticket.progress.preview
        try:  # at once: the next one takes its place
            content = b"" if path is None else await asyncio.to_thread(path.read_bytes)
        except OSError:
            content = b""
        if not content:
            raise RequestError(404, "no_preview", "there is no early look yet")
        return Response(content, media_type="image/jpeg", headers=_NO_STORE)

    async def cell(self, request: Request) -> Response:
        """A picture of a comparison, as soon as it is drawn."""
        run, number = self._find(request), request.path_params["number"]
        if number >= min(run.cells, run.ticket.progress.done):
            raise RequestError(404, "no_cell", "there is no such picture yet")
        headers = {"Cache-Control": "private, max-age=3600"}
        return FileResponse(run.folder / f"cell-{number}.png", media_type="image/png", headers=headers)

    async def result(self, request: Request) -> Response:
        """The result in the format that is asked for: made of the one that there is, without another run."""
        run = self._find(request)
        outcome, asked = run.outcome, dict(request.query_params)
        check_fields(asked, ("format", "quality"))
        if run.cells:
            raise RequestError(404, "no_result", "a comparison has cells, and no result")
        output_fields = {**run.output.model_dump(include=set(OUTPUT_FIELDS)), **asked}
        suffix, output = output_of(output_fields, run.name)
        self._service.spool.release(run.folder)
        if suffix == outcome.path.suffix:
            return file_response(outcome.path, outcome.warnings)
        try:
            async with self._service.converting:
                return file_response(*await asyncio.to_thread(self._copy, run, suffix, output))
        except (RequestError, OSError):
            self._find(request)  # if it was deleted meanwhile, that is what there is to say
            raise

    def _copy(self, run: Run, suffix: str, output: OutputConfig) -> Copy:
        """The result in that format: the one that there is, or a new one in place of the oldest."""
        from clearsr.web.upscaler import copy_of

        outcome, copies = run.outcome, run.copies
        if (suffix, output) in copies:
            return copies[suffix, output]
        self._service.spool.make_room()
        folder = Path(tempfile.mkdtemp(prefix="copy-", dir=run.folder))
        try:
            path = folder / f"{outcome.path.stem}{suffix}"
            lacking = copy_of(outcome, path, run.sampling, output)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        if len(copies) >= MOST_COPIES:
            shutil.rmtree(copies.pop(next(iter(copies)))[0].parent, ignore_errors=True)
        more = [notice for notice in lacking if notice not in outcome.warnings]
        copies[suffix, output] = path, (*outcome.warnings, *more)
        return copies[suffix, output]

    async def look(self, request: Request) -> Response:
        """A picture that browsers may not know (TIFF, HEIF) as one that they do."""
        service = self._service
        upload = await receive(request, service, ())
        delete = BackgroundTask(service.spool.delete, upload.folder)

        try:
            upscaler, target = await service.model.ready(), upload.folder / "look.png"
            async with service.converting:
                height, width = await asyncio.to_thread(upscaler.look, upload.source, target)
        except BaseException:
            service.spool.delete(upload.folder)
            raise
        finally:
            service.spool.release(upload.folder)
        headers = {**_NO_STORE, "X-ClearSR-Size": f"{width}x{height}"}
        return FileResponse(target, media_type="image/png", headers=headers, background=delete)

    async def settings(self, _: Request) -> Response:
        """What can be set; waits for the model, whose own settings they are."""
        upscaler = await self._service.model.ready()
        content = settings(self._service, upscaler.pipeline.defaults, upscaler.takes_text)
        return JSONResponse(content, headers=_NO_STORE)

    async def estimate(self, request: Request) -> Response:
        """What a run with these settings would be: result, time, memory, and how to have it elsewhere."""
        asked = dict(request.query_params)
        check_fields(asked, {"name", "picture_width", "picture_height", *RUN_FIELDS})
        upscaler = await self._service.model.ready()
        fields = {key: value for key, value in asked.items() if key in RUN_FIELDS}
        sampling = upscaler.sampling(fields)
        name = asked.get("name") or "photo.jpg"
        _, output = output_of(fields, name)
        alpha, beta = sampling.lsa.strengths
        content: dict[str, Any] = {
            "command": command_line(name, sampling, upscaler.pipeline.defaults, output),
            "curl": curl_line(str(request.base_url), name, fields, self._service.config.token is not None),
            "alpha": alpha,
            "beta": beta,
            "detail": detail_of((alpha, beta)),
            **_sizes(asked, sampling, upscaler),
        }
        return JSONResponse(content, headers=_NO_STORE)

    async def example(self, request: Request) -> Response:
        """A picture to try the page with."""
        for path in self._service.examples or ():
            if path.name == request.path_params["name"]:
                return FileResponse(path, media_type="image/png")
        raise RequestError(404, "not_here", "no such example")

    def _find(self, request: Request) -> Run:
        return self._service.find(request.path_params["id"])


def _sizes(asked: Mapping[str, Any], sampling: SamplingConfig, upscaler: "Upscaler") -> dict[str, Any]:
    """Size, time and memory of a result, if the request has the size of a picture."""
    names = "picture_height", "picture_width"
    if not any(asked.get(name) for name in names):
        return {}
    try:
        size = int(asked[names[0]]), int(asked[names[1]])
    except (KeyError, ValueError):
        raise bad_setting(f"{', '.join(names)}: must be two whole numbers") from None
    if not 0 < min(size) <= max(size) < 1_000_000:
        raise bad_setting(f"{', '.join(names)}: must be from 1 to 999999")
    larger = upscaler.check_size(size, sampling)
    expected = upscaler.estimate(size, sampling)
    known = {} if expected is None else expected._asdict()
    return {"result_height": larger[0], "result_width": larger[1], **known}


async def _events(run: Run, service: Service) -> AsyncIterator[str]:
    """Server-sent events: the state by its name, with all of it as JSON."""
    last, said, beat = "", 0, time.monotonic()
    yield "retry: 2000\n\n"
    while True:
        state = run.state()
        if service.queue.is_closed and not run.ticket.future.done():  # it may be within a layer for a while
            state = {**state, "state": "failed", **StoppedError("shutting_down").as_dict()}
        is_over = state["state"] in ("done", "failed")
        news = json.dumps({key: value for key, value in state.items() if key != "seconds_left"})
        if news != last:
            last, said, beat = news, said + 1, time.monotonic()
            yield f"id: {said}\nevent: {state['state']}\ndata: {json.dumps(state)}\n\n"
        if is_over:
            return
        if time.monotonic() - beat > _BEAT_EVERY:
            beat = time.monotonic()
            yield ": still here\n\n"
        await asyncio.sleep(_LOOK_EVERY)
