"""What working in windows costs and saves: Stable Diffusion 2.1's VAE at its real size, random weights.

    python benchmarks/tiled_vae.py --sides 512 1024 --piece 256 --threads 1

Each case is a process of its own: processor seconds of one encoding or decoding, and how far its memory
rose above what it held with the VAE loaded. `whole` is diffusers' own pass, `windows` has the maps between
the layers in memory, `disk` in files. `--compare` runs `whole` and `windows` in one process: the largest
difference relative to the largest value.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL

from clearsr.hardware import mixed_precision
from clearsr.models.latent_lr_embedding import LatentLREmbedding
from clearsr.models.sd21 import VAE_CONFIG
from clearsr.paper.complexity.child import peak_bytes
from clearsr.pipeline.budget import resident_bytes
from clearsr.pipeline.store import DiskTensor

CPU = torch.device("cpu")
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def load() -> LatentLREmbedding:
    """The VAE with random weights."""
    torch.manual_seed(0)
    vae = AutoencoderKL.from_config(VAE_CONFIG).eval().to(memory_format=torch.channels_last)
    return LatentLREmbedding(vae.requires_grad_(False))


def steps(
    latents: LatentLREmbedding, side: int, piece: int, folder: str | None
) -> dict[str, Callable[[], Any]]:
    """Encoding and decoding of a square image."""

    def on_disk(shape: Any, dtype: torch.dtype) -> DiskTensor:
        return DiskTensor(shape, Path(folder or "."), CPU, dtype)

    new_map = on_disk if folder else None
    generator = torch.Generator().manual_seed(1)
    pixels = torch.rand(1, 3, side, side, generator=generator).mul_(2).sub_(1)
    z = torch.randn(1, 4, side // 8, side // 8, generator=generator)
    return {
        "encode": lambda: latents.embed_lr(pixels, piece, new_map).mean,
        "decode": lambda: latents.decode(z, piece, new_map),
    }


@torch.no_grad()
def measure(side: int, step: str, piece: int, precision: str, folder: str | None) -> dict[str, float]:
    """One step in this process."""
    run = steps(load(), side, piece, folder)[step]
    before, start = resident_bytes(), time.process_time()
    with mixed_precision(CPU, PRECISIONS[precision]):
        run()
    seconds = time.process_time() - start
    return {"cpu_seconds": round(seconds, 1), "mb_above": round((peak_bytes() - before) / 1e6)}


@torch.no_grad()
def compare(side: int, piece: int, precision: str) -> dict[str, float]:
    """Largest differences between windows and the whole, relative to the largest value."""
    latents, found = load(), {}
    with mixed_precision(CPU, PRECISIONS[precision]):
        whole, windows = (steps(latents, side, size, None) for size in (side, piece))
        for name in whole:
            expected = whole[name]().float()
            found[name] = float((windows[name]().float() - expected).abs().max() / expected.abs().max())
    return found


def main() -> None:
    """Print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--piece", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    parser.add_argument(
        "--modes", nargs="+", choices=("whole", "windows", "disk"), default=["whole", "windows"]
    )
    parser.add_argument("--compare", action="store_true")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.compare:
        print(json.dumps({side: compare(side, options.piece, options.precision) for side in options.sides}))
        return
    if options.child:
        mode, step = options.child
        side = options.sides[0]
        with tempfile.TemporaryDirectory() as folder:
            piece = side if mode == "whole" else options.piece
            at = folder if mode == "disk" else None
            print(json.dumps(measure(side, step, piece, options.precision, at)))
        return
    for side in options.sides:
        for step in ("encode", "decode"):
            for mode in options.modes:
                order = [sys.executable, __file__, "--child", mode, step, "--sides", str(side)]
                order += ["--piece", str(options.piece), "--threads", str(options.threads)]
                order += ["--precision", options.precision]
                done = subprocess.run(order, check=True, capture_output=True, text=True)
                print(json.dumps({"side": side, "step": step, "mode": mode, **json.loads(done.stdout)}))
                sys.stdout.flush()


if __name__ == "__main__":
    main()
