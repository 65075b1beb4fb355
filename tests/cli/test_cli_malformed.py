"""Hundreds of malformed images through the real command line: no traceback, no hang, nothing half-written."""

import json
from collections import Counter

import pytest
from malformed_corpus import malformed_images, whole_images
from PIL import Image

COMMON = ("--upscale", "1", "--steps", "0", "--color", "none", "--max-memory", "4GB", "--json")


def _records(outcome):
    return {
        record["input"].rpartition("/")[2]: record for record in map(json.loads, outcome.out.splitlines())
    }


def _fill(folder, images):
    folder.mkdir()
    names = Counter()
    for name, content in images:
        (folder / name).write_bytes(content)
        names[name] += 1
    assert max(names.values()) == 1
    return set(names)


@pytest.mark.timeout(240)
def test_malformed_images_cost_themselves_alone(upscale, tmp_path):
    names = _fill(tmp_path / "in", malformed_images())
    assert len(names) >= 300
    outcome = upscale(tmp_path / "in", "-o", tmp_path / "out", *COMMON)
    records = _records(outcome)
    assert outcome.code == 1 and "Traceback" not in outcome.err
    assert set(records) == names  # each is accounted for, once
    written = {tmp_path / "out" / path.name for path in (tmp_path / "out").rglob("*")}
    good = [record for record in records.values() if record["status"] == "upscaled"]
    bad = [record for record in records.values() if record["status"] == "failed"]
    assert len(good) + len(bad) == len(names) and len(bad) > 200
    assert {str(path) for path in written} == {record["output"] for record in good}
    for record in good:
        with Image.open(record["output"]) as image:
            image.load()  # raises if it ends early
            assert image.size == (record["width"], record["height"])
    assert len(outcome.errors) == len(bad)
    for record in bad:
        assert record["error"].startswith(record["input"]) and "\n" not in record["error"]


def test_the_images_that_are_broken_were_whole(upscale, tmp_path):
    names = _fill(tmp_path / "in", whole_images().items())
    outcome = upscale(tmp_path / "in", "-o", tmp_path / "out", *COMMON)
    assert outcome.code == 0, outcome.err
    assert {name for name, record in _records(outcome).items() if record["status"] == "upscaled"} == names
