"""Pictures of several folders belong together by stem, and what has no counterpart is named."""

import pytest
import torch

from clearsr.errors import ClearSRError
from clearsr.evaluation.pairs import find_testset, fitting_hr, match_folders
from clearsr.image import ImageData, write_image


@pytest.fixture
def make(tmp_path):
    """Writes tiny pictures by path and returns the root."""

    def write(*names):
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            write_image(ImageData(torch.zeros(3, 2, 2)), tmp_path / name)
        return tmp_path

    return write


def test_matched_by_stem_whatever_the_suffix(make):
    root = make("sr/b.png", "sr/a.png", "hr/a.jpg", "hr/b.tif")
    pairs = match_folders({"sr": root / "sr", "hr": root / "hr", "lr": None})
    assert [(p.name, p.sr.name, p.hr.name, p.lr) for p in pairs] == [
        ("a", "a.png", "a.jpg", None),
        ("b", "b.png", "b.tif", None),
    ]


def test_folders_below_are_part_of_the_name(make):
    root = make("sr/x/a.png", "sr/y/a.png", "hr/x/a.png", "hr/y/a.png")
    assert [p.name for p in match_folders({"sr": root / "sr", "hr": root / "hr"})] == ["x/a", "y/a"]


def test_a_last_tag_may_differ(make):
    root = make("lr/Canon_001_LR4.png", "hr/Canon_001_HR.png", "lr/P_2_x1.png", "hr/P_2_x4.png")
    pairs = match_folders({"lr": root / "lr", "hr": root / "hr"})
    assert [(p.name, p.lr.name, p.hr.name) for p in pairs] == [
        ("Canon_001", "Canon_001_LR4.png", "Canon_001_HR.png"),
        ("P_2", "P_2_x1.png", "P_2_x4.png"),
    ]


def test_equal_stems_keep_their_tags(make):
    root = make("sr/a_x1.png", "sr/a_x4.png", "hr/a_x1.png", "hr/a_x4.png")
    assert [p.name for p in match_folders({"sr": root / "sr", "hr": root / "hr"})] == ["a_x1", "a_x4"]


def test_what_has_no_counterpart_is_named(make):
    root = make("sr/a.png", "sr/c.png", "hr/a.png", "hr/b.png")
    with pytest.raises(ClearSRError, match=r"--sr .*sr has no b; --hr .*hr has no c"):
        match_folders({"sr": root / "sr", "hr": root / "hr"})


def test_two_files_of_one_stem_are_an_error(make):
    root = make("sr/a.png", "sr/a.tif")
    with pytest.raises(ClearSRError, match=r"a\.png and a\.tif have the same stem"):
        match_folders({"sr": root / "sr"})
    with pytest.raises(ClearSRError, match="must be a folder"):
        match_folders({"sr": root / "none"})


@pytest.mark.parametrize(("lr", "hr"), [("test_LR", "test_HR"), ("LR", "HR"), ("lq", "gt")])
def test_layouts_of_test_sets(make, lr, hr):
    root = make(f"{lr}/a.png", f"{hr}/a.png")
    assert find_testset(root) == (root / lr, root / hr)


def test_a_folder_without_a_layout_is_an_error(make):
    with pytest.raises(ClearSRError, match="test_LR and test_HR"):
        find_testset(make("a.png"))


@pytest.mark.parametrize(
    ("lr", "hr", "expected"),
    [((8, 10), (32, 40), (32, 40)), ((8, 10), (33, 43), (32, 40)), ((8, 10), (20, 25), (20, 25))],
)
def test_the_original_is_cut_to_what_the_small_image_shows(lr, hr, expected):
    image = ImageData(torch.zeros(3, *lr))
    assert fitting_hr(torch.zeros(3, *hr), image, "a").shape[1:] == expected


def test_sizes_that_cannot_belong_together():
    with pytest.raises(ClearSRError, match="a: the original is 30x32, the LR image 10x8"):
        fitting_hr(torch.zeros(3, 32, 30), ImageData(torch.zeros(3, 8, 10)), "a")
