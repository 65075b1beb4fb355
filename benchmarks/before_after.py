"""What training's steps and what lies beside them took before and take now, all in one run.

    OMP_NUM_THREADS=1 python benchmarks/before_after.py
    python benchmarks/before_after.py --compile --rounds 3

Dropped prompts, the window attention's index, checkpoints, headers of photographs, `evaluate --workers`; on
CUDA also TF32 and pinned memory. What was before is put together of the package's own parts. Both ways are
taken in turn, and a figure is the median of the rounds after a first that does not count: processor seconds
where something is computed on a CPU, seconds by the clock where something waits. --compile takes minutes.
"""

import argparse
import itertools
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from shutil import copyfile
from typing import Any, NamedTuple

import torch
from torch import nn
from train import PICTURES, device_name, write_pictures

from clearsr.config.base import build_config
from clearsr.config.model import ModelConfig
from clearsr.config.training import OptimizerConfig
from clearsr.data.crops import TrainingBatch
from clearsr.data.photographs import Photographs
from clearsr.hardware import cuda_arithmetic
from clearsr.models.build import random_network
from clearsr.models.clearsr import ClearSRNetwork
from clearsr.models.window_attention import UNPARTITIONED_TABLE_SIDE, WindowCrossAttention, aligned_offsets
from clearsr.training.engine import CheckpointWriter
from clearsr.training.run_folder import SIZES_NAME
from clearsr.training.setup import compile_parts
from clearsr.training.state import TrainingState, make_optimizer
from clearsr.training.step import to_device

Way = Callable[[], Any]
Clock = Callable[[], float]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


class Size(NamedTuple):
    """How large the things are that are measured."""

    unet: tuple[int, int]  # channels on the finest level and of a head; Stable Diffusion 2.1: 320 and 64
    latents: int  # a side of what it sees
    attention: tuple[int, int]  # the same of the window attention
    crop: int  # that is copied to CUDA
    parameters: int  # of a checkpoint, in millions
    photographs: int  # whose headers are read
    pairs: int  # that are evaluated


SIZE = Size((80, 16), 16, (320, 64), 512, 40, 3000, 16)
TINY = Size((16, 8), 8, (32, 16), 64, 1, PICTURES, 0)


class Row(NamedTuple):
    """A line of the table; without figures, why there are none."""

    item: str
    before: float = 0.0
    after: float = 0.0
    unit: str = "s"
    why_not: str = ""

    def text(self) -> str:
        """The line in Markdown."""
        if self.why_not:
            return f"| {self.item} | {self.why_not} | | |"
        ratio = f"{self.before / self.after:.2f}" if self.after else ""
        factor, unit = (1000, "ms") if self.unit == "s" and self.before < 0.1 else (1, self.unit)
        before, after = (f"{factor * value:.3g} {unit}" for value in (self.before, self.after))
        return f"| {self.item} | {before} | {after} | {ratio} |"


def in_turn(
    ways: Sequence[Way], rounds: int, clock: Clock, ready: Way = lambda: None, done: Way = lambda: None
) -> list[list[float]]:
    """What each way takes by the clock in a first round and those that count.

    Args:
        ready: called before the clock is looked at.
        done: called before it is looked at again.
    """
    seconds: list[list[float]] = [[] for _ in ways]
    for _ in range(rounds + 1):
        for taken, way in zip(seconds, ways, strict=True):
            ready()
            begin = clock()
            way()
            done()
            taken.append(clock() - begin)
    return seconds


def medians(seconds: list[list[float]]) -> list[float]:
    """Of each way, over the rounds that count."""
    return [statistics.median(taken[1:]) for taken in seconds]


def computed(ways: Sequence[Way], rounds: int, device: torch.device) -> list[float]:
    """The medians of what keeps the device busy."""
    if device.type == "cuda":
        done = torch.cuda.synchronize
        return medians(in_turn(ways, rounds, time.perf_counter, done, done))
    return medians(in_turn(ways, rounds, time.process_time))


# Dropped prompts


@dataclass(frozen=True)
class Pass:
    """Forward and backward of the denoising network for two images."""

    network: ClearSRNetwork
    inputs: dict[str, torch.Tensor]

    def at_once(self, dropped: torch.Tensor | None) -> torch.Tensor:
        """As training does it: one batch, whichever prompts are dropped."""
        return self._learn(self.network(**self.inputs, dropped=dropped))

    def decoded_twice(self, dropped: torch.Tensor) -> torch.Tensor:
        """As it was: the batch decoded under either prompt, and for each image one of the two taken."""
        network, (latent, timestep, z_lr, prompt) = self.network, self.inputs.values()
        text = network.null_prompt.expand(len(latent), -1, -1)
        control = network.control_signals(z_lr, timestep, text, network.structure_features(z_lr))
        encoded = network.unet_encode(latent, timestep, text)
        given, null = (network.unet_decode(encoded, control, tokens) for tokens in (prompt, text))
        return self._learn(torch.where(dropped.view(-1, 1, 1, 1), null, given))

    def _learn(self, output: torch.Tensor) -> torch.Tensor:
        self.network.zero_grad()
        output.square().mean().backward()
        return output.detach()


def make_pass(size: Size, device: torch.device) -> Pass:
    """A network of Stable Diffusion's shape at less width, LoRA and null prompt as the paper's."""
    width, head = size.unet
    unet = {
        "block_out_channels": (width, 2 * width, 4 * width, 4 * width),
        "attention": (True, True, True, False),
        "layers_per_block": 2,
        "head_dim": head,
        "norm_num_groups": 8,
        "cross_attention_dim": 3 * width,
    }
    changes = {"train_unet": "lora", "unet_lora_rank": 16, "null_prompt_tokens": 77, "unet": unet}
    config = build_config(ModelConfig, {"preset": "compact", "prediction": "epsilon", **changes})
    network = random_network(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():  # what starts at zero hides what lies before it
                parameter.normal_(0, 0.02, generator=generator)
    network.set_trainable()
    latent, z_lr = torch.randn(
        2, 2, config.autoencoder.latent_channels, size.latents, size.latents, generator=generator
    )
    prompt = torch.randn(2, 1, 3 * width, generator=generator)
    inputs = {"latent": latent, "timestep": torch.tensor([300, 700]), "z_lr": z_lr, "prompt": prompt}
    return Pass(network.to(device), {name: value.to(device) for name, value in inputs.items()})


def dropped_prompts(learn: Pass, rounds: int, device: torch.device) -> list[Row]:
    """One of two prompts dropped; the second row says what a step takes in which none is."""
    one = torch.tensor([True, False], device=device)
    ways = [partial(learn.decoded_twice, one), partial(learn.at_once, one), partial(learn.at_once, None)]
    twice, once, none = computed(ways, rounds, device)
    return [
        Row("forward and backward, one of two prompts dropped: decoded twice; once, padded", twice, once),
        Row("forward and backward: one of two prompts dropped, decoded twice; none dropped", twice, none),
    ]


# The window attention's index


def make_attention(size: Size, window: int | None) -> WindowCrossAttention:
    """The layer on the finest level."""
    channels, head = size.attention
    layer = WindowCrossAttention(channels, 4, head, window, ratio=1)
    nn.init.normal_(layer.to_out.weight, std=0.02)
    return layer.requires_grad_(False)


def index_anew(layer: WindowCrossAttention, way: Way) -> None:
    """What the layer computes with its index made for it, as each forward had it made."""
    layer._index = None
    way()


def window_index(size: Size, rounds: int, device: torch.device) -> list[Row]:
    """A layer on the latents of a crop of 512 pixels: all of it, and what gathers the bias alone."""
    rows = []
    side, channels = UNPARTITIONED_TABLE_SIDE, size.attention[0]
    hidden = torch.randn(1, side**2, channels, device=device)
    z_lr = torch.randn(1, 4, side, side, device=device)
    for window in (16, None):
        name = "window attention, " + ("no partition" if window is None else f"windows of {window}")
        layer, key_side = make_attention(size, window).to(device), window or side
        forward, bias = partial(layer, hidden, z_lr), partial(layer._bias, key_side)
        for what, way in (("a layer's forward", forward), ("its bias alone", bias)):
            turns = rounds if window is None else 10 * rounds
            before, after = computed([partial(index_anew, layer, way), way], turns, device)
            rows.append(Row(f"{name}, {what}: index made at each forward; once", before, after))
        made = aligned_offsets(key_side, key_side, 1, key_side, CPU).nbytes / 2**20
        rows.append(Row(f"{name}: size of what each forward made anew", made, 0, "MiB"))
    return rows


# Beside the steps


def make_state(size: Size) -> TrainingState:
    """Parameters and Adam's moments of so many millions, after a step."""
    parameters = {str(number): nn.Parameter(torch.zeros(1000, 1000)) for number in range(size.parameters)}
    for parameter in parameters.values():
        parameter.grad = torch.ones_like(parameter)
    state = TrainingState(parameters, {}, make_optimizer(parameters.values(), OptimizerConfig()))
    state.optimizer.step()
    return state


def checkpoints(size: Size, rounds: int, folder: Path) -> list[Row]:
    """How long a step waits; the thread is through before the next save, as there are many steps between."""
    state, step = make_state(size), itertools.count()
    blocking, beside = (CheckpointWriter(folder / str(way), 1, way) for way in (False, True))
    ways = [lambda writer=writer: writer.save(next(step), state, {}) for writer in (blocking, beside)]
    with blocking, beside:
        waits = in_turn(ways, rounds, time.perf_counter, ready=beside.wait)
    name = f"a step waits for a checkpoint of {12 * size.parameters} MB: blocking; in the background"
    first, later = (taken[0] for taken in waits), medians(waits)
    return [Row(f"{name}, the first", *first), Row(f"{name}, later", *later)]


def write_many(folder: Path, side: int, count: int) -> Path:
    """A new folder of pictures, of which four differ."""
    folder.mkdir()
    write_pictures(folder, side)
    for number in range(PICTURES, count):
        copyfile(folder / f"{number % PICTURES}.png", folder / f"{number}.png")
    return folder


def headers(size: Size, rounds: int, folder: Path) -> list[Row]:
    """The sizes of photographs before the first step, whose files the system still has in memory."""
    photographs = write_many(folder / "photographs", 128, size.photographs)
    files = (None, folder / SIZES_NAME)
    ways = [partial(Photographs([photographs], sizes=file).smaller_than, 64) for file in files]
    taken = medians(in_turn(ways, rounds, time.perf_counter))
    return [Row(f"sizes of {size.photographs} photographs: read; kept by the start before", *taken)]


def evaluation(size: Size, rounds: int, folder: Path) -> list[Row]:
    """`clearsr evaluate` from start to end, on as many cores as there are processes, in fewer rounds."""
    name = f"`evaluate` of {size.pairs} pairs by PSNR: one process; `--workers 2`"
    if not size.pairs:
        return [Row(name, why_not="left out")]
    lr, hr = (write_many(folder / part, side, size.pairs) for part, side in (("LR", 128), ("HR", 512)))
    command = [sys.executable, "-m", "clearsr", "evaluate", "--lr", str(lr), "--hr", str(hr)]
    command += ["--measures", "psnr", "--quiet"]
    commands = ([*command, "--workers", workers] for workers in ("1", "2"))
    ways = [partial(subprocess.run, each, check=True, capture_output=True) for each in commands]
    return [Row(name, *medians(in_turn(ways, max(1, rounds // 3), time.perf_counter)))]


def on_cuda(size: Size, learn: Pass, rounds: int, device: torch.device) -> list[Row]:
    """What only CUDA has."""
    arithmetic = "forward and backward in fp32: as torch has it; `tf32` and `cudnn_benchmark`"
    copies = "a step waits for the copies of 8 crops: from pageable memory; pinned"
    if device.type != "cuda":
        return [Row(name, why_not="not on this device") for name in (arithmetic, copies)]

    def fast(tf32: bool | None, tries: bool) -> None:
        with cuda_arithmetic(tf32, tries):
            learn.at_once(None)

    crop, lr = torch.rand(8, 3, size.crop, size.crop), torch.rand(8, 3, size.crop // 4, size.crop // 4)
    batches = [
        TrainingBatch(*images, list(range(8)))
        for images in ((crop, lr), (crop.pin_memory(), lr.pin_memory()))
    ]
    ways = [partial(to_device, batch, device) for batch in batches]
    waits = in_turn(ways, rounds, time.perf_counter, ready=torch.cuda.synchronize)
    settings = [partial(fast, None, False), partial(fast, True, True)]
    return [Row(arithmetic, *computed(settings, rounds, device)), Row(copies, *medians(waits))]


def compiled(size: Size, learn: Pass, rounds: int, device: torch.device) -> list[Row]:
    """The network as it is written and the same compiled, which the first round does."""
    other = make_pass(size, device)
    compile_parts(other.network)
    ways = [partial(each.at_once, None) for each in (learn, other)]
    return [Row("forward and backward: as written; compiled", *computed(ways, rounds, device))]


def measure(size: Size, rounds: int, device: torch.device, with_compiler: bool) -> list[Row]:
    """All rows, in the order of the items."""
    rows, learn = list[Row](), make_pass(size, device)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parts: list[Callable[[], list[Row]]] = [
            partial(dropped_prompts, learn, rounds, device),
            partial(window_index, size, rounds, device),
            partial(checkpoints, size, rounds, folder),
            partial(headers, size, rounds, folder),
            partial(on_cuda, size, learn, rounds, device),
            partial(evaluation, size, rounds, folder),
        ]
        if with_compiler:
            parts.append(partial(compiled, size, learn, rounds, device))
        for part in parts:
            begin = time.perf_counter()
            found = part()
            rows += found
            sys.stderr.write(f"{time.perf_counter() - begin:.0f} s: {found[0].item}\n")
    return rows


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="that both ways are taken in (default: 5)")
    parser.add_argument("--compile", action="store_true", help="also time torch.compile, which takes minutes")
    parser.add_argument("--tiny", action="store_true", help="small things, to see that all of it runs")
    args = parser.parse_args(arguments)
    device = CUDA if torch.cuda.is_available() else CPU
    rows = measure(TINY if args.tiny else SIZE, args.rounds, device, args.compile)
    print(f"{device_name()}, torch {torch.__version__}, medians of {args.rounds}\n")
    print("| item | before | after | before / after |\n|---|---|---|---|")
    print("\n".join(row.text() for row in rows))


if __name__ == "__main__":
    main()
