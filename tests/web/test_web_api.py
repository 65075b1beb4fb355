"""POST /v1/upscale: the command line's bytes, the right status for all that is wrong, and no leftovers."""

import io
import struct
import threading
import time
import zlib

import pytest
from PIL import Image

from clearsr.config.output import OutputConfig
from clearsr.files.upscale import Job, upscale_file
from clearsr.web.fields import FIELDS
from clearsr.web.jobs import StoppedError


def post(client, content, name="photo.png", headers=None, **fields):
    return client.post("/v1/upscale", files={"file": (name, content)}, data=fields, headers=headers)


def error_of(response):
    """The error's parts, after looking that they are consistent and hold nothing of our code."""
    error = response.json()["error"]
    assert error["status"] == response.status_code
    assert "Traceback" not in response.text
    assert ".py" not in response.text
    assert "/tmp" not in response.text
    return error


def png_of_size(width, height):
    """A tiny PNG whose header claims that size."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("name", ["photo.png", "a b (1).png", "später.png"])
def test_bytes_are_those_of_the_file_run(serve, picture, tiny_pipeline, tmp_path, name):
    source = tmp_path / name
    source.write_bytes(picture())
    settings = {"upscale": 2, "steps": 3, "seed": 7, "lsa": {"alpha": 0.02, "beta": 0.04}}
    sampling = tiny_pipeline.configure(**settings)
    expected = tmp_path / "out.png"
    job = Job(str(source), source.name, str(expected))
    assert upscale_file(tiny_pipeline, job, sampling, OutputConfig()).error is None
    with serve() as client:
        response = post(
            client, source.read_bytes(), name, upscale="2", steps="3", seed="7", alpha="0.02", beta="0.04"
        )
    assert response.status_code == 200
    assert response.headers["content-type"] == "image/png"
    assert response.content == expected.read_bytes()


def test_format_quality_and_metadata(serve, picture):
    exif = Image.Exif()
    exif[0x010F] = "A camera"
    content = picture(format="JPEG", exif=exif)
    with serve() as client:
        responses = [
            post(client, content, "a.jpg", format="jpg", quality=q, upscale="2") for q in ("30", "95")
        ]
    with Image.open(io.BytesIO(responses[0].content)) as image:
        assert (image.format, image.size) == ("JPEG", (48, 32))
        assert image.getexif()[0x010F] == "A camera"
    assert len(responses[0].content) < len(responses[1].content)
    assert 'filename="a_x2.jpg"' in responses[0].headers["content-disposition"]


BAD_SETTINGS = [
    ({"steps": "-1"}, "steps"),
    ({"upscale": "many"}, "upscale"),
    ({"alpha": "2"}, "alpha"),
    ({"tile": "33"}, "tile"),
    ({"steps": "99999999"}, "steps"),
    ({"format": "exe"}, "format"),
    ({"quality": "9"}, "quality"),
    ({"format": "jpg", "quality": "101"}, "quality"),
    ({"stepz": "3"}, "stepz"),
    ({"lsa": "whatever"}, "lsa"),
    ({"start": "noise", "noise_scale": "0"}, "noise"),
]


def test_bad_settings_are_named(serve, picture):
    with serve() as client:
        for fields, said in BAD_SETTINGS:
            response = post(client, picture(), **fields)
            assert response.status_code == 422, fields
            assert said in error_of(response)["message"], fields


def test_text_for_a_model_that_takes_none(serve, picture):
    with serve() as client:
        response = post(client, picture(), negative_prompt="blurry", guidance_scale="3")
    assert response.status_code == 400
    error = error_of(response)
    assert error["code"] == "no_text"
    assert error["message"] == "negative_prompt: this model has no text encoder; leave it out"


def test_what_is_no_picture(serve, picture):
    with serve() as client:
        for content in (b"hello", b"", b"<svg/>", picture()[:200], b"\x89PNG\r\n\x1a\n"):
            response = post(client, content)
            assert response.status_code == 400, content
            assert error_of(response)["message"].startswith("photo.png: ")
        assert post(client, picture()).status_code == 200


def test_a_picture_by_address_or_none_at_all(serve):
    with serve() as client:
        files = {"seed": (None, "1"), "file": (None, "http://localhost/secret.png")}
        assert error_of(client.post("/v1/upscale", files=files))["code"] == "bad_setting"
        assert client.post("/v1/upscale", data={"seed": "1"}).status_code == 415
        assert client.post("/v1/upscale", json={}).status_code == 415
        broken = {"content-type": "multipart/form-data; boundary=x"}
        response = client.post("/v1/upscale", content=b"--x\r\nnonsense", headers=broken)
        assert response.status_code in (400, 422)
        error_of(response)


def test_sizes_are_judged_before_anything_is_decoded(serve):
    with serve(max_megapixels=1, max_output_megapixels=2) as client:
        bomb = post(client, png_of_size(60_000, 60_000))
        assert bomb.status_code == 413
        assert error_of(bomb)["code"] == "too_many_pixels"
        result = post(client, png_of_size(500, 500), upscale="4")
        assert result.status_code == 413
        assert "2000x2000" in error_of(result)["message"]


def test_request_that_is_too_large(serve, picture):
    with serve(max_upload_mb=0.01) as client:
        by_header = post(client, bytes(20_000))
        assert by_header.status_code == 413
        assert error_of(by_header)["code"] == "too_large"

        def unannounced():
            yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n'
            for _ in range(100):
                yield bytes(1000)

        headers = {"content-type": "multipart/form-data; boundary=x"}
        streamed = client.post("/v1/upscale", content=unannounced(), headers=headers)
        assert streamed.status_code == 413
        assert error_of(streamed)["code"] == "too_large"
        assert post(client, picture()).status_code == 200
        assert client.server.service.queue.counts() == (0, 0)


def test_queue_is_bounded_and_says_when_to_come_again(serve, picture):
    with serve(queue=1) as client:
        queue = client.server.service.queue
        free = threading.Event()
        tickets = [queue.reserve() for _ in range(2)]
        for ticket in tickets:
            queue.start(ticket, lambda _: free.wait(20))
        response = post(client, picture())
        assert response.status_code == 429
        assert int(response.headers["retry-after"]) > 0
        assert error_of(response)["code"] == "queue_full"
        free.set()
        for ticket in tickets:
            ticket.future.result(20)
        assert post(client, picture()).status_code == 200


def test_time_limit_ends_a_picture_within_a_step(serve, picture):
    with serve(time_limit=0.001) as client:
        response = post(client, picture(64, 64), steps="50")
        assert response.status_code == 504
        assert error_of(response)["code"] == "time_limit"
        assert client.server.service.queue.counts() == (0, 0)


def test_shutting_down(serve, picture):
    with serve() as client:
        queue = client.server.service.queue
        ticket = queue.reserve()
        queue.close()
        with pytest.raises(StoppedError):
            ticket.future.result(5)
        response = post(client, picture())
        assert response.status_code == 503
        assert error_of(response)["code"] == "shutting_down"
        assert client.get("/healthz").status_code == 503


def test_our_bug_is_told_without_its_traceback(serve, picture, tiny_pipeline, monkeypatch):
    def broken(*_):
        raise KeyError("secret detail")

    with serve() as client:
        monkeypatch.setattr(tiny_pipeline.steps, "decode", broken)
        response = post(client, picture())
        assert response.status_code == 500
        assert error_of(response)["code"] == "internal_error"
        assert "secret" not in response.text
        monkeypatch.undo()
        assert post(client, picture()).status_code == 200


def test_nothing_is_left_on_disk(serve, picture):
    with serve() as client:
        root = client.server.service.spool.root
        post(client, picture())
        post(client, b"no picture")
        post(client, picture(), steps="-1")
        deadline = time.monotonic() + 5
        while (left := [p for p in root.rglob("*") if p.name != "lock"]) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert left == []
    assert not root.exists()


def test_description_health_and_metrics(serve, picture):
    with serve() as client:
        post(client, picture())
        post(client, b"no picture")
        operation = client.get("/openapi.json").json()["paths"]["/v1/upscale"]["post"]
        schema = operation["requestBody"]["content"]["multipart/form-data"]["schema"]
        assert set(schema["properties"]) == {"file", *FIELDS}
        assert all(field.get("description") or "enum" in field for field in schema["properties"].values())
        assert {"400", "401", "413", "422", "429", "503", "504"} <= set(operation["responses"])
        health = client.get("/healthz").json()
        assert health == {
            "status": "ok",
            "running": 0,
            "waiting": 0,
            "instance": client.server.service.instance,
        }
        text = client.get("/metrics").text
        assert 'clearsr_pictures_total{outcome="done"} 1.0' in text
        assert 'clearsr_pictures_total{outcome="not_an_image"} 1.0' in text
        assert "clearsr_picture_seconds_count 2.0" in text  # all are counted, whatever became of them
        assert error_of(client.get("/v1/nothing"))["code"] == "not_here"
        for method in ("GET", "PUT", "PATCH"):
            response = client.request(method, "/v1/upscale")
            assert (response.status_code, response.headers["allow"]) == (405, "POST")
            assert error_of(response)["code"] == "wrong_method"
