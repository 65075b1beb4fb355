"""How long a picture will take and how much memory: measured on this machine with this model, never guessed.

Time goes as megapixels·(a + b·steps), a step with guidance counting for more, memory as megapixels. The
factors come from small pictures that are upscaled when the server has nothing else to do, and every picture
since that is as large corrects them; smaller ones take as long as those.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from clearsr.config.sampling import SamplingConfig
from clearsr.image import ImageData
from clearsr.pipeline.budget import resident_bytes
from clearsr.pipeline.pipeline import ClearSRPipeline


# Stopping a network in the middle of a step: a check before each of its convolutions and matrix products.
# A denoising step of a large picture takes long, and the VAE runs outside of the steps; `on_step` alone would
# let a cancelled picture occupy the machine for all that time.
@contextmanager
def checked(network: nn.Module, check: Callable[[], None]) -> Iterator[None]:
    """Within the block `check`, which may raise, is called before each layer that this thread runs.

    Other threads may run the same network; they do not see it.
    """
    thread = threading.get_ident()

    def before(_module: nn.Module, _inputs: Any) -> None:
        if threading.get_ident() == thread:
            check()

    with ExitStack() as hooks:
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                hooks.callback(module.register_forward_pre_hook(before).remove)
        yield


_SIDE = 64  # of the pictures whose time is measured
_LEAST = (4 * _SIDE) ** 2 / 1e6  # megapixels of their results
_WARM_UP_SIDE = 128  # of the one before, whose memory is measured
_WEIGHT = 0.3  # of a new measurement against those before
_MOST_OFF = 4.0  # times that one may be off; more is another thing than the machine's speed


class Estimate(NamedTuple):
    """What a picture is expected to need.

    Attributes:
        seconds: time at work.
        gigabytes: memory beyond what the server holds when it has done nothing yet.
    """

    seconds: float
    gigabytes: float


class MemoryWatch:
    """The most memory that was held at the moments when it was looked at.

    Of this process; with an accelerator, what torch has allocated there.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._last = 0.0
        self.first = self.peak = self._held()

    def look(self) -> None:
        """Take a look, at most a hundred times a second."""
        if time.monotonic() - self._last > 0.01:
            self._last = time.monotonic()
            self.peak = max(self.peak, self._held())

    def _held(self) -> int:
        """Bytes."""
        if self._device.type == "cuda":
            return int(torch.cuda.memory_allocated(self._device))
        return resident_bytes()


class BusyError(Exception):
    """There is something else to do than to measure."""


class Estimator:
    """Keeps the factors; until they are measured it knows nothing."""

    def __init__(self) -> None:
        self._fixed, self._per_step, self._guided = 0.0, 0.0, 1.0
        self._correction = 1.0
        self._idle = 0  # bytes held before any work
        self._largest = (0.0, 0.0)  # megapixels, and gigabytes that they took
        self._is_measured = False
        self._lock = threading.Lock()

    def measure(self, pipeline: ClearSRPipeline, check: Callable[[], None] = lambda: None) -> None:
        """Upscale small pictures: one for warming up, then with one step, three, and three with guidance.

        Args:
            check: called before each layer; what it raises, such as `BusyError`, ends the measurement.
        """
        one, three = (pipeline.configure(upscale=4, steps=steps) for steps in (1, 3))
        guided = pipeline.configure(three, guidance_scale=2.0)
        watch = MemoryWatch(pipeline.device)

        def look() -> None:
            check()
            watch.look()

        _run(pipeline, _WARM_UP_SIDE, one, look)
        times = [_run(pipeline, _SIDE, config, check) for config in (one, three, guided)]
        per_step = max(0.0, (times[1] - times[0]) / 2) / _LEAST
        with self._lock:
            self._fixed, self._per_step = max(0.0, times[0] / _LEAST - per_step), per_step
            if per_step > 0:
                self._guided = max(1.0, 1 + (times[2] - times[1]) / 3 / _LEAST / per_step)
            self._idle, self._is_measured = watch.first, True
        self.learn_memory((4 * _WARM_UP_SIDE) ** 2 / 1e6, watch.peak)

    @property
    def is_measured(self) -> bool:
        """Whether anything is known."""
        return self._is_measured

    def estimate(self, megapixels: float, sampling: SamplingConfig) -> Estimate | None:
        """For a result of that size; None while nothing is known."""
        with self._lock:
            if not self._is_measured:
                return None
            size, took = self._largest
            per_megapixel = self._fixed + self._work(sampling) * self._per_step
            seconds = self._correction * max(megapixels, _LEAST) * per_megapixel
            return Estimate(seconds, took * max(1.0, megapixels / size) if size else 0.0)

    def learn(self, megapixels: float, sampling: SamplingConfig, seconds: float, peak: int) -> None:
        """Correct the factors by what a picture took."""
        expected = self.estimate(megapixels, sampling)
        if expected is None:
            return
        with self._lock:
            if expected.seconds > 0 and megapixels >= _LEAST:
                ratio = min(seconds / expected.seconds, _MOST_OFF)
                self._correction *= 1 + _WEIGHT * (ratio - 1)
        self.learn_memory(megapixels, peak)

    def learn_memory(self, megapixels: float, peak: int) -> None:
        """Note what the largest picture so far took. (What is held after it says nothing of others.)"""
        with self._lock:
            if megapixels >= self._largest[0]:
                self._largest = (megapixels, max(0, peak - self._idle) / 1e9)

    def _work(self, sampling: SamplingConfig) -> float:
        """Steps, in those without guidance: with it a part is done twice, with a negative prompt all."""
        if sampling.guidance_scale == 1:
            return sampling.steps
        return sampling.steps * (2.0 if sampling.negative_prompt else self._guided)


def _run(pipeline: ClearSRPipeline, side: int, config: SamplingConfig, check: Callable[[], None]) -> float:
    """Seconds that a grey square of that side takes."""
    image = ImageData(torch.full((3, side, side), 0.5))
    start = time.monotonic()
    with checked(pipeline.network, check):
        pipeline.upscale([image], config)
    return time.monotonic() - start
