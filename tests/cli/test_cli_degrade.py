"""`clearsr degrade`: pairs of files that depend on picture, path, settings and seed alone."""

import numpy as np
import pytest
from PIL import Image

from clearsr.degradation import degrade, preset_config
from clearsr.image import read_image
from clearsr.seeds import make_generator


def levels(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def test_pair_is_what_the_library_makes(run, photo, tmp_path):
    source = photo("in/sub/a.png", 37, 50)
    arguments = ("--preset", "light", "--seed", "3", "--hr-out", tmp_path / "hr")
    outcome = run("degrade", tmp_path / "in", "-o", tmp_path / "lr", *arguments)
    assert outcome.code == 0
    hr = read_image(source).color[:, :36, :48].contiguous()
    lr = degrade(hr, preset_config("light"), make_generator("degrade", 3, "sub/a.png"))
    assert (levels(tmp_path / "lr/sub/a.png") == (lr * 255).round().byte().permute(1, 2, 0).numpy()).all()
    assert (levels(tmp_path / "hr/sub/a.png") == levels(source)[:36, :48]).all()
    assert outcome.out == f"{source} -> {tmp_path / 'lr/sub/a.png'} (12x9, " + outcome.out[-7:]


@pytest.mark.parametrize("preset", ["full", "light", "camera", "compressed", "bicubic"])
def test_presets_and_factor(run, photo, tmp_path, preset):
    outcome = run(
        "degrade", photo("a.jpg", 30, 42), "-o", tmp_path / "out", "--preset", preset, "--upscale", "3"
    )
    assert outcome.code == 0
    assert levels(tmp_path / "out/a.png").shape == (10, 14, 3)


def test_bicubic_is_pillows(run, photo, tmp_path):
    source = photo("a.png", 32, 48)
    run("degrade", source, "-o", tmp_path / "b.png", "--preset", "bicubic")
    expected = Image.fromarray(levels(source)).resize((12, 8), Image.Resampling.BICUBIC)
    assert np.abs(levels(tmp_path / "b.png").astype(int) - np.asarray(expected).astype(int)).max() <= 1


def test_result_depends_on_the_seed_but_not_on_the_other_files(run, photo, tmp_path):
    source = photo("in/a.png", 32, 32)
    run("degrade", source, "-o", tmp_path / "alone.png")
    run("degrade", source, "-o", tmp_path / "other.png", "--seed", "1")
    photo("in/0.png", 16, 16)
    run("degrade", tmp_path / "in", "-o", tmp_path / "out")
    assert (tmp_path / "alone.png").read_bytes() == (tmp_path / "out/a.png").read_bytes()
    assert (tmp_path / "alone.png").read_bytes() != (tmp_path / "other.png").read_bytes()


def test_done_pairs_are_skipped_and_missing_halves_made(run, photo, tmp_path):
    photo("in/a.png", 16, 16)
    pair = ("degrade", tmp_path / "in", "-o", tmp_path / "in/lr", "--hr-out", tmp_path / "in/hr")
    assert run(*pair).code == 0
    assert "skipped" in run(*pair).err
    (tmp_path / "in/hr/a.png").unlink()
    assert run(*pair).out.count("->") == 1
    assert (tmp_path / "in/hr/a.png").exists()
    assert sorted(path.name for path in (tmp_path / "in").rglob("*.png")) == ["a.png"] * 3


def test_transparency_and_grey_become_rgb(run, tmp_path):
    Image.new("LA", (16, 16), (90, 128)).save(tmp_path / "a.png")
    assert run("degrade", tmp_path / "a.png", "-o", tmp_path / "out").code == 0
    assert Image.open(tmp_path / "out/a.png").mode == "RGB"


def test_bad_files_do_not_stop_the_others(run, photo, tmp_path):
    photo("in/good.png", 16, 16)
    photo("in/tiny.png", 3, 3)
    (tmp_path / "in/bad.png").write_bytes(b"")
    outcome = run("degrade", tmp_path / "in", "-o", tmp_path / "out")
    assert outcome.code == 1
    assert outcome.err.splitlines()[-1] == "1 degraded, 0 skipped, 2 failed"
    assert "tiny.png: image of 3x3 pixels: smaller than 4x4" in outcome.errors[1]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["good.png"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["--preset", "heavy"],
            "--preset: must be 'full', 'light', 'camera', 'real', 'compressed' or 'bicubic'",
        ),
        (["--upscale", "0"], "--upscale: must be from 1 to 64 (got 0)"),
        (
            ["--set", "first.blur.sigma=[3,1]"],
            "--set first.blur.sigma: the low end 3 is above the high end 1",
        ),
        (["--hr-out", "out"], "--hr-out out: is the same as -o"),
        (["--hr-out", "hr.jpg"], "--hr-out hr.jpg: only lossless files are written"),
    ],
)
def test_wrong_flags(run, photo, monkeypatch, tmp_path, arguments, says):
    source = photo("a.png")
    monkeypatch.chdir(tmp_path)
    outcome = run("degrade", source, "-o", "out", *arguments)
    assert outcome.code == 2
    assert outcome.err.startswith(f"clearsr: error: {says}")
    assert len(outcome.err.splitlines()) == 1
