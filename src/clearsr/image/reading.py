"""A file of any common kind as `ImageData` (`read_image`) or as bytes to train on (`read_levels`).

What cannot be read is one line that says why not. All decoders (`decoding.py`) run in one guarded place:
whatever they raise becomes a `ClearSRError`.
"""

import io
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import tifffile
import torch
from PIL import Image

from clearsr import quiet
from clearsr.errors import ClearSRError, display_name, one_line
from clearsr.image.data import ImageData, InputCost, from_raster, to_levels, upright_size
from clearsr.image.decoding import RAW, ChooseWindow, Encoded, decode, open_header, peak_bytes_per_pixel
from clearsr.image.deep import check_size, orientation_tag
from clearsr.image.metadata import header_orientation
from clearsr.image.source import ImageSource, RasterSource, TiffSource

MAX_PIXELS = 300_000_000
_FLOAT_BYTES = 16  # per pixel of `ImageData`: colour and transparency
_RAW_SUFFIXES = frozenset(
    (".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".kdc", ".mef", ".mos", ".mrw", ".nef")
    + (".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".sr2", ".srf", ".srw", ".x3f")
)


def read_image(path: Path, max_pixels: int = MAX_PIXELS) -> ImageData:
    """The picture that a file shows: upright, RGB or grey, at 8 or 16 bits, with its metadata.

    The first frame or page where there are several (with a warning). CMYK and Lab become sRGB.

    Args:
        path: an image file.
        max_pixels: refuse larger images by the size in their header, before they take memory.

    Raises:
        ClearSRError: one line naming the file and what is wrong with it.
    """
    source = display_name(path)
    _check_file(path, source)
    with _guarded(source, max_pixels):
        decoded = decode(Encoded(lambda: path.open("rb"), source, max_pixels))
        return from_raster(decoded.raster, decoded.metadata, source, decoded.orientation)


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
        decoded = decode(encoded, choose)
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


def open_source(path: Path, max_pixels: int = MAX_PIXELS) -> ImageSource:
    """The picture that a file shows, to be read part by part; a TIFF is decoded as it is read.

    Raises:
        ClearSRError: as `read_image`.
    """
    source = display_name(path)
    _check_file(path, source)
    with _guarded(source, max_pixels):
        if (tiff := TiffSource.open(path, source, max_pixels)) is not None:
            return tiff
        decoded = decode(Encoded(lambda: path.open("rb"), source, max_pixels))
        return RasterSource(decoded.raster, decoded.metadata, decoded.orientation, source)


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
