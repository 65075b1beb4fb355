"""Encoded images to samples as stored: Pillow's formats, and the TIFF layouts that only `tifffile` knows.

Sizes are checked against the header before anything is decoded, and truncated files are refused rather than
shown half. Decoders raise what they like: `reading.py` calls all of this under its guard.
"""

import io
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

from PIL import ExifTags, Image, TiffImagePlugin, UnidentifiedImageError

from clearsr.errors import ClearSRError, installing, notify
from clearsr.image.data import ImageMetadata, Raster, stored_window, upright_size
from clearsr.image.declared import chromaticities_of, nclx_in
from clearsr.image.deep import (
    DNG_VERSION,
    channels_of,
    check_size,
    layout_of,
    notify_of_channels,
    read_both_bytes,
    read_unusual_tiff,
)
from clearsr.image.metadata import collect_metadata, info_of, orientation_of, safe_exif
from clearsr.image.modes import raster_of
from clearsr.image.png import check_png_size, check_png_sums, png_chunks
from clearsr.image.tiff import check_deflated
from clearsr.tiling import Window

# Never EPS: Pillow hands it to Ghostscript, which runs it as a program.
_FORMATS = frozenset(
    ("PNG", "JPEG", "WEBP", "TIFF", "AVIF", "BMP", "DIB", "GIF", "PPM", "JPEG2000")
    + ("TGA", "ICO", "PCX", "QOI", "DDS", "SGI", "PSD")
)
_ACCEPTED = (
    "PNG, JPEG, WebP, TIFF, AVIF, BMP, GIF, PNM, JPEG 2000, TGA, ICO, PCX, QOI, DDS, SGI, PSD, HEIC, JPEG XL"
)
RAW = "a camera raw file; develop it to TIFF, PNG or JPEG first"
# How files begin that are no pictures for us, what they are and what to do.
_OTHERS: tuple[tuple[int, tuple[bytes, ...], str], ...] = (
    (0, (b"8BPB", b"8BPS\0\2"), "a large Photoshop document (PSB); save it as a TIFF"),
    (0, (b"8BPS",), "a Photoshop document of a kind that is not read; save it as a TIFF"),
    (0, (b"v/1\1",), "an OpenEXR picture of light without a limit; save it as a 16-bit TIFF or PNG"),
    (
        0,
        (b"#?RADIANCE", b"#?RGBE"),
        "a Radiance HDR picture of light without a limit; save it as a 16-bit PNG",
    ),
    (0, (b"gimp xcf",), "a GIMP document; export it as TIFF or PNG"),
    (0, (b"%PDF",), "a PDF; export its pages as PNG"),
    (0, (b"%!PS", b"\xc5\xd0\xd3\xc6"), "a PostScript drawing; export it as PNG"),
    (0, (b"<svg", b"<?xml"), "a drawing or text in XML, such as SVG; export it as PNG"),
    (
        0,
        (b"<!DOCTYPE", b"<!doctype", b"<html", b"<HTML"),
        "a web page and no picture; download the picture itself",
    ),
    (0, (b"FUJIFILMCCD-RAW", b"IIRO", b"IIRS", b"MMOR", b"IIU\0", b"FOVb"), RAW),
    (4, (b"ftypcrx",), RAW),
    (
        4,
        (b"ftypisom", b"ftypmp4", b"ftypqt", b"ftypM4V", b"ftyp3gp", b"ftypavc1"),
        "a film; take its frames out first",
    ),
    (0, (b"\x1aE\xdf\xa3",), "a film; take its frames out first"),
    (8, (b"AVI ", b"WAVE"), "a film or sound; take its frames out first"),
)
_PHOTOSHOP_MODES = {0: 1, 1: 8, 2: 8, 3: 8, 4: 8, 7: 8, 8: 8, 9: 8}  # and bits per channel, that are read
_MP_ENTRIES = 0xB002
_ANIMATED = ("GIF", "WEBP", "PNG", "TIFF", "AVIF")
_JUDGED_WHOLE = ("I", "F")  # modes whose range of values says whether the picture can be shown at all
_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")

# Bytes per pixel that decoding takes at its peak: Pillow's image, a converted one, and twice the samples.
_PEAK_BYTES = {"1": 4, "L": 4, "P": 12, "RGB": 10, "RGBA": 12, "RGBX": 12, "CMYK": 14, "YCbCr": 14, "LAB": 14}
_PEAK_OF_OTHERS, _PEAK_OF_16_BITS = 24, 28  # 16-bit RGB: 20 was measured, and 12 as planar TIFF
_OWN_BUFFERS = {"WEBP": 8, "AVIF": 8, "JXL": 8}  # of decoders that hold the whole image; WebP's was measured

ChooseWindow = Callable[[int, int], Window]  # height and width of the upright picture -> a part of it


class Encoded(NamedTuple):
    """An image that is not yet read.

    Attributes:
        source: its name in messages.
        allow_truncated: whether one that is cut off is taken as far as it goes.
        frame: the number of a frame or page; None for the first, with a notice of the others.
    """

    open: Callable[[], BinaryIO]
    source: str
    max_pixels: int
    allow_truncated: bool = False
    frame: int | None = None


class Decoded(NamedTuple):
    """Samples as stored, metadata, and the EXIF orientation that the samples are still in."""

    raster: Raster
    metadata: ImageMetadata
    orientation: int


def decode(encoded: Encoded, choose: ChooseWindow | None = None) -> Decoded:
    """What an image holds, or the part of it that `choose` picks of its upright height and width."""
    source, max_pixels = encoded.source, encoded.max_pixels
    # Never by name: Pillow would map plain TIFF into memory, and scrambles it in orientations 5-8.
    with encoded.open() as file:
        image = open_header(file, source, max_pixels)
        if image is None:
            return _cut(_decode_unusual_tiff(encoded), choose)
        check_size(*image.size, source, max_pixels)
        if DNG_VERSION in getattr(image, "tag_v2", ()):
            raise ClearSRError(f"{source}: is {RAW}")
        if encoded.frame is None:
            _warn_of_frames(image, source)
        else:
            image.seek(encoded.frame)
            check_size(*image.size, source, max_pixels)
        layout = layout_of(image)
        if layout == "unusual":
            return _cut(_decode_unusual_tiff(encoded), choose)
        with encoded.open() as again:
            _check_sums(again, image)
        channels = channels_of(image)
        if layout == "two_bytes":
            raster = read_both_bytes(image, encoded.open, encoded.frame or 0)
            stored_size = raster.samples.shape[0], raster.samples.shape[1]
            exif = safe_exif(image, source)
        else:
            image.load()
            stored_size = image.height, image.width
            check_size(*image.size, source, max_pixels)  # an icon may hold more than its header says
            exif = safe_exif(image, source)
            if choose is not None and image.mode not in _JUDGED_WHOLE:
                top, left, bottom, right = _chosen(choose, image.height, image.width, orientation_of(exif))
                image, choose = image.crop((left, top, right, bottom)), None
            raster = raster_of(image, source)
        if layout == "inverted":
            raster = Raster(~raster.samples)
        notify_of_channels(channels - raster.samples.shape[2], source)
        is_gray = raster.samples.shape[2] <= 2
        with encoded.open() as again:
            info = info_of(image) | _declared_in(again, image)
        metadata = collect_metadata(info, exif, is_gray, source, stored_size)
        return _cut(Decoded(raster, metadata, orientation_of(exif)), choose)


def _declared_in(file: BinaryIO, image: Image.Image) -> dict[str, Any]:
    """What a file says of its colours that Pillow does not tell."""
    if image.format == "PNG":
        for chunk in png_chunks(file):
            if chunk.kind == b"cICP" and len(values := file.read(2)) == 2:
                return {"cicp": tuple(values)}
            if chunk.kind == b"IDAT":
                break
    if image.format in ("AVIF", "HEIF") and not image.info.get("icc_profile"):
        return nclx_in(file.read())
    return chromaticities_of(image)


def _check_sums(file: BinaryIO, image: Image.Image) -> None:
    """Refuse damaged pixels by checksums that the file has of them and its decoder does not look at.

    Raises:
        OSError: it is damaged.
    """
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        check_deflated(file, image)
    elif image.format == "PNG":
        check_png_sums(file)


def open_header(file: BinaryIO, source: str, max_pixels: int) -> Image.Image | None:
    """The file's header read by Pillow; None for a TIFF that only `tifffile` may know.

    Raises:
        ClearSRError: the file is no image, a PNG or JPEG XL of more than `max_pixels`, or an iPhone's HEIC or
            a JPEG XL and the extra for it is missing.
    """
    head = file.read(32)
    check_png_size(file, source, max_pixels)
    file.seek(0)
    Image.init()
    try:
        return Image.open(file, formats=sorted(_FORMATS & set(Image.OPEN)))
    except UnidentifiedImageError:
        if head.startswith(_TIFF_MAGIC):
            return None
    if head.startswith((b"\xff\x0a", _JXL_BOX)):
        return _open_jxl(file, source, max_pixels)
    if head[4:8] != b"ftyp" or head[8:12] not in _HEIF_BRANDS:
        raise ClearSRError(f"{source}: is {_what_it_is(head)}")
    try:
        import pillow_heif
    except ImportError:
        raise ClearSRError(f"{source}: is a HEIC image; to read it, {installing('heif')}") from None
    pillow_heif.register_heif_opener()
    return Image.open(file, formats=["HEIF"])


def may_be_picture(start: bytes) -> bool:
    """Whether a file that begins so may be of a kind that is read; 32 bytes tell."""
    Image.init()
    openers = (Image.OPEN[name] for name in _FORMATS & set(Image.OPEN))
    others = (*_TIFF_MAGIC, b"\xff\x0a", _JXL_BOX)
    is_other = start.startswith(others) or start[4:8] == b"ftyp"
    mark = start[:16].ljust(16, b"\0")  # some look at it without asking how long it is
    return is_other or any(accepts(mark) for _, accepts in openers if accepts) or _is_tga(start)


def _is_tga(start: bytes) -> bool:
    """Whether a file that begins so may be a TGA, which has no mark of its own."""
    try:
        with Image.open(io.BytesIO(start), formats=["TGA"]):
            return True
    except (OSError, ValueError, SyntaxError):
        return False


def _what_it_is(head: bytes) -> str:
    """What a file is that begins so and cannot be read, and what to do."""
    if head.startswith(b"8BPS\0\1") and len(head) >= 26:
        bits, mode = int.from_bytes(head[22:24], "big"), int.from_bytes(head[24:26], "big")
        if bits != _PHOTOSHOP_MODES.get(mode, bits):
            kind = f"a Photoshop document of {bits} bits per channel"
            return f"{kind}; 8 are read; save it as a 16-bit TIFF or PNG"
    for start, magics, what in _OTHERS:
        if head[start:].startswith(magics):
            return what
    return f"not an image that can be read (accepted: {_ACCEPTED})"


# JPEG XL. Its plugin decodes while it opens, so the size is looked at before; and it passes over XMP.
_JXL_BOX = b"\0\0\0\x0cJXL \r\n\x87\n"
_JXL_RATIOS = {1: (1, 1), 2: (6, 5), 3: (4, 3), 4: (3, 2), 5: (16, 9), 6: (5, 4), 7: (2, 1)}
_JXL_HEADER = 4096  # bytes of the codestream that its size lies in, and more


def _open_jxl(file: BinaryIO, source: str, max_pixels: int) -> Image.Image:
    try:
        import pillow_jxl  # noqa: F401 - makes itself known to Pillow
    except ImportError:
        raise ClearSRError(f"{source}: is a JPEG XL image; to read it, {installing('jxl')}") from None
    file.seek(0)
    start, xmp = _jxl_parts(file.read())
    check_size(*_jxl_size(start), source, max_pixels)
    file.seek(0)
    image = Image.open(file, formats=["JXL"])
    if xmp is not None:
        image.info.setdefault("xmp", xmp)
    if not getattr(image, "jpeg", False):  # pixels are upright already, whatever EXIF says
        safe_exif(image, source).pop(ExifTags.Base.Orientation, None)
    return image


def _jxl_parts(content: bytes) -> tuple[bytes, bytes | None]:
    """How the codestream begins, and the XMP."""
    if not content.startswith(_JXL_BOX):
        return content[:_JXL_HEADER], None
    start, xmp, position = b"", None, 0
    while position + 8 <= len(content):
        length, kind = (
            int.from_bytes(content[position : position + 4], "big"),
            content[position + 4 : position + 8],
        )
        head = 8
        if length == 1:
            length, head = int.from_bytes(content[position + 8 : position + 16], "big"), 16
        length = max(length, head) if length else len(content) - position
        body = position + head
        if kind in (b"jxlc", b"jxlp") and not start:
            body += 4 if kind == b"jxlp" else 0
            start = content[body : body + _JXL_HEADER]
        elif kind == b"xml ":
            xmp = content[body : position + length]
        position += length
    return start, xmp


def _jxl_size(codestream: bytes) -> tuple[int, int]:
    """Width and height as a codestream states them (ISO/IEC 18181-1, SizeHeader)."""
    bits, position = int.from_bytes(codestream[2:32], "little"), 0

    def read(count: int) -> int:
        nonlocal position
        position += count
        return bits >> (position - count) & (1 << count) - 1

    def read_side(is_small: int) -> int:
        return 8 * (1 + read(5)) if is_small else 1 + read((9, 13, 18, 30)[read(2)])

    is_small = read(1)
    height = read_side(is_small)
    ratio = _JXL_RATIOS.get(read(3))
    return (read_side(is_small) if ratio is None else height * ratio[0] // ratio[1]), height


def peak_bytes_per_pixel(image: Image.Image | None) -> int:
    """What `decode` takes at its peak for an opened file, or for one that only `tifffile` knows (None)."""
    if image is None or layout_of(image) in ("two_bytes", "unusual"):
        return _PEAK_OF_16_BITS
    return _PEAK_BYTES.get(image.mode, _PEAK_OF_OTHERS) + _OWN_BUFFERS.get(str(image.format), 0)


def _cut(decoded: Decoded, choose: ChooseWindow | None) -> Decoded:
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


def _decode_unusual_tiff(encoded: Encoded) -> Decoded:
    source = encoded.source
    with encoded.open() as file:
        page = read_unusual_tiff(file, source, encoded.max_pixels, encoded.frame or 0)
        if page.page_count > 1 and encoded.frame is None:
            _warn_first_of(page.page_count, source)
        file.seek(0)
        is_classic = file.read(4) in _TIFF_MAGIC[:2]
        file.seek(0)
        exif = safe_exif(file, source) if is_classic else Image.Exif()
        height, width, channels = page.raster.samples.shape
        metadata = collect_metadata(page.info, exif, channels <= 2, source, (height, width))
    return Decoded(page.raster, metadata, page.orientation)


def _warn_of_frames(image: Image.Image, source: str) -> None:
    """Say so if the file holds an animation, several pages or views. (In PSD the first is the picture.)"""
    if image.format == "MPO":
        _warn_of_views(image, source)
    if image.format not in _ANIMATED:
        return
    try:
        count = getattr(image, "n_frames", 1)
        image.seek(0)
    except (OSError, EOFError, ValueError, SyntaxError):
        return  # damage behind the first frame; the first frame itself is judged when it is decoded
    if count > 1:
        _warn_first_of(count, source)


def _warn_of_views(image: Image.Image, source: str) -> None:
    """Say so if an MPO holds more than a picture with thumbnails, or a gain map, which XMP tells of."""
    entries = getattr(image, "mpinfo", {}).get(_MP_ENTRIES, ())
    kinds = [str(entry.get("Attribute", {}).get("MPType")) for entry in entries][1:]
    views = sum(not kind.startswith("Large Thumbnail") for kind in kinds)
    views -= b"hdrgm:" in image.info.get("xmp", b"")
    if views > 0:
        notify("frames", source, f"holds {views + 1} pictures or views (MPO); only the first is used")


def _warn_first_of(count: int, source: str) -> None:
    notify("frames", source, f"holds {count} frames or pages; only the first is used")
