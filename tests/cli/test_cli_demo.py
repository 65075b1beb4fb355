"""`clearsr demo`: pictures and figures of one photograph."""

import json
import sys

import numpy as np
import pytest
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio

from clearsr.evaluation.demo import PHOTOGRAPHS, load_photograph


def studio_luma(path):
    rgb = np.asarray(Image.open(path).convert("RGB"), dtype=np.float64) / 255
    return rgb @ np.array([65.481, 128.553, 24.966]) + 16


def test_pictures_and_figures(run, model, photo, tmp_path):
    source = photo("a.png", 50, 66)
    out = tmp_path / "demo"
    outcome = run("demo", "--photo", source, "-o", out, "--model", model, "--device", "cpu", "--json")
    assert outcome.code == 0
    sizes = {path.stem: Image.open(path).size for path in out.glob("*.png")}
    assert {name: sizes[name] for name in ("lr", "bicubic", "clearsr", "hr")} == {
        "lr": (12, 12),
        "bicubic": (48, 48),
        "clearsr": (48, 48),
        "hr": (48, 48),
    }
    assert sizes["comparison"][0] > 4 * 48
    scores = {score["name"]: score for score in json.loads(outcome.out)["scores"]}
    for name in ("bicubic", "clearsr"):
        reference = peak_signal_noise_ratio(
            studio_luma(out / "hr.png"), studio_luma(out / f"{name}.png"), data_range=255
        )
        assert scores["ClearSR" if name == "clearsr" else name]["psnr"] == pytest.approx(reference, abs=0.1)


def test_table_for_people(run, model, photo, tmp_path):
    outcome = run("demo", "--photo", photo("a.png", 48, 48), "-o", tmp_path / "demo", "--model", model)
    assert all(word in outcome.out for word in ("PSNR-Y", "SSIM-Y", "sharpness", "bicubic", "ClearSR"))
    assert outcome.out.splitlines()[-1] == f"pictures: {tmp_path / 'demo/comparison.png'}"


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_bundled_photographs_need_no_download(name):
    image = load_photograph(name)
    assert image.height == image.width
    assert image.height % 4 == 0 and image.height >= 296
    assert image.color.std() > 0.05


def test_missing_photograph_and_missing_scikit_image(run, tmp_path, monkeypatch):
    outcome = run("demo", "--photo", "nobody", "-o", tmp_path)
    assert outcome.errors[0].startswith(
        "clearsr: error: --photo nobody: is neither a file nor one of astronaut"
    )
    monkeypatch.setitem(sys.modules, "skimage.data", None)
    monkeypatch.setitem(sys.modules, "skimage", None)
    outcome = run("demo", "-o", tmp_path)
    assert (outcome.code, len(outcome.err.splitlines())) == (1, 1)
    assert "pip install 'clearsr[demo]'" in outcome.err
