"""The training loop: accelerate around a stage, with checkpoints, validation and a clean stop.

Started as one process, or by torchrun as several on one or more machines that share the folder of the run.
"""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch

from clearsr.config.training import TrainConfig
from clearsr.data.sources import refuse_inside
from clearsr.errors import ClearSRError, optional
from clearsr.hardware import cuda_arithmetic, try_compiler
from clearsr.models.checkpoint import save_network
from clearsr.models.clearsr import ClearSRNetwork
from clearsr.training.progress import Report, open_trackers, require_trackers
from clearsr.training.run_folder import (
    Best,
    clean_up,
    find_checkpoint,
    load_checkpoint,
    read_best,
    record_config,
    require_same_data,
    require_same_run,
    require_space,
    save_best,
    save_checkpoint,
    validations,
    write_folder,
)
from clearsr.training.setup import DTYPES, prepare_network, prepare_stage, stages_of_run, uncompiled
from clearsr.training.stages import StageModule
from clearsr.training.state import Tensors, TrainingState, learning_rate_at
from clearsr.training.step import Losses, Stepper, agree, make_scaler, mean_over_processes, open_data
from clearsr.training.validation import Validation, exported_sampling, is_preferred

with optional("training"):
    from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs

logger = logging.getLogger(__name__)

FINISH_SAMPLES, FINISH_BATCH = 256, 16  # that a stage may measure its result on
_LONGEST_WAIT = timedelta(hours=3)  # for other processes, as while the first one writes


def fit(
    config: TrainConfig, resume: str | None = None, on_signal: Callable[[int], None] = lambda _number: None
) -> Path:
    """Train one stage and return the folder of the exported model.

    Args:
        resume: `latest`, or the path of a checkpoint folder; None starts at step 0.
        on_signal: told the number of a signal that stops the run after the step in hand.

    Raises:
        ClearSRError: the configuration, the data or a checkpoint is unusable, the disk is full, or the loss
            is not finite for several steps.
    """
    require_trackers(config)
    refuse_inside("output", config.output, [source.path for source in config.data.train], "data.train")
    refuse_inside("output", config.output, config.data.validation, "data.validation")
    accelerator = start_processes(config)
    if config.compile:
        try_compiler(accelerator.device, "compile")
    run = config.output
    try:
        if accelerator.is_main_process:
            run.mkdir(parents=True, exist_ok=True)
            clean_up(run)
    except OSError as error:
        raise ClearSRError(f"output: {run} cannot be written ({error.strerror or error})") from None
    accelerator.wait_for_everyone()
    checkpoint = find_checkpoint(run, resume)
    if checkpoint is not None:
        require_same_run(config, checkpoint)
    network, stages = prepare_network(config)
    stage = prepare_stage(config, network, accelerator.device)
    stages += stages_of_run(config)
    with cuda_arithmetic(config.tf32, config.cudnn_benchmark):  # a teacher's pictures, too
        step = _Trainer(config, accelerator, stage, network, stages, checkpoint).train(on_signal)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    if step < config.steps:
        logger.warning("stopped after step %d of %d; go on with --resume latest", step, config.steps)
    return run / "export"


class _Trainer:
    """A run in this process: what it trains, what it has seen, and where it writes."""

    def __init__(
        self,
        config: TrainConfig,
        accelerator: Accelerator,
        stage: StageModule,
        network: ClearSRNetwork,
        stages: list[str],
        checkpoint: Path | None,
    ) -> None:
        """Load the checkpoint, open the data, and hand the stage to the processes.

        `stages` are those that the network will have been through.
        """
        self.config, self.accelerator, self.stage, self.network = config, accelerator, stage, network
        self.stages, self.meter = stages, list[Losses]()
        self.is_main = accelerator.is_main_process
        self.state = TrainingState.of(stage, config)
        self.scaler = make_scaler(config, accelerator.device)
        self.dataset = open_data(config, accelerator, stage)
        self.fingerprint = self.dataset.fingerprint()
        notes = self._restore(checkpoint)
        self.first_step, self.losses = int(notes.get("step", 0)), notes.get("losses", [])
        if self.first_step > config.steps:
            raise ClearSRError(
                f"steps: is {config.steps}, and the checkpoint is at step {self.first_step}; expected no less"
            )
        if self.is_main:
            if self.first_step < config.steps:
                for line in self.dataset.check_sizes():
                    logger.warning("%s", line)
            size = sum(
                t.numel() * t.element_size() for g in self.state.tensors().values() for t in g.values()
            )
            missing_moments = (
                0 if checkpoint else 2 * sum(p.numel() * 4 for p in self.state.parameters.values())
            )
            require_space(config.output, size + missing_moments, config.keep_checkpoints)
            record_config(config, config.output, self.first_step)
        self.validation = None
        if config.validate_every and config.data.validation:
            shard = (accelerator.process_index, accelerator.num_processes)
            with accelerator.main_process_first():  # what networks of measures need is fetched once
                self.validation = Validation(config, accelerator.device, shard)

    def train(self, on_signal: Callable[[int], None]) -> int:
        """Run the remaining steps, unless a signal stops it, which is told; returns the steps done."""
        config, step = self.config, self.first_step
        trackers = open_trackers(config, step) if self.is_main else []
        report = Report(config.output, config.steps, step, self.is_main, trackers)
        checkpoints = CheckpointWriter(config.output, config.keep_checkpoints, config.background_checkpoints)
        with report, checkpoints, stop_signals(on_signal) as stopped:
            stepper = Stepper.start(
                config, self.accelerator, self.stage, self.state, self.dataset, self.scaler, step, self.losses
            )
            while step < config.steps:
                if (losses := stepper.step(step)) is not None:
                    self.meter.append(losses)
                step += 1
                stop = agree(self.accelerator, stopped())
                last = stop or step == config.steps
                report.advance(step)
                if last or step % config.log_every == 0:
                    report.scalars(step, self._scalars(step, stepper))
                if self.validation and not stop and (last or step % config.validate_every == 0):
                    with uncompiled(config):
                        self._validate(step, report)
                if self.is_main and (last or step % config.checkpoint_every == 0):
                    notes = {
                        "data": self.fingerprint,
                        "scaler": self.scaler.state_dict(),
                        "losses": list(stepper.watch.losses),
                    }
                    checkpoints.save(step, self.state, notes)
                checkpoints.check()
                if last:
                    break
            checkpoints.wait()
            if self.is_main:
                with uncompiled(config):
                    write_folder(config.output / "export", self._export)
        return step

    def _restore(self, checkpoint: Path | None) -> dict[str, Any]:
        """Take over the checkpoint, if there is one; returns its notes."""
        if checkpoint is None:
            return {}
        notes = load_checkpoint(checkpoint, self.state)
        if self.is_main:
            require_same_data(notes.get("data"), self.fingerprint)
        if self.scaler.is_enabled() and notes.get("scaler"):
            self.scaler.load_state_dict(notes["scaler"])
        return notes

    def _scalars(self, step: int, stepper: Stepper) -> dict[str, float]:
        """Loss terms averaged over the steps taken since the last line and over the processes."""
        names = self.meter[0] if self.meter else {}
        means = {name: torch.stack([row[name] for row in self.meter]).mean() for name in names}
        self.meter.clear()
        count = torch.tensor(float(sum(stepper.unreadable.values())), device=self.accelerator.device)
        scalars = mean_over_processes(self.accelerator, {**means, "unreadable": count})
        total = scalars.pop("unreadable") * self.accelerator.num_processes
        rate = learning_rate_at(self.config.optimizer, step - 1, self.config.steps)
        counts = {"unreadable": total, "skipped": float(stepper.watch.skipped)}
        return {**scalars, "learning_rate": rate, **{name: count for name, count in counts.items() if count}}

    def _validate(self, step: int, report: Report) -> None:
        """Look at the averaged weights, and keep them as `export-best` if they are the best so far."""
        assert self.validation is not None
        with self.state.averaged():
            seen = self.validation.run(self.network)
        report.scalars(step, seen.scores, "validation")
        report.picture(step, seen.picture)
        if not self.is_main:
            return
        run, weights = self.config.output, {str(n): w for n, w in self.config.validation.best.items()}
        held = read_best(run)
        others = [s for at, s in validations(run).items() if held and at not in (step, held.step)]
        if held is None or is_preferred(seen.scores, held.scores, others, weights):
            save_best(run, Best(step, seen.scores, weights), self._export)

    def _export(self, folder: Path) -> None:
        """Write the averaged weights as a model."""
        with self.state.averaged():
            self.stage.finish(self._finish_batches())
            stored_in = DTYPES[self.config.export_precision]
            save_network(self.network, folder, self.stages, exported_sampling(self.config), stored_in)

    def _finish_batches(self) -> Iterator[Any]:
        """The first samples of the run, the same whatever the batch size and the number of processes."""
        for first in range(0, FINISH_SAMPLES, FINISH_BATCH):
            yield self.dataset.batch(list(range(first, first + FINISH_BATCH)))


class CheckpointWriter:
    """Writes a run's checkpoints, at once or beside the steps that follow; use as a context manager.

    What is written in the background is a copy in the processor's memory, one checkpoint at a time. Leaving
    the block waits for it, unless by Ctrl-C: what is half-written then is a folder aside, as after a kill.
    """

    def __init__(self, run: Path, keep: int, in_background: bool) -> None:
        self._run, self._keep, self._in_background = run, keep, in_background
        self._copies: dict[str, Tensors] = {}
        self._thread: threading.Thread | None = None
        self._problem: Exception | None = None

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.wait()
        elif self._thread is not None and kind is not KeyboardInterrupt:
            self._thread.join()
            if self._problem is not None and self._problem is not value:  # beside what is being raised
                logger.error("%s", self._problem)

    def save(self, step: int, state: TrainingState, notes: dict[str, Any]) -> None:
        """As `save_checkpoint`, once the one before is written.

        Raises:
            ClearSRError: as there, or as `wait`.
        """
        self.wait()
        if not self._in_background:
            save_checkpoint(self._run, step, state.tensors(), self._keep, notes)
            return
        self._copies = _copied(state.tensors(), self._copies)
        # A daemon, which a second Ctrl-C does not wait for.
        self._thread = threading.Thread(target=self._write, args=(step, notes), daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise what has gone wrong in the background by now.

        Raises:
            ClearSRError: a checkpoint could not be written.
        """
        if self._problem is not None:
            raise self._problem

    def wait(self) -> None:
        """Have all be written that was to be saved.

        Raises:
            ClearSRError: a checkpoint could not be written.
        """
        if self._thread is not None:
            self._thread.join()
        self.check()

    def _write(self, step: int, notes: dict[str, Any]) -> None:
        try:
            save_checkpoint(self._run, step, self._copies, self._keep, notes)
        except Exception as error:  # whatever it is, it is raised where somebody sees it
            self._problem = error


def _copied(groups: dict[str, Tensors], before: dict[str, Tensors]) -> dict[str, Tensors]:
    """The tensors in the processor's memory, which is that of the copies `before` where these fit."""
    copies: dict[str, Tensors] = {}
    for group, tensors in groups.items():
        copies[group] = {}
        for name, value in tensors.items():
            copy = before.get(group, {}).get(name)
            if copy is None or copy.shape != value.shape or copy.dtype != value.dtype:
                copy = torch.empty(value.shape, dtype=value.dtype)
            copies[group][name] = copy.copy_(value)
    return copies


def start_processes(config: TrainConfig) -> Accelerator:
    """Join the other processes, if torchrun has started several.

    Raises:
        ClearSRError: the batch cannot be shared evenly, or the precision is not to be had here.
    """
    handlers = [
        DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
        InitProcessGroupKwargs(timeout=_LONGEST_WAIT),
    ]
    # Without an accelerator in the machine, accelerate joins processes only where it is told to use the CPU.
    accelerator = Accelerator(cpu=not torch.accelerator.is_available(), kwargs_handlers=handlers)
    processes = accelerator.num_processes
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if processes != started:
        raise ClearSRError(
            f"WORLD_SIZE: {started} processes were started but {processes} found each other; start training "
            "with torchrun, or unset WORLD_SIZE"
        )
    if config.batch_size % (config.accumulation * processes):
        # Or the result would depend on the number of processes.
        raise ClearSRError(
            f"batch_size: {config.batch_size} cannot be split into {config.accumulation} micro-batches "
            f"on {processes} processes; choose a multiple of {config.accumulation * processes}"
        )
    if config.precision == "fp16" and accelerator.device.type == "cpu":
        raise ClearSRError("precision: fp16 needs an accelerator; accepted on a CPU: fp32, bf16")
    return accelerator


# torchrun passes a terminal's Ctrl-C on to processes that got it already; a later one is the user's patience.
_SAME_PRESS_SECONDS = 2.0


@contextmanager
def stop_signals(on_signal: Callable[[int], None]) -> Iterator[Callable[[], bool]]:
    """Within the block SIGTERM and Ctrl-C only set a flag, which the yielded function reads, and are told.

    A second Ctrl-C stops at once, with KeyboardInterrupt. Outside the main thread, where Python allows no
    handlers, the flag is never set.
    """
    received: list[float] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def handle(number: int, _: FrameType | None) -> None:
        if not received:
            logger.warning("stopping after the step in hand, which is saved; Ctrl-C again stops at once")
            on_signal(number)
        elif number == signal.SIGINT and time.monotonic() - received[0] > _SAME_PRESS_SECONDS:
            raise KeyboardInterrupt
        received.append(time.monotonic())

    handlers = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
