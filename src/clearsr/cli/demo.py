"""`clearsr demo`: a bundled photograph, degraded, upscaled, and measured against the original."""

import json
from argparse import ArgumentParser, Namespace
from dataclasses import asdict
from pathlib import Path

_EPILOG = """\
photographs: astronaut, chelsea (a cat), coffee, rocket; all in the public domain or under CC0.

examples:
  clearsr demo
  clearsr demo --photo coffee -o demo/coffee
"""


def add_arguments(parser: ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.epilog = _EPILOG
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("demo"),
        metavar="FOLDER",
        help="for the pictures (default: demo)",
    )
    parser.add_argument(
        "--photo", default="astronaut", metavar="NAME|FILE", help="what to upscale (default: astronaut)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of every draw (default: 0)")
    parser.add_argument("--model", default="compact", help="compact (in the package), a folder or a hub id")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, xpu, mps (default: auto)")
    parser.add_argument("--json", action="store_true", help="the figures as JSON")


def run(args: Namespace) -> int:
    """Write the pictures and print the figures."""
    from rich.console import Console
    from rich.table import Table

    from clearsr.cli.terminal import busy, write_line
    from clearsr.evaluation.demo import PHOTOGRAPHS, load_photograph, run_demo
    from clearsr.pipeline.pipeline import ClearSRPipeline

    load_photograph(args.photo)  # refuse before weights are loaded
    with busy(f"upscaling {args.photo}", args.quiet):
        pipeline = ClearSRPipeline.from_pretrained(args.model, device=args.device)
        demo = run_demo(pipeline, args.output, args.photo, args.seed)
    if args.json:
        print(json.dumps({"comparison": str(demo.comparison), "scores": [asdict(s) for s in demo.scores]}))
        return 0
    table = Table("", "PSNR-Y (dB)", "SSIM-Y", "sharpness", "seconds", caption="sharpness 1: the original's")
    for score in demo.scores:
        numbers = (f"{score.psnr:.2f}", f"{score.ssim:.4f}", f"{score.sharpness:.2f}", f"{score.seconds:.2f}")
        table.add_row(score.name, *numbers)
    Console().print(table)
    if args.photo in PHOTOGRAPHS:
        write_line(f"photograph: {PHOTOGRAPHS[args.photo]}")
    write_line(f"pictures: {demo.comparison}")
    return 0
