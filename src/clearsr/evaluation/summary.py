"""An evaluation's table: means of every method with intervals over images or seeds, and medians."""

import math
from collections.abc import Sequence

from clearsr.config.evaluation import EvaluationConfig
from clearsr.evaluation.evaluate import Evaluation
from clearsr.evaluation.measures import MEASURES
from clearsr.evaluation.tables import Table, TableRow


def summary_table(evaluations: Sequence[Evaluation], count: int, config: EvaluationConfig) -> Table:
    """Means of every method, ± half the confidence interval over the images; below, over seeds; medians."""
    names = evaluations[0].names
    rows = []
    for evaluation in evaluations:
        rows.append(summary_row(evaluation, (evaluation.method,)))
        if len(evaluation.seeds) > 1:
            rows.append(_seeds_row(evaluation, names))
        if len(evaluation.images) > 2:  # of fewer it is the mean
            rows.append(TableRow((f"{evaluation.method}, median",), evaluation.medians(), group=None))
    level = f"{100 * config.confidence:g} %"
    notes = [
        f"{count} images; ± is half the {level} confidence interval (Student's t) over the images, which "
        "medians are over as well; best bold, second best in italics.",
        f"PSNR and SSIM: BT.601 luma, {config.crop_border} pixels left out per side; SSIM has the luma in "
        "whole levels, as pyiqa, SSIM (exact) as it is.",
    ]
    notes += [
        f"{MEASURES[name].label} is not defined for {evaluation.undefined(name)} of the rows of "
        f"{evaluation.method} (too small or too flat)."
        for evaluation in evaluations
        for name in names
        if evaluation.undefined(name)
    ]
    notes += paired_notes(evaluations, names)
    dataset = evaluations[0].dataset
    return Table(f"Means on {dataset}" if dataset else "Means", ("method",), names, tuple(rows), tuple(notes))


def paired_notes(evaluations: Sequence[Evaluation], names: Sequence[str]) -> list[str]:
    """A line for each other method: the first less it, picture by picture, with the interval."""
    first, *others = evaluations
    digits = {name: max(3, MEASURES[name].decimals) for name in names}  # differences are small
    notes = []
    for other in others:
        found = {name: first.less(other, name) for name in names}
        parts = [
            f"{MEASURES[name].label} {i.mean:+.{digits[name]}f} ± {i.half_width:.{digits[name]}f}"
            for name, i in found.items()
            if i is not None and not math.isnan(i.half_width)
        ]
        if parts:
            notes.append(f"{first.method} less {other.method}, picture by picture: {', '.join(parts)}.")
    return notes


def summary_row(evaluation: Evaluation, cells: tuple[str, ...], group: str | None = "") -> TableRow:
    """Means with the intervals over the images."""
    found = {name: evaluation.over_images(name) for name in evaluation.names}
    return TableRow(
        cells,
        {name: interval.mean for name, interval in found.items() if interval is not None},
        {name: interval.half_width for name, interval in found.items() if interval is not None},
        group,
    )


def _seeds_row(evaluation: Evaluation, names: Sequence[str]) -> TableRow:
    """The same means with the interval over the seeds; compared with nothing."""
    found = {name: evaluation.over_seeds(name) for name in names}
    kept = {name: i for name, i in found.items() if i is not None and not math.isnan(i.mean)}
    cell = f"{evaluation.method}, over {len(evaluation.seeds)} seeds"
    means = {name: interval.mean for name, interval in kept.items()}
    return TableRow((cell,), means, {name: i.half_width for name, i in kept.items()}, group=None)
