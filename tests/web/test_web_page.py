"""Gradio's own routes: no file of the server is readable, no address fetched; its API gives our bytes."""

import json

import pytest

from clearsr.config.output import OutputConfig
from clearsr.files.upscale import Job, upscale_file

pytest.importorskip("gradio", reason="the extra `web` is not installed")


@pytest.fixture(scope="module")
def served(tiny_pipeline):
    from starlette.testclient import TestClient

    from clearsr.config.serving import ServingConfig
    from clearsr.web.server import build_server

    server = build_server(tiny_pipeline, ServingConfig())
    with TestClient(server.app, base_url="http://localhost", raise_server_exceptions=False) as client:
        client.server = server
        yield client
    server.close()


def file_data(path, name="photo.png"):
    return {"path": path, "orig_name": name, "meta": {"_type": "gradio.FileData"}}


def call(client, *values):
    """Gradio's API: start `upscale`, then read its outcome."""
    values = [*values, None] if len(values) == 4 else values  # the settings
    started = client.post("/gradio_api/call/upscale", json={"data": list(values)})
    if started.status_code != 200:
        return started.status_code, None
    text = client.get(f"/gradio_api/call/upscale/{started.json()['event_id']}").text
    event = text.rpartition("event: ")[2]
    return event.split("\n")[0], json.loads(event.partition("data: ")[2])


def upload(client, content, name="photo.png"):
    response = client.post("/gradio_api/upload", files={"files": (name, content)})
    assert response.status_code == 200
    return response.json()[0]


def test_client_api_gives_the_bytes_of_the_file_run(served, picture, tiny_pipeline, tmp_path):
    path = upload(served, picture(), "a b#.png")
    event, data = call(served, file_data(path, "a b#.png"), -50, 2, 5)
    assert event == "complete"
    received = served.get(data[0]["url"].replace("http://localhost", "")).content
    source = tmp_path / "a b#.png"
    source.write_bytes(picture())
    sampling = tiny_pipeline.configure(upscale=2, seed=5, lsa={"preset": "fidelity"})
    assert (
        upscale_file(
            tiny_pipeline, Job(str(source), source.name, str(tmp_path / "o.png")), sampling, OutputConfig()
        ).error
        is None
    )
    assert received == (tmp_path / "o.png").read_bytes()


@pytest.mark.parametrize(
    "quoted", ["/etc/passwd", "%2Fetc%2Fpasswd", "../../../../etc/passwd", "pyproject.toml"]
)
def test_files_of_the_server_cannot_be_read(served, quoted):
    for route in ("/gradio_api/file=", "/file=", "/gradio_api/file/", "/static/", "/assets/", "/svelte/"):
        response = served.get(route + quoted)
        assert response.status_code in (403, 404), route + quoted
        assert "root:" not in response.text


def test_files_of_the_server_are_no_pictures(served, tmp_path, picture):
    secret = tmp_path / "secret.png"
    secret.write_bytes(picture())
    for path in (str(secret), "/etc/passwd", f"{served.server.service.storage.root}/page/../../secret.png"):
        assert call(served, file_data(path), 0, 4, 0)[0] == 403
        for route in ("queue/join", "run/upscale", "api/upscale"):
            body = {"data": [[{"deep": file_data(path)}], 0, 4, 0], "fn_index": 0, "session_hash": "x"}
            assert served.post(f"/gradio_api/{route}", json=body).status_code == 403


@pytest.mark.parametrize(
    "scheme", ["http://127.0.0.1:9/a.png", "https://example.org/a.png", "HTTP://x/a.png"]
)
def test_addresses_are_not_fetched(served, scheme):
    assert call(served, file_data(scheme), 0, 4, 0)[0] == 403
    assert served.get("/gradio_api/file=" + scheme).status_code in (403, 404)
    assert served.get("/gradio_api/proxy=" + scheme).status_code == 403


def test_what_is_no_picture_is_an_error_without_traceback(served, picture):
    for content in (b"hello", picture()[:100]):
        response = served.post(
            "/gradio_api/call/upscale", json={"data": [file_data(upload(served, content)), 0, 4, 0, None]}
        )
        text = served.get(f"/gradio_api/call/upscale/{response.json()['event_id']}").text
        assert "event: error" in text
        assert "photo.png" in text
        assert "Traceback" not in text
        assert str(served.server.service.storage.root) not in text
    assert served.server.service.queue.counts() == (0, 0)


def test_client_api_takes_the_settings_of_the_http_api(served, picture):
    content, settings = picture(), {"steps": 2, "lsa.ela_end": 0.5, "format": "jpg", "quality": 60}
    event, data = call(served, file_data(upload(served, content)), 0, 2, 3, settings)
    assert event == "complete"
    received = served.get(data[0]["url"].replace("http://localhost", ""))
    posted = served.post(
        "/v1/upscale", files={"file": ("photo.png", content)}, data={**settings, "upscale": 2, "seed": 3}
    )
    assert posted.status_code == 200
    assert received.content == posted.content
    assert data[0]["orig_name"] == "photo_x2.jpg"


@pytest.mark.parametrize("settings", [{"stepz": 3}, {"steps": -1}, {"negative_prompt": "blurry"}, [3]])
def test_client_api_names_what_it_does_not_accept(served, picture, settings):
    body = {"data": [file_data(upload(served, picture())), 0, 2, 3, settings]}
    started = served.post("/gradio_api/call/upscale", json=body).json()
    text = served.get(f"/gradio_api/call/upscale/{started['event_id']}").text
    assert "event: error" in text
    assert (next(iter(settings)) if isinstance(settings, dict) else "settings: must") in text


def test_page_hides_the_prompt_of_a_model_without_text(served):
    shown = [part["props"] for part in served.get("/config").json()["components"]]
    (box,) = [props for props in shown if props.get("label") == "Negative prompt"]
    assert box["visible"] is False
    defaults = served.server.service.upscaler.pipeline.defaults
    (steps,) = [props for props in shown if props.get("label") == "Steps"]
    assert steps["value"] == defaults.steps


def test_page_names_no_font_or_script_of_elsewhere(served):
    response = served.get("/")
    policy = response.headers["content-security-policy"]
    assert policy.startswith("default-src 'self' ")
    assert "http" not in policy
    head = response.text.partition("</head>")[0]
    for tag in ('src="http', 'href="http'):
        assert tag not in head.replace("http://localhost", "")
