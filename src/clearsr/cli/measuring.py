"""What the commands that measure or analyze share: flags for test sets and models, and what they lead to."""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from clearsr.cli.flags import Overrides, add_config_files, add_config_flags, build, collect
from clearsr.cli.model import add_model_flags, embedded_defaults
from clearsr.cli.parser import UsageError
from clearsr.cli.terminal import write_line
from clearsr.config.base import flat, merge, parse_override
from clearsr.config.evaluation import AnalysisConfig, EvaluationConfig
from clearsr.config.sampling import SAMPLING_FLAGS, SamplingConfig
from clearsr.errors import ClearSRError

if TYPE_CHECKING:
    from clearsr.evaluation.pairs import ImagePair
    from clearsr.paper.figures.figure_pairs import Pair

Number = TypeVar("Number", int, float)
# A size has no place here: results are as large as the originals.
OWN_FLAGS = {
    flag: path for flag, path in SAMPLING_FLAGS.items() if flag != "--seed" and not path.startswith("size.")
}
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
    _check_sampling(sampling)
    evaluation = build(EvaluationConfig, Overrides(measured, given.origins))
    return Measuring(sampling, evaluation, numbers_of(args.seeds, "--seeds", int))


def _check_sampling(given: Overrides) -> None:
    if "size" in given.values:
        raise UsageError(f"{given.origins['size']}: results are as large as the originals here; leave it out")
    build(SamplingConfig, given)


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
    from clearsr.paper.tables.published import dataset_of

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


def with_also(own: Overrides, text: str) -> Overrides:
    """The user's settings with those of an `--also` over them.

    Raises:
        UsageError: it is not KEY=VALUE, with commas between several.
    """
    changed: dict[str, Any] = {}
    try:
        for part in text.split(","):
            changed = merge(changed, parse_override(part))
    except ClearSRError as error:
        raise UsageError(str(error).replace("--set", "--also", 1)) from None
    origins = {path: f"--also {path}" for path in flat(changed)}
    return Overrides(merge(own.values, changed), own.origins | origins)


STUDY_FLAGS = {
    "--degradation": "analysis.pairs.degradation",
    "--side": "analysis.pairs.side",
    "--rows": "analysis.rows",
    "--measures": "analysis.evaluation.measures",
}
_SEED_FLAG = {"--seed": "seed"}


class Settings(NamedTuple):
    """What the user asked for, checked; `sampling` is still to be laid over the model's own settings."""

    sampling: Overrides
    analysis: AnalysisConfig

    @property
    def gives_strengths(self) -> bool:
        """Whether the user chose how strongly LSA acts."""
        return any(self.sampling.given(f"lsa.{name}") for name in ("preset", "alpha", "beta"))

    def over_model(self, model: str, changes: Mapping[str, Any] | None = None) -> SamplingConfig:
        """The settings that the model brings, `changes` over them, and over both the user's."""
        from clearsr.models.checkpoint import locate, read_description

        own = read_description(locate(model))["sampling"]
        return build(SamplingConfig, self.sampling, merge(own, changes or {}))


def add_study_arguments(parser: ArgumentParser, flags: dict[str, str]) -> None:
    """Declare pictures, model and settings; `flags` are those of `AnalysisConfig` that the command has."""
    parser.add_argument(
        "photographs", nargs="*", type=Path, metavar="HR", help="photographs to degrade, files and folders"
    )
    add_pair_arguments(parser)
    add_config_flags(parser, flags, AnalysisConfig(), "analysis")
    add_model_arguments(parser, with_seeds=False)
    add_config_flags(parser, _SEED_FLAG, embedded_defaults())


def collect_study(args: Namespace, flags: dict[str, str]) -> Settings:
    """The settings that the user gave.

    Raises:
        UsageError: a bad value; it is refused before anything heavy is imported.
    """
    overrides = collect(args, OWN_FLAGS | _SEED_FLAG | flags)
    sampling = overrides.without("analysis")
    _check_sampling(sampling)
    stored = [flag for flag in ("testset", "lr", "hr") if getattr(args, flag) is not None]
    if bool(args.photographs) == bool(stored):
        raise UsageError("give photographs to degrade, or pairs: --testset DIR, or --lr DIR and --hr DIR")
    if stored in (["lr"], ["hr"]):
        raise UsageError(f"--{stored[0]}: pairs are needed; give --lr and --hr")
    return Settings(sampling, build(AnalysisConfig, overrides.section("analysis")))


def drawn_out(args: Namespace, settings: Settings, sampling: SamplingConfig) -> SamplingConfig:
    """The run to look into: the model's own, in more steps where it takes too few to have a course.

    What the user gave as --steps stays.
    """
    from clearsr.paper.figures.figure_5_trajectory import DEFAULT_STEPS

    if settings.sampling.given("steps") or sampling.steps >= DEFAULT_STEPS:
        return sampling
    if not args.quiet:
        write_line(f"the model takes {sampling.steps} steps by itself; looking at {DEFAULT_STEPS}")
    return sampling.model_copy(update={"steps": DEFAULT_STEPS})


def read_pairs(
    args: Namespace, config: AnalysisConfig, sampling: SamplingConfig
) -> "tuple[int, Iterator[Pair]]":
    """How many pairs there are, and the pairs, read one by one.

    Raises:
        UsageError: the upscale factor is none that pairs can have.
        ClearSRError: a file or folder is missing.
    """
    from clearsr.image import list_images
    from clearsr.paper.figures.figure_pairs import degraded_pairs, stored_pairs

    upscale = round(sampling.upscale)
    if upscale != sampling.upscale:
        raise UsageError(f"--upscale {sampling.upscale:g}: must be a whole number here")
    if not args.photographs:
        stored = find_pairs(args)
        if stored[0].hr is None:
            raise UsageError(f"--testset {args.testset}: has no HR images")
        return len(stored), stored_pairs(stored, config.pairs, upscale)
    if args.limit is not None and args.limit < 1:
        raise UsageError(f"--limit {args.limit}: must be 1 or more")
    count = len(list_images(args.photographs)[: args.limit])
    return count, degraded_pairs(args.photographs, config.pairs, upscale, sampling.seed, args.limit)
