"""EXIF, XMP, ICC profile and resolution: taken from an opened file, made true of the upright result.

Metadata never decides whether an image can be read: what is broken is left out with a warning.
"""

import math
import re
from collections.abc import Mapping
from typing import Any, BinaryIO

from PIL import ExifTags, Image

from clearsr.errors import notify, one_line
from clearsr.image.data import ImageMetadata

_ORIENTATION = int(ExifTags.Base.Orientation)
# What describes the picture. The rest of IFD0 describes how one file stored it, and is wrong in another.
_DESCRIPTIVE = frozenset(
    int(tag)
    for tag in (
        ExifTags.Base.ImageDescription,
        ExifTags.Base.Make,
        ExifTags.Base.Model,
        ExifTags.Base.XResolution,
        ExifTags.Base.YResolution,
        ExifTags.Base.ResolutionUnit,
        ExifTags.Base.Software,
        ExifTags.Base.DateTime,
        ExifTags.Base.Artist,
        ExifTags.Base.HostComputer,
        ExifTags.Base.Copyright,
        ExifTags.Base.Rating,
        ExifTags.Base.XPTitle,
        ExifTags.Base.XPComment,
        ExifTags.Base.XPAuthor,
        ExifTags.Base.XPKeywords,
        ExifTags.Base.XPSubject,
    )
)
_XMP_ORIENTATION = re.compile(rb"(tiff:Orientation(?:\s*=\s*[\"']|>)\s*)[2-8]")
_EXIF_SIZE_TAGS = (int(ExifTags.Base.ExifImageWidth), int(ExifTags.Base.ExifImageHeight))


def safe_exif(origin: Image.Image | BinaryIO, source: str) -> Image.Exif:
    """The EXIF block of an opened image, or of an open TIFF file; empty if it is damaged."""
    try:
        if isinstance(origin, Image.Image):
            return origin.getexif()
        exif = Image.Exif()
        exif.load_from_fp(origin)
        return exif
    except Exception as error:  # Pillow's parser raises nearly anything on damaged blocks
        _warn_damaged(error, source)
        return Image.Exif()


def header_orientation(image: Image.Image) -> int:
    """EXIF orientation of an opened image by what is known before its pixels are decoded; never warns.

    PNG may state it behind the pixels too, where Pillow would decode them all to find it: 1 is said then.
    """
    if image.format == "PNG" and "exif" not in image.info:
        return 1
    try:
        return orientation_of(image.getexif())
    except Exception:  # as in `safe_exif`, which warns when the picture itself is read
        return 1


def orientation_of(exif: Image.Exif) -> int:
    """EXIF orientation 1-8; 1 when there is none or it makes no sense."""
    value = exif.get(_ORIENTATION, 1)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def collect_metadata(
    info: Mapping[Any, Any], exif: Image.Exif, is_gray: bool, source: str = "image"
) -> ImageMetadata:
    """Metadata for pixels that were made upright, from what Pillow calls `info` of the file and its EXIF."""
    xmp = info.get("xmp", info.get("XML:com.adobe.xmp"))
    if isinstance(xmp, str):
        xmp = xmp.encode("utf-8")
    return ImageMetadata(
        icc_profile=fitting_profile(info.get("icc_profile"), is_gray),
        exif=_descriptive_part(exif, source),
        xmp=_XMP_ORIENTATION.sub(rb"\g<1>1", xmp) if isinstance(xmp, bytes) and xmp else None,
        dpi=_usable_dpi(info.get("dpi")),
    )


def fitting_profile(profile: object, is_gray: bool) -> bytes | None:
    """The ICC profile if its header (bytes 16-20 name the colour space) says that it is for such pixels."""
    if not isinstance(profile, bytes) or len(profile) < 128:
        return None
    return profile if profile[16:20] == (b"GRAY" if is_gray else b"RGB ") else None


def exif_for_size(exif: bytes | None, width: int, height: int) -> Image.Exif | None:
    """The EXIF block with its pixel dimensions, where it states them, set to the size of the output."""
    if exif is None:
        return None
    block = Image.Exif()
    block.load(exif)
    details = block.get_ifd(ExifTags.IFD.Exif)
    for tag, side in zip(_EXIF_SIZE_TAGS, (width, height), strict=True):
        if tag in details:
            details[tag] = side
    return block


def _descriptive_part(found: Image.Exif, source: str) -> bytes | None:
    """What the EXIF block says about the picture, upright and without thumbnail, or None."""
    try:
        kept = Image.Exif()
        for tag in sorted(_DESCRIPTIVE & set(found)):
            kept[tag] = found[tag]
        for group in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
            details = dict(found.get_ifd(group))
            if group == ExifTags.IFD.Exif and ExifTags.IFD.Interop in details:
                details[ExifTags.IFD.Interop] = dict(found.get_ifd(ExifTags.IFD.Interop))
            if details:
                kept[group] = details
        if not len(kept):
            return None
        kept[_ORIENTATION] = 1
        return kept.tobytes()
    except Exception as error:  # as above: a damaged block must not cost the user the picture
        _warn_damaged(error, source)
        return None


def _warn_damaged(error: Exception, source: str) -> None:
    notify("metadata", source, f"its EXIF data is damaged and is left out ({one_line(error)})")


def _usable_dpi(dpi: object) -> tuple[float, float] | None:
    try:
        horizontal, vertical = (float(value) for value in dpi)  # type: ignore[attr-defined]
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    usable = all(math.isfinite(value) and 0 < value < 1e6 for value in (horizontal, vertical))
    return (horizontal, vertical) if usable else None
