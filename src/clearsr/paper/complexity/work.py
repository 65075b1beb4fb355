"""MACs at Stable Diffusion 2.1's size, ours and naive, with and without guidance; and the compact model's."""

from typing import Any

from clearsr.config.base import build_config
from clearsr.config.benchmark import BenchmarkConfig
from clearsr.config.model import ModelConfig, preset_model_config
from clearsr.config.sampling import SamplingConfig
from clearsr.models.checkpoint import locate, read_description
from clearsr.paper.complexity.macs import MacTable, count_macs

STEPS = 50


def measure_macs(_: BenchmarkConfig) -> dict[str, Any]:
    """Tables of `count_macs` at 512 x 512, and what sharing leaves of the naive work."""
    config = preset_model_config("sd21")
    tables = {}
    for guided in (True, False):
        for naive in (False, True):
            name = f"{'naive' if naive else 'ours'}, {'guided' if guided else 'unguided'}"
            tables[name] = count_macs(config, steps=STEPS, guided=guided, naive=naive)
    compact = _of_model("compact")
    shares = {
        kind: tables[f"ours, {kind}"].denoising.total / tables[f"naive, {kind}"].denoising.total
        for kind in ("guided", "unguided")
    }
    return {
        "sd21": {name: table.as_dict() for name, table in tables.items()},
        "ours_over_naive": shares,
        "compact": compact.as_dict(),
    }


def _of_model(source: str) -> MacTable:
    """A model by its own settings."""
    description = read_description(locate(source))
    sampling = build_config(SamplingConfig, description["sampling"])
    config = build_config(ModelConfig, description["model"])
    return count_macs(config, steps=sampling.steps, guided=sampling.guidance_scale > 1)
