"""Table 5: parameters, multiply-accumulates, steps and time of models, beside the published columns.

MACs are counted twice. The published numbers are those of a tool that sees convolutions and linear layers
alone, with guidance on, the control branch run for both of its halves and the LoRAs not merged: so counted,
our network at Stable Diffusion 2.1's size comes to the paper's figure. What is done is more, for attention
multiplies too, and here it is less again, because what both halves share is done once.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from clearsr.config.base import build_config
from clearsr.config.model import ModelConfig, preset_model_config
from clearsr.config.sampling import SamplingConfig
from clearsr.evaluation.table import Table, TableRow
from clearsr.models.checkpoint import EMBEDDED_MODELS, locate, read_description
from clearsr.models.parameters import parameter_table
from clearsr.models.sd21 import PAPER_SAMPLING
from clearsr.paper.complexity.macs import count_macs
from clearsr.paper.complexity.timing import make_picture
from clearsr.paper.tables.published import published_table
from clearsr.pipeline.pipeline import ClearSRPipeline

PRESET: Literal["sd21"] = "sd21"  # the paper's network, of which no trained weights are needed to be counted
DEFAULT_SUBJECTS = (PRESET, *EMBEDDED_MODELS)


@dataclass(frozen=True)
class Complexity:
    """One column of the table; None where something is not known.

    Attributes:
        name: the method.
        total_parameters_m: all parts, in millions.
        trainable_parameters_m: what the last training stage trains.
        macs_g: convolutions and linear layers, everything done for both halves of guidance, LoRAs unmerged.
        true_macs_g: the same work with attention.
        shared_macs_g: with attention, as `denoise` does it.
        seconds: for one image, without guidance.
    """

    name: str
    total_parameters_m: float
    trainable_parameters_m: float
    macs_g: float
    steps: int
    true_macs_g: float | None = None
    shared_macs_g: float | None = None
    seconds: float | None = None
    steps_per_second: float | None = None

    def timed(self, seconds: float) -> "Complexity":
        """The same with its time; the speed is that of the whole image, as the paper has it."""
        return replace(self, seconds=seconds, steps_per_second=self.steps / seconds)


_ROWS = (
    ("total parameters (M)", "total_parameters_m", 2),
    ("trainable parameters (M)", "trainable_parameters_m", 2),
    ("MACs (G), as published: layers alone", "macs_g", 0),
    ("MACs (G), with attention", "true_macs_g", 0),
    ("MACs (G), with attention, as run here", "shared_macs_g", 0),
    ("steps", "steps", 0),
    ("time (s)", "seconds", 2),
    ("speed (steps/s)", "steps_per_second", 2),
)


def describe(subject: str, size: int, steps: int | None = None) -> tuple[Complexity, SamplingConfig]:
    """What can be counted of a model without its weights, and its own settings.

    Args:
        subject: `sd21` for the paper's network; an embedded model, a folder or a hub id.
        size: sides of the output in pixels.
        steps: unset: the model's own number.

    Raises:
        ClearSRError: there is no such model, or its base cannot be read.
    """
    if subject == PRESET:
        config, settings = preset_model_config(PRESET), PAPER_SAMPLING
    else:
        description = read_description(locate(subject))
        config, settings = build_config(ModelConfig, description["model"]), description["sampling"]
    sampling = build_config(SamplingConfig, settings)
    if steps is not None:
        sampling = sampling.model_copy(update={"steps": steps})
    table = parameter_table(config)
    guided = sampling.guidance_scale > 1
    naive, shared = (
        count_macs(config, (size, size), sampling.steps, guided, naive=is_naive, merged=not is_naive).total
        for is_naive in (True, False)
    )
    counted = Complexity(
        name=f"ours, {subject}",
        total_parameters_m=table.total / 1e6,
        trainable_parameters_m=table.trainable / 1e6,
        macs_g=naive.layers / 1e9,
        steps=sampling.steps,
        true_macs_g=naive.total / 1e9,
        shared_macs_g=shared.total / 1e9,
    )
    return counted, sampling


def time_image(pipeline: ClearSRPipeline, sampling: SamplingConfig, size: int, rounds: int = 3) -> float:
    """Seconds for one image of `size`×`size`, the fastest of some rounds after one that does not count.

    Without guidance, as the paper's times are; from the LR image to the finished one, files not included.
    """
    side = max(1, round(size / sampling.upscale))
    picture = make_picture(side, side)
    settings = sampling.model_copy(update={"guidance_scale": 1.0})
    fastest = math.inf
    for index in range(1 + rounds):
        start = time.perf_counter()
        pipeline.upscale([picture], settings)  # ends on the CPU, so the device has finished too
        if index:
            fastest = min(fastest, time.perf_counter() - start)
    return fastest


def published() -> list[Complexity]:
    """The paper's own columns."""
    columns = []
    for row in published_table(5)["rows"]:
        values = {**row["values"], "steps": round(row["values"]["steps"])}
        columns.append(Complexity(name=row["method"], **values))
    return columns


def complexity_table(ours: Sequence[Complexity], size: int, machine: str) -> Table:
    """Table 5 with our columns behind the published ones.

    Args:
        machine: what our times were measured on; empty if there are none.
    """
    columns = [*published(), *ours]
    rows = []
    for label, name, decimals in _ROWS:
        values = [getattr(column, name) for column in columns]
        rows.append(TableRow((label, *(_shown(value, decimals) for value in values)), {}))
    timed = f"ours on {machine}" if machine else "ours not measured (--time measures on this machine)"
    notes = (
        "The first four columns are the paper's (appendix E of the submitted version): 512x512 on an A40.",
        "Published MACs agree with convolutions and linear layers of a guided run whose control branch is "
        "computed for both halves, LoRAs unmerged; with attention the same run does more.",
        f"Times without guidance; {timed}.",
    )
    heads = ("", *(column.name for column in columns))
    return Table(f"Complexity at {size}x{size}", heads, (), tuple(rows), notes)


def _shown(value: float | None, decimals: int) -> str:
    """A number as the table has it; whole millions, such as the published ones, without decimals."""
    if value is None:
        return "–"
    is_whole = value >= 100 and float(value).is_integer()
    return f"{value:.{0 if is_whole else decimals}f}"
