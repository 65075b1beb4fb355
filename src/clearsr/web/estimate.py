"""How long a picture will take and how much memory: measured on this machine with this model, never guessed.

Time goes as megapixels·(a + b·steps), memory as megapixels. The factors come from small pictures that are
upscaled when the server starts, and every picture since corrects them.
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
_WARM_UP_SIDE = 128  # of the one before, whose memory is measured
_WEIGHT = 0.3  # of a new measurement against those before


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


class Estimator:
    """Keeps the factors. Build one with `measured`."""

    def __init__(self, fixed: float, per_step: float, idle: int) -> None:
        """Seconds per megapixel of output without steps, and for each step; bytes held before any work."""
        self._fixed, self._per_step, self._idle = fixed, per_step, idle
        self._correction = 1.0
        self._largest = (0.0, 0.0)  # megapixels, and gigabytes that they took
        self._lock = threading.Lock()

    @classmethod
    def measured(cls, pipeline: ClearSRPipeline) -> "Estimator":
        """Upscale small pictures with one step and with three, after one for warming up."""
        one, three = (pipeline.configure(upscale=4, steps=steps) for steps in (1, 3))
        watch = MemoryWatch(pipeline.device)
        _run(pipeline, _WARM_UP_SIDE, one, watch)
        with_one, with_three = (_run(pipeline, _SIDE, config) for config in (one, three))
        pixels = (4 * _SIDE) ** 2 / 1e6
        per_step = max(0.0, (with_three - with_one) / 2) / pixels
        estimator = cls(max(0.0, with_one / pixels - per_step), per_step, watch.first)
        estimator.learn_memory((4 * _WARM_UP_SIDE) ** 2 / 1e6, watch.peak)
        return estimator

    def estimate(self, megapixels: float, steps: int) -> Estimate:
        """For a result of that size."""
        with self._lock:
            seconds = self._correction * megapixels * (self._fixed + steps * self._per_step)
            size, took = self._largest
            return Estimate(seconds, took * max(1.0, megapixels / size) if size else 0.0)

    def learn(self, megapixels: float, steps: int, seconds: float, peak: int) -> None:
        """Correct the factors by what a picture took."""
        expected = self.estimate(megapixels, steps).seconds
        with self._lock:
            if expected > 0:
                self._correction *= 1 + _WEIGHT * (seconds / expected - 1)
        self.learn_memory(megapixels, peak)

    def learn_memory(self, megapixels: float, peak: int) -> None:
        """Note what the largest picture so far took. (What is held after it says nothing of others.)"""
        with self._lock:
            if megapixels >= self._largest[0]:
                self._largest = (megapixels, (peak - self._idle) / 1e9)


def _run(
    pipeline: ClearSRPipeline, side: int, config: SamplingConfig, watch: MemoryWatch | None = None
) -> float:
    """Seconds that a grey square of that side takes."""
    image = ImageData(torch.full((3, side, side), 0.5))
    start = time.monotonic()
    with checked(pipeline.network, watch.look if watch else lambda: None):
        pipeline.upscale([image], config)
    return time.monotonic() - start
