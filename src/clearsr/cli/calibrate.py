"""`clearsr calibrate`: the split points of Latent Space Adjustment for a model, by the paper's rule."""

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clearsr.cli.measuring import (
    STUDY_FLAGS,
    Settings,
    add_study_arguments,
    collect_study,
    drawn_out,
    read_pairs,
)
from clearsr.cli.model import load_pipeline
from clearsr.cli.parser import UsageError
from clearsr.cli.terminal import busy, counting, write_line
from clearsr.config.sampling import SamplingConfig
from clearsr.errors import ClearSRError

if TYPE_CHECKING:
    from clearsr.paper.figures.figure_5_trajectory import SplitPoints, TrajectoryStudy

_EPILOG = """\
The rule (paper, section 3.3): sample a folder of images without LSA, decode what each step predicts, and draw
the mean NIQE over the steps. ELA acts up to the step where it is highest, LLA from the step on where it falls
below the HR images' own. NIQE is our own, built in; it needs pictures of 96x96 pixels at the least.

The split points are shares of the run, so they hold for other numbers of steps too. A run of few steps has no
parts to find: a model that takes fewer than 20 is calibrated at 20, unless --steps says otherwise. What the
rule does not find (a curve that never falls below the HR images') is said and left as it was.

A folder given by --model is calibrated in place; any other model is copied to -o first.

examples:
  clearsr calibrate photographs/ --model runs/version2-3-clearsr/export
  clearsr calibrate photographs/ -o calibrated/ --steps 50 --limit 100
  clearsr calibrate photographs/ --dry-run --plot figures/
"""


def add_arguments(parser: ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.epilog = _EPILOG
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", help="keep the calibrated model here")
    parser.add_argument(
        "--plot", type=Path, metavar="DIR", help="folder for the figure (default: the model's)"
    )
    parser.add_argument("--dry-run", action="store_true", help="find the points, and change no model")
    add_study_arguments(parser, STUDY_FLAGS)


def run(args: Namespace) -> int:
    """Measure, find, show, keep."""
    settings = collect_study(args, STUDY_FLAGS)
    if settings.gives_strengths:
        raise UsageError("--lsa, --alpha, --beta: calibration samples without LSA; leave them out")
    if "niqe" not in settings.analysis.evaluation.measures:
        raise UsageError("--measures: the rule needs niqe among them")
    target = _target(args)

    with busy("starting", args.quiet):
        from clearsr.paper.figures.figure_5_trajectory import split_points
        from clearsr.paper.figures.plots import require_matplotlib

    plot = args.plot or target
    if plot is not None:
        require_matplotlib()
    sampling = drawn_out(
        args, settings, settings.over_model(args.model, {"lsa": {"alpha": 0.0, "beta": 0.0}})
    )
    study = _study(args, settings, sampling, keep=plot is not None)
    points = split_points(study.mean("niqe"), study.of_hr("niqe"))
    _say(study, points)
    if plot is not None:
        from clearsr.paper.figures.drawing import draw_trajectory

        for path in draw_trajectory(study, plot, "calibration", points):
            write_line(str(path))
    if not points.settings:
        raise ClearSRError("calibrate: the rule found neither point; the model is left as it was")
    if target is not None:
        from clearsr.models.checkpoint import locate, store_sampling

        store_sampling(locate(args.model), target, {"lsa": points.settings})
        write_line(f"{target}: calibrated")
    return 0


def _target(args: Namespace) -> Path | None:
    """The folder of the calibrated model; None in a dry run.

    Raises:
        UsageError: it was not said where to keep a model that is in no folder of the user's.
    """
    if args.dry_run:
        if args.output is not None:
            raise UsageError(f"-o {args.output}: a --dry-run keeps no model; leave one of them out")
        return None
    if args.output is None and not Path(args.model).is_dir():
        raise UsageError(
            f"--model {args.model}: is not a folder; say with -o where to keep the calibrated model"
        )
    return args.output or Path(args.model)


def _study(args: Namespace, settings: Settings, sampling: SamplingConfig, keep: bool) -> "TrajectoryStudy":
    """The curves."""
    from clearsr.evaluation.measures import Scorer
    from clearsr.paper.figures.figure_5_trajectory import require_steps, study_trajectory

    require_steps(sampling.steps)
    count, pairs = read_pairs(args, settings.analysis, sampling)
    pipeline = load_pipeline(args)
    scorer = Scorer(settings.analysis.evaluation, device=pipeline.device)
    kept = settings.analysis.rows if keep else 0
    with counting("calibrating", count, args.quiet) as begin:
        return study_trajectory(pipeline, pairs, sampling, scorer, kept, begin)


def _say(study: "TrajectoryStudy", points: "SplitPoints") -> None:
    """What was found, and what was not, on stdout."""
    curve = study.mean("niqe")
    write_line(f"NIQE by step: {' '.join(f'{value:.2f}' for value in curve)}; HR {study.of_hr('niqe'):.2f}")
    unset: Any = SamplingConfig().lsa
    least = curve[points.peak - 1] - study.error("niqe")[points.peak - 1]
    level = [step for step, value in enumerate(curve, start=1) if value >= least]
    peak = f"NIQE is highest at step {points.peak} of {points.steps}"
    if len(level) > 1:
        peak += f"; {len(level)} steps from {level[0]} to {level[-1]} are within a standard error of it"
    for name, found, missing in (
        ("ela_end", peak, "rises to the last step"),
        ("lla_start", f"NIQE is below HR from step {points.below}", "never falls below HR after its peak"),
    ):
        value = getattr(points, name)
        if value is None:
            write_line(
                f"lsa.{name}: not found, NIQE {missing}; stays as it was (default {getattr(unset, name):g})"
            )
        else:
            write_line(f"lsa.{name} = {value:g} ({found})")
