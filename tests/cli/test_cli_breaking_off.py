"""Runs broken off, or whose surroundings fail: nothing is lost, halved or done twice, and it is said."""

import errno
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clearsr.atomic import written_aside
from clearsr.pipeline.pipeline import ClearSRPipeline

_COUNT = 24


def _command(model, tmp_path, *more):
    common = ["--model", model, "--device", "cpu", "--precision", "fp32"]
    arguments = ["upscale", tmp_path / "in", "-o", tmp_path / "out", *common, *more]
    return [str(part) for part in (sys.executable, "-m", "clearsr", *arguments)]


def _outputs(folder):
    """The visible files of a folder and their bytes."""
    if not folder.is_dir():
        return {}
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


def _wait_for_outputs(folder, count, process):
    deadline = time.monotonic() + 120
    while len(_outputs(folder)) < count and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def pictures(photo):
    for index in range(_COUNT):
        photo(f"in/{index:02d}.png", 24 + index, 32)


@pytest.mark.slow
def test_kill_at_random_moments_loses_and_doubles_nothing(pictures, model, tmp_path):
    options = ("--start", "noise", "--color", "none", "--steps", "2", "--upscale", "4")
    subprocess.run(_command(model, tmp_path, *options), check=True, capture_output=True)
    whole = _outputs(tmp_path / "out")
    assert len(whole) == _COUNT
    (tmp_path / "out").rename(tmp_path / "whole")
    draw, kills = random.Random(0), 0
    for goal in (1, 6, 11, 16):
        process = subprocess.Popen(_command(model, tmp_path, *options), stdout=subprocess.DEVNULL)
        _wait_for_outputs(tmp_path / "out", goal, process)
        time.sleep(0.05 * draw.random())
        before = process.poll()
        process.kill()
        process.wait()
        kills += before is None
        for name, content in _outputs(tmp_path / "out").items():
            assert content == whole[name]  # whole, and what an undisturbed run writes
    assert kills >= 3
    done = len(_outputs(tmp_path / "out"))
    last = subprocess.run(_command(model, tmp_path, *options), capture_output=True, text=True)
    assert last.returncode == 0
    assert last.stderr.splitlines()[-1] == f"{_COUNT - done} upscaled, {done} skipped, 0 failed"
    assert _outputs(tmp_path / "out") == whole


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM to send")
def test_sigterm_ends_in_order(pictures, model, tmp_path):
    process = subprocess.Popen(
        _command(model, tmp_path, "--steps", "20"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    _wait_for_outputs(tmp_path / "out", 1, process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143
    assert err.splitlines()[-1] == "clearsr: error: terminated" and "Traceback" not in err
    files = list((tmp_path / "out").iterdir())
    assert 1 <= len(files) < _COUNT and not [file for file in files if file.name.startswith(".")]


def test_sigterm_is_exit_code_143_and_its_handler_is_put_back(run, monkeypatch):
    before = signal.getsignal(signal.SIGTERM)

    def stop(_args):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    monkeypatch.setattr("clearsr.cli.doctor.run", stop)
    outcome = run("doctor")
    assert (outcome.code, outcome.err) == (143, "clearsr: error: terminated\n")
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_input_that_vanishes_costs_itself_alone(upscale, photo, tmp_path, monkeypatch):
    photo("in/a.png")
    gone = photo("in/b.png")
    load = ClearSRPipeline.from_pretrained

    def remove_and_load(*arguments, **options):
        gone.unlink()
        return load(*arguments, **options)

    monkeypatch.setattr(ClearSRPipeline, "from_pretrained", remove_and_load)
    outcome = upscale(tmp_path / "in", "-o", tmp_path / "out")
    assert outcome.code == 1
    assert outcome.errors == [f"clearsr: error: {gone}: does not exist"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.png"]


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EROFS, "read-only file system"),
        (errno.EIO, "input/output error"),
    ],
)
def test_a_failing_disk_is_said_and_leaves_nothing(upscale, photo, tmp_path, monkeypatch, number, says):
    photo("in/a.png")
    photo("in/b.png")
    place = os.replace

    def refuse(source, target):
        if Path(target).name == "a.png":
            raise OSError(number, os.strerror(number))
        place(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    outcome = upscale(tmp_path / "in", "-o", tmp_path / "out")
    assert outcome.code == 1
    assert outcome.errors == [f"clearsr: error: {tmp_path / 'out/a.png'}: cannot be written: {says}"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["b.png"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such limit")
def test_a_file_that_the_system_will_not_let_grow_is_an_error_and_no_file(upscale, photo, tmp_path):
    import resource

    source = photo("a.png", 60, 60)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        outcome = upscale(source, "-o", tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert outcome.code == 1
    assert outcome.errors == [f"clearsr: error: {tmp_path / 'out/a.png'}: cannot be written: file too large"]
    assert list((tmp_path / "out").iterdir()) == []


def test_unknown_keys_of_a_configuration_file_are_refused(upscale, photo, tmp_path):
    (tmp_path / "mine.yaml").write_text("steps: 2\nlsa:\n  alhpa: 0.1\n")
    outcome = upscale(photo("a.png"), "--config", tmp_path / "mine.yaml", "-o", tmp_path / "out")
    assert outcome.code == 2
    assert "lsa.alhpa: unknown key; did you mean alpha?" in outcome.err and "mine.yaml" in outcome.err
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such locks")
@pytest.mark.parametrize("command", ["upscale", "batch", "degrade"])
def test_a_later_run_removes_what_a_killed_one_left(run, model, photo, tmp_path, command):
    with written_aside(tmp_path / "x") as aside:
        name = aside.name
    (tmp_path / "x").unlink()
    photo("in/b/a.png")
    left, young = tmp_path / "out" / "b" / name, tmp_path / "out" / "b" / name.replace(name[-9:], "00000.tmp")
    left.parent.mkdir(parents=True)
    for path in (left, young):
        path.write_bytes(b"half")
    os.utime(left, (1, 1))
    more = {
        "upscale": ["--model", model, "--device", "cpu", "--steps", "0"],
        "batch": ["--model", model, "--device", "cpu", "--steps", "0", "--engine", "local", "--workers", "1"],
        "degrade": [],
    }
    outcome = run(command, tmp_path / "in", "-o", tmp_path / "out", *more[command])
    assert outcome.code == 0, outcome.err
    assert sorted(path.name for path in left.parent.iterdir()) == [young.name, "a.png"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such limit")
@pytest.mark.parametrize(
    "command",
    [
        ["degrade", "{in}", "-o", "{out}", "--upscale", "1", "--preset", "bicubic"],
        ["data", "make-testset", "{in}", "-o", "{out}"],
        ["data", "check", "{in}", "--shards", "{out}", "--crop", "64"],
        ["evaluate", "--lr", "{in}", "--model", "none", "--baselines", "bicubic", "--measures", "niqe"]
        + ["--save", "{out}"],
        ["batch", "{in}", "-o", "{out}", "--engine", "local", "--workers", "1", "--steps", "0"]
        + ["--manifest", "{manifest}"],
    ],
    ids=lambda command: "-".join(command[:2]) if command[0] == "data" else command[0],
)
def test_a_full_disk_is_one_line_and_leaves_nothing_half(run, tmp_path, command):
    import resource

    (tmp_path / "in").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "in" / "a.png")
    places = {"in": tmp_path / "in", "out": tmp_path / "out", "manifest": tmp_path / "rows.jsonl"}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, limits[1]))
    try:
        outcome = run(*(part.format(**places) for part in command))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert outcome.code == 1, outcome.err
    assert len(outcome.errors) == 1 and "file too large" in outcome.errors[0].lower()
    assert "Traceback" not in outcome.err
    for path in (path for path in (tmp_path / "out").rglob("*") if path.is_file()):
        with Image.open(path) as image:  # the LR half of a pair may be there, whole
            image.load()
        assert not path.name.startswith(".")


def test_a_disk_that_fails_anywhere_is_one_line(run, monkeypatch):
    def fail(_args):
        raise OSError(errno.ENOSPC, "No space left on device", "/some/file")

    monkeypatch.setattr("clearsr.cli.doctor.run", fail)
    outcome = run("doctor")
    assert (outcome.code, outcome.err) == (
        1, "clearsr: error: /some/file: cannot be written: No space left on device\n",
    )  # fmt: skip
