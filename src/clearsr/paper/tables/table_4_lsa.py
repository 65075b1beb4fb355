"""Table 4 and Figure 7: what the strengths alpha and beta of Latent Space Adjustment do to the measures.

E' and the image prompt run once per picture; only the denoising loop and the decoder do for each setting.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import product

import torch

from clearsr.config.sampling import SamplingConfig
from clearsr.evaluation.evaluate import Evaluation, Row
from clearsr.evaluation.measures import MEASURES, Scorer, is_better, labels, shown
from clearsr.evaluation.methods import factor_of
from clearsr.evaluation.pairs import ImagePair, fitting_hr, read_8_bit, to_8_bit
from clearsr.evaluation.table import Table, TableRow, summary_row
from clearsr.image import ImageData, read_image
from clearsr.paper.tables.published import published_table
from clearsr.pipeline.pipeline import ClearSRPipeline
from clearsr.seeds import file_seed

Setting = tuple[float, float]  # alpha, beta
QUALITY = ("maniqa", "niqe_pyiqa", "niqe")  # what shows generation, the paper's choice first


@dataclass(frozen=True)
class SweepPlan:
    """What is run.

    Attributes:
        seeds: each setting is run with each.
        example: name of the picture to keep at every setting, from the first seed; None keeps none.
    """

    alphas: Sequence[float]
    betas: Sequence[float]
    seeds: Sequence[int] = (0,)
    example: str | None = None


@dataclass
class Sweep:
    """A grid of settings, measured.

    Attributes:
        evaluations: per (alpha, beta).
        pictures: of the example, per (alpha, beta), 3×H×W in [0, 1].
    """

    alphas: tuple[float, ...]
    betas: tuple[float, ...]
    evaluations: dict[Setting, Evaluation]
    pictures: dict[Setting, torch.Tensor] = field(default_factory=dict)

    def mean(self, name: str, alpha: float, beta: float) -> float:
        """Mean of a measure at one setting."""
        return self.evaluations[alpha, beta].means()[name]

    @property
    def names(self) -> tuple[str, ...]:
        """The measures that were taken."""
        return next(iter(self.evaluations.values())).names

    @property
    def quality(self) -> str:
        """The measure that stands for generation."""
        return next((name for name in QUALITY if name in self.names), self.names[0])


def sweep_lsa(
    pipeline: ClearSRPipeline,
    config: SamplingConfig,
    pairs: Sequence[ImagePair],
    scorer: Scorer,
    plan: SweepPlan,
    on_picture: Callable[[str], None] | None = None,
) -> Sweep:
    """Run every setting on every picture and seed.

    Args:
        config: everything but alpha, beta, the factor (which follows from the sizes) and the seed.
        on_picture: called with the picture's name after each setting.

    Raises:
        ClearSRError: a picture cannot be read, or the sizes of a pair do not fit.
    """
    alphas, betas = tuple(sorted(plan.alphas)), tuple(sorted(plan.betas))
    names = tuple(scorer.per_image)
    evaluations = {
        (alpha, beta): Evaluation(f"alpha {alpha:g}, beta {beta:g}", names, scorer.config)
        for alpha in alphas
        for beta in betas
    }
    sweep = Sweep(alphas, betas, evaluations)
    for pair, seed in product(pairs, plan.seeds):
        assert pair.lr is not None and pair.hr is not None, "pairs to sweep over have both images"
        lr = read_image(pair.lr)
        hr = fitting_hr(read_8_bit(pair.hr), lr, pair.name)
        factor = factor_of(lr, (hr.shape[1], hr.shape[2]))
        own = config.model_copy(update={"upscale": factor, "seed": file_seed(seed, pair.lr.name)})
        run, lr_8_bit = _prepared(pipeline, lr, own), to_8_bit(lr.color)
        for (alpha, beta), evaluation in evaluations.items():
            picture = to_8_bit(run(alpha, beta))
            evaluation.rows.append(Row(pair.name, seed, scorer.score(picture, hr, lr_8_bit)))
            if pair.name == plan.example and seed == plan.seeds[0]:
                sweep.pictures[alpha, beta] = picture
            if on_picture is not None:
                on_picture(pair.name)
    return sweep


def table_4(sweep: Sweep) -> Table:
    """The paper's rows, and ours at the same settings (as far as the grid has them)."""
    published = published_table(4)
    rows = [
        TableRow(("paper", _tick(row["alpha"]), _tick(row["beta"])), row["values"], group="paper")
        for row in published["rows"]
    ]
    for row in published["rows"]:
        setting = (row["alpha"], row["beta"])
        if setting in sweep.evaluations:
            cells = ("measured", _tick(setting[0]), _tick(setting[1]))
            rows.append(summary_row(sweep.evaluations[setting], cells, "measured"))
    own = [name for name in ("niqe",) if name in sweep.names]
    measures = (*published["measures"], *own)
    notes = (f"Published: {published['source']}, Table 4, DRealSR.", *findings(sweep))
    heads = ("", "ELA α = 0.01", "LLA β = 0.01")
    return Table("Table 4: Latent Space Adjustment", heads, measures, tuple(rows), notes)


def grid_table(sweep: Sweep, name: str) -> str:
    """One measure over the whole grid, as Markdown: a row per alpha, a column per beta."""
    lines = [f"**{labels([name])[name]}, mean over the pictures**\n"]
    lines.append("| α \\ β | " + " | ".join(f"{beta:g}" for beta in sweep.betas) + " |")
    lines.append("|---|" + "---:|" * len(sweep.betas))
    for alpha in sweep.alphas:
        cells = [shown(name, sweep.mean(name, alpha, beta)) for beta in sweep.betas]
        lines.append(f"| {alpha:g} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def findings(sweep: Sweep) -> list[str]:
    """What the sweep shows in words: whether the measures move as in the paper, and how far."""
    lines = []
    if "psnr" in sweep.names:
        lines.append(_direction(sweep, "psnr", "alpha"))
        lines.append(f"{_covered(sweep, 'psnr', ' dB')}; the paper: over 2 dB.")
    lines.append(_direction(sweep, sweep.quality, "beta"))
    paper = "; the paper: over 0.1." if sweep.quality == "maniqa" else "; the paper gives 0.1 in MANIQA."
    lines.append(f"{_covered(sweep, sweep.quality, '')}{paper}")
    return lines


def is_monotonic(values: Sequence[float], name: str) -> bool:
    """Whether each value is better than the one before."""
    return all(is_better(name, after, before) for before, after in zip(values, values[1:], strict=False))


def _direction(sweep: Sweep, name: str, along: str) -> str:
    """Whether a measure gets better with every step of one strength, at each value of the other."""
    if along == "alpha":
        curves = {b: [sweep.mean(name, a, b) for a in sweep.alphas] for b in sweep.betas}
        other = "beta"
    else:
        curves = {a: [sweep.mean(name, a, b) for b in sweep.betas] for a in sweep.alphas}
        other = "alpha"
    failing = [f"{value:g}" for value, curve in curves.items() if not is_monotonic(curve, name)]
    label = MEASURES[name].label
    if not failing:
        return (
            f"{label} gets better with every step of {along}, at each of the {len(curves)} values of {other}."
        )
    return f"{label} does not get better with every step of {along} at {other} = {', '.join(failing)}."


def _covered(sweep: Sweep, name: str, unit: str) -> str:
    means = {setting: evaluation.means()[name] for setting, evaluation in sweep.evaluations.items()}
    known = {setting: value for setting, value in means.items() if not math.isnan(value)}
    if not known:
        return f"{MEASURES[name].label} is not defined for these pictures"
    low, high = min(known, key=known.__getitem__), max(known, key=known.__getitem__)
    ends = [f"{shown(name, known[at])} (alpha {at[0]:g}, beta {at[1]:g})" for at in (low, high)]
    covered = f"{known[high] - known[low]:.4g}{unit}"
    return f"{MEASURES[name].label} covers {covered}, from {ends[0]} to {ends[1]}"


def _tick(strength: float) -> str:
    return "✓" if strength else "-"


def _prepared(
    pipeline: ClearSRPipeline, lr: ImageData, config: SamplingConfig
) -> Callable[[float, float], torch.Tensor]:
    """The pipeline's steps 1 and 2 for one picture; what remains is a function of alpha and beta."""
    reference = pipeline.steps.prepare(lr, config)
    pixels = reference[None].to(pipeline.device, memory_format=torch.channels_last)
    with torch.no_grad():
        conditioning = pipeline.steps.condition(pixels, config)

    @torch.no_grad()
    def run(alpha: float, beta: float) -> torch.Tensor:
        lsa = config.lsa.model_copy(update={"alpha": alpha, "beta": beta})
        own = config.model_copy(update={"lsa": lsa})
        picture = pipeline.steps.picture(pixels, pipeline.sample(conditioning, own), own)
        return pipeline.steps.finish(picture[0], reference, lr, own).color

    return run
