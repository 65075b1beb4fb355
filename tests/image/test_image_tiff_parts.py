"""TIFFs that are read part by part: of every layout as when read whole, and what fuzzing found in them."""

import io
import struct
import zlib
from contextlib import closing

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from clearsr.errors import ClearSRError
from clearsr.image import open_source, read_image
from clearsr.tiling import Window

_PICTURE = np.random.default_rng(0).integers(0, 256, (40, 52, 3), dtype=np.uint8)


def _tiff(tags, data=bytes(64)):
    """A little-endian TIFF of one directory with single values, and data at byte 8."""
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    place = 8 + len(data)
    return b"II*\0" + struct.pack("<I", place) + data + struct.pack("<H", len(tags)) + entries + bytes(4)


_GRAY = {256: 8, 257: 8, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 8, 279: 64}


def _whole(path):
    with closing(open_source(path)) as source:
        return source.read(Window(0, 0, source.height, source.width))


@pytest.mark.parametrize(
    "compression", ["raw", "tiff_lzw", "jpeg", "tiff_deflate", "tiff_adobe_deflate", "packbits", "tiff_lzma"]
)
def test_every_compression_is_read_in_parts(compression, tmp_path):
    Image.fromarray(_PICTURE).save(tmp_path / "a.tif", compression=compression)
    assert torch.equal(_whole(tmp_path / "a.tif").color, read_image(tmp_path / "a.tif").color)


def test_the_little_tiff_is_good(tmp_path):
    (tmp_path / "a.tif").write_bytes(_tiff(_GRAY, bytes(range(64))))
    assert torch.equal(_whole(tmp_path / "a.tif").color[0] * 255, torch.arange(64.0).view(8, 8))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({278: 0}, "a.tif"),  # rows per strip
        ({277: 60_000}, "a.tif"),  # samples per pixel
        ({278: 4}, "parts of the picture are missing"),
        ({257: 2**31}, "at most"),
        ({279: 20}, "a.tif"),  # too few bytes
        ({273: 2**31}, "a.tif"),  # behind the end
    ],
)
def test_structures_that_make_no_sense_are_refused(change, says, tmp_path):
    path = tmp_path / "a.tif"
    path.write_bytes(_tiff(_GRAY | change))
    with pytest.raises(ClearSRError, match=says):
        _whole(path)


@pytest.mark.parametrize("is_planar", [False, True], ids=["in parts", "whole"])
def test_a_strip_that_unpacks_to_gigabytes_is_refused_before_it_does(is_planar, tmp_path):
    """64 MB stand for them here; as a file of 64 kB."""
    packed = zlib.compress(bytes(2**26), 9)
    assert len(packed) < 2**17
    size = {279: len(packed), 259: 8, 273: 8}
    change = {277: 1, 339: 3, 258: 32} if is_planar else {}
    (tmp_path / "a.tif").write_bytes(_tiff(_GRAY | size | change, packed))
    with pytest.raises(ClearSRError, match="unpacks to more than"):
        _whole(tmp_path / "a.tif")


def test_a_file_of_unread_parts_is_closed_again(tmp_path, monkeypatch):
    closed = []
    close = tifffile.TiffFile.close
    monkeypatch.setattr(tifffile.TiffFile, "close", lambda self: (closed.append(1), close(self)))
    (tmp_path / "a.tif").write_bytes(_tiff(_GRAY | {257: 2**31}))
    with pytest.raises(ClearSRError):
        open_source(tmp_path / "a.tif")
    assert closed


def test_deep_tiles_are_the_same_in_parts(tmp_path):
    deep = _PICTURE.astype(np.uint16) * 257
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, deep, photometric="rgb", tile=(16, 32), compression="zlib", predictor=True)
    (tmp_path / "a.tif").write_bytes(buffer.getvalue())
    assert torch.equal(_whole(tmp_path / "a.tif").color, read_image(tmp_path / "a.tif").color)
