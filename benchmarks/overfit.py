"""Whether training works at all: on four photographs its loss falls and its samples become the photographs.

    python benchmarks/overfit.py --output overfit

A `clearsr` stage from scratch on top of the embedded model's VAE and E', by the loop of `clearsr train`, on
four free photographs of 96x96 pixels (they come with scikit-image: pip install '.[demo]') and their
bicubic quarters. Writes the run to the folder, and prints what it measured.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from clearsr.config.base import build_config, merge, parse_override
from clearsr.config.training import TrainConfig
from clearsr.errors import ClearSRError
from clearsr.evaluation.demo import PHOTOGRAPHS, load_photograph
from clearsr.evaluation.metrics import psnr
from clearsr.image import ImageData, resize, to_signed, to_unit, write_image
from clearsr.models.checkpoint import load_network, save_network
from clearsr.training.engine import fit

SIDE, UPSCALE = 96, 4
LOGGED = 20  # steps that a value of the loss is averaged over
# A third of the embedded model's trained parameters: enough for four pictures, and fast.
SMALL: dict[str, Any] = {
    "unet": {"block_out_channels": [32, 64, 96]},
    "image_prompt": {"hidden_size": 32, "layers": 1, "image_size": 64},
}


def prepare(folder: Path) -> list[torch.Tensor]:
    """Write the photographs and what the stage starts from to `folder`; returns the photographs."""
    (folder / "photographs").mkdir(parents=True, exist_ok=True)
    pictures = []
    for name in PHOTOGRAPHS:
        picture = resize(load_photograph(name).color[None], (SIDE, SIDE))[0].clamp(0, 1)
        pictures.append(picture)
        write_image(ImageData(picture), folder / "photographs" / f"{name}.png")
    network, _, _ = load_network("compact")
    # Only what the first two stages made of it: DPM, SPM and the U-Net start from scratch.
    save_network(network, folder / "start", ["autoencoder", "lr_encoder"])
    return pictures


def make_config(folder: Path, prediction: str, steps: int, overrides: list[str]) -> TrainConfig:
    """The embedded model's network on the four photographs.

    Raises:
        ClearSRError: a setting is unknown or not accepted.
    """
    photographs = [str(folder / "photographs")]
    values: dict[str, Any] = {
        "stage": "clearsr",
        "output": str(folder / "run"),
        "init_from": [str(folder / "start")],
        "model": {"preset": "compact", "prediction": prediction, **SMALL},
        "data": {"train": photographs, "validation": photographs, "crop_size": SIDE, "workers": 0},
        "degradation": {"weights": {"bicubic": 1.0}},
        "optimizer": {"learning_rate": 2e-3, "schedule": "cosine", "warmup_steps": 40},
        "loss": {"prompt_dropout": 0.0},
        "steps": steps,
        "batch_size": len(PHOTOGRAPHS),
        "ema_decay": 0.99,
        "log_every": LOGGED,
        "checkpoint_every": steps,
        "keep_checkpoints": 1,
        "validate_every": max(1, steps // 4),
        "validation": {
            "count": len(PHOTOGRAPHS),
            "crop_size": SIDE,
            "sampling": {"steps": 20, "scheduler": "ddim", "lsa": {"preset": "off"}, "color": "none"},
        },
    }
    values["data"] |= {"upscale": UPSCALE, "rotate": False}
    for override in overrides:
        values = merge(values, parse_override(override))
    return build_config(TrainConfig, values)


@torch.no_grad()
def best_possible(folder: Path, pictures: list[torch.Tensor]) -> float:
    """PSNR of the photographs through the frozen VAE alone, in dB: no sample can be truer."""
    latents = load_network(folder).network.latents
    batch = torch.stack(pictures)
    decoded = to_unit(latents.decode(latents.encode_hr(to_signed(batch)))).clamp(0, 1)
    return sum(psnr(ours, hr).item() for ours, hr in zip(decoded, batch, strict=True)) / len(batch)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for the run")
    parser.add_argument(
        "--prediction", default="lr_anchored", choices=("lr_anchored", "epsilon", "v_prediction")
    )
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any setting")
    args = parser.parse_args()
    pictures = prepare(args.output)
    started = time.perf_counter()
    export = fit(make_config(args.output, args.prediction, args.steps, args.set))
    minutes = (time.perf_counter() - started) / 60
    rows = [json.loads(line) for line in (args.output / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if row["group"] == "train"]
    seen = next(row for row in reversed(rows) if row["group"] == "validation")
    sys.stdout.write(
        f"{args.prediction}, {args.steps} steps in {minutes:.1f} minutes\n"
        f"loss over the first {LOGGED} steps {losses[0]:.4f}, over the last {losses[-1]:.4f}: "
        f"{losses[0] / losses[-1]:.1f} times less\n"
        f"PSNR-Y: bicubic {seen['bicubic_psnr']:.2f} dB, samples {seen['psnr']:.2f} dB, "
        f"the VAE's own limit {best_possible(export, pictures):.2f} dB\n"
    )
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ClearSRError as error:
        sys.exit(f"error: {error}")
