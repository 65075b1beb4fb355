"""Plain HTTP: POST /v1/upscale, /healthz, /metrics, /openapi.json, and how a picture is received.

A request is turned away if there is no place in the queue; else its picture is stored and judged by its
header, and only then takes a place.
"""

import asyncio
import dataclasses
import json
import logging
import re
import time
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

from starlette.background import BackgroundTask
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from clearsr.errors import Notice
from clearsr.web.description import openapi
from clearsr.web.errors import RequestError, internal_error, where
from clearsr.web.fields import FIELDS, MEDIA_TYPES, bad_setting, check_fields, output_of
from clearsr.web.jobs import StoppedError
from clearsr.web.runs import Run, Service, outcome_of

if TYPE_CHECKING:
    from clearsr.web.upscaler import Upscaler

logger = logging.getLogger(__name__)

_CHUNK = 1 << 20
_LOOK_EVERY = 0.2  # seconds between looks at what else may end a request than its picture being done
_MAX_NAME = 200  # bytes, so that what is added to it still fits a file system


class Upload(NamedTuple):
    """A picture that was received.

    Attributes:
        folder: of its own, in the spool; what becomes of the picture goes there, too.
        source: its file, under the name that its owner gave it, in a folder within.
        fields: the request's other fields.
        began: when its request came, in monotonic seconds.
    """

    folder: Path
    source: Path
    fields: dict[str, Any]
    began: float


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
    async with taken(request, service, FIELDS) as (upload, upscaler):
        source = upload.source
        sampling = upscaler.sampling(upload.fields)
        suffix, output = output_of(upload.fields, source.name)
        await asyncio.to_thread(upscaler.check, source, sampling)
        target = upload.folder / upscaler.output_name(source, sampling, suffix)
        ticket = service.queue.reserve()
    run = Run(source.name, upload.folder, ticket, sampling, started=upload.began)
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


@asynccontextmanager
async def taken(
    request: Request, service: Service, known: Collection[str]
) -> AsyncIterator[tuple[Upload, "Upscaler"]]:
    """Within the block a picture that was received, and what works on it, until a run has both.

    What goes wrong there, or before, is counted, and nothing of the picture stays.
    """
    began, upload = time.monotonic(), None
    try:
        upload = await receive(request, service, known)
        upscaler = await service.model.ready()
        if await request.is_disconnected():
            raise StoppedError("cancelled")
        yield upload, upscaler
    except BaseException as error:
        code = error.code if isinstance(error, RequestError) else internal_error().code
        service.metrics.count(code, time.monotonic() - began)
        if upload is not None:
            service.spool.delete(upload.folder)
        raise


async def receive(request: Request, service: Service, known: Collection[str]) -> Upload:
    """The picture of a form, stored, and the form's fields. Who calls this deletes the folder.

    Raises:
        RequestError: 400, 408, 415, 422, 429, 499, 503 or 507.
    """
    began = time.monotonic()
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
            return Upload(*await _store(picture, service), fields, began)
    except HTTPException as error:
        raise RequestError(400, "bad_request", str(error.detail)) from None
    except ClientDisconnect:
        raise StoppedError("cancelled") from None
    except OSError as error:
        logger.error("an upload could not be stored: %s", where(error))
        raise RequestError(507, "no_storage", "the server could not store the picture") from error


async def _store(picture: UploadFile, service: Service) -> tuple[Path, Path]:
    """A folder of its own for a picture, and its file there: no name of a client's is beside ours."""
    folder = await asyncio.to_thread(service.spool.folder)
    try:
        path = folder / "source" / safe_name(picture.filename or "picture")
        path.parent.mkdir()
        with path.open("wb") as file:
            while chunk := await picture.read(_CHUNK):
                await asyncio.to_thread(file.write, chunk)
    except BaseException:
        service.spool.delete(folder)
        raise
    return folder, path


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
    encoded = bare.encode("utf-8", "replace")  # of single surrogates, which are no text, question marks
    bare = encoded.decode()
    if len(encoded) <= _MAX_NAME:
        return bare
    stem, _, suffix = bare.rpartition(".")
    keep = (stem or suffix).encode()[: _MAX_NAME - 12]
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
