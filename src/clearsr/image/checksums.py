"""Checksums that a picture file has and its decoder does not look at, so that damage is not taken for pixels.

libtiff stops unpacking a strip when its pixels are full, before the checksum behind them; Pillow skips those
of a PNG's pixels. LZW, PackBits, JPEG, WebP and AVIF have none: there, damage may be shown.
"""

import zlib
from typing import BinaryIO

from PIL import Image, TiffImagePlugin

from clearsr.image.png import png_chunks
from clearsr.image.tiff import DEFLATE

_STEP = 2**20
_PIECE = 2**16  # of packed data; what of it waits to be unpacked is copied at each step
_COMPRESSION, _BITS, _FILL_ORDER, _CHANNELS, _ROWS_PER_STRIP = 259, 258, 266, 277, 278
_TILE_WIDTH, _TILE_HEIGHT = 322, 323
_PLACES = ((273, 279), (324, 325))  # where strips or tiles begin, and their sizes


def check_sums(file: BinaryIO, image: Image.Image) -> None:
    """Refuse a PNG, or a TIFF of deflate, whose packed pixels are not what its checksums say.

    Args:
        file: the encoded picture, to be read from wherever it is needed.
        image: the same, opened and not loaded; another format is left alone.

    Raises:
        OSError: it is damaged.
    """
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        # With the other fill order all bits of a byte are turned round; nobody writes deflate so.
        if image.tag_v2.get(_COMPRESSION) in DEFLATE and image.tag_v2.get(_FILL_ORDER, 1) == 1:
            _check_deflated(file, image)
    elif image.format == "PNG":
        _check_png(file)


def _check_deflated(file: BinaryIO, image: TiffImagePlugin.TiffImageFile) -> None:
    """Unpack every strip or tile and forget it; together at most twice what the picture needs."""
    tags = image.tag_v2
    starts, counts = next(((tags[a], tags[b]) for a, b in _PLACES if a in tags and b in tags), ((), ()))
    rows = tags.get(_TILE_HEIGHT, min(tags.get(_ROWS_PER_STRIP, image.height), image.height))
    bits = tags.get(_BITS, (1,))
    row = tags.get(_TILE_WIDTH, image.width) * max(len(bits), tags.get(_CHANNELS, 1)) * max(bits) // 8
    left = 2 * rows * row * len(starts) + _STEP
    for start, count in zip(starts, counts, strict=False):
        if count > 0:  # else libtiff finds it out
            file.seek(start)
            left -= _unpacked(file, count, left)


def _unpacked(file: BinaryIO, count: int, most: int) -> int:
    """How many bytes a stream of deflate holds, whose packed ones begin here and are `count`.

    Raises:
        OSError: it is damaged, incomplete, or holds more than `most`.
    """
    unpacker, found, waiting = zlib.decompressobj(), 0, b""
    try:
        while not unpacker.eof:
            if not waiting:
                waiting = file.read(min(count, _PIECE))
                count -= len(waiting)
            part = unpacker.decompress(waiting, _STEP)
            is_over = not (part or waiting)
            waiting = unpacker.unconsumed_tail
            found += len(part)
            if found > most or is_over:
                raise zlib.error("a part of it is " + ("cut off" if is_over else "too long"))
    except zlib.error as error:
        raise OSError(f"its pixels cannot be unpacked: {error}") from None
    return found


def _check_png(file: BinaryIO) -> None:
    """Add up the checksum of every chunk of pixels."""
    for chunk in png_chunks(file):
        if chunk.kind == b"IEND":
            return
        if chunk.kind != b"IDAT":
            continue
        sum_of_all, left = zlib.crc32(chunk.kind), chunk.length
        while left > 0 and (part := file.read(min(left, _STEP))):
            sum_of_all = zlib.crc32(part, sum_of_all)
            left -= len(part)
        found = file.read(4)
        if len(found) < 4:
            raise OSError("the file ends within its pixels")
        if found != sum_of_all.to_bytes(4, "big"):
            raise OSError("the checksum of its pixels is wrong")
