"""Plain HTTP: POST /v1/upscale, /healthz, /metrics. The description is at /openapi.json.

A request takes its place in the queue first, then its picture is stored and judged by its header, then it
waits.
"""

import asyncio
import dataclasses
import json
import re
import shutil
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from starlette.background import BackgroundTask
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException

from clearsr.errors import Notice
from clearsr.files.plan import mark_of
from clearsr.web.errors import RequestError, internal_error
from clearsr.web.fields import FIELDS, MEDIA_TYPES, UPSCALE_DESCRIPTION, bad_setting, check_fields, output_of
from clearsr.web.jobs import JobQueue, Metrics, Ticket
from clearsr.web.uploads import Storage
from clearsr.web.upscaler import Upscaler

_CHUNK = 1 << 20
_MAX_NAME = 200  # bytes, so that what is added to it still fits a file system


class Service:
    """What the routes work with."""

    def __init__(self, upscaler: Upscaler, queue: JobQueue, storage: Storage, metrics: Metrics) -> None:
        self.upscaler, self.queue, self.storage, self.metrics = upscaler, queue, storage, metrics


def add_routes(app: FastAPI, service: Service) -> None:
    """Declare the routes and how errors are told."""
    _add_errors(app)

    @app.get("/healthz", summary="Whether the server takes pictures")
    async def healthz() -> JSONResponse:
        running, waiting = service.queue.counts()
        status = "shutting down" if service.queue.is_closed else "ok"
        content = {"status": status, "running": running, "waiting": waiting}
        return JSONResponse(content, 503 if service.queue.is_closed else 200)

    @app.get("/metrics", summary="Counters for Prometheus")
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/v1/upscale", include_in_schema=False)
    async def wrong_method() -> None:
        raise RequestError(405, "wrong_method", "/v1/upscale: takes POST", {"Allow": "POST"})

    @app.post("/v1/upscale", summary="Upscale one picture", **UPSCALE_DESCRIPTION)
    async def upscale(request: Request) -> Response:
        start = time.monotonic()
        try:
            response = await _upscale(request, service)
        except RequestError as error:
            service.metrics.pictures.labels(error.code).inc()
            raise
        service.metrics.pictures.labels("done").inc()
        service.metrics.seconds.observe(time.monotonic() - start)
        return response

    @app.api_route("/v1/{rest:path}", methods=["GET", "POST", "PUT", "DELETE"], include_in_schema=False)
    async def no_such_route(rest: str) -> None:
        raise RequestError(404, "not_here", f"/v1/{rest[:100]}: no such route; /openapi.json lists them")


async def _upscale(request: Request, service: Service) -> Response:
    ticket = service.queue.reserve()
    folder = None
    try:
        folder = await asyncio.to_thread(service.storage.folder)
        fields, source = await _read_request(request, folder, service)
        sampling = service.upscaler.sampling(fields)
        suffix, output = output_of(fields)
        await asyncio.to_thread(service.upscaler.check, source, sampling.upscale)
        target = folder / f"{source.stem}{mark_of(sampling.upscale)}{suffix}"
        service.queue.start(ticket, lambda t: service.upscaler.upscale(t, source, target, sampling, output))
        notices = await _finish(ticket, request)
    except BaseException:
        ticket.cancel()
        if folder is not None:
            ticket.future.add_done_callback(lambda _: shutil.rmtree(folder, ignore_errors=True))
        raise
    name = target.name
    plain = re.sub(r"[^\w. -]", "_", name, flags=re.ASCII)
    disposition = f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name)}"
    return FileResponse(
        target,
        media_type=MEDIA_TYPES[suffix],
        headers={
            "Content-Disposition": disposition,
            "Cache-Control": "no-store",
            "X-ClearSR-Warnings": json.dumps([dataclasses.asdict(notice) for notice in notices]),
        },
        background=BackgroundTask(shutil.rmtree, folder, ignore_errors=True),
    )


async def _read_request(request: Request, folder: Path, service: Service) -> tuple[dict[str, Any], Path]:
    """The fields of the form, and the file that its picture was stored in.

    Raises:
        RequestError: 400, 408, 415 or 422.
    """
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise RequestError(415, "not_multipart", "send multipart/form-data with the picture as `file`")
    try:
        form = await request.form(max_files=1, max_fields=len(FIELDS))
    except HTTPException as error:
        raise RequestError(400, "bad_request", str(error.detail)) from None
    async with _closing(form):
        check_fields(key for key in form if key != "file")
        picture = form.get("file")
        if not isinstance(picture, UploadFile):
            raise bad_setting("file: the picture must be uploaded as a file (addresses are not fetched)")
        path = folder / safe_name(picture.filename or "picture")
        with path.open("wb") as file:
            while chunk := await picture.read(_CHUNK):
                await asyncio.to_thread(file.write, chunk)
        return {key: value for key, value in form.items() if isinstance(value, str)}, path


class _closing:  # noqa: N801  (named as contextlib's)
    """`async with` that closes a form's files."""

    def __init__(self, form: FormData) -> None:
        self._form = form

    async def __aenter__(self) -> None:
        return None

    async def __aexit__(self, *_: object) -> None:
        await self._form.close()


async def _finish(ticket: Ticket, request: Request) -> tuple[Notice, ...]:
    """Wait for the job, and end it if the client has gone; returns its warnings.

    Raises:
        RequestError: what became of it, if there is no result.
    """
    waiting = asyncio.wrap_future(ticket.future)
    while not waiting.done():
        await asyncio.wait({waiting}, timeout=0.5)
        if not waiting.done() and await request.is_disconnected():
            ticket.cancel()
            await asyncio.wait({waiting})
    notices: tuple[Notice, ...] = waiting.result()
    return notices


def safe_name(name: str) -> str:
    """A client's file name as one name in a folder of ours. Ordinary names stay, as part of the seed."""
    bare = re.split(r"[/\\]", name)[-1].replace("\0", "")
    if bare in ("", ".", ".."):
        return "picture"
    encoded = bare.encode("utf-8", "surrogateescape")
    if len(encoded) <= _MAX_NAME:
        return bare
    stem, _, suffix = bare.rpartition(".")
    keep = (stem or suffix).encode("utf-8", "surrogateescape")[: _MAX_NAME - 12]
    return keep.decode("utf-8", "ignore") + (f".{suffix[:8]}" if stem else "")


def _add_errors(app: FastAPI) -> None:
    Handler = Callable[[Request, Any], Awaitable[Response]]  # noqa: N806

    async def refused(_request: Request, error: RequestError) -> Response:
        return JSONResponse(error.as_dict(), error.status, error.headers)

    async def no_route(_request: Request, error: HTTPException) -> Response:
        told = RequestError(error.status_code, "not_here", str(error.detail), error.headers)
        return JSONResponse(told.as_dict(), told.status, told.headers)

    async def failed(_request: Request, _error: Exception) -> Response:
        told = internal_error()
        return JSONResponse(told.as_dict(), told.status)

    handlers: dict[type[Exception], Handler] = {
        RequestError: refused,
        HTTPException: no_route,
        Exception: failed,
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)
