"""What a hostile client may try: slow requests, bombs, forged pages, routes that are not for it."""

import asyncio
import hmac
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from clearsr.config.base import build_config
from clearsr.config.serving import ServingConfig
from clearsr.web import access
from clearsr.web import server as connections
from clearsr.web.bodies import Bodies

TOKEN = "a-long-enough-secret"


def test_secrets_are_compared_in_constant_time(serve, monkeypatch):
    compared = []
    real = hmac.compare_digest
    monkeypatch.setattr(access.hmac, "compare_digest", lambda a, b: compared.append((a, b)) or real(a, b))
    with serve(token=TOKEN, host="0.0.0.0") as client:
        client.get("/metrics", headers={"Authorization": "Bearer guess"})
        client.get("/metrics", headers={"Cookie": f"{access.COOKIE}=guess"})
        client.post("/login", data={"token": "guess"})
    assert [a for a, _ in compared] == [b"guess"] * 3
    assert {b for _, b in compared} == {TOKEN.encode(), access._session(TOKEN).encode()}


def test_a_page_of_another_port_cannot_use_the_cookie(serve):
    with serve(token=TOKEN, host="0.0.0.0") as client:
        client.post("/login", data={"token": TOKEN})
        for origin, status in [
            ("http://localhost", 200),
            ("http://localhost:3000", 403),
            ("http://evil.example", 403),
            ("null", 403),
        ]:
            assert client.get("/metrics", headers={"Origin": origin}).status_code == status, origin
        forwarded = {"Origin": "https://pictures.example", "X-Forwarded-Host": "pictures.example"}
        assert client.get("/metrics", headers=forwarded).status_code == 200
        preflight = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
        client.cookies.clear()
        response = client.options("/v1/upscale", headers=preflight)
        assert response.status_code == 401
        assert "access-control-allow-origin" not in response.headers


def test_no_other_page_is_allowed_in_by_cors(serve):
    with serve(with_page=True) as client:
        for path in ("/", "/v1/settings", "/v1/upscale"):
            response = client.get(path, headers={"Origin": "http://evil.example"})
            assert response.status_code == 403
            assert "access-control-allow-origin" not in response.headers


def test_multipart_bombs(serve, picture):
    with serve() as client:
        root = client.server.service.spool.root
        many_fields = {f"field{n}": (None, "x") for n in range(2000)}
        many_files = [("file", ("a.png", picture())) for _ in range(50)]
        for files in (many_fields, many_files):
            response = client.post("/v1/upscale", files=files)
            assert response.status_code == 400
            assert response.json()["error"]["code"] == "bad_request"
        long_header = b'--x\r\nContent-Disposition: form-data; name="' + b"a" * 500_000
        response = client.post(
            "/v1/upscale", content=long_header, headers={"content-type": "multipart/form-data; boundary=x"}
        )
        assert response.status_code in (400, 422)
        large_field = client.post("/v1/upscale", files={"lsa": (None, "a" * 3_000_000)})
        assert large_field.status_code == 400
        assert [path for path in root.rglob("*") if path.name != "lock"] == []
        assert client.server.service.queue.counts() == (0, 0)


def test_names_of_uploads_lead_nowhere(serve, picture):
    with serve() as client:
        root = client.server.service.spool.root
        for name in ("../../../escaped.png", "/tmp/escaped.png", "..\\escaped.png"):
            response = client.post("/v1/jobs", files={"file": (name, picture())})
            assert response.json()["name"] == "escaped.png"
        assert len([path for path in root.rglob("escaped.png")]) >= 1
        assert not (root.parent / "escaped.png").exists()


@pytest.mark.parametrize("route", ["/v1/upscale", "/v1/jobs", "/v1/comparisons", "/v1/look"])
def test_names_that_are_ours_or_no_text(serve, picture, route):
    with serve() as client:
        for name in ("result", "copy-0", "cell-0.png", "look.png", "source", "a\nb.png", "x" * 300):
            response = client.post(route, files={"file": (name, picture())})
            assert response.status_code in (200, 201), name
        body = b'--x\r\nContent-Disposition: form-data; name="file"; filename="\\ud800.png"\r\n\r\n'
        headers = {"content-type": "multipart/form-data; boundary=x; charset=unicode_escape"}
        response = client.post(route, content=body + picture() + b"\r\n--x--\r\n", headers=headers)
        assert response.status_code in (200, 201)


@pytest.mark.parametrize(
    "quoted", ["/etc/passwd", "%2Fetc%2Fpasswd", "../../../../etc/passwd", "..%2f..%2fetc/passwd"]
)
def test_files_of_the_server_cannot_be_read(serve, quoted):
    with serve(with_page=True) as client:
        for route in ("/page/", "/v1/examples/", "/v1/jobs/", "/", "/static/", "/file="):
            response = client.get(route + quoted)
            assert response.status_code == 404, route + quoted
            assert "root:" not in response.text


async def drip(app, path, headers=()):
    """The messages that a client gets who sends the beginning of a body, and then nothing."""
    first, sent = [{"type": "http.request", "body": b"--x\r\n", "more_body": True}], []

    async def receive():
        if first:
            return first.pop()
        await asyncio.sleep(60)

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "path": path,
        "raw_path": path.encode(), "query_string": b"", "root_path": "", "scheme": "http",
        "headers": [(b"host", b"localhost"), *headers], "server": ("localhost", 80), "client": ("1.1.1.1", 1),
    }  # fmt: skip
    await asyncio.wait_for(app(scope, receive, send), 20)
    return sent


@pytest.mark.parametrize("path", ["/v1/upscale", "/v1/jobs", "/v1/comparisons", "/v1/look", "/login"])
def test_a_body_that_does_not_come(serve, path):
    kind = b"multipart/form-data; boundary=x"
    token = TOKEN if path == "/login" else None
    with serve(upload_seconds=0.3, token=token) as client:
        start = time.monotonic()
        length = (b"content-length", b"100")
        sent = asyncio.run(drip(client.server.app, path, [(b"content-type", kind), length]))
        assert time.monotonic() - start < 15
        assert sent[0]["status"] == 408
        assert client.server.service.queue.counts() == (0, 0)


def test_a_request_may_take_longer_than_its_upload(serve, picture):
    with serve(upload_seconds=0.5) as client:
        queue, free = client.server.service.queue, threading.Event()
        ticket = queue.reserve()
        queue.start(ticket, lambda _: free.wait(20))
        threading.Timer(1.5, free.set).start()
        assert client.post("/v1/upscale", files={"file": ("a.png", picture())}).status_code == 200


@contextmanager
def running(app):
    """Within the block there is uvicorn with our protocol, at this port."""
    import uvicorn

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        options = uvicorn.Config(app, log_config=None, lifespan="off", http=connections.PatientProtocol)
        server = uvicorn.Server(options)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.02)
        yield listener.getsockname()[1]
        server.should_exit = True
        thread.join(20)


@pytest.fixture
def plain_server(monkeypatch):
    """The port of a server that is patient for a second."""
    monkeypatch.setattr(connections, "HEADER_SECONDS", 1.0)

    async def app(scope, receive, send):
        await asyncio.sleep(2)  # longer than headers may take
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    with running(app) as port:
        yield port


def test_who_sends_too_much_hears_so():
    """A connection that is closed while a client still sends takes the answer with it."""
    httpx = pytest.importorskip("httpx", reason="httpx is not installed")
    with running(Bodies(None, build_config(ServingConfig, {"max_upload_mb": 0.1}))) as port:

        def send(_):
            return httpx.post(f"http://127.0.0.1:{port}/", content=bytes(4_000_000), timeout=60)

        with ThreadPoolExecutor(25) as pool:
            answers = list(pool.map(send, range(150)))
        assert {(answer.status_code, answer.json()["error"]["code"]) for answer in answers} == {
            (413, "too_large")
        }


def test_who_goes_on_sending_is_cut_off(monkeypatch):
    monkeypatch.setattr(connections, "HEADER_SECONDS", 1.0)
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000000\r\n\r\n"
    with running(Bodies(None, build_config(ServingConfig, {"max_upload_mb": 0.1}))) as port:
        end = time.monotonic() + 30
        with (
            socket.create_connection(("127.0.0.1", port), timeout=20) as client,
            pytest.raises(ConnectionError),
        ):
            client.sendall(head)
            while time.monotonic() < end:
                client.sendall(bytes(1000))
                time.sleep(0.01)


@pytest.mark.parametrize("beginning", [b"", b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: "])
def test_headers_that_do_not_come(plain_server, beginning):
    with socket.create_connection(("127.0.0.1", plain_server), timeout=20) as client:
        client.sendall(beginning)
        assert client.recv(1000) == b""  # closed


def test_a_request_that_has_come_has_time(plain_server):
    with socket.create_connection(("127.0.0.1", plain_server), timeout=20) as client:
        for _ in range(2):
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert client.recv(1000).startswith(b"HTTP/1.1 204")


def test_a_limit_for_uploads_is_there_by_default():
    assert build_config(ServingConfig, {}).upload_seconds <= 60
