"""What becomes of metadata in a file of another format: kept, mapped to EXIF, or left out with a notice.

Every format written here but GIF holds EXIF, XMP and an ICC profile. Texts, IPTC, a comment and a
resolution have a place in some; where they have none, those that mean the same as an entry of EXIF become
that entry.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from PIL import ExifTags, Image

from clearsr.errors import notify
from clearsr.image.data import ImageMetadata
from clearsr.image.metadata import IPTC_RESOURCE, RAW_PROFILE, exif_bytes, exif_of

Extra = Literal["text", "iptc", "comment", "dpi"]


class Format(NamedTuple):
    """What a file format can hold.

    Attributes:
        name: Pillow's name of it.
        max_side: the most pixels that a side may have.
        bit_depths: bits per sample that it can store.
        has_alpha: it stores transparency.
        has_gray: it stores grey images as grey.
        extras: what it stores beside EXIF, XMP and profile; the others are mapped or told of.
    """

    name: str
    max_side: int
    bit_depths: tuple[int, ...] = (8,)
    has_alpha: bool = True
    has_gray: bool = True
    extras: frozenset[Extra] = frozenset()


PNG = Format("PNG", 2**31 - 1, (8, 16), extras=frozenset(("text", "dpi")))
JPEG = Format("JPEG", 65_500, has_alpha=False, extras=frozenset(("iptc", "comment", "dpi")))
TIFF = Format("TIFF", 2**31 - 1, (8, 16), extras=frozenset(("iptc", "dpi")))
WEBP = Format("WEBP", 16_383, has_gray=False)
AVIF = Format("AVIF", 65_536, has_gray=False)
GIF = Format("GIF", 65_535, has_gray=False, extras=frozenset(("comment",)))  # of several frames; `frames.py`
FORMATS = {
    ".png": PNG,
    ".jpg": JPEG,
    ".jpeg": JPEG,
    ".webp": WEBP,
    ".tif": TIFF,
    ".tiff": TIFF,
    ".avif": AVIF,
    ".gif": GIF,
}


_Base = ExifTags.Base
_USER_COMMENT, _INCH = int(_Base.UserComment), 2
_NO_EXIF = len(exif_bytes(Image.Exif()))  # a block without an entry


class _Place(NamedTuple):
    """An entry of EXIF, PNG's keyword for the same, and IPTC's: a dataset of its second record."""

    tag: int
    keyword: str
    dataset: int | None = None


_PLACES = (
    _Place(int(_Base.ImageDescription), "Description", 120),
    _Place(int(_Base.Artist), "Author", 80),
    _Place(int(_Base.Copyright), "Copyright", 116),
    _Place(int(_Base.Software), "Software", 65),
    _Place(int(_Base.XPTitle), "Title", 5),
    _Place(int(_Base.XPKeywords), "Keywords", 25),
    _Place(_USER_COMMENT, "parameters"),  # of image generators, which write it there themselves
    _Place(_USER_COMMENT, "Comment"),
)
_IN_UTF16 = (int(_Base.XPTitle), int(_Base.XPKeywords))
_JOINED = ";"  # between keywords, as Windows has them
_NO_CONTENT = {(1, 90), (2, 0)}  # IPTC's own version and encoding
_UTF8 = b"\x1b%G"


def as_format_holds(
    metadata: ImageMetadata, held: frozenset[Extra], format: str, source: str
) -> ImageMetadata:
    """The metadata that a file can be given, where a format holds of the extras those in `held` alone.

    Of what has no place a notice says the names.
    """
    homeless = []
    text = metadata.text
    if "comment" not in held and metadata.comment is not None:
        if "text" in held and not any(key == "Comment" for key, _ in text):
            text = (*text, ("Comment", metadata.comment))
        else:
            homeless.append(_Entry("comment", _USER_COMMENT, metadata.comment))
    if "text" not in held:
        homeless += [_Entry(f"text {key}", _tag_of(key), value) for key, value in text]
        text = ()
    iptc = metadata.iptc
    if iptc is not None and "iptc" not in held:
        if "text" in held:
            text = (*text, _raw_profile("iptc", photoshop_block(iptc)))
        else:
            homeless += _entries_of(iptc)
        iptc = None
    exif = exif_of(metadata.exif)
    lost = [entry.name for entry in _joined(homeless) if not _put(exif, entry)]
    dpi = metadata.dpi
    if dpi is not None and "dpi" not in held:
        if _Base.XResolution not in exif:
            exif[_Base.XResolution], exif[_Base.YResolution], exif[_Base.ResolutionUnit] = *dpi, _INCH
        dpi = None
    if lost:
        names = ", ".join(dict.fromkeys(lost))
        notify("metadata", source, f"{format} has no place for its {names[:500]}; left out")
    return dataclasses.replace(
        metadata,
        exif=block if len(block := exif_bytes(exif)) > _NO_EXIF else None,
        text=text,
        iptc=iptc,
        comment=metadata.comment if "comment" in held else None,
        dpi=dpi,
    )


def photoshop_block(iptc: bytes) -> bytes:
    """A block of IPTC as the one resource of Photoshop's."""
    return b"8BIM" + IPTC_RESOURCE.to_bytes(2, "big") + bytes(2) + _counted(iptc, 4) + bytes(len(iptc) % 2)


def _raw_profile(kind: str, data: bytes) -> tuple[str, str]:
    """Keyword and text by which a PNG holds bytes; `metadata.py` reads them."""
    digits = data.hex()
    lines = [digits[start : start + 72] for start in range(0, len(digits), 72)]
    return f"{RAW_PROFILE}{kind}", "\n".join(("", kind, f"{len(data):8}", *lines, ""))


def _counted(data: bytes, width: int) -> bytes:
    return len(data).to_bytes(width, "big") + data


class _Entry(NamedTuple):
    """Something to be put into EXIF, and what it is called where it comes from."""

    name: str
    tag: int | None
    value: str


def _tag_of(keyword: str) -> int | None:
    return next((place.tag for place in _PLACES if place.keyword.lower() == keyword.lower()), None)


def _entries_of(iptc: bytes) -> Iterator[_Entry]:
    """The datasets of a block of IPTC, as far as it is whole."""
    tags = {place.dataset: place.tag for place in _PLACES if place.dataset is not None}
    encoding, position = "latin-1", 0
    while position + 5 <= len(iptc) and iptc[position] == 0x1C:
        record, dataset = iptc[position + 1], iptc[position + 2]
        length = int.from_bytes(iptc[position + 3 : position + 5], "big")
        value = iptc[position + 5 : position + 5 + length]
        position += 5 + length
        if (record, dataset) == (1, 90) and value == _UTF8:
            encoding = "utf-8"
        if (record, dataset) not in _NO_CONTENT:
            tag = tags.get(dataset) if record == 2 else None
            yield _Entry(f"IPTC {record}:{dataset}", tag, value.decode(encoding, "replace"))


def _joined(entries: list[_Entry]) -> Iterator[_Entry]:
    """The entries, several keywords as one."""
    keywords = [entry for entry in entries if entry.tag == _Base.XPKeywords]
    yield from (entry for entry in entries if entry.tag != _Base.XPKeywords)
    if keywords:
        yield keywords[0]._replace(value=_JOINED.join(entry.value for entry in keywords))


def _put(exif: Image.Exif, entry: _Entry) -> bool:
    """Put an entry into EXIF, unless something else is there; whether EXIF says it now."""
    tag, value = entry.tag, entry.value.rstrip("\0")
    if tag is None:
        return False
    if tag == _USER_COMMENT:
        place: Any = exif.get_ifd(ExifTags.IFD.Exif)
        # "Unicode" is of either byte order; programs that generate pictures write and read this one.
        wanted: bytes | str = b"UNICODE\0" + value.encode("utf-16-be", "surrogatepass")
    else:
        place = exif
        wanted = value.encode("utf-8", "surrogatepass").decode("latin-1")  # as Pillow reads it
    if tag in _IN_UTF16:
        wanted = value.encode("utf-16-le", "surrogatepass") + bytes(2)
    if tag in place:
        found = place[tag]
        return _plain(found) == _plain(wanted)
    place[tag] = wanted
    return True


def _plain(value: bytes | str) -> bytes | str:
    return value.rstrip("\0 ") if isinstance(value, str) else value.rstrip(b"\0 ")
