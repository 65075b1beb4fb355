"""PSNR and SSIM against values that pyiqa gave for the same pictures (stored in tests/calibration)."""

import json
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image

from clearsr.evaluation.pairs import read_8_bit

STORED = json.loads((Path(__file__).parent.parent / "calibration" / "pyiqa_luma.json").read_text("utf-8"))


def pictures():
    """Name -> distorted, original, H×W×3; all in whole numbers, so every machine makes the same."""
    generator = np.random.default_rng(7)
    for name in ("astronaut", "chelsea", "coffee"):
        hr = getattr(skimage.data, name)()[:160, 40:240].astype(np.int64)
        yield f"{name}, noise", np.clip(hr + generator.integers(-12, 13, hr.shape), 0, 255), hr
        soft = hr.copy()
        around = hr[:-2, 1:-1] + hr[2:, 1:-1] + hr[1:-1, :-2] + hr[1:-1, 2:]
        soft[1:-1, 1:-1] = (around + 4 * hr[1:-1, 1:-1]) // 8
        yield f"{name}, soft", soft, hr
        yield f"{name}, coarse", hr // 16 * 16 + 8, hr


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("calibration")
    for role in ("sr", "hr"):
        (root / role).mkdir()
    for name, sr, hr in pictures():
        Image.fromarray(sr.astype(np.uint8)).save(root / "sr" / f"{name}.png")
        Image.fromarray(hr.astype(np.uint8)).save(root / "hr" / f"{name}.png")
    return root


@pytest.mark.parametrize("crop_border", [0, 4])
def test_per_image_rows_are_those_of_pyiqa(folders, crop_border):
    from clearsr.config.evaluation import EvaluationConfig
    from clearsr.evaluation.evaluate import evaluate_outputs
    from clearsr.evaluation.measures import Scorer
    from clearsr.evaluation.pairs import match_folders

    config = EvaluationConfig(
        measures=("psnr", "psnr_pyiqa", "ssim", "ssim_rounded"), crop_border=crop_border
    )
    pairs = match_folders({"sr": folders / "sr", "hr": folders / "hr"})
    rows = {row.image: row.values for row in evaluate_outputs("x", pairs, Scorer(config)).rows}
    expected = [row for row in STORED["rows"] if row["crop_border"] == crop_border]
    assert len(expected) == len(rows) == 9
    for row in expected:
        ours = rows[row["image"]]
        assert ours["psnr_pyiqa"] == pytest.approx(row["psnr"], abs=STORED["tolerance"]["psnr"] / 10)
        assert ours["psnr"] == pytest.approx(row["psnr"], abs=STORED["tolerance"]["psnr"])
        assert ours["ssim_rounded"] == pytest.approx(row["ssim"], abs=STORED["tolerance"]["ssim"])
        assert ours["ssim_rounded"] != ours["ssim"]


def test_a_picture_is_read_on_the_levels_of_8_bits(tmp_path):
    levels = np.array([[0, 100, 32768, 65535]], dtype=np.uint16)
    Image.fromarray(levels).save(tmp_path / "deep.png")
    assert (read_8_bit(tmp_path / "deep.png")[0, 0] * 255).tolist() == pytest.approx([0, 0, 128, 255])


def test_one_picture_in_files_of_every_kind_is_one_picture(tmp_path):
    levels = np.random.default_rng(1).integers(0, 4, (16, 20, 1), dtype=np.uint8) * 85
    grey = Image.fromarray(levels[..., 0])
    kinds = {
        "grey": grey,
        "rgb": grey.convert("RGB"),
        "palette": grey.convert("RGB").quantize(8),
        "deep": Image.fromarray(levels[..., 0].astype(np.uint16) * 257),
        "alpha": Image.merge("RGBA", [grey, grey, grey, Image.new("L", grey.size, 7)]),
    }
    expected = levels.transpose(2, 0, 1).repeat(3, axis=0)
    for name, image in kinds.items():
        image.save(tmp_path / f"{name}.png")
        found = read_8_bit(tmp_path / f"{name}.png") * 255
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-4, err_msg=name)
