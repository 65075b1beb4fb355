"""What one sees of a training run: a progress bar, `metrics.jsonl`, TensorBoard where it is installed."""

import json
import logging
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

logger = logging.getLogger(__name__)


class Report:
    """Writes scalars and pictures of one run; use as a context manager."""

    def __init__(self, run: Path, steps: int, first_step: int, enabled: bool = True) -> None:
        """Opens `run/metrics.jsonl` for appending. `enabled` is false on all ranks but the first."""
        self._enabled = enabled
        self._started, self._first_step = time.monotonic(), first_step
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TimeRemainingColumn(), TextColumn("{task.fields[note]}"), disable=not enabled, transient=False,
        )  # fmt: skip
        self._task = self._bar.add_task(run.name, total=steps, completed=first_step, note="")
        self._file = (run / "metrics.jsonl").open("a", encoding="utf-8") if enabled else None
        self._board = _tensorboard(run) if enabled else None

    def __enter__(self) -> "Report":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        if self._file:
            self._file.close()
        if self._board:
            self._board.close()

    def advance(self, step: int) -> None:
        """Move the bar to `step`."""
        self._bar.update(self._task, completed=step)

    def scalars(self, step: int, values: dict[str, float], group: str = "train") -> None:
        """Record numbers at a step, and show them beside the bar."""
        if not self._enabled or self._file is None:
            return
        rate = (step - self._first_step) / max(time.monotonic() - self._started, 1e-9)
        row = {"step": step, "group": group, "steps_per_second": round(rate, 4), **values}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        note = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        self._bar.update(self._task, note=f"{rate:.2f} steps/s  {note}")
        if not self._bar.console.is_terminal:
            logger.info("step %d  %.2f steps/s  %s %s", step, rate, group, note)
        if self._board:
            for name, value in values.items():
                self._board.add_scalar(f"{group}/{name}", value, step)


def _tensorboard(run: Path) -> Any:
    """A TensorBoard writer, or None where the `train` extra is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        logger.info("TensorBoard is not installed (extra `train`): metrics go to metrics.jsonl only")
        return None
    return SummaryWriter(str(run / "tensorboard"))
