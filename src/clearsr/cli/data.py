"""`clearsr data check`: look a set of images over before training on it, and cut it into shards of crops.

`clearsr data make-testset` makes pairs to evaluate on, from any photographs, with a fixed seed.
"""

import json
import logging
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from clearsr.cli.flags import Overrides, add_config_files, add_config_flags, build, collect
from clearsr.cli.parser import UsageError, complain
from clearsr.cli.terminal import write_line
from clearsr.config.degradation import DegradationConfig
from clearsr.errors import ClearSRError

if TYPE_CHECKING:
    from clearsr.data.check import DataReport

logger = logging.getLogger(__name__)

_LISTED = 20
_TESTSET_FLAGS = {"--preset": "preset"}
_EPILOG = """\
Every image is decoded whole. The exit code is 1 if any cannot be, or if a shard, a link or a line of a list
leads to none. (Damage inside a JPEG that its decoder covers up cannot be seen.) Images are the same if their
pixels are.
An INPUT is an image, a folder (recursive), a .txt list with a path per line, or a .tar shard.

--shards cuts every image that is readable, large enough and not there twice into crops of N pixels, as PNG in
tar files that `data.train` takes as they are. With N above the crop_size of the training there is room for
random places: 640 for crops of 512.

make-testset writes OUT/test_HR, OUT/test_LR and OUT/manifest.json, for `clearsr evaluate --testset OUT`: each
photograph (or its central --crop N square, or --crops of them at random places) and a degraded version.
A second run gives the same bytes. --like MANIFEST makes the pairs of such a file again, by its settings.

examples:
  clearsr data check photographs/
  clearsr data check photographs/ more/ --shards shards/ --crop 640
  clearsr data make-testset photographs/ -o testset --crop 512 --preset light --seed 0
  clearsr data make-testset DIV2K_valid_HR/ -o DIV2K-Val --crop 512 --crops 30 --preset full
  clearsr data make-testset DIV2K_valid_HR/ -o again --like DIV2K-Val/manifest.json
"""


def add_arguments(parser: ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.epilog = _EPILOG
    parser.add_argument("action", choices=("check", "make-testset"), help="what to do")
    parser.add_argument(
        "inputs", nargs="+", type=Path, metavar="INPUT", help="images, folders, lists, shards"
    )
    parser.add_argument("--json", action="store_true", help="the report as JSON on stdout")
    parser.add_argument(
        "--crop",
        type=int,
        metavar="N",
        help="check: name the images with a side below N pixels; make-testset: take the central square of N",
    )
    check = parser.add_argument_group("check")
    check.add_argument("--shards", type=Path, metavar="OUT", help="write crops of --crop N pixels here")
    _add_testset_arguments(parser)


def run(args: Namespace) -> int:
    """Report, or make the pairs; 1 if an image cannot be read."""
    if args.action == "make-testset":
        if args.shards is not None:
            raise UsageError("--shards: belongs to check")
        return _make_testset(args)
    _refuse_testset_flags(args)
    if args.crop is not None and args.crop < 1:
        raise UsageError(f"--crop {args.crop}: must be 1 or more")
    if args.shards is not None and args.crop is None:
        raise UsageError("--shards: needs --crop N, the side of the crops in pixels")

    from rich.progress import Progress

    from clearsr.data.check import add_listing, check_images
    from clearsr.data.shards import ShardWriter
    from clearsr.data.sources import list_items, refuse_inside

    if args.shards is not None:
        refuse_inside("--shards", args.shards, args.inputs, "the input")
    problems: list[str] = []
    items = list_items(args.inputs, problems)
    crops = None
    with Progress(transient=True, disable=args.quiet) as progress:
        task = progress.add_task("decoding", total=len(items))

        def on_image(done: int, _: int) -> None:
            progress.update(task, completed=done)

        if args.shards is None:
            report = check_images(items, args.crop, on_image)
        else:
            with ShardWriter(args.shards, args.crop) as writer:
                report = check_images(items, args.crop, on_image, writer.add)
            crops = writer.crops
            if not crops:
                raise ClearSRError(f"--crop {args.crop}: no photograph is as large; nothing was written")
    add_listing(report, args.inputs, items, problems)
    if args.json:
        values = report.as_dict() | ({} if crops is None else {"crops": crops})
        write_line(json.dumps(values, indent=2))
    else:
        for line in _lines(report, args.crop):
            write_line(line)
        if crops is not None:
            write_line(f"{crops} crops of {args.crop} pixels in {args.shards}")
    return 1 if report.unreadable else 0


def _lines(report: "DataReport", crop: int | None) -> list[str]:
    """The report for people."""
    readable = len(report.sizes)
    lines = [
        f"{report.images} images, {readable} readable: {report.bytes / 1e6:.1f} MB, "
        f"{report.pixels / 1e6:.1f} megapixels"
    ]
    if sides := report.shorter_sides():
        lines.append(f"shorter side: {sides[0]} to {sides[2]} pixels, median {sides[1]}")
    spare = sum(len(names) - 1 for names in report.duplicates)
    if spare:
        lines.append(f"{spare} duplicates:")
        lines += _listed([" = ".join(names) for names in report.duplicates])
    if report.small:
        lines.append(f"{len(report.small)} with a side below {crop} pixels:")
        lines += _listed(report.small)
    if report.other:
        counts = ", ".join(f"{count} {suffix}" for suffix, count in sorted(report.other.items()))
        lines.append(f"{sum(report.other.values())} files of other kinds, not looked at: {counts}")
    if report.unreadable:
        lines.append(f"{len(report.unreadable)} cannot be read:")
        lines += [f"  {line}" for line in report.unreadable]  # all: each needs a hand
    return lines


def _listed(lines: list[str]) -> list[str]:
    more = len(lines) - _LISTED
    shown = [f"  {line}" for line in lines[:_LISTED]]
    return shown if more <= 0 else [*shown, f"  and {more} more (--json lists all)"]


def _add_testset_arguments(parser: ArgumentParser) -> None:
    """Declare what `make-testset` takes beside what `check` takes too."""
    group = parser.add_argument_group("make-testset")
    group.add_argument("-o", "--output", type=Path, metavar="OUT", help="the folder of the test set")
    group.add_argument(
        "--crops", type=int, metavar="N", help="squares at random places of each, not the central"
    )
    group.add_argument(
        "--like", type=Path, metavar="FILE", help="the pairs and settings of this manifest.json"
    )
    group.add_argument("--upscale", type=int, metavar="N", help="HR size over LR size (default: 4)")
    group.add_argument("--seed", type=int, metavar="N", help="of every draw (default: 0)")
    add_config_flags(group, _TESTSET_FLAGS, DegradationConfig())
    add_config_files(group, "second.blur.probability=0.5")


def _refuse_testset_flags(args: Namespace) -> None:
    """With `check`, what belongs to `make-testset` is a mistake."""
    for flag, value in ({"-o": args.output, "--like": args.like} | _of_a_testset(args)).items():
        if value is not None:
            raise UsageError(f"{flag}: belongs to make-testset")


def _of_a_testset(args: Namespace) -> dict[str, object]:
    """What says how pairs are made, without the crop, which `check` knows as well."""
    given = {"--crops": args.crops, "--upscale": args.upscale, "--seed": args.seed, "--preset": args.preset}
    return given | {"--set": args.set or None, "--config": args.config or None}


def _make_testset(args: Namespace) -> int:
    """Make the pairs; 1 if a photograph cannot be read."""
    if args.output is None:
        raise UsageError("make-testset: needs -o OUT, the folder of the test set")
    if args.like is not None:
        for flag, value in ({"--crop": args.crop} | _of_a_testset(args)).items():
            if value is not None:
                raise UsageError(f"{flag}: {args.like} says it, which --like names; leave it out")
    degradation = build(DegradationConfig, collect(args, _TESTSET_FLAGS))

    from rich.progress import Progress

    from clearsr.evaluation.testset import TestsetConfig, make_testset, read_manifest

    chosen = {"upscale": args.upscale, "crop": args.crop, "crops": args.crops, "seed": args.seed}
    values = {name: value for name, value in chosen.items() if value is not None}
    given = Overrides(values | {"degradation": degradation}, {name: f"--{name}" for name in values})
    config, listed = build(TestsetConfig, given), None
    if args.like is not None:
        config, listed = read_manifest(args.like)
    with Progress(transient=True, disable=args.quiet) as progress:
        task = progress.add_task("degrading", total=None)

        def on_image(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        made = make_testset(args.inputs, args.output, config, on_image, listed)
    if args.json:
        report = {"output": str(args.output), "pairs": made.names, "left_out": made.left_out}
        write_line(json.dumps(report | {"failed": made.failed, "different": made.different}, indent=2))
    else:
        write_line(f"{len(made.names)} pairs in {args.output}, settings in {args.output / 'manifest.json'}")
        for name in made.left_out:
            write_line(f"left out, smaller than {config.crop}x{config.crop}: {name}")
    if made.different:
        logger.warning(
            "%d of %d pairs are other files than %s says, such as %s: made of other photographs, or by other "
            "versions of libraries", len(made.different), len(made.names), args.like, made.different[0],
        )  # fmt: skip
    for line in made.failed:
        complain(line)
    return 1 if made.failed else 0
