"""Figures on disk: whole files, the same each time, with JSON numbers; matplotlib is left as it was."""

import json
import math
import sys

import matplotlib
import pytest
from PIL import Image

from clearsr.errors import ClearSRError
from clearsr.paper.figures.plots import (
    PNG_DPI,
    TEXT_WIDTH,
    new_figure,
    paper_style,
    save_figure,
    write_numbers,
)


def draw(folder):
    with paper_style():
        figure = new_figure(2.0)
        figure.add_subplot().plot([0, 1], [1, 0])
        return save_figure(figure, folder, "line", {"y": [1.0, 0.0]})


def test_png_pdf_and_numbers_of_the_stated_size(tmp_path):
    png, pdf, numbers = draw(tmp_path / "new" / "folder")
    assert Image.open(png).size == (round(TEXT_WIDTH * PNG_DPI), round(2 * PNG_DPI))
    assert pdf.read_bytes().startswith(b"%PDF")
    assert json.loads(numbers.read_text()) == {"y": [1, 0]}
    assert sorted(path.name for path in png.parent.iterdir()) == ["line.json", "line.pdf", "line.png"]


def test_the_same_numbers_give_the_same_files(tmp_path):
    first, second = draw(tmp_path / "a"), draw(tmp_path / "b")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_matplotlib_is_left_as_it_was(tmp_path):
    before = dict(matplotlib.rcParams)
    draw(tmp_path)
    assert dict(matplotlib.rcParams) == before


def test_what_is_not_finite_becomes_null(tmp_path):
    write_numbers({"a": (math.nan, 1 / 3), "b": {1: math.inf}, "c": 10**9}, tmp_path / "n.json")
    assert json.loads((tmp_path / "n.json").read_text()) == {
        "a": [None, 0.33333],
        "b": {"1": None},
        "c": 10**9,
    }


def test_a_folder_that_cannot_be_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ClearSRError, match="figures cannot be written"):
        draw(tmp_path / "file")


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ClearSRError, match=r"clearsr\[plots\]"), paper_style():
        pass
