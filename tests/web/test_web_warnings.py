"""One picture, one list of warnings: in the file run's record, a batch's row, the page and the API."""

import dataclasses
import io
import json

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from clearsr.batch.worker import Worker
from clearsr.cli import main
from clearsr.config.batch import WorkConfig
from clearsr.config.output import OutputConfig
from clearsr.errors import Notice, collected, notify
from clearsr.files.upscale import Job, upscale_file
from clearsr.pipeline.pipeline import ClearSRPipeline
from clearsr.seeds import file_seed


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


def _photo(kind):
    x, y = np.meshgrid(np.linspace(0, 255, 24), np.linspace(0, 255, 16))
    file = io.BytesIO()
    Image.fromarray(np.stack([x, y, 255 - x], -1).astype(np.uint8)).save(file, kind)
    return file.getvalue()


def without_end():
    """A JPEG that lacks its end marker."""
    return _photo("JPEG")[:-2]


def two_views():
    """An MPO."""
    file = io.BytesIO()
    picture = Image.open(io.BytesIO(_photo("PNG")))
    picture.save(file, "MPO", save_all=True, append_images=[picture])
    return file.getvalue()


def in_p3():
    """A PNG in Display P3 by cICP, with a text that JPEG has no place for."""
    info = PngImagePlugin.PngInfo()
    info.add(b"cICP", bytes((12, 13, 0, 1)))
    info.add_text("Weather", "rain")
    file = io.BytesIO()
    Image.open(io.BytesIO(_photo("PNG"))).save(file, "PNG", pnginfo=info)
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "kinds"),
    [
        ("a.webp", animation_with_holes(), ["frames", "transparency"]),
        ("b.png", deep_gray(), ["bit_depth"]),
        ("c.jpg", without_end(), ["truncated"]),
        ("d.mpo", two_views(), ["frames"]),
        ("e.png", in_p3(), ["metadata"]),
    ],
)
def test_every_front_end_gives_the_same_bytes_and_warnings(
    serve, tiny_pipeline, model_folder, tmp_path, monkeypatch, caplog, capsys, name, content, kinds
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

    capsys.readouterr()
    typed = [
        "upscale",
        source,
        "-o",
        tmp_path / "typed.jpg",
        "--json",
        "--model",
        model_folder,
        "--upscale",
        2,
    ]
    assert main([*map(str, typed), "--steps", "1", "--scheduler", "dpm++"]) == 0
    assert json.loads(capsys.readouterr().out)["warnings"] == told

    with serve() as client:
        upload = {"file": (name, content)}
        answer = client.post("/v1/upscale", files=upload, data={"upscale": 2, "format": "jpg"})
        job = client.post("/v1/jobs", files=upload, data={"upscale": 2}).json()
        "".join(client.get(job["events"]).iter_lines())
        page = client.get(job["result"], params={"format": "jpg"})
    for response in (answer, page):
        said = json.loads(response.headers["X-ClearSR-Warnings"])
        assert sorted(said, key=str) == sorted(told, key=str)
    results = [
        answer.content,
        page.content,
        *((tmp_path / f"{n}.jpg").read_bytes() for n in ("row", "typed")),
    ]
    assert {output.read_bytes()} == set(results)


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


@pytest.mark.parametrize(
    ("fields", "size", "said"),
    [
        ({"width": 60}, (60, 40), []),
        ({"fit": "60x50"}, (60, 40), []),
        ({"longest_side": 24}, (24, 16), ["it is 24x16, large enough: copied as it is"]),
        ({"height": 8, "when_large": "shrink"}, (12, 8), ["it is 24x16, large enough: shrunk to 12x8"]),
    ],
)
def test_a_size_is_the_same_at_every_front_end(
    serve, tiny_pipeline, tmp_path, monkeypatch, fields, size, said
):
    content = _photo("JPEG")
    source, output, row_output = (tmp_path / name for name in ("a.jpg", "out.jpg", "row.jpg"))
    source.write_bytes(content)
    sampling = tiny_pipeline.configure(size=fields)
    result = upscale_file(tiny_pipeline, Job(str(source), "a.jpg", str(output)), sampling, OutputConfig())
    assert (result.width, result.height) == size
    assert [notice.text for notice in result.warnings] == said
    monkeypatch.setattr(ClearSRPipeline, "from_pretrained", lambda *_a, **_k: tiny_pipeline)
    row = Worker(WorkConfig(model="any", sampling=sampling)).do(Job(str(source), "a.jpg", str(row_output)))
    assert (row.status, row.warnings) == ("ok", result.warnings)
    larger = tiny_pipeline(Image.open(source), size=fields, seed=file_seed(0, "a.jpg"))
    file = io.BytesIO()
    larger.save(file, "PNG")
    with serve() as client:
        upload = {"file": ("a.jpg", content)}
        answer = client.post("/v1/upscale", files=upload, data={**fields, "format": "jpg"})
        job = client.post("/v1/jobs", files=upload, data=fields).json()
        "".join(client.get(job["events"]).iter_lines())
        page = client.get(job["result"], params={"format": "jpg"})
        picture = client.get(job["result"])
        query = {**fields, "picture_width": 24, "picture_height": 16, "name": "a.jpg"}
        told = client.get("/v1/estimate", params=query).json()
    assert answer.content == page.content == output.read_bytes() == row_output.read_bytes()
    warnings = [json.loads(each.headers["X-ClearSR-Warnings"]) for each in (answer, page)]
    assert warnings == [[dataclasses.asdict(notice) for notice in result.warnings]] * 2
    assert (told["result_width"], told["result_height"]) == size
    assert "--upscale" not in told["command"] and all(
        f" {value}" in told["command"] for value in fields.values()
    )
    with Image.open(io.BytesIO(picture.content)) as ours, Image.open(file) as pythons:
        assert np.array_equal(np.asarray(ours), np.asarray(pythons))


@pytest.mark.parametrize(
    ("fields", "code", "message"),
    [
        ({"width": 60, "upscale": 2}, "bad_setting", "upscale, width: only one size can be had"),
        ({"width": 60, "height": 2}, "bad_setting", "width, height: only one size can be had"),
        ({"when_large": "skip"}, "bad_setting", "when_large: is for a size, such as width 1920; give one"),
        ({"fit": "60"}, "bad_setting", "fit: must be width x height in pixels"),
        ({"width": 24 * 65}, "bad_setting", "width would enlarge 24x16 65 times"),
        ({"width": 20, "when_large": "skip"}, "large_enough", "a.png: is 24x16, large enough for width"),
    ],
)
def test_what_size_cannot_be_had_over_http(serve, fields, code, message):
    with serve() as client:
        answer = client.post("/v1/upscale", files={"file": ("a.png", _photo("PNG"))}, data=fields)
    assert answer.status_code == 422
    assert answer.json()["error"]["code"] == code and message in answer.json()["error"]["message"]
