"""`clearsr analyze`: the paper's figures about the inside of a network, for any model and photographs."""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from clearsr.pipeline.pipeline import ClearSRPipeline

FIGURES = ("control", "spectra", "trajectory")
_FLAGS = {
    **STUDY_FLAGS,
    "--timesteps": "analysis.timesteps",
    "--signal": "analysis.signal",
    "--layer": "analysis.layer",
}
_EPILOG = """\
figures:
  control     Figures 2 and 8: KL divergence of the control signals from x_lr, with and without the
              constraint, and the signals' principal components as pictures
  spectra     Figures 4 and 9: power spectra before and after a window cross-attention, and of DPM and SPM
  trajectory  Figure 5: PSNR, NIQE and sharpness over the steps of sampling, with the pictures
Each is written as PNG and PDF, with every number that it shows as JSON. The paper's third curve is MANIQA:
--measures psnr,niqe,maniqa, with the extra eval.

Without a second model, "without the constraint" is the model itself with its cross-attentions and its SPM
switched off. The paper compares with a ControlNet that was trained without them: give one with --against
(configs/ablations/controlnet.yaml is its recipe). `trajectory` samples without LSA unless --lsa, --alpha or
--beta is given. A model of fewer than 20 steps is looked at over 20, unless --steps says otherwise.

examples:
  clearsr analyze photographs/ -o figures/
  clearsr analyze photographs/ -o figures/ --figure control --against runs/controlnet/export --limit 50
  clearsr analyze --testset DRealSR/ -o figures/ --model runs/sd21/export --measures psnr,niqe,maniqa
"""


def add_arguments(parser: ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.epilog = _EPILOG
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="DIR", help="folder for the figures"
    )
    parser.add_argument(
        "--figure", action="append", choices=FIGURES, help="draw this one; repeatable (default: all)"
    )
    parser.add_argument("--against", metavar="MODEL", help="a model without the constraint, for `control`")
    parser.add_argument(
        "--divergence", choices=("spatial", "values"), default="spatial",
        help="where the signals are lively, or which values they have (default: spatial; JSON has both)",
    )  # fmt: skip
    add_study_arguments(parser, _FLAGS)
    parser.set_defaults(precision="fp32")  # in 16 bits a spectrum's faint end would be rounding


def run(args: Namespace) -> int:
    """Measure and draw."""
    settings = collect_study(args, _FLAGS)
    figures = args.figure or FIGURES
    if args.against is not None and "control" not in figures:
        raise UsageError("--against: belongs to --figure control")
    if args.precision != "fp32" and figures != ["trajectory"]:
        raise UsageError(
            f"--precision {args.precision}: control signals and spectra are read in fp32; leave it out, or "
            "give --figure trajectory alone"
        )

    with busy("starting", args.quiet):
        from clearsr.paper.figures.plots import require_matplotlib

    require_matplotlib()
    sampling = drawn_out(args, settings, settings.over_model(args.model))
    count, _ = read_pairs(args, settings.analysis, sampling)
    pipeline = load_pipeline(args)
    draw: dict[str, Callable[..., None]] = {
        "control": _control,
        "spectra": _spectra,
        "trajectory": _trajectory,
    }
    for figure in FIGURES:
        if figure in figures:
            draw[figure](args, settings, sampling, pipeline)
    return 0


def _control(
    args: Namespace, settings: Settings, sampling: SamplingConfig, pipeline: "ClearSRPipeline"
) -> None:
    """Figures 2 and 8."""
    from clearsr.paper.figures.drawing import draw_differences, draw_pictures
    from clearsr.paper.figures.figures_2_8_control import AGAINST, VARIANTS, study_control

    against = None if args.against is None else load_pipeline(args, args.against)
    count, pairs = read_pairs(args, settings.analysis, sampling)
    with counting("control signals", count, args.quiet) as begin:
        study = study_control(pipeline, pairs, sampling, settings.analysis, against, begin)
    labels: dict[str, str] = {AGAINST: args.against, **{str(name): says for name, says in VARIANTS.items()}}
    for variant in study.divergence:
        values = {name: _mean(study.means(variant, name)) for name in ("spatial", "values")}
        shown = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
        write_line(f"D_kl from x_lr, {labels[variant]}: {shown} nats")
    differences = study.differences(args.divergence)
    above = sum(value > 0 for value in differences)
    write_line(
        f"Diff > 0 ({args.divergence}) in {above} of {len(differences)} images, mean {_mean(differences):.4f}"
    )
    _say(draw_pictures(study, args.output, args.divergence))
    _say(draw_differences(study, args.output, args.divergence))


def _spectra(
    args: Namespace, settings: Settings, sampling: SamplingConfig, pipeline: "ClearSRPipeline"
) -> None:
    """Figures 4 and 9."""
    from clearsr.paper.figures.drawing import draw_spectra
    from clearsr.paper.figures.figures_4_9_spectra import study_spectra

    count, pairs = read_pairs(args, settings.analysis, sampling)
    with counting("spectra", count, args.quiet) as begin:
        study = study_spectra(pipeline, pairs, sampling, settings.analysis, begin)
    shares = study.mean_shares()
    for layer, before in shares["before"].items():
        after = shares["after"][layer]
        write_line(
            f"power above half Nyquist, cross-attention {layer}: {before:.4f} before, {after:.4f} after"
        )
    for signal, detail in shares["detail"].items():
        structure = shares["structure"][signal]
        write_line(
            f"power above half Nyquist, control signal {signal}: {detail:.4f} DPM, {structure:.4f} SPM"
        )
    _say(draw_spectra(study, args.output, settings.analysis.rows))


def _trajectory(
    args: Namespace, settings: Settings, sampling: SamplingConfig, pipeline: "ClearSRPipeline"
) -> None:
    """Figure 5."""
    from clearsr.evaluation.measures import MEASURES, Scorer
    from clearsr.paper.figures.drawing import draw_trajectory
    from clearsr.paper.figures.figure_5_trajectory import study_trajectory

    if not settings.gives_strengths:
        sampling = sampling.model_copy(
            update={"lsa": sampling.lsa.model_copy(update={"alpha": 0.0, "beta": 0.0})}
        )
    scorer = Scorer(settings.analysis.evaluation, device=pipeline.device)
    count, pairs = read_pairs(args, settings.analysis, sampling)
    with counting("steps of sampling", count, args.quiet) as begin:
        study = study_trajectory(pipeline, pairs, sampling, scorer, settings.analysis.rows, begin)
    for measure in study.measures:
        curve = study.mean(measure)
        if curve:
            of_hr = f"; HR {study.of_hr(measure):.4g}" if not MEASURES[measure].needs_hr else ""
            write_line(f"{measure} by step: {' '.join(f'{value:.5g}' for value in curve)}{of_hr}")
    _say(draw_trajectory(study, args.output, "trajectory"))


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _say(paths: list[Path]) -> None:
    """Name what was written."""
    for path in paths:
        write_line(str(path))
