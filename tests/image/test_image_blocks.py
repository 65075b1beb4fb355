"""Pictures read and written part by part against the same pictures read and written whole."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from clearsr.config.output import OutputConfig
from clearsr.errors import ClearSRError
from clearsr.image import (
    ImageData,
    ImageMetadata,
    open_source,
    read_image,
    read_size,
    write_blocks,
    write_image,
)
from clearsr.image import tiff as tiff_module
from clearsr.image.source import DataSource, TiffSource
from clearsr.tiling import Window, pieces

SIZE = (90, 75)


def _image(depth: int = 8, is_gray: bool = False, has_alpha: bool = False) -> ImageData:
    generator = torch.Generator().manual_seed(depth)
    top = 2**depth - 1
    color = torch.randint(0, top + 1, (1 if is_gray else 3, *SIZE), generator=generator) / top
    alpha = torch.randint(0, top + 1, (1, *SIZE), generator=generator) / top if has_alpha else None
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    metadata = ImageMetadata(exif=exif.tobytes(), dpi=(300.0, 300.0), xmp=b"<x:xmpmeta/>")
    return ImageData(color.repeat(3 if is_gray else 1, 1, 1), alpha, is_gray, depth, metadata)


def _blocks(image: ImageData, side: int) -> Iterator[tuple[Window, ImageData]]:
    source = DataSource(image)
    for window in pieces(*SIZE, side):
        yield window, source.read(window)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg", ".webp"])
@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("is_gray", [False, True])
@pytest.mark.parametrize("has_alpha", [False, True])
def test_blocks_make_the_file_that_the_whole_makes(
    tmp_path: Path, suffix: str, depth: int, is_gray: bool, has_alpha: bool
) -> None:
    image = _image(depth, is_gray, has_alpha)
    whole, in_blocks = tmp_path / f"whole{suffix}", tmp_path / f"blocks{suffix}"
    write_image(image, whole)
    write_blocks(in_blocks, SIZE, 32, _blocks(image, 32))
    one, other = read_image(whole), read_image(in_blocks)
    assert torch.equal(one.color, other.color)
    assert (one.alpha is None) == (other.alpha is None)
    assert one.alpha is None or (other.alpha is not None and torch.equal(one.alpha, other.alpha))
    assert (one.is_gray, one.bit_depth, one.metadata) == (other.is_gray, other.bit_depth, other.metadata)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([whole.name, in_blocks.name])


def test_tiff_of_blocks_is_tiled_and_big_where_it_must_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, image = tmp_path / "x.tif", _image()
    for limit, is_big in ((2**32, False), (1000, True)):
        monkeypatch.setattr(tiff_module, "_BIG", limit)
        write_blocks(path, SIZE, 32, _blocks(image, 32), OutputConfig(tiff_compression="none"))
        with tifffile.TiffFile(path) as file:
            assert file.is_bigtiff == is_big and file.pages[0].tile == (32, 32)
        np.testing.assert_array_equal(tifffile.imread(path), (image.color * 255).round().permute(1, 2, 0))
        assert torch.equal(read_image(path).color, image.color)


def test_a_failure_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    def failing() -> Iterator[tuple[Window, ImageData]]:
        yield from list(_blocks(_image(), 32))[:4]
        raise RuntimeError("not enough memory")

    for suffix in (".png", ".tif", ".jpg"):
        with pytest.raises(RuntimeError, match="not enough memory"):
            write_blocks(tmp_path / f"x{suffix}", SIZE, 32, failing())
    assert list(tmp_path.iterdir()) == []


TIFFS = {
    "strips": {"compression": "zlib", "rowsperstrip": 7},
    "one strip": {},
    "tiles": {"tile": (16, 32), "compression": "zlib", "predictor": True},
    "big endian": {"byteorder": ">", "rowsperstrip": 16},
    "big": {"bigtiff": True, "rowsperstrip": 16},
}


@pytest.mark.parametrize("kind", TIFFS)
@pytest.mark.parametrize("shape", [(*SIZE, 3), SIZE, (*SIZE, 4)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_tiff_is_read_part_by_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, shape: tuple[int, ...], dtype: type
) -> None:
    samples = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype=dtype)
    photometric = "minisblack" if len(shape) == 2 else "rgb"
    extra = {"extrasamples": ["unassalpha"]} if shape[-1] == 4 else {}
    tifffile.imwrite(tmp_path / "x.tif", samples, photometric=photometric, **TIFFS[kind], **extra)
    monkeypatch.setattr("clearsr.image.source._CACHE_BYTES", 4000)
    whole, source = read_image(tmp_path / "x.tif"), open_source(tmp_path / "x.tif")
    assert isinstance(source, TiffSource)
    assert (source.height, source.width) == SIZE == read_size(tmp_path / "x.tif")
    _assert_same_parts(source, whole)
    source.close()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_other_files_are_upright_part_by_part(tmp_path: Path, orientation: int, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    samples = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), dtype=np.uint8)
    Image.fromarray(samples).save(tmp_path / f"x{suffix}", exif=exif)
    whole, source = read_image(tmp_path / f"x{suffix}"), open_source(tmp_path / f"x{suffix}")
    assert (source.height, source.width) == (whole.height, whole.width) == read_size(tmp_path / f"x{suffix}")
    _assert_same_parts(source, whole)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_kept_tiles_leave_no_holes_in_memory(tmp_path: Path) -> None:
    # Tiles of 192 kB that stay, made between arrays of 12 MB that go: one by one, 144 of them cost 1.5 GB.
    side, rows, columns = 256, 12, 12
    samples = np.zeros((rows * side, columns * side, 3), np.uint8)
    tifffile.imwrite(tmp_path / "x.tif", samples, photometric="rgb", tile=(side, side), compression="zlib")
    source, before = open_source(tmp_path / "x.tif"), _anonymous_bytes()
    for window in pieces(source.height, source.width, side):
        source.read(window)
        pixels = torch.ones(3, 1024, 1024)
        twice = 2 * pixels
        total = twice + pixels  # all three live until the next tile is there
    assert bool((total == 3).all())
    assert _anonymous_bytes() - before < 400e6
    source.close()


def _anonymous_bytes() -> int:
    status = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in status if line.startswith("RssAnon")).split()[1])


def test_a_tile_that_is_far_larger_than_its_picture_is_not_taken_at_its_word(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "x.tif", samples, photometric="rgb", tile=(16, 16))
    data = bytearray((tmp_path / "x.tif").read_bytes())
    with tifffile.TiffFile(tmp_path / "x.tif") as file:
        for code in (322, 323):  # TileWidth, TileLength
            tag = file.pages[0].tags[code]
            data[tag.offset + 2 : tag.offset + 4] = (4).to_bytes(2, "little")  # a LONG
            data[tag.offset + 8 : tag.offset + 12] = (2**20).to_bytes(4, "little")
    (tmp_path / "x.tif").write_bytes(data)
    assert TiffSource.open(tmp_path / "x.tif", "x.tif", 10**6) is None


def test_damage_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    samples = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), dtype=np.uint8)
    tifffile.imwrite(path, samples, photometric="rgb", compression="zlib", rowsperstrip=16)
    with tifffile.TiffFile(path) as file:
        place = file.pages[0].dataoffsets[3]
    data = bytearray(path.read_bytes())
    data[place : place + 40] = bytes(40)
    path.write_bytes(data)
    source = open_source(path)
    assert source.read(Window(0, 0, 16, 16)).height == 16
    with pytest.raises(ClearSRError, match="x.tif: is damaged or incomplete") as error:
        source.read(Window(40, 0, 60, 16))
    assert "\n" not in str(error.value)
    for opened in (open_source, read_size):
        with pytest.raises(ClearSRError, match="does not exist"):
            opened(tmp_path / "none.tif")


def _assert_same_parts(source, whole: ImageData) -> None:  # noqa: ANN001 - any source
    parts = DataSource(whole)
    for window in pieces(source.height, source.width, 33):
        one, other = source.read(window), parts.read(window)
        assert torch.equal(one.color, other.color)
        assert one.alpha is other.alpha is None or torch.equal(one.alpha, other.alpha)
        assert (one.is_gray, one.bit_depth, one.metadata) == (other.is_gray, other.bit_depth, other.metadata)
