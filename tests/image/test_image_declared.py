"""Colours that a file declares without an ICC profile: the result shows what the file shows."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import ExifTags, Image, ImageCms

from clearsr.errors import ClearSRError, collected
from clearsr.image import open_source, output_suffixes, read_image, write_image
from clearsr.tiling import Window

LEVELS = np.random.default_rng(0).integers(20, 236, (8, 8, 3), np.uint8)
SRGB_TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
P3_TO_XYZ = np.array([[0.4866, 0.2657, 0.1982], [0.2290, 0.6917, 0.0793], [0.0, 0.0451, 1.0439]])
BT2020_TO_XYZ = np.array([[0.6370, 0.1446, 0.1689], [0.2627, 0.6780, 0.0593], [0.0, 0.0281, 1.0610]])
ADOBE_TO_XYZ = np.array([[0.5767, 0.1856, 0.1882], [0.2973, 0.6274, 0.0753], [0.0270, 0.0707, 0.9911]])
P3 = (0.3127, 0.3290, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060)


def _srgb_curve(values: np.ndarray) -> np.ndarray:
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def _as_srgb(light: np.ndarray) -> np.ndarray:
    light = light.clip(0, 1)
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def _shown(levels: np.ndarray, to_xyz: np.ndarray, exponent: float | None) -> np.ndarray:
    """What an sRGB screen shows of such levels, by the definition of the colour space."""
    values = levels / 255
    light = _srgb_curve(values) if exponent is None else values**exponent
    return _as_srgb(light @ to_xyz.T @ np.linalg.inv(SRGB_TO_XYZ).T)


def _through_profile(image: Image.Image) -> np.ndarray:
    """What an sRGB screen shows of a file, by its profile, as LittleCMS has it."""
    profile = image.info.get("icc_profile")
    assert profile is not None
    theirs = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    flags = ImageCms.Flags.NOOPTIMIZE | ImageCms.Flags.HIGHRESPRECALC
    screen, mode = ImageCms.createProfile("sRGB"), image.mode
    shown = ImageCms.profileToProfile(image, theirs, screen, 1, mode if mode == "RGB" else "RGB", flags=flags)
    return np.asarray(shown, float)


def _png(chunks: list[tuple[bytes, bytes]], levels: np.ndarray = LEVELS) -> bytes:
    height, width, *channels = levels.shape
    header = struct.pack(">IIBBBBB", width, height, 8, 2 if channels else 0, 0, 0, 0)
    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in levels))
    every = [(b"IHDR", header), *chunks, (b"IDAT", rows), (b"IEND", b"")]
    coded = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in every)
    return b"\x89PNG\r\n\x1a\n" + b"".join(coded)


def _gamma(value: float) -> tuple[bytes, bytes]:
    return b"gAMA", struct.pack(">I", round(100_000 * value))


def _places(places: tuple[float, ...]) -> tuple[bytes, bytes]:
    return b"cHRM", struct.pack(">8I", *(round(100_000 * place) for place in places))


def _avif(primaries: int, transfer: int, levels: np.ndarray = LEVELS) -> bytes:
    file = io.BytesIO()
    Image.fromarray(levels).save(file, "AVIF", quality=100, subsampling="4:4:4")
    content = bytearray(file.getvalue())
    at = content.index(b"nclx") + 4
    content[at : at + 4] = struct.pack(">HH", primaries, transfer)
    return bytes(content)


def _tiff() -> bytes:
    file = io.BytesIO()
    tags: Any = [(318, 5, 2, (3127, 10000, 3290, 10000), True)]
    tags.append((319, 5, 6, tuple(v for p in P3[2:] for v in (round(p * 10000), 10000)), True))
    tifffile.imwrite(file, LEVELS, photometric="rgb", extratags=tags, metadata=None)
    return file.getvalue()


def _adobe() -> bytes:
    exif = Image.Exif()
    details = exif.get_ifd(ExifTags.IFD.Exif)
    details[ExifTags.Base.ColorSpace] = 0xFFFF
    details[ExifTags.IFD.Interop] = {1: "R03"}
    file = io.BytesIO()
    Image.fromarray(np.repeat(np.repeat(LEVELS, 8, 0), 8, 1)).save(
        file, "JPEG", quality=100, subsampling="4:4:4", exif=exif
    )
    return file.getvalue()


CASES: dict[str, tuple[bytes, np.ndarray, float | None]] = {
    "linear PNG": (_png([_gamma(1.0)]), SRGB_TO_XYZ, 1.0),
    "gamma 1.8": (_png([_gamma(1 / 1.8)]), SRGB_TO_XYZ, 1.8),
    "P3 by cHRM": (_png([_places(P3)]), P3_TO_XYZ, None),
    "P3 by cHRM and gAMA": (_png([_places(P3), _gamma(0.45455)]), P3_TO_XYZ, 2.2),
    "P3 by cICP": (_png([(b"cICP", bytes((12, 13, 0, 1)))]), P3_TO_XYZ, None),
    "cICP before all else": (_png([(b"cICP", bytes((12, 13, 0, 1))), (b"sRGB", b"\0")]), P3_TO_XYZ, None),
    "BT.2020 by cICP": (_png([(b"cICP", bytes((9, 14, 0, 1)))]), BT2020_TO_XYZ, None),
    "linear by cICP": (_png([(b"cICP", bytes((1, 8, 0, 1)))]), SRGB_TO_XYZ, 1.0),
    "P3 by nclx": (_avif(12, 13), P3_TO_XYZ, None),
    "BT.2020 by nclx": (_avif(9, 14), BT2020_TO_XYZ, None),
    "P3 in TIFF": (_tiff(), P3_TO_XYZ, None),
    "Adobe RGB by EXIF": (_adobe(), ADOBE_TO_XYZ, 2.2),
}


@pytest.mark.parametrize(("content", "to_xyz", "exponent"), CASES.values(), ids=CASES)
def test_it_is_shown_as_the_file_says_in_every_format(
    tmp_path: Path, content: bytes, to_xyz: np.ndarray, exponent: float | None
) -> None:
    (tmp_path / "in").write_bytes(content)
    image = read_image(tmp_path / "in")
    levels = (255 * image.color.numpy()).transpose(1, 2, 0)
    for suffix in output_suffixes():
        write_image(image, tmp_path / f"out{suffix}")
        with Image.open(tmp_path / f"out{suffix}") as written:
            written.load()
            found, own = _through_profile(written), np.asarray(written, float)
        if suffix in (".png", ".tif", ".webp"):
            assert np.array_equal(own, levels)  # values stay
        assert np.abs(found - _shown(own, to_xyz, exponent)).max() <= 2.5
    part = open_source(tmp_path / "in").read(Window(0, 0, 4, 4))
    assert part.metadata.icc_profile == image.metadata.icc_profile


@pytest.mark.parametrize(
    "content",
    [
        _png([]),
        _png([(b"sRGB", b"\0"), _gamma(1.0)]),
        _png([_gamma(0.45455), _places((0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06))]),
        _png([(b"cICP", bytes((1, 13, 0, 1))), _gamma(1.0)]),
        _png([(b"cICP", bytes((1, 1, 0, 1)))]),
        _avif(1, 13),
        _avif(2, 2),
        _avif(1, 6),
    ],
)
def test_srgb_needs_no_profile(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "in").write_bytes(content)
    assert read_image(tmp_path / "in").metadata.icc_profile is None


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (_png([(b"cICP", bytes((9, 16, 0, 1)))]), "HDR (PQ)"),
        (_png([(b"cICP", bytes((9, 18, 0, 1)))]), "HDR (HLG)"),
        (_avif(9, 16), "HDR (PQ)"),
        (_avif(9, 18), "HDR (HLG)"),
        (_png([(b"cICP", bytes((1, 10, 0, 1)))]), "by a curve that is not known (10)"),
    ],
)
def test_light_beyond_white_is_refused_with_the_reason(tmp_path: Path, content: bytes, kind: str) -> None:
    (tmp_path / "in.png").write_bytes(content)
    for read in (read_image, open_source):
        with pytest.raises(ClearSRError) as caught:
            read(tmp_path / "in.png")
        assert str(caught.value).endswith(
            f"in.png: its colours are {kind}; export it for plain screens (SDR) first"
        )


def test_linear_grey_stays_grey_and_linear(tmp_path: Path) -> None:
    gray = LEVELS[..., 0]
    (tmp_path / "in.png").write_bytes(_png([_gamma(1.0)], gray))
    image = read_image(tmp_path / "in.png")
    write_image(image, tmp_path / "out.png")
    with Image.open(tmp_path / "out.png") as written:
        assert np.array_equal(np.asarray(written), gray) and written.info["icc_profile"][16:20] == b"GRAY"
    write_image(image, tmp_path / "out.webp")  # which has no grey: the profile is applied
    with Image.open(tmp_path / "out.webp") as written:
        shown = np.asarray(written.convert("RGB"), float)
    assert np.abs(shown - _as_srgb(gray / 255)[..., None]).max() <= 2.5


@pytest.mark.parametrize(
    "places",
    [(0.0,) * 8, (0.3127, 0.3290, 0.6, 0.3, 0.6, 0.3, 0.6, 0.3), (0.3, 0.3, 0.64, 0, 0.3, 0.6, 0.15, 0.06)],
)
def test_colours_that_make_no_sense_are_left_out_with_a_warning(
    tmp_path: Path, places: tuple[float, ...]
) -> None:
    (tmp_path / "in.png").write_bytes(_png([_places(places)]))
    with collected() as notices:
        image = read_image(tmp_path / "in.png")
    assert image.metadata.icc_profile is None
    assert [(notice.kind, notice.text) for notice in notices] == [
        ("profile", "what it says of its colours makes no sense and is left out")
    ]


def test_unknown_primaries_are_told_of(tmp_path: Path) -> None:
    (tmp_path / "in.png").write_bytes(_png([(b"cICP", bytes((77, 13, 0, 1)))]))
    with collected() as notices:
        assert read_image(tmp_path / "in.png").metadata.icc_profile is None
    assert notices[0].text == "its primaries (77) are not known; taken for those of sRGB"


def test_pillow_images_bring_what_pillow_knows() -> None:
    from clearsr.image import from_pil

    with Image.open(io.BytesIO(_png([_gamma(1.0)]))) as image:
        assert from_pil(image).metadata.icc_profile is not None
