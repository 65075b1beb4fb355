"""Every Pillow mode and 16-bit layout against an independent Pillow, numpy or hand-written decoding."""

import struct
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageCms

from clearsr.errors import ClearSRError, collected
from clearsr.image import from_pil, read_image, to_pil
from clearsr.image.modes import from_array, images_in

_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def _levels(*shape: int, top: int = 256, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, top, shape, dtype=np.uint8 if top == 256 else np.uint16)


def _png(
    samples: np.ndarray, interlaced: bool = False, filters: tuple[int, ...] = (0, 1, 2), extra: bytes = b""
) -> bytes:
    """16-bit PNG by hand: filters None, Sub, Up in turn, Adam7 if asked; `extra` is the content of tRNS."""
    height, width, channels = samples.shape
    rows = b""
    passes = _ADAM7 if interlaced else ((0, 0, 1, 1),)
    for x0, y0, dx, dy in passes:
        part = samples[y0::dy, x0::dx]
        before = np.zeros(part.shape[1] * channels * 2, np.uint8)
        for y in range(part.shape[0] if part.shape[1] else 0):
            line = np.frombuffer(part[y].astype(">u2").tobytes(), np.uint8)
            kind = filters[y % len(filters)]
            left = np.concatenate([np.zeros(2 * channels, np.uint8), line[: -2 * channels]])
            rows += bytes([kind]) + (line - (0, left, before)[kind]).astype(np.uint8).tobytes()
            before = line
    color_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, interlaced)
    chunks = [
        (b"IHDR", header),
        *([(b"tRNS", extra)] if extra else []),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    coded = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(coded)


def _assert_shows(path_or_image: Path | Image.Image, samples: np.ndarray, depth: int = 8) -> None:
    """The image read equals H×W×C unsigned samples exactly, in values, alpha, greyness and depth."""
    is_file = isinstance(path_or_image, Path)
    image = read_image(path_or_image) if is_file else from_pil(path_or_image)
    expected = samples.astype(np.float64) / (2**depth - 1)
    channels = samples.shape[2]
    color = expected[..., :1].repeat(3, -1) if channels <= 2 else expected[..., :3]
    assert image.color.dtype == torch.float32
    assert np.abs(image.color.permute(1, 2, 0).numpy() - color).max() < 1e-6
    assert (image.alpha is not None) == (channels in (2, 4))
    if image.alpha is not None:
        assert np.abs(image.alpha[0].numpy() - expected[..., -1]).max() < 1e-6
    assert image.is_gray == (channels <= 2)
    assert image.bit_depth == depth


def test_one_bit_and_grey_modes() -> None:
    gray = _levels(6, 9, 1)
    _assert_shows(Image.fromarray(gray[..., 0]), gray)
    bits = (gray[..., 0] > 127).astype(np.uint8) * 255
    _assert_shows(Image.fromarray(bits).convert("1", dither=Image.Dither.NONE), bits[..., None])
    both = _levels(6, 9, 2)
    _assert_shows(Image.fromarray(both), both)


def test_color_modes() -> None:
    for channels in (3, 4):
        samples = _levels(5, 7, channels)
        _assert_shows(Image.fromarray(samples), samples)
    rgb = Image.fromarray(_levels(5, 7, 3))
    _assert_shows(rgb.convert("RGBX"), np.asarray(rgb))
    for mode in ("YCbCr", "HSV"):
        converted = rgb.convert(mode)
        _assert_shows(converted, np.asarray(converted.convert("RGB")))


def test_premultiplied_modes_are_divided_by_alpha() -> None:
    for mode, target, channels in (("RGBa", "RGBA", 4), ("La", "LA", 2)):
        image = Image.fromarray(_levels(5, 7, channels)).convert(mode)
        _assert_shows(image, np.asarray(image.convert(target)))


@pytest.mark.parametrize("transparency", [None, 3, bytes([0, 128, 255, 7])])
def test_palettes(tmp_path: Path, transparency: int | bytes | None) -> None:
    indices, colors = _levels(6, 8) % 16, _levels(16, 3, seed=1)
    image = Image.fromarray(indices, "L")
    image.putpalette(colors.tobytes())
    options = {} if transparency is None else {"transparency": transparency}
    image.save(tmp_path / "p.png", **options)
    expected = colors[indices]
    if transparency is not None:
        table = np.full(16, 255, np.uint8)
        if isinstance(transparency, int):
            table[transparency] = 0
        else:
            table[: len(transparency)] = list(transparency)
        expected = np.concatenate([expected, table[indices][..., None]], -1)
    _assert_shows(tmp_path / "p.png", expected)


def test_a_transparent_level_or_colour_becomes_alpha(tmp_path: Path) -> None:
    gray = _levels(6, 8) % 4 * 60
    Image.fromarray(gray).save(tmp_path / "l.png", transparency=60)
    _assert_shows(tmp_path / "l.png", np.stack([gray, np.where(gray == 60, 0, 255)], -1))
    rgb = np.stack([gray, gray, gray], -1)
    Image.fromarray(rgb).save(tmp_path / "rgb.png", transparency=(60, 60, 60))
    _assert_shows(tmp_path / "rgb.png", np.concatenate([rgb, np.where(gray == 60, 0, 255)[..., None]], -1))
    deep = _levels(6, 8, 3, top=65536)
    (tmp_path / "deep.png").write_bytes(_png(deep, extra=deep[2, 3].astype(">u2").tobytes()))
    alpha = np.where((deep == deep[2, 3]).all(-1), 0, 65535)
    _assert_shows(tmp_path / "deep.png", np.concatenate([deep, alpha[..., None]], -1), depth=16)
    level = deep[..., :1]
    (tmp_path / "gray.png").write_bytes(_png(level, extra=level[1, 1].astype(">u2").tobytes()))
    alpha = np.where(level == level[1, 1], 0, 65535)
    _assert_shows(tmp_path / "gray.png", np.concatenate([level, alpha], -1), depth=16)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("interlaced", [False, True])
def test_png_of_16_bits(tmp_path: Path, channels: int, interlaced: bool) -> None:
    samples = _levels(11, 13, channels, top=65536)
    (tmp_path / "x.png").write_bytes(_png(samples, interlaced))
    _assert_shows(tmp_path / "x.png", samples, depth=16)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_tiff_of_16_bits(
    tmp_path: Path, channels: int, byteorder: str, compression: str | None, planar: str
) -> None:
    samples = _levels(11, 13, channels, top=65536)
    options = {
        "photometric": "rgb" if channels > 2 else "minisblack",
        "compression": compression,
        "metadata": None,
    }
    if channels > 1:
        options["planarconfig"] = planar
    if channels in (2, 4):
        options["extrasamples"] = ["unassalpha"]
    stored = (
        samples[..., 0] if channels == 1 else samples if planar == "contig" else np.moveaxis(samples, -1, 0)
    )
    tifffile.imwrite(tmp_path / "x.tif", stored, byteorder=byteorder, **options)
    _assert_shows(tmp_path / "x.tif", samples, depth=16)


def test_tiff_of_16_bits_compressed_by_lzw_like_cameras_and_editors_do(tmp_path: Path) -> None:
    gray = _levels(9, 12, 1, top=65536)
    Image.fromarray(gray[..., 0]).save(tmp_path / "gray.tif", compression="tiff_lzw")
    _assert_shows(tmp_path / "gray.tif", gray, depth=16)
    # LZW does not know pixels: the strip of a grey image three times as wide is that of an RGB image.
    samples = _levels(9, 12, 3, top=65536)
    Image.fromarray(samples.reshape(9, 36)).save(tmp_path / "wide.tif", compression="tiff_lzw")
    with tifffile.TiffFile(tmp_path / "wide.tif") as wide:
        tags, data = wide.pages[0].tags, (tmp_path / "wide.tif").read_bytes()
        strips = [data[o : o + n] for o, n in zip(tags[273].value, tags[279].value, strict=True)]
        rows = tags[278].value
    options = {"photometric": "rgb", "compression": "zlib", "rowsperstrip": rows, "metadata": None}
    tifffile.imwrite(tmp_path / "rgb.tif", iter(strips), shape=(9, 12, 3), dtype=np.uint16, **options)
    with tifffile.TiffFile(tmp_path / "rgb.tif", mode="r+") as file:
        file.pages[0].tags[259].overwrite(5)
    _assert_shows(tmp_path / "rgb.tif", samples, depth=16)


def test_tiff_with_white_as_zero_premultiplied_alpha_and_extra_channel(tmp_path: Path) -> None:
    gray = _levels(5, 6, 1, top=65536)
    tifffile.imwrite(tmp_path / "white.tif", gray[..., 0], photometric="miniswhite", metadata=None)
    _assert_shows(tmp_path / "white.tif", 65535 - gray, depth=16)
    samples = np.array([[[10000, 20000, 0, 40000], [0, 0, 0, 0]]], np.uint16)
    tifffile.imwrite(
        tmp_path / "pre.tif", samples, photometric="rgb", extrasamples=["assocalpha"], metadata=None
    )
    image = read_image(tmp_path / "pre.tif")
    assert torch.allclose(image.color[:, 0, 0], torch.tensor([0.25, 0.5, 0.0]), atol=1e-6)
    assert image.color[:, 0, 1].tolist() == [0, 0, 0] and image.alpha is not None
    tifffile.imwrite(
        tmp_path / "x.tif", samples, photometric="rgb", extrasamples=["unspecified"], metadata=None
    )
    _assert_shows(tmp_path / "x.tif", samples[..., :3], depth=16)


@pytest.mark.parametrize("order", ["I;16", "I;16L", "I;16B", "I"])
def test_grey_of_16_bits_in_every_byte_order(order: str) -> None:
    gray = _levels(5, 7, 1, top=65536)
    dtype = {"I;16B": ">u2", "I": "<i4"}.get(order, "<u2")
    raw = order if order != "I" else "I;32"
    image = Image.frombytes(order, (7, 5), gray.astype(dtype).tobytes(), "raw", raw)
    _assert_shows(image, gray, depth=16)


def test_floats_in_unit_range_are_read_and_high_dynamic_range_is_refused(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((5, 6, 3), dtype=np.float32)
    tifffile.imwrite(tmp_path / "f.tif", values, photometric="rgb", metadata=None)
    assert np.abs(read_image(tmp_path / "f.tif").color.permute(1, 2, 0).numpy() - values).max() < 1e-7
    gray = from_pil(Image.fromarray(values[..., 0]))
    assert gray.is_gray and np.array_equal(gray.color[1].numpy(), values[..., 0])
    for bad in (values * 3, values - 0.5, np.full_like(values, np.nan)):
        tifffile.imwrite(tmp_path / "hdr.tif", bad, photometric="rgb", metadata=None)
        with pytest.raises(ClearSRError, match="hdr.tif: holds floating-point values outside 0 to 1"):
            read_image(tmp_path / "hdr.tif")
        with pytest.raises(ClearSRError, match="outside 0 to 1"):
            from_pil(Image.fromarray(bad[..., 0]))


def test_integers_that_no_16_bits_hold_and_volumes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ClearSRError, match="outside 0 to 65535"):
        from_pil(Image.fromarray(np.array([[70000, 1]], np.int32)))
    tifffile.imwrite(tmp_path / "s.tif", np.full((4, 4, 3), -1, np.int16), photometric="rgb", metadata=None)
    with pytest.raises(ClearSRError, match="signed"):
        read_image(tmp_path / "s.tif")
    options = {"volumetric": True, "tile": (2, 16, 16), "photometric": "minisblack"}
    tifffile.imwrite(tmp_path / "v.tif", np.zeros((3, 32, 32), np.float32), **options)
    with pytest.raises(ClearSRError, match="volume"):
        read_image(tmp_path / "v.tif")


def _cmyk_profile() -> bytes:
    """ICC profile whose table sends full cyan to mid grey (L* 50), black to black and no ink to white."""
    corners = [(50 if c else 100) * (1 - k) for c in (0, 1) for m in (0, 1) for y in (0, 1) for k in (0, 1)]
    table = b"".join(bytes([round(lightness * 2.55), 128, 128]) for lightness in corners)
    matrix = struct.pack(">9i", *(65536 * (i % 4 == 0) for i in range(9)))
    lut = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + matrix
    lut += bytes(range(256)) * 4 + table + bytes(range(256)) * 3
    lut += bytes(-len(lut) % 4)
    size = 128 + 4 + 12 + len(lut)
    header = struct.pack(">I4xI4s4s4s12x4s", size, 0x02400000, b"prtr", b"CMYK", b"Lab ", b"acsp")
    header += bytes(68 - len(header)) + struct.pack(">3i", 63190, 65536, 54061)  # D50
    return header + bytes(128 - len(header)) + struct.pack(">I4sII", 1, b"A2B0", 144, len(lut)) + lut


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_cmyk_becomes_srgb_by_its_profile_and_loses_the_profile(tmp_path: Path, suffix: str) -> None:
    cyan = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    cyan.save(tmp_path / f"c.{suffix}", quality=100, icc_profile=_cmyk_profile())
    image = read_image(tmp_path / f"c.{suffix}")
    assert (image.color * 255 - 119).abs().max() < 3  # by formula it would be (0, 255, 255)
    assert image.metadata.icc_profile is None and not image.is_gray and image.bit_depth == 8


def test_cmyk_without_a_usable_profile_is_converted_by_formula(tmp_path: Path) -> None:
    cmyk = Image.fromarray(np.full((8, 8, 3), (200, 40, 90), np.uint8)).convert("CMYK")
    cmyk.save(tmp_path / "c.jpg", quality=100)
    with Image.open(tmp_path / "c.jpg") as opened:
        _assert_shows(tmp_path / "c.jpg", np.asarray(opened.convert("RGB")))
    # A profile for another colour space cannot be applied; the picture is read all the same, without it.
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    cmyk.save(tmp_path / "bad.jpg", quality=100, icc_profile=b"x" * 200)
    assert read_image(tmp_path / "bad.jpg").metadata.icc_profile is None
    cmyk.save(tmp_path / "c.tif", icc_profile=profile[:16] + b"CMYK" + profile[20:])
    assert read_image(tmp_path / "c.tif").metadata.icc_profile is None


def test_lab_becomes_srgb() -> None:
    lab = Image.new("LAB", (2, 2), (128, 128, 128))  # L* of 50.2, neutral
    image = from_pil(lab)
    assert (image.color * 255 - 119).abs().max() < 3 and not image.is_gray


def test_to_pil_is_the_inverse_of_from_pil_and_leaves_its_input_alone() -> None:
    for channels in (1, 2, 3, 4):
        samples = _levels(5, 7, channels)
        image = Image.fromarray(samples[..., 0] if channels == 1 else samples)
        back = to_pil(from_pil(image))
        assert back.mode == image.mode and back.tobytes() == image.tobytes()
    deep = Image.fromarray(_levels(5, 7, top=65536))
    assert to_pil(from_pil(deep)).tobytes() == deep.tobytes()
    with pytest.raises(ClearSRError, match="no pixels"):
        from_pil(Image.new("RGB", (0, 5)))


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tif"])
def test_first_frame_of_an_animation_is_read_with_a_warning(
    tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    frames = [Image.new("RGB", (9, 6), color) for color in ("red", "blue")]
    options = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], **options)
    image = read_image(tmp_path / f"a.{suffix}")
    assert image.color.mean((1, 2)).tolist() == [1, 0, 0]
    assert "only the first is used" in caplog.text


@pytest.mark.parametrize("top", [256, 65536])
@pytest.mark.parametrize(("kinds", "count"), [((0,), "a"), ((2, 0), "a"), ((0, 0), "2")])
def test_channels_that_are_no_colour_are_told_of(
    tmp_path: Path, top: int, kinds: tuple[int, ...], count: str
) -> None:
    path = tmp_path / "a.tif"
    samples = _levels(8, 10, 3 + len(kinds), top=top)
    tifffile.imwrite(path, samples, photometric="rgb", extrasamples=kinds)
    with collected() as notices:
        image = read_image(path)
    assert [n.text.partition(" further")[0] for n in notices if n.kind == "channels"] == [f"it has {count}"]
    assert (image.alpha is not None) == (2 in kinds)


def test_no_channel_is_missed_where_there_is_none(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "LAB", "I;16"):
        Image.new(mode, (9, 8)).save(path)
        with collected() as notices:
            read_image(path)
        assert not [notice for notice in notices if notice.kind == "channels"], mode


@pytest.mark.parametrize(("mode", "profile"), [("RGB", None), ("L", "sRGB"), ("RGB", "LAB")])
def test_a_profile_that_does_not_fit_is_told_of(
    tmp_path: Path, mode: str, profile: Literal["sRGB", "LAB"] | None
) -> None:
    path = tmp_path / "a.png"
    made = None if profile is None else ImageCms.ImageCmsProfile(ImageCms.createProfile(profile))
    Image.new(mode, (9, 8)).save(path, icc_profile=b"x" * 300 if made is None else made.tobytes())
    with collected() as notices:
        image = read_image(path)
    assert [notice.kind for notice in notices] == ["profile"] and image.metadata.icc_profile is None


def test_one_that_was_used_is_not_missed(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.new("CMYK", (9, 8)).save(path, icc_profile=_cmyk_profile())
    with collected() as notices:
        read_image(path)
    assert not notices


def test_what_is_no_picture_is_said_in_one_line(tmp_path: Path) -> None:
    Image.fromarray(_levels(64, 64, 3)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:3000])
    with Image.open(tmp_path / "b.png") as cut_off, pytest.raises(ClearSRError, match="cannot be read"):
        from_pil(cut_off)
    with pytest.raises(ClearSRError, match="expected an array"):
        from_array([[1, 2]])  # type: ignore[arg-type]
    with pytest.raises(ClearSRError, match="a stack of none"):
        images_in(np.zeros((0, 5, 5, 3), np.uint8))


def test_arrays_of_the_other_byte_order_are_what_they_are() -> None:
    levels = _levels(8, 10, 3, top=65536)
    assert torch.equal(from_array(levels.astype(">u2")).color, from_array(levels.astype("<u2")).color)
