"""Every kind of metadata, from every format that holds it to every one that is written: no loss in silence.

The table of docs/formats.md is what is found here; run this file as a script to write it anew.
"""

import dataclasses
import io
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tifffile
from PIL import ExifTags, Image, ImageCms, IptcImagePlugin, PngImagePlugin

from clearsr.config.output import OutputConfig
from clearsr.errors import Notice, collected
from clearsr.image import from_pil, output_suffixes, read_image, to_pil, write_blocks, write_image
from clearsr.image.data import ImageData
from clearsr.image.metadata import metadata_for_size
from clearsr.tiling import pieces

_PAGE = Path(__file__).parents[2] / "docs" / "formats.md"
_SUFFIXES = {"PNG": ".png", "JPEG": ".jpg", "WebP": ".webp", "TIFF": ".tif", "AVIF": ".avif"}
_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
_XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description rdf:about="" dc:creator="Ada" tiff:ImageWidth="8" exif:PixelYDimension="6"/>'
    b"</rdf:RDF></x:xmpmeta>"
)
_GPS = {1: "N", 2: (48.0, 8.0, 1.5)}


def _dataset(record: int, number: int, value: bytes) -> bytes:
    return bytes((0x1C, record, number)) + len(value).to_bytes(2, "big") + value


_UTF8 = _dataset(1, 90, b"\x1b%G")
_IPTC_TITLE = _UTF8 + _dataset(2, 5, "größer".encode())
_IPTC_WORDS = _dataset(2, 25, b"ball") + _dataset(2, 25, b"table")
_IPTC_CITY = _dataset(2, 90, b"Berlin")


def _resource(iptc: bytes) -> bytes:
    block = b"Photoshop 3.0\x008BIM\x04\x04\0\0" + len(iptc).to_bytes(4, "big") + iptc + bytes(len(iptc) % 2)
    return b"\xff\xed" + (len(block) + 2).to_bytes(2, "big") + block


class _Kind(NamedTuple):
    """A kind of metadata: its row in the table, and what is to be found where.

    Attributes:
        name: heading.
        inputs: formats that hold it.
        kept: what an independent reader must find for "kept".
        mapped: and for "mapped": tag of EXIF and its text.
    """

    name: str
    inputs: tuple[str, ...]
    kept: Any
    mapped: tuple[int, str] | None = None


_ALL = tuple(_SUFFIXES)
_KINDS = (
    _Kind("EXIF: camera, dates, texts", _ALL, ("exif", "Zoë")),
    _Kind("EXIF: place (GPS)", _ALL, ("gps", _GPS)),
    _Kind("XMP", _ALL, ("xmp", "Ada")),
    _Kind("colour profile (ICC)", _ALL, ("icc", _SRGB)),
    _Kind("resolution", ("PNG", "JPEG", "TIFF"), ("dpi", 300), (282, "300")),
    _Kind("PNG text Title", ("PNG",), ("text", ("Title", "größer")), (0x9C9B, "größer")),
    _Kind("PNG text Description", ("PNG",), ("text", ("Description", "größer")), (270, "größer")),
    _Kind("PNG text Author", ("PNG",), ("text", ("Author", "Zoë M")), (315, "Zoë M")),
    _Kind("PNG text Copyright", ("PNG",), ("text", ("Copyright", "(c) A")), (33432, "(c) A")),
    _Kind("PNG text Software", ("PNG",), ("text", ("Software", "Paint")), (305, "Paint")),
    _Kind("PNG text Comment", ("PNG",), ("text", ("Comment", "by hand")), (37510, "by hand")),
    _Kind("PNG text parameters (prompts)", ("PNG",), ("text", ("parameters", "a ball")), (37510, "a ball")),
    _Kind("PNG text of any other name", ("PNG",), ("text", ("workflow", '{"a": 1}'))),
    _Kind("IPTC title, caption, author, copyright", ("PNG", "JPEG", "TIFF"), ("iptc", _IPTC_TITLE),
          (0x9C9B, "größer")),
    _Kind("IPTC keywords", ("PNG", "JPEG", "TIFF"), ("iptc", _IPTC_WORDS), (0x9C9E, "ball;table")),
    _Kind("IPTC of any other kind", ("PNG", "JPEG", "TIFF"), ("iptc", _IPTC_CITY)),
    _Kind("comment of a JPEG", ("JPEG",), ("comment", "by hand"), (37510, "by hand")),
)  # fmt: skip


def _make(path: Path, format: str, kind: _Kind) -> None:
    """A picture of 8×6 with one kind of metadata, without code of the package."""
    what, value = kind.kept
    options: dict[str, Any] = {}
    exif = Image.Exif()
    if what == "exif":
        exif[ExifTags.Base.Artist] = _utf8("Zoë")
    elif what == "gps":
        exif[ExifTags.IFD.GPSInfo] = value
    elif what == "xmp":
        options["xmp"] = _XMP
    elif what == "icc":
        options["icc_profile"] = value
    elif what == "dpi":
        options["dpi"] = (value, value)
    elif what == "comment":
        options["comment"] = value
    elif what == "iptc" and format == "JPEG":
        options["extra"] = _resource(value)
    texts = PngImagePlugin.PngInfo()
    if what == "text":
        texts.add_text(*value)
    if format == "PNG":
        if what == "iptc":
            raw = f"\niptc\n{len(_resource(value)) - 18:8}\n{_resource(value)[18:].hex()}\n"
            texts.add_text("Raw profile type iptc", raw, zip=True)
        if what == "xmp":
            texts.add_itxt("XML:com.adobe.xmp", _XMP.decode())
        options["pnginfo"] = texts
    if len(exif):
        options["exif"] = exif.tobytes()
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    tags = {"iptc": (33723, "B", value), "xmp": (700, "B", _XMP), "exif": (315, "s", "Zoë".encode())}
    if format == "TIFF" and what in tags:  # Pillow writes none of them so
        code, dtype, data = tags[what]
        extra = [(code, dtype, len(data) if dtype == "B" else 0, data, True)]
        tifffile.imwrite(path, pixels, photometric="rgb", metadata=None, extratags=extra)
        return
    Image.fromarray(pixels).save(path, **options)


def _utf8(text: str) -> Any:
    """A text whose bytes in EXIF are UTF-8, which Pillow does not write by itself."""

    class Raw(str):
        def encode(self, *_: str) -> bytes:
            return text.encode()

    return Raw(text)


def _in_exif(image: Image.Image, tag: int) -> str | None:
    exif = image.getexif()
    value = exif.get_ifd(ExifTags.IFD.Exif).get(tag) if tag == 37510 else exif.get(tag)
    if value is None:
        return None
    if tag == 37510:
        return value.removeprefix(b"UNICODE\0").decode("utf-16-be")
    if tag in (0x9C9B, 0x9C9E):
        return value.decode("utf-16-le").rstrip("\0")
    return value.encode("latin-1").decode() if isinstance(value, str) else f"{float(value):.0f}"


def _iptc_of(image: Image.Image) -> bytes | None:
    """The raw block by Pillow's own parts; of a PNG by its text, as exiftool has it."""
    if image.format == "TIFF":
        return image.tag_v2.get(33723)
    if image.format == "PNG":
        text = image.text.get("Raw profile type iptc")
        if text is None:
            return None
        data = bytes.fromhex("".join(text.split("\n")[3:]))
        assert len(data) == int(text.split("\n")[2]) and data.startswith(b"8BIM\x04\x04\0\0")
        return data[12 : 12 + int.from_bytes(data[8:12], "big")]
    found = image.info.get("photoshop", {}).get(0x0404)
    assert (found is None) == (IptcImagePlugin.getiptcinfo(image) is None)
    return found


def _is_kept(image: Image.Image, kind: _Kind) -> bool:
    what, value = kind.kept
    if what == "exif":
        return _in_exif(image, 315) == value
    if what == "gps":
        place = image.getexif().get_ifd(ExifTags.IFD.GPSInfo)
        return place.get(1) == "N" and [float(v) for v in place[2]] == list(value[2])
    if what == "text":
        return getattr(image, "text", {}).get(value[0]) == value[1]
    if what == "iptc":
        return _iptc_of(image) == value
    if what == "dpi":
        return image.info.get("dpi", (0,))[0] == pytest.approx(value, abs=0.1)
    if what == "comment":
        texts = getattr(image, "text", {})
        return image.info.get("comment") == value.encode() or texts.get("Comment") == value
    if what == "xmp":
        xmp = image.info.get("xmp", b"")
        return b'"Ada"' in xmp and b'ImageWidth="16"' in xmp and b'YDimension="12"' in xmp
    return image.info.get("icc_profile") == value


def _outcome(path: Path, kind: _Kind, notices: list[Notice]) -> str:
    with Image.open(path) as image:
        image.load()
        if _is_kept(image, kind):
            assert not notices
            return "kept"
        if kind.mapped is not None and _in_exif(image, kind.mapped[0]) == kind.mapped[1]:
            assert not notices
            return "mapped"
    assert [notice.kind for notice in notices] == ["metadata"], f"{kind.name} is lost in silence"
    return "warned"


def _doubled(image: ImageData) -> ImageData:
    color = image.color.repeat_interleave(2, 1).repeat_interleave(2, 2)
    return dataclasses.replace(image, color=color)


def _outcomes(
    folder: Path, kind: _Kind, output: str, in_blocks: bool = False, depth: Any = "input"
) -> set[str]:
    found = set()
    for name in kind.inputs:
        source, target = folder / f"in{_SUFFIXES[name]}", folder / f"out{_SUFFIXES[output]}"
        _make(source, name, kind)
        config = OutputConfig(bit_depth=depth)
        with collected() as notices:
            image = _doubled(read_image(source))
            if in_blocks:
                size = image.height, image.width
                blocks = [
                    (window, dataclasses.replace(image, color=window.of(image.color).contiguous()))
                    for window in pieces(*size, 16)
                ]
                write_blocks(target, size, 16, iter(blocks), config)
            else:
                write_image(image, target, config)
        found.add(_outcome(target, kind, [n for n in notices if n.kind != "bit_depth"]))
    return found


def _table(folder: Path) -> str:
    lines = ["| | " + " | ".join(_SUFFIXES) + " |", "|---|" + "---|" * len(_SUFFIXES)]
    for kind in _KINDS:
        cells = ["/".join(sorted(_outcomes(folder, kind, output))) for output in _SUFFIXES]
        lines.append(f"| {kind.name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


_needs_all = pytest.mark.skipif(
    not set(_SUFFIXES.values()) <= set(output_suffixes()), reason="this Pillow lacks WebP or AVIF"
)


@_needs_all
def test_the_table_of_the_documentation_is_what_happens(tmp_path: Path) -> None:
    assert _table(tmp_path) in _PAGE.read_text(encoding="utf-8"), f"run python {Path(__file__).name}"


@_needs_all
@pytest.mark.parametrize("kind", _KINDS, ids=lambda kind: kind.name)
def test_16_bits_and_blocks_carry_the_same(tmp_path: Path, kind: _Kind) -> None:
    for output in ("PNG", "TIFF"):
        plain = _outcomes(tmp_path, kind, output)
        assert len(plain) == 1 and plain == _outcomes(tmp_path, kind, output, depth=16)
        assert plain == _outcomes(tmp_path, kind, output, in_blocks=True)


@_needs_all
@pytest.mark.parametrize("kind", _KINDS, ids=lambda kind: kind.name)
def test_what_was_kept_or_mapped_is_read_again(tmp_path: Path, kind: _Kind) -> None:
    """A second pass through every format loses nothing more."""
    for output in _SUFFIXES:
        outcome = _outcomes(tmp_path, kind, output)
        with collected() as notices:
            write_image(
                read_image(tmp_path / f"out{_SUFFIXES[output]}"), tmp_path / f"again{_SUFFIXES[output]}"
            )
        with Image.open(tmp_path / f"again{_SUFFIXES[output]}") as image:
            image.load()
            is_kept = _is_kept(image, kind) or (
                kind.mapped and _in_exif(image, kind.mapped[0]) == kind.mapped[1]
            )
        assert not notices and (bool(is_kept) or outcome == {"warned"})


@pytest.mark.parametrize("output", [".webp", ".tif"])
def test_an_entry_of_exif_is_not_overwritten(tmp_path: Path, output: str) -> None:
    exif, texts = Image.Exif(), PngImagePlugin.PngInfo()
    exif[ExifTags.Base.Copyright] = "mine"
    texts.add_text("Copyright", "theirs")
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png", exif=exif.tobytes(), pnginfo=texts)
    with collected() as notices:
        write_image(read_image(tmp_path / "a.png"), tmp_path / f"b{output}")
    with Image.open(tmp_path / f"b{output}") as image:
        assert image.getexif()[ExifTags.Base.Copyright] == "mine"
    assert len(notices) == 1 and "text Copyright" in notices[0].text


def test_python_gets_it_in_info() -> None:
    picture = Image.new("RGB", (8, 6))
    picture.info |= {"Title": "größer", "comment": b"by hand", "photoshop": {0x0404: _IPTC_CITY}, "xmp": _XMP}
    result = to_pil(_doubled(from_pil(picture)))
    assert result.info["Title"] == "größer" and result.info["comment"] == b"by hand"
    assert result.info["photoshop"] == {0x0404: _IPTC_CITY} and b'ImageWidth="16"' in result.info["xmp"]


def test_values_of_the_old_pixels_are_corrected() -> None:
    exif = Image.Exif()
    exif[ExifTags.IFD.Exif] = {
        40962: 8, 40963: 6, 37396: (2, 3, 4, 2), 41492: (1, 5), 41486: 100.0,
        40965: {1: "R98", 4097: 8, 4098: 6},
    }  # fmt: skip
    exif[274] = 6  # lies on its side: the upright picture is 6 wide and 8 high
    picture = Image.new("RGB", (8, 6))
    picture.info["exif"] = exif.tobytes()
    picture.info["xmp"] = (
        b'<a tiff:ImageWidth="8" GPano:FullPanoWidthPixels="60" GPano:CroppedAreaTopPixels="3">'
        b"<GPano:CroppedAreaImageHeightPixels>8</GPano:CroppedAreaImageHeightPixels>"
        b"<GPano:PoseHeadingDegrees>90</GPano:PoseHeadingDegrees><xmp:Thumbnails><b/></xmp:Thumbnails></a>"
    )
    metadata = metadata_for_size(from_pil(picture).metadata, 16, 12)
    block = Image.Exif()
    block.load(metadata.exif)
    details = block.get_ifd(ExifTags.IFD.Exif)
    assert (details[40962], details[40963]) == (12, 16) and details[41486] == 200
    assert dict(block.get_ifd(ExifTags.IFD.Interop)) == {1: "R98", 4097: 12, 4098: 16}
    # Column 2, row 3 of the stored 8×6, turned by orientation 6 (a quarter clockwise): column 5 - 3, row 2.
    assert details[37396] == (4, 4, 4, 8) and details[41492] == (0, 2)
    assert metadata.xmp == (
        b'<a tiff:ImageWidth="12" GPano:FullPanoWidthPixels="120" GPano:CroppedAreaTopPixels="6">'
        b"<GPano:CroppedAreaImageHeightPixels>16</GPano:CroppedAreaImageHeightPixels>"
        b"<GPano:PoseHeadingDegrees>90</GPano:PoseHeadingDegrees></a>"
    )
    assert metadata_for_size(metadata, 16, 12) == metadata


@pytest.mark.parametrize(
    ("description", "left", "told"),
    [
        ('{"shape": [6, 8, 3]}', None, 0),
        ('{"shape": [6, 8, 3], "by": "Ada"}', '{"by": "Ada"}', 0),
        ("ImageJ=1.53\nimages=2", None, 1),
        ('<?xml version="1.0"?><OME xmlns="x"/>', None, 1),
        ("{a ball}", "{a ball}", 0),
    ],
)
def test_a_description_of_the_old_pixels_goes(
    tmp_path: Path, description: str, left: str | None, told: int
) -> None:
    tifffile.imwrite(
        tmp_path / "a.tif", np.zeros((6, 8, 3), np.uint8), description=description, metadata=None
    )
    with collected() as notices:
        write_image(_doubled(read_image(tmp_path / "a.tif")), tmp_path / "b.tif")
    with tifffile.TiffFile(tmp_path / "b.tif") as file:
        tag = file.pages[0].tags.get(270)
        assert (None if tag is None else tag.value) == left
    assert len(notices) == told
    assert tifffile.imread(tmp_path / "b.tif").shape == (12, 16, 3)


_BESIDE = {
    "gain_map": b' hdrgm:Version="1.0"><Container:Directory><rdf:Seq/></Container:Directory></a>',
    "motion_photo": b' GCamera:MotionPhoto="1" GCamera:MotionPhotoVersion="1">'
    b"<GCamera:MicroVideo>1</GCamera:MicroVideo></a>",
    "metadata": b' GDepth:Format="RangeInverse"><GDepth:Near>3</GDepth:Near></a>',
}  # fmt: skip


@pytest.mark.parametrize("kind", _BESIDE)
@pytest.mark.parametrize("output", [".jpg", ".png"])
def test_no_trace_is_left_of_data_that_does_not_come_along(tmp_path: Path, kind: str, output: str) -> None:
    data = io.BytesIO()
    Image.new("RGB", (8, 6)).save(data, "JPEG", xmp=b'<a dc:creator="Ada"' + _BESIDE[kind])
    (tmp_path / "a.jpg").write_bytes(data.getvalue() + data.getvalue())
    with collected() as notices:
        write_image(read_image(tmp_path / "a.jpg"), tmp_path / f"b{output}")
    assert [notice.kind for notice in notices] == [kind]
    content = (tmp_path / f"b{output}").read_bytes()
    assert b"Ada" in content and not re.search(rb"hdrgm|Container|GCamera|Motion|GDepth", content)


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as made:
        text = _PAGE.read_text(encoding="utf-8")
        new = re.sub(
            r"\| \| PNG \| JPEG .*?\n\n", lambda _: _table(Path(made)) + "\n\n", text, flags=re.DOTALL
        )
        _PAGE.write_text(new, encoding="utf-8")
        sys.stdout.write(new)
