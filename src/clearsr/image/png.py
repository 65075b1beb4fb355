"""PNG: an encoder that takes rows as they come, of 8 or 16 bits per sample; and the chunks of a file.

Pillow encodes whole pictures only, and of 16 bits only opaque grey. W3C PNG, third edition: every row uses
the Paeth filter, whose predictors are known in advance when encoding, so whole blocks of rows are filtered at
once.
"""

import io
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import PngImagePlugin

from clearsr.image.data import ImageMetadata
from clearsr.image.deep import check_size

_COLOR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}
_CHANNELS = {0: (1, 0), 2: (3, 0), 3: (1, 0), 4: (1, 1), 6: (3, 1)}  # of these types: colours and alpha
_PAETH = 4
_BYTES_AT_ONCE = 1_000_000
_INCHES_PER_METER = 1 / 0.0254


class PngWriter:
    """Writes one picture: `write_rows` from top to bottom, then `close`."""

    def __init__(
        self,
        file: BinaryIO,
        shape: tuple[int, int, int],
        dtype: np.dtype,
        metadata: ImageMetadata,
        compression: int = 6,
    ) -> None:
        """Write all that comes before the pixels.

        Args:
            file: opened for writing bytes.
            shape: H, W and C; C = 1 grey, 2 grey and alpha, 3 RGB, 4 RGBA.
            dtype: uint8 or uint16.
            metadata: its profile, EXIF, XMP, texts and resolution are written.
            compression: zlib level 0-9.
        """
        height, width, channels = shape
        bits = 8 * np.dtype(dtype).itemsize
        self._file, self._pixel_bytes = file, channels * bits // 8
        self._packer = zlib.compressobj(compression)
        self._above = np.zeros((1, width * self._pixel_bytes), np.uint8)  # the row before the next one
        self._rows_left = height
        file.write(b"\x89PNG\r\n\x1a\n")
        header = struct.pack(">IIBBBBB", width, height, bits, _COLOR_TYPES[channels], 0, 0, 0)
        _write_chunk(file, b"IHDR", header)
        if metadata.icc_profile is not None:
            _write_chunk(file, b"iCCP", b"ICC Profile\0\0" + zlib.compress(metadata.icc_profile))
        if metadata.dpi is not None:
            per_meter = [round(value * _INCHES_PER_METER) for value in metadata.dpi]
            _write_chunk(file, b"pHYs", struct.pack(">IIB", *per_meter, 1))
        for kind, content, *_ in text_chunks(metadata).chunks:
            _write_chunk(file, kind, content)
        if metadata.exif is not None:
            _write_chunk(file, b"eXIf", metadata.exif.removeprefix(b"Exif\0\0"))

    def write_rows(self, samples: np.ndarray) -> None:
        """The next rows, any number of them: h×W×C of the dtype that was named."""
        self._rows_left -= len(samples)
        step = max(1, _BYTES_AT_ONCE // self._above.size)
        for start in range(0, len(samples), step):
            rows = samples[start : start + step]
            big_endian = np.ascontiguousarray(rows.astype(rows.dtype.newbyteorder(">")))
            data = big_endian.view(np.uint8).reshape(len(rows), -1)
            packed = self._packer.compress(self._filtered(data))
            self._above = data[-1:]
            if packed:
                _write_chunk(self._file, b"IDAT", packed)

    def close(self) -> None:
        """Write all that comes behind the pixels."""
        assert self._rows_left == 0, f"{self._rows_left} rows are missing"
        _write_chunk(self._file, b"IDAT", self._packer.flush())
        _write_chunk(self._file, b"IEND", b"")

    def _filtered(self, data: np.ndarray) -> bytes:
        """A filter byte before each row, then each byte less its left, upper or upper left neighbour."""
        rows = np.concatenate([self._above, data]).astype(np.int16)
        padded = np.pad(rows, ((0, 0), (self._pixel_bytes, 0)))
        left, corner = padded[1:, : -self._pixel_bytes], padded[:-1, : -self._pixel_bytes]
        up = padded[:-1, self._pixel_bytes :]
        estimate = left + up - corner
        to_left, to_up, to_corner = (np.abs(estimate - other) for other in (left, up, corner))
        predictor = np.where(to_up <= to_corner, up, corner)
        predictor = np.where((to_left <= to_up) & (to_left <= to_corner), left, predictor)
        residual = (rows[1:] - predictor).astype(np.uint8)
        return np.insert(residual, 0, _PAETH, axis=1).tobytes()


def text_chunks(metadata: ImageMetadata) -> PngImagePlugin.PngInfo:
    """The texts of a picture as PNG has them, and its XMP, which is one of them."""
    chunks = PngImagePlugin.PngInfo()
    for key, value in metadata.text:
        chunks.add_text(key, value)
    if metadata.xmp is not None:
        chunks.add_itxt("XML:com.adobe.xmp", metadata.xmp.decode("utf-8", "replace"))
    return chunks


def _write_chunk(file: BinaryIO, kind: bytes, data: bytes) -> None:
    file.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))


_PNG, _ICON = b"\x89PNG\r\n\x1a\n", b"\0\0\1\0"


# The chunks of a PNG, and the size that they state, before Pillow sees them.
# Of an animated PNG Pillow makes a whole frame while it opens the file, before anybody can look at its size:
# 300 bytes could take all memory. An icon may hold such a file.
class Chunk(NamedTuple):
    """Where the content of a chunk begins, its length, and its kind, such as `IDAT`."""

    start: int
    length: int
    kind: bytes


def png_chunks(file: BinaryIO, start: int = 0) -> Iterator[Chunk]:
    """The chunks of a PNG that begins at `start`, as far as there are whole heads of them."""
    position = start + len(_PNG)
    while True:
        file.seek(position)
        head = file.read(8)
        if len(head) < 8:
            return
        chunk = Chunk(position + 8, int.from_bytes(head[:4], "big"), head[4:])
        yield chunk
        position = chunk.start + chunk.length + 4


def check_png_sums(file: BinaryIO) -> None:
    """Refuse a PNG whose packed pixels are not what its checksums say, which Pillow skips.

    Raises:
        OSError: it is damaged.
    """
    for chunk in png_chunks(file):
        if chunk.kind == b"IEND":
            return
        if chunk.kind != b"IDAT":
            continue
        sum_of_all, left = zlib.crc32(chunk.kind), chunk.length
        while left > 0 and (part := file.read(min(left, _BYTES_AT_ONCE))):
            sum_of_all = zlib.crc32(part, sum_of_all)
            left -= len(part)
        found = file.read(4)
        if len(found) < 4:
            raise OSError("the file ends within its pixels")
        if found != sum_of_all.to_bytes(4, "big"):
            raise OSError("the checksum of its pixels is wrong")


def mended_png(content: bytes) -> tuple[bytes, float] | None:
    """A PNG whose pixels end too early with grey in place of what is missing, and the share that is there.

    None for other files, interlaced ones among them, and for one that is damaged in another way.
    """
    head, data = [], []
    for chunk in png_chunks(io.BytesIO(content)) if content.startswith(_PNG) else ():
        end = chunk.start + chunk.length
        is_whole = content[end : end + 4] == zlib.crc32(content[chunk.start - 4 : end]).to_bytes(4, "big")
        if chunk.kind == b"IEND" or not (is_whole or end + 4 > len(content)):
            return None
        if chunk.kind == b"IDAT":
            data.append(content[chunk.start : end])
        elif is_whole and not data and chunk.kind not in (b"acTL", b"fcTL"):
            head.append(content[chunk.start - 8 : end + 4])
    if not data or not head or head[0][4:8] != b"IHDR":
        return None
    width, height, bits, kind, _, _, is_interlaced = struct.unpack(">IIBBBBB", head[0][8:21])
    if is_interlaced or kind not in _CHANNELS:
        return None
    colors, alpha = _CHANNELS[kind]
    length = 1 + -(-width * (colors + alpha) * bits // 8)
    pixels = zlib.decompressobj().decompress(b"".join(data), length * height)
    rows = len(pixels) // length
    row = (b"\x80" + bytes(bits // 8 - 1)) * colors + b"\xff" * (alpha * bits // 8) if bits >= 8 else b"\x55"
    gray = (b"\0" + row * width)[:length]
    file = io.BytesIO()
    file.write(b"".join([_PNG, *head]))
    _write_chunk(file, b"IDAT", zlib.compress(pixels[: rows * length] + gray * (height - rows), 1))
    _write_chunk(file, b"IEND", b"")
    return file.getvalue(), rows / height


def check_png_size(file: BinaryIO, source: str, max_pixels: int) -> None:
    """Refuse a PNG of more than `max_pixels`, also in an icon, by what it states; other files are left alone.

    Raises:
        ClearSRError: it has more.
    """
    file.seek(0)
    head = file.read(len(_PNG))
    starts = [0] if head == _PNG else _in_icon(file) if head.startswith(_ICON) else []
    seen: set[int] = set()  # chunks that several entries of an icon lead to
    for start in starts:
        for chunk in png_chunks(file, start):
            if chunk.kind == b"IDAT" or chunk.start in seen:
                break
            seen.add(chunk.start)
            if chunk.kind == b"IHDR" and len(size := file.read(8)) == 8:
                width, height = struct.unpack(">II", size)
                check_size(width, height, source, max_pixels)


def _in_icon(file: BinaryIO) -> list[int]:
    """Where the entries of an icon begin that are PNG."""
    file.seek(4)
    count = int.from_bytes(file.read(2), "little")
    entries = file.read(16 * count)
    starts = {int.from_bytes(entries[at + 12 : at + 16], "little") for at in range(0, len(entries), 16)}

    def is_png(start: int) -> bool:
        file.seek(start)
        return file.read(len(_PNG)) == _PNG

    return sorted(start for start in starts if is_png(start))
