"""The one bounded queue of the server: so many threads at work, so many places to wait in.

A place is taken when a picture is there to be worked on; whether there is one is looked at before, so that a
crowd is turned away before it costs memory or disk. Jobs know nothing of HTTP or pictures: they are functions
of a `Ticket`, which they ask whether to go on.
Prometheus is told of them at /metrics; each server has a registry of its own.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Literal, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from clearsr.web.errors import RequestError, where

logger = logging.getLogger(__name__)

Reason = Literal["cancelled", "time_limit", "shutting_down"]
Work = Callable[["Ticket"], Any]

_REFUSALS: dict[Reason, tuple[int, str]] = {
    "cancelled": (499, "the picture was cancelled"),
    "time_limit": (504, "the picture took longer than the server allows"),
    "shutting_down": (503, "the server is shutting down; try again later"),
}


class StoppedError(RequestError):
    """A job that was ended before it was done. `code` says why."""

    def __init__(self, reason: Reason) -> None:
        status, message = _REFUSALS[reason]
        super().__init__(status, reason, message, {"Retry-After": "10"} if status == 503 else None)


class Progress(NamedTuple):
    """How far a job is.

    Attributes:
        done: steps done.
        steps: all steps; 0 until the job has begun.
        note: what is being worked on.
        preview: a file with an early look at the result.
        looked_at: the step that this is of.
    """

    done: int = 0
    steps: int = 0
    note: str = ""
    preview: Path | None = None
    looked_at: int = 0


class Ticket:
    """A place in the queue, and the way to follow or stop what is done there.

    Attributes:
        future: the work's result, or what it raised.
        progress: as last reported.
        begun: when the work began, in monotonic seconds; None before.
    """

    def __init__(self, queue: "JobQueue") -> None:
        self.future: Future[Any] = Future()
        self.progress = Progress()
        self._queue = queue
        self._stop: Reason | None = None
        self._deadline: float | None = None
        self.begun: float | None = None

    def check(self) -> None:
        """Raise if the job is to end here.

        Raises:
            StoppedError: it was cancelled, or its time is up.
        """
        if self._stop is not None:
            raise StoppedError(self._stop)
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise StoppedError("time_limit")

    def report(self, done: int, steps: int, note: str = "", preview: Path | None = None) -> None:
        """Say how far the job is; a preview stays until there is another."""
        last = self.progress if preview is None else Progress(preview=preview, looked_at=done)
        self.progress = Progress(done, steps, note, last.preview, last.looked_at)

    def cancel(self, reason: Reason = "cancelled") -> None:
        """End the job at its next check, or at once if it has not begun. Nothing happens if it is done."""
        self._stop = self._stop or reason
        self._queue.withdraw(self, StoppedError(self._stop))

    def begin(self, seconds: float) -> None:
        """From here on the time counts."""
        self.begun = time.monotonic()
        self._deadline = self.begun + seconds

    @property
    def is_at_work(self) -> bool:
        """Whether the work has begun."""
        return self._deadline is not None

    @property
    def ahead(self) -> int | None:
        """How many jobs are before this one in the queue; None once it is at work."""
        return self._queue.ahead_of(self)


class JobQueue:
    """Threads that take jobs in the order in which they came.

    `places` is how many jobs there may be at once, waiting or at work; `seconds` how long one may work.
    """

    def __init__(self, places: int, concurrency: int, seconds: float) -> None:
        self._places, self._seconds = places, seconds
        self._changed = threading.Condition()
        self._waiting: deque[tuple[Ticket, Work]] = deque()
        self._open: set[Ticket] = set()
        self._is_closed = False
        for number in range(concurrency):
            threading.Thread(target=self._run, name=f"clearsr-job-{number}", daemon=True).start()

    def reserve(self) -> Ticket:
        """A place, to be filled with `start` or given back with `Ticket.cancel`.

        Raises:
            RequestError: 429 if all places are taken, 503 if the server is shutting down.
        """
        with self._changed:
            self.check()
            ticket = Ticket(self)
            self._open.add(ticket)
            return ticket

    def check(self) -> None:
        """See that there is a place, without taking it.

        Raises:
            RequestError: as `reserve`.
        """
        with self._changed:
            if self._is_closed:
                raise StoppedError("shutting_down")
            if len(self._open) >= self._places:
                message = f"all {self._places} places of the queue are taken; try again in a few seconds"
                raise RequestError(429, "queue_full", message, {"Retry-After": "5"})

    def start(self, ticket: Ticket, work: Work) -> None:
        """Queue the work; its outcome is in `ticket.future`."""
        with self._changed:
            if ticket not in self._open:  # cancelled meanwhile: the future says so
                return
            self._waiting.append((ticket, work))
            self._changed.notify()

    def withdraw(self, ticket: Ticket, reason: Exception) -> None:
        """Take out a job that is not at work; one that is sees `Ticket.check` raise."""
        with self._changed:
            if ticket in self._open and not ticket.is_at_work:
                self._waiting = deque(item for item in self._waiting if item[0] is not ticket)
                self._open.discard(ticket)
                ticket.future.set_exception(reason)

    def ahead_of(self, ticket: Ticket) -> int | None:
        """Jobs before this one that have not begun; None if it does not wait."""
        with self._changed:
            return next((i for i, item in enumerate(self._waiting) if item[0] is ticket), None)

    def counts(self) -> tuple[int, int]:
        """Jobs at work, and places taken beyond these."""
        with self._changed:
            running = sum(ticket.is_at_work for ticket in self._open)
            return running, len(self._open) - running

    @property
    def is_closed(self) -> bool:
        """Whether nothing more is taken."""
        return self._is_closed

    def close(self) -> None:
        """Take nothing more, and end what is there."""
        with self._changed:
            self._is_closed = True
            tickets = list(self._open)
            self._changed.notify_all()
        for ticket in tickets:
            ticket.cancel("shutting_down")

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._is_closed:
                    self._changed.wait()
                if not self._waiting:
                    return
                ticket, work = self._waiting.popleft()
                ticket.begin(self._seconds)
            try:
                outcome, error = work(ticket), None
            except Exception as caught:  # whatever it is belongs to the job; the thread goes on
                outcome, error = None, caught
            with self._changed:
                self._open.discard(ticket)
            if error is None:
                ticket.future.set_result(outcome)
            else:
                if not isinstance(error, RequestError):
                    logger.error("a job failed: %s", where(error), exc_info=error)
                ticket.future.set_exception(error)


class Metrics:
    """Counters of a server, and its queue's length at the moment of asking."""

    def __init__(self, queue: JobQueue) -> None:
        self._registry = CollectorRegistry()
        self.responses = Counter(
            "clearsr_http_responses_total", "Responses by status", ["status"], registry=self._registry
        )
        self.pictures = Counter(
            "clearsr_pictures_total", "Pictures by outcome", ["outcome"], registry=self._registry
        )
        self.seconds = Histogram(
            "clearsr_picture_seconds", "Time from request to result or refusal, waiting included",
            buckets=(0.25, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600), registry=self._registry,
        )  # fmt: skip
        running = Gauge("clearsr_jobs_running", "Pictures at work", registry=self._registry)
        running.set_function(lambda: queue.counts()[0])
        waiting = Gauge("clearsr_jobs_waiting", "Places of the queue taken", registry=self._registry)
        waiting.set_function(lambda: queue.counts()[1])

    def count(self, outcome: str, seconds: float) -> None:
        """Note what became of a picture, whatever it is, and how long that took."""
        self.pictures.labels(outcome).inc()
        self.seconds.observe(seconds)

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self._registry)
