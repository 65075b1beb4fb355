"""`clearsr data make-testset`: pairs to evaluate on, from any photographs, with a fixed seed."""

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path

from clearsr.cli.flags import add_config_files, add_config_flags, build, collect
from clearsr.cli.parser import UsageError, complain
from clearsr.cli.terminal import write_line
from clearsr.config.base import build_config
from clearsr.config.degradation import DegradationConfig
from clearsr.errors import ClearSRError

FLAGS = {"--preset": "preset"}


def add_arguments(parser: ArgumentParser) -> None:
    """Declare what `make-testset` takes beside what `check` takes too."""
    group = parser.add_argument_group("make-testset")
    group.add_argument("-o", "--output", type=Path, metavar="OUT", help="the folder of the test set")
    group.add_argument("--upscale", type=int, metavar="N", help="HR size over LR size (default: 4)")
    group.add_argument("--seed", type=int, metavar="N", help="of every draw (default: 0)")
    add_config_flags(group, FLAGS, DegradationConfig())
    add_config_files(group, "second.blur.probability=0.5")


def refuse_flags(args: Namespace) -> None:
    """With `check`, what belongs to `make-testset` is a mistake."""
    given = {"-o": args.output, "--upscale": args.upscale, "--seed": args.seed, "--preset": args.preset}
    for flag, value in (given | {"--set": args.set or None, "--config": args.config or None}).items():
        if value is not None:
            raise UsageError(f"{flag}: belongs to make-testset")


def run(args: Namespace) -> int:
    """Make the pairs; 1 if a photograph cannot be read."""
    if args.output is None:
        raise UsageError("make-testset: needs -o OUT, the folder of the test set")
    degradation = build(DegradationConfig, collect(args, FLAGS))

    from rich.progress import Progress

    from clearsr.evaluation.testset import TestsetConfig, make_testset

    chosen = {"upscale": args.upscale, "crop": args.crop, "seed": args.seed}
    values = {name: value for name, value in chosen.items() if value is not None}
    try:
        config = build_config(TestsetConfig, values | {"degradation": degradation})
    except ClearSRError as error:
        raise UsageError(f"make-testset: {error}") from None
    with Progress(transient=True, disable=args.quiet) as progress:
        task = progress.add_task("degrading", total=None)

        def on_image(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        made = make_testset(args.inputs, args.output, config, on_image)
    if args.json:
        report = {"output": str(args.output), "pairs": made.names, "left_out": made.left_out}
        write_line(json.dumps(report | {"failed": made.failed}, indent=2))
    else:
        write_line(f"{len(made.names)} pairs in {args.output}, settings in {args.output / 'manifest.json'}")
        for name in made.left_out:
            write_line(f"left out, smaller than {config.crop}x{config.crop}: {name}")
    for line in made.failed:
        complain(line)
    return 1 if made.failed else 0
