"""Who may come in: tokens, cookies, other web pages."""

import re

import pytest

from clearsr.config.base import build_config
from clearsr.config.serving import ServingConfig
from clearsr.errors import ClearSRError

TOKEN = "a-long-enough-secret"


def test_every_route_but_the_health_check_needs_the_token(serve, picture):
    with serve(token=TOKEN, host="0.0.0.0") as client:
        for path in (
            "/",
            "/metrics",
            "/openapi.json",
            "/v1/settings",
            "/v1/jobs/x/result",
            "/v1/upscale",
            "/nowhere",
        ):
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
        for headers in ({"Host": "["}, {"Host": "[::1"}, {"Origin": "http://["}):  # no addresses at all
            assert client.get("/healthz", headers=headers).status_code == 403


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


def test_who_guesses_is_not_listened_to_for_a_while(serve):
    with serve(token=TOKEN, host="0.0.0.0") as client:
        right = {"Authorization": f"Bearer {TOKEN}"}
        for number in range(10):
            guess = {"Authorization": f"Bearer guess-{number}"}
            assert client.get("/metrics", headers=guess).status_code == 401
        refused = client.get("/metrics", headers=right)  # else a guess that hits would be seen
        assert refused.status_code == 429
        assert 0 < int(refused.headers["retry-after"]) <= 61
        form = client.post("/login", data={"token": TOKEN}, follow_redirects=False)
        assert (form.status_code, "set-cookie" in form.headers) == (429, False)
        assert "<form" in form.text


def test_right_tokens_are_not_throttled(serve):
    with serve(token=TOKEN, host="0.0.0.0") as client:
        for _ in range(30):
            assert client.get("/metrics", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200


def test_a_token_is_never_echoed(serve):
    with serve(token=TOKEN, host="0.0.0.0") as client:
        right = {"Authorization": f"Bearer {TOKEN}"}
        for path in (
            f"/{TOKEN}",
            f"/v1/{TOKEN}",
            f"/v1/jobs/{TOKEN}",
            f"/v1/examples/{TOKEN}",
            f"/page/{TOKEN}",
        ):
            for headers in ({}, right):
                response = client.get(f"{path}?token={TOKEN}", headers=headers)
                assert response.status_code in (401, 404)
                assert TOKEN not in response.text
        wrong = client.post("/login", data={"token": "not-" + TOKEN})
        assert TOKEN not in wrong.text


def test_what_the_browser_may_load(serve):
    with serve(with_page=True) as client:
        for path in ("/", "/page/clearsr.js", "/v1/settings", "/nowhere"):
            policy = client.get(path).headers["content-security-policy"]
            assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; ")
            assert "unsafe" not in policy and "http" not in policy and "*" not in policy
        page = client.get("/").text
        assert not re.findall(r"""(?:src|href)=["'](?:https?:)?//""", page)
        assert not re.search(r"<script(?! type=.module. src=)|<style| style=| on\w+=", page)
