"""What a file says beside its pixels: taken from an opened file, and made true of the upright picture.

Metadata never decides whether an image can be read: what is broken is left out with a notice. Which of it a
format of file can hold, and what becomes of the rest, is in `carrying.py`.
"""

import json
import math
import re
from collections.abc import Mapping
from typing import Any, BinaryIO

from PIL import ExifTags, Image, TiffImagePlugin

from clearsr.errors import notify, one_line
from clearsr.image.data import ImageMetadata, upright_point, upright_size
from clearsr.image.declared import CONVERTED, PROFILED, declared_profile

_ORIENTATION = int(ExifTags.Base.Orientation)
_DESCRIPTION = int(ExifTags.Base.ImageDescription)
# What describes the picture.
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
        ExifTags.Base.RatingPercent,
        ExifTags.Base.DocumentName,
        ExifTags.Base.PageName,
        ExifTags.Base.XPTitle,
        ExifTags.Base.XPComment,
        ExifTags.Base.XPAuthor,
        ExifTags.Base.XPKeywords,
        ExifTags.Base.XPSubject,
    )
)
# What places a map's pixels on the earth: wrong of other pixels, and of use, so that its loss is told.
_GEOGRAPHIC = (33550, 33922, 34264, 34735)
_IFD = ExifTags.IFD
_SIZE_TAGS = ((int(_IFD.Exif), 40962, 40963), (int(_IFD.Interop), 4097, 4098))
_SUBJECT_TAGS = (37396, 41492)  # SubjectArea, SubjectLocation: columns and rows
_FOCAL_PLANE_TAGS = (41486, 41487)  # pixels per unit of the sensor

IPTC_RESOURCE, _IPTC_TAG = 0x0404, 33723
RAW_PROFILE = "Raw profile type "
_NO_TEXTS = ("compression", "mimetype", "XML:com.adobe.xmp")  # of what Pillow holds in `info` as str
_MOST_KEYWORD = 79  # bytes, in PNG

_XMP_ORIENTATION = re.compile(rb"(tiff:Orientation(?:\s*=\s*[\"']|>)\s*)[2-8]")
# Names of XMP whose numbers are the size of the pixels, or lie among them; 0 is down and 1 is across.
_XMP_SIZES = {b"tiff:ImageLength": 0, b"tiff:ImageWidth": 1}
_XMP_SIZES |= {b"exif:PixelYDimension": 0, b"exif:PixelXDimension": 1}
_XMP_PLACES = {
    b"GPano:" + name: axis
    for axis, names in enumerate(
        (
            (b"FullPanoHeightPixels", b"CroppedAreaImageHeightPixels", b"CroppedAreaTopPixels")
            + (b"LargestValidInteriorRectTop", b"LargestValidInteriorRectHeight"),
            (b"FullPanoWidthPixels", b"CroppedAreaImageWidthPixels", b"CroppedAreaLeftPixels")
            + (b"LargestValidInteriorRectLeft", b"LargestValidInteriorRectWidth"),
        )
    )
    for name in names
}
_XMP_NUMBER = re.compile(
    rb"(?P<head>(?P<name>" + b"|".join([*_XMP_SIZES, *_XMP_PLACES]) + rb")(?:\s*=\s*[\"']|>)\s*)"
    rb"(?P<number>\d+(?:\.\d+)?)"
)
# Attributes of some names. Only the first blank of several begins one: the others would be tried in vain.
_ATTRIBUTES = rb"(?<!\s)\s+(?:%s)\s*=\s*(?:\"[^\"]*\"|'[^']*')"
_MOST_UNCLOSED = 8  # elements without an end that are looked at in a packet
# What of XMP speaks of data that lies beside the picture and does not come along, and what is said of it.
_XMP_BESIDE: tuple[tuple[str, str, bytes, bytes], ...] = (
    ("gain_map", "its gain map (Ultra HDR) is left out; the result is its picture for plain screens",
     rb"hdrgm:\w+", rb"(?:xmlns:hdrgm|hdrgm:\w+)"),
    ("motion_photo", "its film (motion photo) is left out", rb"GCamera:(?:MotionPhoto|MicroVideo)",
     rb"GCamera:(?:MotionPhoto|MicroVideo)\w*"),
    ("metadata", "its depth map is left out", rb"(?:GDepth|GImage):\w+", rb"(?:GDepth|GImage):\w+"),
    ("metadata", "the second part of its XMP is left out", rb"xmpNote:HasExtendedXMP",
     rb"xmpNote:HasExtendedXMP"),
)  # fmt: skip
_XMP_THUMBNAILS, _XMP_DIRECTORY = rb"xmp:Thumbnails", rb"Container:Directory"


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


def info_of(image: Image.Image) -> dict[Any, Any]:
    """What Pillow calls `info` of an opened image; a TIFF's IPTC is in it as that of a JPEG is."""
    info = dict(image.info)
    if image.mode in PROFILED:
        info[CONVERTED] = True
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        block = image.tag_v2.get(_IPTC_TAG)
        if isinstance(block, bytes):  # others have it as numbers of 32 bits, in the file's order
            info.setdefault("photoshop", {})[IPTC_RESOURCE] = block
        elif block is not None:
            order = "little" if image.tag_v2.prefix == b"II" else "big"
            numbers = block if isinstance(block, tuple) else (block,)
            packed = b"".join(number.to_bytes(4, order) for number in numbers)
            info.setdefault("photoshop", {})[IPTC_RESOURCE] = packed
    return info


def collect_metadata(
    info: Mapping[Any, Any],
    exif: Image.Exif,
    is_gray: bool,
    source: str = "image",
    size: tuple[int, int] | None = None,
) -> ImageMetadata:
    """Metadata for pixels that were made upright.

    Args:
        info: as `info_of` gives it.
        exif: the file's.
        is_gray: whether the picture is, which a profile must fit.
        source: name for messages.
        size: height and width of the pixels as they are stored.
    """
    if size is not None:
        size = upright_size(*size, orientation_of(exif))
    xmp = info.get("xmp", info.get("XML:com.adobe.xmp")) or _raw_profile(info, "xmp")
    if isinstance(xmp, str):
        xmp = xmp.encode("utf-8", "surrogateescape")
    comment = info.get("comment")
    if isinstance(comment, bytes):
        comment = _decoded(comment)
    return ImageMetadata(
        icc_profile=declared_profile(info, exif, is_gray, source),
        exif=_descriptive_part(exif, source, size),
        xmp=_xmp_of_picture(xmp, source) if isinstance(xmp, bytes) and xmp else None,
        dpi=_usable_dpi(info.get("dpi")),
        text=_texts_in(info),
        iptc=_iptc_in(info),
        comment=comment if isinstance(comment, str) and comment.strip("\0 ") else None,
        size=size,
    )


def exif_of(block: bytes | None) -> Image.Exif:
    """A block of EXIF to be looked into; an empty one for None."""
    exif = Image.Exif()
    if block is not None:
        exif.load(block)
    return exif


class _Raw(str):
    """Text of EXIF with the bytes that it had: Pillow takes them for Latin-1, and would write plain ASCII."""

    def encode(self, encoding: str = "", errors: str = "") -> bytes:
        return super().encode("latin-1", "replace")


def exif_bytes(exif: Image.Exif) -> bytes:
    """The block as bytes, its texts byte by byte as they were read."""

    def with_raw_texts(entries: Any) -> Any:
        if isinstance(entries, str):
            return _Raw(entries)
        return {t: with_raw_texts(v) for t, v in entries.items()} if isinstance(entries, dict) else entries

    copy = Image.Exif()
    for tag, value in exif.items():
        copy[tag] = with_raw_texts(value)
    for group in (_IFD.Exif, _IFD.GPSInfo):
        details = _directory(exif, group)
        if group == _IFD.Exif and _IFD.Interop in details:
            details[_IFD.Interop] = _directory(exif, _IFD.Interop, details)
        if details:
            copy[group] = with_raw_texts(details)
        elif group in copy:
            del copy[group]
    return copy.tobytes()


def _directory(exif: Image.Exif, group: int, above: Mapping[int, Any] | None = None) -> dict[int, Any]:
    """A directory below EXIF's first one: as it was put there, or as it is found in the block."""
    given = (exif if above is None else above).get(group)
    return dict(given) if isinstance(given, dict) else dict(exif.get_ifd(group))


def metadata_for_size(metadata: ImageMetadata, height: int, width: int) -> ImageMetadata:
    """The metadata with what EXIF and XMP say of the pixels made true of a picture of that size."""
    old = metadata.size or (height, width)
    factors = height / old[0], width / old[1]
    changes: dict[str, Any] = {"size": (height, width)}
    if metadata.exif is not None:
        changes["exif"] = exif_bytes(_exif_for_size(exif_of(metadata.exif), (height, width), factors))
    if metadata.xmp is not None:

        def corrected(match: re.Match[bytes]) -> bytes:
            name = match["name"]
            if name in _XMP_SIZES:
                return match["head"] + b"%d" % (height, width)[_XMP_SIZES[name]]
            return match["head"] + b"%d" % round(float(match["number"]) * factors[_XMP_PLACES[name]])

        changes["xmp"] = _XMP_NUMBER.sub(corrected, metadata.xmp)
    return ImageMetadata(**{**vars(metadata), **changes})


def _exif_for_size(exif: Image.Exif, size: tuple[int, int], factors: tuple[float, float]) -> Image.Exif:
    details = exif.get_ifd(_IFD.Exif)
    for group, across, down in _SIZE_TAGS:
        if group == _IFD.Exif or group in details:
            entries = exif.get_ifd(group)
            for tag, side in ((across, size[1]), (down, size[0])):
                if tag in entries:
                    entries[tag] = side
    for tag, factor in zip(_FOCAL_PLANE_TAGS, factors[::-1], strict=True):
        if tag in details:
            details[tag] = float(details[tag]) * factor
    for tag in _SUBJECT_TAGS:
        if tag in details:
            x_or_y = zip(details[tag], (factors[1], factors[0]) * 2, strict=False)
            details[tag] = tuple(min(65535, round(value * factor)) for value, factor in x_or_y)
    return exif


def _descriptive_part(found: Image.Exif, source: str, size: tuple[int, int] | None) -> bytes | None:
    """What the EXIF block says about the picture, upright and without thumbnail, or None."""
    try:
        kept = Image.Exif()
        for tag in sorted(_DESCRIPTIVE & set(found)):
            kept[tag] = found[tag]
        if _DESCRIPTION in kept:
            _keep_true_part(kept, source)
        if any(tag in found for tag in _GEOGRAPHIC):
            notify("metadata", source, "its place on the earth (GeoTIFF) is that of the old pixels; left out")
        for group in (_IFD.Exif, _IFD.GPSInfo):
            details = dict(found.get_ifd(group))
            if group == _IFD.Exif and _IFD.Interop in details:
                details[_IFD.Interop] = dict(found.get_ifd(_IFD.Interop))
            if group == _IFD.Exif and size is not None:
                details |= _upright_subject(details, size, orientation_of(found))
            if details:
                kept[group] = details
        if not len(kept):
            return None
        kept[_ORIENTATION] = 1
        return exif_bytes(kept)
    except Exception as error:  # as above: a damaged block must not cost the user the picture
        _warn_damaged(error, source)
        return None


def _upright_subject(details: dict[int, Any], size: tuple[int, int], orientation: int) -> dict[int, Any]:
    """Where the subject is, turned as the pixels are; `size` is the upright picture's."""
    turned = {}
    for tag in _SUBJECT_TAGS:
        if isinstance(values := details.get(tag), tuple) and len(values) >= 2:
            extent = values[2:][::-1] if upright_size(1, 2, orientation) == (2, 1) else values[2:]
            x, y = upright_point(values[0], values[1], size, orientation)
            place = max(0, round(x)), max(0, round(y))
            turned[tag] = (*place, *extent)
    return turned


def _keep_true_part(exif: Image.Exif, source: str) -> None:
    """Take out of a description what programs wrote there of the old pixels: tifffile, OME, ImageJ."""
    text = str(exif[_DESCRIPTION]).strip("\0 \n")
    if text.startswith("{"):
        try:
            values = json.loads(text)
        except (ValueError, RecursionError):
            return
        if isinstance(values, dict) and "shape" in values:
            left = {key: value for key, value in values.items() if key not in ("shape", "axes")}
            exif[_DESCRIPTION] = json.dumps(left)
            if not left:
                del exif[_DESCRIPTION]
    elif text.startswith("shape=("):
        del exif[_DESCRIPTION]
    elif text.startswith("ImageJ=") or (text.startswith("<") and "OME" in text[:1000]):
        del exif[_DESCRIPTION]
        notify("metadata", source, "its description (ImageJ, OME) is of the old pixels; left out")


def _xmp_of_picture(xmp: bytes, source: str) -> bytes:
    """The packet for upright pixels, without what it says of data that does not come along."""
    for kind, said, seen, names in _XMP_BESIDE:
        if re.search(seen, xmp):
            notify(kind, source, said)  # type: ignore[arg-type]
            xmp = _without_elements(re.sub(_ATTRIBUTES % names, b"", xmp), names)
            if kind != "metadata":  # the list of what lies behind the picture in the file
                xmp = _without_elements(xmp, _XMP_DIRECTORY)
    return _without_elements(_XMP_ORIENTATION.sub(rb"\g<1>1", xmp), _XMP_THUMBNAILS)


def _without_elements(xmp: bytes, names: bytes) -> bytes:
    # One regular expression would take time with the square of the number of tags that are never closed.
    opening, kept, position, unclosed = re.compile(rb"<(%s)(?=[\s/>])" % names), [], 0, 0
    while (tag := opening.search(xmp, position)) and unclosed < _MOST_UNCLOSED:
        end = xmp.find(b">", tag.end())
        close = end if xmp[end - 1 : end] == b"/" else xmp.find(b"</" + tag[1], end)
        end = xmp.find(b">", close)
        is_whole = min(close, end) >= 0
        unclosed += not is_whole
        kept.append(xmp[position : tag.start() if is_whole else tag.end()])
        position = end + 1 if is_whole else tag.end()
    return b"".join([*kept, xmp[position:]])


def _texts_in(info: Mapping[Any, Any]) -> tuple[tuple[str, str], ...]:
    """The texts among what Pillow knows of a picture, with keywords that PNG takes."""

    def is_keyword(key: object) -> bool:
        if not isinstance(key, str) or key in _NO_TEXTS or not key.isprintable():
            return False
        is_ours = key.removeprefix(RAW_PROFILE).lower() in ("iptc", "xmp", "exif", "app1", "icc", "icm")
        return 0 < len(key.encode("latin-1", "ignore")) == len(key) <= _MOST_KEYWORD and not is_ours

    return tuple((key, value) for key, value in info.items() if isinstance(value, str) and is_keyword(key))


def _iptc_in(info: Mapping[Any, Any]) -> bytes | None:
    """The IPTC block: of Photoshop's resources, or of a PNG's text as ImageMagick and exiftool write it."""
    resources = info.get("photoshop")
    found = resources.get(IPTC_RESOURCE) if isinstance(resources, dict) else None
    if found is None and (found := _raw_profile(info, "iptc")):
        start = found.find(b"8BIM" + IPTC_RESOURCE.to_bytes(2, "big"))
        if start >= 0:
            length = int.from_bytes(found[start + 8 : start + 12], "big")
            found = found[start + 12 : start + 12 + length]
    return found if isinstance(found, bytes) and found.startswith(b"\x1c") else None


def _raw_profile(info: Mapping[Any, Any], kind: str) -> bytes | None:
    """Bytes that a PNG holds as text: a line with their kind, one with their number, and hexadecimals."""
    text = info.get(f"{RAW_PROFILE}{kind}")
    try:
        return bytes.fromhex("".join(text.split()[2:])) if isinstance(text, str) else None
    except ValueError:
        return None


def _decoded(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _warn_damaged(error: Exception, source: str) -> None:
    notify("metadata", source, f"its EXIF data is damaged and is left out ({one_line(error)})")


def _usable_dpi(dpi: object) -> tuple[float, float] | None:
    try:
        horizontal, vertical = (float(value) for value in dpi)  # type: ignore[attr-defined]
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    usable = all(math.isfinite(value) and 0 < value < 1e6 for value in (horizontal, vertical))
    return (horizontal, vertical) if usable else None
