"""Fitting NIQE's model from files: what is read, what is noted, what is refused."""

import re
from datetime import date
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

from clearsr.errors import ClearSRError
from clearsr.evaluation.niqe import fit_niqe_from_files, model_of_blocks, sharp_features

NAMES = ("brick", "coffee", "grass", "gravel")  # textures: sharp all over


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "photos" / "more").mkdir(parents=True)
    for name in NAMES:
        place = tmp_path / "photos" / ("more" if name == "coffee" else "")
        Image.fromarray(getattr(skimage.data, name)()).save(place / f"{name}.png")
    return tmp_path / "photos"


def test_files_give_the_model_of_their_pictures(folder: Path):
    steps: list[tuple[int, int]] = []
    model = fit_niqe_from_files(
        [folder], "with free licences", lambda done, total: steps.append((done, total))
    )
    pixels = [np.atleast_3d(getattr(skimage.data, name)()) for name in NAMES]
    images = [torch.from_numpy(image.copy()).permute(2, 0, 1) / 255 for image in pixels]
    expected = model_of_blocks([sharp_features(image) for image in images], {})
    np.testing.assert_allclose(model.mean.numpy(), expected.mean.numpy(), rtol=1e-6)
    np.testing.assert_allclose(model.covariance.numpy(), expected.covariance.numpy(), atol=1e-6)
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_the_model_notes_where_it_comes_from(folder: Path):
    meta = fit_niqe_from_files([folder], "with free licences").meta
    assert meta["description"] == "fitted by clearsr fit-niqe on 4 photographs with free licences"
    assert meta["images"] == "4"
    assert abs((date.fromisoformat(meta["date"]) - date.today()).days) <= 1
    assert re.match(r"clearsr \d.*torch \d", meta["software"])
    assert str(folder) not in str(meta)


def test_a_file_at_fault_is_named(folder: Path):
    Image.new("RGB", (90, 200)).save(folder / "small.png")
    with pytest.raises(ClearSRError, match="small.png: NIQE needs an image of at least 96x96, got 90x200"):
        fit_niqe_from_files([folder])
    (folder / "small.png").write_bytes(b"no picture")
    with pytest.raises(ClearSRError, match="small.png"):
        fit_niqe_from_files([folder])


def test_too_few_photographs_are_an_error(folder: Path):
    with pytest.raises(ClearSRError, match="at least 37"):
        fit_niqe_from_files([folder / "brick.png"])
