"""HTTP for the page, and for programs that want to see how far a picture is: jobs, settings, estimates.

POST /v1/jobs gives an id at once; its events tell how far it is, its result is there in every format, and
DELETE ends it. Who knows the id, which cannot be guessed, may see it.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from clearsr.config.output import OutputConfig
from clearsr.config.sampling import SamplingConfig
from clearsr.web.api import Upload, file_response, receive
from clearsr.web.description import settings
from clearsr.web.errors import RequestError
from clearsr.web.fields import (
    RUN_FIELDS,
    bad_setting,
    check_fields,
    command_line,
    curl_line,
    detail_of,
    output_of,
)
from clearsr.web.jobs import StoppedError
from clearsr.web.runs import Grid, Run, Service

if TYPE_CHECKING:
    from clearsr.web.upscaler import Upscaler

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

    async def _begin(self, request: Request, start: Any) -> Response:
        began, upload, service = time.monotonic(), None, self._service
        try:
            upload = await receive(request, service, RUN_FIELDS)
            run: Run = await start(upload, await service.model.ready())
        except RequestError as error:
            service.metrics.count(error.code, time.monotonic() - began)
            if upload is not None:
                service.spool.delete(upload.folder)
            raise
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
        run = Run(source.name, upload.folder, service.queue.reserve(), sampling, command)
        run.expected = None if expected is None else expected.seconds
        service.start(run, lambda ticket: upscaler.upscale(ticket, source, target, sampling, output, True))
        return run

    async def _start_comparison(self, upload: Upload, upscaler: "Upscaler") -> Run:
        source, folder = upload.source, upload.folder
        sampling = upscaler.sampling(upload.fields)
        await asyncio.to_thread(upscaler.check, source, None)
        run = Run(source.name, folder, self._service.queue.reserve(), sampling, grid=GRID)
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
        if path is None or not path.is_file():
            raise RequestError(404, "no_preview", "there is no early look yet")
        return FileResponse(path, media_type="image/jpeg", headers=_NO_STORE)

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
        suffix, output = output_of(asked, run.name)
        if suffix == outcome.path.suffix:
            return file_response(outcome.path, outcome.warnings)
        path, warnings = await asyncio.to_thread(self._copy, run, suffix, output, asked.get("quality", ""))
        return file_response(path, warnings)

    def _copy(self, run: Run, suffix: str, output: OutputConfig, quality: str) -> tuple[Path, Any]:
        from clearsr.web.upscaler import copy_of

        service, outcome, name = self._service, run.outcome, f"{suffix}-{quality}"
        with service.converting:
            if name not in run.copies:
                service.spool.make_room()
                folder = run.folder / f"copy-{len(run.copies)}"
                folder.mkdir(exist_ok=True)
                path = folder / f"{outcome.path.stem}{suffix}"
                lacking = copy_of(outcome, path, run.sampling, output)
                more = [notice for notice in lacking if notice not in outcome.warnings]
                run.copies[name] = path, (*outcome.warnings, *more)
        return run.copies[name]

    async def look(self, request: Request) -> Response:
        """A picture that browsers may not know (TIFF, HEIF) as one that they do."""
        service = self._service
        upload = await receive(request, service, ())
        delete = BackgroundTask(service.spool.delete, upload.folder)

        def draw() -> tuple[int, int]:
            with service.converting:
                return upscaler.look(upload.source, target)

        try:
            upscaler, target = await service.model.ready(), upload.folder / "look.png"
            height, width = await asyncio.to_thread(draw)
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
            "curl": curl_line(str(request.base_url), name, fields),
            "alpha": alpha,
            "beta": beta,
            "detail": detail_of((alpha, beta)),
            **_sizes(asked, sampling, upscaler),
        }
        return JSONResponse(content, headers=_NO_STORE)

    async def example(self, request: Request) -> Response:
        """A picture to try the page with."""
        for path in self._service.examples:
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
