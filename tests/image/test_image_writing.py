"""Round trips of every output format, atomic writing, and refusals."""

import errno
import os
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from clearsr.config.output import OutputConfig
from clearsr.errors import ClearSRError
from clearsr.image import ImageData, check_output, output_suffixes, read_image, write_image
from clearsr.image import writing as writing_module

_LOSSLESS = [".png", ".tif", ".tiff", ".webp"]


def _image(
    depth: int = 8, is_gray: bool = False, has_alpha: bool = False, size: tuple[int, int] = (70, 31)
) -> ImageData:
    generator = torch.Generator().manual_seed(depth)
    top = 2**depth - 1
    levels = torch.randint(0, top + 1, (1 if is_gray else 3, *size), generator=generator)
    alpha = torch.randint(0, top + 1, (1, *size), generator=generator) / top if has_alpha else None
    return ImageData((levels / top).repeat(3 if is_gray else 1, 1, 1), alpha, is_gray, depth)


def _unpaeth(data: bytes, height: int, width: int, channels: int) -> np.ndarray:
    """Decode 16-bit PNG rows byte by byte, as the specification describes filter 4."""
    step, length = 2 * channels, 2 * channels * width
    rows = [[0] * length]
    for y in range(height):
        line = data[y * (length + 1) : (y + 1) * (length + 1)]
        assert line[0] == 4
        row: list[int] = []
        for i, value in enumerate(line[1:]):
            a, c = (row[i - step], rows[-1][i - step]) if i >= step else (0, 0)
            b = rows[-1][i]
            p = a + b - c
            pa, pb, pc = abs(p - a), abs(p - b), abs(p - c)
            row.append((value + (a if pa <= pb and pa <= pc else b if pb <= pc else c)) % 256)
        rows.append(row)
    return np.array(rows[1:], np.uint8).view(">u2").reshape(height, width, channels)


@pytest.mark.parametrize("suffix", _LOSSLESS)
@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("is_gray", [False, True])
@pytest.mark.parametrize("has_alpha", [False, True])
def test_lossless_formats_give_back_every_value(
    tmp_path: Path, suffix: str, depth: int, is_gray: bool, has_alpha: bool
) -> None:
    image = _image(depth, is_gray, has_alpha)
    path = tmp_path / f"x{suffix}"
    write_image(image, path)
    back = read_image(path)
    kept = 8 if suffix == ".webp" else depth
    tolerance = 1e-6 if kept == depth else 0.5 / 255 + 1e-6
    assert (back.color - image.color).abs().max() < tolerance
    assert (back.alpha is None) == (image.alpha is None)
    if back.alpha is not None and image.alpha is not None:
        assert (back.alpha - image.alpha).abs().max() < tolerance
    assert back.bit_depth == kept
    assert back.is_gray == (is_gray and suffix != ".webp")
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_png_of_16_bits_is_what_the_specification_says(tmp_path: Path, channels: int) -> None:
    image = _image(16, channels <= 2, channels in (2, 4), size=(9, 5))
    write_image(image, tmp_path / "x.png")
    data, content, position = (tmp_path / "x.png").read_bytes(), b"", 8
    while position < len(data):
        size = int.from_bytes(data[position : position + 4], "big")
        kind, body = data[position + 4 : position + 8], data[position + 8 : position + 8 + size]
        assert int.from_bytes(data[position + 8 + size : position + 12 + size], "big") == zlib.crc32(
            kind + body
        )
        content += body if kind == b"IDAT" else b""
        position += 12 + size
    samples = _unpaeth(zlib.decompress(content), 9, 5, channels)
    expected = (image.color[: 1 if channels <= 2 else 3] * 65535).round()
    assert np.array_equal(np.moveaxis(samples[..., : expected.shape[0]], -1, 0), expected.numpy())


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_tiff_of_16_bits_is_what_tifffile_reads(tmp_path: Path, channels: int) -> None:
    image = _image(16, channels <= 2, channels in (2, 4))
    for compression in ("deflate", "none"):
        write_image(image, tmp_path / "x.tif", OutputConfig(tiff_compression=compression))
        samples = tifffile.imread(tmp_path / "x.tif").reshape(70, 31, channels)
        assert samples.dtype == np.uint16
        assert np.array_equal(samples[..., 0], (image.color[0] * 65535).round().numpy())


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".avif"])
def test_lossy_formats_keep_full_chroma(tmp_path: Path, suffix: str) -> None:
    if suffix not in output_suffixes():
        pytest.skip(f"this Pillow does not write {suffix}")
    color = torch.zeros(3, 32, 32)
    color[0, :, ::2], color[2, :, 1::2] = 0.8, 0.8  # red and blue columns: lost if chroma is halved
    write_image(ImageData(color), tmp_path / f"x{suffix}")
    assert (read_image(tmp_path / f"x{suffix}").color - color).abs().max() < 0.06


def test_webp_with_loss_is_smaller_and_close(tmp_path: Path) -> None:
    ramp = torch.linspace(0.1, 0.9, 96).expand(3, 64, 96) + torch.randn(
        1, 64, 96, generator=torch.Generator().manual_seed(0)
    ).mul(0.02)
    image = ImageData(ramp.clamp(0, 1))
    write_image(image, tmp_path / "a.webp")
    write_image(image, tmp_path / "b.webp", OutputConfig(webp_lossless=False))
    assert (tmp_path / "b.webp").stat().st_size < (tmp_path / "a.webp").stat().st_size
    assert (read_image(tmp_path / "b.webp").color - image.color).abs().mean() < 0.01


def test_values_are_rounded_to_nearest_and_clamped(tmp_path: Path) -> None:
    values = torch.tensor([-0.5, 0.49 / 255, 0.51 / 255, 100.49 / 255, 1.7]).view(1, 1, 5).repeat(3, 1, 1)
    write_image(ImageData(values), tmp_path / "x.png")
    assert np.asarray(Image.open(tmp_path / "x.png"))[0, :, 1].tolist() == [0, 0, 1, 100, 255]


def test_bit_depth_can_be_chosen(tmp_path: Path) -> None:
    write_image(_image(8), tmp_path / "x.png", OutputConfig(bit_depth=16))
    assert read_image(tmp_path / "x.png").bit_depth == 16
    write_image(_image(16), tmp_path / "x.tif", OutputConfig(bit_depth=8))
    assert read_image(tmp_path / "x.tif").bit_depth == 8


def test_jpeg_lays_transparency_onto_white_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    image = ImageData(torch.zeros(3, 16, 16), torch.full((1, 16, 16), 0.25))
    write_image(image, tmp_path / "x.jpg")
    assert (read_image(tmp_path / "x.jpg").color - 0.75).abs().max() < 0.01
    assert "laid onto white" in caplog.text
    caplog.clear()
    write_image(replace(image, alpha=torch.ones(1, 16, 16)), tmp_path / "y.jpg")
    assert caplog.text == ""


def test_16_bits_become_8_for_jpeg_with_a_note(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="clearsr")
    write_image(_image(16), tmp_path / "x.jpg")
    assert read_image(tmp_path / "x.jpg").bit_depth == 8 and "were rounded" in caplog.text


def test_grey_result_with_a_tint_is_written_as_its_luma(tmp_path: Path) -> None:
    color = torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1).repeat(1, 4, 4)
    write_image(ImageData(color, is_gray=True), tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as image:
        assert image.mode == "L" and image.getpixel((0, 0)) == round(0.299 * 255)


def test_an_existing_file_is_replaced_also_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "real.png").write_bytes(b"old")
    (tmp_path / "link.png").symlink_to(tmp_path / "real.png")
    write_image(_image(), tmp_path / "link.png")
    assert (tmp_path / "link.png").is_symlink() and read_image(tmp_path / "real.png").width == 31


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp"])
@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (PermissionError(errno.EACCES, "Permission denied"), "permission denied"),
        (KeyboardInterrupt(), ""),
    ],
)
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, error: BaseException, says: str
) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_bytes(b"old")

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(writing_module.os, "replace", fail)
    with pytest.raises(ClearSRError if says else KeyboardInterrupt) as caught:
        write_image(_image(), path)
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == [path.name]
    if says:
        assert str(caught.value) == f"{path}: cannot be written: {says}"


def test_a_failing_encoder_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(ClearSRError, match="x.png: cannot be written: the disk is full"):
        write_image(_image(), tmp_path / "x.png")
    assert os.listdir(tmp_path) == []


def test_outputs_that_cannot_be_are_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "folder.png").mkdir()
    for path, says in (
        (tmp_path / "x.bmp", r"has the suffix '.bmp'; accepted for output: .png, "),
        (tmp_path / "x.gif", r"a GIF holds 256 colours and is written of animations alone \(--frames all\)"),
        (tmp_path / "x", "has no suffix"),
        (tmp_path / "folder.png", "is a folder"),
        (tmp_path / "missing" / "x.png", "missing does not exist"),
        (tmp_path / "file" / "x.png", "cannot be written"),
    ):
        for attempt in (check_output, lambda path: write_image(_image(), path)):
            with pytest.raises(ClearSRError, match=says) as caught:
                attempt(path)
            assert "\n" not in str(caught.value)
    with pytest.raises(
        ClearSRError, match="9×17000 is too large for WEBP .at most 16383 a side.; use .png or .tif"
    ):
        check_output(tmp_path / "x.webp", (17000, 9))
    assert sorted(os.listdir(tmp_path)) == ["file", "folder.png"]


@pytest.mark.parametrize("quality", [1, 85, 94, 95, 100])
def test_noise_becomes_jpeg_at_any_quality(tmp_path, quality):
    noise = torch.rand((3, 400, 400), generator=torch.Generator().manual_seed(0))
    write_image(ImageData(noise), tmp_path / "a.jpg", OutputConfig(jpeg_quality=quality))
    with Image.open(tmp_path / "a.jpg") as image:
        image.load()
        assert image.size == (400, 400)
