"""An animated PNG that promises a giant picture is refused before a frame of it is made."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from clearsr.errors import ClearSRError
from clearsr.image import read_image, read_levels, read_size
from clearsr.image.png import png_chunks

_LIMIT = 100


def _chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _animated(width, height, first=None):
    """A PNG of two frames, to be cleared after each; `first` is the size in a header before the true one."""
    headers = [struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0) for size in (first, (width, height)) if size]
    control = struct.pack(">IIIIIHHBB", 0, 4, 4, 0, 0, 1, 40, 1, 0)
    parts = [_chunk(b"IHDR", header) for header in headers]
    parts += [_chunk(b"acTL", struct.pack(">II", 2, 0)), _chunk(b"fcTL", control)]
    parts += [_chunk(b"IDAT", zlib.compress(bytes(13 * 4))), _chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _icon(png):
    entry = struct.pack("<BBBBHHII", 4, 4, 0, 0, 1, 32, len(png), 22 + 16)
    return struct.pack("<HHH", 0, 1, 2) + 2 * entry + png


@pytest.mark.parametrize("wrap", [bytes, _icon], ids=["png", "icon"])
@pytest.mark.parametrize("first", [None, (4, 4)], ids=["one header", "a small one first"])
def test_a_giant_frame_is_refused_before_pillow_makes_it(tmp_path, monkeypatch, wrap, first):
    path = tmp_path / "a.png"
    path.write_bytes(wrap(_animated(2**20, 2**20, first)))
    made = []
    monkeypatch.setattr(Image.core, "fill", lambda *arguments: made.append(arguments))
    for read in (read_image, read_size, read_levels):
        with pytest.raises(ClearSRError, match=r"a\.png: is 1048576×1048576, .* pixels; at most"):
            read(path)
    assert not made


def test_the_limit_is_that_of_the_caller(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(_animated(4, 4))
    assert read_size(path, 16) == (4, 4)
    assert torch.equal(read_levels(path), torch.zeros(3, 4, 4, dtype=torch.uint8))
    with pytest.raises(ClearSRError, match="16 pixels; at most 15 are accepted"):
        read_image(path, 15)


def test_an_icon_with_a_png_is_read(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.ico", sizes=[(32, 32)])
    assert b"IHDR" in (tmp_path / "a.ico").read_bytes()
    assert torch.equal(read_levels(tmp_path / "a.ico"), torch.from_numpy(pixels).permute(2, 0, 1))


def test_chunks_are_those_of_the_file_and_a_torn_head_ends_them():
    data = _animated(4, 4)
    chunks = list(png_chunks(io.BytesIO(b"before" + data), start=6))
    assert [chunk.kind for chunk in chunks] == [b"IHDR", b"acTL", b"fcTL", b"IDAT", b"IEND"]
    assert [kind for _, _, kind in png_chunks(io.BytesIO(data[:-6]))] == [b"IHDR", b"acTL", b"fcTL", b"IDAT"]
    position = chunks[3].start - 6
    assert zlib.decompress(data[position : position + chunks[3].length]) == bytes(13 * 4)
