"""The training loop: accelerate around a stage, with checkpoints, validation and a clean stop."""

import logging
import math
import signal
from collections.abc import Callable, Iterator
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
from clearsr.training.state import TrainingState
from clearsr.training.validation import Validation

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
    network, stages = prepare_network(config)
    stage = build_stage(config, network).to(accelerator.device)
    stage.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    state = TrainingState.of(stage, config)
    first_step = _resume(run, resume, state)
    if accelerator.is_main_process:
        write_yaml(config, run / "config.yaml")
    dataset, loader = _batches(config, first_step, accelerator, stage.needs_lr)
    watch = config.validate_every and config.data.validation and accelerator.is_main_process
    validation = Validation(config) if watch else None
    trained = accelerator.prepare(stage)

    step = first_step
    report = Report(run, config.steps, first_step, accelerator.is_main_process)
    with report, stop_signals() as stopped:
        while step < config.steps:
            state.set_learning_rate(learning_rate_at(config.optimizer, step, config.steps))
            logs = _step(trained, loader, state, config, accelerator)
            step += 1
            state.update_average(min(config.ema_decay, (1 + step) / (10 + step)))
            last = step == config.steps or stopped()
            report.advance(step)
            if last or step % config.log_every == 0:
                report.scalars(step, logs)
            if validation and (last or step % config.validate_every == 0):
                with state.averaged():
                    scores = validation.run(network, _sample_path(run, step))
                report.scalars(step, scores, "validation")
            if accelerator.is_main_process and (last or step % config.checkpoint_every == 0):
                save_checkpoint(run, step, state, config.keep_checkpoints)
            if last:
                break
    export = run / "export"
    if accelerator.is_main_process:
        with state.averaged():
            stage.finish(dataset[step] for step in range(FINISH_BATCHES))
            save_network(network, export, [*stages, config.stage])
    accelerator.wait_for_everyone()
    accelerator.end_training()
    if step < config.steps:
        logger.warning("stopped after step %d of %d; go on with --resume latest", step, config.steps)
    return export


def _batches(
    config: TrainConfig, first_step: int, accelerator: Accelerator, needs_lr: bool
) -> tuple[CropDataset, Iterator[TrainingBatch]]:
    """The data set of this process, and its micro-batches from `first_step` on."""
    shard = (accelerator.process_index, accelerator.num_processes)
    dataset = CropDataset(
        config.data,
        config.degradation if needs_lr else None,
        config.batch_size // config.accumulation,
        config.seed,
        shard,
    )
    dataset.photographs.require_size(config.data.crop_size)
    micro_steps = range(first_step * config.accumulation, config.steps * config.accumulation)
    return dataset, iter(make_loader(dataset, micro_steps, config.data.workers))


def _sample_path(run: Path, step: int) -> Path:
    folder = run / "samples"
    folder.mkdir(exist_ok=True)
    return folder / f"step-{step:08d}.png"


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
def stop_signals() -> Iterator[Callable[[], bool]]:
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
    state: TrainingState,
    config: TrainConfig,
    accelerator: Accelerator,
) -> dict[str, float]:
    """One optimizer step over `accumulation` micro-batches; returns the mean of the loss terms."""
    state.optimizer.zero_grad(set_to_none=True)
    sums: dict[str, float] = {}
    for _ in range(config.accumulation):
        batch = to_device(next(loader), accelerator.device)
        with accelerator.autocast():
            losses = trained(batch, config.seed)
        if not torch.isfinite(losses["loss"]):
            raise ClearSRError(
                f"the loss is {losses['loss'].item()} on samples {batch.sample_ids[0]} to "
                f"{batch.sample_ids[-1]}; "
                "lower optimizer.learning_rate or use precision fp32, and go on with --resume latest"
            )
        accelerator.backward(losses["loss"] / config.accumulation)
        for name, value in losses.items():
            sums[name] = sums.get(name, 0.0) + value.item() / config.accumulation
    if config.optimizer.gradient_clip:
        accelerator.clip_grad_norm_(state.parameters.values(), config.optimizer.gradient_clip)
    state.optimizer.step()
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


def _resume(run: Path, resume: str | None, state: TrainingState) -> int:
    """Steps already done: 0 without `resume`, or where `latest` finds no checkpoint yet."""
    existing = checkpoint_folders(run)
    if resume is None and existing:
        raise ClearSRError(f"{run}: holds an earlier run; give --resume latest or another output folder")
    if resume is None or (resume == "latest" and not existing):
        return 0
    return load_checkpoint(existing[-1] if resume == "latest" else Path(resume), state)
