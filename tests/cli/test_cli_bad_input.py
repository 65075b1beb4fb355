"""Every kind of input that goes wrong elsewhere: the right picture, or one line on what is accepted."""

import io
import json
import os

import numpy as np
import pytest
import tifffile
from PIL import Image


def png_bytes(array, **options):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG", **options)
    return buffer.getvalue()


def assert_refused(outcome, *words, code=1):
    """Exactly one line on stderr, and it holds the words."""
    assert outcome.code == code
    assert outcome.out == ""
    assert len(outcome.err.splitlines()) == 1, outcome.err
    assert outcome.err.startswith("clearsr: error: ")
    for word in words:
        assert str(word) in outcome.err


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("empty.png", lambda good: b"", "is empty (0 bytes)"),
        (
            "text.png",
            lambda good: b"Dear diary, today I was a picture.\n",
            "is not an image that can be read",
        ),
        ("truncated.png", lambda good: good[: len(good) // 2], "is damaged or incomplete"),
        ("corrupt.png", lambda good: good[:60] + bytes(40) + good[100:], "is damaged or incomplete"),
    ],
)
def test_damaged_files(upscale, tmp_path, pixels, name, content, says):
    path = tmp_path / name
    path.write_bytes(content(png_bytes(pixels(40, 40))))
    assert_refused(upscale(path, "-o", tmp_path / "out"), path, says)
    assert not (tmp_path / "out").exists()


def test_folder_with_bad_files_finishes_the_good_ones(upscale, photo, tmp_path):
    photo("in/a.png")
    photo("in/z.png")
    (tmp_path / "in/b.png").write_bytes(b"")
    (tmp_path / "in/c.png").write_text("no picture")
    outcome = upscale(tmp_path / "in", "-o", tmp_path / "out")
    assert outcome.code == 1
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "z.png"]
    assert len(outcome.errors) == 2
    assert "b.png" in outcome.errors[0] and "c.png" in outcome.errors[1]
    assert outcome.err.splitlines()[-1] == "2 upscaled, 0 skipped, 2 failed"


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (7, 5)])
def test_extreme_sizes(upscale, photo, tmp_path, size):
    width, height = size
    assert upscale(photo("a.png", height, width), "-o", tmp_path / "out").code == 0
    with Image.open(tmp_path / "out/a.png") as image:
        assert image.size == (4 * width, 4 * height)


def result_of(upscale, path, *arguments):
    """The result of one file, opened; there must be no error."""
    output = path.parent / "out.png"
    outcome = upscale(path, "-o", output, *arguments)
    assert outcome.code == 0, outcome.err
    image = Image.open(output)
    image.load()
    return image


def difference(image, expected):
    return np.abs(np.asarray(image, dtype=float) - np.asarray(expected, dtype=float)).mean()


def test_palette(upscale, tmp_path, pixels):
    Image.fromarray(pixels(24, 32)).quantize(64).save(tmp_path / "palette.png")
    result = result_of(upscale, tmp_path / "palette.png")
    assert (result.mode, result.size) == ("RGB", (128, 96))
    assert difference(result, pixels(96, 128)) < 14


def test_cmyk(upscale, tmp_path, pixels):
    Image.fromarray(pixels(24, 32)).convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    result = result_of(upscale, tmp_path / "cmyk.jpg")
    assert result.mode == "RGB"
    assert difference(result, pixels(96, 128)) < 14


def test_greyscale_stays_grey(upscale, tmp_path, pixels):
    Image.fromarray(pixels(24, 32)).convert("L").save(tmp_path / "grey.png")
    result = result_of(upscale, tmp_path / "grey.png")
    assert result.mode == "L"
    assert difference(result, Image.fromarray(pixels(96, 128)).convert("L")) < 14


def test_16_bits_stay_16_bits(upscale, tmp_path, pixels):
    tifffile.imwrite(tmp_path / "deep.tif", pixels(24, 32).astype(np.uint16) * 257, photometric="rgb")
    assert upscale(tmp_path / "deep.tif", "--format", "tiff", "-o", tmp_path / "out").code == 0
    result = tifffile.imread(tmp_path / "out/deep.tif")
    assert result.dtype == np.uint16
    assert np.unique(result % 257).size > 1  # more than 8 bits of values
    assert difference(result / 257, pixels(96, 128)) < 14


def test_alpha_is_upscaled_and_kept(upscale, tmp_path, pixels):
    alpha = np.zeros((24, 32), np.uint8)
    alpha[:, 16:] = 255
    Image.fromarray(np.dstack([pixels(24, 32), alpha])).save(tmp_path / "alpha.png")
    result = result_of(upscale, tmp_path / "alpha.png")
    assert result.mode == "RGBA"
    kept = np.asarray(result)[..., 3]
    assert (kept[:, :56] == 0).all() and (kept[:, 72:] == 255).all()


def test_animation_gives_its_first_frame_and_a_warning(upscale, tmp_path, pixels):
    frames = [Image.fromarray(pixels(24, 32)), Image.new("RGB", (32, 24))]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    outcome = upscale(tmp_path / "moving.gif", "-o", tmp_path / "out")
    assert outcome.code == 0
    assert outcome.err.startswith("clearsr: warning: ") and "only the first is used" in outcome.err
    assert difference(Image.open(tmp_path / "out/moving.png"), pixels(96, 128)) < 20


def test_exif_orientation_is_applied(upscale, tmp_path, pixels):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise for viewing
    upright = pixels(32, 24)
    Image.fromarray(np.rot90(upright)).save(tmp_path / "turned.png", exif=exif)
    result = result_of(upscale, tmp_path / "turned.png")
    assert result.size == (96, 128)
    assert difference(result, pixels(128, 96)) < 14
    assert result.getexif().get(0x0112, 1) == 1


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_unreadable_folder(upscale, photo, tmp_path):
    photo("in/a.png")
    (tmp_path / "in").chmod(0)
    try:
        assert_refused(upscale(tmp_path / "in", "-o", tmp_path / "out"), tmp_path / "in", "cannot be read")
    finally:
        (tmp_path / "in").chmod(0o755)


def test_folder_that_refuses_to_be_listed(upscale, photo, tmp_path, monkeypatch):
    photo("in/a.png")

    def refuse(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr("clearsr.image.listing.os.scandir", refuse)
    outcome = upscale(tmp_path / "in", "-o", tmp_path / "out")
    assert_refused(outcome, tmp_path / "in", "the folder cannot be read: permission denied")


def test_missing_input(upscale, photo, tmp_path):
    photo("a.png")
    outcome = upscale(tmp_path / "a.png", tmp_path / "b.png", "-o", tmp_path / "out")
    assert_refused(outcome, tmp_path / "b.png", "does not exist")
    assert not (tmp_path / "out").exists()


def test_folder_without_images(upscale, tmp_path):
    (tmp_path / "in").mkdir()
    assert_refused(upscale(tmp_path / "in"), "holds no images (accepted suffixes:")


@pytest.mark.parametrize("output", ["taken", "taken/below"])
def test_output_folder_that_is_a_file(upscale, photo, tmp_path, output):
    (tmp_path / "taken").write_text("here first")
    assert_refused(upscale(photo("a.png"), "-o", tmp_path / output), tmp_path / output, "is a file")
    assert (tmp_path / "taken").read_text() == "here first"


def test_output_that_is_the_input(upscale, photo, tmp_path):
    source = photo("a.png")
    before = source.read_bytes()
    for output in (source, tmp_path):
        assert_refused(upscale(source, "-o", output, "--overwrite"), "is also an input")
    assert source.read_bytes() == before


def test_output_folder_that_is_the_input_folder(upscale, photo, tmp_path):
    photo("in/a.jpg")
    assert_refused(upscale(tmp_path / "in", "-o", tmp_path / "in"), "-o", "is also an input")


def test_one_file_name_for_several_inputs(upscale, photo, tmp_path):
    paths = [photo("a.png"), photo("b.png")]
    assert_refused(upscale(*paths, "-o", tmp_path / "c.png"), "names one file, but there are 2 inputs")


def test_output_format_that_is_not_written(upscale, photo, tmp_path):
    assert_refused(upscale(photo("a.png"), "-o", tmp_path / "b.bmp"), "b.bmp", "accepted for output: .png")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--upscale", "0"], "--upscale: must be greater than 0 (got 0)"),
        (["--lsa", "strong"], "--lsa: must be 'clearsr', 'fidelity' or 'off' (got 'strong')"),
        (["--guidance-scale", "0.5"], "--guidance-scale: must be greater than or equal to 1 (got 0.5)"),
        (["--scheduler", "magic"], "--scheduler: must be 'ddpm'"),
        (["--format", "bmp"], "--format: invalid choice"),
        (["--quality", "90"], "--quality 90: png is lossless"),
        (["--format", "jpg", "--quality", "101"], "--quality: must be less than or equal to 100 (got 101)"),
        (["--format", "jpg", "--quality", "high"], "--quality: must be a valid integer"),
        (["--format", "jpg", "--quality", "²"], "--quality: must be a valid integer"),
        (["--max-memory", "much"], "--max-memory: must be a size such as 500MB or 4GB (got 'much')"),
        (["-o", ""], "is empty; expected a file or folder"),
        ([""], "INPUT: is empty; expected a file or folder"),
        (["--format", "jpg", "-o", "b.png"], "--format jpg: -o b.png says otherwise"),
        (["--negative-prompt", "blurry"], "--negative-prompt: this model has no text encoder"),
        (["--set", "output.quality=3"], "--set output.quality: unknown key"),
    ],
)
def test_wrong_flag_values(upscale, photo, arguments, says):
    assert_refused(upscale(photo("a.png"), *arguments), says, code=2)


def test_device_that_is_not_there(upscale, photo):
    assert_refused(upscale(photo("a.png"), "--device", "cuda:99"), "--device cuda:99", "accepted: auto")


def test_half_precision_on_a_processor(upscale, photo):
    assert_refused(upscale(photo("a.png"), "--precision", "fp16"), "--precision fp16")


def test_unknown_model(run, photo, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    outcome = run("upscale", photo("a.png"), "--model", "no folder, no id")
    assert_refused(outcome, "--model no folder, no id", "compact")


def test_missing_weights(run, photo, model, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_bytes((model / "config.json").read_bytes())
    assert_refused(run("upscale", photo("a.png"), "--model", tmp_path / "model"), "model.safetensors")


def test_damaged_weights(run, photo, model, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_bytes((model / "config.json").read_bytes())
    weights = (model / "model.safetensors").read_bytes()
    (tmp_path / "model/model.safetensors").write_bytes(weights[: len(weights) // 2])
    assert_refused(
        run("upscale", photo("a.png"), "--model", tmp_path / "model"), "cannot be read as safetensors"
    )


def test_a_name_too_long_for_its_result_costs_that_picture_alone(upscale, run, model, photo, tmp_path):
    photo("in/a.png")
    photo(f"in/{'n' * 249}.png")  # n…n_x4.png has 256 bytes
    outcomes = [upscale(tmp_path / "in")]
    (tmp_path / "in/a_x4.png").unlink()  # it was done
    photo(f"in/{'n' * 251}.png")
    (tmp_path / f"in/{'n' * 249}.png").unlink()
    pool = ["--engine", "local", "--workers", 1, "--format", "webp"]
    outcomes += [run("batch", tmp_path / "in", "-o", tmp_path / "out", "--model", model, *pool)]
    assert (tmp_path / "out/a.webp").exists()
    for outcome in outcomes:
        assert (outcome.code, len(outcome.errors)) == (1, 1)
        assert "file name too long" in outcome.errors[0].lower()
        assert outcome.err.splitlines()[-1].endswith(
            ("1 upscaled, 0 skipped, 1 failed", "1 ok, 0 skipped, 1 failed")
        )


def test_an_output_with_too_long_a_name_is_one_line(upscale, photo, tmp_path):
    for output in (tmp_path / f"{'n' * 260}.png", tmp_path / ("n" * 260)):
        outcome = upscale(photo(), "-o", output)
        assert outcome.code in (1, 2) and len(outcome.errors) == 1
        assert "file name too long" in outcome.errors[0].lower()


def test_a_cut_off_picture_is_taken_where_that_is_allowed(upscale, photo, tmp_path):
    source = photo("a.jpg", 60, 80, quality=95)
    whole = source.read_bytes()
    source.write_bytes(whole[: len(whole) * 7 // 10])
    outcome = upscale(source, "-o", tmp_path / "out")
    assert outcome.code == 1 and outcome.errors[0].endswith("--allow-truncated takes what is there")
    outcome = upscale(source, "-o", tmp_path / "out", "--allow-truncated", "--json", "--compare")
    assert outcome.code == 0 and "the rest is grey" in outcome.err
    (notice,) = json.loads(outcome.out)["warnings"]
    assert notice["kind"] == "truncated"
    source.write_bytes(whole[:-2])
    outcome = upscale(source, "-o", tmp_path / "end")
    assert outcome.code == 0 and "only the end of the file is missing" in outcome.err
