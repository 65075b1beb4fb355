"""The server as one ASGI app, and running it until it is told to stop."""

import asyncio
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.auto import AutoHTTPProtocol

import clearsr
from clearsr.config.serving import ServingConfig
from clearsr.errors import ClearSRError
from clearsr.pipeline.pipeline import ClearSRPipeline
from clearsr.web.api import Service, add_routes
from clearsr.web.estimate import Estimator
from clearsr.web.guard import Guard
from clearsr.web.jobs import JobQueue, Metrics
from clearsr.web.uploads import Storage
from clearsr.web.upscaler import Upscaler

logger = logging.getLogger(__name__)

_GRACE = 10  # seconds that running requests get when the server is told to stop


@dataclass(frozen=True)
class Server:
    """An ASGI app with what has to be closed behind it."""

    app: Guard
    service: Service

    def close(self) -> None:
        """End what is in the queue and delete what is on disk."""
        self.service.queue.close()
        self.service.storage.close()


def build_server(pipeline: ClearSRPipeline, config: ServingConfig, with_page: bool = True) -> Server:
    """Measure what the model takes here, and put everything together.

    Args:
        with_page: mount the Gradio page at `/`; else there is the HTTP API alone.
    """
    queue = JobQueue(config.places, config.concurrency, config.time_limit)
    storage = Storage(config)
    metrics = Metrics(queue)
    upscaler = Upscaler(pipeline, Estimator.measured(pipeline), config)
    service = Service(upscaler, queue, storage, metrics)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        queue.close()

    # No pages of documentation: they would load scripts from elsewhere. The description itself is there.
    app = FastAPI(
        title="ClearSR", version=clearsr.__version__, docs_url=None, redoc_url=None, lifespan=lifespan
    )
    add_routes(app, service)
    if with_page:
        from clearsr.web.page import mount_page

        with _gradio_environment(storage):
            mount_page(app, service)
    return Server(Guard(app, config, storage, metrics), service)


def run_server(server: Server, config: ServingConfig, on_ready: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM; then nothing more is taken, and what is there is ended.

    Args:
        on_ready: called with the server's address before it takes requests.

    Raises:
        ClearSRError: the address cannot be had.
    """
    with _listening(config) as listener, _gradio_environment(server.service.storage):
        port = listener.getsockname()[1]
        name = f"[{config.host}]" if ":" in config.host else config.host
        on_ready(f"http://{name}:{port}/")
        options = uvicorn.Config(
            server.app, log_config=None, access_log=False, timeout_graceful_shutdown=_GRACE,
            timeout_keep_alive=15, server_header=False, http=PatientProtocol,
        )  # fmt: skip
        # uvicorn raises the signal again when it is through, which would end the process before `close`.
        before = signal.signal(signal.SIGTERM, lambda *_: None)
        try:
            _StoppingServer(options, server.service.queue).run(sockets=[listener])
        finally:
            signal.signal(signal.SIGTERM, before)
            server.close()


class _StoppingServer(uvicorn.Server):
    """uvicorn's server, which has no other place to be told of a signal before it waits for its requests."""

    def __init__(self, options: uvicorn.Config, queue: JobQueue) -> None:
        super().__init__(options)
        self._queue = queue

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End the queue, so that whoever waits is answered with 503, then stop as usual."""
        super().handle_exit(sig, frame)
        self._queue.close()


@contextmanager
def _listening(config: ServingConfig) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    with listener:
        try:
            listener.bind((config.host, config.port))
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise ClearSRError(
                f"--host {config.host} --port {config.port}: cannot be listened on ({reason})"
            ) from None
        yield listener


@contextmanager
def _gradio_environment(storage: Storage) -> Iterator[None]:
    """Within the block Gradio keeps its files in our folder and calls no one; it reads both from here."""
    values = {"GRADIO_TEMP_DIR": str(storage.root / "page"), "GRADIO_ANALYTICS_ENABLED": "False"}
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


# Connections on which no request comes are closed.
# A client that sends its headers byte by byte, or nothing, could else hold one open for as long as it likes:
# uvicorn has a limit for the time between two requests alone.
HEADER_SECONDS = 20.0  # until the headers of a request must have come


class PatientProtocol(AutoHTTPProtocol):
    """uvicorn's protocol of HTTP, with a limit for headers."""

    def connection_made(self, transport: Any) -> None:
        """Take a connection, and look at it from time to time."""
        super().connection_made(transport)
        self._requestless = 0
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """The other end has closed it, or we have."""
        self._look.cancel()
        super().connection_lost(exc)

    def _watch(self) -> None:
        interval = HEADER_SECONDS / 4
        self._look = asyncio.get_running_loop().call_later(interval, self._look_at_it)

    def _look_at_it(self) -> None:
        has_request = self.cycle is not None and not self.cycle.response_complete
        self._requestless = 0 if has_request else self._requestless + 1
        if self._requestless > 4:
            self.transport.close()
        else:
            self._watch()
