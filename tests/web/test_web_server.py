"""The process of `clearsr serve`: an open door before the model is there, and an end within three seconds."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

httpx = pytest.importorskip("httpx", reason="httpx is not installed")

LIGHT = """
import sys
import clearsr.cli.serve, clearsr.web.server
print(sorted({"torch", "numpy", "PIL", "transformers", "diffusers"} & sys.modules.keys()))
"""
END_SECONDS = 3.0


@pytest.fixture
def spool(tmp_path, monkeypatch):
    """A temporary folder that the server has for itself; in it there is its spool."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


def launch(*flags, model="compact"):
    command = [
        sys.executable,
        "-m",
        "clearsr",
        "serve",
        "--model",
        str(model),
        "--device",
        "cpu",
        "--port",
        "0",
    ]
    return subprocess.Popen(
        [*command, *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def address_of(process):
    line = process.stdout.readline()
    found = re.fullmatch(r"serving at (http://\S+/) \(Ctrl-C stops\)\n", line)
    assert found, line
    return found[1]


def ended(process, number=signal.SIGTERM):
    """Send a signal; the code, what was said, and the seconds until the process was gone."""
    start = time.monotonic()
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    return process.returncode, said, time.monotonic() - start


def test_the_door_opens_before_torch_is_imported():
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_it_answers_while_the_model_is_loaded_and_what_comes_then_waits(picture, model_folder):
    process = launch(model=model_folder)
    try:
        address = address_of(process)
        health = httpx.get(f"{address}healthz").json()
        assert health["status"] == "loading"
        assert "<title>ClearSR" in httpx.get(address).text
        response = httpx.post(f"{address}v1/upscale", files={"file": ("a.png", picture())}, timeout=60)
        assert response.status_code == 200
        assert httpx.get(f"{address}healthz").json()["status"] == "ok"
    finally:
        code, said, _ = ended(process)
    assert code == 0
    assert said.splitlines()[0] == "clearsr: starting"


def test_a_model_that_is_none_ends_it_with_one_line(tmp_path, spool):
    process = launch(model=tmp_path / "nothing-there")
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert said.count("error: ") == 1 and "nothing-there" in said and "Traceback" not in said
    assert list(spool.iterdir()) == []


@pytest.mark.parametrize(
    "moment", ["at the first line", "as it listens", "while it loads", "when it is ready"]
)
def test_told_to_stop_at_any_moment(moment, spool, model_folder):
    process = launch(model=model_folder)
    if moment == "at the first line":
        assert process.stderr.readline() == "clearsr: starting\n"
    else:
        address = address_of(process)
        if moment == "while it loads":
            time.sleep(0.7)
        elif moment == "when it is ready":
            httpx.get(f"{address}v1/settings", timeout=60)
    code, said, seconds = ended(process)
    assert seconds < END_SECONDS
    assert "Traceback" not in said
    assert code in ((0, 143) if moment == "at the first line" else (0,))
    assert list(spool.iterdir()) == []


def test_told_to_stop_while_a_picture_is_sent_and_one_is_worked_on(spool, model_folder, picture):
    process = launch(model=model_folder)
    address = address_of(process)
    httpx.get(f"{address}v1/settings", timeout=60)
    answers = []

    def work():
        content, settings = picture(400, 300), {"steps": "100"}
        url = f"{address}v1/upscale"
        answers.append(httpx.post(url, files={"file": ("a.png", content)}, data=settings, timeout=60))

    worker = threading.Thread(target=work)
    worker.start()
    while not httpx.get(f"{address}healthz").json()["running"]:
        time.sleep(0.05)
    port = int(address.rstrip("/").rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=30) as sending:
        head = "POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n"
        sending.sendall(f"{head}Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n".encode())
        time.sleep(0.3)
        code, said, seconds = ended(process)
        answer = sending.recv(10_000).decode()
    worker.join(30)
    assert answer.startswith("HTTP/1.1 503") and '"shutting_down"' in answer
    assert answers[0].status_code == 503
    assert (code, seconds < END_SECONDS, "Traceback" in said) == (0, True, False)
    assert list(spool.iterdir()) == []


def test_events_end_with_the_server(model_folder, spool, picture):
    process = launch(model=model_folder)
    address = address_of(process)
    files = {"file": ("a.png", picture(400, 300))}
    job = httpx.post(f"{address}v1/jobs", files=files, data={"steps": "100"}, timeout=60).json()
    with httpx.stream("GET", address.rstrip("/") + job["events"], timeout=60) as events:
        lines = events.iter_lines()
        assert any(line == "event: step" for line in lines)
        threading.Thread(target=lambda: process.send_signal(signal.SIGTERM)).start()
        assert any('"shutting_down"' in line for line in lines)
    process.communicate(timeout=30)
    assert process.returncode == 0


def test_killed_in_the_middle_and_started_again_it_leaves_nothing(spool, model_folder, picture):
    process = launch(model=model_folder)
    address = address_of(process)
    files = {"file": ("a.png", picture(400, 300))}
    httpx.post(f"{address}v1/jobs", files=files, data={"steps": "100"}, timeout=60)
    assert list(spool.rglob("a.png"))
    process.kill()
    process.communicate()
    assert list(spool.rglob("a.png"))  # nobody could
    second = launch(model=model_folder)
    address_of(second)
    assert not list(spool.rglob("a.png"))
    assert len(list(spool.iterdir())) == 1
    ended(second)
    assert list(spool.iterdir()) == []
