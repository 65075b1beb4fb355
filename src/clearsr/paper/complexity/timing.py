"""Times that can be compared: what is compared runs in turn, A B A B, so that both meet the same machine.

And what the sections of the benchmark have in common (the pipeline, a picture, one upscaling of it), and all
of them in order.
"""

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import Any, NamedTuple

import torch

from clearsr.config.evaluation import SECTIONS, BenchmarkConfig, Section
from clearsr.hardware import choose_device, choose_precision
from clearsr.image import ImageData, resize
from clearsr.pipeline.pipeline import ClearSRPipeline
from clearsr.seeds import make_generator


class Timing(NamedTuple):
    """One entry per round.

    Attributes:
        seconds: by the clock on the wall.
        cpu_seconds: of this process on all its threads; on a busy machine the truer measure of work.
    """

    seconds: list[float]
    cpu_seconds: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def median_cpu(self) -> float:
        return statistics.median(self.cpu_seconds)

    def as_dict(self) -> dict[str, Any]:
        return {"median": self.median, "median_cpu": self.median_cpu, **self._asdict()}


def interleave(
    runs: Mapping[str, Callable[[], object]], rounds: int, device: torch.device, warm_ups: int = 1
) -> dict[str, Timing]:
    """Each of `runs` in turn, `rounds` times, after `warm_ups` rounds that do not count."""
    timings = {name: Timing([], []) for name in runs}
    for index in range(warm_ups + rounds):
        for name, run in runs.items():
            start, cpu_start = time.perf_counter(), time.process_time()
            run()
            synchronize(device)
            if index >= warm_ups:
                timings[name].seconds.append(time.perf_counter() - start)
                timings[name].cpu_seconds.append(time.process_time() - cpu_start)
    return timings


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def ratio(above: Timing, below: Timing, of_cpu: bool = False) -> float:
    """How many times longer `above` takes: the median over the rounds of each round's quotient."""
    pairs = zip(above[of_cpu], below[of_cpu], strict=True)
    return statistics.median(a / b for a, b in pairs)


def describe_machine(device: torch.device) -> dict[str, Any]:
    """What the figures belong to; the load is that of the moment."""
    description: dict[str, Any] = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if hasattr(os, "getloadavg"):
        description["load_average"] = round(os.getloadavg()[0], 2)
    if device.type == "cuda":
        description["device"] = torch.cuda.get_device_name(device)
    return description


def _processor() -> str:
    """The processor's name, with the instruction sets that decide how fast bf16 is."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            first = file.read().split("\n\n")[0]
    except OSError:
        return platform.processor() or platform.machine()
    pairs = [line.split(":", 1) for line in first.splitlines() if ":" in line]
    facts = {key.strip(): value.strip() for key, value in pairs}
    flags = facts.get("flags", "").split()
    known = [flag for flag in ("avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    name = facts.get("model name", platform.machine())
    family = f", family {facts['cpu family']} model {facts['model']}" if "cpu family" in facts else ""
    return f"{name}{family}" + (f" ({', '.join(known)})" if known else "")


UPSCALE = 4
SIDE = 512  # of the output, where a section has one size


def make_picture(height: int, width: int) -> ImageData:
    """Smooth colours with some grain, always the same; what is in a picture does not change the work."""
    generator = make_generator("benchmark", height, width)
    coarse = torch.rand(1, 3, 8, 8, generator=generator)
    grain = 0.05 * torch.randn(3, height, width, generator=generator)
    return ImageData((resize(coarse, (height, width))[0] + grain).clamp(0, 1), source="benchmark")


def load_pipeline(config: BenchmarkConfig) -> ClearSRPipeline:
    """The model that is measured, on as many threads as asked for.

    Raises:
        ClearSRError: it cannot be loaded, or the device or precision is not to be had.
    """
    return ClearSRPipeline.from_pretrained(config.model, device=config.device, precision=config.precision)


def upscale_once(pipeline: ClearSRPipeline, side: int) -> ImageData:
    """A square picture of `side` pixels after x4, by the model's own settings."""
    picture = make_picture(side // UPSCALE, side // UPSCALE)
    return pipeline.upscale([picture], pipeline.configure(upscale=UPSCALE))[0]


# All sections, each a mapping of plain figures.
MEASURES: dict[Section, str] = {
    "speed": "clearsr.paper.complexity.speed:measure_speed",
    "pixels": "clearsr.paper.complexity.speed:measure_pixels",
    "memory": "clearsr.paper.complexity.processes:measure_memory",
    "workers": "clearsr.paper.complexity.processes:measure_workers",
    "macs": "clearsr.paper.complexity.macs:measure_macs",
    "serve": "clearsr.paper.complexity.processes:measure_serve",
    "sd21": "clearsr.paper.complexity.sd21:measure_sd21",
}


def run_benchmark(
    config: BenchmarkConfig, on_section: Callable[[Section], None] | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, figures): `machine` first, then each section as it is done.

    Args:
        on_section: called before each section.

    Raises:
        ClearSRError: the model, device or precision is not to be had.
    """
    device = choose_device(config.device)
    choose_precision(config.precision, device)
    threads = torch.get_num_threads()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    try:
        yield "machine", describe_machine(device)
        for name in SECTIONS:
            if name not in config.only:
                continue
            if on_section is not None:
                on_section(name)
            module, _, function = MEASURES[name].partition(":")
            yield name, getattr(import_module(module), function)(config)
    finally:
        torch.set_num_threads(threads)
