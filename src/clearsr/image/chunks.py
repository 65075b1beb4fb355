"""The chunks of a PNG, and the size that they state, before Pillow sees them.

Of an animated PNG Pillow makes a whole frame while it opens the file, before anybody can look at its size:
300 bytes could take all memory. An icon may hold such a file.
"""

import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from clearsr.image.deep import check_size

_PNG, _ICON = b"\x89PNG\r\n\x1a\n", b"\0\0\1\0"


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
