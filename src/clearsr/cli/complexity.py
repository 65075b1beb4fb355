"""`clearsr complexity`: the paper's Table 5 with our models beside the published rows."""

import logging
from argparse import ArgumentParser, Namespace
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from clearsr.cli.model import add_model_flags, pipeline_options
from clearsr.cli.parser import UsageError, refuse_folder
from clearsr.cli.terminal import busy, write_line

if TYPE_CHECKING:
    from clearsr.config.sampling import SamplingConfig
    from clearsr.paper.tables.table_5_complexity import Complexity
    from clearsr.pipeline.pipeline import ClearSRPipeline

logger = logging.getLogger(__name__)

FORMATS = ("markdown", "latex", "html")
_EPILOG = """\
MODEL is sd21 (the paper's network, counted without weights), compact, a folder or a hub id.
MACs are counted twice: convolutions and linear layers alone, as the published numbers are, and with
attention; the latter also as this implementation runs, where both halves of guidance share what they can.
Time is measured with --time alone, without guidance as in the paper; that of sd21 with random weights, and
on an accelerator only.

examples:
  clearsr complexity
  clearsr complexity compact --time --device cpu
  clearsr complexity sd21 runs/sd21/export --time --format latex -o table5.tex
"""


def add_arguments(parser: ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.epilog = _EPILOG
    parser.add_argument("models", nargs="*", metavar="MODEL", help="what to count (default: sd21 compact)")
    parser.add_argument(
        "--size", type=int, default=512, metavar="N", help="sides of the output (default: 512)"
    )
    parser.add_argument("--steps", type=int, metavar="N", help="unset: each model's own; sd21: 50")
    parser.add_argument("--time", action="store_true", help="measure the time of an image on this machine")
    parser.add_argument("--format", choices=FORMATS, default="markdown", help="(default: markdown)")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write here, not to stdout")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers as JSON")
    add_model_flags(parser, with_model=False)


def run(args: Namespace) -> int:
    """Count, measure if asked to, and print."""
    if not 32 <= args.size <= 8192:
        raise UsageError(f"--size {args.size}: must be from 32 to 8192")
    if args.steps is not None and not 0 <= args.steps <= 1000:
        raise UsageError(f"--steps {args.steps}: must be from 0 to 1000")
    for flag, path in (("-o", args.output), ("--json", args.json)):
        refuse_folder(flag, path)

    with busy("starting", args.quiet):
        from clearsr.atomic import write_text
        from clearsr.evaluation.table import render_all
        from clearsr.paper.figures.plots import write_numbers
        from clearsr.paper.tables.table_5_complexity import (
            DEFAULT_SUBJECTS,
            complexity_table,
            describe,
            published,
        )

    ours: list[Complexity] = []
    machine = ""
    for subject in args.models or DEFAULT_SUBJECTS:
        with busy(f"counting {subject}", args.quiet):
            counted, sampling = describe(subject, args.size, args.steps)
        if args.time:
            with busy(f"timing {subject}", args.quiet):
                counted, timed_on = _timed(args, subject, counted, sampling)
            machine = timed_on or machine
        ours.append(counted)
    text = render_all([complexity_table(ours, args.size, machine)], args.format)
    if args.output is None:
        write_line(text.rstrip("\n"))
    else:
        write_text(args.output, text)
    if args.json is not None:
        columns = {"published": [asdict(c) for c in published()], "ours": [asdict(c) for c in ours]}
        write_numbers({"size": args.size, "timed_on": machine or None, **columns}, args.json)
    return 0


def _timed(
    args: Namespace, subject: str, counted: "Complexity", sampling: "SamplingConfig"
) -> "tuple[Complexity, str]":
    """The column with its time, and what that was measured on."""
    from clearsr.hardware import choose_device, choose_precision
    from clearsr.paper.complexity.sd21 import random_network
    from clearsr.paper.tables.table_5_complexity import PRESET, time_image
    from clearsr.pipeline.pipeline import ClearSRPipeline

    device = choose_device(args.device)
    if subject != PRESET:
        pipeline = ClearSRPipeline.from_pretrained(subject, **pipeline_options(args))
    elif device.type == "cpu":
        logger.warning("%s is not timed on a CPU, where an image of it takes minutes", PRESET)
        return counted, ""
    else:  # the time does not depend on what the weights are
        network = random_network(device, choose_precision(args.precision, device))
        pipeline = ClearSRPipeline(network, sampling, str(device), args.precision)
    seconds = time_image(pipeline, sampling, args.size)
    return counted.timed(seconds), _machine(pipeline)


def _machine(pipeline: "ClearSRPipeline") -> str:
    """The device and precision that a time belongs to."""
    from clearsr.paper.complexity.timing import describe_machine

    found = describe_machine(pipeline.device)
    precision = str(pipeline.precision).removeprefix("torch.")
    if "device" in found:
        return f"{found['device']}, {precision}"
    return f"{found['processor']}, {found['threads']} threads, {precision}"
