"""Pictures side by side: each is there unchanged, under its caption."""

import numpy as np
import pytest
from PIL import Image

from clearsr.files.comparison import side_by_side


def picture(width, height, color):
    return Image.new("RGB", (width, height), color)


def find(sheet, color):
    """Box (left, top, right, bottom) of the pixels of that colour."""
    rows, columns = np.nonzero((np.asarray(sheet) == color).all(axis=-1))
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def test_pictures_in_one_row_do_not_overlap():
    red, blue = (255, 0, 0), (0, 0, 255)
    sheet = side_by_side([("left", picture(40, 60, red)), ("right", picture(50, 60, blue))])
    first, second = find(sheet, red), find(sheet, blue)
    assert (first[2] - first[0], first[3] - first[1]) == (40, 60)
    assert (second[2] - second[0], second[3] - second[1]) == (50, 60)
    assert first[2] < second[0] and first[1] == second[1]


def test_small_picture_is_enlarged_by_whole_pixels():
    checks = Image.fromarray(np.array([[[255, 0, 0], [0, 0, 255]]] * 2, dtype=np.uint8))
    sheet = side_by_side([("small", checks), ("large", picture(40, 40, (0, 255, 0)))])
    left, top, right, bottom = find(sheet, (255, 0, 0))
    assert (right - left, bottom - top) == (20, 40)


def test_columns_break_rows():
    colors = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    sheet = side_by_side([(str(c), picture(30, 30, c)) for c in colors], columns=2)
    boxes = [find(sheet, color) for color in colors]
    assert boxes[0][1] == boxes[1][1] < boxes[2][1]
    assert boxes[0][0] == boxes[2][0]


def test_caption_is_drawn_above_its_picture():
    plain = side_by_side([("", picture(60, 60, (255, 0, 0)))])
    captioned = side_by_side([("caption", picture(60, 60, (255, 0, 0)))])
    changed = np.nonzero((np.asarray(plain) != np.asarray(captioned)).any(axis=-1))[0]
    assert changed.size > 0
    assert changed.max() < find(plain, (255, 0, 0))[1]


def test_nothing_to_show_is_an_error():
    with pytest.raises(ValueError, match="at least one picture"):
        side_by_side([])
