"""Table 1: which rows stand beside each other, what is marked, what a reader is told."""

import re
from pathlib import Path

import pytest
from scipy import stats

from clearsr.config.evaluation import EvaluationConfig
from clearsr.evaluation.evaluate import Evaluation, Row
from clearsr.evaluation.measures import MEASURES
from clearsr.evaluation.table import render
from clearsr.paper.tables.published import (
    DATASETS,
    newer_methods,
    newer_rows,
    published_table,
    sourced,
)
from clearsr.paper.tables.table_1_benchmarks import benchmark_tables

ROOT = Path(__file__).parents[3]


def measured(dataset="RealSR", **values):
    rows = [Row(str(i), None, dict(values)) for i in range(3)]
    return Evaluation("mine", tuple(values), EvaluationConfig(crop_border=4), dataset, rows)


def lines(table):
    return [line for line in render(table).splitlines() if line.startswith("| ")][1:]


def test_the_published_table_has_the_papers_own_marks_within_its_groups():
    tables = benchmark_tables([], marking="group")
    assert [table.title for table in tables] == [f"Table 1 on {name}" for name in DATASETS]
    first = {line.split(" | ")[0][2:]: line for line in lines(tables[0])}
    assert len(first) == 10 + len(newer_rows("DRealSR"))
    # The paper's claim: best of its group in most measures of generation.
    assert "**62.74**" in first["ClearSR\\*"] and "**0.5878**" in first["ClearSR\\*"]
    assert "**29.00**" in first["ClearSR\\*"]
    assert "**66.27**" in first["ClearSR"] and "_6.0867_" in first["ClearSR"]


def test_measured_rows_stand_below_and_take_part_in_the_marks():
    (table,) = benchmark_tables([measured(psnr=40.0, ssim_rounded=0.99, niqe=3.0)])
    shown = lines(table)
    assert len(shown) == 11 + len(newer_rows("RealSR")) and shown[-1].startswith(
        "| mine | measured | **40.00 ± 0.00** | **0.9900"
    )
    assert shown[-1].count("–") == 5 and shown[-1].endswith("3.0000 ± 0.0000 |")
    text = render(table)
    assert "NIQE (ours) ↓" in text
    assert "mine: 3 images of the 100 that the published rows are means over, 4 pixels" in text


def test_in_groups_measured_rows_are_apart():
    (table,) = benchmark_tables([measured(psnr=40.0)], marking="group")
    assert "| 40.00" in lines(table)[-1] and "**26.31**" in render(table)


def test_a_set_of_ones_own_has_measured_rows_only():
    (table,) = benchmark_tables([measured("holidays", psnr=25.0, lpips=0.2)])
    assert table.title == "Measured on holidays" and len(table.rows) == 1
    assert table.measures == ("psnr", "lpips")  # no columns of dashes


def test_a_row_over_seeds_says_how_far_they_differ():
    one = measured("holidays", psnr=25.0)
    one.rows = [Row("a", seed, {"psnr": 25.0 + seed}) for seed in range(3)]
    text = render(benchmark_tables([one])[0])
    half = stats.t.ppf(0.975, 2) * 1 / 3**0.5
    drawn = f"mean over seeds 0, 1, 2 (over the seeds: PSNR ± {half:.2f})."
    assert f"mine: 1 images, 4 pixels of border left out, {drawn}" in text


@pytest.mark.parametrize("format", ["markdown", "latex", "html"])
def test_every_format_has_every_method(format):
    text = render(benchmark_tables([])[0], format)
    for method in ("Real-ESRGAN", "LDL", "ResShift", "SinSR", "StableSR", "PASD", "DiffBIR", "SeeSR"):
        assert method in text


def test_every_newer_row_says_where_and_when_it_was_read():
    rows = [row for name in DATASETS for row in newer_rows(name)]
    assert {row["method"] for row in rows} == {"OSEDiff", "FlowSR"}
    known = {row["method"] for row in published_table(1)["rows"]}
    for row in rows:
        assert row["method"] not in known and row["values"].keys() <= MEASURES.keys()
        text = render(benchmark_tables([], [row["dataset"]])[0])
        assert row["source"] in text and row["read"] in text


@pytest.mark.parametrize("change", [{"source": ""}, {"source": None}, {"read": "lately"}])
def test_a_row_without_a_source_is_refused(change):
    row = {"method": "New", "values": {"psnr": 99.0}, "source": "its paper, Table 1", "read": "2026-11-28"}
    assert sourced(row) == row
    row |= change
    if row["source"] is None:
        del row["source"]
    with pytest.raises(ValueError):
        sourced(row)


def test_the_compact_model_is_the_smallest_of_those_whose_size_is_stated():
    sizes = {
        row["method"]: row["million_parameters"] for row in newer_methods() if "million_parameters" in row
    }
    card = (ROOT / "src/clearsr/weights/compact/README.md").read_text("utf-8")
    ours = float(re.search(r"(\d+\.\d) million\s+parameters", card)[1])
    assert ours < min(sizes.values())
    page = (ROOT / "docs/reproduce.md").read_text("utf-8").split("### Newer methods")[1].split("### ")[0]
    for row in newer_methods():
        (line,) = [line for line in page.splitlines() if line.startswith(f"| {row['method']} |")]
        for key in ("million_parameters", "steps", "licence"):
            assert f"| {row.get(key, 'not stated')} |" in line
