"""Half-sent requests: they hold no place in the queue, and of each client there are few."""

import asyncio
import time

import pytest

from clearsr.web import bodies
from clearsr.web.jobs import StoppedError


class Client:
    """A request that sends the beginning of a body, and then what `more` gets."""

    def __init__(self, server, address="10.0.0.1", path="/v1/upscale"):
        self.sent, self.more = [], asyncio.Queue()
        self.more.put_nowait({"type": "http.request", "body": b"--x\r\n", "more_body": True})
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "path": path,
            "raw_path": path.encode(), "query_string": b"", "root_path": "", "scheme": "http",
            "headers": [
                (b"host", b"localhost"), (b"content-type", b"multipart/form-data; boundary=x"),
                (b"transfer-encoding", b"chunked"),
            ],
            "server": ("localhost", 80), "client": (address, 1),
        }  # fmt: skip
        self.task = asyncio.create_task(server.app(scope, self.more.get, self.send))

    async def send(self, message):
        self.sent.append(message)

    @property
    def status(self):
        return self.sent[0]["status"] if self.sent else None


@pytest.fixture
def hurried(monkeypatch):
    """What takes 50 ms is slow."""
    monkeypatch.setattr(bodies, "_SLOW_SECONDS", 0.05)


def test_nine_half_sent_uploads_leave_the_queue_free(serve, picture):
    with serve(queue=8) as client:

        async def hold():
            half = [Client(client.server) for _ in range(9)]
            await asyncio.sleep(0.3)
            assert client.server.service.queue.counts() == (0, 0)
            whole = await asyncio.to_thread(
                client.post, "/v1/upscale", files={"file": ("a.png", picture())}, data={"upscale": "1"}
            )
            assert whole.status_code == 200
            assert [one.status for one in half] == [None] * 9
            for one in half:
                one.task.cancel()

        asyncio.run(hold())


def test_slow_ones_of_a_client_are_few_and_others_are_left_alone(serve, hurried):
    with serve() as client:

        async def crowd():
            other = Client(client.server, "10.0.0.2")
            first = [Client(client.server) for _ in range(4)]
            await asyncio.sleep(0.2)
            new = Client(client.server)
            await asyncio.sleep(0.2)
            assert [one.status for one in first] == [408, None, None, None]
            assert (new.status, other.status) == (None, None)
            for one in (new, other, *first):
                one.task.cancel()

        asyncio.run(crowd())


def test_fast_ones_are_not_counted(serve, picture, hurried):
    with serve() as client:
        for _ in range(12):
            assert client.post("/v1/look", files={"file": ("a.png", picture())}).status_code == 200


def test_who_leaves_in_the_middle_is_no_mistake_of_ours(serve):
    with serve() as client:

        async def leave():
            half = Client(client.server)
            await asyncio.sleep(0.2)
            half.more.put_nowait({"type": "http.disconnect"})
            await asyncio.wait_for(half.task, 5)  # an exception would be a traceback in the server's log

        asyncio.run(leave())
        assert 'clearsr_pictures_total{outcome="cancelled"} 1.0' in client.get("/metrics").text


def test_stopping_answers_who_is_still_sending(serve):
    with serve() as client:

        async def stop():
            half = Client(client.server)
            await asyncio.sleep(0.2)
            start = time.monotonic()
            client.server.bodies.close(StoppedError("shutting_down"))
            await asyncio.wait_for(half.task, 5)
            assert time.monotonic() - start < 1
            assert half.status == 503
            assert b'"shutting_down"' in half.sent[1]["body"]

        asyncio.run(stop())
