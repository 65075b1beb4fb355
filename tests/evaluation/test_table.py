"""Tables: what is marked, how it is written, and the paper's own marks on its published numbers."""

import dataclasses
import re
import xml.etree.ElementTree as ElementTree

import pytest

from clearsr.errors import ClearSRError
from clearsr.evaluation.measures import MEASURES
from clearsr.evaluation.table import Table, TableRow, ranked, render, render_all
from clearsr.paper.tables.published import DATASETS, dataset_of, note, published_table


@pytest.fixture
def table():
    rows = (
        TableRow(("a*",), {"psnr": 25.004, "lpips": 0.3}, {"psnr": 0.5}),
        TableRow(("b_1",), {"psnr": 25.0, "lpips": 0.1}),
        TableRow(("c",), {"psnr": 24.0}),
        TableRow(("published",), {"psnr": 30.0, "lpips": 0.01}, group=None),
    )
    return Table("T & co", ("method",), ("psnr", "lpips"), rows, ("a note",))


def test_marks_follow_what_is_shown():
    assert ranked([25.004, 25.0, 24.0], "psnr") == {0: 1, 1: 1, 2: 2}
    assert ranked([0.3, 0.1, float("nan"), 0.2], "lpips") == {1: 1, 3: 2}
    assert ranked([0.5, 1.6, 1.2], "sharpness") == {2: 1, 0: 2}
    assert ranked([3.0, float("nan")], "psnr") == {}


def test_markdown(table):
    assert render(table).splitlines() == [
        "**T & co**",
        "",
        "| method | PSNR ↑ | LPIPS ↓ |",
        "|---|---:|---:|",
        "| a\\* | **25.00 ± 0.50** | _0.3000_ |",
        "| b\\_1 | **25.00** | **0.1000** |",
        "| c | _24.00_ | – |",
        "| published | 30.00 | 0.0100 |",
        "",
        "a note",
    ]


def test_html_is_well_formed(table):
    root = ElementTree.fromstring(f"<div>{render(table, 'html')}</div>")
    cells = [[td for td in tr.findall("td")] for tr in root.iter("tr")][1:]
    assert [td.findtext("b") for td in cells[1]] == [None, "25.00", "0.1000"]
    assert [td.findtext("i") for td in cells[2]] == [None, "24.00", None]
    assert root.findtext("table/caption") == "T & co" and root.findtext("p") == "a note"


def test_several_tables_are_one_page_of_html(table):
    text = render_all([table, table], "html")
    assert text.startswith("<!doctype html>") and '<meta charset="utf-8">' in text
    assert text.count("<table>") == 2 and "<title>T &amp; co</title>" in text
    assert render_all([table, table]) == render(table) + "\n" + render(table)
    assert "amssymb" not in render_all([table], "latex")
    assert "amssymb" in render_all([dataclasses.replace(table, title="✓")], "latex")


def test_latex_escapes_and_marks(table):
    text = render(table, "latex")
    assert r"b\_1 & \textbf{25.00} & \textbf{0.1000} \\" in text
    assert r"c & \textit{24.00} & -- \\" in text
    assert r"\caption{T \& co}" in text and r"PSNR $\uparrow$" in text
    assert text.count(r"\begin{") == text.count(r"\end{") == 2
    assert not re.search(r"(?<!\\)[&]", text.split(r"\hline")[2].replace(" & ", ""))


def test_the_published_table_1_is_whole():
    rows = published_table(1)["rows"]
    methods = ["Real-ESRGAN", "LDL", "ResShift", "SinSR", "ClearSR*"]
    methods += ["StableSR", "PASD", "DiffBIR", "SeeSR", "ClearSR"]
    assert [(row["dataset"], row["method"]) for row in rows] == [(d, m) for d in DATASETS for m in methods]
    measures = ["psnr", "ssim_rounded", "lpips", "niqe_pyiqa", "musiq", "maniqa", "clipiqa"]
    assert published_table(1)["measures"] == measures
    assert all(list(row["values"]) == measures for row in rows)
    assert [row["group"] for row in rows[:10]] == ["fidelity"] * 5 + ["generation"] * 5


def test_relations_that_the_paper_states_hold_in_the_numbers():
    """The text of section 4: what each comparison is said to show."""
    by_name = {row["Model design"]: row["values"] for row in published_table(2)["rows"]}
    assert by_name["w/o SPM"]["psnr"] < by_name["full model"]["psnr"]
    assert by_name["DPM w/o cross-attn layers"]["maniqa"] < by_name["full model"]["maniqa"]
    lsa = {(row["alpha"], row["beta"]): row["values"] for row in published_table(4)["rows"]}
    assert lsa[0.01, 0]["psnr"] > lsa[0, 0]["psnr"] > lsa[0, 0.01]["psnr"]
    assert lsa[0.01, 0.01]["psnr"] > lsa[0, 0]["psnr"] and lsa[0.01, 0.01]["maniqa"] > lsa[0, 0]["maniqa"]
    assert lsa[0.01, 0.01] == {
        k: v for k, v in published_table(1)["rows"][9]["values"].items() if k in lsa[0, 0]
    }
    for number, key in ((6, "Window size"), (8, "UNet LoRA rank"), (7, "VAE LoRA rank")):
        sixteen = {row[key]: row["values"] for row in published_table(number)["rows"]}["16"]
        assert (sixteen["psnr"], sixteen["ssim_rounded"], sixteen["maniqa"]) == (27.62, 0.7483, 0.6222)


@pytest.mark.parametrize("number", range(1, 9))
def test_every_published_table_names_its_source_and_known_measures(number):
    table = published_table(number)
    assert "ICLR 2025" in table["source"] and table["title"] and table["rows"]
    assert set(table.get("measures", ())) <= MEASURES.keys()


def test_there_is_no_table_9():
    with pytest.raises(ClearSRError, match="table 9: the paper has Tables 1, 2, 3, 4, 5, 6, 7, 8"):
        published_table(9)
    assert "NIQE" in note()


@pytest.mark.parametrize(
    ("folder", "dataset"),
    [
        ("RealSRVal_crop128", "RealSR"),
        ("DrealSRVal_crop128", "DRealSR"),
        ("DIV2K_V2_val", "DIV2K-Val"),
        ("holidays", None),
    ],
)
def test_benchmarks_are_known_by_their_folders(folder, dataset):
    assert dataset_of(folder) == dataset
