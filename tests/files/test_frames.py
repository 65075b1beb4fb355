"""`--frames all`: every frame of an animation with its timing, every page of a TIFF; what else is told of."""

import io

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from clearsr.config.output import OutputConfig
from clearsr.config.sampling import SamplingConfig
from clearsr.files import upscale
from clearsr.files.upscale import Job, upscale_file
from clearsr.image import read_image
from clearsr.image.declared import declared_profile
from clearsr.pipeline.pipeline import ClearSRPipeline

DURATIONS = [80, 240, 120]
ALL = OutputConfig(frames="all")


@pytest.fixture(scope="module")
def pipeline(make_network):
    """Without steps the result resembles the picture, as colours are matched."""
    config = SamplingConfig(steps=1, upscale=2, scheduler="dpm++", noise_scale=0)
    return ClearSRPipeline(make_network(), config, device="cpu")


def _frames(with_alpha=False):
    y, x = np.mgrid[0:1:20j, 0:1:28j]
    found = []
    for shift in (0.0, 0.3, 0.6):
        planes = [(x + shift) % 1, (y + shift) % 1, 0.5 + 0.3 * np.sin(6 * x + 9 * shift)]
        if with_alpha:
            planes.append((x > 0.3).astype(float))
        found.append(Image.fromarray((255 * np.stack(planes, -1)).astype(np.uint8)))
    return found


def _animation(path, kind, with_alpha=False, **options):
    first, *others = _frames(with_alpha)
    if kind == "WEBP":
        options["lossless"] = True
    first.save(path, kind, save_all=True, append_images=others, duration=DURATIONS, **options)


def _upscaled(pipeline, source, target, output=ALL, **changes):
    sampling = pipeline.configure(**changes)
    return upscale_file(pipeline, Job(str(source), source.name, str(target)), sampling, output)


def _read(path):
    """Frames as H×W×4 and their durations."""
    found, durations = [], []
    with Image.open(path) as image:
        for number in range(image.n_frames):
            image.seek(number)
            found.append(np.asarray(image.convert("RGBA"), float))
            durations.append(image.info.get("duration"))
        return found, durations, image.info.get("loop")


@pytest.mark.parametrize("source", ["GIF", "WEBP", "PNG", "AVIF"])
@pytest.mark.parametrize("suffix", [".png", ".webp", ".avif"])
def test_an_animation_keeps_its_frames_and_their_timing(pipeline, tmp_path, source, suffix):
    loop = {} if source == "AVIF" else {"loop": 3}
    _animation(tmp_path / "in", source, **loop)
    result = _upscaled(pipeline, tmp_path / "in", tmp_path / f"out{suffix}")
    assert (result.status, result.warnings, result.width, result.height) == ("upscaled", (), 56, 40)
    found, durations, repeats = _read(tmp_path / f"out{suffix}")
    assert [round(duration) for duration in durations] == DURATIONS
    assert suffix == ".avif" or source == "AVIF" or repeats == 3
    for number, frame in enumerate(found):
        small = read_image(tmp_path / "in", frame=number)
        (alone,) = pipeline.upscale([small], pipeline.configure(seed=_seed(tmp_path / "in")))
        expected = 255 * alone.color.numpy().transpose(1, 2, 0)
        assert np.abs(frame[..., :3] - expected).mean() < (6 if suffix == ".avif" else 1), number


def _seed(path):
    from clearsr.seeds import file_seed

    return file_seed(0, path.name)


def test_holes_are_kept_in_every_frame(pipeline, tmp_path):
    _animation(tmp_path / "in.webp", "WEBP", with_alpha=True)
    _upscaled(pipeline, tmp_path / "in.webp", tmp_path / "out.png")
    found, _, _ = _read(tmp_path / "out.png")
    assert len(found) == 3
    for frame in found:
        assert frame[:, :10, 3].max() == 0 and frame[:, 30:, 3].min() == 255


def test_pages_of_any_size_and_depth(pipeline, tmp_path):
    shapes = [((20, 28, 3), np.uint8), ((12, 30, 3), np.uint16), ((16, 16), np.uint8)]
    source = tmp_path / "in.tif"
    with tifffile.TiffWriter(source) as writer:
        for shape, dtype in shapes:
            levels = np.linspace(0, np.iinfo(dtype).max, int(np.prod(shape))).astype(dtype).reshape(shape)
            kind = "rgb" if len(shape) == 3 else "minisblack"
            writer.write(levels, photometric=kind, metadata=None)
        writer.write(
            np.zeros((5, 7, 3), np.uint8), photometric="rgb", subfiletype=1, metadata=None
        )  # a thumbnail
    result = _upscaled(pipeline, source, tmp_path / "out.tif")
    assert (result.status, result.warnings) == ("upscaled", ())
    with tifffile.TiffFile(tmp_path / "out.tif") as file:
        found = [(page.shape, page.dtype) for page in file.pages]
    assert found == [((40, 56, 3), np.uint8), ((24, 60, 3), np.uint16), ((32, 32), np.uint8)]
    for number in range(3):
        assert read_image(tmp_path / "out.tif", frame=number).bit_depth == (16 if number == 1 else 8)
    assert (
        "pages are kept by TIFF alone; use --format tiff"
        in _upscaled(pipeline, source, tmp_path / "a.png").error
    )
    assert not (tmp_path / "a.png").exists()


def test_what_an_output_does_not_hold_is_said(pipeline, tmp_path):
    _animation(tmp_path / "in.gif", "GIF")
    result = _upscaled(pipeline, tmp_path / "in.gif", tmp_path / "out.tif")
    assert [notice.text for notice in result.warnings] == ["TIFF holds no timing; its frames are pages"]
    assert len(tifffile.TiffFile(tmp_path / "out.tif").pages) == 3
    error = _upscaled(pipeline, tmp_path / "in.gif", tmp_path / "out.jpg").error
    assert error.endswith("JPEG holds one picture; --frames all takes png, webp, avif, gif or tiff")
    result = _upscaled(pipeline, tmp_path / "in.gif", tmp_path / "one.png", OutputConfig())
    assert [notice.text for notice in result.warnings] == ["holds 3 frames or pages; only the first is used"]


def test_one_picture_is_one_picture(pipeline, tmp_path):
    _frames()[0].save(tmp_path / "in.png")
    for name, output in (("a.png", ALL), ("b.png", OutputConfig())):
        assert _upscaled(pipeline, tmp_path / "in.png", tmp_path / name, output).status == "upscaled"
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_frames_are_shrunk_where_they_are_large_enough(pipeline, tmp_path):
    _animation(tmp_path / "in.gif", "GIF")
    size = {"width": 14, "when_large": "shrink"}
    result = _upscaled(pipeline, tmp_path / "in.gif", tmp_path / "out.webp", size=size)
    assert (result.width, result.height) == (14, 10) and len(_read(tmp_path / "out.webp")[0]) == 3


def test_metadata_is_the_first_frames(pipeline, tmp_path):
    exif = Image.Exif()
    exif[315] = "Ann"
    _animation(tmp_path / "in.webp", "WEBP", exif=exif)
    _upscaled(pipeline, tmp_path / "in.webp", tmp_path / "out.webp")
    with Image.open(tmp_path / "out.webp") as image:
        assert image.getexif()[315] == "Ann" and image.n_frames == 3


def _mpo(pictures):
    file = io.BytesIO()
    pictures[0].save(file, "MPO", save_all=True, append_images=pictures[1:])
    return file.getvalue()


def test_the_second_view_of_an_mpo_is_told_of(pipeline, tmp_path):
    (tmp_path / "in.mpo").write_bytes(_mpo(_frames()[:2]))
    result = _upscaled(pipeline, tmp_path / "in.mpo", tmp_path / "out.png", OutputConfig())
    assert [notice.text for notice in result.warnings] == [
        "holds 2 pictures or views (MPO); only the first is used"
    ]


def test_a_gif_has_the_frames_in_256_colours(pipeline, tmp_path):
    _animation(tmp_path / "in", "WEBP", loop=3)
    result = _upscaled(pipeline, tmp_path / "in", tmp_path / "out.gif")
    told = [notice.text for notice in result.warnings]
    assert told == ["a GIF holds 256 colours a frame; the others became their nearest"]
    _upscaled(pipeline, tmp_path / "in", tmp_path / "out.png")
    found, durations, loop = _read(tmp_path / "out.gif")
    expected, _, _ = _read(tmp_path / "out.png")
    assert (durations, loop) == (DURATIONS, 3)
    for frame, full in zip(found, expected, strict=True):
        assert len(np.unique(frame.reshape(-1, 4), axis=0)) <= 256
        assert np.abs(frame - full).mean() < 12 and frame[..., 3].min() == 255
        means = [image.reshape(5, 8, 7, 8, 4).mean((1, 3)) for image in (frame, full)]
        assert np.abs(means[0] - means[1]).mean() < 2  # dithered: areas have the colours that they had


def test_a_gif_has_holes_and_is_shown_once(pipeline, tmp_path):
    _animation(tmp_path / "in.gif", "GIF")  # without a word of repeating
    _upscaled(pipeline, tmp_path / "in.gif", tmp_path / "out.gif")
    assert b"NETSCAPE" not in (tmp_path / "out.gif").read_bytes()
    _animation(tmp_path / "in.webp", "WEBP", with_alpha=True)
    _upscaled(pipeline, tmp_path / "in.webp", tmp_path / "holes.gif")
    found, _, loop = _read(tmp_path / "holes.gif")
    assert len(found) == 3 and loop == 0
    for frame in found:
        assert frame[:, :10, 3].max() == 0 and frame[:, 30:, 3].min() == 255


def test_a_gif_is_shown_in_the_colours_of_the_profile(pipeline, tmp_path):
    green = Image.new("RGB", (24, 24), (120, 200, 60))
    dimmer = Image.new("RGB", (24, 24), (60, 100, 30))
    profile = declared_profile({"cicp": (12, 13)}, Image.Exif(), False, "a test")  # Display P3
    exif = Image.Exif()
    exif[0x010E] = "in green"
    green.save(tmp_path / "in.png", save_all=True, append_images=[dimmer], icc_profile=profile, exif=exif)
    result = _upscaled(pipeline, tmp_path / "in.png", tmp_path / "out.gif")
    assert "GIF has no place for its exif; left out" in [notice.text for notice in result.warnings]
    _upscaled(pipeline, tmp_path / "in.png", tmp_path / "out.png")
    with Image.open(tmp_path / "out.png") as own:
        origin = ImageCms.ImageCmsProfile(io.BytesIO(own.info["icc_profile"]))
        shown = ImageCms.profileToProfile(own.convert("RGB"), origin, ImageCms.createProfile("sRGB"))
        by, unchanged = np.asarray(shown, float), np.asarray(own.convert("RGB"), float)
    frame = _read(tmp_path / "out.gif")[0][0][..., :3]
    means = [image.mean((0, 1)) for image in (frame, by, unchanged)]
    assert np.abs(means[0] - means[1]).max() < 2 < np.abs(means[0] - means[2]).max()


def test_a_single_picture_becomes_no_gif(pipeline, tmp_path):
    _frames()[0].save(tmp_path / "in.png")
    for output in (ALL, OutputConfig()):
        result = _upscaled(pipeline, tmp_path / "in.png", tmp_path / "out.gif", output)
        assert "written of animations alone (--frames all); use .png" in result.error
    assert not (tmp_path / "out.gif").exists()


@pytest.mark.parametrize(("suffix", "status"), [(".webp", "failed"), (".tif", "upscaled")])
def test_an_animation_that_memory_does_not_hold(pipeline, tmp_path, suffix, status, monkeypatch):
    _animation(tmp_path / "in", "GIF")
    needed = 3 * 56 * 40 * upscale.WHOLE_FILE_BYTES
    monkeypatch.setattr(upscale, "free_bytes", lambda *_: needed - 1)
    result = _upscaled(pipeline, tmp_path / "in", tmp_path / f"out{suffix}")
    assert result.status == status
    assert status == "upscaled" or "3 frames of 56x40 need" in result.error


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif"])
def test_an_animation_that_is_large_enough_keeps_its_frames_in_another_format(pipeline, tmp_path, suffix):
    source, target = tmp_path / "a.gif", tmp_path / f"b{suffix}"
    _animation(source, "GIF")
    result = _upscaled(pipeline, source, target, ALL, size={"width": 10})
    assert result.status == "upscaled", result.error
    assert "size" in {notice.kind for notice in result.warnings}
    before, _, _ = _read(source)
    after, durations, _ = _read(target)
    assert len(after) == len(before) == 3
    assert suffix == ".tif" or durations == DURATIONS
    if suffix != ".webp":  # which loses a little
        np.testing.assert_array_equal(after, before)


def test_an_animation_that_is_large_enough_is_passed_on_as_it_is(pipeline, tmp_path):
    source, target = tmp_path / "a.gif", tmp_path / "b.gif"
    _animation(source, "GIF")
    assert _upscaled(pipeline, source, target, ALL, size={"width": 10}).error is None
    assert target.read_bytes() == source.read_bytes()
    large = _upscaled(pipeline, source, target, ALL, size={"width": 10, "when_large": "skip"})
    assert large.status == "skipped"
