"""How much packed data of a TIFF would unpack to, found out without unpacking it into memory.

tifffile unpacks a strip or tile whole, however large it becomes: megabytes of deflate can hold gigabytes.
"""

import lzma
import zlib
from typing import Any

from clearsr.errors import ClearSRError

_STEP = 2**20
DEFLATE, _LZMA = (8, 32946), 34925  # in TIFF's numbering
_SLACK = 2**20  # encoders fill up the last strip or tile


def check_unpacked(packed: bytes, compression: int, wanted: int, source: str) -> None:
    """Refuse data that unpacks to far more than the `wanted` bytes of its strip or tile.

    Damage is not looked for: the decoder, which comes next, knows more about it.

    Raises:
        ClearSRError: it does.
    """
    unpacker: Any
    if compression in DEFLATE:
        unpacker = zlib.decompressobj()
    elif compression == _LZMA:
        unpacker = lzma.LZMADecompressor()
    else:
        return  # what else tifffile unpacks by itself grows 128-fold at most
    found, waiting = 0, packed
    try:
        while not unpacker.eof:
            part = unpacker.decompress(waiting, _STEP)
            waiting = b"" if compression == _LZMA else unpacker.unconsumed_tail
            found += len(part)
            if found > 2 * wanted + _SLACK:
                raise ClearSRError(
                    f"{source}: is damaged: a part of it unpacks to more than {found:,} bytes, "
                    f"where the picture has {wanted:,}"
                )
            if not part:
                return
    except (zlib.error, lzma.LZMAError):
        return
