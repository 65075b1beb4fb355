"""Pictures per second of `clearsr batch` against the number of workers, and the ratio to the first of them.

    python benchmarks/batch.py --workers 1 2 4 --pictures 64 --threads-per-worker 1

The rate is taken from the moment that every worker has done its first picture to the last picture, so that
starting Ray and loading models, which a long run does once, do not count; the whole time is shown beside it.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from clearsr.batch.run import run_batch
from clearsr.config.base import build_config
from clearsr.config.batch import BatchConfig, WorkConfig
from clearsr.config.sampling import SamplingConfig
from clearsr.files.upscale import Result
from clearsr.models.checkpoint import locate, read_description


def draw(folder: Path, number: int, side: int) -> None:
    """Write smooth pictures with some grain."""
    generator = np.random.default_rng(0)
    for index in range(number):
        coarse = Image.fromarray(generator.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), dtype=float)
        picture = (smooth + generator.normal(0, 8, smooth.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(picture).save(folder / f"{index:04}.png")


def measure(pictures: Path, model: str, config: BatchConfig) -> dict[str, Any]:
    """One run over the pictures."""
    sampling = build_config(SamplingConfig, read_description(locate(model))["sampling"])
    work = WorkConfig(model=model, sampling=sampling)
    moments: list[float] = []
    first: dict[str | None, int] = {}

    def on_row(row: Result) -> None:
        if row.status != "ok":
            raise SystemExit(row.error)
        first.setdefault(row.worker, len(moments))
        moments.append(time.monotonic())

    start = time.monotonic()
    with tempfile.TemporaryDirectory() as output:
        run_batch([str(pictures)], output, work, config, on_row=on_row)
    warm = max(first.values())
    if len(first) != config.workers or warm > len(moments) // 2:
        raise SystemExit("not all workers took part in half of the work; give more --pictures")
    rate = (len(moments) - 1 - warm) / (moments[-1] - moments[warm])
    return {"workers": len(first), "images_per_second": rate, "seconds_in_all": time.monotonic() - start}


def main() -> None:
    """Measure each number of workers; `--json` writes what is printed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--threads-per-worker", type=int, default=1)
    parser.add_argument("--engine", choices=("ray", "local"), default="ray")
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--side", type=int, default=128, help="of the inputs, in pixels")
    parser.add_argument("--model", default="compact")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        draw(Path(folder), args.pictures, args.side)
        for workers in args.workers:
            config = BatchConfig(
                engine=args.engine, workers=workers, threads_per_worker=args.threads_per_worker
            )
            row = measure(Path(folder), args.model, config)
            rows.append({**row, "ratio": row["images_per_second"] / (rows or [row])[0]["images_per_second"]})
            print(
                f"{workers} workers of {args.threads_per_worker} threads: "
                f"{rows[-1]['images_per_second']:.2f} images/s, {rows[-1]['ratio']:.2f}x the first; "
                f"{row['seconds_in_all']:.0f} s in all",
                flush=True,
            )
    if args.json is not None:
        settings = {key: value for key, value in vars(args).items() if key not in ("json", "workers")}
        machine = {"machine": platform.processor() or platform.machine(), "cores": os.cpu_count()}
        args.json.write_text(json.dumps({**machine, **settings, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
