"""One optimizer step over all processes, and the agreements that keep one from waiting for ever."""

import logging
import math
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from torch import nn

from clearsr.config.training import TrainConfig
from clearsr.data.crops import CropDataset, TrainingBatch, iterate, make_loader
from clearsr.errors import ClearSRError, optional
from clearsr.training.losses import Losses
from clearsr.training.run_folder import SIZES_NAME
from clearsr.training.setup import DTYPES
from clearsr.training.stages import StageModule
from clearsr.training.state import TrainingState, average_decay, learning_rate_at
from clearsr.training.teacher import labels_of, make_labels

with optional("training"):
    from accelerate import Accelerator

logger = logging.getLogger(__name__)

_WATCHED, _FEWEST = 101, 20  # steps whose losses are remembered, and that tell what is usual
_MOST_IN_A_ROW = 5  # steps left out before the run stops


class LossWatch:
    """The losses of the last steps, by which a single one of another order of magnitude is known.

    bf16 on CPUs has been seen to give a loss of 70 where the median was 0.03, once in thousands of steps.
    """

    def __init__(self, multiple: float | None, losses: Iterable[float] = ()) -> None:
        """`multiple` of the median is too much; None: nothing finite is."""
        self.multiple, self.losses = multiple, deque(losses, maxlen=_WATCHED)
        self.skipped = self._in_a_row = 0

    def problem(self, loss: float) -> str | None:
        """What is wrong with the loss of a step, in words; None if nothing is."""
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if self.multiple is None or len(self.losses) < _FEWEST:
            return None
        usual = median(self.losses)
        if not 0 < usual * self.multiple < loss:
            return None
        return f"the loss is {loss:.4g}, {loss / usual:.0f} times the median of the steps before"

    def taken(self, loss: float) -> None:
        """Note a step that was taken."""
        self.losses.append(loss)
        self._in_a_row = 0

    def left_out(self) -> bool:
        """Note a step that was not; whether there were too many, one after the other."""
        self.skipped += 1
        self._in_a_row += 1
        return self._in_a_row >= _MOST_IN_A_ROW


@dataclass(frozen=True)
class Stepper:
    """What a step works on.

    Attributes:
        trained: the stage as it is called: itself, or wrapped for several processes.
        batches: this process's micro-batches.
        scaler: of fp16 losses; it does nothing at other precisions.
        watch: what losses are usual.
        unreadable: images that were replaced so far, one line each.
    """

    config: TrainConfig
    accelerator: Accelerator
    trained: nn.Module
    state: TrainingState
    dataset: CropDataset
    batches: Iterator[TrainingBatch]
    scaler: torch.amp.GradScaler
    watch: LossWatch
    unreadable: dict[str, int] = field(default_factory=dict)

    @classmethod
    def start(
        cls,
        config: TrainConfig,
        accelerator: Accelerator,
        stage: StageModule,
        state: TrainingState,
        dataset: CropDataset,
        scaler: torch.amp.GradScaler,
        first_step: int = 0,
        losses: Iterable[float] = (),
    ) -> "Stepper":
        """What the steps from `first_step` on work on, `losses` those before it; starts the workers."""
        micro_steps = range(first_step * config.accumulation, config.steps * config.accumulation)
        batches = iterate(make_loader(dataset, micro_steps, config.data.workers))
        watch = LossWatch(config.skip_loss_above, losses)
        return cls(config, accelerator, accelerator.prepare(stage), state, dataset, batches, scaler, watch)

    def step(self, step: int) -> Losses | None:
        """Take step `step` (0-based); returns the loss terms, averaged over its micro-batches.

        None if it is left out: its loss is not usual, or its gradient is not finite. Nothing changes then.

        Raises:
            ClearSRError: a batch cannot be made, or too many steps in a row would be left out.
        """
        config, state = self.config, self.state
        batches = self._fetch()
        state.set_learning_rate(learning_rate_at(config.optimizer, step, config.steps))
        state.optimizer.zero_grad(set_to_none=True)
        sums: Losses = {}
        for number, batch in enumerate(batches, start=1):
            placed = self._placed(batch)
            with self._gradients_shared(number == len(batches)), self._autocast():
                losses = self.trained(placed, config.seed)
            with self._gradients_shared(number == len(batches)):
                self.scaler.scale(losses["loss"] / len(batches)).backward()
            for name, value in losses.items():
                sums[name] = sums.get(name, 0) + value.detach() / len(batches)
        loss = mean_over_processes(self.accelerator, {"loss": sums["loss"]})["loss"]
        sums["grad_norm"] = norm = self._clipped_norm()
        problem = self.watch.problem(loss)
        if problem is None and not torch.isfinite(norm) and not self.scaler.is_enabled():
            problem = f"the gradient's norm is {norm.item()}"  # in fp16 it is the scaler that leaves it out
        if problem is not None:
            self._leave_out(problem, float(sums["loss"]), batches)
            return None
        self.watch.taken(loss)
        self.scaler.step(state.optimizer)
        self.scaler.update()
        state.update_average(average_decay(config.ema_decay, step + 1))
        return sums

    def _fetch(self) -> list[TrainingBatch]:
        """The micro-batches of the step; replaced images are reported once each."""
        problem, batches = None, []
        try:
            batches = [next(self.batches) for _ in range(self.config.accumulation)]
        except ClearSRError as error:
            problem = str(error)
        agree_or_raise(self.accelerator, problem)
        for line in (line for batch in batches for line in batch.unreadable):
            if line not in self.unreadable:
                logger.warning("left out: %s", line)
            self.unreadable[line] = self.unreadable.get(line, 0) + 1
        return batches

    def _placed(self, batch: TrainingBatch) -> TrainingBatch:
        """The batch on the training device, with the LR images that the workers left to be made there."""
        device = self.accelerator.device
        return to_device(self.dataset.with_lr(to_device(batch, device)), device)

    def _clipped_norm(self) -> torch.Tensor:
        """The norm of the gradient, which is the same in all processes, after clipping it in place."""
        self.scaler.unscale_(self.state.optimizer)
        limit = self.config.optimizer.gradient_clip or float("inf")
        return nn.utils.clip_grad_norm_(self.state.parameters.values(), limit).detach()

    def _leave_out(self, problem: str, own_loss: float, batches: list[TrainingBatch]) -> None:
        """Go on without the step; the processes whose own loss it was, and the first, say so.

        Raises:
            ClearSRError: it is one too many; names its samples and the images that they come from.
        """
        self.scaler.update()  # what `unscale_` found in fp16
        ids = [sample_id for batch in batches for sample_id in batch.sample_ids]
        names = ", ".join(dict.fromkeys(self.dataset.names_of(ids)))
        where = f"{problem} on samples {ids[0]} to {ids[-1]} ({names})"
        if self.watch.left_out():
            raise ClearSRError(
                f"{where}, and {_MOST_IN_A_ROW} steps in a row were left out; lower optimizer.learning_rate "
                "or use precision fp32, and go on with --resume latest"
            )
        if self.accelerator.is_main_process or self.watch.problem(own_loss):
            logger.warning("left out a step: %s", where)

    def _gradients_shared(self, is_last: bool) -> AbstractContextManager[Any]:
        """Processes exchange gradients with the last micro-batch only."""
        return nullcontext() if is_last else self.accelerator.no_sync(self.trained)

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.config.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.accelerator.device.type, DTYPES[self.config.precision])


def open_data(config: TrainConfig, accelerator: Accelerator, stage: StageModule) -> CropDataset:
    """The share of this process in the samples that the stage is trained on, with its teacher's pictures.

    Raises:
        ClearSRError: a source in `data.train` is missing or holds no image, or `make_labels` fails.
    """
    degradation = config.degradation if stage.needs_lr else None
    shard = (accelerator.process_index, accelerator.num_processes)
    micro_batch = config.batch_size // config.accumulation
    sizes = config.output / SIZES_NAME
    dataset = CropDataset(config.data, degradation, micro_batch, config.seed, shard, sizes=sizes)
    labels = labels_of(config, dataset.fingerprint())
    if labels is None:
        return dataset
    make_labels(config, dataset, labels, accelerator.device)
    accelerator.wait_for_everyone()
    return CropDataset(config.data, degradation, micro_batch, config.seed, shard, labels, sizes)


def make_scaler(config: TrainConfig, device: torch.device) -> torch.amp.GradScaler:
    """The scaler of fp16 losses; it does nothing at other precisions."""
    return torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")


def to_device(batch: TrainingBatch, device: torch.device) -> TrainingBatch:
    """The batch on `device`, images in channels-last order (4-5 times faster convolutions on a CPU)."""
    hr = batch.hr.to(device, memory_format=torch.channels_last)
    lr = None if batch.lr is None else batch.lr.to(device, memory_format=torch.channels_last)
    teacher = None if batch.teacher is None else batch.teacher.to(device, memory_format=torch.channels_last)
    return batch._replace(hr=hr, lr=lr, teacher=teacher)


def agree(accelerator: Accelerator, claim: bool) -> bool:
    """Whether any process claims it. All processes must ask."""
    if accelerator.num_processes == 1:
        return claim
    votes = torch.tensor([float(claim)], device=accelerator.device)
    return bool(accelerator.reduce(votes, reduction="sum").item() > 0)


def agree_or_raise(accelerator: Accelerator, problem: str | None) -> None:
    """Raise in all processes if one has a problem: those without would wait for it for ever.

    Raises:
        ClearSRError: the problem of this process, or that another has one.
    """
    if agree(accelerator, problem is not None):
        raise ClearSRError(problem or "another process cannot go on; its own message says why")


def mean_over_processes(accelerator: Accelerator, values: Losses) -> dict[str, float]:
    """Each number averaged over the processes. All processes must ask, for the same names."""
    together = torch.stack([value.float() for value in values.values()])
    means = accelerator.reduce(together, reduction="mean")
    return dict(zip(values, means.tolist(), strict=True))
