"""What the commands that measure share: flags for test sets and models, and what they lead to."""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from clearsr.cli.flags import Overrides, add_config_files, add_config_flags, build, collect
from clearsr.cli.model import SAMPLING_FLAGS, add_model_flags, embedded_defaults
from clearsr.cli.parser import UsageError
from clearsr.config.evaluation import EvaluationConfig
from clearsr.config.sampling import SamplingConfig

if TYPE_CHECKING:
    from clearsr.evaluation.pairs import ImagePair

Number = TypeVar("Number", int, float)
OWN_FLAGS = {flag: path for flag, path in SAMPLING_FLAGS.items() if flag != "--seed"}
EVALUATION_FLAGS = {
    "--measures": "measures",
    "--crop-border": "crop_border",
    "--confidence": "confidence",
}


class Measuring(NamedTuple):
    """What the user asked for, checked; `sampling` is still to be laid over the model's own settings."""

    sampling: Overrides
    evaluation: EvaluationConfig
    seeds: list[int]


def add_pair_arguments(parser: ArgumentParser) -> None:
    """The flags that name LR and HR images."""
    parser.add_argument("--testset", type=Path, metavar="DIR", help="a folder with test_LR and test_HR")
    parser.add_argument("--lr", type=Path, metavar="DIR", help="LR images to upscale")
    parser.add_argument("--hr", type=Path, metavar="DIR", help="the originals")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N pictures")


def add_model_arguments(parser: ArgumentParser, with_seeds: bool = True) -> None:
    """The flags that name the model and its settings."""
    model = parser.add_argument_group("model")
    add_model_flags(model)
    if with_seeds:
        model.add_argument("--seeds", default="0", metavar="N,N,...", help="run with each (default: 0)")
    settings = parser.add_argument_group("settings of the model")
    add_config_flags(settings, OWN_FLAGS, embedded_defaults())
    add_config_files(settings, "lsa.ela_end=0.3")


def collect_measuring(args: Namespace) -> Measuring:
    """The settings of a command that upscales and measures.

    Raises:
        UsageError: a bad value; it is refused before anything heavy is imported.
    """
    given = collect(args, OWN_FLAGS | EVALUATION_FLAGS)
    of_evaluation = set(EVALUATION_FLAGS.values())
    own = {key: value for key, value in given.values.items() if key not in of_evaluation}
    measured = {key: value for key, value in given.values.items() if key in of_evaluation}
    sampling = Overrides(own, given.origins)
    build(SamplingConfig, sampling)
    evaluation = build(EvaluationConfig, Overrides(measured, given.origins))
    return Measuring(sampling, evaluation, numbers_of(args.seeds, "--seeds", int))


def find_pairs(args: Namespace, sr: Path | None = None) -> "list[ImagePair]":
    """The pictures that the flags name."""
    from clearsr.evaluation.pairs import find_testset, match_folders

    lr, hr = args.lr, args.hr
    if args.testset is not None:
        lr, hr = find_testset(args.testset)
    pairs = match_folders({"lr": lr, "sr": sr, "hr": hr})
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
