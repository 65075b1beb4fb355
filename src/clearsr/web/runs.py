"""What the routes work with: the server's parts, and the pictures that are on their way through it.

The model is loaded behind the open door, so nothing here needs torch; what does, waits for `Model.ready`.
"""

import asyncio
import dataclasses
import secrets
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clearsr.config.output import OutputConfig
from clearsr.config.sampling import SamplingConfig
from clearsr.config.serving import ServingConfig
from clearsr.errors import Notice
from clearsr.web.errors import RequestError, internal_error
from clearsr.web.jobs import JobQueue, Metrics, StoppedError, Ticket
from clearsr.web.spool import Spool

if TYPE_CHECKING:
    from clearsr.web.upscaler import Outcome, Upscaler

Grid = tuple[tuple[float, ...], tuple[float, ...]]  # alphas and betas

Copy = tuple[Path, tuple[Notice, ...]]

MOST_RUNS = 2000  # that are remembered; beyond these the oldest are forgotten
MOST_COPIES = 8  # of a result, in other formats and qualities


class Model:
    """The upscaler, as soon as it is there."""

    def __init__(self) -> None:
        self._future: Future[Upscaler] = Future()

    def set(self, upscaler: "Upscaler") -> None:
        """From here on pictures are worked on."""
        if not self._future.done():
            self._future.set_result(upscaler)

    def fail(self, reason: RequestError) -> None:
        """There will be none: whoever waits is told why."""
        if not self._future.done():
            self._future.set_exception(reason)

    @property
    def is_ready(self) -> bool:
        """Whether it is loaded."""
        return self._future.done() and self._future.exception() is None

    def get(self) -> "Upscaler":
        """The upscaler, for those who know that it is there."""
        return self._future.result(0)

    async def ready(self) -> "Upscaler":
        """The upscaler; waits for it.

        Raises:
            RequestError: there will be none.
        """
        return await asyncio.shield(asyncio.wrap_future(self._future))


@dataclass
class Run:
    """A picture on its way, or the comparison of settings on one, from its request to its deletion.

    Attributes:
        name: of the picture, as its owner calls it.
        output: how it is written.
        command: the command line that does the same; empty for a comparison.
        expected: seconds that it takes by estimate; None if nothing is known.
        grid: alphas and betas of a comparison; else None.
        copies: the result in other formats, few of them: the file, and what it lacks.
    """

    name: str
    folder: Path
    ticket: Ticket
    sampling: SamplingConfig
    output: OutputConfig = OutputConfig()
    command: str = ""
    expected: float | None = None
    grid: Grid | None = None
    id: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    started: float = field(default_factory=time.monotonic)
    copies: dict[tuple[str, OutputConfig], Copy] = field(default_factory=dict)

    @property
    def cells(self) -> int:
        """How many pictures a comparison has; 0 if it is none."""
        return len(self.grid[0]) * len(self.grid[1]) if self.grid else 0

    @property
    def outcome(self) -> "Outcome":
        """The result.

        Raises:
            RequestError: there is none yet, or why there is none.
        """
        if not self.ticket.future.done():
            raise RequestError(409, "not_done", "the picture is not done yet", {"Retry-After": "1"})
        return outcome_of(self.ticket)

    def state(self) -> dict[str, Any]:
        """How far it is, in JSON's types; `state` is queued, step, saving, done or failed."""
        common = {"id": self.id, "name": self.name}
        if self.ticket.future.done():
            return {**common, **self._end()}
        if not self.ticket.is_at_work:
            return {**common, "state": "queued", "ahead": self.ticket.ahead or 0}
        done, steps, _, preview, looked_at = self.ticket.progress
        state = "saving" if done >= steps > 0 and not self.cells else "step"
        told: dict[str, Any] = {"state": state, "done": done, "steps": steps}
        if preview is not None:
            told["preview"] = f"/v1/jobs/{self.id}/preview?step={looked_at}"
        if (left := self._seconds_left(done, steps)) is not None:
            told["seconds_left"] = left
        return {**common, **told}

    def _end(self) -> dict[str, Any]:
        try:
            outcome = outcome_of(self.ticket)
        except RequestError as error:
            return {"state": "failed", **error.as_dict()}
        told = {
            "state": "done",
            "seconds": round(outcome.seconds, 2),
            "height": outcome.size[0],
            "width": outcome.size[1],
            "warnings": [dataclasses.asdict(notice) for notice in outcome.warnings],
        }
        if self.grid:
            alphas, betas = self.grid
            cells = [f"/v1/jobs/{self.id}/cells/{n}" for n in range(self.cells)]
            return {**told, "alphas": alphas, "betas": betas, "cells": cells}
        size = outcome.path.stat().st_size if outcome.path.exists() else 0
        result = {"result": f"/v1/jobs/{self.id}/result", "file": outcome.path.name, "bytes": size}
        return {**told, **result, "command": self.command}

    def _seconds_left(self, done: int, steps: int) -> float | None:
        """By how fast it goes once a fifth is done, before that by the estimate."""
        begun = self.ticket.begun
        if begun is None or not steps:
            return None
        gone, share = time.monotonic() - begun, done / steps
        if 0.2 <= share < 1:
            return round(gone * (1 - share) / share, 1)
        return None if self.expected is None else round(max(0.0, self.expected - gone), 1)


def outcome_of(ticket: Ticket) -> "Outcome":
    """What the work of a job that is done has given.

    Raises:
        RequestError: why it gave nothing.
    """
    try:
        outcome: Outcome = ticket.future.result()
    except RequestError:
        raise
    except Exception:
        raise internal_error() from None
    return outcome


class Service:
    """What the routes work with.

    Attributes:
        instance: another one with each start of a server.
        examples: pictures to try the page with; None until they are prepared.
        converting: held while a result is written in another format, or a picture made to be looked at.
    """

    def __init__(self, config: ServingConfig, queue: JobQueue, spool: Spool, metrics: Metrics) -> None:
        self.config, self.queue, self.spool, self.metrics = config, queue, spool, metrics
        self.model = Model()
        self.instance = secrets.token_hex(8)
        self.examples: list[Path] | None = None
        self.converting = asyncio.Lock()  # not a thread's: who waits for it must not occupy one
        self._runs: dict[str, Run] = {}
        self._lock = threading.Lock()

    def start(self, run: Run, work: Callable[[Ticket], "Outcome"]) -> None:
        """Queue a run. What becomes of it is counted; its folder stays until the run is forgotten."""

        def ended(_: object) -> None:
            try:
                outcome_of(run.ticket)
                code = "done"
            except RequestError as error:
                code = error.code
            self.metrics.count(code, time.monotonic() - run.started)
            self.spool.release(run.folder)

        run.ticket.future.add_done_callback(ended)
        self.queue.start(run.ticket, work)

    def remember(self, run: Run) -> None:
        """From here on `find` knows it."""
        with self._lock:
            self._runs[run.id] = run
            ended = [name for name, other in self._runs.items() if other.ticket.future.done()]
            gone = [name for name in ended if not self._runs[name].folder.exists()]
            for name in {*gone, *ended[: max(0, len(self._runs) - MOST_RUNS)]}:
                self.spool.delete(self._runs.pop(name).folder)

    def find(self, name: str) -> Run:
        """The run of that id.

        Raises:
            RequestError: 404, there is none, or its files are gone.
        """
        run = self._runs.get(name)
        if run is None or (run.ticket.future.done() and not run.folder.exists()):
            raise RequestError(404, "no_such_job", "no such job: it was deleted, or is older than is kept")
        return run

    def forget(self, run: Run) -> None:
        """End it if it is not done, and delete its files as soon as nothing works with them."""
        with self._lock:
            self._runs.pop(run.id, None)
        run.ticket.cancel()
        run.ticket.future.add_done_callback(lambda _: self.spool.delete(run.folder))

    def close(self) -> None:
        """Take nothing more, and end what is there."""
        self.queue.close()
        self.model.fail(StoppedError("shutting_down"))
