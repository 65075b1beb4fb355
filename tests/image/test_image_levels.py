"""`read_levels`: the bytes of `read_image`, and any part of a picture as if cut from the whole."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import ExifTags, Image, ImageCms

from clearsr.errors import ClearSRError
from clearsr.image import read_image, read_levels
from clearsr.tiling import Window

_HEIGHT, _WIDTH = 21, 34
_RANDOM = np.random.default_rng(0)
_PICTURE = _RANDOM.integers(0, 256, (_HEIGHT, _WIDTH, 3), dtype=np.uint8)
_DEEP = _RANDOM.integers(0, 2**16, (_HEIGHT, _WIDTH, 3), dtype=np.uint16)
_PARTS = [Window(0, 0, 8, 9), Window(5, 3, 17, 14), Window(13, 12, 21, 21), Window(0, 0, 21, 21)]


def _exif(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif.tobytes()


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def _tiff(samples: np.ndarray, orientation: int, **options: object) -> bytes:
    stream = io.BytesIO()
    tags = [(274, "H", 1, orientation, True)]
    tifffile.imwrite(stream, samples, extratags=tags, metadata=None, **options)
    return stream.getvalue()


def _png16() -> bytes:
    """16 bits per sample in colour, which Pillow cannot write."""

    def chunk(name: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + checksum

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in _DEEP)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", _WIDTH, _HEIGHT, 16, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def _encoded(kind: str, orientation: int) -> bytes:
    picture = Image.fromarray(_PICTURE)
    alpha = Image.fromarray(_PICTURE[..., 0])
    exif = _exif(orientation)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    kinds = {
        "jpg": lambda: _saved(picture, "JPEG", exif=exif),
        "jpg progressive": lambda: _saved(picture, "JPEG", progressive=True, exif=exif),
        "jpg grey": lambda: _saved(picture.convert("L"), "JPEG", exif=exif),
        "jpg cmyk": lambda: _saved(picture.convert("CMYK"), "JPEG", exif=exif, icc_profile=profile),
        "png": lambda: _saved(picture, "PNG", exif=exif),
        "png palette": lambda: _saved(picture.quantize(16), "PNG", exif=exif, transparency=3),
        "png alpha": lambda: _saved(Image.merge("RGBA", (*picture.split(), alpha)), "PNG", exif=exif),
        "png grey 16": lambda: _saved(Image.fromarray(_DEEP[..., 0]), "PNG", exif=exif),
        "webp": lambda: _saved(picture, "WEBP", exif=exif),
        "tif": lambda: _saved(picture, "TIFF", exif=exif, compression="tiff_lzw"),
        "tif 16": lambda: _tiff(_DEEP, orientation, photometric="rgb", compression="zlib"),
        "tif tiled": lambda: _tiff(_PICTURE, orientation, photometric="rgb", tile=(16, 16)),
        "tif planar": lambda: _tiff(np.moveaxis(_DEEP, -1, 0), orientation, photometric="rgb"),
        "tif float": lambda: _tiff((_DEEP / 65535).astype(np.float32), orientation, photometric="rgb"),
        "tif white is zero": lambda: _tiff(_DEEP[..., 0], orientation, photometric="miniswhite"),
        "tif premultiplied": lambda: _tiff(
            np.dstack([_PICTURE // 2, _PICTURE[..., :1] // 2 + 128]),
            orientation,
            photometric="rgb",
            extrasamples=["assocalpha"],
        ),
    }
    return kinds[kind]()


_KINDS = ["jpg", "jpg progressive", "jpg grey", "jpg cmyk", "png", "png palette", "png alpha", "png grey 16"]
_KINDS += ["webp", "tif", "tif 16", "tif tiled", "tif planar", "tif float", "tif white is zero"]
_KINDS += ["tif premultiplied"]


class Asked:
    """Chooses a window and remembers the sizes that it was told."""

    def __init__(self, window: Window) -> None:
        self.window = window
        self.sizes: list[tuple[int, int]] = []

    def __call__(self, height: int, width: int) -> Window:
        self.sizes.append((height, width))
        return self.window


@pytest.mark.parametrize("kind", _KINDS)
def test_a_part_is_cut_from_the_whole_bit_for_bit_in_every_orientation(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x"
    for orientation in range(1, 9):
        path.write_bytes(_encoded(kind, orientation))
        whole = (read_image(path).color * 255).round().to(torch.uint8)
        assert tuple(whole.shape[1:]) == ((21, 34) if orientation < 5 else (34, 21))
        assert torch.equal(read_levels(path), whole)
        for window in _PARTS:
            asked = Asked(window)
            assert torch.equal(read_levels(path, asked), window.of(whole))
            assert torch.equal(read_levels(Path("member"), asked, path.read_bytes()), window.of(whole))
            assert asked.sizes == [tuple(whole.shape[1:])] * 2


def test_sixteen_bit_colour_in_a_png(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(_png16())
    expected = np.round(_DEEP.astype(np.float64) / 257).astype(np.uint8).transpose(2, 0, 1)
    assert np.array_equal(read_levels(tmp_path / "x.png").numpy(), expected)
    assert np.array_equal(read_levels(Path("member"), content=_png16()).numpy(), expected)


def test_every_level_of_8_bits_survives() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    pixels = read_levels(Path("member"), content=_saved(Image.fromarray(levels), "PNG"))
    assert np.array_equal(pixels.numpy(), levels.transpose(2, 0, 1))


@pytest.mark.parametrize("kind", ["jpg", "png", "tif"])
def test_damage_outside_the_part_is_an_error_too(tmp_path: Path, kind: str) -> None:
    content = _encoded(kind, 1)
    # A TIFF of Pillow has its directory in front and the pixels last.
    (tmp_path / "half").write_bytes(content[: len(content) * 3 // 4])
    with pytest.raises(ClearSRError, match="half: is damaged"):
        read_levels(tmp_path / "half", lambda height, width: Window(0, 0, 2, 2))


def test_values_without_a_place_are_an_error_wherever_they_are(tmp_path: Path) -> None:
    values = np.zeros((16, 16), np.float32)
    values[15, 15] = 7
    Image.fromarray(values).save(tmp_path / "x.tif")
    with pytest.raises(ClearSRError, match="high dynamic range"):
        read_levels(tmp_path / "x.tif", lambda height, width: Window(0, 0, 2, 2))
