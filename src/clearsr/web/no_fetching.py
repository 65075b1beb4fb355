"""Requests to Gradio that would have the server fetch an address are refused.

Its components take an address in place of an uploaded file and download it. What they would read is a JSON
body, so this reads it before them.
"""

import json
from typing import Any

from clearsr.web.asgi import App, Message, Receive, Scope, Send
from clearsr.web.errors import RequestError

_MAX_BODY = 1_000_000  # bytes; settings and names, never pictures


async def without_addresses(app: App, scope: Scope, receive: Receive, send: Send) -> None:
    """Run the app on a JSON request that names no address where a file is meant.

    Raises:
        RequestError: 403, it does; 413, the body is too long; 400, it is no JSON.
    """
    body = b""
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return
        body += message.get("body", b"")
        if len(body) > _MAX_BODY:
            raise RequestError(413, "too_large", f"a JSON request may have {_MAX_BODY:,} bytes")
        if not message.get("more_body"):
            break
    try:
        content = json.loads(body) if body else None
        named = names_address(content)
    except (ValueError, RecursionError):
        raise RequestError(400, "bad_request", "the body is no JSON that can be read") from None
    if named:
        raise RequestError(403, "no_fetching", "addresses are not fetched; upload the picture itself")
    has_given = False

    async def replay() -> Message:
        nonlocal has_given
        if has_given:
            return await receive()
        has_given = True
        return {"type": "http.request", "body": body, "more_body": False}

    await app(scope, replay, send)


def names_address(content: Any) -> bool:
    """Whether anything in a JSON value is a file whose path is an address."""
    if isinstance(content, dict):
        path = content.get("path")
        is_address = isinstance(path, str) and path.strip().lower().startswith(("http:", "https:"))
        return is_address or any(map(names_address, content.values()))
    return isinstance(content, list) and any(map(names_address, content))
