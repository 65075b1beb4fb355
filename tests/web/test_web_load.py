"""A real server under 50 clients at once, then told to stop: bounded memory, an answer for all."""

import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

httpx = pytest.importorskip("httpx", reason="httpx is not installed")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

CLIENTS = 50
GROWTH = 400e6  # bytes; 50 clients' uploads alone would be 50·8 MB, their decoded pictures more


def resident(process):
    status = Path(f"/proc/{process.pid}/status")
    if not status.exists():
        pytest.skip("no /proc here to read a process's memory from")
    return int(status.read_text().split("VmRSS:")[1].split()[0]) * 1024


def test_fifty_clients(run_server, picture):
    good, padding = picture(64, 64), bytes(8_000_000)
    with run_server("--queue", "4", "--api-only", "--max-upload-mb", "10") as (address, process):
        url = f"{address}v1/upscale"

        def post(number):
            # Valid, huge, no picture, oversize: every kind at once.
            content = (good, good + padding, b"no picture", padding + padding)[number % 4]
            return httpx.post(url, files={"file": ("a.png", content)}, data={"upscale": "2"}, timeout=120)

        assert post(0).status_code == 200
        query = {"picture_width": 64, "picture_height": 64}
        while "seconds" not in httpx.get(f"{address}v1/estimate", params=query, timeout=60).json():
            time.sleep(0.1)  # until it has measured itself, which takes memory, too
        before, peak, done = resident(process), 0, threading.Event()

        def look():
            nonlocal peak
            while not done.wait(0.02):
                peak = max(peak, resident(process))

        watcher = threading.Thread(target=look)
        watcher.start()
        with ThreadPoolExecutor(CLIENTS) as pool:
            responses = list(pool.map(post, range(CLIENTS)))
        done.set()
        watcher.join()
        counts = Counter(response.status_code for response in responses)
        assert set(counts) <= {200, 400, 413, 429}, counts
        assert counts[200] >= 1
        assert counts[429] >= 1
        assert counts[413] >= 1
        for response in responses:
            if response.status_code == 200:
                assert response.headers["content-type"] == "image/png"
            else:
                assert response.json()["error"]["status"] == response.status_code
                assert "Traceback" not in response.text
        assert all(int(r.headers["retry-after"]) > 0 for r in responses if r.status_code == 429)
        assert peak - before < GROWTH
        assert post(0).status_code == 200
        assert resident(process) < 1.05 * before
        health = httpx.get(f"{address}healthz").json()
        assert (health["status"], health["running"], health["waiting"]) == ("ok", 0, 0)


def test_a_client_that_leaves_frees_its_place(run_server, picture):
    with run_server("--queue", "0", "--api-only") as (address, _):
        httpx.get(f"{address}v1/settings", timeout=60)  # waits for the model
        url, content = f"{address}v1/upscale", picture(400, 300)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(url, files={"file": ("a.png", content)}, data={"steps": "100"}, timeout=2)
        end = time.monotonic() + 20
        while httpx.get(f"{address}healthz").json()["running"] and time.monotonic() < end:
            time.sleep(0.1)
        small = {"file": ("a.png", picture())}
        assert httpx.post(url, files=small, timeout=60).status_code == 200


def test_told_to_stop_it_answers_who_waits_and_leaves_nothing(run_server, picture):
    with run_server("--queue", "2", "--api-only") as (address, process):
        url, content = f"{address}v1/upscale", picture(400, 300)

        def post(_):
            return httpx.post(url, files={"file": ("a.png", content)}, data={"steps": "100"}, timeout=60)

        with ThreadPoolExecutor(2) as pool:
            waiting = [pool.submit(post, n) for n in range(2)]
            end = time.monotonic() + 20
            while not httpx.get(f"{address}healthz").json()["running"] and time.monotonic() < end:
                time.sleep(0.05)
            process.send_signal(signal.SIGTERM)
            responses = [future.result(60) for future in waiting]
        assert [response.status_code for response in responses] == [503, 503]
        assert {response.json()["error"]["code"] for response in responses} == {"shutting_down"}
        _, said = process.communicate(timeout=30)
        assert process.returncode == 0
        assert "Traceback" not in said
