"""16-bit colour, which Pillow's image modes cannot hold, and TIFF layouts that Pillow does not know.

Pillow decodes 16-bit colour but keeps one byte of each sample; its raw mode says which. Decoding twice, once
for each byte, gives all 16 bits at the speed of its decoder, for every compression and interlacing it knows,
without a further package. `tifffile` reads what is left: planar, grey with alpha, and floating-point TIFF.
"""

import logging
import math
import sys
from collections.abc import Callable
from typing import BinaryIO, Literal, NamedTuple

import numpy as np
import tifffile
from PIL import Image, TiffImagePlugin

from clearsr.errors import ClearSRError, notify
from clearsr.image.data import Raster
from clearsr.image.declared import PROFILED
from clearsr.image.modes import checked_floats
from clearsr.image.tiff import check_unpacked

Layout = Literal["plain", "inverted", "two_bytes", "unusual"]

_BITS, _PHOTOMETRIC, _PLANAR, _EXTRA_SAMPLES, _SAMPLE_FORMAT = 258, 262, 284, 338, 339
_SAMPLES_PER_PIXEL = 277
_ORIENTATION = 274
_INFO_TAGS = {"icc_profile": 34675, "xmp": 700}
DNG_VERSION = 50706  # a camera's raw file has it
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB = 0, 1, 2
MAX_CHANNELS = 32  # of a TIFF, of which at most four are shown
_ASSOCIATED_ALPHA, _SEPARATE_ALPHA = 1, 2


def layout_of(image: Image.Image) -> Layout:
    """How to read an opened, not yet loaded file.

    Returns:
        "plain" for Pillow alone; "inverted" for Pillow with 0 as white; "two_bytes" for `read_both_bytes`;
        "unusual" for `read_unusual_tiff`.
    """
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return "two_bytes" if _raw_mode(image) in ("RGB;16B", "RGBA;16B", "LA;16B") else "plain"
    tags = image.tag_v2
    bits = tags.get(_BITS, (1,))
    photometric = tags.get(_PHOTOMETRIC, _BLACK_IS_ZERO)
    if max(bits) <= 8 or photometric not in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB):
        return "plain"
    if set(tags.get(_SAMPLE_FORMAT, (1,))) != {1} or tags.get(_PLANAR, 1) != 1 or max(bits) > 16:
        return "unusual"
    if len(bits) == 1:
        return "inverted" if photometric == _WHITE_IS_ZERO else "plain"
    return "two_bytes" if ";16" in _raw_mode(image) else "unusual"


def _raw_mode(image: Image.Image) -> str:
    """How samples lie in the file, in Pillow's words, such as "RGB;16B"; empty when it does not say."""
    tile = getattr(image, "tile", None)
    arguments = tile[0].args if tile else None
    name = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return name if isinstance(name, str) else ""


def read_both_bytes(image: Image.Image, reopen: Callable[[], BinaryIO], frame: int = 0) -> Raster:
    """Samples of an opened PNG or TIFF of layout "two_bytes": it is loaded, reopened and decoded again.

    Pillow's raw modes ";16L" keep the second byte of each sample, ";16B" the first.
    """
    kind, _, order = _raw_mode(image).partition(";")
    is_premultiplied = kind == "RGBa"
    if kind == "LA":
        both = _decode_as(image, "RGBA").astype(np.uint16)  # four bytes a pixel, whatever they mean
        return Raster(both[..., 0::2] << 8 | both[..., 1::2])
    kind = "RGBA" if is_premultiplied else kind
    # libtiff gives native order.
    is_big_endian = order == "16B" or (order == "16N" and sys.byteorder == "big")
    high, low = ("16B", "16L") if is_big_endian else ("16L", "16B")
    with reopen() as file, Image.open(file, formats=[str(image.format)]) as again:
        if frame:
            again.seek(frame)
        if (again.mode, again.size, _raw_mode(again)) != (image.mode, image.size, _raw_mode(image)):
            raise OSError("the file changed while it was read")
        samples = _decode_as(image, f"{kind};{high}").astype(np.uint16) << 8
        samples |= _decode_as(again, f"{kind};{low}")
    transparent = image.info.get("transparency")
    if isinstance(transparent, tuple) and samples.shape[2] == 3:
        alpha = np.where((samples == transparent).all(-1, keepdims=True), 0, 65535).astype(np.uint16)
        samples = np.concatenate([samples, alpha], axis=-1)
    return Raster(samples, is_premultiplied)


def _decode_as(image: Image.Image, raw_mode: str) -> np.ndarray:
    """H×W×C bytes of an opened file, its samples taken apart as `raw_mode` says."""
    image.tile = [  # type: ignore[attr-defined]
        tile._replace(args=(raw_mode, *tile.args[1:]) if isinstance(tile.args, tuple) else raw_mode)
        for tile in image.tile  # type: ignore[attr-defined]
    ]
    image.load()
    return np.asarray(image)


class TiffPage(NamedTuple):
    """The first page of a TIFF.

    Attributes:
        raster: its samples, as stored.
        orientation: 1-8, as in EXIF.
        info: ICC profile and XMP, under the names that Pillow gives them.
        page_count: pages in the file.
    """

    raster: Raster
    orientation: int
    info: dict[str, object]
    page_count: int


def read_unusual_tiff(encoded: BinaryIO, source: str, max_pixels: int, number: int = 0) -> TiffPage:
    """A page as `tifffile` reads it.

    Raises:
        ClearSRError: too many pixels, or samples that cannot be shown as grey or RGB in 0-1.
    """
    with silent_tifffile(), tifffile.TiffFile(encoded) as file:
        page = file.pages[number]
        check_size(page.imagewidth, page.imagelength, source, max_pixels)
        if page.photometric not in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB):
            raise ClearSRError(f"{source}: is a TIFF of an unusual colour kind; save it as RGB or greyscale")
        if page.samplesperpixel > MAX_CHANNELS:
            raise ClearSRError(f"{source}: is a TIFF of {page.samplesperpixel} channels; save it as RGB")
        check_parts(page, math.prod(page.chunked), source)
        wanted = math.prod(page.chunks) * page.dtype.itemsize
        for data, _ in file.filehandle.read_segments(page.dataoffsets, page.databytecounts, sort=False):
            check_unpacked(data or b"", page.compression, wanted, source)
        try:
            samples = _channels_last(page.asarray(), page.axes, source)
        except KeyError as error:  # tifffile's answer to a compression that needs a further package
            name = getattr(page.compression, "name", page.compression)
            raise ClearSRError(
                f"{source}: is a TIFF in a layout that is not read when compressed by {name}; "
                "save it uncompressed or with deflate"
            ) from error
        orientation, info = orientation_tag(page), info_tags(page)
        page_count = len(file.pages)
    samples = _as_unsigned(samples, source)
    if page.photometric == _WHITE_IS_ZERO:
        samples[..., 0] = (~samples if samples.dtype.kind == "u" else 1 - samples)[..., 0]
    raster = with_alpha(samples, 3 if page.photometric == _RGB else 1, tuple(page.extrasamples), source)
    return TiffPage(raster, orientation, info, page_count)


def check_size(width: int, height: int, source: str, max_pixels: int) -> None:
    """Refuse what has no pixels, or more than `max_pixels`, by the size that its header states.

    Raises:
        ClearSRError: names the size and the limit.
    """
    if width < 1 or height < 1:
        raise ClearSRError(f"{source}: has no pixels ({width}×{height})")
    if width * height > max_pixels:
        raise ClearSRError(
            f"{source}: is {width}×{height}, {width * height:,} pixels; at most {max_pixels:,} are accepted"
        )


def check_parts(page: tifffile.TiffPage, count: int, source: str) -> None:
    """Refuse a page that lacks some of its `count` strips or tiles.

    Raises:
        ClearSRError: it does.
    """
    parts = list(zip(page.dataoffsets, page.databytecounts, strict=False))[:count]
    if len(parts) < count or not all(offset > 0 and size > 0 for offset, size in parts):
        raise ClearSRError(f"{source}: is damaged or incomplete: parts of the picture are missing")


def _channels_last(samples: np.ndarray, axes: str, source: str) -> np.ndarray:
    if axes == "YX":
        return samples[..., None]
    if axes not in ("YXS", "SYX"):
        raise ClearSRError(f"{source}: is a TIFF volume (axes {axes}), not a picture; save one slice of it")
    return np.moveaxis(samples, 0, -1) if axes == "SYX" else samples


def _as_unsigned(samples: np.ndarray, source: str) -> np.ndarray:
    """Own copy as uint8, uint16 or float32 in [0, 1]."""
    if samples.dtype.kind == "f":
        return checked_floats(samples, source)
    if samples.dtype.kind != "u":
        raise ClearSRError(f"{source}: holds signed integers; save it as an 8-bit or 16-bit image")
    if samples.dtype.itemsize <= 2:
        return samples.astype(samples.dtype.newbyteorder("="))
    return (samples / np.iinfo(samples.dtype).max).astype(np.float32)


def with_alpha(samples: np.ndarray, base: int, extra: tuple[int, ...], source: str) -> Raster:
    """The `base` colour channels, and the first of the extra channels that is alpha."""
    if samples.shape[2] < base:
        raise ClearSRError(f"{source}: is a damaged TIFF: RGB with {samples.shape[2]} channels")
    kinds = extra or (_SEPARATE_ALPHA,) * (samples.shape[2] == base + 1)
    others = samples.shape[2] - base
    for index, kind in enumerate(kinds[:others]):
        if kind in (_ASSOCIATED_ALPHA, _SEPARATE_ALPHA):
            notify_of_channels(others - 1, source)
            chosen = np.concatenate([samples[..., :base], samples[..., base + index, None]], axis=-1)
            return Raster(chosen, is_premultiplied=kind == _ASSOCIATED_ALPHA)
    notify_of_channels(others, source)
    return Raster(samples[..., :base])


def channels_of(image: Image.Image) -> int:
    """Channels that a TIFF stores of each pixel; 0 where that means nothing."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile) or image.mode in PROFILED:
        return 0
    return int(image.tag_v2.get(_SAMPLES_PER_PIXEL, 1))


def notify_of_channels(count: int, source: str) -> None:
    """Say so if a TIFF has channels that are neither colour nor transparency."""
    if count > 0:
        what = "a further channel" if count == 1 else f"{count} further channels"
        notify("channels", source, f"it has {what}, neither colour nor transparency; left out")


def orientation_tag(page: tifffile.TiffPage) -> int:
    """EXIF orientation 1-8 of a page; 1 when there is none or it makes no sense."""
    tag = page.tags.get(_ORIENTATION)
    return tag.value if tag is not None and tag.value in range(1, 9) else 1


def info_tags(page: tifffile.TiffPage) -> dict[str, object]:
    """ICC profile and XMP of a page, as far as it has them, under the names that Pillow gives them."""
    tags = {name: page.tags.get(code) for name, code in _INFO_TAGS.items()}
    return {name: tag.value for name, tag in tags.items() if tag is not None}


class silent_tifffile:  # noqa: N801 - reads as the function that a context manager is
    """Keep tifffile's log of a damaged file's oddities from the user: the error that follows says enough."""

    def __enter__(self) -> None:
        tifffile.logger().addFilter(self._drop)

    def __exit__(self, *exception: object) -> None:
        tifffile.logger().removeFilter(self._drop)

    @staticmethod
    def _drop(record: logging.LogRecord) -> bool:
        return False
