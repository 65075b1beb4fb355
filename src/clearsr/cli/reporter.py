"""What the user is told of a run over files: a progress bar, a line per result, the failures at the end."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import rich
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from clearsr.cli.parser import complain
from clearsr.cli.terminal import write_line
from clearsr.files import Job, Result, skipped

_MAX_SKIP_LINES = 10  # with more, the summary alone says how many


class Reporter:
    """Collects the results of one run and shows them: results on stdout, everything else on stderr.

    `verb` is the status of a success, `total` the number of jobs.
    """

    def __init__(self, verb: str, total: int, *, as_json: bool = False, quiet: bool = False) -> None:
        self._verb, self._total, self._as_json, self._quiet = verb, total, as_json, quiet
        self._results: list[Result] = []
        self._console = rich.get_console()
        self._bar: Progress | None = None

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
                yield
        finally:
            self._bar = None

    def start(self, job: Job) -> Callable[[int, int, Any], None]:
        """Name the file that is being worked on; returns what takes the progress of its steps."""
        bar = self._bar
        if bar is None:
            return lambda *_: None
        before = float(sum(result.status != "skipped" for result in self._results))
        task = bar.tasks[0]
        place = "" if task.total == 1 else f"file {int(before) + 1}/{int(task.total or 0)}"
        bar.update(task.id, description=job.input.name, note=place, completed=before)

        def on_step(done: int, steps: int, _latents: Any = None) -> None:
            bar.update(task.id, completed=before + done / steps, note=f"{place} step {done}/{steps}".strip())

        return on_step

    def skip(self, job: Job) -> None:
        """A job whose output is there."""
        self._add(skipped(job))
        if not (self._quiet or self._as_json) and self._count("skipped") <= _MAX_SKIP_LINES:
            line = f"{job.input}: skipped, {job.output} is there (--overwrite does it again)"
            self._console.print(Text(line), soft_wrap=True)

    def add(self, result: Result) -> None:
        """A job that was worked on."""
        self._add(result)
        if self._as_json or self._quiet or result.status == "failed":
            return
        size = f"{result.width}x{result.height}"
        write_line(f"{result.input} -> {result.output} ({size}, {result.seconds:.1f} s)")

    def close(self) -> int:
        """The failures and the summary; returns the exit code."""
        for result in self._results:
            if result.error is not None:
                complain(result.error)
        if not self._quiet and self._total > 1:
            counts = ", ".join(
                f"{self._count(status)} {status}" for status in (self._verb, "skipped", "failed")
            )
            self._console.print(Text(counts), soft_wrap=True)
        return 1 if self._count("failed") else 0

    def _add(self, result: Result) -> None:
        self._results.append(result)
        if self._as_json:
            print(json.dumps(result.as_dict()), flush=True)

    def _count(self, status: str) -> int:
        return sum(result.status == status for result in self._results)
