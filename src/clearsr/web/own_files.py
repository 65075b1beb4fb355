"""Requests to Gradio may name no file but uploads: neither an address nor another file of the server.

Gradio downloads an address that stands in place of an uploaded file, and in a mounted app it copies any path
of the server to where clients can read it. What it would read is a JSON body, so this reads it before.
"""

import json
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from clearsr.web.errors import RequestError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


_MAX_BODY = 1_000_000  # bytes; settings and names, never pictures


async def with_own_files(app: App, scope: Scope, receive: Receive, send: Send, root: Path) -> None:
    """Run the app on a JSON request whose files all lie below `root`.

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
        named = names_other_file(content, root)
    except (ValueError, RecursionError):
        raise RequestError(400, "bad_request", "the body is no JSON that can be read") from None
    if named:
        raise RequestError(
            403, "not_an_upload", "only uploaded files are accepted; addresses are not fetched"
        )
    has_given = False

    async def replay() -> Message:
        nonlocal has_given
        if has_given:
            return await receive()
        has_given = True
        return {"type": "http.request", "body": body, "more_body": False}

    await app(scope, replay, send)


def names_other_file(content: Any, root: Path) -> bool:
    """Whether a file in a JSON value lies anywhere but below `root`; an address does."""
    if isinstance(content, dict):
        path = content.get("path")
        is_other = isinstance(path, str) and not lies_below(path, root)
        return is_other or any(names_other_file(value, root) for value in content.values())
    return isinstance(content, list) and any(names_other_file(value, root) for value in content)


def lies_below(path: str, root: Path) -> bool:
    """Whether a path leads below `root`, links followed."""
    return root.resolve() in Path(path).resolve().parents
