"""The server as one ASGI app, and running it until it is told to stop.

It listens at once; the model is loaded, and what it takes here is measured, behind the open door.
"""

import asyncio
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from clearsr.config.serving import ServingConfig
from clearsr.errors import ClearSRError
from clearsr.web import api, job_routes
from clearsr.web.access import Access
from clearsr.web.assets import PREFIX, serve_asset
from clearsr.web.bodies import Bodies
from clearsr.web.errors import RequestError, where
from clearsr.web.jobs import JobQueue, Metrics, StoppedError
from clearsr.web.runs import Service
from clearsr.web.spool import Spool

if TYPE_CHECKING:
    from clearsr.pipeline.pipeline import ClearSRPipeline

logger = logging.getLogger(__name__)

_GRACE = 1.0  # seconds that running requests get when the server is told to stop
_LONGEST_END = 1.8  # seconds after which the process ends whatever still works in it
Load = Callable[[], "ClearSRPipeline"]


@dataclass(frozen=True)
class Server:
    """An ASGI app with what has to be closed behind it; `has_page` unless it is the HTTP API alone."""

    app: Access
    bodies: Bodies
    service: Service
    has_page: bool

    def take(self, pipeline: "ClearSRPipeline") -> None:
        """Work with this model from here on."""
        from clearsr.web.estimate import Estimator
        from clearsr.web.upscaler import Upscaler

        self.service.model.set(Upscaler(pipeline, Estimator(), self.service.config))

    def prepare(self) -> None:
        """Make what there is beside the model: what to expect of a picture, and the page's examples."""
        queue, upscaler = self.service.queue, self.service.model.get()

        def is_wanted() -> bool:
            return queue.is_closed or queue.counts() != (0, 0)

        while not upscaler.estimator.is_measured and not queue.is_closed:
            upscaler.measure(is_wanted)
            time.sleep(0.2)
        if self.has_page:
            from clearsr.evaluation.demo import write_examples

            self.service.examples = write_examples(self.service.spool.examples)

    def stop(self) -> None:
        """Take nothing more; whoever waits or is still sending is told so."""
        self.service.close()
        self.bodies.close(StoppedError("shutting_down"))

    def close(self) -> None:
        """End what is in the queue and delete what is on disk."""
        self.service.close()
        self.service.spool.close()


def build_server(config: ServingConfig, with_page: bool = True) -> Server:
    """Put everything together but the model, which `Server.take` brings.

    Args:
        with_page: serve the page at `/`; else there is the HTTP API alone.
    """
    queue = JobQueue(config.places, config.concurrency, config.time_limit)
    metrics = Metrics(queue)
    service = Service(config, queue, Spool(config), metrics)

    async def page(request: Request) -> Response:
        return serve_asset(request, request.path_params.get("name", "index.html"))

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        tidying = asyncio.create_task(service.spool.keep_tidy())
        yield
        tidying.cancel()
        service.close()

    routes = [*api.routes_of(service), *job_routes.routes_of(service)]
    routes.append(Route(PREFIX + "{name}", page))  # the form that asks for a token needs its style, too
    if with_page:
        routes.append(Route("/", page))
    handlers: Any = dict.fromkeys((RequestError, HTTPException, Exception), api.refused)
    app = Starlette(routes=routes, exception_handlers=handlers, lifespan=lifespan)
    bodies = Bodies(app, config)
    return Server(Access(bodies, config, metrics), bodies, service, with_page)


def run_server(
    config: ServingConfig, load: Load, on_ready: Callable[[str], None], with_page: bool = True
) -> None:
    """Serve until SIGINT or SIGTERM; then nothing more is taken, and what is there is ended.

    The signal ends the process, within three seconds: no thread is waited for that works on something else
    than a network, within whose layers it can be stopped.

    Args:
        load: gives the model; called while the server listens already.
        on_ready: called with the server's address once it listens.

    Raises:
        ClearSRError: the address cannot be had, or the model not be loaded.
    """
    with _listening(config) as listener:
        port = listener.getsockname()[1]
        name = f"[{config.host}]" if ":" in config.host else config.host
        server = build_server(config, with_page)
        runner = _Runner(server, load, lambda: on_ready(f"http://{name}:{port}/"))

        def stop(*_: object) -> None:
            runner.should_exit = True

        try:
            signal.signal(signal.SIGTERM, stop)  # until uvicorn serves, and takes signals itself
            runner.run(sockets=[listener])
        finally:
            server.close()
    if runner.error is not None:
        raise runner.error


class _Runner(uvicorn.Server):
    """uvicorn's server, with what is to be done between listening and the first request, and before the end.

    Attributes:
        error: why the model could not be loaded.
    """

    def __init__(self, server: Server, load: Load, on_ready: Callable[[], None]) -> None:
        options = uvicorn.Config(
            server.app, log_config=None, access_log=False, timeout_graceful_shutdown=_GRACE,
            timeout_keep_alive=15, server_header=False, http=PatientProtocol,
        )  # fmt: skip
        super().__init__(options)
        self.error: BaseException | None = None
        self._server, self._load_model, self._on_ready = server, load, on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, say so, and begin to load the model."""
        await super().startup(sockets)
        if self.started and not self.should_exit:
            self._on_ready()
            threading.Thread(target=self._load, name="clearsr-load", daemon=True).start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the queue, so that whoever waits is answered with 503, stop as usual, and end the process."""
        if self.error is None:  # else it is told by who runs the server
            end = threading.Timer(_LONGEST_END, self._end)
            end.daemon = True
            end.start()
        self._server.stop()
        await super().shutdown(sockets)
        if self.error is None:
            self._end()

    def _load(self) -> None:
        try:
            self._server.take(self._load_model())
        except BaseException as error:
            self.error = error
            self._server.service.model.fail(StoppedError("shutting_down"))
            self.should_exit = True
            return
        try:
            self._server.prepare()
        except Exception as error:  # without these the server works, too
            logger.error("estimates and examples: %s", where(error), exc_info=error)
            self._server.service.examples = []

    def _end(self) -> None:
        """End the process without waiting for its threads: one may be within a call of torch or an import."""
        self._server.close()
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(130 if signal.SIGINT in self._captured_signals else 0)


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
