"""Connections on which no request comes are closed.

A client that sends its headers byte by byte, or nothing, could else hold one open for as long as it likes:
uvicorn has a limit for the time between two requests alone.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

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
