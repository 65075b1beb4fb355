"""Plain HTTP: POST /v1/upscale, /healthz, /metrics, /openapi.json, and how a picture is received.

A request is turned away if there is no place in the queue; else its picture is stored and judged by its
header, and only then takes a place.
"""

import asyncio
import dataclasses
import json
import re
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from starlette.background import BackgroundTask
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from clearsr.errors import Notice
from clearsr.web.description import openapi
from clearsr.web.errors import RequestError, internal_error
from clearsr.web.fields import FIELDS, MEDIA_TYPES, bad_setting, check_fields, output_of
from clearsr.web.jobs import StoppedError
from clearsr.web.runs import Run, Service, outcome_of

_CHUNK = 1 << 20
_LOOK_EVERY = 0.2  # seconds between looks at what else may end a request than its picture being done
_MAX_NAME = 200  # bytes, so that what is added to it still fits a file system


class Upload(NamedTuple):
    """A picture that was received.

    Attributes:
        folder: of its own, in the spool.
        source: its file, under the name that its owner gave it.
        fields: the request's other fields.
    """

    folder: Path
    source: Path
    fields: dict[str, Any]


def routes_of(service: Service) -> list[Route]:
    """The routes."""

    async def healthz(_: Request) -> Response:
        running, waiting = service.queue.counts()
        is_closed = service.queue.is_closed
        status = "shutting down" if is_closed else "ok" if service.model.is_ready else "loading"
        content = {"status": status, "running": running, "waiting": waiting, "instance": service.instance}
        return JSONResponse(content, 503 if is_closed else 200, {"Cache-Control": "no-store"})

    async def metrics(_: Request) -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    async def description(_: Request) -> Response:
        return JSONResponse(openapi())

    async def upscale(request: Request) -> Response:
        return await _upscale(request, service)

    return [
        Route("/healthz", healthz),
        Route("/metrics", metrics),
        Route("/openapi.json", description),
        Route("/v1/upscale", upscale, methods=["POST"]),
    ]


async def _upscale(request: Request, service: Service) -> Response:
    start = time.monotonic()
    upload = None
    try:
        upload = await receive(request, service, FIELDS)
        upscaler = await service.model.ready()
        source = upload.source
        sampling = upscaler.sampling(upload.fields)
        suffix, output = output_of(upload.fields, source.name)
        await asyncio.to_thread(upscaler.check, source, sampling)
        target = upload.folder / upscaler.output_name(source, sampling, suffix)
        run = Run(source.name, upload.folder, service.queue.reserve(), sampling, started=start)
    except RequestError as error:
        service.metrics.count(error.code, time.monotonic() - start)
        if upload is not None:
            service.spool.delete(upload.folder)
        raise
    try:
        service.start(run, lambda ticket: upscaler.upscale(ticket, source, target, sampling, output))
        await _finish(run, request, service)
        outcome = outcome_of(run.ticket)
    except BaseException:
        service.forget(run)
        raise
    return file_response(target, outcome.warnings, BackgroundTask(service.forget, run))


async def _finish(run: Run, request: Request, service: Service) -> None:
    """Wait for the job, and end it if the client has gone.

    Raises:
        StoppedError: the server is being stopped; the job may be within a layer of the network for a while.
    """
    waiting = asyncio.wrap_future(run.ticket.future)
    while not waiting.done():
        await asyncio.wait({waiting}, timeout=_LOOK_EVERY)
        if not waiting.done() and service.queue.is_closed:
            raise StoppedError("shutting_down")
        if not waiting.done() and await request.is_disconnected():
            run.ticket.cancel()
            await asyncio.wait({waiting})
    waiting.exception()  # is told from the ticket


async def receive(request: Request, service: Service, known: Collection[str]) -> Upload:
    """The picture of a form, stored, and the form's fields. Who calls this deletes the folder.

    Raises:
        RequestError: 400, 408, 415, 422, 429, 503 or 507.
    """
    service.queue.check()
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise RequestError(415, "not_multipart", "send multipart/form-data with the picture as `file`")
    await asyncio.to_thread(service.spool.make_room)
    try:
        async with request.form(max_files=1, max_fields=len(known) + 1) as form:
            check_fields((key for key in form if key != "file"), known)
            picture = form.get("file")
            if not isinstance(picture, UploadFile):
                raise bad_setting("file: the picture must be uploaded as a file (addresses are not fetched)")
            fields = {key: value for key, value in form.items() if isinstance(value, str)}
            return await _store(picture, fields, service)
    except HTTPException as error:
        raise RequestError(400, "bad_request", str(error.detail)) from None


async def _store(picture: UploadFile, fields: dict[str, Any], service: Service) -> Upload:
    folder = await asyncio.to_thread(service.spool.folder)
    try:
        path = folder / safe_name(picture.filename or "picture")
        with path.open("wb") as file:
            while chunk := await picture.read(_CHUNK):
                await asyncio.to_thread(file.write, chunk)
    except BaseException:
        service.spool.delete(folder)
        raise
    return Upload(folder, path, fields)


def file_response(
    path: Path, warnings: Sequence[Notice] = (), background: BackgroundTask | None = None
) -> FileResponse:
    """A picture to be saved under its name, with what it lacks."""
    plain = re.sub(r"[^\w. -]", "_", path.name, flags=re.ASCII)
    disposition = f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(path.name)}"
    headers = {
        "Content-Disposition": disposition,
        "Cache-Control": "no-store",
        "X-ClearSR-Warnings": json.dumps([dataclasses.asdict(notice) for notice in warnings]),
    }
    return FileResponse(path, media_type=MEDIA_TYPES[path.suffix], headers=headers, background=background)


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


async def refused(_: Request, error: Exception) -> Response:
    """Tell a client what it did wrong."""
    if isinstance(error, HTTPException):
        code = "wrong_method" if error.status_code == 405 else "not_here"
        message = (
            f"takes {(error.headers or {}).get('Allow', 'other methods')}"
            if error.status_code == 405
            else "no such route; /openapi.json lists them"
        )
        error = RequestError(error.status_code, code, message, error.headers)
    if not isinstance(error, RequestError):
        error = internal_error()
    return JSONResponse(error.as_dict(), error.status, error.headers)
