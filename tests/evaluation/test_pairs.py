"""Pictures of several folders belong together by stem, and what has no counterpart is named."""

import pytest
import torch

from clearsr.errors import ClearSRError
from clearsr.evaluation.pairs import cut_to_output, find_testset, fitting_hr, match_folders
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


@pytest.mark.parametrize(
    ("sr", "hr", "names"),
    [
        (
            ("img_001_SRF_4_LR", "img_002_SRF_4_LR"),
            ("img_001_SRF_4_HR", "img_002_SRF_4_HR"),
            "img_00{}_SRF_4",
        ),
        (("img_001_SRF_4_LR_out", "img_002_SRF_4_LR_out"), ("img_001", "img_002"), "img_00{}"),
        (("0001x4", "0002x4"), ("0001", "0002"), "000{}"),
        (("baby1x4", "baby2x4"), ("baby1", "baby2"), "baby{}"),
        (("s1_EDSR_Lx4", "s2_EDSR_Lx4"), ("s1", "s2"), "s{}"),
        (("s1_SwinIR", "s2_SwinIR"), ("s1_SRF_4_HR", "s2_SRF_4_HR"), "s{}"),
        (("Canon_001_LR4", "Canon_002_LR4"), ("Canon_001_HR", "Canon_002_HR"), "Canon_00{}"),
    ],
)
def test_names_as_authors_of_networks_write_them(make, sr, hr, names):
    root = make(*(f"sr/{name}.png" for name in sr), *(f"hr/{name}.png" for name in hr))
    pairs = match_folders({"sr": root / "sr", "hr": root / "hr"})
    assert [(pair.name, pair.sr.stem, pair.hr.stem) for pair in pairs] == [
        (names.format(1), sr[0], hr[0]),
        (names.format(2), sr[1], hr[1]),
    ]


@pytest.mark.parametrize(
    ("sr", "hr"),
    [
        (("a_1", "b_1"), ("a_2", "b_2")),  # numbers are no tags
        (("a_cat",), ("a_dog",)),  # one file has no ending that it shares with others
        (("a_x2", "a_x4"), ("a",)),
        (("a_out", "b_out"), ("a", "c")),
    ],
)
def test_what_may_be_other_pictures_is_not_matched(make, sr, hr):
    root = make(*(f"sr/{name}.png" for name in sr), *(f"hr/{name}.png" for name in hr))
    with pytest.raises(ClearSRError, match="some have no counterpart"):
        match_folders({"sr": root / "sr", "hr": root / "hr"})


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


@pytest.mark.parametrize(
    ("lr", "hr"),
    [("test_LR", "test_HR"), ("LR", "HR"), ("lq", "gt"), ("LR_bicubic/X4", "HR"), ("LRbicx4", "GTmod12")],
)
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


def test_an_original_may_have_the_rows_that_the_factor_drops(tmp_path):
    hr = torch.rand(3, 35, 43, generator=torch.Generator().manual_seed(0))
    cut = cut_to_output(hr, torch.zeros(3, 32, 40), 4, tmp_path)
    assert torch.equal(cut, hr[:, :32, :40])
    assert torch.equal(cut_to_output(hr, torch.zeros(3, 35, 43), 1, tmp_path), hr)


@pytest.mark.parametrize(
    ("sr", "says"),
    [
        ((31, 40), "x.png: is 40x31, its original 43x35; the sizes must be equal, or .* fewer than 4 rows"),
        ((36, 43), "x.png: is 43x36, its original 43x35; .*the output is the larger one: cut it"),
        ((36, 20), "the output is the larger one"),
    ],
)
def test_other_sizes_are_an_error_that_names_both(tmp_path, sr, says):
    with pytest.raises(ClearSRError, match=says):
        cut_to_output(torch.zeros(3, 35, 43), torch.zeros(3, *sr), 4, tmp_path / "x.png")
