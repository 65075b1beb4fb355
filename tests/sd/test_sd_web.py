"""The server on a model with a text encoder: a negative prompt acts, and the page has a field for it."""

import io

import numpy as np
import pytest
from PIL import Image

from clearsr import ClearSRPipeline
from clearsr.config.output import OutputConfig
from clearsr.config.serving import ServingConfig
from clearsr.files.upscale import Job, upscale_file

SETTINGS = {"steps": 2, "upscale": 2, "color": "none"}


@pytest.fixture(scope="module")
def pipeline(untrained):
    return ClearSRPipeline.from_pretrained(untrained, device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def client(pipeline):
    from starlette.testclient import TestClient

    from clearsr.web.server import build_server

    server = build_server(ServingConfig())
    server.take(pipeline)
    with TestClient(server.app, base_url="http://localhost", raise_server_exceptions=False) as client:
        yield client
    server.close()


@pytest.fixture(scope="module")
def content():
    rows, columns = np.mgrid[0:13, 0:17]
    file = io.BytesIO()
    picture = np.stack([rows * 15, columns * 12, rows * columns], -1).astype(np.uint8)
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


def test_a_negative_prompt_gives_the_bytes_of_the_file_run(client, pipeline, content, tmp_path):
    # Looks like a number, and is text even so.
    sampling = pipeline.configure(**SETTINGS, negative_prompt="007", guidance_scale=4)
    (tmp_path / "a.png").write_bytes(content)
    job = Job(str(tmp_path / "a.png"), "a.png", str(tmp_path / "out.png"))
    assert upscale_file(pipeline, job, sampling, OutputConfig()).error is None
    settings = {**SETTINGS, "negative_prompt": "007", "guidance_scale": 4}
    response = client.post("/v1/upscale", files={"file": ("a.png", content)}, data=settings)
    assert response.status_code == 200, response.text
    assert response.content == (tmp_path / "out.png").read_bytes()
    without = client.post(
        "/v1/upscale", files={"file": ("a.png", content)}, data={**SETTINGS, "guidance_scale": 4}
    )
    assert without.content != response.content

    job = client.post("/v1/jobs", files={"file": ("a.png", content)}, data=settings).json()
    assert "event: done" in client.get(job["events"]).text
    assert client.get(job["result"]).content == response.content


def test_it_needs_guidance(client, content):
    settings = {"negative_prompt": "blurry", "guidance_scale": 1}
    response = client.post("/v1/upscale", files={"file": ("a.png", content)}, data=settings)
    assert response.status_code == 422
    said = response.json()["error"]["message"]
    assert said == "negative_prompt: acts through guidance; give guidance_scale above 1 too"


def test_the_page_has_the_control(client):
    fields = [field for group in client.get("/v1/settings").json()["groups"] for field in group["fields"]]
    (control,) = [field for field in fields if field["field"] == "negative_prompt"]
    assert control["kind"] == "string" and "text" in control["help"]
