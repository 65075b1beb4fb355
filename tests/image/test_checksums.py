"""Damaged pixels are an error wherever the file has a checksum of them, whole and part by part."""

import random
import struct
import zlib
from contextlib import closing

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from clearsr.errors import ClearSRError
from clearsr.image import open_source, read_image, read_levels
from clearsr.tiling import Window

_SIZE = 48


@pytest.fixture(scope="module")
def pixels():
    """H×W×3 bytes that deflate packs with matches and literals."""
    row, column = np.mgrid[:_SIZE, :_SIZE]
    noise = np.random.default_rng(0).integers(0, 9, (_SIZE, _SIZE))
    return np.stack([2 * row + noise, 2 * column + noise, row + column], -1).astype(np.uint8)


def _tiff(path, pixels, **options):
    grey = pixels.ndim == 2
    options = {"compression": "zlib", "photometric": "minisblack" if grey else "rgb", **options}
    tifffile.imwrite(path, pixels, metadata=None, **options)
    with tifffile.TiffFile(path) as file:
        return list(zip(file.pages[0].dataoffsets, file.pages[0].databytecounts, strict=True))


def _read_in_parts(path):
    with closing(open_source(path)) as source:
        return source.read(Window(0, 0, source.height, source.width))


_READERS = (read_image, read_levels, _read_in_parts)
_LAYOUTS = {
    "strips": (lambda x: x, {"rowsperstrip": 16}),
    "predictor": (lambda x: x, {"predictor": True}),
    "16 bits": (lambda x: x.astype(np.uint16) * 257, {}),
    "grey": (lambda x: x[..., 0], {}),
    "tiles": (lambda x: x, {"tile": (32, 32)}),
    "planar": (lambda x: np.moveaxis(x, -1, 0), {"planarconfig": "separate"}),
}


@pytest.mark.parametrize("layout", _LAYOUTS)
def test_damage_in_a_tiff_of_deflate_is_an_error(pixels, tmp_path, layout):
    change, options = _LAYOUTS[layout]
    path = tmp_path / "a.tif"
    places = _tiff(path, change(pixels), **options)
    whole, draw = path.read_bytes(), random.Random(1)
    for read in _READERS:
        read(path)
    for _ in range(60):
        start, count = draw.choice(places)
        damaged = bytearray(whole)
        damaged[start + draw.randrange(2, count)] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        for read in _READERS:
            with pytest.raises(ClearSRError, match=r"a\.tif: is damaged"):
                read(path)


@pytest.mark.parametrize("bits", [8, 16])
def test_damage_in_the_pixels_of_a_png_is_an_error(pixels, tmp_path, bits):
    path = tmp_path / "a.png"
    image = pixels if bits == 8 else pixels.astype(np.uint16)[..., 0] * 257
    Image.fromarray(image).save(path)
    whole, draw = path.read_bytes(), random.Random(2)
    start, end = whole.find(b"IDAT") + 4, whole.rfind(b"IEND") - 4
    for _ in range(100):
        damaged = bytearray(whole)
        # Half of it at the end, where the pixels are full and the decoder has stopped.
        damaged[draw.randrange(*draw.choice(((start, end), (end - 16, end))))] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        for read in _READERS:
            with pytest.raises(ClearSRError, match=r"a\.png: is damaged"):
                read(path)


def test_a_png_that_ends_within_its_pixels_is_called_incomplete(pixels, tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    whole = path.read_bytes()
    start, end = whole.find(b"IDAT") + 4, whole.rfind(b"IEND") - 4
    for length in (start, start + 1, (start + end) // 2):
        path.write_bytes(whole[:length])
        for read in _READERS:
            with pytest.raises(ClearSRError, match=r"a\.png: is damaged or incomplete"):
                read(path)
    for length in (end - 4, end - 1):  # the checksum alone is missing
        path.write_bytes(whole[:length])
        for read in _READERS:
            read(path)


def test_a_png_with_much_behind_and_between_its_pixels_is_read(pixels, tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    data = path.read_bytes()
    at = data.find(b"IDAT") + 4
    size = int.from_bytes(data[at - 8 : at - 4], "big")
    packed = data[at : at + size]
    parts = [b"IDAT" + packed[place : place + 700] for place in range(0, size, 700)]
    chunks = [
        (len(part) - 4).to_bytes(4, "big") + part + zlib.crc32(part).to_bytes(4, "big") for part in parts
    ]
    assert len(chunks) > 2
    path.write_bytes(data[: at - 8] + b"".join(chunks) + data[at + size + 4 :] + b"IDAT behind the end")
    assert torch.equal(read_levels(path), torch.from_numpy(pixels).permute(2, 0, 1))


def test_deflate_that_holds_more_than_the_picture_is_refused(pixels, tmp_path):
    path = tmp_path / "a.tif"
    ((start, count),) = _tiff(path, pixels, rowsperstrip=_SIZE)
    bomb = zlib.compress(bytes(50_000_000))
    data = bytearray(path.read_bytes())
    end = len(data)
    for tag, value in ((273, end), (279, len(bomb))):
        with tifffile.TiffFile(path) as file:
            place = file.pages[0].tags[tag].valueoffset
        data[place : place + 4] = value.to_bytes(4, "little")
    path.write_bytes(data + bomb)
    for read in _READERS:
        with pytest.raises(ClearSRError, match=r"a\.tif: is damaged"):
            read(path)


@pytest.mark.parametrize("compression", ["tiff_lzw", "packbits", None])
def test_what_has_no_checksum_is_left_alone(pixels, tmp_path, compression):
    path = tmp_path / "a.tif"
    Image.fromarray(pixels).save(path, compression=compression)
    assert torch.equal(read_levels(path), torch.from_numpy(pixels).permute(2, 0, 1))


def test_a_tiff_that_states_two_sizes_is_not_read_in_parts(pixels, tmp_path):
    """tifffile takes the first of two equal tags, Pillow the last."""
    path = tmp_path / "a.tif"
    _tiff(path, pixels, compression=None, rowsperstrip=_SIZE)
    data = bytearray(path.read_bytes())
    (start,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, start)
    entries = [bytes(data[start + 2 + 12 * index :][:12]) for index in range(count)]
    height = next(entry for entry in entries if entry[:2] == struct.pack("<H", 257))
    entries.insert(entries.index(height) + 1, height[:8] + struct.pack("<HH", 1, 0))
    struct.pack_into("<I", data, 4, len(data))
    path.write_bytes(data + struct.pack("<H", count + 1) + b"".join(entries) + bytes(4))
    with pytest.raises(ClearSRError, match="48×1 and 48×48 are both its size"):
        open_source(path)
