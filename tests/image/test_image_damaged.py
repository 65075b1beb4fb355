"""Files that are not what their name says: one line that names the file, or a valid image; never a trace."""

import io
import os
import struct
import sys
import warnings
import zlib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import ExifTags, Image, ImageCms

from clearsr.errors import ClearSRError
from clearsr.image import read_image, read_size, to_pil
from clearsr.image.metadata import exif_of

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


def _photoshop(bits: int, mode: int) -> bytes:
    return struct.pack(">4sH6xHIIHH", b"8BPS", 1, 3, 16, 16, bits, mode) + bytes(64)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("empty.png", b"", "is empty"),
        ("text.png", b"this is not a picture\n", "is not an image"),
        ("page.jpg", b"<!doctype html><html></html>", "is a web page and no picture; download the picture"),
        ("drawing.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "such as SVG; export it as PNG"),
        ("paper.pdf", b"%PDF-1.7\n", "is a PDF; export its pages as PNG"),
        ("program.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is a PostScript drawing"),
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
        ("named.jpg", b"FUJIFILMCCD-RAW 0201", "is a camera raw file; develop it to TIFF, PNG or JPEG first"),
        ("named.jpg", b"\0\0\0\x18ftypcrx \0\0\0\1", "camera raw"),
        (
            "deep.psd",
            _photoshop(16, 3),
            "of 16 bits per channel; 8 are read; save it as a 16-bit TIFF or PNG",
        ),
        ("deep.psd", _photoshop(32, 3), "of 32 bits per channel"),
        (
            "odd.psd",
            _photoshop(8, 5),
            "is a Photoshop document of a kind that is not read; save it as a TIFF",
        ),
        ("large.psb", b"8BPS\0\2" + bytes(20), "is a large Photoshop document (PSB)"),
        ("light.exr", b"v/1\1\2\0\0\0", "is an OpenEXR picture"),
        ("light.hdr", b"#?RADIANCE\n", "is a Radiance HDR picture"),
        ("work.xcf", b"gimp xcf v011\0", "is a GIMP document; export it as TIFF or PNG"),
        ("film.mp4", b"\0\0\0\x20ftypisom\0\0\2\0", "is a film; take its frames out first"),
        ("film.avi", b"RIFF\x10\0\0\0AVI LIST", "is a film or sound"),
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


def _jxl_codestream(width: int, height: int) -> bytes:
    """A JPEG XL of which there is no more than its size, each side in 30 bits."""
    bits, position = 0, 0
    for value, count in ((0, 1), (3, 2), (height - 1, 30), (0, 3), (3, 2), (width - 1, 30)):
        bits |= value << position
        position += count
    return b"\xff\x0a" + bits.to_bytes(10, "little")


def test_jpeg_xl_names_its_extra_where_that_is_missing(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "pillow_jxl", None)
    (tmp_path / "a.jxl").write_bytes(_jxl_codestream(8, 8))
    (tmp_path / "b.jpg").write_bytes(b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(20))
    for name in ("a.jxl", "b.jpg"):
        with pytest.raises(
            ClearSRError,
            match=r"is a JPEG XL image; to read it, install the extra jxl: pip install 'clearsr\[jxl\]'",
        ):
            read_image(tmp_path / name)


def test_the_size_of_a_jpeg_xl_is_judged_before_it_is_decoded(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(
        sys.modules, "pillow_jxl", ModuleType("pillow_jxl")
    )  # which would find nothing to decode
    (tmp_path / "bomb.jxl").write_bytes(_jxl_codestream(90_000, 70_000))
    with pytest.raises(ClearSRError, match=r"is 90000×70000, 6,300,000,000 pixels; at most 300,000,000"):
        read_image(tmp_path / "bomb.jxl")


@pytest.mark.parametrize("size", [(40, 24), (64, 64), (63, 41), (160, 90), (300, 7)])
def test_a_jpeg_xl_is_read_with_what_it_says(tmp_path: Path, size: tuple[int, int]) -> None:
    pytest.importorskip("pillow_jxl")
    x, y = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1]))
    picture = Image.fromarray(np.stack([x, y, 255 - x], -1).astype(np.uint8))
    exif = Image.Exif()
    exif[int(ExifTags.Base.Artist)], exif[int(ExifTags.Base.Orientation)] = "Ann", 6
    xmp = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'><tiff:Make>Maker</tiff:Make></x:xmpmeta>"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    path = tmp_path / "a.jxl"
    picture.save(path, "JXL", lossless=True, exif=exif.tobytes(), xmp=xmp, icc_profile=profile)
    assert read_size(path) == size[::-1]
    image = read_image(path)
    assert np.array_equal(to_pil(image), picture)  # upright: EXIF's orientation says nothing in JPEG XL
    assert exif_of(image.metadata.exif)[int(ExifTags.Base.Artist)] == "Ann"
    assert image.metadata.xmp is not None and b"Maker" in image.metadata.xmp
    assert image.metadata.icc_profile is not None
