"""All sections of the benchmark in order, each a mapping of plain figures."""

from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import torch

from clearsr.config.evaluation import SECTIONS, BenchmarkConfig, Section
from clearsr.hardware import choose_device, choose_precision
from clearsr.paper.complexity.timing import describe_machine

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
