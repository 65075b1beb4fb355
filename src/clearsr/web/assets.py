"""The files of the page: read once, compressed once, and kept by browsers until they change."""

import gzip
import hashlib
from functools import cache
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response

from clearsr.web.errors import RequestError

PREFIX = "/page/"
_TYPES = {"css": "text/css", "js": "text/javascript", "html": "text/html"}

LOGIN_PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>ClearSR</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,"><link rel="stylesheet" href="/page/clearsr.css"></head>
<body class="login"><main><form method="post" action="/login"><h1>Clear<span>SR</span></h1>
<label for="token">This server asks for its token.</label>
<input id="token" name="token" type="password" autocomplete="current-password" autofocus required>
<button class="primary">Enter</button><p role="alert">{note}</p></form></main></body></html>"""


@cache
def _content(name: str) -> tuple[bytes, bytes, str]:
    """A file of the page as it is and compressed, and what names this version of it."""
    content = (files("clearsr.web") / "page" / name).read_bytes()
    if name == "index.html":
        for other in ("clearsr.css", "clearsr.js"):  # a changed file has another address
            content = content.replace(other.encode(), f"{other}?{_content(other)[2]}".encode())
    return content, gzip.compress(content, mtime=0), hashlib.sha256(content).hexdigest()[:16]


def serve_asset(request: Request, name: str) -> Response:
    """A file of the page; 304 if the browser has it.

    Raises:
        RequestError: 404, there is no such file.
    """
    if name not in ("index.html", "clearsr.css", "clearsr.js"):
        raise RequestError(404, "not_here", "no such file")
    plain, compressed, version = _content(name)
    is_named = request.url.query == version
    headers = {
        "Cache-Control": "public, max-age=31536000, immutable" if is_named else "no-cache",
        "ETag": f'"{version}"',
        "Vary": "Accept-Encoding",
    }
    if request.headers.get("if-none-match") == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    media = f"{_TYPES[name.rpartition('.')[2]]}; charset=utf-8"
    if "gzip" in request.headers.get("accept-encoding", ""):
        return Response(compressed, media_type=media, headers={**headers, "Content-Encoding": "gzip"})
    return Response(plain, media_type=media, headers=headers)
