"""What one sees of a run: a progress bar, `metrics.jsonl`, pictures, and accelerate's trackers.

TensorBoard is passed over where it is not installed; Weights & Biases is asked for, and must be.
"""

import json
import logging
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import numpy as np
import torch
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from clearsr.config.base import flat
from clearsr.config.training import TrainConfig
from clearsr.errors import ClearSRError, first_line, optional
from clearsr.image import ImageData, to_pil, write_image
from clearsr.training.run_folder import METRICS_NAME, drop_later_rows

logger = logging.getLogger(__name__)


class Report:
    """Writes scalars and pictures of one run; use as a context manager."""

    def __init__(
        self, run: Path, steps: int, first_step: int, enabled: bool = True, trackers: Sequence[Any] = ()
    ) -> None:
        """Opens `run/metrics.jsonl` for appending after `first_step`; what it says of later steps goes.

        Args:
            enabled: false on all ranks but the first.
            trackers: accelerate's, started; they are ended with the block.

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
        self._trackers = trackers

    def __enter__(self) -> "Report":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        if self._file:
            self._file.close()
        for tracker in self._trackers:
            if kind is not None and tracker.name == "wandb":
                tracker.tracker.finish(exit_code=1)  # else the run would be shown as finished
            else:
                tracker.finish()

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
        for tracker in self._trackers:
            tracker.log({f"{group}/{name}": value for name, value in values.items()}, step=step)

    def picture(self, step: int, picture: torch.Tensor) -> None:
        """Keep a picture, 3×H×W in [0, 1], as `samples/step-<step>.png` and with the trackers.

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
        levels = np.asarray(to_pil(ImageData(picture)))[None]
        for tracker in self._trackers:
            layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images({"validation/pictures": levels}, step=step, **layout)


def _open_metrics(path: Path, first_step: int) -> TextIO:
    try:
        drop_later_rows(path, first_step)
        return path.open("a", encoding="utf-8")
    except OSError as error:
        raise ClearSRError(f"{path}: cannot be written ({error.strerror or error})") from None


def require_trackers(config: TrainConfig) -> None:
    """See that what a recipe asks for is installed.

    Raises:
        ClearSRError: Weights & Biases is not.
    """
    if "wandb" in config.trackers:
        with optional("trackers: wandb"):
            import wandb  # noqa: F401


def open_trackers(config: TrainConfig, first_step: int) -> list[Any]:
    """accelerate's trackers of a run, started.

    Raises:
        ClearSRError: Weights & Biases does not start.
    """
    makers = {"tensorboard": _tensorboard, "wandb": _wandb}
    opened = [makers[name](config, first_step) for name in dict.fromkeys(config.trackers)]
    return [tracker for tracker in opened if tracker is not None]


def _tensorboard(config: TrainConfig, first_step: int) -> Any:
    """TensorBoard's tracker, or None where the `train` extra is not installed."""
    with optional("training"):
        from accelerate.tracking import TensorBoardTracker

    # What an interrupted run wrote beyond the checkpoint is hidden by what now comes again.
    purge = first_step + 1 if first_step else None
    tracker = TensorBoardTracker("tensorboard", config.output, purge_step=purge)
    try:
        tracker.start()
    except ImportError:
        logger.info("TensorBoard is not installed (extra `train`): metrics go to metrics.jsonl only")
        return None
    return tracker


def _wandb(config: TrainConfig, _first_step: int) -> Any:
    """The tracker of Weights & Biases; a run that goes on is the same one there."""
    with optional("trackers: wandb"):
        import wandb
        from accelerate.tracking import WandBTracker

    identity = config.output / "wandb" / "run-id"
    try:
        identity.parent.mkdir(exist_ok=True)
        if not identity.exists():
            identity.write_text(secrets.token_hex(4))
        known = identity.read_text()
    except OSError as error:
        raise ClearSRError(f"{identity}: cannot be written ({error.strerror or error})") from None
    tracker = WandBTracker(
        config.wandb_project, name=config.output.name, dir=str(config.output), id=known, resume="allow",
        settings=wandb.Settings(console="off"),  # it would keep the progress bar
    )  # fmt: skip
    try:
        tracker.start()
    except wandb.errors.Error as error:
        raise ClearSRError(
            f"trackers: wandb does not start ({first_line(error)}); try `wandb login`, or WANDB_MODE=offline"
        ) from None
    tracker.store_init_configuration(flat(config.model_dump(mode="json")))
    return tracker
