"""Files that are cut off: taken where all pixels are there, or where that is asked for; grey below."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clearsr.errors import ClearSRError, collected
from clearsr.image import open_source, read_image
from clearsr.image.reading import _mended_jpeg
from clearsr.tiling import Window


def _picture(width: int = 120, height: int = 90) -> Image.Image:
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    planes = np.stack([x, y, np.sin(30 * x * y) ** 2], axis=-1)
    noise = np.random.default_rng(0).normal(0, 0.05, planes.shape)
    return Image.fromarray((255 * (planes + noise).clip(0, 1)).astype(np.uint8))


def _encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def _levels(path: Path, **options: Any) -> tuple[np.ndarray, list[str]]:
    """H×W×3 or H×W×4 in [0, 255], and what is said."""
    with collected() as notices:
        image = read_image(path, **options)
    assert all(notice.kind == "truncated" for notice in notices)
    planes = [image.color] if image.alpha is None else [image.color, image.alpha]
    return np.concatenate([255 * plane.numpy() for plane in planes]).transpose(1, 2, 0), [
        notice.text for notice in notices
    ]


JPEGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "fine": {"quality": 98, "subsampling": "4:4:4"},
    "progressive": {"progressive": True},
    "with restarts": {"restart_marker_rows": 1},
}


@pytest.mark.parametrize("options", JPEGS.values(), ids=JPEGS)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_jpeg_without_its_end_marker_is_all_there(
    tmp_path: Path, options: dict[str, Any], mode: str
) -> None:
    path, whole = tmp_path / "a.jpg", _encoded(_picture().convert(mode), "JPEG", **options)
    path.write_bytes(whole)
    expected, said = _levels(path)
    assert said == []
    for missing in (2, 1):
        path.write_bytes(whole[:-missing])
        found, said = _levels(path)
        assert np.array_equal(found, expected)
        assert said == ["only the end of the file is missing; the picture is all there"]
    path.write_bytes(whole + b"film")  # what follows the end is another thing's
    assert _levels(path)[1] == []


@pytest.mark.parametrize("options", JPEGS.values(), ids=JPEGS)
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_jpeg_that_is_cut_off(tmp_path: Path, options: dict[str, Any], share: float) -> None:
    path, whole = tmp_path / "a.jpg", _encoded(_picture(), "JPEG", **options)
    path.write_bytes(whole)
    expected, _ = _levels(path)
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(
        ClearSRError, match=r"a.jpg: is damaged or incomplete: it ends after about \d+% of the"
    ):
        read_image(path)
    found, (said,) = _levels(path, allow_truncated=True)
    assert found.shape == expected.shape and said.endswith("% of the picture; the rest is grey")
    if "progressive" in options:
        return  # all rows are there, some coarse
    rows = int(int(said.removeprefix("it ends after about ").partition("%")[0]) / 100 * 90) // 16 * 16
    assert abs(rows / 90 - share) < 0.35
    assert np.abs(found[: max(0, rows - 2)] - expected[: max(0, rows - 2)]).max(initial=0) < 1
    assert np.abs(found[rows + 34 :] - 128).max(initial=0) < 2  # grey


def test_a_progressive_jpeg_that_ends_between_two_scans_is_coarse_and_not_whole(tmp_path: Path) -> None:
    path, whole = tmp_path / "a.jpg", _encoded(_picture(), "JPEG", progressive=True)
    last = whole.rindex(b"\xff\xda")
    before = max(whole.rindex(marker, 0, last) for marker in (b"\xff\xc4", b"\xff\xda"))
    assert whole[before + 1] == 0xC4  # the table of the last scan
    path.write_bytes(whole[:before])
    with pytest.raises(ClearSRError, match="it ends after about 99% of the picture"):
        read_image(path)
    assert _levels(path, allow_truncated=True)[0].shape == (90, 120, 3)


def _png(kind: str) -> bytes:
    picture = _picture()
    if kind == "deep":
        import dataclasses
        import tempfile

        from clearsr.image import from_pil, write_image  # Pillow writes none

        with tempfile.TemporaryDirectory() as folder:
            image = dataclasses.replace(from_pil(picture), bit_depth=16)
            write_image(image, Path(folder, "a.png"))
            return Path(folder, "a.png").read_bytes()
    if kind == "RGBA":
        picture.putalpha(Image.linear_gradient("L").resize(picture.size))
    elif kind == "P":
        picture = picture.quantize(16)
    elif kind != "RGB":
        picture = picture.convert(kind)
    return _encoded(picture, "PNG")


@pytest.mark.parametrize("kind", ["RGB", "RGBA", "L", "LA", "P", "1", "deep"])
def test_a_png_that_is_cut_off(tmp_path: Path, kind: str) -> None:
    path, whole = tmp_path / "a.png", _png(kind)
    path.write_bytes(whole)
    expected, said = _levels(path)
    assert said == []
    path.write_bytes(whole[: len(whole) * 6 // 10])
    with pytest.raises(ClearSRError, match="--allow-truncated takes what is there"):
        read_image(path)
    found, (said,) = _levels(path, allow_truncated=True)
    rows = round(int(said.removeprefix("it ends after about ").partition("%")[0]) / 100 * 90)
    assert 20 < rows < 85
    assert np.array_equal(found[: rows - 1], expected[: rows - 1])
    below = found[rows + 1 :]
    if kind in ("RGB", "RGBA", "L", "LA", "deep"):
        assert np.abs(below[..., :3] - 128).max() < 1
        assert below.shape[-1] == 3 or below[..., 3].min() == 255
    source = open_source(path, allow_truncated=True)
    part = source.read(Window(0, 0, 16, 120))
    assert np.array_equal(255 * part.color.numpy().transpose(1, 2, 0), found[:16, :, :3])


def test_a_png_without_its_last_chunk_is_all_there(tmp_path: Path) -> None:
    whole = _png("RGB")
    (tmp_path / "a.png").write_bytes(whole)
    expected, _ = _levels(tmp_path / "a.png")
    for missing, texts in ((12, []), (14, ["only the end of the file is missing; the picture is all there"])):
        (tmp_path / "a.png").write_bytes(whole[:-missing])
        found, said = _levels(tmp_path / "a.png")
        assert np.array_equal(found, expected) and said == texts


@pytest.mark.parametrize("options", JPEGS.values(), ids=JPEGS)
def test_what_is_said_to_be_all_there_is_all_there(options: dict[str, Any]) -> None:
    """Cut at any place: the picture is the whole one, or it is said to be in part."""
    whole = _encoded(_picture(64, 48), "JPEG", **options)
    expected = np.asarray(Image.open(io.BytesIO(whole)))
    first = whole.index(b"\xff\xda") + 20
    places = [
        *np.random.default_rng(1).integers(first, len(whole), 40),
        *range(len(whole) - 12, len(whole) - 1),
    ]
    found = 0
    for place in places:
        mended = _mended_jpeg(whole[:place])
        assert mended is not None
        if mended[1] == 1:
            found += 1
            assert np.array_equal(np.asarray(Image.open(io.BytesIO(mended[0]))), expected)
    assert 1 <= found <= 9


def test_damage_is_not_taken_for_a_cut(tmp_path: Path) -> None:
    content = bytearray(_encoded(_picture(), "PNG"))
    middle = len(content) // 2
    content[middle : middle + 40] = bytes(40)
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ClearSRError, match="is damaged or incomplete and cannot be read"):
        read_image(tmp_path / "a.png", allow_truncated=True)


def test_an_interlaced_png_and_other_formats_are_whole_or_refused(tmp_path: Path) -> None:
    for kind in ("WEBP", "TIFF", "GIF"):
        content = _encoded(_picture(), kind)
        (tmp_path / "a").write_bytes(content[: len(content) * 6 // 10])
        with pytest.raises(ClearSRError):
            read_image(tmp_path / "a", allow_truncated=True)
