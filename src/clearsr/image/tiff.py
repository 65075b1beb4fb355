"""TIFF: output of 8 and 16 bits per sample, with the EXIF directory that `tifffile` has no call for; and what
packed data would unpack to.
"""

import lzma
import math
import struct
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np
import tifffile
from PIL import ExifTags, Image, TiffImagePlugin

from clearsr.errors import ClearSRError, notify
from clearsr.image.data import ImageMetadata

_XMP, _INCH, _LONG = 700, 2, 4
# tifffile leaves these two out, so each is written under the unused code below it and renamed afterwards.
_DIRECTORIES = (int(ExifTags.IFD.Exif), int(ExifTags.IFD.GPSInfo))
_SET_BY_TIFFFILE = frozenset(
    int(tag)
    for tag in (
        ExifTags.Base.Orientation,
        ExifTags.Base.XResolution,
        ExifTags.Base.YResolution,
        ExifTags.Base.ResolutionUnit,
        *_DIRECTORIES,
    )
)
_BIG = 2**32 - 2**25  # tifffile writes BigTIFF from here on, whose directories are of another kind


class Tiles(NamedTuple):
    """The samples of a picture that comes in tiles.

    Attributes:
        tiles: h×w×C each, row by row; those at the right and lower edge may be smaller.
        shape: H, W and C of the picture.
        dtype: uint8 or uint16.
        side: of a tile, a multiple of 16.
    """

    tiles: Iterator[np.ndarray]
    shape: tuple[int, int, int]
    dtype: np.dtype
    side: int


def write_tiff(
    file: BinaryIO,
    samples: np.ndarray | Tiles,
    metadata: ImageMetadata,
    exif: Image.Exif | None,
    compression: Literal["deflate", "none"],
) -> None:
    """Write H×W×C uint8 or uint16 samples; C = 1 grey, 2 grey and alpha, 3 RGB, 4 RGBA.

    Args:
        file: opened for reading and writing bytes.
        samples: the pixels, whole or in tiles.
        metadata: its profile, XMP and resolution are written; its EXIF is not.
        exif: what to write of EXIF.
        compression: both are lossless.
    """
    channels = samples.shape[2]
    is_big = math.prod(samples.shape) * samples.dtype.itemsize >= _BIG
    directories = _directories(exif)
    if directories and is_big:
        notify("metadata", "TIFF", "is too large to carry its camera data, which is left out")
        directories = {}
    tags: list[tuple[int, str, int, bytes | int, bool]] = [
        (tag, "s", 0, value, True) for tag, value in _texts(exif).items()
    ]
    tags += [(tag - 1, "I", 1, 0, True) for tag in directories]
    if metadata.xmp is not None:
        tags.append((_XMP, "B", len(metadata.xmp), metadata.xmp, True))
    options: dict[str, Any] = {
        "byteorder": "<",
        "photometric": "rgb" if channels >= 3 else "minisblack",
        "planarconfig": "contig" if channels > 1 else None,
        "extrasamples": ["unassalpha"] if channels in (2, 4) else None,
        "compression": "zlib" if compression == "deflate" else None,
        "predictor": compression == "deflate",
        "iccprofile": metadata.icc_profile,
        "metadata": None,
        "software": False,
        "extratags": tags,
    }
    if metadata.dpi is not None:
        options.update(resolution=metadata.dpi, resolutionunit=_INCH)
    if isinstance(samples, Tiles):
        shape = samples.shape if channels > 1 else samples.shape[:2]
        options.update(shape=shape, dtype=samples.dtype, tile=(samples.side, samples.side))
        # One worker: with more, tifffile collects tiles ahead of the encoders.
        options.update(bigtiff=is_big, maxworkers=1)
        pixels: Any = (tile[..., 0] if channels == 1 else tile for tile in samples.tiles)
    else:
        pixels = samples[..., 0] if channels == 1 else samples
    tifffile.imwrite(file, pixels, **options)
    if directories:
        _append_directories(file, directories)


def _directories(exif: Image.Exif | None) -> dict[int, dict[int, Any]]:
    """What can be written of EXIF's own directories: the camera's data and the place."""
    if exif is None:
        return {}
    found = {tag: dict(exif.get_ifd(tag)) for tag in _DIRECTORIES}
    good = {
        tag: {name: value for name, value in entries.items() if _can_be_written(name, value)}
        for tag, entries in found.items()
    }
    if good != found:
        notify("metadata", "TIFF", "some camera data makes no sense and is left out")
    return {tag: entries for tag, entries in good.items() if entries}


def _can_be_written(tag: int, value: Any) -> bool:
    """Whether Pillow can pack an entry, which may be of a kind that its tag does not take."""
    block = TiffImagePlugin.ImageFileDirectory_v2(b"II*\0\x08\0\0\0")
    try:
        block[tag] = value
        block.tobytes(8)
    except Exception:  # struct.error, TypeError, ValueError, ...
        return False
    return True


def _texts(exif: Image.Exif | None) -> dict[int, bytes]:
    """The texts of EXIF's first directory: description, camera, date, author."""
    entries = {} if exif is None else dict(exif)
    texts = {tag: value for tag, value in entries.items() if isinstance(value, str)}
    return {tag: value.encode("utf-8") for tag, value in texts.items() if tag not in _SET_BY_TIFFFILE}


def _append_directories(file: BinaryIO, directories: dict[int, dict[int, Any]]) -> None:
    """Write the directories behind the image and let the entries kept free for them point there."""
    file.seek(0)
    with tifffile.TiffFile(file) as written:
        entries = {tag: written.pages[0].tags[tag - 1].offset for tag in directories}
    for tag, values in directories.items():
        start = file.seek(0, 2)
        start += file.write(b"\0" * (start % 2))
        block = TiffImagePlugin.ImageFileDirectory_v2(b"II*\0\x08\0\0\0")
        for name, value in values.items():
            block[name] = value
        file.write(block.tobytes(start))
        file.seek(entries[tag])
        file.write(struct.pack("<HHII", tag, _LONG, 1, start))


# How much packed data of a TIFF would unpack to, found out without unpacking it into memory.
# tifffile unpacks a strip or tile whole, however large it becomes: megabytes of deflate can hold gigabytes.
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
