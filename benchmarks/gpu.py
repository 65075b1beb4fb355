"""What is still open at Stable Diffusion 2.1's true size, measured on one GPU in a few minutes.

    python benchmarks/gpu.py --minutes 8 --json gpu.json
    python benchmarks/gpu.py --tiny --json tiny.json

Random weights, so nothing is fetched. Every part runs in a process of its own: one that the time left is too
short for is left out, one that outlasts it is stopped, and the file is written anew after each. --tiny takes
small networks, on a processor too, to see that all of it runs; there nothing is compiled.
"""

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from train import (
    describe,
    device_name,
    images_per_second,
    make_config,
    measure,
    over_controlnet,
    write_pictures,
)

from clearsr.atomic import write_text
from clearsr.config.base import build_config
from clearsr.config.evaluation import BenchmarkConfig
from clearsr.config.model import ModelConfig
from clearsr.errors import ClearSRError, first_line
from clearsr.models.sd21 import PART_CONFIGS
from clearsr.paper.complexity.sd21 import measure_sd21

Figures = dict[str, Any]
STEPS, TRAINING_STEPS = 50, 10
TRAINING_BATCH = 2  # of each of the paper's four GPUs
TINY_SIDE = 128
# What --tiny changes of the published configurations; the layers stay of their kinds.
TINY: dict[str, Figures] = {
    "unet": {
        "block_out_channels": [16, 16, 32, 32],
        "layers_per_block": 1,
        "attention_head_dim": [2, 2, 4, 4],
        "cross_attention_dim": 32,
        "norm_num_groups": 8,
    },
    "vae": {"block_out_channels": [8, 8, 16, 16], "layers_per_block": 1, "norm_num_groups": 4},
    "text_encoder": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1},
    "image_encoder": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "projection_dim": 32,
    },
}


def sample(folder: Path, tiny: bool, batches: tuple[int, ...], compiled: bool = False) -> Figures:
    """The sd21 section of `clearsr bench`: pictures of 512 pixels, with guidance and without."""
    config = BenchmarkConfig(
        precision="auto" if tiny else "bf16", batches=batches, steps=2 if tiny else STEPS, compile=compiled
    )
    if not tiny:
        return measure_sd21(config)
    return measure_sd21(config, build_config(ModelConfig, _tiny_model(folder)), TINY_SIDE)


def train(folder: Path, tiny: bool, network: str) -> Figures:
    """Steps of configs/sd21.yaml, or of diffusers' ControlNet trainer on the same base."""
    crop = TINY_SIDE if tiny else 512
    pictures = folder / "pictures"
    pictures.mkdir()
    data = write_pictures(pictures, crop + 64)
    changes = []
    if tiny:
        changes = [f"model.{name}={json.dumps(value)}" for name, value in _tiny_model(folder).items()]
    recipe = argparse.Namespace(
        preset="sd21", crop=crop, workers=0 if tiny else 4, steps=3 if tiny else TRAINING_STEPS, set=changes
    )
    config = make_config(recipe, TRAINING_BATCH, checkpointing=False, data=data)
    row = describe(config, network) | measure(config, network=network, ahead=True)
    return row | {"images_per_second": images_per_second(row)}


class Part(NamedTuple):
    """What is measured in one process.

    Attributes:
        run: takes the folder for temporary files, whether it is to be tiny, and `settings`.
        seconds: with less left it is not begun; an estimate, as it has not been run on a GPU.
    """

    run: Callable[..., Figures]
    settings: Figures
    seconds: float


PARTS = {
    "sampling": Part(sample, {"batches": (1, 8)}, 60),
    "training": Part(train, {"network": "clearsr"}, 90),
    "training, ControlNet": Part(train, {"network": "controlnet"}, 60),
    "sampling compiled, batch 1": Part(sample, {"batches": (1,), "compiled": True}, 90),
    "sampling compiled, batch 8": Part(sample, {"batches": (8,), "compiled": True}, 90),
}


def _tiny_model(folder: Path) -> Figures:
    """Settings of a model on a base of small parts, whose descriptions are written to `folder`."""
    base = folder / "base"
    for name, published in PART_CONFIGS.items():
        (base / name).mkdir(parents=True, exist_ok=True)
        text = json.dumps({**published, **TINY[name]})
        (base / name / "config.json").write_text(text)
    return {"preset": "sd21", "base_model": str(base), "image_encoder": None, "null_prompt_tokens": 8}


def run_part(name: str, tiny: bool, seconds: float) -> Figures:
    """What a part measures, or what became of it; `state` is done, left out, stopped or failed."""
    part = PARTS[name]
    if tiny and part.settings.get("compiled") and not torch.cuda.is_available():
        return {"state": "left out", "why": "compiling takes a processor minutes"}
    if seconds < part.seconds and not tiny:
        return {"state": "left out", "why": f"{seconds:.0f} s left, it takes about {part.seconds:.0f}"}
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        process = multiprocessing.get_context("spawn").Process(
            target=_answer, args=(name, tiny, Path(folder), answer)
        )
        started = time.monotonic()
        process.start()
        process.join(seconds)
        took = {"seconds_in_all": time.monotonic() - started}
        if process.is_alive():
            process.kill()  # its loader's workers end by themselves
            process.join()
            return {"state": "stopped", "why": f"not done after {seconds:.0f} s"} | took
        if not answer.exists():
            return {"state": "failed", "why": f"the process ended with code {process.exitcode}"} | took
        return json.loads(answer.read_text()) | took


def _answer(name: str, tiny: bool, folder: Path, file: Path) -> None:
    """In the part's own process: run it and write what came of it."""
    part = PARTS[name]
    try:
        found = {"state": "done"} | part.run(folder, tiny, **part.settings)
    except (ClearSRError, RuntimeError, OSError) as error:  # also out of memory, and the compiler's
        found = {"state": "failed", "why": f"{type(error).__name__}: {first_line(error)}"}
    write_text(file, json.dumps(found))


def goals(parts: dict[str, Figures]) -> list[Figures]:
    """What the figures are held against: the value, and the bound that it should reach."""
    done = {name: figures for name, figures in parts.items() if figures["state"] == "done"}
    found = []
    for figures in done.values():
        for name, run in figures.get("runs", {}).items():
            seconds = run["seconds_per_image"]
            if name.endswith("batch 1"):
                found.append((f"{name}: seconds a picture", seconds, "at most", 0.6))
            elif name.endswith("batch 8"):
                found.append((f"{name}: pictures a second", 1 / seconds, "at least", 4.0))
    ours, theirs = done.get("training"), done.get("training, ControlNet")
    if ours and theirs:
        times = over_controlnet(ours, [ours, theirs])
        found.append(("training: images a second, times ControlNet's", times, "at least", 1.0))
    if ours and ours["peak_memory"] is not None:
        share = (ours["peak_memory"] - ours["libraries_memory"]) / ours["planned_memory"]
        found.append(("training: peak memory over the plan", share, "at most", 1.05))
    return [
        {
            "what": what,
            "value": value,
            "goal": f"{side} {bound:g}",
            "is_met": value <= bound if side == "at most" else value >= bound,
        }
        for what, value, side, bound in found
    ]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=8, help="for all of it (default: 8)")
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="where the figures go")
    parser.add_argument("--tiny", action="store_true", help="small networks, on any device")
    args = parser.parse_args()
    if not args.tiny and not torch.cuda.is_available():
        parser.error("no CUDA device is found; --tiny runs on any device")
    ends = time.monotonic() + 60 * args.minutes
    report: Figures = {"tiny": args.tiny, "device": device_name(), "torch": torch.__version__, "parts": {}}
    for name in PARTS:
        found = run_part(name, args.tiny, max(0.0, ends - time.monotonic()))
        report["parts"][name] = found
        report["goals"] = [] if args.tiny else goals(report["parts"])
        write_text(args.json, json.dumps(report, indent=1) + "\n")
        why = f": {found['why']}" if "why" in found else ""
        sys.stderr.write(f"{name}: {found['state']}{why}\n")
    for goal in report["goals"]:
        mark = "met" if goal["is_met"] else "not met"
        sys.stdout.write(f"{goal['what']}: {goal['value']:.3g} ({goal['goal']}: {mark})\n")
    return 1 if any(part["state"] == "failed" for part in report["parts"].values()) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ClearSRError as error:
        sys.exit(f"error: {error}")
