"""What a client is told when a request cannot be served: a status and {"error": {...}}, never a traceback."""

import json
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clearsr.errors import ClearSRError


class RequestError(ClearSRError):
    """A request that is refused or failed.

    Attributes:
        status: of HTTP.
        code: a word for programs.
        headers: of the response, such as Retry-After.
    """

    def __init__(
        self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.headers = status, code, dict(headers or {})

    def as_dict(self) -> dict[str, Any]:
        """The body of the response."""
        return {"error": {"status": self.status, "code": self.code, "message": str(self)}}


def where(error: BaseException) -> str:
    """An unexpected error in one line for the log: what it is, and where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{place}"


def internal_error() -> RequestError:
    """For what is our bug: the client is told that, the server's log has the rest."""
    return RequestError(500, "internal_error", "the server failed on this request; its log says why")


async def answer(send: Any, error: RequestError) -> None:
    """Send an error as JSON, below any framework (`send` is ASGI's)."""
    body = json.dumps(error.as_dict()).encode()
    headers = [(key.lower().encode(), value.encode()) for key, value in error.headers.items()]
    headers += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
