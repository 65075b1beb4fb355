"""The table of the model card: bicubic and our settings on photographs degraded by our own pipeline.

    python benchmarks/model_card.py PHOTOGRAPHS... --preset light --pictures OUT

PHOTOGRAPHS are files or folders of originals; each is cut to its central 512x512 (or what there is), degraded
with a generator seeded by its name, and upscaled four times.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from clearsr.config.degradation import DegradationConfig
from clearsr.degradation import crop_to_multiple, degrade
from clearsr.evaluation.evaluate import METRICS, Pair, Scores, evaluate
from clearsr.image import ImageData, list_images, read_image, resize, write_image
from clearsr.pipeline import ClearSRPipeline
from clearsr.seeds import make_generator

SETTINGS = {
    "E' alone (--steps 0)": {"steps": 0},
    "--lsa off": {"lsa": {"preset": "off"}},
    "--lsa clearsr": {"lsa": {"preset": "clearsr"}},
    "--lsa fidelity": {"lsa": {"preset": "fidelity"}},
}


def make_pair(path: Path, preset: str, side: int) -> Pair:
    """A central crop and its degraded version; a file that has an LR of its own is not looked for."""
    hr = read_image(path).color
    height, width = (min(side, size) for size in hr.shape[-2:])
    top, left = (hr.shape[-2] - height) // 2, (hr.shape[-1] - width) // 2
    hr = crop_to_multiple(hr[:, top : top + height, left : left + width], 4)
    lr = degrade(hr, DegradationConfig(preset=preset), make_generator("model card", preset, path.stem), 4)
    return Pair(path.stem, ImageData(lr), hr)


def bicubic(image: ImageData) -> ImageData:
    """Antialiased bicubic, four times."""
    return ImageData(resize(image.color[None], (4 * image.height, 4 * image.width))[0])


def with_settings(pipeline: ClearSRPipeline, overrides: dict) -> Callable[[ImageData], ImageData]:
    """The pipeline under fixed settings."""
    config = pipeline.configure(**overrides)
    return lambda image: pipeline.upscale([image], config)[0]


def table(scores: Scores) -> str:
    """Markdown: a row per method."""
    header = "| | PSNR-Y (dB) | SSIM-Y | NIQE (ours) | sharpness |\n|---|---|---|---|---|\n"
    formats = {"psnr": ".2f", "ssim": ".4f", "niqe": ".2f", "sharpness": ".2f"}
    rows = [
        f"| {method} | " + " | ".join(format(means[m], formats[m]) for m in METRICS) + " |"
        for method, means in scores.means().items()
    ]
    return header + "\n".join(rows)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photographs", nargs="+", type=Path)
    parser.add_argument("--model", default="compact")
    parser.add_argument("--preset", default="light", choices=("light", "full", "bicubic", "camera"))
    parser.add_argument("--side", type=int, default=512, help="side of the central crop")
    parser.add_argument("--pictures", type=Path, help="folder for the pictures")
    parser.add_argument("--json", type=Path, help="file for the per-image rows")
    parser.add_argument(
        "--set", action="append", default=[], help="JSON mapping of settings tried as an extra row"
    )
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    pipeline = ClearSRPipeline.from_pretrained(args.model)
    methods = {"bicubic": bicubic}
    settings = dict(SETTINGS) if not args.set else {text: json.loads(text) for text in args.set}
    methods |= {name: with_settings(pipeline, overrides) for name, overrides in settings.items()}

    def keep(method: str, name: str, picture: torch.Tensor) -> None:
        if args.pictures:
            args.pictures.mkdir(parents=True, exist_ok=True)
            label = "".join(c if c.isalnum() else "_" for c in method)
            write_image(ImageData(picture), args.pictures / f"{name}-{label}.png")

    started = time.perf_counter()
    pairs = [make_pair(file, args.preset, args.side) for file, _ in list_images(args.photographs)]
    scores = evaluate(pairs, methods, keep)
    sys.stdout.write(f"{len(pairs)} images, degradation {args.preset}\n\n{table(scores)}\n")
    sys.stderr.write(f"{time.perf_counter() - started:.0f} s\n")
    if args.json:
        args.json.write_text(json.dumps(scores.rows, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
