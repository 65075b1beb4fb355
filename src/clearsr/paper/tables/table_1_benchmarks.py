"""Table 1: the published rows beside what was measured here, on each benchmark."""

import math
from collections.abc import Sequence
from typing import Literal

from clearsr.evaluation.evaluate import Evaluation
from clearsr.evaluation.measures import MEASURES, shown
from clearsr.evaluation.table import Table, TableRow, paired_notes, summary_row
from clearsr.paper.tables.published import DATASETS, newer_rows, note, published_table

Marking = Literal["dataset", "group"]
_OWN_SCALES = {"niqe": "niqe_pyiqa"}  # ours, and the published scale that it stands in for


def benchmark_tables(
    measured: Sequence[Evaluation], datasets: Sequence[str] = (), marking: Marking = "dataset"
) -> list[Table]:
    """One table for each benchmark: published rows, then measured ones; further sets have measured rows only.

    Args:
        datasets: which to show; none: those that were measured, or all of Table 1 if nothing was.
        marking: best and second best of a whole data set, or as the paper has it: methods without a
            generative prior against ClearSR*, those on Stable Diffusion against ClearSR, newer and measured
            rows apart.
    """
    shown = datasets or tuple(dict.fromkeys(e.dataset for e in measured)) or tuple(DATASETS)
    return [_of_dataset(name, [e for e in measured if e.dataset == name], marking) for name in shown]


def _of_dataset(dataset: str, measured: Sequence[Evaluation], marking: Marking) -> Table:
    published = published_table(1)
    rows = [
        TableRow(
            (row["method"], row["reference"] or "the paper"),
            row["values"],
            group=row["group"] if marking == "group" else "",
        )
        for row in published["rows"]
        if row["dataset"] == dataset
    ]
    notes = [f"Published rows: {published['source']}, Table 1. {note()}"] if rows else []
    newer = newer_rows(dataset)
    for row in newer:
        cells = (row["method"], row["reference"])
        rows.append(TableRow(cells, row["values"], group="newer" if marking == "group" else ""))
    for source in dict.fromkeys(f"{row['source']}, read {row['read']}" for row in newer):
        names = ", ".join(row["method"] for row in newer if source.startswith(row["source"]))
        notes.append(f"{names}, which the paper does not have: {source}.")
    for evaluation in measured:
        rows.append(
            summary_row(evaluation, (evaluation.method, "measured"), "measured" if marking == "group" else "")
        )
    has = {name for evaluation in measured for name in evaluation.names}
    extra = [own for own, standard in _OWN_SCALES.items() if own in has and standard not in has]
    columns = (*published["measures"], *extra)
    measures = tuple(name for name in columns if any(name in row.values for row in rows))
    about: dict[str, list[str]] = {}
    for evaluation in measured:
        about.setdefault(_about(evaluation, measures), []).append(evaluation.method)
    notes += [f"{', '.join(methods)}: {text}" for text, methods in about.items()]
    if measured:
        notes += paired_notes(measured, measures)
    notes.append("Best bold, second best in italics; ± is half the confidence interval over the images.")
    title = f"Table 1 on {dataset}" if dataset in DATASETS else f"Measured on {dataset}"
    return Table(title, ("method", "source"), measures, tuple(rows), tuple(notes))


def _about(evaluation: Evaluation, measures: Sequence[str]) -> str:
    """What a reader must know to compare a measured row."""
    count = len(evaluation.images)
    whole = DATASETS.get(evaluation.dataset)
    of = "" if whole in (None, count) else f" of the {whole} that the published rows are means over"
    border = evaluation.config.crop_border
    seeds = [str(seed) for seed in evaluation.seeds if seed is not None]
    drawn = (
        f", mean over seeds {', '.join(seeds)}{_between_seeds(evaluation, measures)}"
        if len(seeds) > 1
        else ""
    )
    return f"{count} images{of}, {border} pixels of border left out{drawn}."


def _between_seeds(evaluation: Evaluation, measures: Sequence[str]) -> str:
    """How far the confidence interval over the seeds reaches, measure by measure."""
    found = {name: evaluation.over_seeds(name) for name in measures}
    parts = [
        f"{MEASURES[name].label} ± {shown(name, interval.half_width)}"
        for name, interval in found.items()
        if interval is not None and math.isfinite(interval.half_width)
    ]
    return f" (over the seeds: {', '.join(parts)})" if parts else ""
