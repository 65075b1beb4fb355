"""What `clearsr analyze` and `clearsr calibrate` share: pictures, a model, settings and measures."""

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from clearsr.cli.flags import Overrides, add_config_flags, build, collect
from clearsr.cli.measuring import OWN_FLAGS, add_model_arguments, add_pair_arguments, find_pairs
from clearsr.cli.model import SAMPLING_FLAGS, embedded_defaults
from clearsr.cli.parser import UsageError
from clearsr.cli.terminal import write_line
from clearsr.config.analysis import AnalysisConfig
from clearsr.config.base import merge
from clearsr.config.sampling import SamplingConfig

if TYPE_CHECKING:
    from clearsr.paper.figures.figure_pairs import Pair

STUDY_FLAGS = {
    "--degradation": "analysis.pairs.degradation",
    "--side": "analysis.pairs.side",
    "--rows": "analysis.rows",
    "--measures": "analysis.evaluation.measures",
}
_SEED_FLAG = {flag: path for flag, path in SAMPLING_FLAGS.items() if flag not in OWN_FLAGS}


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
    overrides = collect(args, SAMPLING_FLAGS | flags)
    sampling = overrides.without("analysis")
    build(SamplingConfig, sampling)
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
    from clearsr.paper.figures.calibration import DEFAULT_STEPS

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
