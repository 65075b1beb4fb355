"""The fuzzer's targets hold on their own seeds and on a few changed ones, without the fuzzer."""

import importlib
import random
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).parent.parent / "fuzz"
NAMES = [
    "picture",
    "tiff",
    "metadata",
    "weights",
    "model-config",
    "settings",
    "manifest",
    "listing",
    "result",
]


@pytest.fixture(scope="module")
def targets():
    sys.path.insert(0, str(FUZZ))
    yield importlib.import_module("targets")
    sys.path.remove(str(FUZZ))


def _changed(draw):
    def change(data):
        result = bytearray(data)
        for _ in range(draw.choice((1, 2, 8))):
            if result:
                result[draw.randrange(len(result))] = draw.randrange(256)
        start = draw.randrange(len(result) + 1)
        del result[start : start + draw.choice((0, 0, 1, 40))]
        return bytes(result)

    return change


def test_every_target_is_named(targets):
    assert list(targets.TARGETS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_target_holds(targets, name, tmp_path):
    target, draw = targets.TARGETS[name], random.Random(1)
    seeds = list(target.seeds(tmp_path))
    assert seeds
    before = {path.name for path in tmp_path.iterdir()}
    for seed in draw.sample(seeds, min(len(seeds), 8)):
        target.check(seed, tmp_path)
        target.check(targets.mutated(seed, _changed(draw)), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} - before <= {"model"}


def test_a_broken_word_is_noticed(targets, tmp_path, monkeypatch):
    pictures = sys.modules["pictures"]

    def fail(*_):
        raise IndexError("decoder")

    monkeypatch.setattr(pictures, "read_image", fail)
    with pytest.raises(IndexError):
        targets.TARGETS["picture"].check(b"x", tmp_path)


def test_a_png_keeps_right_checksums(targets, tmp_path):
    import zlib

    corpus = targets.pictures.corpus(tmp_path)
    png = next(data for data in corpus if data.startswith(b"\x89PNG"))
    size = len(png)
    for value in range(40):
        changed = targets.mutated(png, lambda data, value=value: data[:-30] + bytes([value]) + data[-29:])
        assert len(changed) == size
        length = int.from_bytes(changed[8:12], "big")
        chunk = changed[12 : 16 + length]
        assert changed[16 + length : 20 + length] == zlib.crc32(chunk).to_bytes(4, "big")
