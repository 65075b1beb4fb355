"""Who may come in: tokens, cookies, other web pages, and addresses that are to be fetched."""

import pytest

from clearsr.config.base import build_config
from clearsr.config.serving import ServingConfig
from clearsr.errors import ClearSRError
from clearsr.web.own_files import names_other_file

TOKEN = "a-long-enough-secret"


def test_every_route_but_the_health_check_needs_the_token(serve, picture):
    with serve(token=TOKEN, host="0.0.0.0") as client:
        for path in ("/", "/metrics", "/openapi.json", "/gradio_api/info", "/v1/upscale", "/nowhere"):
            response = client.get(path)
            assert response.status_code == 401, path
            assert response.headers["www-authenticate"] == "Bearer"
        files = {"file": ("a.png", picture())}
        for given in ("Bearer wrong", "Bearer", f"Basic {TOKEN}", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}"):
            response = client.post("/v1/upscale", files=files, headers={"Authorization": given})
            assert response.status_code == 401, given
            assert response.json()["error"]["code"] == "no_token"
        assert client.get("/healthz").status_code == 200
        authorized = {"Authorization": f"Bearer {TOKEN}"}
        assert client.post("/v1/upscale", files=files, headers=authorized).status_code == 200


def test_a_browser_gets_a_form_and_then_a_cookie(serve):
    with serve(token=TOKEN, host="0.0.0.0") as client:
        page = client.get("/", headers={"Accept": "text/html"})
        assert page.status_code == 401
        assert "<form" in page.text
        refused = client.post("/login", data={"token": "wrong-" + TOKEN}, follow_redirects=False)
        assert refused.status_code == 401
        assert "set-cookie" not in refused.headers
        accepted = client.post("/login", data={"token": TOKEN}, follow_redirects=False)
        assert accepted.status_code == 303
        cookie = accepted.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=Strict" in cookie
        assert TOKEN not in cookie
        assert client.get("/metrics").status_code == 200  # the client keeps cookies
        client.cookies.clear()
        client.cookies.set("clearsr_session", "forged")
        assert client.get("/metrics").status_code == 401


def test_other_pages_are_kept_off_a_server_without_a_token(serve, picture):
    with serve() as client:
        assert client.get("/healthz", headers={"Host": "evil.example"}).status_code == 403
        files = {"file": ("a.png", picture())}
        response = client.post("/v1/upscale", files=files, headers={"Origin": "http://evil.example"})
        assert response.status_code == 403
        own = client.post("/v1/upscale", files=files, headers={"Origin": "http://localhost"})
        assert own.status_code == 200
        assert client.get("/healthz", headers={"Host": "[::1]:7860"}).status_code == 200


@pytest.mark.parametrize(
    "values",
    [
        {"host": "0.0.0.0"},
        {"host": "192.168.1.5"},
        {"host": "::"},
        {"host": "0.0.0.0", "token": "short"},
        {"host": "0.0.0.0", "token": TOKEN, "no_auth": True},
        {"host": "0.0.0.0", "token": "ümlaut-in-a-header"},
    ],
)
def test_addresses_that_others_reach_need_a_token(values):
    with pytest.raises(ClearSRError, match=r"token"):
        build_config(ServingConfig, values)


@pytest.mark.parametrize(
    "values",
    [{}, {"host": "localhost"}, {"host": "127.0.0.9"}, {"host": "::1"}, {"host": "0.0.0.0", "no_auth": True}],
)
def test_addresses_that_may_be_used(values):
    assert build_config(ServingConfig, values).host


def test_files_elsewhere_are_seen(tmp_path):
    file = {"path": "https://example.org/a.png", "meta": {"_type": "gradio.FileData"}}
    assert names_other_file({"data": [[file]]}, tmp_path)
    assert names_other_file([{"deep": {"path": " HTTP://10.0.0.1/"}}], tmp_path)
    assert names_other_file({"path": f"{tmp_path}/../a.png"}, tmp_path)
    assert not names_other_file(
        {"data": [{"path": f"{tmp_path}/a.png", "url": "http://localhost/a"}]}, tmp_path
    )
