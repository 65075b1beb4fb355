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

_XMP, _IPTC, _INCH, _LONG = 700, 33723, 2, 4
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
        metadata: its profile, XMP, IPTC and resolution are written; its EXIF is not.
        exif: what to write of EXIF.
        compression: both are lossless.
    """
    is_big = math.prod(samples.shape) * samples.dtype.itemsize >= _BIG
    directories = _directories(exif)
    if directories and is_big:
        notify("metadata", "TIFF", "is too large to carry its camera data, which is left out")
        directories = {}
    tags = list(_entries(exif))
    tags += [(tag - 1, "I", 1, 0, True) for tag in directories]
    if metadata.xmp is not None:
        tags.append((_XMP, "B", len(metadata.xmp), metadata.xmp, True))
    if metadata.iptc is not None:
        tags.append((_IPTC, "B", len(metadata.iptc), metadata.iptc, True))
    channels = samples.shape[2]
    options = {**_options(channels, metadata, compression), "byteorder": "<", "extratags": tags}
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


def append_page(
    file: BinaryIO, samples: np.ndarray, metadata: ImageMetadata, compression: Literal["deflate", "none"]
) -> None:
    """Write a further page of H×W×C samples, with its profile and resolution."""
    file.seek(0)
    channels = samples.shape[2]
    with tifffile.TiffWriter(file, append=True) as writer:
        pixels = samples[..., 0] if channels == 1 else samples
        writer.write(pixels, **_options(channels, metadata, compression))


def _options(channels: int, metadata: ImageMetadata, compression: str) -> dict[str, Any]:
    options: dict[str, Any] = {
        "photometric": "rgb" if channels >= 3 else "minisblack",
        "planarconfig": "contig" if channels > 1 else None,
        "extrasamples": ["unassalpha"] if channels in (2, 4) else None,
        "compression": "zlib" if compression == "deflate" else None,
        "predictor": compression == "deflate",
        "iccprofile": metadata.icc_profile,
        "metadata": None,
        "software": False,
    }
    if metadata.dpi is not None:
        options.update(resolution=metadata.dpi, resolutionunit=_INCH)
    return options


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


def _entries(exif: Image.Exif | None) -> Iterator[tuple[int, str, int, bytes | int, bool]]:
    """EXIF's first directory as `tifffile` takes it: description, camera, date, author, rating."""
    for tag, value in ({} if exif is None else dict(exif)).items():
        if tag in _SET_BY_TIFFFILE:
            continue
        if isinstance(value, str):
            yield tag, "s", 0, value.encode("latin-1", "replace"), True  # the bytes that Pillow read
        elif isinstance(value, bytes):
            yield tag, "B", len(value), value, True
        elif isinstance(value, int) and 0 <= value < 2**16:
            yield tag, "H", 1, value, True


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
_PIECE = 2**16  # of packed data; what of it waits to be unpacked is copied at each step
_COMPRESSION, _BITS, _FILL_ORDER, _CHANNELS, _ROWS_PER_STRIP = 259, 258, 266, 277, 278
_TILE_WIDTH, _TILE_HEIGHT = 322, 323
_PLACES = ((273, 279), (324, 325))  # where strips or tiles begin, and their sizes


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


def check_deflated(file: BinaryIO, image: TiffImagePlugin.TiffImageFile) -> None:
    """Refuse a TIFF whose deflate is damaged: libtiff stops when it has its pixels, before the checksum.

    Every strip or tile is unpacked and forgotten; together at most twice what the picture needs. Other files
    are left alone: LZW, PackBits, JPEG, WebP and AVIF have no checksums, so there damage may be shown.

    Raises:
        OSError: it is damaged.
    """
    tags = image.tag_v2
    # With the other fill order all bits of a byte are turned round; nobody writes deflate so.
    if tags.get(_COMPRESSION) not in DEFLATE or tags.get(_FILL_ORDER, 1) != 1:
        return
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
