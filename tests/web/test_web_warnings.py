"""One picture, one list of warnings: in the file run's record, a batch's row, the page and the API."""

import dataclasses
import io
import json

import numpy as np
import pytest
from PIL import Image

from clearsr.batch.worker import Worker
from clearsr.config.batch import WorkConfig
from clearsr.config.output import OutputConfig
from clearsr.errors import Notice, collected, notify
from clearsr.files.upscale import Job, upscale_file
from clearsr.pipeline.pipeline import ClearSRPipeline


def animation_with_holes():
    """A WebP of two frames, half transparent."""
    levels = np.random.default_rng(0).integers(0, 256, (16, 24, 4), np.uint8)
    frames = [Image.fromarray(levels), Image.fromarray(levels[::-1])]
    file = io.BytesIO()
    frames[0].save(file, "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    return file.getvalue()


def deep_gray():
    """A PNG of 16 bits."""
    file = io.BytesIO()
    Image.fromarray(np.arange(384, dtype=np.uint16).reshape(16, 24) * 170).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "kinds"),
    [
        ("a.webp", animation_with_holes(), ["frames", "transparency"]),
        ("b.png", deep_gray(), ["bit_depth"]),
    ],
)
def test_every_front_end_gives_the_same_warnings(
    serve, tiny_pipeline, tmp_path, monkeypatch, caplog, name, content, kinds
):
    source, output = tmp_path / name, tmp_path / "out.jpg"
    source.write_bytes(content)
    sampling = tiny_pipeline.configure(upscale=2)
    result = upscale_file(tiny_pipeline, Job(str(source), source.name, str(output)), sampling, OutputConfig())
    assert [notice.kind for notice in result.warnings] == kinds
    assert not any(str(tmp_path) in notice.text for notice in result.warnings)
    assert caplog.text == ""  # who has the record shows it
    told = [dataclasses.asdict(notice) for notice in result.warnings]
    assert json.loads(json.dumps(result.as_dict()))["warnings"] == told

    monkeypatch.setattr(ClearSRPipeline, "from_pretrained", lambda *_a, **_k: tiny_pipeline)
    row = Worker(WorkConfig(model="any", sampling=sampling)).do(
        Job(str(source), source.name, str(tmp_path / "row.jpg"))
    )
    assert row.warnings == result.warnings

    with serve() as client:
        answer = client.post(
            "/v1/upscale", files={"file": (name, content)}, data={"upscale": 2, "format": "jpg"}
        )
    assert json.loads(answer.headers["X-ClearSR-Warnings"]) == told
    assert answer.content == output.read_bytes() == (tmp_path / "row.jpg").read_bytes()


def test_a_picture_without_loss_has_none(serve, picture):
    with serve() as client:
        answer = client.post("/v1/upscale", files={"file": ("a.png", picture())})
    assert json.loads(answer.headers["X-ClearSR-Warnings"]) == []


def test_notices_are_collected_once_and_by_the_innermost(caplog):
    with collected() as outer:
        notify("frames", "a", "holds 2")
        notify("frames", "b", "holds 2")
        with collected() as inner:
            notify("profile", "a", "is odd")
    assert (outer, inner) == ([Notice("frames", "holds 2")], [Notice("profile", "is odd")])
    notify("metadata", "a", "is large")
    assert caplog.messages == ["a: is large"]
