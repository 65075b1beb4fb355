"""The training loop: accelerate around a stage, with moving average, checkpoints, validation and a clean stop."""

import logging
import math
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from clearsr.checkpoint import save_network
from clearsr.config.base import write_yaml
from clearsr.config.training import OptimizerConfig, TrainConfig
from clearsr.data.crops import CropDataset, TrainingBatch, make_loader
from clearsr.errors import ClearSRError
from clearsr.training.report import Report
from clearsr.training.run_folder import checkpoint_folders, load_checkpoint, save_checkpoint
from clearsr.training.setup import prepare_network
from clearsr.training.stages import build_stage

logger = logging.getLogger(__name__)

FINISH_BATCHES = 16  # batches that a stage may measure its result on


def fit(config: TrainConfig, resume: str | None = None) -> Path:
    """Train one stage and return the folder of the exported model.

    Args:
        resume: `latest`, or the path of a checkpoint folder; None starts at step 0.

    Raises:
        ClearSRError: the configuration, the data or a checkpoint is unusable, or the loss is not finite.
    """
    accelerator = Accelerator(mixed_precision="no" if config.precision == "fp32" else config.precision)
    _check_shares(config, accelerator.num_processes)
    run = config.output
    run.mkdir(parents=True, exist_ok=True)
    if accelerator.is_main_process:
        write_yaml(config, run / "config.yaml")
    network, stages = prepare_network(config)
    stage = build_stage(config, network).to(accelerator.device, memory_format=torch.channels_last)
    parameters = {name: p for name, p in stage.named_parameters() if p.requires_grad}
    average = {name: p.detach().clone() for name, p in parameters.items()} if config.ema_decay else {}
    optimizer = build_optimizer(parameters, config.optimizer)
    first_step = _resume(run, resume, parameters, average, optimizer)
    micro_batch = config.batch_size // config.accumulation
    shard = (accelerator.process_index, accelerator.num_processes)
    degradation = config.degradation if stage.needs_lr else None
    dataset = CropDataset(config.data, degradation, micro_batch, config.seed, shard)
    dataset.photographs.require_size(config.data.crop_size)
    micro_steps = range(first_step * config.accumulation, config.steps * config.accumulation)
    loader = iter(make_loader(dataset, micro_steps, config.data.workers))
    trained = accelerator.prepare(stage)

    step = first_step
    with (
        Report(run, config.steps, first_step, accelerator.is_main_process) as report,
        stop_signals() as stopped,
    ):
        while step < config.steps:
            _set_learning_rate(optimizer, config.optimizer, step, config.steps)
            logs = _step(trained, loader, optimizer, parameters, config, accelerator)
            step += 1
            _update_average(average, parameters, min(config.ema_decay, (1 + step) / (10 + step)))
            report.advance(step)
            if step % config.log_every == 0 or step == config.steps:
                report.scalars(step, logs)
            last = step == config.steps or stopped()
            if accelerator.is_main_process and (last or step % config.checkpoint_every == 0):
                save_checkpoint(run, step, parameters, average, optimizer, config.keep_checkpoints)
            if last:
                break
    export = run / "export"
    if accelerator.is_main_process:
        with averaged(parameters, average):
            stage.finish(dataset[step] for step in range(FINISH_BATCHES))
            save_network(network, export, [*stages, config.stage])
    accelerator.wait_for_everyone()
    accelerator.end_training()
    if step < config.steps:
        logger.warning("stopped after step %d of %d; go on with --resume latest", step, config.steps)
    return export


def build_optimizer(parameters: dict[str, nn.Parameter], config: OptimizerConfig) -> torch.optim.Optimizer:
    """AdamW over the trained parameters; with weight_decay 0 it is Adam, as in the paper."""
    return torch.optim.AdamW(
        parameters.values(), lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay
    )


def learning_rate_at(config: OptimizerConfig, step: int, steps: int) -> float:
    """The learning rate of step `step` (0-based) of `steps`."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    if config.schedule == "cosine":
        return config.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))
    if config.schedule == "linear":
        return config.learning_rate * (1 - 0.99 * progress)
    return config.learning_rate


@contextmanager
def averaged(parameters: dict[str, nn.Parameter], average: dict[str, torch.Tensor]) -> Iterator[None]:
    """Within the block the parameters hold their moving average."""
    kept = {name: parameters[name].detach().clone() for name in average}
    try:
        with torch.no_grad():
            for name, value in average.items():
                parameters[name].copy_(value)
        yield
    finally:
        with torch.no_grad():
            for name, value in kept.items():
                parameters[name].copy_(value)


@contextmanager
def stop_signals() -> Iterator[object]:
    """Within the block SIGTERM and Ctrl-C only set a flag, which the yielded function reads."""
    received: list[int] = []
    handlers = {}
    for number in (signal.SIGTERM, signal.SIGINT):
        handlers[number] = signal.signal(number, lambda n, _frame: received.append(n))
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _step(
    trained: nn.Module,
    loader: Iterator[TrainingBatch],
    optimizer: torch.optim.Optimizer,
    parameters: dict[str, nn.Parameter],
    config: TrainConfig,
    accelerator: Accelerator,
) -> dict[str, float]:
    """One optimizer step over `accumulation` micro-batches; returns the mean of the loss terms."""
    optimizer.zero_grad(set_to_none=True)
    sums: dict[str, float] = {}
    for _ in range(config.accumulation):
        batch = to_device(next(loader), accelerator.device)
        with accelerator.autocast():
            losses = trained(batch, config.seed)
        if not torch.isfinite(losses["loss"]):
            raise ClearSRError(
                f"the loss is {losses['loss'].item()} on samples {batch.sample_ids[0]}-{batch.sample_ids[-1]}; "
                "lower optimizer.learning_rate or use precision fp32, and go on with --resume latest"
            )
        accelerator.backward(losses["loss"] / config.accumulation)
        for name, value in losses.items():
            sums[name] = sums.get(name, 0.0) + value.item() / config.accumulation
    if config.optimizer.gradient_clip:
        accelerator.clip_grad_norm_(parameters.values(), config.optimizer.gradient_clip)
    optimizer.step()
    return sums


def to_device(batch: TrainingBatch, device: torch.device) -> TrainingBatch:
    """The batch on `device`, images in channels-last order (4-5 times faster convolutions on a CPU)."""
    hr = batch.hr.to(device, memory_format=torch.channels_last)
    lr = None if batch.lr is None else batch.lr.to(device, memory_format=torch.channels_last)
    return TrainingBatch(hr, lr, batch.sample_ids)


def _check_shares(config: TrainConfig, processes: int) -> None:
    """The batch must divide evenly, or the result would depend on the number of processes."""
    if config.batch_size % (config.accumulation * processes):
        raise ClearSRError(
            f"batch_size: {config.batch_size} cannot be split into {config.accumulation} micro-batches "
            f"on {processes} processes; choose a multiple of {config.accumulation * processes}"
        )


def _resume(
    run: Path,
    resume: str | None,
    parameters: dict[str, nn.Parameter],
    average: dict[str, torch.Tensor],
    optimizer: torch.optim.Optimizer,
) -> int:
    """Steps already done: 0 without `resume`, or where `latest` finds no checkpoint yet."""
    existing = checkpoint_folders(run)
    if resume is None:
        if existing:
            raise ClearSRError(
                f"{run}: holds checkpoints of an earlier run; give --resume latest or another output"
            )
        return 0
    if resume == "latest":
        return load_checkpoint(existing[-1], parameters, average, optimizer) if existing else 0
    return load_checkpoint(Path(resume), parameters, average, optimizer)


def _set_learning_rate(
    optimizer: torch.optim.Optimizer, config: OptimizerConfig, step: int, steps: int
) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate_at(config, step, steps)


@torch.no_grad()
def _update_average(
    average: dict[str, torch.Tensor], parameters: dict[str, nn.Parameter], decay: float
) -> None:
    """Exponential moving average; the decay is smaller in the first steps so that the start is forgotten."""
    if average:
        torch._foreach_lerp_(list(average.values()), [parameters[name] for name in average], 1 - decay)
