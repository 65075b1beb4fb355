"""A size in place of a factor: how large results are, what they are called, and what is large already."""

import json

import numpy as np
import pytest
from PIL import Image

from clearsr.config.sampling import SizeConfig


def size_of(path):
    with Image.open(path) as image:
        image.load()
        return image.size


@pytest.mark.parametrize(
    ("flags", "sizes", "mark"),
    [
        # of 16x12 and of 12x16
        (["--width", 40], [(40, 30), (40, 53)], "_width40"),
        (["--height", 40], [(53, 40), (40 * 12 // 16, 40)], "_height40"),
        (["--longest-side", 40], [(40, 30), (30, 40)], "_longest40"),
        (["--shortest-side", 36], [(48, 36), (36, 48)], "_shortest36"),
        (["--fit", "40x36"], [(40, 30), (27, 36)], "_fit40x36"),
        (["--megapixels", "0.0012"], [(40, 30), (30, 40)], "_0.0012mp"),
    ],
)
def test_each_size(upscale, photo, tmp_path, flags, sizes, mark):
    photo("wide.png")
    photo("high.png", 16, 12)
    assert upscale(tmp_path / "wide.png", tmp_path / "high.png", *flags).code == 0
    found = [size_of(tmp_path / f"{name}{mark}.png") for name in ("wide", "high")]
    assert found == sizes
    again = upscale(tmp_path, *flags)
    assert again.code == 0 and "0 upscaled, 2 skipped" in again.err  # results are no inputs


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        (
            ["--width", 40, "--upscale", 2],
            "--upscale, --width: only one size can be had; leave the others out",
        ),
        (["--width", 40, "--set", "size.fit=9x9"], "--width, --set size.fit: only one size can be had"),
        (["--when-large", "skip"], "--when-large: is for a size, such as --width 1920; give one"),
        (["--when-large", "skip", "--upscale", 2], "--when-large: is for a size, such as --width 1920"),
        (["--fit", "40"], "--fit: must be width x height in pixels, such as 1920x1080 (got '40')"),
        (["--fit", "0x40"], "--fit: must be width x height in pixels"),
        (["--width", "0"], "--width: must be greater than or equal to 1 (got 0)"),
        (["--megapixels", "nan"], "--megapixels: must be a number (got nan)"),
        (["--upscale", "nan"], "--upscale: must be a number (got nan)"),
        (["--upscale", "inf"], "--upscale: must be a number (got inf)"),
        (
            ["--when-large", "grow", "--width", 9],
            "--when-large: must be 'copy', 'shrink' or 'skip' (got 'grow')",
        ),
    ],
)
def test_what_cannot_be_had_is_refused_at_once(upscale, photo, flags, error):
    outcome = upscale(photo(), *flags)
    assert (outcome.code, len(outcome.errors)) == (2, 1)
    assert outcome.errors[0].startswith(f"clearsr: error: {error}")


def test_more_than_64_times_is_an_error_of_that_picture(upscale, photo, tmp_path):
    photo("in/tiny.png", 3, 4)
    photo("in/small.png", 12, 16)
    outcome = upscale(tmp_path / "in", "-o", tmp_path / "out", "--width", 300)
    assert outcome.code == 1 and size_of(tmp_path / "out/small.png") == (300, 225)
    assert outcome.errors[0].endswith(
        "tiny.png: --width would enlarge 4x3 75 times; at most 64 times are accepted"
    )


@pytest.fixture
def large(photo, tmp_path):
    """A folder of pictures that have 16 pixels across: one as a JPEG, one as a PNG."""
    photo("in/a.jpg", quality=90)
    photo("in/b.png")
    photo("in/small.png", 6, 8)
    return tmp_path / "in"


def test_a_large_enough_picture_is_copied_byte_by_byte_or_written_in_the_other_format(
    upscale, large, tmp_path
):
    outcome = upscale(large, "-o", tmp_path / "out", "--width", 16, "--format", "jpg", "--json")
    assert outcome.code == 0
    assert (tmp_path / "out/a.jpg").read_bytes() == (large / "a.jpg").read_bytes()
    with Image.open(tmp_path / "out/b.jpg") as image:
        assert image.format == "JPEG"
        assert np.abs(np.asarray(image, float) - np.asarray(Image.open(large / "b.png"), float)).mean() < 2
    records = [json.loads(line) for line in outcome.out.splitlines()]
    said = [[(notice["kind"], notice["text"]) for notice in record["warnings"]] for record in records]
    copied = [("size", "it is 16x12, large enough: copied as it is")]
    assert said == [copied, copied, []]
    assert [(record["width"], record["height"]) for record in records] == [(16, 12)] * 3


def test_a_copy_leaves_metadata_behind_where_that_is_asked_for(upscale, photo, tmp_path):
    exif = Image.Exif()
    exif[315] = "Ann"
    source = photo("a.jpg", exif=exif)
    flags = ["--width", 9, "--set", "output.keep_metadata=false"]
    assert upscale(source, "-o", tmp_path / "b.jpg", *flags).code == 0
    with Image.open(tmp_path / "b.jpg") as image:
        assert image.size == (16, 12) and 315 not in image.getexif()


def test_a_damaged_picture_is_not_copied(upscale, photo, tmp_path):
    source = photo("a.jpg", 200, 300)
    source.write_bytes(source.read_bytes()[:2000])
    outcome = upscale(source, "-o", tmp_path / "b.jpg", "--width", 9)
    assert outcome.code == 1 and "is damaged or incomplete" in outcome.errors[0]
    assert not (tmp_path / "b.jpg").exists()


def test_a_cut_off_picture_is_not_copied_byte_by_byte(upscale, photo, tmp_path):
    source = photo("a.jpg", 60, 80, quality=95)
    source.write_bytes(source.read_bytes()[:-2])
    outcome = upscale(source, "-o", tmp_path / "b.jpg", "--width", 9)
    assert outcome.code == 0 and "only the end of the file is missing" in outcome.err
    assert (tmp_path / "b.jpg").read_bytes().endswith(b"\xff\xd9")


def test_shrunk_by_bicubic_without_the_network(upscale, photo, tmp_path):
    source = photo("a.png", 48, 64)
    outcome = upscale(source, "-o", tmp_path / "out", "--width", 32, "--when-large", "shrink")
    assert "it is 64x48, large enough: shrunk to 32x24" in outcome.err
    expected = Image.open(source).resize((32, 24), Image.Resampling.BICUBIC)
    found = np.asarray(Image.open(tmp_path / "out/a.png"), int)
    assert np.abs(found - np.asarray(expected, int)).max() <= 1


def test_skipped_pictures_are_named_and_counted(upscale, large, tmp_path):
    flags = ["-o", tmp_path / "out", "--width", 16, "--when-large", "skip"]
    outcome = upscale(large, *flags, "--compare")
    assert outcome.code == 0 and "a.jpg: is 16x12, large enough for --width; skipped" in outcome.err
    assert outcome.err.splitlines()[-1] == "1 upscaled, 2 skipped, 0 failed"
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["small.png", "small_comparison.png"]
    records = [json.loads(line) for line in upscale(large, *flags, "--json").out.splitlines()]
    assert [record["status"] for record in records] == ["skipped"] * 3
    reasons = [record["error"] for record in records if record["input"].endswith(("a.jpg", "b.png"))]
    assert len(reasons) == 2 and all("large enough" in reason for reason in reasons)


def test_another_method_has_the_same_sizes(upscale, large, tmp_path):
    outcome = upscale(large, "-o", tmp_path / "out", "--baseline", "lanczos", "--width", 20)
    assert outcome.code == 0
    assert {size_of(path) for path in (tmp_path / "out").iterdir()} == {(20, 15)}
    outcome = upscale(large, "-o", tmp_path / "two", "--baseline", "bicubic", "--width", 9)
    assert outcome.code == 0 and size_of(tmp_path / "two/a.png") == (16, 12)


def test_a_batch_skips_and_does_not_look_again(run, model, large, tmp_path, monkeypatch):
    command = ["batch", large, "-o", tmp_path / "out", "--model", model, "--engine", "local", "--workers", 1]
    command += ["--device", "cpu", "--width", 16, "--when-large", "skip", "--json"]
    rows = {row["input"][-5:]: row for row in map(json.loads, run(*command).out.splitlines())}
    assert {name: row["status"] for name, row in rows.items()} == {
        "a.jpg": "skipped", "b.png": "skipped", "l.png": "ok",
    }  # fmt: skip
    assert "large enough for --width" in rows["a.jpg"]["error"]
    monkeypatch.setattr("clearsr.batch.run.run_alone", lambda *_: pytest.fail("there is nothing to do"))
    again = run(*command)
    assert (again.code, again.out) == (0, "") and "done again" not in again.err


def test_commands_that_measure_take_no_size(run, tmp_path):
    (tmp_path / "size.yaml").write_text("size: {width: 64}\n")
    for flags in (["--set", "size.width=64"], ["--config", tmp_path / "size.yaml"]):
        outcome = run("evaluate", "--lr", tmp_path, "--hr", tmp_path, *flags)
        assert outcome.code == 2
        assert "results are as large as the originals here; leave it out" in outcome.errors[0]


def test_each_wish_has_a_mark_of_its_own():
    from clearsr.config.sampling import WISHES, SamplingConfig
    from clearsr.files.plan import mark_of

    values = {name: "8x8" if name == "fit" else 8 for name in WISHES}
    marks = {mark_of(SamplingConfig(size=SizeConfig(**{name: value}))) for name, value in values.items()}
    assert len(marks) == len(WISHES) == 6
