"""MACs at Stable Diffusion 2.1's size, ours and naive, with and without guidance; and the compact model's."""

from typing import Any

from clearsr.config.benchmark import BenchmarkConfig
from clearsr.config.model import preset_model_config
from clearsr.macs import count_macs

STEPS = 50


def measure_macs(_: BenchmarkConfig) -> dict[str, Any]:
    """Tables of `count_macs` at 512 x 512, and what sharing leaves of the naive work."""
    config = preset_model_config("sd21")
    tables = {}
    for guided in (True, False):
        for naive in (False, True):
            name = f"{'naive' if naive else 'ours'}, {'guided' if guided else 'unguided'}"
            tables[name] = count_macs(config, steps=STEPS, guided=guided, naive=naive)
    compact = count_macs(preset_model_config("compact"), steps=1, guided=False)
    shares = {
        kind: tables[f"ours, {kind}"].denoising.total / tables[f"naive, {kind}"].denoising.total
        for kind in ("guided", "unguided")
    }
    return {
        "sd21": {name: table.as_dict() for name, table in tables.items()},
        "ours_over_naive": shares,
        "compact": compact.as_dict(),
    }
