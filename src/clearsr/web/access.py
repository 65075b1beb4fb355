"""Who may come in, and what the browser may load: the outermost layer, which sees every request.

Without a token the server is for the pages and programs of this machine; with one, for whoever brings it.
"""

import hashlib
import hmac
import time
from collections import deque
from collections.abc import Collection, Mapping
from http.cookies import CookieError, SimpleCookie
from urllib.parse import SplitResult, parse_qs, urlsplit

from clearsr.config.serving import ServingConfig
from clearsr.web.assets import LOGIN_PAGE, PREFIX
from clearsr.web.bodies import App, Bodies, Message, Receive, Scope, Send
from clearsr.web.errors import RequestError, answer
from clearsr.web.jobs import Metrics

COOKIE = "clearsr_session"
_LOGIN_BYTES = 4096
_OPEN = ("/healthz",)  # paths that need no token; the files of the page, which hold nothing, are open, too
_GUESSES, _GUESS_SECONDS = 10, 60.0  # wrong tokens of one client within that time
_SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
        b"connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    ),
)


class Access:
    """ASGI middleware around the whole server."""

    def __init__(self, app: App, config: ServingConfig, metrics: Metrics) -> None:
        self._app, self._config, self._metrics = app, config, metrics
        self._login_app = Bodies(self._login, config)
        self._wrong: dict[str, deque[float]] = {}  # client -> when it brought wrong tokens

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
                await self._login_app(scope, receive, sending)
                return
            self._check_token(scope["path"], headers, _client(scope))
        except RequestError as refusal:
            wants_page = refusal.status == 401 and "text/html" in headers.get("accept", "")
            await (_answer_page(sending, 401) if wants_page else answer(sending, refusal))
            return
        await self._app(scope, receive, sending)

    def _check_origin(self, headers: dict[str, str]) -> None:
        """Other web pages may not use a server without a token, by a form or by a name of their own."""
        if self._config.token is not None:
            return
        host = headers.get("host", "")
        name = _address(f"//{host}").hostname or ""
        if self._config.is_local and name not in ("localhost", "127.0.0.1", "::1", self._config.host):
            raise RequestError(403, "wrong_host", "without a token, this server answers to localhost alone")
        _check_own(headers, (host,))

    def _check_token(self, path: str, headers: dict[str, str], client: str) -> None:
        token = self._config.token
        if token is None or path in _OPEN or path.startswith(PREFIX):
            return
        try:
            morsel = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            morsel = None
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            if self._is_right(given.strip(), token, client):
                return
        elif morsel is not None and _same(morsel.value, _session(token)):
            self._check_cookie_origin(headers)
            return
        message = "a token is needed: send the header Authorization: Bearer TOKEN"
        raise RequestError(401, "no_token", message, {"WWW-Authenticate": "Bearer"})

    def _is_right(self, given: str, token: str, client: str) -> bool:
        """Whether that is the token. A client that guesses is not even listened to for a while.

        Raises:
            RequestError: 429, it has guessed too often.
        """
        now = time.monotonic()
        wrong = self._wrong.setdefault(client, deque(maxlen=_GUESSES))
        if len(wrong) == _GUESSES and now - wrong[0] < _GUESS_SECONDS:
            wait = str(1 + int(_GUESS_SECONDS - (now - wrong[0])))
            raise RequestError(
                429, "too_many_guesses", "too many wrong tokens; wait a minute", {"Retry-After": wait}
            )
        if _same(given, token):
            del self._wrong[client]
            return True
        wrong.append(now)
        if len(self._wrong) > 10_000:  # addresses are cheap: forget those that have given up
            old = now - _GUESS_SECONDS
            self._wrong = {name: times for name, times in self._wrong.items() if times and times[-1] > old}
        return False

    def _check_cookie_origin(self, headers: dict[str, str]) -> None:
        """A browser sends a cookie along for pages of other ports of the same machine, too."""
        _check_own(headers, (headers.get("host"), headers.get("x-forwarded-host")))

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
        try:
            if not self._is_right(given, token, _client(scope)):
                await _answer_page(send, 401, "That is not the token.")
                return
        except RequestError as refusal:
            await _answer_page(send, refusal.status, "Too many wrong tokens. Wait a minute, then try again.")
            return
        secure = "; Secure" if scope["scheme"] == "https" else ""
        cookie = f"{COOKIE}={_session(token)}; Path=/; HttpOnly; SameSite=Strict{secure}"
        headers = [(b"location", b"/"), (b"set-cookie", cookie.encode("latin-1")), (b"content-length", b"0")]
        await send({"type": "http.response.start", "status": 303, "headers": headers})
        await send({"type": "http.response.body", "body": b""})


async def _answer_page(send: Send, status: int, note: str = "") -> None:
    body = LOGIN_PAGE.replace("{note}", note).encode()
    headers = [(b"content-type", b"text/html; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _check_own(headers: Mapping[str, str], own: Collection[str | None]) -> None:
    """A page of another place may not ask: browsers say where a page is from."""
    origin = headers.get("origin")
    if origin is not None and _address(origin).netloc not in own:
        raise RequestError(403, "wrong_origin", "requests from other web pages are refused")


def _address(text: str) -> SplitResult:
    """The parts of an address; of what is none, nothing."""
    try:
        return urlsplit(text)
    except ValueError:
        return urlsplit("")


def _client(scope: Scope) -> str:
    """The address that a request comes from."""
    return str((scope.get("client") or ("",))[0])


def _same(a: str, b: str) -> bool:
    """Whether two secrets are equal, in a time that does not tell how far."""
    return hmac.compare_digest(a.encode("utf-8", "replace"), b.encode("utf-8", "replace"))


def _session(token: str) -> str:
    """What the cookie holds: derived from the token, which itself stays out of the browser's store."""
    return hashlib.sha256(f"clearsr session {token}".encode()).hexdigest()
