"""What one click on the page sets going: jobs in the queue, one after the other, cancelled as one.

A cancel counts from the click on, also while there is no job in the queue to be cancelled: a picture is still
being copied, or is the next of several.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from clearsr.web.api import Service
from clearsr.web.errors import RequestError, internal_error
from clearsr.web.jobs import Progress, StoppedError, Ticket, Work

_POLL = 0.15  # seconds between looks at a job


class Run:
    """A run from its click to its end.

    Attributes:
        session: of the page that shows it; empty for a program's.
    """

    def __init__(self, service: Service, session: str = "") -> None:
        self.session = session
        self._service = service
        self._is_cancelled = False
        self._ticket: Ticket | None = None

    def cancel(self) -> None:
        """End the job that there is, and let no other begin. May be called from any thread."""
        # In this order: `queued` sets the ticket and then looks here, so one of the two sees the other.
        self._is_cancelled = True
        if self._ticket is not None:
            self._ticket.cancel()

    def check(self) -> None:
        """Raise if the run is to end here.

        Raises:
            StoppedError: it was cancelled.
        """
        if self._is_cancelled:
            raise StoppedError("cancelled")

    async def queued(self, work: Work) -> AsyncIterator[Progress]:
        """The progress of a job from taking its place to its end, whenever there is news.

        Raises:
            RequestError: it was refused, ended or failed.
        """
        self.check()
        ticket = self._ticket = self._service.queue.reserve()
        try:
            self.check()
            self._service.queue.start(ticket, work)
            last: Any = None
            while not ticket.future.done():
                ahead = ticket.ahead
                news = (
                    ticket.progress
                    if ahead is None
                    else Progress(0, 0, f"{ahead} ahead in the queue" if ahead else "next in the queue")
                )
                if news != last:
                    last = news
                    yield news
                await asyncio.sleep(_POLL)
            if ticket.progress != last:
                yield ticket.progress
        finally:
            ticket.cancel()
        try:
            ticket.future.result()
        except RequestError as error:
            self._service.metrics.pictures.labels(error.code).inc()
            raise
        except Exception:
            self._service.metrics.pictures.labels("internal_error").inc()
            raise internal_error() from None
        self._service.metrics.pictures.labels("done").inc()
