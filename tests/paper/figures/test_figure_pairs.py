"""Pairs show the same part of the same picture, and depend on seed and name alone."""

import numpy as np
import pytest
import torch
from PIL import Image

from clearsr.config.evaluation import PairConfig
from clearsr.errors import ClearSRError
from clearsr.evaluation.pairs import match_folders
from clearsr.paper.figures.figure_pairs import degraded_pairs, stored_pairs


@pytest.fixture
def folders(tmp_path):
    """An LR picture of random pixels, and an original with each of them as a square of 4x4."""
    pixels = np.random.default_rng(0).integers(0, 256, (23, 17, 3), np.uint8)
    for name, image in (("lr", pixels), ("hr", pixels.repeat(4, 0).repeat(4, 1))):
        (tmp_path / name).mkdir()
        Image.fromarray(image).save(tmp_path / name / "a.png")
    return {name: tmp_path / name for name in ("lr", "hr")}


@pytest.mark.parametrize(("side", "expected"), [(512, (23, 17)), (48, (12, 12)), (53, (13, 13))])
def test_stored_pairs_are_cut_alike(folders, side, expected):
    (pair,) = stored_pairs(match_folders(folders), PairConfig(side=side), 4)
    assert pair.lr.color.shape[1:] == expected
    assert torch.equal(pair.hr, pair.lr.color.repeat_interleave(4, 1).repeat_interleave(4, 2))


def test_the_middle_is_kept(folders):
    (pair,) = stored_pairs(match_folders(folders), PairConfig(side=32), 4)
    whole = np.asarray(Image.open(folders["lr"] / "a.png"))
    assert np.allclose(pair.lr.color.permute(1, 2, 0) * 255, whole[7:15, 4:12], atol=1e-3)


def test_an_original_of_another_scale_is_refused(folders):
    with pytest.raises(ClearSRError, match="a: the original is 68x92, not 2 times the LR image"):
        list(stored_pairs(match_folders(folders), PairConfig(), 2))


def test_degraded_pairs_depend_on_seed_and_name_alone(folders):
    def lr_of(seed, *inputs):
        pairs = degraded_pairs(inputs, PairConfig(), 4, seed)
        return {pair.name: pair.lr.color for pair in pairs}["a"]

    Image.new("RGB", (40, 40), "gray").save(folders["hr"] / "0.png")
    alone = lr_of(0, folders["hr"] / "a.png")
    assert torch.equal(alone, lr_of(0, folders["hr"]))
    assert not torch.equal(alone, lr_of(1, folders["hr"]))
    assert len(list(degraded_pairs([folders["hr"]], PairConfig(), 4, 0, limit=1))) == 1


def test_a_picture_that_is_too_small_is_named(tmp_path):
    Image.new("RGB", (3, 3)).save(tmp_path / "tiny.png")
    with pytest.raises(ClearSRError, match=r"tiny\.png: image of 3x3 pixels: smaller than 4x4"):
        list(degraded_pairs([tmp_path], PairConfig(), 4, 0))
