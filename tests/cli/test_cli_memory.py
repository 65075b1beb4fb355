"""`clearsr upscale --max-memory`: the same picture in blocks, and clear words where it cannot be."""

import numpy as np
import pytest
import tifffile
from PIL import Image

from clearsr.image import read_header, reading
from clearsr.pipeline import budget


@pytest.fixture
def large(monkeypatch):
    """Every picture counts as too large for memory, and goes in blocks of 128 pixels."""
    monkeypatch.setattr(budget, "IN_MEMORY_BYTES_PER_PIXEL", 10**9)
    monkeypatch.setattr(budget, "PIECE_SIDES", (128,))


@pytest.fixture
def read():
    def samples(path):
        values = tifffile.imread(path) if path.suffix == ".tif" else np.asarray(Image.open(path))
        return values.astype(int)

    return samples


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.jpg", "a.webp"])
@pytest.mark.parametrize("source", ["photo.png", "photo.tif"])
def test_in_blocks_it_is_the_same_picture(upscale, photo, tmp_path, read, request, name, source):
    given = photo(source, 45, 70)
    assert upscale(given, "-o", tmp_path / "whole" / name).code == 0
    request.getfixturevalue("large")
    outcome = upscale(given, "-o", tmp_path / "blocks" / name, "--max-memory", "30GB")
    assert outcome.code == 0 and outcome.err == ""
    whole, in_blocks = (read(tmp_path / folder / name) for folder in ("whole", "blocks"))
    assert whole.shape == in_blocks.shape == (180, 280, 3)
    tolerance = 1 if name in ("a.png", "a.tif") else 8  # a level's difference spreads in lossy files
    assert np.abs(whole - in_blocks).max() <= tolerance
    assert sorted(path.name for path in (tmp_path / "blocks").iterdir()) == [name]


def test_what_cannot_be_written_in_pieces_says_so(upscale, photo, tmp_path, large, monkeypatch):
    monkeypatch.setattr("clearsr.files.upscale.WHOLE_FILE_BYTES", 10**9)
    outcome = upscale(photo("a.png", 40, 60), "-o", tmp_path / "a.jpg")
    assert outcome.code == 1
    assert "a.jpg: 240x160 needs" in outcome.errors[0] and "use --format tiff or png" in outcome.errors[0]


@pytest.mark.parametrize(("given", "says"), [("2", "--max-memory"), ("much", "such as 500MB")])
def test_a_budget_needs_a_unit(upscale, photo, given, says):
    outcome = upscale(photo(), "--max-memory", given)
    assert outcome.code != 0 and says in outcome.err


def test_too_little_names_what_is_needed(upscale, photo, tmp_path):
    outcome = upscale(photo(), "-o", tmp_path / "out", "--max-memory", "20MB")
    assert outcome.code == 1
    assert "max_memory: 20 MB is too little" in outcome.errors[0] and "--max-memory" in outcome.errors[0]


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
def test_what_cannot_be_decoded_whole_is_refused_before(upscale, photo, tmp_path, monkeypatch, name):
    """One byte less than decoding takes; as a TIFF it would take none."""
    given, as_tiff = photo(name, 40, 60), photo("a.tif", 40, 60)
    needed = read_header(given)[1].in_parts
    monkeypatch.setattr("clearsr.files.upscale.free_bytes", lambda *_: needed - 1)
    monkeypatch.setattr(reading, "decode", lambda *_: pytest.fail("was decoded"))
    outcome = upscale(given, "-o", tmp_path / "out.tif")
    assert outcome.code == 1 and len(outcome.errors) == 1
    assert f"{name}: decoding 60x40 takes" in outcome.errors[0]
    assert "raise --max-memory" in outcome.errors[0] and "TIFF" in outcome.errors[0]
    monkeypatch.undo()
    assert read_header(as_tiff)[1].in_parts == 0 < read_header(as_tiff)[1].whole
