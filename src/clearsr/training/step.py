"""One optimizer step over all processes, and the agreements that keep one from waiting for ever."""

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from clearsr.config.training import TrainConfig
from clearsr.data.crops import CropDataset, TrainingBatch, iterate, make_loader
from clearsr.errors import ClearSRError, optional
from clearsr.training.losses import Losses
from clearsr.training.setup import DTYPES
from clearsr.training.stages import StageModule
from clearsr.training.state import TrainingState, average_decay, learning_rate_at
from clearsr.training.teacher import labels_of, make_labels

with optional("training"):
    from accelerate import Accelerator

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stepper:
    """What a step works on.

    Attributes:
        trained: the stage as it is called: itself, or wrapped for several processes.
        batches: this process's micro-batches.
        scaler: of fp16 losses; it does nothing at other precisions.
        unreadable: images that were replaced so far, one line each.
    """

    config: TrainConfig
    accelerator: Accelerator
    trained: nn.Module
    state: TrainingState
    dataset: CropDataset
    batches: Iterator[TrainingBatch]
    scaler: torch.amp.GradScaler
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
    ) -> "Stepper":
        """What the steps from `first_step` on work on; starts the workers."""
        micro_steps = range(first_step * config.accumulation, config.steps * config.accumulation)
        batches = iterate(make_loader(dataset, micro_steps, config.data.workers))
        return cls(config, accelerator, accelerator.prepare(stage), state, dataset, batches, scaler)

    def step(self, step: int) -> Losses:
        """Take step `step` (0-based); returns the loss terms, averaged over its micro-batches.

        Raises:
            ClearSRError: a batch cannot be made, or the loss or its gradient is not finite; nothing changes.
        """
        config, state = self.config, self.state
        batches = self._fetch()
        state.set_learning_rate(learning_rate_at(config.optimizer, step, config.steps))
        state.optimizer.zero_grad(set_to_none=True)
        sums: Losses = {}
        problem = None
        for number, batch in enumerate(batches, start=1):
            placed = self._placed(batch)
            with self._gradients_shared(number == len(batches)), self._autocast():
                losses = self.trained(placed, config.seed)
                if problem is None and not torch.isfinite(losses["loss"]):
                    problem = self._describe(f"the loss is {losses['loss'].item()}", batch)
            with self._gradients_shared(number == len(batches)):
                self.scaler.scale(losses["loss"] / len(batches)).backward()
            for name, value in losses.items():
                sums[name] = sums.get(name, 0) + value.detach() / len(batches)
        agree_or_raise(self.accelerator, problem)
        sums["grad_norm"] = self._clipped_norm(batches)
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

    def _clipped_norm(self, batches: list[TrainingBatch]) -> torch.Tensor:
        """The norm of the gradient, which is the same in all processes, after clipping it in place.

        Raises:
            ClearSRError: it is not finite (which in fp16 is the scaler's business: it leaves such steps out).
        """
        self.scaler.unscale_(self.state.optimizer)
        limit = self.config.optimizer.gradient_clip or float("inf")
        norm = nn.utils.clip_grad_norm_(self.state.parameters.values(), limit)
        if not torch.isfinite(norm) and not self.scaler.is_enabled():
            raise ClearSRError(self._describe(f"the gradient's norm is {norm.item()}", *batches))
        return norm.detach()

    def _describe(self, what: str, *batches: TrainingBatch) -> str:
        """An error that names the samples and the images that they come from."""
        ids = [sample_id for batch in batches for sample_id in batch.sample_ids]
        names = ", ".join(dict.fromkeys(self.dataset.names_of(ids)))
        return (
            f"{what} on samples {ids[0]} to {ids[-1]} ({names}); "
            "lower optimizer.learning_rate or use precision fp32, and go on with --resume latest"
        )

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
    dataset = CropDataset(config.data, degradation, micro_batch, config.seed, shard)
    labels = labels_of(config, dataset.fingerprint())
    if labels is None:
        return dataset
    make_labels(config, dataset, labels, accelerator.device)
    accelerator.wait_for_everyone()
    return CropDataset(config.data, degradation, micro_batch, config.seed, shard, labels)


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
