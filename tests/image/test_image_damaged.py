"""Files that are not what their name says: one line that names the file, or a valid image; never a trace."""

import io
import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from clearsr.errors import ClearSRError
from clearsr.image import read_image

_PICTURE = np.random.default_rng(0).integers(0, 256, (40, 52, 3), dtype=np.uint8)


def _encoded(kind: str) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(_PICTURE)
    if kind == "tif16":
        tifffile.imwrite(buffer, _PICTURE.astype(np.uint16) * 257, photometric="rgb", compression="zlib")
    elif kind == "tifplanar":
        tifffile.imwrite(buffer, np.moveaxis(_PICTURE.astype(np.uint16), -1, 0), photometric="rgb")
    elif kind == "palette":
        image.convert("P").save(buffer, "PNG", transparency=3)
    elif kind == "progressive":
        image.save(buffer, "JPEG", progressive=True)
    else:
        name = {"jpg": "JPEG", "tif": "TIFF", "jp2": "JPEG2000"}.get(kind, kind.upper())
        options = {"compression": "tiff_lzw"} if kind == "tif" else {}
        image.save(buffer, name, **options)
    return buffer.getvalue()


_KINDS = [
    "png",
    "palette",
    "jpg",
    "progressive",
    "webp",
    "tif",
    "tif16",
    "tifplanar",
    "gif",
    "bmp",
    "avif",
    "jp2",
]
_KINDS += ["ppm", "tga", "ico", "qoi", "pcx"]


def _read_or_refuse(path: Path) -> bool:
    """Whether the file is read; a refusal is one line that names it, and nothing is left beside it."""
    before = sorted(os.listdir(path.parent))
    limit = Image.MAX_IMAGE_PIXELS
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            image = read_image(path)
    except ClearSRError as error:
        assert str(error).startswith(str(path)) and "\n" not in str(error)
        is_read = False
    else:
        assert bool(torch.isfinite(image.color).all()) and image.color.min() >= 0 and image.color.max() <= 1
        is_read = True
    assert sorted(os.listdir(path.parent)) == before
    assert limit == Image.MAX_IMAGE_PIXELS
    return is_read


@pytest.mark.parametrize("kind", _KINDS)
def test_truncated_files_are_refused(tmp_path: Path, kind: str) -> None:
    data = _encoded(kind)
    path = tmp_path / f"t.{kind}"
    path.write_bytes(data)
    assert _read_or_refuse(path)
    for share in (0.02, 0.2, 0.5, 0.8):
        path.write_bytes(data[: int(len(data) * share)])
        assert not _read_or_refuse(path), f"{share:.0%} of a {kind} file was taken for a picture"
    path.write_bytes(data[:-1])
    _read_or_refuse(path)


@pytest.mark.parametrize("kind", _KINDS)
def test_corrupt_files_never_raise_anything_else(
    tmp_path: Path, kind: str, capfd: pytest.CaptureFixture
) -> None:
    data = np.frombuffer(_encoded(kind), np.uint8)
    generator = np.random.default_rng(7)
    path = tmp_path / "c.png"
    for trial in range(24):
        broken = data.copy()
        reach = len(data) if trial % 2 else min(200, len(data))  # every other time only the headers
        places = generator.integers(0, reach, 1 + trial)
        broken[places] = generator.integers(0, 256, len(places), dtype=np.uint8)
        path.write_bytes(broken.tobytes())
        _read_or_refuse(path)
    out, err = capfd.readouterr()
    # libtiff itself writes its complaint to the process's stderr; Python must stay silent.
    assert out == "" and "Warning" not in err and "Traceback" not in err


def _png_of_size(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b""))
    coded = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(coded)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("empty.png", b"", "is empty"),
        ("text.png", b"this is not a picture\n", "is not an image"),
        ("page.jpg", b"<!doctype html><html></html>", "is not an image"),
        ("drawing.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is not an image"),
        ("paper.pdf", b"%PDF-1.7\n", "is not an image"),
        ("program.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not an image"),
        ("zeros.tif", bytes(5000), "is not an image"),
        ("magic.png", b"\x89PNG\r\n\x1a\n", "is not an image"),
        ("magic.jpg", b"\xff\xd8\xff", ""),
        ("magic.gif", b"GIF89a", ""),
        ("magic.tif", b"II*\0", ""),
        ("big.tif", b"II+\0\x08\0\0\0" + b"\xff" * 30, ""),
        ("loop.tif", b"II*\0\x08\0\0\0\x01\0\0\x01\x04\0\x01\0\0\0\x08\0\0\0\x08\0\0\0", ""),
        ("riff.webp", b"RIFF\x10\0\0\0WEBPVP8 \0\0\0\0", ""),
        ("photo.heic", b"\0\0\0\x18ftypheic\0\0\0\0", "heic"),
        ("photo.cr2", b"II*\0", "camera raw"),
        ("bomb.png", _png_of_size(100_000, 100_000), "pixels; at most"),
        ("wide.png", _png_of_size(2**31 - 1, 1), "pixels; at most"),
        ("none.png", _png_of_size(0, 7), ""),
        ("short.png", _png_of_size(64, 64), ""),
        (
            "bomb.bmp",
            b"BM" + bytes(8) + struct.pack("<IIIiHHI", 54, 40, 60000, 60000, 1, 24, 0) + bytes(30),
            "at most",
        ),
        ("bomb.gif", b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\x02\x01\0\0;", "at most"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_files_that_are_no_pictures_are_refused(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert not _read_or_refuse(path)
    with pytest.raises(ClearSRError) as caught:
        read_image(path)
    assert says.lower() in str(caught.value).lower()


def test_a_tiff_with_missing_strips_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    path.write_bytes(_encoded("tifplanar"))
    with tifffile.TiffFile(path, mode="r+") as file:
        file.pages[0].tags["ImageLength"].overwrite(4000)  # as many rows as no file of this size can hold
    with pytest.raises(ClearSRError, match="parts of the picture are missing"):
        read_image(path)


def test_the_size_limit_is_the_callers(tmp_path: Path) -> None:
    Image.fromarray(_PICTURE).save(tmp_path / "x.png")
    assert read_image(tmp_path / "x.png", max_pixels=40 * 52).width == 52
    with pytest.raises(ClearSRError, match="52×40, 2,080 pixels; at most 2,079 are accepted"):
        read_image(tmp_path / "x.png", max_pixels=40 * 52 - 1)
    tifffile.imwrite(tmp_path / "x.tif", np.moveaxis(_PICTURE.astype(np.uint16), -1, 0), photometric="rgb")
    with pytest.raises(ClearSRError, match="at most 2,079"):
        read_image(tmp_path / "x.tif", max_pixels=40 * 52 - 1)


def test_paths_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path, says in (
        (tmp_path / "missing.png", "does not exist"),
        (tmp_path, "is a folder"),
        (tmp_path / ("n" * 300 + ".png"), "cannot be read"),
        (tmp_path / "a\0b.png", "cannot be read"),
        (tmp_path / "two\nlines.png", "does not exist"),
    ):
        with pytest.raises(ClearSRError, match=says) as caught:
            read_image(path)
        assert "\n" not in str(caught.value)
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ClearSRError, match="not a regular file"):
        read_image(tmp_path / "pipe.png")
    Image.fromarray(_PICTURE).save(tmp_path / "secret.png")

    def deny(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Image, "open", deny)
    with pytest.raises(ClearSRError, match="secret.png: cannot be read: permission denied"):
        read_image(tmp_path / "secret.png")


@pytest.mark.parametrize(
    "error", [MemoryError(), RecursionError("deep"), struct.error("x"), IndexError("y\nz")]
)
def test_whatever_a_decoder_raises_becomes_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    Image.fromarray(_PICTURE).save(tmp_path / "x.png")

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(Image, "open", fail)
    assert not _read_or_refuse(tmp_path / "x.png")
