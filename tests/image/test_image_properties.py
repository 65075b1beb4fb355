"""What holds for any picture, looked for by Hypothesis: modes, sizes, depths, orientation and metadata."""

import dataclasses
import io
import string
import tempfile
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import ExifTags, Image, ImageOps

from clearsr.config.output import OutputConfig
from clearsr.image import (
    ImageData,
    ImageMetadata,
    from_pil,
    read_image,
    read_levels,
    resize,
    to_pil,
    write_image,
)

# The same examples on every run and machine: a failure is found again.
_RUN = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
_SIDES = st.integers(1, 19)
_MODES = (
    "1",
    "L",
    "LA",
    "P",
    "PA",
    "RGB",
    "RGBA",
    "CMYK",
    "YCbCr",
    "HSV",
    "LAB",
    "I;16",
    "RGBX",
    "La",
    "RGBa",
)
_NAMES = (ExifTags.Base.Make, ExifTags.Base.Artist, ExifTags.Base.Copyright)
_TEXT = st.text(st.sampled_from(string.ascii_letters + string.digits + " .,-"), min_size=1, max_size=40)


@st.composite
def _samples(draw, depths=(8, 16), channels=(1, 2, 3, 4)):
    """Height×width×channels integers of 8 or 16 bits, with the extremes among them."""
    dtype = np.uint8 if draw(st.sampled_from(depths)) == 8 else np.uint16
    shape = (draw(_SIDES), draw(_SIDES), draw(st.sampled_from(channels)))
    return draw(arrays.arrays(dtype, shape, elements=st.integers(0, np.iinfo(dtype).max)))


@st.composite
def _exifs(draw):
    """Tags of IFD0, orientation among them, and of the Exif IFD, as cameras and editors write them."""
    tags = {int(tag): draw(_TEXT) for tag in _NAMES if draw(st.booleans())}
    tags[int(ExifTags.Base.Orientation)] = draw(st.integers(1, 8))
    details = {}
    if draw(st.booleans()):
        details[int(ExifTags.Base.ISOSpeedRatings)] = draw(st.integers(1, 65535))
    if draw(st.booleans()):
        details[int(ExifTags.Base.LensModel)] = draw(_TEXT)
    if draw(st.booleans()):
        details[int(ExifTags.Base.FNumber)] = float(draw(st.fractions(Fraction(1, 2), 64, max_denominator=9)))
    return tags, details


def _opened(picture, tags, details):
    """The picture as Pillow opens it from a file with that EXIF block."""
    exif = Image.Exif()
    for tag, value in tags.items():
        exif[tag] = value
    if details:
        exif[ExifTags.IFD.Exif] = dict(details)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", exif=exif)
    return Image.open(io.BytesIO(buffer.getvalue()))


def _image_of(samples, metadata=None):
    """The samples as `ImageData`, by plain division."""
    planes = (
        torch.from_numpy(samples.astype(np.float64) / np.iinfo(samples.dtype).max).float().permute(2, 0, 1)
    )
    count = planes.shape[0]
    color, alpha = (planes[:-1], planes[-1:]) if count in (2, 4) else (planes, None)
    return ImageData(
        color.expand(3, -1, -1).contiguous() if color.shape[0] == 1 else color.contiguous(),
        alpha,
        is_gray=count <= 2,
        bit_depth=8 if samples.dtype == np.uint8 else 16,
        metadata=metadata or ImageMetadata(),
    )


def _round_trip(image, suffix, **config):
    with tempfile.TemporaryDirectory() as folder:
        write_image(image, Path(folder) / f"x{suffix}", OutputConfig(**config))
        return read_image(Path(folder) / f"x{suffix}")


@_RUN
@given(_samples(), st.sampled_from([".png", ".tif"]))
def test_png_and_tiff_give_back_every_sample(samples, suffix):
    image = _image_of(samples)
    back = _round_trip(image, suffix)
    assert (back.bit_depth, back.is_gray) == (image.bit_depth, image.is_gray)
    assert torch.equal(back.color, image.color)
    assert (back.alpha is None) == (image.alpha is None)
    assert image.alpha is None or torch.equal(back.alpha, image.alpha)


@_RUN
@given(_samples(depths=(8,), channels=(3, 4)))
def test_lossless_webp_gives_back_every_sample(samples):
    image = _image_of(samples)
    back = _round_trip(image, ".webp", webp_lossless=True)
    assert torch.equal(back.color, image.color)
    if image.alpha is not None and back.alpha is None:  # the format drops what is opaque everywhere
        assert bool((image.alpha == 1).all())
    elif image.alpha is not None:
        assert torch.equal(back.alpha, image.alpha)


@_RUN
@given(st.sampled_from(_MODES), _SIDES, _SIDES, st.randoms(use_true_random=False))
def test_any_mode_of_pillow_becomes_a_picture_of_its_size(mode, height, width, random):
    source = Image.frombytes("RGB", (width, height), random.randbytes(3 * width * height))
    if mode in ("PA", "La", "RGBa"):
        source = source.convert({"PA": "P", "La": "LA", "RGBa": "RGBA"}[mode]).convert(mode)
    elif mode == "LAB":
        source = Image.frombytes("LAB", (width, height), source.tobytes())
    elif mode == "I;16":
        source = Image.frombytes("I;16", (width, height), random.randbytes(2 * width * height))
    else:
        source = source.convert(mode)
    before = source.tobytes()
    image = from_pil(source)
    assert (image.height, image.width) == (height, width)
    assert image.is_gray == (mode in ("1", "L", "LA", "La", "I;16"))
    assert (image.alpha is not None) == (mode in ("LA", "La", "PA", "RGBA", "RGBa"))
    assert image.bit_depth == (16 if mode == "I;16" else 8)
    assert float(image.color.min()) >= 0 and float(image.color.max()) <= 1
    assert source.tobytes() == before
    if mode in ("1", "L", "P", "RGB", "RGBX"):  # what Pillow shows of them is not in question
        expected = np.asarray(source.convert("RGB")).astype(np.float32) / np.float32(255)
        assert np.array_equal(image.color.permute(1, 2, 0).numpy(), expected)


@_RUN
@given(_samples(channels=(1, 3)), st.integers(1, 8), st.sampled_from([".png", ".tif"]))
def test_levels_are_the_picture_on_256_levels(samples, orientation, suffix):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"x{suffix}"
        if samples.dtype == np.uint8:
            picture = Image.fromarray(samples if samples.shape[2] == 3 else samples[..., 0])
            picture.save(path, exif=exif)
            upright = np.asarray(ImageOps.exif_transpose(_opened(picture, dict(exif), {})).convert("RGB"))
            assert np.array_equal(read_levels(path).permute(1, 2, 0).numpy(), upright)
        else:
            write_image(_image_of(samples), path)
        assert torch.equal(read_levels(path), (read_image(path).color * 255).round().to(torch.uint8))


@_RUN
@given(_exifs(), st.sampled_from([".png", ".jpg", ".webp", ".tif", ".avif"]), st.sampled_from([8, 16]))
def test_what_exif_says_of_the_picture_survives_every_format(written, suffix, depth):
    tags, details = written
    image = from_pil(_opened(Image.new("RGB", (9, 5), (200, 90, 40)), tags, details))
    is_turned = tags[int(ExifTags.Base.Orientation)] >= 5
    assert (image.width, image.height) == ((5, 9) if is_turned else (9, 5))
    back = _round_trip(dataclasses.replace(image, bit_depth=depth), suffix)
    if len(tags) == 1 and not details:  # only the orientation, which is undone
        assert back.metadata.exif is None
        return
    kept = Image.Exif()
    kept.load(back.metadata.exif)
    assert kept[ExifTags.Base.Orientation] == 1
    assert {tag: kept.get(tag) for tag in _NAMES if tag in kept} == {t: tags[t] for t in _NAMES if t in tags}
    kept_details = kept.get_ifd(ExifTags.IFD.Exif)
    assert set(kept_details) >= set(details)
    for tag, value in details.items():
        found = kept_details[tag]
        assert found == value if isinstance(value, str) else abs(float(found) - value) < 1e-3
    assert _round_trip(back, suffix).metadata.exif == back.metadata.exif  # a second time changes nothing


@_RUN
@given(st.integers(1, 2400), st.integers(1, 2400), st.sampled_from([".png", ".jpg", ".tif"]))
def test_resolution_survives(horizontal, vertical, suffix):
    image = _image_of(np.zeros((2, 3, 3), np.uint8), ImageMetadata(dpi=(horizontal, vertical)))
    kept = _round_trip(image, suffix).metadata.dpi
    assert kept is not None and all(
        abs(a - b) < 0.02 for a, b in zip(kept, (horizontal, vertical), strict=True)
    )


@_RUN
@given(_samples(channels=(1, 2, 3, 4), depths=(8,)))
def test_to_pil_undoes_from_pil(samples):
    mode = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[samples.shape[2]]
    picture = Image.frombytes(mode, (samples.shape[1], samples.shape[0]), samples.tobytes())
    back = to_pil(from_pil(picture))
    assert (back.mode, back.size, back.tobytes()) == (picture.mode, picture.size, picture.tobytes())


@_RUN
@given(_SIDES, _SIDES, st.integers(1, 60), st.integers(1, 60), st.integers(0, 2**31))
def test_resizing_keeps_the_range_and_mirrors_with_the_picture(height, width, new_height, new_width, seed):
    image = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed))
    larger = resize(image, (new_height, new_width))
    assert larger.shape == (1, 3, new_height, new_width)
    assert float(larger.min()) >= 0 and float(larger.max()) <= 1
    mirrored = resize(image.flip(-1), (new_height, new_width)).flip(-1)
    assert torch.allclose(larger, mirrored, atol=1e-5)
