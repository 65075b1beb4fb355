"""What one sees of a run: a progress bar, `metrics.jsonl`, pictures, TensorBoard where it is installed."""

import json
import logging
import time
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import torch
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from clearsr.errors import ClearSRError
from clearsr.image import ImageData, write_image
from clearsr.training.run_folder import METRICS_NAME, drop_later_rows

logger = logging.getLogger(__name__)


class Report:
    """Writes scalars and pictures of one run; use as a context manager."""

    def __init__(self, run: Path, steps: int, first_step: int, enabled: bool = True) -> None:
        """Opens `run/metrics.jsonl` for appending after `first_step`; what it says of later steps goes.

        `enabled` is false on all ranks but the first.

        Raises:
            ClearSRError: it cannot be written.
        """
        self._enabled, self._run = enabled, run
        self._started, self._first_step = time.monotonic(), first_step
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TimeRemainingColumn(), TextColumn("{task.fields[note]}"), disable=not enabled, transient=False,
        )  # fmt: skip
        self._task = self._bar.add_task(run.name, total=steps, completed=first_step, note="")
        self._file = _open_metrics(run / METRICS_NAME, first_step) if enabled else None
        self._board = _tensorboard(run, first_step) if enabled else None

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
        """Record numbers at a step, and show them beside the bar.

        Raises:
            ClearSRError: they cannot be written (a full disk).
        """
        if not self._enabled or self._file is None:
            return
        rate = (step - self._first_step) / max(time.monotonic() - self._started, 1e-9)
        row = {"step": step, "group": group, "steps_per_second": round(rate, 4), **values}
        try:
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
        except OSError as error:
            raise ClearSRError(f"{self._file.name}: cannot be written ({error.strerror or error})") from None
        note = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        self._bar.update(self._task, note=f"{rate:.2f} steps/s  {note}")
        if not self._bar.console.is_terminal:
            logger.info("step %d  %.2f steps/s  %s %s", step, rate, group, note)
        if self._board:
            for name, value in values.items():
                self._board.add_scalar(f"{group}/{name}", value, step)

    def picture(self, step: int, picture: torch.Tensor) -> None:
        """Keep a picture, 3×H×W in [0, 1], as `samples/step-<step>.png` and in TensorBoard.

        Raises:
            ClearSRError: it cannot be written.
        """
        if not self._enabled:
            return
        path = self._run / "samples" / f"step-{step:08d}.png"
        try:
            path.parent.mkdir(exist_ok=True)
            write_image(ImageData(picture), path)
        except OSError as error:
            raise ClearSRError(f"{path}: cannot be written ({error.strerror or error})") from None
        if self._board:
            self._board.add_image("validation/lr-bicubic-sr-hr", picture.clamp(0, 1), step)


def _open_metrics(path: Path, first_step: int) -> TextIO:
    try:
        drop_later_rows(path, first_step)
        return path.open("a", encoding="utf-8")
    except OSError as error:
        raise ClearSRError(f"{path}: cannot be written ({error.strerror or error})") from None


def _tensorboard(run: Path, first_step: int) -> Any:
    """A TensorBoard writer, or None where the `train` extra is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        logger.info("TensorBoard is not installed (extra `train`): metrics go to metrics.jsonl only")
        return None
    # What an interrupted run wrote beyond the checkpoint is hidden by what now comes again.
    return SummaryWriter(str(run / "tensorboard"), purge_step=first_step + 1 if first_step else None)
