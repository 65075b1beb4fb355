"""The outermost layer of the server: who may come in, with how much, and what the browser may load.

It sees every request, those of the page as well as those of the API, before anything of them is read.
"""

import asyncio
import hashlib
import hmac
import json
import re
import time
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from clearsr.config.serving import ServingConfig
from clearsr.web.errors import RequestError
from clearsr.web.jobs import Metrics
from clearsr.web.look import LOGIN_PAGE
from clearsr.web.own_files import App, Message, Receive, Scope, Send, with_own_files
from clearsr.web.uploads import Storage

COOKIE = "clearsr_session"
_LOGIN_BYTES = 4096
# Gradio would fetch these addresses for the client.
_FETCHES = re.compile(r"/(file|proxy)=\s*/*https?:|/proxy=", re.IGNORECASE)
# What there is. Gradio has more than its page needs: some write to a hub, some show what runs inside.
_ROUTES = re.compile(
    r"/|/healthz|/metrics|/openapi\.json|/v1/.*|/login|/config/?|/theme\.css|/favicon\.ico|/robots\.txt"
    r"|/(static|assets|svelte)/.*"
    r"|/gradio_api/(info/?|openapi\.json|config/?|queue/(join|data)|(call|run|api)/.*|upload|upload_progress"
    r"|file=.*|file/.*|heartbeat/.*|startup-events|theme\.css|cancel|reset/?|app_id/?|login_check/?)",
    re.DOTALL,
)
_OPEN = ("/healthz",)  # paths that need no token
_SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (
        b"content-security-policy",
        b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'; "
        b"form-action 'self'; base-uri 'self'; object-src 'none'",
    ),
)


class Guard:
    """ASGI middleware around the whole server."""

    def __init__(self, app: App, config: ServingConfig, storage: Storage, metrics: Metrics) -> None:
        self._app, self._config, self._storage, self._metrics = app, config, storage, metrics
        self._limit = int(config.max_upload_mb * 1e6)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # the page needs no websocket
            await send({"type": "websocket.close", "code": 1008})
            return

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._metrics.responses.labels(str(message["status"])).inc()
                message["headers"] = [*message.get("headers", ()), *_SECURITY_HEADERS]
            await send(message)

        headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}
        try:
            self._check_origin(headers)
            if scope["path"] == "/login" and scope["method"] == "POST" and self._config.token:
                await self._login(scope, receive, sending)
                return
            self._check_token(scope["path"], headers)
            self._check_path(scope["path"])
            self._check_length(headers)
        except RequestError as refusal:
            wants_page = refusal.status == 401 and "text/html" in headers.get("accept", "")
            await (_answer_page(sending, 401) if wants_page else answer(sending, refusal))
            return
        is_json = "/gradio_api/" in scope["path"] and "json" in headers.get("content-type", "")
        root = self._storage.root / "page" if is_json else None
        patient = _in_time(receive, self._config.upload_seconds)
        await _bounded(self._app, scope, patient, sending, self._limit, root)

    def _check_origin(self, headers: dict[str, str]) -> None:
        """Other web pages may not use a server without a token, by a form or by a name of their own."""
        if self._config.token is not None:
            return
        host = headers.get("host", "")
        name = urlsplit(f"//{host}").hostname or ""
        if self._config.is_local and name not in ("localhost", "127.0.0.1", "::1", self._config.host):
            raise RequestError(403, "wrong_host", "without a token, this server answers to localhost alone")
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            raise RequestError(403, "wrong_origin", "requests from other web pages are refused")

    def _check_token(self, path: str, headers: dict[str, str]) -> None:
        token = self._config.token
        if token is None or path in _OPEN:
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and _same(given.strip(), token):
            return
        try:
            morsel = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            morsel = None
        if morsel is not None and _same(morsel.value, _session(token)):
            self._check_cookie_origin(headers)
        else:
            message = "a token is needed: send the header Authorization: Bearer TOKEN"
            raise RequestError(401, "no_token", message, {"WWW-Authenticate": "Bearer"})

    def _check_cookie_origin(self, headers: dict[str, str]) -> None:
        """A browser sends a cookie along for pages of other ports of the same machine, too."""
        origin = headers.get("origin")
        own = (headers.get("host"), headers.get("x-forwarded-host"))
        if origin is not None and urlsplit(origin).netloc not in own:
            raise RequestError(403, "wrong_origin", "requests from other web pages are refused")

    def _check_path(self, path: str) -> None:
        if _FETCHES.search(path):
            raise RequestError(403, "no_fetching", "this server fetches nothing from other places")
        if not _ROUTES.fullmatch(path):
            raise RequestError(404, "not_here", f"{path[:100]}: no such route")
        if path.endswith("/gradio_api/upload"):
            self._storage.make_room()

    def _check_length(self, headers: dict[str, str]) -> None:
        length = headers.get("content-length", "0")
        if not length.isdigit():
            raise RequestError(400, "bad_request", "Content-Length: must be a number")
        if int(length) > self._limit:
            raise _too_large(self._limit)

    async def _login(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Exchange the token that a browser's form brings for a cookie."""
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if len(body) > _LOGIN_BYTES or message["type"] != "http.request":
                await answer(send, RequestError(413, "too_large", "the form is too large"))
                return
            if not message.get("more_body"):
                break
        given = parse_qs(body.decode("latin-1")).get("token", [""])[0]
        token = self._config.token or ""
        if not _same(given, token):
            await _answer_page(send, 401, "That is not the token.")
            return
        secure = "; Secure" if scope["scheme"] == "https" else ""
        cookie = f"{COOKIE}={_session(token)}; Path=/; HttpOnly; SameSite=Strict{secure}"
        headers = [(b"location", b"/"), (b"set-cookie", cookie.encode("latin-1")), (b"content-length", b"0")]
        await send({"type": "http.response.start", "status": 303, "headers": headers})
        await send({"type": "http.response.body", "body": b""})


async def answer(send: Send, error: RequestError) -> None:
    """Send an error as JSON."""
    body = json.dumps(error.as_dict()).encode()
    headers = [(key.lower().encode(), value.encode()) for key, value in error.headers.items()]
    headers += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _answer_page(send: Send, status: int, note: str = "") -> None:
    body = LOGIN_PAGE.replace("{note}", note).encode()
    headers = [(b"content-type", b"text/html; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _bounded(
    app: App, scope: Scope, receive: Receive, send: Send, limit: int, files_root: Path | None
) -> None:
    """Run the app on a request that is ended when its body is longer than `limit` bytes or does not come."""
    received, has_started = 0, False
    refusal: RequestError | None = None

    async def receiving() -> Message:
        nonlocal received, refusal
        try:
            message = await receive()
        except RequestError as error:
            refusal = error
            raise
        received += len(message.get("body", b""))
        if received > limit:
            refusal = _too_large(limit)
            raise refusal
        return message

    async def sending(message: Message) -> None:
        nonlocal has_started
        if refusal is not None:  # whatever the app makes of it, the client is told what it is
            return
        has_started = True
        await send(message)

    try:
        if files_root is not None:
            await with_own_files(app, scope, receiving, sending, files_root)
        else:
            await app(scope, receiving, sending)
    except Exception as error:  # of a request that was refused, whatever it is follows from that
        if refusal is None:
            if files_root is None or not isinstance(error, RequestError):
                raise
            refusal = error
    if refusal is not None and not has_started:
        await answer(send, refusal)


def _in_time(receive: Receive, seconds: float) -> Receive:
    """`receive` for a request whose whole body must have come so many seconds after it is first asked for."""
    end: float | None = None
    is_whole = False

    async def receiving() -> Message:
        nonlocal end, is_whole
        end = end or time.monotonic() + seconds
        if is_whole:  # what comes now is that the client has left, whenever it does
            return await receive()
        try:
            message = await asyncio.wait_for(receive(), max(0.0, end - time.monotonic()))
        except asyncio.TimeoutError:  # noqa: UP041  (another class before Python 3.11)
            raise _too_slow(seconds) from None
        is_whole = not message.get("more_body")
        return message

    return receiving


def _too_slow(seconds: float) -> RequestError:
    message = f"the upload took longer than {seconds:g} s"
    return RequestError(408, "slow_upload", message, {"Connection": "close"})


def _too_large(limit: int) -> RequestError:
    message = f"the request is larger than {limit / 1e6:g} MB"
    return RequestError(413, "too_large", message, {"Connection": "close"})


def _same(a: str, b: str) -> bool:
    """Whether two secrets are equal, in a time that does not tell how far."""
    return hmac.compare_digest(a.encode("utf-8", "replace"), b.encode("utf-8", "replace"))


def _session(token: str) -> str:
    """What the cookie holds: derived from the token, which itself stays out of the browser's store."""
    return hashlib.sha256(f"clearsr session {token}".encode()).hexdigest()
