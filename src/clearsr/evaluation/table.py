"""Tables with the best and second best value of each column marked, as Markdown, LaTeX or HTML; and that
of an evaluation's means, with intervals over images or seeds.
"""

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from clearsr.config.evaluation import EvaluationConfig
from clearsr.evaluation.evaluate import Evaluation
from clearsr.evaluation.measures import MEASURES, is_better, labels, shown

Format = Literal["markdown", "latex", "html"]
BEST, SECOND = 1, 2
_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 15px/1.4 sans-serif; margin: 2em; }}
table {{ border-collapse: collapse; border-block: 1.5px solid; margin-top: 2em; }}
caption {{ font-weight: bold; text-align: left; padding-bottom: 0.4em; }}
th, td {{ padding: 0.2em 0.7em; text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }}
th {{ border-bottom: 1px solid; }}
.name {{ text-align: left; }}
p {{ margin: 0.4em 0; font-size: 13px; max-width: 60em; }}
</style>
"""


@dataclass(frozen=True)
class TableRow:
    """One row.

    Attributes:
        cells: what stands before the measures.
        values: by measure; one left out is shown as a dash.
        half_widths: of confidence intervals, shown behind ±.
        group: rows of one group are compared with each other; None is compared with nothing.
    """

    cells: tuple[str, ...]
    values: dict[str, float]
    half_widths: dict[str, float] = field(default_factory=dict)
    group: str | None = ""


@dataclass(frozen=True)
class Table:
    """A table of measures.

    Attributes:
        heads: of the cells before the measures.
        measures: the columns.
        notes: lines below it.
    """

    title: str
    heads: tuple[str, ...]
    measures: tuple[str, ...]
    rows: tuple[TableRow, ...]
    notes: tuple[str, ...] = ()


def render(table: Table, format: Format = "markdown") -> str:
    """The table as text that ends in a line break."""
    marks = _marks(table)
    body = [[*row.cells, *(_cell(row, name) for name in table.measures)] for row in table.rows]
    ranks = [
        [0] * len(table.heads) + [marks.get((i, name), 0) for name in table.measures]
        for i in range(len(body))
    ]
    heads = [*table.heads, *labels(table.measures).values()]
    writer: dict[Format, Callable[[Table, list[str], list[list[str]], list[list[int]]], str]] = {
        "markdown": _markdown,
        "latex": _latex,
        "html": _html,
    }
    return writer[format](table, heads, body, ranks)


def render_all(tables: Sequence[Table], format: Format = "markdown") -> str:
    """Several tables as one text, in HTML as a page of its own."""
    text = "\n".join(render(table, format) for table in tables)
    page = _PAGE.format(title=html.escape(tables[0].title)) if format == "html" else ""
    needs = (
        "% \\checkmark needs \\usepackage{amssymb}\n" if format == "latex" and r"\checkmark" in text else ""
    )
    return page + needs + text


def ranked(values: Sequence[float], name: str) -> dict[int, int]:
    """Index -> 1 (best) or 2 (second best) among values of a measure as they are shown; ties share a rank.

    Only where there is something to compare: with fewer than two values nothing is marked.
    """
    known = {index: float(shown(name, value)) for index, value in enumerate(values) if not math.isnan(value)}
    levels: list[float] = []
    for value in known.values():
        place = sum(is_better(name, level, value) for level in levels)
        if value not in levels:
            levels.insert(place, value)
    if len(known) < 2:
        return {}
    return {i: levels.index(value) + 1 for i, value in known.items() if levels.index(value) < SECOND}


def _marks(table: Table) -> dict[tuple[int, str], int]:
    marks = {}
    for group in dict.fromkeys(row.group for row in table.rows if row.group is not None):
        members = [index for index, row in enumerate(table.rows) if row.group == group]
        for name in table.measures:
            ranks = ranked([table.rows[index].values.get(name, math.nan) for index in members], name)
            marks.update({(members[place], name): rank for place, rank in ranks.items()})
    return marks


def _cell(row: TableRow, name: str) -> str:
    text = shown(name, row.values.get(name))
    half = row.half_widths.get(name, math.nan)
    return (
        text if math.isnan(half) or name not in row.values else f"{text} ± {half:.{MEASURES[name].decimals}f}"
    )


def _markdown(table: Table, heads: list[str], body: list[list[str]], ranks: list[list[int]]) -> str:
    def cell(text: str, rank: int) -> str:
        escaped = text.replace("\\", "\\\\").replace("|", "\\|").replace("*", "\\*").replace("_", "\\_")
        return {BEST: f"**{escaped}**", SECOND: f"_{escaped}_"}.get(rank, escaped)

    lines = ["| " + " | ".join(cell(head, 0) for head in heads) + " |"]
    lines.append("|" + "|".join("---" for _ in table.heads) + "|" + "---:|" * len(table.measures))
    for texts, row_ranks in zip(body, ranks, strict=True):
        lines.append("| " + " | ".join(map(cell, texts, row_ranks)) + " |")
    below = [f"\n{note}" for note in table.notes]
    return "\n".join([f"**{table.title}**\n", *lines, *below]) + "\n"


def _latex(table: Table, heads: list[str], body: list[list[str]], ranks: list[list[int]]) -> str:
    def cell(text: str, rank: int) -> str:
        escaped = _for_latex(text)
        return {BEST: rf"\textbf{{{escaped}}}", SECOND: rf"\textit{{{escaped}}}"}.get(rank, escaped)

    columns = "l" * len(table.heads) + "r" * len(table.measures)
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{_for_latex(table.title)}}}"]
    lines += [
        rf"\begin{{tabular}}{{{columns}}}",
        r"\hline",
        " & ".join(map(_for_latex, heads)) + r" \\ \hline",
    ]
    lines += [" & ".join(map(cell, texts, marks)) + r" \\" for texts, marks in zip(body, ranks, strict=True)]
    lines += [r"\hline", r"\end{tabular}"]
    lines += [rf"\par {_for_latex(note)}" for note in table.notes]
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def _for_latex(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {character: f"\\{character}" for character in "&%$#_{}"}
    special |= {
        "↑": r"$\uparrow$",
        "↓": r"$\downarrow$",
        "→": r"$\to$",
        "±": r"$\pm$",
        "–": "--",
        "✓": r"$\checkmark$",
    }
    special |= {"α": r"$\alpha$", "β": r"$\beta$", "*": r"\textsuperscript{*}"}
    return "".join(special.get(character, character) for character in text)


def _html(table: Table, heads: list[str], body: list[list[str]], ranks: list[list[int]]) -> str:
    classes = [' class="name"'] * len(table.heads) + [""] * len(table.measures)

    def cell(text: str, rank: int, of_class: str) -> str:
        escaped = html.escape(text)
        inner = {BEST: f"<b>{escaped}</b>", SECOND: f"<i>{escaped}</i>"}.get(rank, escaped)
        return f"<td{of_class}>{inner}</td>"

    lines = ["<table>", f"<caption>{html.escape(table.title)}</caption>"]
    names = (f"<th{kind}>{html.escape(head)}</th>" for head, kind in zip(heads, classes, strict=True))
    lines.append("<tr>" + "".join(names) + "</tr>")
    for texts, row_ranks in zip(body, ranks, strict=True):
        lines.append("<tr>" + "".join(map(cell, texts, row_ranks, classes)) + "</tr>")
    lines.append("</table>")
    return "\n".join([*lines, *(f"<p>{html.escape(note)}</p>" for note in table.notes)]) + "\n"


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
