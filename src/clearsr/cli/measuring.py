"""What the commands that measure share: flags for test sets and models, and what they lead to."""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from clearsr.cli.flags import Overrides, add_config_files, add_config_flags
from clearsr.cli.parser import UsageError
from clearsr.cli.terminal import busy
from clearsr.cli.upscale import (
    PRECISIONS,
    SAMPLING_FLAGS,
    embedded_defaults,
    pipeline_options,
    resolve_sampling,
)
from clearsr.config.sampling import SamplingConfig

if TYPE_CHECKING:
    from clearsr.evaluation.pairs import ImagePair
    from clearsr.pipeline import ClearSRPipeline

Number = TypeVar("Number", int, float)
OWN_FLAGS = {flag: path for flag, path in SAMPLING_FLAGS.items() if flag != "--seed"}


def add_pair_arguments(parser: ArgumentParser) -> None:
    """The flags that name LR and HR images."""
    parser.add_argument("--testset", type=Path, metavar="DIR", help="a folder with test_LR and test_HR")
    parser.add_argument("--lr", type=Path, metavar="DIR", help="LR images to upscale")
    parser.add_argument("--hr", type=Path, metavar="DIR", help="the originals")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N pictures")


def add_model_arguments(parser: ArgumentParser, with_seeds: bool = True) -> None:
    """The flags that name the model and its settings."""
    model = parser.add_argument_group("model")
    model.add_argument("--model", default="compact", help="compact (in the package), a folder or a hub id")
    model.add_argument("--base-model", metavar="DIR|ID", help="use this base, not the one the model names")
    model.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: auto)")
    model.add_argument("--precision", default="auto", choices=PRECISIONS, help="of the network")
    if with_seeds:
        model.add_argument("--seeds", default="0", metavar="N,N,...", help="run with each (default: 0)")
    settings = parser.add_argument_group("settings of the model")
    add_config_flags(settings, OWN_FLAGS, embedded_defaults())
    add_config_files(settings, "lsa.ela_end=0.3")


def find_pairs(args: Namespace, sr: Path | None = None) -> "list[ImagePair]":
    """The pictures that the flags name."""
    from clearsr.evaluation.pairs import find_testset, match_folders

    lr, hr = args.lr, args.hr
    if args.testset is not None:
        lr, hr = find_testset(args.testset)
    pairs = match_folders({"lr": None if sr is not None else lr, "sr": sr, "hr": hr})
    if args.limit is not None and args.limit < 1:
        raise UsageError(f"--limit {args.limit}: must be 1 or more")
    return pairs[: args.limit]


def dataset_name(args: Namespace) -> str:
    """What the set of pictures is called: a benchmark of the paper, or its folder."""
    from clearsr.evaluation.published import dataset_of

    folder = (args.testset or args.hr or args.lr or args.sr).resolve()
    if args.testset is None and folder.name.lower() in ("test_hr", "test_lr", "hr", "lr", "gt", "lq"):
        folder = folder.parent
    return dataset_of(folder.name) or folder.name


def load_pipeline(args: Namespace, own: Overrides) -> "tuple[ClearSRPipeline, SamplingConfig]":
    """The pipeline that the flags name, and its settings."""
    from clearsr.pipeline import ClearSRPipeline

    sampling = resolve_sampling(args, own)
    with busy(f"loading {args.model}", args.quiet):
        pipeline = ClearSRPipeline.from_pretrained(args.model, **pipeline_options(args))
    return pipeline, sampling


def numbers_of(text: str, flag: str, kind: Callable[[str], Number]) -> list[Number]:
    """A comma-separated list of different numbers.

    Raises:
        UsageError: it is none.
    """
    try:
        numbers = [kind(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or len(set(numbers)) < len(numbers):
        raise UsageError(f"{flag} {text}: expected different numbers with commas between, such as 0,1,2")
    return numbers
