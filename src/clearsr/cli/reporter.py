"""What the user is told of a run over files: a progress bar, a line per result, the failures at the end."""

import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

import rich
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from clearsr.cli.parser import complain
from clearsr.cli.terminal import write_line
from clearsr.errors import printable
from clearsr.files.storage import shown
from clearsr.files.upscale import Job, Result, skipped

logger = logging.getLogger(__name__)

_MAX_ERROR_LINES = 1000  # at the end; a batch's manifest has them all
_MAX_SKIP_LINES = 10  # with more, the summary alone says how many
# Of a record in JSON; a batch's has all fields.
_FIELDS = ("input", "output", "status", "seconds", "width", "height", "error", "warnings")


class Reporter:
    """Collects the results of one run and shows them: results on stdout, everything else on stderr.

    `verb` is the status of a success, `total` the number of jobs.
    """

    def __init__(self, verb: str, total: int, *, as_json: bool = False, quiet: bool = False) -> None:
        self._verb, self._total, self._as_json, self._quiet = verb, total, as_json, quiet
        self._counts: Counter[str] = Counter()
        self._errors: list[str] = []
        self._console = rich.get_console()
        self._bar: Progress | None = None
        self._out: TextIO | None = None

    @contextmanager
    def working(self, total: int) -> Iterator[None]:
        """Within the block a bar shows the progress over `total` files; only where there is a terminal."""
        is_shown = self._console.is_terminal and not self._quiet
        # Where both streams are the terminal, results go above the bar; else stdout stays what it is.
        bar = Progress(
            TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(), TimeRemainingColumn(), console=self._console, disable=not is_shown,
            transient=True, redirect_stdout=sys.stdout.isatty(),
        )  # fmt: skip
        bar.add_task("", total=total, note="")
        self._bar = bar
        try:
            with bar:
                self._out = sys.stdout  # others in this process may send their prints elsewhere
                yield
        finally:
            self._bar, self._out = None, None

    def start(self, job: Job) -> Callable[[int, int, Any], None]:
        """Name the file that is being worked on; returns what takes the progress of its steps."""
        bar = self._bar
        if bar is None:
            return lambda *_: None
        before = float(self._worked_on)
        task = bar.tasks[0]
        place = "" if task.total == 1 else f"file {int(before) + 1}/{int(task.total or 0)}"
        bar.update(task.id, description=printable(os.path.basename(job.input)), note=place, completed=before)

        def on_step(done: int, steps: int, _latents: Any = None) -> None:
            bar.update(task.id, completed=before + done / steps, note=f"{place} step {done}/{steps}".strip())

        return on_step

    def skip(self, job: Job) -> None:
        """A job whose output is there."""
        self._add(skipped(job))
        if not (self._quiet or self._as_json) and self._counts["skipped"] <= _MAX_SKIP_LINES:
            line = f"{shown(job.input)}: skipped, {shown(job.output)} is there (--overwrite does it again)"
            self._console.print(Text(line), soft_wrap=True)

    def add(self, result: Result) -> None:
        """A job that was worked on, or a line of a batch's manifest."""
        self._add(result)
        if self._bar is not None:
            self._bar.update(self._bar.tasks[0].id, completed=self._worked_on)
        if self._as_json or self._quiet or result.status == "failed":
            return
        if result.status == "skipped":
            if result.error is not None and self._verb == "upscaled":
                self.say(result.error)
            return
        size = f"{result.width}x{result.height}"
        write_line(
            f"{shown(result.input)} -> {shown(result.output)} ({size}, {result.seconds:.1f} s)", self._out
        )

    def close(self) -> int:
        """The failures and the summary; returns the exit code."""
        for error in self._errors:
            complain(error)
        if (more := self._counts["failed"] - len(self._errors)) > 0:
            complain(f"{more} more failed")
        if self._total > 1:
            counts = (f"{self._counts[status]} {status}" for status in (self._verb, "skipped", "failed"))
            self.say(", ".join(counts))
        return 1 if self._counts["failed"] else 0

    def say(self, line: str) -> None:
        """A line on stderr, unless quiet was asked for."""
        if not self._quiet:
            self._console.print(Text(line), soft_wrap=True)

    @property
    def _worked_on(self) -> int:
        return self._counts.total() - self._counts["skipped"]

    def _add(self, result: Result) -> None:
        self._counts[result.status] += 1
        for notice in result.warnings:
            logger.warning("%s: %s", result.input, notice.text)
        if result.status == "failed" and result.error is not None and len(self._errors) < _MAX_ERROR_LINES:
            self._errors.append(result.error)
        if self._as_json:
            record = result.as_dict()
            names = record if self._verb == "ok" else _FIELDS
            print(json.dumps({name: record[name] for name in names}), flush=True, file=self._out)
