"""Orientation, EXIF, XMP, ICC profile and resolution from file to file."""

import dataclasses
import io
import logging
import threading
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import ExifTags, Image, ImageCms, ImageOps

from clearsr.config.output import OutputConfig
from clearsr.image import ImageData, ImageMetadata, from_pil, output_suffixes, read_image, to_pil, write_image
from clearsr.image.metadata import collect_metadata

_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
_PICTURE = np.random.default_rng(0).integers(0, 256, (6, 10, 3), dtype=np.uint8)
_WRITTEN = [".png", ".jpg", ".webp", ".tif", ".avif"]


def _exif(orientation: int = 1) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "Maker"
    exif[ExifTags.Base.DateTime] = "2024:05:06 07:08:09"
    exif[ExifTags.Base.ImageWidth] = 10  # how the old file stored it: not carried over
    exif[ExifTags.Base.Orientation] = orientation
    exif[ExifTags.IFD.Exif] = {40962: 10, 40963: 6, 33434: 0.008, 34855: 200}
    exif[ExifTags.IFD.GPSInfo] = {1: "N", 2: (48.0, 8.0, 1.5)}
    return exif


def _source(path: Path, orientation: int = 1) -> ImageData:
    xmp = f'<x:xmpmeta tiff:Orientation="{orientation}"/>'.encode()
    Image.fromarray(_PICTURE).save(
        path, exif=_exif(orientation), dpi=(300, 150), icc_profile=_SRGB, xmp=xmp, quality=100, subsampling=0
    )
    return read_image(path)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
def test_pixels_are_upright_for_every_orientation(tmp_path: Path, orientation: int, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    options = {"lossless": True} if suffix == ".webp" else {}
    Image.fromarray(_PICTURE).save(path, exif=_exif(orientation).tobytes(), **options)
    with path.open("rb") as file, Image.open(file) as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
        from_memory = from_pil(opened)
    image = read_image(path)
    assert np.array_equal((image.color * 255).round().permute(1, 2, 0).numpy(), expected)
    assert torch.equal(from_memory.color, image.color)
    assert image.metadata.exif is not None
    kept = Image.Exif()
    kept.load(image.metadata.exif)
    assert kept[ExifTags.Base.Orientation] == 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["contig", "separate", "gray"])
def test_16_bit_tiff_is_upright_for_every_orientation(tmp_path: Path, orientation: int, kind: str) -> None:
    samples = _PICTURE.astype(np.uint16) * 257
    stored = {"contig": samples, "separate": np.moveaxis(samples, -1, 0), "gray": samples[..., 0]}[kind]
    options = (
        {"photometric": "minisblack"} if kind == "gray" else {"photometric": "rgb", "planarconfig": kind}
    )
    tags = [(274, "H", 1, orientation, True)]
    tifffile.imwrite(tmp_path / "x.tif", stored, metadata=None, extratags=tags, **options)
    upright = Image.fromarray(_PICTURE[..., [0, 0, 0]] if kind == "gray" else _PICTURE)
    upright.getexif()[ExifTags.Base.Orientation] = orientation
    expected = np.asarray(ImageOps.exif_transpose(upright))
    image = read_image(tmp_path / "x.tif")
    assert image.bit_depth == 16
    assert np.array_equal((image.color * 255).round().permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("suffix", _WRITTEN)
@pytest.mark.parametrize("depth", [8, 16])
def test_metadata_survives_every_format(tmp_path: Path, suffix: str, depth: int) -> None:
    if suffix not in output_suffixes():
        pytest.skip(f"this Pillow does not write {suffix}")
    image = _source(tmp_path / "in.jpg", orientation=6)
    larger = dataclasses.replace(image, color=torch.rand(3, 40, 24), bit_depth=depth)
    write_image(larger, tmp_path / f"out{suffix}")
    with Image.open(tmp_path / f"out{suffix}") as opened:
        opened.load()
        exif, info = opened.getexif(), opened.info
        details, place = exif.get_ifd(ExifTags.IFD.Exif), exif.get_ifd(ExifTags.IFD.GPSInfo)
    assert exif[ExifTags.Base.Make] == "Maker" and exif[ExifTags.Base.DateTime] == "2024:05:06 07:08:09"
    assert exif.get(ExifTags.Base.Orientation, 1) == 1
    assert (details[40962], details[40963], details[34855]) == (24, 40, 200)
    assert float(details[33434]) == pytest.approx(0.008) and [float(v) for v in place[2]] == [48, 8, 1.5]
    assert info["icc_profile"] == _SRGB
    assert b'tiff:Orientation="1"' in info["xmp"]
    if suffix not in (".webp", ".avif"):  # no field for it there
        assert info["dpi"] == pytest.approx((300, 150), abs=0.02)
    if suffix != ".tif":
        assert ExifTags.Base.ImageWidth not in exif
    again = read_image(tmp_path / f"out{suffix}")
    assert again.width == 24 and again.metadata.exif is not None


def test_metadata_can_be_left_behind_but_never_the_profile(tmp_path: Path) -> None:
    image = _source(tmp_path / "in.jpg")
    for suffix in (".png", ".tif", ".jpg"):
        write_image(image, tmp_path / f"o{suffix}", OutputConfig(keep_metadata=False))
        metadata = read_image(tmp_path / f"o{suffix}").metadata
        assert metadata.icc_profile == _SRGB and metadata.xmp is None
        assert b"Maker" not in (tmp_path / f"o{suffix}").read_bytes()


def test_embedded_thumbnail_is_dropped(tmp_path: Path) -> None:
    exif = _exif()
    thumbnail = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(thumbnail, "JPEG")
    block = bytearray(exif.tobytes())
    block += thumbnail.getvalue()
    image = Image.fromarray(_PICTURE)
    image.save(tmp_path / "x.jpg", exif=bytes(block))
    metadata = read_image(tmp_path / "x.jpg").metadata
    assert metadata.exif is not None and b"\xff\xd8\xff" not in metadata.exif and b"Maker" in metadata.exif


def test_damaged_exif_costs_the_exif_and_not_the_picture(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number, block in enumerate(
        (b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\x7f", b"Exif\0\0MM\0*" + b"\xff" * 40)
    ):
        path = tmp_path / f"{number}.jpg"
        Image.fromarray(_PICTURE).save(path, exif=block)
        assert read_image(path).width == 10
    assert all(record.levelno >= logging.WARNING for record in caplog.records)


def test_profile_is_kept_only_with_pixels_that_it_fits(tmp_path: Path) -> None:
    gray_profile = _SRGB[:16] + b"GRAY" + _SRGB[20:]
    Image.fromarray(_PICTURE[..., 0]).save(tmp_path / "a.png", icc_profile=_SRGB)
    assert read_image(tmp_path / "a.png").metadata.icc_profile is None
    Image.fromarray(_PICTURE[..., 0]).save(tmp_path / "b.png", icc_profile=gray_profile)
    image = read_image(tmp_path / "b.png")
    assert image.metadata.icc_profile == gray_profile
    write_image(image, tmp_path / "b.jpg")
    assert read_image(tmp_path / "b.jpg").metadata.icc_profile == gray_profile
    write_image(image, tmp_path / "b.webp")  # WebP has no grey: an RGB file must not carry a grey profile
    assert read_image(tmp_path / "b.webp").metadata.icc_profile is None
    mixed = ImageData(torch.rand(3, 4, 4), metadata=ImageMetadata(icc_profile=gray_profile))
    write_image(mixed, tmp_path / "c.png")
    assert Image.open(tmp_path / "c.png").info.get("icc_profile") is None


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_metadata_too_large_for_jpeg_is_left_out_there(
    tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    exif = _exif()
    exif[ExifTags.Base.ImageDescription] = "x" * 70_000
    metadata = ImageMetadata(exif=exif.tobytes(), xmp=b"<x>" + b"y" * 70_000)
    write_image(ImageData(torch.rand(3, 4, 4), metadata=metadata), tmp_path / f"x{suffix}")
    back = read_image(tmp_path / f"x{suffix}").metadata
    assert (back.exif is None) == (back.xmp is None) == (suffix == ".jpg")
    assert ("too large for JPEG" in caplog.text) == (suffix == ".jpg")


def test_text_of_a_16_bit_tiff_may_be_any_language(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Artist] = "Zoë Müller"
    metadata = ImageMetadata(exif=exif.tobytes())
    write_image(ImageData(torch.rand(3, 4, 4), bit_depth=16, metadata=metadata), tmp_path / "x.tif")
    with tifffile.TiffFile(tmp_path / "x.tif") as file:
        assert "Zo" in str(file.pages[0].tags[315].value)


def test_to_pil_carries_metadata(tmp_path: Path) -> None:
    picture = to_pil(_source(tmp_path / "in.jpg"))
    assert picture.info["icc_profile"] == _SRGB and picture.getexif()[ExifTags.Base.Make] == "Maker"


def test_threads_that_read_together_restore_pillow_s_limit(tmp_path: Path) -> None:
    _source(tmp_path / "in.jpg")
    before, sizes = Image.MAX_IMAGE_PIXELS, []

    def work(limit: int) -> None:
        sizes.extend(read_image(tmp_path / "in.jpg", max_pixels=limit).width for _ in range(20))

    threads = [threading.Thread(target=work, args=(limit,)) for limit in (60, 1000, 10**9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sizes == [10] * 60 and before == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize(
    ("packet", "left"),
    [
        (b'<a hdrgm:Version="1.0"   b="c"><xmp:Thumbnails><x/></xmp:Thumbnails>d</a>', b'<a   b="c">d</a>'),
        (b"<a hdrgm:x = '1'><hdrgm:Gain><x/></hdrgm:Gain><hdrgm:Max/><b/></a>", b"<a><b/></a>"),
        (b"<hdrgm:a><hdrgm:b>1</hdrgm:b>", b"<hdrgm:a>"),  # what is not closed stays
        (b"<hdrgm:a 1 <xmp:Thumbnails ", b"<hdrgm:a 1 <xmp:Thumbnails "),
    ],
)
def test_xmp_of_what_does_not_come_along_is_taken_out(packet, left):
    info = {"xmp": packet}
    assert collect_metadata(info, Image.Exif(), False).xmp == left


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "packet",
    [b"<xmp:Thumbnails>" * 60_000, b"hdrgm:V" + b" " * 1_000_000, b"<hdrgm:a " * 100_000]
    + [b"hdrgm:V" + b"<Container:Directory>" * 50_000, b"hdrgm:V" + b" hdrgm:a =" * 100_000],
    ids=["elements", "blanks", "tags", "directories", "attributes"],
)
def test_a_packet_of_a_megabyte_cannot_hold_a_server_up(packet):
    """With the square of its length these took minutes; now hundredths of a second."""
    assert collect_metadata({"xmp": packet}, Image.Exif(), False).xmp is not None
