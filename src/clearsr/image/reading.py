"""A file of any common kind as `ImageData` (`read_image`) or as bytes to train on (`read_levels`).

What cannot be read is one line that says why not. All decoders (`decoding.py`) run in one guarded place:
whatever they raise becomes a `ClearSRError`. A JPEG or PNG that is cut off is mended before it is decoded
again: by its end marker alone, or by what is missing in grey, if that is allowed.
"""

import io
import re
import stat
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tifffile
import torch
from PIL import Image

from clearsr import quiet
from clearsr.errors import ClearSRError, display_name, notify, one_line
from clearsr.image.data import ImageData, InputCost, from_raster, to_levels, upright_size
from clearsr.image.decoding import (
    RAW,
    ChooseWindow,
    Decoded,
    Encoded,
    decode,
    open_header,
    peak_bytes_per_pixel,
)
from clearsr.image.deep import check_size, orientation_tag
from clearsr.image.metadata import header_orientation
from clearsr.image.png import mended_png
from clearsr.image.source import ImageSource, RasterSource, TiffSource

MAX_PIXELS = 300_000_000
_SUBFILE, _REDUCED = 254, 1  # TIFF's tag of pages that are smaller copies of others
_FLOAT_BYTES = 16  # per pixel of `ImageData`: colour and transparency
_RAW_SUFFIXES = frozenset(
    (".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".kdc", ".mef", ".mos", ".mrw", ".nef")
    + (".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".sr2", ".srf", ".srw", ".x3f")
)


def read_image(
    path: Path | str, max_pixels: int = MAX_PIXELS, allow_truncated: bool = False, frame: int | None = None
) -> ImageData:
    """The picture that a file shows: upright, RGB or grey, at 8 or 16 bits, with its metadata.

    The first frame or page where there are several (with a warning). CMYK and Lab become sRGB.

    Args:
        path: an image file.
        max_pixels: refuse larger images by the size in their header, before they take memory.
        allow_truncated: take what is there of a JPEG or PNG that is cut off, grey below (with a warning).
        frame: the number of a frame or page, from 0.

    Raises:
        ClearSRError: one line naming the file and what is wrong with it.
    """
    path = Path(path)
    source = display_name(path)
    _check_file(path, source)
    with _guarded(source, max_pixels):
        decoded = _decoded(Encoded(lambda: path.open("rb"), source, max_pixels, allow_truncated, frame))
        return from_raster(decoded.raster, decoded.metadata, source, decoded.orientation)


class FrameSequence(NamedTuple):
    """The frames or pages of a file.

    Attributes:
        numbers: of those that are pictures of their own.
        durations: how long each is shown, in milliseconds; None for pages.
        loop: how often all are shown, 0 for without end.
    """

    numbers: tuple[int, ...]
    durations: tuple[float, ...] | None
    loop: int


def read_sequence(path: Path) -> FrameSequence | None:
    """The frames of an animation, or pages of a TIFF; None where there is one picture.

    Raises:
        ClearSRError: as `read_image`.
    """
    source = display_name(path)
    _check_file(path, source)
    with _guarded(source, MAX_PIXELS), path.open("rb") as file:
        image = open_header(file, source, MAX_PIXELS)
        is_series = image is not None and image.format in ("GIF", "WEBP", "PNG", "AVIF", "TIFF")
        if image is None or not is_series or getattr(image, "n_frames", 1) == 1:
            return None
        numbers, durations = [], []
        for number in range(image.n_frames):  # type: ignore[attr-defined]
            image.seek(number)
            check_size(*image.size, source, MAX_PIXELS)
            if image.format == "TIFF":
                is_own = not image.tag_v2.get(_SUBFILE, 0) & _REDUCED  # type: ignore[attr-defined]
            else:
                image.load()  # some tell the duration only then
                is_own = not (number == 0 and image.info.get("default_image"))
            if is_own:
                numbers.append(number)
                durations.append(float(image.info.get("duration", 0)))
        timing = None if image.format == "TIFF" else tuple(durations)
        once = 1 if image.format == "GIF" else 0
        return (
            FrameSequence(tuple(numbers), timing, image.info.get("loop", once)) if len(numbers) > 1 else None
        )


def read_levels(path: Path, choose: ChooseWindow | None = None, content: bytes | None = None) -> torch.Tensor:
    """The picture that a file shows as uint8 RGB 3×H×W, upright and without transparency, or a part of it.

    The whole of it is always decoded, so that damage anywhere is an error, but no more than the part is
    converted: of a large photograph that is by far the most work.

    Args:
        path: an image file.
        choose: given height and width, says which part is wanted; may raise.
        content: the encoded image, where `path` is only its name.

    Raises:
        ClearSRError: as `read_image`.
    """
    source = display_name(path)
    if content is None:
        _check_file(path, source)
    with _guarded(source, MAX_PIXELS):
        encoded = Encoded(
            lambda: path.open("rb") if content is None else io.BytesIO(content), source, MAX_PIXELS
        )
        decoded = _decoded(encoded, choose)
        return to_levels(decoded.raster, decoded.orientation)


def read_size(path: Path, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Height and width of the upright picture, by the file's header alone: enough to plan by.

    (A PNG that is to be turned and says so behind its pixels is given as it lies.)

    Raises:
        ClearSRError: as `read_image`.
    """
    return read_header(path, max_pixels)[0]


def read_header(path: Path, max_pixels: int = MAX_PIXELS) -> tuple[tuple[int, int], InputCost]:
    """What `read_size` says, and the memory that `read_image` and `open_source` take for it.

    Raises:
        ClearSRError: as `read_image`.
    """
    source = display_name(path)
    _check_file(path, source)
    with _guarded(source, max_pixels), path.open("rb") as file:
        image = open_header(file, source, max_pixels)
        if image is None:
            with tifffile.TiffFile(path) as tiff:
                page = tiff.pages[0]
                check_size(page.imagewidth, page.imagelength, source, max_pixels)
                width, height, orientation = page.imagewidth, page.imagelength, orientation_tag(page)
        else:
            check_size(*image.size, source, max_pixels)
            width, height = image.size
            # Pillow states the size of a TIFF as it will be once it is turned upright.
            orientation = 1 if image.format == "TIFF" else header_orientation(image)
        decoding = peak_bytes_per_pixel(image) * height * width
        parts = TiffSource.open(path, source, max_pixels)
        if parts is not None:
            parts.close()
    cost = InputCost(decoding + _FLOAT_BYTES * height * width, decoding if parts is None else 0)
    return upright_size(height, width, orientation), cost


def stored_format(path: Path) -> str | None:
    """The format of a file that can be read, by Pillow's name; None for a layout that Pillow does not know.

    Raises:
        ClearSRError: as `read_image`.
    """
    source = display_name(path)
    _check_file(path, source)
    with _guarded(source, MAX_PIXELS), path.open("rb") as file:
        image = open_header(file, source, MAX_PIXELS)
        return None if image is None else image.format


def open_source(path: Path, max_pixels: int = MAX_PIXELS, allow_truncated: bool = False) -> ImageSource:
    """The picture that a file shows, to be read part by part; a TIFF is decoded as it is read.

    Raises:
        ClearSRError: as `read_image`.
    """
    source = display_name(path)
    _check_file(path, source)
    with _guarded(source, max_pixels):
        if (tiff := TiffSource.open(path, source, max_pixels)) is not None:
            return tiff
        decoded = _decoded(Encoded(lambda: path.open("rb"), source, max_pixels, allow_truncated))
        return RasterSource(decoded.raster, decoded.metadata, decoded.orientation, source)


def _decoded(encoded: Encoded, choose: ChooseWindow | None = None) -> Decoded:
    """What an image holds; of one that is cut off what there is, if that is all or may be taken."""
    try:
        return decode(encoded, choose)
    except ClearSRError:
        raise
    except Exception:  # decoders raise anything
        with encoded.open() as file:
            content = file.read()
        mended = _mended_jpeg(content) if content.startswith(b"\xff\xd8") else mended_png(content)
        if mended is None or mended[1] == 0:  # nothing of it is there
            raise
    whole, share = mended
    if share < 1 and not encoded.allow_truncated:
        raise ClearSRError(
            f"{encoded.source}: is damaged or incomplete: it ends after about {share:.0%} of the picture; "
            "clearsr upscale --allow-truncated takes what is there"
        )
    is_all = "only the end of the file is missing; the picture is all there"
    is_part = f"it ends after about {share:.0%} of the picture; the rest is grey"
    notify("truncated", encoded.source, is_all if share == 1 else is_part)
    return decode(encoded._replace(open=lambda: io.BytesIO(whole)), choose)


_JPEG_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])", re.DOTALL)  # others stand among the pixels
_JPEG_END, _JPEG_SCAN, _NO_SEGMENT = 0xD9, 0xDA, (0x01, 0xD8)
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_ANY_PIXELS = bytes(number * 97 % 251 for number in range(2, 1000))  # decodes to something else than nothing


def _mended_jpeg(content: bytes) -> tuple[bytes, float] | None:
    """A JPEG without an end marker with one, and the share of it that is there; None if it has one.

    Those pixels are there that come out the same whatever is written behind what is there.
    """
    if (found := _jpeg_scans(content)) is None:
        return None
    length, is_coarse = found
    content, end = content[:length].rstrip(b"\xff"), bytes((0xFF, _JPEG_END))
    one, other = _jpeg_levels(content + end), _jpeg_levels(content + _ANY_PIXELS + end)
    differs = (one != other).reshape(one.shape[0] * one.shape[1], -1).any(1)
    share = float(differs.argmax()) / len(differs) if differs.any() else 1.0
    return content + end, min(share, 0.99) if is_coarse else share


def _jpeg_levels(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content), formats=["JPEG"]) as image:
        return np.asarray(image)


def _jpeg_scans(content: bytes) -> tuple[int, bool] | None:
    """How much of a JPEG there is in whole segments, and whether scans are missing; None if it has an end.

    Without some of its scans a picture is coarse, or has no colour.
    """
    position, is_progressive, has_pixels = 2, False, False
    missing: set[tuple[int, int]] = set()  # components, and coefficients of theirs
    while position < len(content) and (match := _JPEG_MARKER.search(content, position)):
        marker, start = match[1][0], match.end()
        if marker == _JPEG_END:
            return None
        length = 0 if marker in _NO_SEGMENT else int.from_bytes(content[start : start + 2], "big")
        position = start + length
        segment = content[start + 2 : position]
        if max(position, start + 2) > len(content):
            position = match.start()
            break
        if marker in _JPEG_FRAMES:
            is_progressive = marker & 3 == 2
            every: Iterable[int] = range(64) if is_progressive else (0,)
            missing = {(name, band) for name in segment[6::3] for band in every}
        elif marker == _JPEG_SCAN:
            has_pixels, names = True, segment[1 : 1 + 2 * segment[0] : 2]
            first, last, bits = segment[1 + 2 * segment[0] :][:3]
            if bits & 15 == 0:  # none is left to later scans
                bands = range(first, last + 1) if is_progressive else (0,)
                missing -= {(name, band) for name in names for band in bands}
    else:
        position = len(content)
    return (position, bool(missing)) if has_pixels else None


@contextmanager
def _guarded(source: str, max_pixels: int) -> Iterator[None]:
    """Within the block whatever a decoder raises becomes a `ClearSRError` that names the file."""
    try:
        with _pillow_at_rest(max_pixels), quiet.dropped():
            yield
    except ClearSRError:
        raise
    except PermissionError as error:
        raise ClearSRError(f"{source}: cannot be read: permission denied") from error
    except Image.DecompressionBombError as error:  # Pillow stops at twice its limit before it shows the size
        raise ClearSRError(
            f"{source}: has far too many pixels; at most {max_pixels:,} are accepted"
        ) from error
    except MemoryError as error:
        raise ClearSRError(f"{source}: does not fit into memory") from error
    except Exception as error:  # decoders raise anything: struct.error, SyntaxError, IndexError, ...
        raise ClearSRError(
            f"{source}: is damaged or incomplete and cannot be read ({one_line(error)})"
        ) from error


def _check_file(path: Path, source: str) -> None:
    """Refuse what is no file with something in it, in words that need no knowledge of decoders."""
    try:
        status = path.stat()
    except FileNotFoundError:
        raise ClearSRError(f"{source}: does not exist") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ClearSRError(f"{source}: cannot be read: {reason}") from None
    if stat.S_ISDIR(status.st_mode):
        raise ClearSRError(f"{source}: is a folder; expected an image file")
    if not stat.S_ISREG(status.st_mode):
        raise ClearSRError(f"{source}: is not a regular file; expected an image file")
    if status.st_size == 0:
        raise ClearSRError(f"{source}: is empty (0 bytes)")
    if path.suffix.lower() in _RAW_SUFFIXES:
        raise ClearSRError(f"{source}: is {RAW}")


_lock = threading.Lock()  # guards the two below
_limits_in_use: list[int] = []
_resting: ExitStack = ExitStack()


@contextmanager
def _pillow_at_rest(max_pixels: int) -> Iterator[None]:
    """Pillow without its warnings and with `max_pixels` as its limit; the last to leave restores both.

    They are global to the process, so threads that read at the same time share one change.
    """
    with _lock:
        if not _limits_in_use:
            _resting.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            _resting.callback(setattr, Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
        _limits_in_use.append(max_pixels)
        Image.MAX_IMAGE_PIXELS = max(_limits_in_use)
    try:
        yield
    finally:
        with _lock:
            _limits_in_use.remove(max_pixels)
            if not _limits_in_use:
                _resting.close()
