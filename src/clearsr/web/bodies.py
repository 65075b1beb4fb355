"""The bodies of requests: how large, how long they may take, and how many come slowly at once.

A place in the queue is taken when a picture is there, so whoever sends half of one holds none. What such
clients do hold, a connection and a part of a file, is bounded here: of each client a few slow bodies, and of
all together a number; where there are more, the one that began first is ended.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from clearsr.config.serving import ServingConfig
from clearsr.web.errors import RequestError, answer

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_SLOW_SECONDS = 2.0  # a body that takes longer is a slow one
_SLOW_PER_CLIENT = 4
_MOST = 64  # bodies that are read at once


class _Body:
    """One that is being read."""

    def __init__(self, client: str) -> None:
        self.client, self.begun = client, time.monotonic()
        self.stopped: asyncio.Future[RequestError] = asyncio.get_running_loop().create_future()

    def stop(self, reason: RequestError) -> None:
        """End the request; nothing happens if it has been ended."""
        if not self.stopped.done():
            self.stopped.set_result(reason)


class Bodies:
    """ASGI middleware: requests whose bodies are too large, too slow or too many are ended."""

    def __init__(self, app: App, config: ServingConfig) -> None:
        self._app = app
        self._limit, self._seconds = int(config.max_upload_mb * 1e6), config.upload_seconds
        self._reading: list[_Body] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the app on a request of HTTP."""
        headers = dict(scope.get("headers", ()))  # none of the lifespan
        length = headers.get(b"content-length", b"0")
        if length == b"0" and b"transfer-encoding" not in headers:
            await self._app(scope, receive, send)
            return
        try:
            self._check_length(length)
            body = self._begin((scope.get("client") or ("",))[0])
        except RequestError as refusal:
            await answer(send, refusal)
            return
        await self._run(scope, receive, send, body)

    def close(self, reason: RequestError) -> None:
        """End the requests that are still being read."""
        for body in self._reading:
            body.stop(reason)

    def _check_length(self, length: bytes) -> None:
        if not length.isdigit():
            raise RequestError(400, "bad_request", "Content-Length: must be a number")
        if int(length) > self._limit:
            raise _too_large(self._limit)

    def _begin(self, client: str) -> _Body:
        """One more of this client; what it has too many of is ended."""
        old = time.monotonic() - _SLOW_SECONDS
        going_on = [body for body in self._reading if not body.stopped.done()]
        slow = [body for body in going_on if body.begun < old]
        slow_of_client = [body for body in slow if body.client == client]
        if len(slow_of_client) >= _SLOW_PER_CLIENT:
            slow_of_client[0].stop(_too_slow("others of this client came in the meantime"))
        elif len(going_on) >= _MOST:
            if not slow:
                message = "too many pictures are being sent at the moment; try again in a few seconds"
                raise RequestError(429, "too_many_uploads", message, {"Retry-After": "5"})
            slow[0].stop(_too_slow("others came in the meantime"))
        body = _Body(client)
        self._reading.append(body)
        return body

    async def _run(self, scope: Scope, receive: Receive, send: Send, body: _Body) -> None:
        received, has_started, refusal = 0, False, None

        async def receiving() -> Message:
            nonlocal received, refusal
            if body not in self._reading:  # it is whole: what comes now is that the client has left
                return await receive()
            try:
                message = await self._next(receive, body)
                received += len(message.get("body", b""))
                if received > self._limit:
                    raise _too_large(self._limit)
            except RequestError as error:
                refusal = error
                raise
            if not message.get("more_body"):
                self._reading.remove(body)
            return message

        async def sending(message: Message) -> None:
            nonlocal has_started
            if refusal is None:  # else, whatever the app makes of it, the client is told what it is
                has_started = True
                await send(message)

        try:
            await self._app(scope, receiving, sending)
        except Exception:  # of a request that was refused, whatever it is follows from that
            if refusal is None:
                raise
        finally:
            if body in self._reading:
                self._reading.remove(body)
        if refusal is not None and not has_started:
            await answer(send, refusal)

    async def _next(self, receive: Receive, body: _Body) -> Message:
        """The next part of a body.

        Raises:
            RequestError: it was ended, or its time is up.
        """
        coming = asyncio.ensure_future(receive())
        left = max(0.0, body.begun + self._seconds - time.monotonic())
        try:
            ends: set[asyncio.Future[Any]] = {coming, body.stopped}
            await asyncio.wait(ends, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not coming.done():
                coming.cancel()
        if body.stopped.done():
            raise body.stopped.result()
        if coming.cancelled() or not coming.done():
            raise _too_slow(f"it took longer than {self._seconds:g} s")
        return coming.result()


def _too_slow(why: str) -> RequestError:
    return RequestError(408, "slow_upload", f"the upload was ended: {why}", {"Connection": "close"})


def _too_large(limit: int) -> RequestError:
    # The connection stays open: closed while the client still sends, it would take the answer with it. What
    # is sent after the answer is dropped, and not for long (`server.PatientProtocol`).
    message = f"the request is larger than {limit / 1e6:g} MB"
    return RequestError(413, "too_large", message)
