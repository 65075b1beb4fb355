"""A file of any common kind as `ImageData` (`read_image`) or as bytes to train on (`read_levels`).

What cannot be read is one line that says why not. All decoders run in one guarded place: whatever they raise
becomes a `ClearSRError`. Sizes are checked against the header before anything is decoded, and truncated files
are refused rather than shown half.
"""

import io
import logging
import stat
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import tifffile
import torch
from PIL import Image, UnidentifiedImageError

from clearsr.errors import ClearSRError
from clearsr.image.data import (
    ImageData,
    ImageMetadata,
    Raster,
    display_name,
    from_raster,
    stored_window,
    to_levels,
    upright_size,
)
from clearsr.image.deep import check_size, layout_of, read_both_bytes, read_unusual_tiff
from clearsr.image.metadata import collect_metadata, header_orientation, orientation_of, safe_exif
from clearsr.image.modes import raster_of
from clearsr.image.source import ImageSource, RasterSource, TiffSource
from clearsr.tiling import Window

logger = logging.getLogger(__name__)

MAX_PIXELS = 300_000_000
# Never EPS: Pillow hands it to Ghostscript, which runs it as a program.
_FORMATS = frozenset(
    ("PNG", "JPEG", "WEBP", "TIFF", "AVIF", "BMP", "DIB", "GIF", "PPM", "JPEG2000")
    + ("TGA", "ICO", "PCX", "QOI", "DDS", "SGI", "PSD")
)
_ACCEPTED = "PNG, JPEG, WebP, TIFF, AVIF, BMP, GIF, PNM, JPEG 2000, TGA, ICO, PCX, QOI, DDS, SGI, PSD, HEIC"
_ANIMATED = ("GIF", "WEBP", "PNG", "TIFF", "AVIF")
_DNG_VERSION = 50706
_JUDGED_WHOLE = ("I", "F")  # modes whose range of values says whether the picture can be shown at all
_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_RAW_SUFFIXES = frozenset(
    (".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".kdc", ".mef", ".mos", ".mrw", ".nef")
    + (".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".sr2", ".srf", ".srw", ".x3f")
)


ChooseWindow = Callable[[int, int], Window]  # height and width of the upright picture -> a part of it


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
        decoded = _decode(_Encoded(lambda: path.open("rb"), source, max_pixels))
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
        encoded = _Encoded(
            lambda: path.open("rb") if content is None else io.BytesIO(content), source, MAX_PIXELS
        )
        decoded = _decode(encoded, choose)
        return to_levels(decoded.raster, decoded.orientation)


def read_size(path: Path, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Height and width of the upright picture, by the file's header alone: enough to plan by.

    (A PNG that is to be turned and says so behind its pixels is given as it lies.)

    Raises:
        ClearSRError: as `read_image`.
    """
    source = display_name(path)
    _check_file(path, source)
    with _guarded(source, max_pixels), path.open("rb") as file:
        head = file.read(12)
        file.seek(0)
        image = _open(file, head, source)
        if image is None:
            with tifffile.TiffFile(path) as tiff:
                page = tiff.pages[0]
                check_size(page.imagewidth, page.imagelength, source, max_pixels)
                tag = page.tags.get(274)
                width, height, orientation = page.imagewidth, page.imagelength, tag.value if tag else 1
        else:
            check_size(*image.size, source, max_pixels)
            width, height = image.size
            # Pillow states the size of a TIFF as it will be once it is turned upright.
            orientation = 1 if image.format == "TIFF" else header_orientation(image)
    return (width, height) if orientation in (5, 6, 7, 8) else (height, width)


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
        decoded = _decode(_Encoded(lambda: path.open("rb"), source, max_pixels))
        return RasterSource(decoded.raster, decoded.metadata, decoded.orientation, source)


class _Encoded(NamedTuple):
    """An image that is not yet read."""

    open: Callable[[], BinaryIO]
    source: str  # its name in messages
    max_pixels: int


class _Decoded(NamedTuple):
    """Samples as stored, metadata, and the EXIF orientation that the samples are still in."""

    raster: Raster
    metadata: ImageMetadata
    orientation: int


@contextmanager
def _guarded(source: str, max_pixels: int) -> Iterator[None]:
    """Within the block whatever a decoder raises becomes a `ClearSRError` that names the file."""
    try:
        with _pillow_at_rest(max_pixels):
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
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ClearSRError(f"{source}: is damaged or incomplete and cannot be read ({reason})") from error


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
        raise ClearSRError(f"{source}: is a camera raw file; develop it to TIFF, PNG or JPEG first")


def _decode(encoded: _Encoded, choose: ChooseWindow | None = None) -> _Decoded:
    """What an image holds, or the part of it that `choose` picks of its upright height and width."""
    source, max_pixels = encoded.source, encoded.max_pixels
    # Never by name: Pillow would map plain TIFF into memory, and scrambles it in orientations 5-8.
    with encoded.open() as file:
        head = file.read(12)
        file.seek(0)
        image = _open(file, head, source)
        if image is None:
            return _cut(_decode_unusual_tiff(encoded), choose)
        check_size(*image.size, source, max_pixels)
        if _DNG_VERSION in getattr(image, "tag_v2", ()):
            raise ClearSRError(f"{source}: is a camera raw file; develop it to TIFF, PNG or JPEG first")
        _warn_of_frames(image, source)
        layout = layout_of(image)
        if layout == "unusual":
            return _cut(_decode_unusual_tiff(encoded), choose)
        if layout == "two_bytes":
            raster = read_both_bytes(image, encoded.open)
            exif = safe_exif(image, source)
        else:
            image.load()
            check_size(*image.size, source, max_pixels)  # an icon may hold more than its header says
            exif = safe_exif(image, source)
            if choose is not None and image.mode not in _JUDGED_WHOLE:
                top, left, bottom, right = _chosen(choose, image.height, image.width, orientation_of(exif))
                image, choose = image.crop((left, top, right, bottom)), None
            raster = raster_of(image, source)
        if layout == "inverted":
            raster = Raster(~raster.samples)
        is_gray = raster.samples.shape[2] <= 2
        metadata = collect_metadata(image.info, exif, is_gray, source)
        return _cut(_Decoded(raster, metadata, orientation_of(exif)), choose)


def _cut(decoded: _Decoded, choose: ChooseWindow | None) -> _Decoded:
    """The chosen part; everything if nothing is to be chosen."""
    if choose is None:
        return decoded
    samples, is_premultiplied = decoded.raster
    top, left, bottom, right = _chosen(choose, samples.shape[0], samples.shape[1], decoded.orientation)
    return decoded._replace(raster=Raster(samples[top:bottom, left:right], is_premultiplied))


def _chosen(choose: ChooseWindow, height: int, width: int, orientation: int) -> Window:
    """The chosen part of a picture, in the rows and columns that are stored."""
    size = upright_size(height, width, orientation)
    return stored_window(choose(*size), *size, orientation)


def _open(file: BinaryIO, head: bytes, source: str) -> Image.Image | None:
    """The file's header read by Pillow; None for a TIFF that only `tifffile` may know.

    Raises:
        ClearSRError: the file is no image, or an iPhone's HEIC and the optional `pillow-heif` is missing.
    """
    Image.init()
    try:
        return Image.open(file, formats=sorted(_FORMATS & set(Image.OPEN)))
    except UnidentifiedImageError:
        if head.startswith(_TIFF_MAGIC):
            return None
    if head[4:8] != b"ftyp" or head[8:12] not in _HEIF_BRANDS:
        raise ClearSRError(f"{source}: is not an image that can be read (accepted: {_ACCEPTED})")
    try:
        import pillow_heif
    except ImportError:
        raise ClearSRError(f"{source}: is a HEIC image; to read it, pip install 'clearsr[heif]'") from None
    pillow_heif.register_heif_opener()
    return Image.open(file, formats=["HEIF"])


def _decode_unusual_tiff(encoded: _Encoded) -> _Decoded:
    source = encoded.source
    with encoded.open() as file:
        page = read_unusual_tiff(file, source, encoded.max_pixels)
        if page.page_count > 1:
            _warn_first_of(page.page_count, source)
        file.seek(0)
        is_classic = file.read(4) in _TIFF_MAGIC[:2]
        file.seek(0)
        exif = safe_exif(file, source) if is_classic else Image.Exif()
        metadata = collect_metadata(page.info, exif, page.raster.samples.shape[2] <= 2, source)
    return _Decoded(page.raster, metadata, page.orientation)


def _warn_of_frames(image: Image.Image, source: str) -> None:
    """Say so if the file holds an animation or several pages. (In MPO and PSD the first is the picture.)"""
    if image.format not in _ANIMATED:
        return
    try:
        count = getattr(image, "n_frames", 1)
        image.seek(0)
    except (OSError, EOFError, ValueError, SyntaxError):
        return  # damage behind the first frame; the first frame itself is judged when it is decoded
    if count > 1:
        _warn_first_of(count, source)


def _warn_first_of(count: int, source: str) -> None:
    logger.warning("%s: holds %d frames or pages; only the first is used", source, count)


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
