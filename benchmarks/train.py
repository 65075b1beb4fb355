"""How long training steps take, what they hold in memory and, with --check, what they change.

    python benchmarks/train.py --preset compact
    python benchmarks/train.py --preset sd21 --crop 512 --batch 1 --steps 3 --check --json sd21.json
    python benchmarks/train.py --preset sd21 --batch 2 --checkpointing off --steps 8 --controlnet

The steps are those of `clearsr train` on configs/version2/3-clearsr.yaml or configs/sd21.yaml, on a network
of the true size with random weights: no base is fetched. Every row has a process of its own. --controlnet
adds rows of what diffusers' ControlNet trainer does on the same base (benchmarks/controlnet.py); all batches
are then made before the clock runs.
"""

import argparse
import itertools
import json
import multiprocessing
import platform
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from training_changes import Watch, is_as_intended, report

from clearsr.config.base import build_config, merge, parse_override, read_yaml
from clearsr.config.training import TrainConfig
from clearsr.errors import ClearSRError
from clearsr.image import ImageData, resize, write_image
from clearsr.models.build import random_network
from clearsr.training.dry_run import plan_run
from clearsr.training.engine import start_processes
from clearsr.training.setup import prepare_stage
from clearsr.training.state import TrainingState
from clearsr.training.step import Stepper, make_scaler, open_data

CONFIGS = Path(__file__).parent.parent / "configs"
RECIPES = {"compact": CONFIGS / "version2/3-clearsr.yaml", "sd21": CONFIGS / "sd21.yaml"}
PICTURES = 4

Row = dict[str, Any]


def measure(config: TrainConfig, check: bool = False, network: str = "clearsr", ahead: bool = False) -> Row:
    """Take `config.steps` steps in this process; times in seconds, memory in bytes.

    Args:
        check: also see what changes, which takes as long as hashing all tensors twice.
        network: `clearsr`, or `controlnet` as diffusers trains it.
        ahead: make all batches before the first step.

    Raises:
        ClearSRError: the configuration or the data is unusable, or the loss is not finite.
    """
    accelerator = start_processes(config)
    memory = _Memory(accelerator.device)
    started = time.perf_counter()
    stage = _build(network, config, accelerator.device)
    row: Row = {"build_seconds": time.perf_counter() - started, "seconds": [], "loss": []}
    state, data = TrainingState.of(stage, config), open_data(config, accelerator, stage)
    row["trained"] = sum(parameter.numel() for parameter in state.parameters.values())
    scaler = make_scaler(config, accelerator.device)
    stepper = Stepper.start(config, accelerator, stage, state, data, scaler)
    if ahead:
        stepper = replace(stepper, batches=iter(list(stepper.batches)))
    watch = Watch(stage) if check else None
    memory.start()
    for step in range(config.steps):
        started = time.perf_counter()
        losses = stepper.step(step)
        loss = float("nan") if losses is None else losses["loss"].item()  # waits for the accelerator
        row["seconds"].append(time.perf_counter() - started)
        row["loss"].append(loss)
        sys.stderr.write(f"step {step + 1}: {row['seconds'][-1]:.2f} s, loss {loss:.4f}\n")
        if watch:
            watch.after_step()
    row |= memory.read()
    return row | {"check": watch.finish()} if watch else row


def _build(network: str, config: TrainConfig, device: torch.device) -> Any:
    """The stage with random weights on its device."""
    if network == "clearsr":
        return prepare_stage(config, random_network(config.model, config.seed), device)
    from controlnet import ControlNetStage  # diffusers takes seconds

    return ControlNetStage(config).to(device).to(memory_format=torch.channels_last)


class _Memory:
    """The most memory that the steps hold: on CUDA its tensors, else the process (Linux only)."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._libraries = 0 if device.type == "cuda" else _resident("VmRSS")

    def start(self) -> None:
        """Forget what building the network took."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        elif self._libraries is not None:
            Path("/proc/self/clear_refs").write_text("5")

    def read(self) -> Row:
        """`peak_memory` since `start`, and the part of it that was there before the network."""
        if self._device.type == "cuda":
            return {"peak_memory": torch.cuda.max_memory_allocated(self._device), "libraries_memory": 0}
        return {"peak_memory": _resident("VmHWM"), "libraries_memory": self._libraries}


def _resident(field: str, file: str = "/proc/self/status") -> int | None:
    """A field of this process's status in bytes; None on systems without /proc."""
    try:
        lines = Path(file).read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:")), None)


def make_config(args: argparse.Namespace, batch: int, checkpointing: bool, data: list[str]) -> TrainConfig:
    """The recipe of the preset, with what the command line asks for.

    Raises:
        ClearSRError: a setting is unknown or not accepted.
    """
    values = merge(
        read_yaml(RECIPES[args.preset]),
        {
            "init_from": [],
            "data": {"train": data, "validation": [], "crop_size": args.crop, "workers": args.workers},
            "batch_size": batch,
            "gradient_checkpointing": checkpointing,
            "steps": args.steps,
        },
    )
    for override in args.set:
        values = merge(values, parse_override(override))
    return build_config(TrainConfig, values)


def describe(config: TrainConfig, network: str = "clearsr") -> Row:
    """What a row says of its settings, and what `clearsr train --dry-run` says beforehand of ours."""
    planned = sum(plan_run(config, processes=1).memory.values()) if network == "clearsr" else None
    return {
        "network": network,
        "batch": config.batch_size,
        "crop": config.data.crop_size,
        "precision": config.precision,
        "checkpointing": config.gradient_checkpointing,
        "planned_memory": planned,
    }


def run_trial(config: TrainConfig, check: bool, network: str = "clearsr", ahead: bool = False) -> Row:
    """`describe` and, in a process of its own, `measure`."""
    row = describe(config, network)
    needed = row["planned_memory"] or 0
    available = _resident("MemAvailable", "/proc/meminfo")
    if not torch.accelerator.is_available() and available is not None and available < needed:
        # Rather than have the system end whatever process it likes.
        return row | {"error": f"needs more than the {available / 2**30:.1f} GiB that are free"}
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return row | pool.submit(measure, config, check, network, ahead).result()
        except (torch.OutOfMemoryError, BrokenProcessPool):
            return row | {"error": "out of memory"}


def write_pictures(folder: Path, side: int) -> list[str]:
    """Pictures of random colours and fine noise, so that steps can be timed without photographs."""
    generator = torch.Generator().manual_seed(0)
    for number in range(PICTURES):
        smooth = resize(torch.rand(1, 3, 8, 8, generator=generator), (side, side))[0]
        picture = smooth + 0.05 * torch.randn(smooth.shape, generator=generator)
        write_image(ImageData(picture.clamp(0, 1)), folder / f"{number}.png")
    return [str(folder)]


def images_per_second(row: Row) -> float:
    """By the median of all steps but the first, if there are more."""
    return row["batch"] / statistics.median(row["seconds"][1:] or row["seconds"])


def over_controlnet(row: Row, rows: list[Row]) -> float | None:
    """Images per second of a row of ours, times ControlNet's under the same settings; None: not measured."""
    if "error" in row or row["network"] != "clearsr":
        return None
    same = [r for r in rows if r["network"] == "controlnet" and "error" not in r]
    same = [r for r in same if all(r[k] == row[k] for k in ("batch", "crop", "precision", "checkpointing"))]
    return images_per_second(row) / images_per_second(same[0]) if same else None


def table(rows: list[Row]) -> str:
    """Markdown, a row per trial; the time of a step is the median of all but the first, if there are more."""
    lines = [
        "| network | batch | crop | precision | checkpointing | first step (s) | step (s) | images/s | times "
        "ControlNet's | peak (GiB) | libraries (GiB) | planned (GiB) | peak - libraries over planned |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        switch = "on" if row["checkpointing"] else "off"
        head = f"| {row['network']} | {row['batch']} | {row['crop']} | {row['precision']} | {switch} | "
        planned, peak = row["planned_memory"], row.get("peak_memory")
        plan = "" if planned is None else f"{planned / 2**30:.2f}"
        if "error" in row:
            lines.append(f"{head}{row['error']} | | | | | | {plan} | |")
            continue
        rate, times = images_per_second(row), over_controlnet(row, rows)
        libraries = row["libraries_memory"]
        measured = " | " if peak is None else f"{peak / 2**30:.2f} | {libraries / 2**30:.2f}"
        ratio = "" if peak is None or planned is None else f"{(peak - libraries) / planned:.2f}"
        lines.append(
            f"{head}{row['seconds'][0]:.2f} | {row['batch'] / rate:.2f} | {rate:.3g} | "
            f"{'' if times is None else f'{times:.2f}'} | {measured} | {plan} | {ratio} |"
        )
    return "\n".join(lines)


def read_arguments() -> argparse.Namespace:
    """The command line; what is not given depends on the preset and on whether there is an accelerator."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=RECIPES, default="compact")
    parser.add_argument("--crop", type=int, help="side of a crop (default: the recipe's)")
    parser.add_argument("--batch", type=int, nargs="+", help="batch sizes, a row each")
    parser.add_argument("--checkpointing", choices=("off", "on"), nargs="+", help="a row each")
    parser.add_argument("--steps", type=int, help="steps in each row, the first to warm up")
    parser.add_argument("--check", action="store_true", help="compare all tensors before and after")
    parser.add_argument("--controlnet", action="store_true", help="also time diffusers' ControlNet trainer")
    parser.add_argument("--data", nargs="+", help="photographs (default: random pictures)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any setting")
    parser.add_argument("--threads", type=int, help="of a CPU")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows to FILE")
    args = parser.parse_args()
    if args.controlnet and (args.check or args.preset != "sd21"):
        parser.error("--controlnet goes with --preset sd21, and without --check")
    recipe, accelerated = read_yaml(RECIPES[args.preset]), torch.accelerator.is_available()
    heavy_for_a_cpu = args.preset == "sd21" and not accelerated
    args.crop = args.crop or recipe["data"]["crop_size"]
    args.steps = args.steps or (1 if heavy_for_a_cpu else 6)
    args.workers = recipe["data"].get("workers", 1) if accelerated else 1
    if args.preset == "compact":
        args.batch = args.batch or [recipe["batch_size"]]
        args.checkpointing = args.checkpointing or ["off"]
    args.batch = args.batch or ([1, 2, 4, 8] if accelerated else [1])
    args.checkpointing = args.checkpointing or (["off", "on"] if accelerated else ["on"])
    return args


def device_name() -> str:
    """What the steps run on."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    if torch.accelerator.is_available():
        return str(torch.accelerator.current_accelerator())
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def main() -> int:
    args = read_arguments()
    if args.threads:
        torch.set_num_threads(args.threads)
    rows, is_fine = [], True
    with tempfile.TemporaryDirectory() as folder:
        data = args.data or write_pictures(Path(folder), args.crop + 64)
        networks = ["clearsr", "controlnet"] if args.controlnet else ["clearsr"]
        for batch, switch, network in itertools.product(args.batch, args.checkpointing, networks):
            config = make_config(args, batch, switch == "on", data)
            row = run_trial(config, args.check, network, ahead=args.controlnet)
            rows.append(row)
            is_fine = is_fine and "error" not in row
            if "check" in row:
                is_fine = is_fine and is_as_intended(row["check"], config)
                losses = ", ".join(f"{loss:.4f}" for loss in row["loss"])
                heading = f"batch {batch}, {row['trained']:,} trained parameters, loss {losses}"
                sys.stdout.write(f"{heading}\n{report(row['check'])}\n\n")
    sys.stdout.write(f"{args.preset} on {device_name()}, torch {torch.__version__}\n\n{table(rows)}\n")
    if args.json:
        described = {"preset": args.preset, "device": device_name(), "torch": torch.__version__}
        args.json.write_text(json.dumps({**described, "rows": rows}, indent=1) + "\n")
    return 0 if is_fine else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ClearSRError as error:
        sys.exit(f"error: {error}")
