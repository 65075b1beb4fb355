"""`clearsr batch` with workers that are killed by their pid: nothing is lost or done twice."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from clearsr.models.checkpoint import sha256_of

PICTURES, CORRUPT = 200, (3, 50, 99, 120, 180)
SETTINGS = ("--start", "noise", "--steps", "2", "--seed", "5", "--device", "cpu")


@pytest.fixture
def pictures(photo, tmp_path):
    """200 small pictures in four folders, five of them damaged."""
    for number in range(PICTURES):
        path = photo(f"in/{number % 4}/{number:03}.png", 16 + number % 3, 20)
        if number in CORRUPT:
            path.write_bytes(path.read_bytes()[:70])
    return tmp_path / "in"


def batch_command(pictures, out, model, *pool):
    own = ("batch", pictures, "-o", out, "--model", model, "--threads-per-worker", "1")
    return [sys.executable, "-m", "clearsr", *own, *pool, *SETTINGS]


def rows_so_far(manifest):
    lines = manifest.read_bytes().splitlines(keepends=True) if manifest.exists() else []
    return [json.loads(line) for line in lines if line.endswith(b"\n")]


def kill_a_worker(process, manifest, at, spared=()):
    """When there are `at` rows, end the worker that wrote the last; returns it."""
    while True:
        assert process.poll() is None, process.communicate()
        rows = [row for row in rows_so_far(manifest) if row["worker"] not in spared]
        if len(rows) >= at:
            worker = rows[-1]["worker"]
            os.kill(int(worker.rpartition(":")[2]), signal.SIGKILL)
            return worker
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("engine", ["ray", "local"])
def test_workers_die_and_all_is_there_once(engine, pictures, model, upscale, tmp_path):
    if engine == "ray":
        pytest.importorskip("ray")
    out = tmp_path / "out"
    command = batch_command(pictures, out, model, "--engine", engine, "--workers", "2")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    first = kill_a_worker(process, out / "manifest.jsonl", 20)
    # With both gone, the run can only end if one at least was replaced.
    kill_a_worker(process, out / "manifest.jsonl", 20, spared=[first])
    output, errors = process.communicate()
    assert process.returncode == 1
    assert len(output.splitlines()) == PICTURES - len(CORRUPT)
    assert "195 ok, 0 skipped, 5 failed" in errors

    rows = rows_so_far(out / "manifest.jsonl")
    assert sorted(row["input"] for row in rows) == sorted(map(str, pictures.rglob("*.png")))
    failed = {row["input"]: row["error"] for row in rows if row["status"] == "failed"}
    assert sorted(failed) == sorted(str(pictures / f"{n % 4}/{n:03}.png") for n in CORRUPT)
    assert all(error.startswith(f"{name}: is damaged or incomplete") for name, error in failed.items())

    upscale(pictures, "-o", tmp_path / "expected", *SETTINGS)
    expected = {p.relative_to(tmp_path / "expected"): p for p in (tmp_path / "expected").rglob("*.*")}
    assert len(expected) == PICTURES - len(CORRUPT)
    made = {path.relative_to(out): path for path in out.rglob("*.*") if path.parent != out}
    assert {name: path.read_bytes() for name, path in made.items()} == {
        name: path.read_bytes() for name, path in expected.items()
    }
    assert {row["output"]: row["sha256"] for row in rows if row["status"] == "ok"} == {
        str(path): sha256_of(path) for path in made.values()
    }

    before = (out / "manifest.jsonl").read_bytes(), {path: path.stat().st_mtime_ns for path in made.values()}
    again = subprocess.run(command, capture_output=True, text=True)
    assert (again.returncode, again.stdout) == (1, "")
    assert "200 done by an earlier run (195 ok, 0 skipped, 5 failed" in again.stderr
    assert before == (
        (out / "manifest.jsonl").read_bytes(),
        {path: path.stat().st_mtime_ns for path in made.values()},
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_run_goes_on_where_it_was(pictures, model, tmp_path):
    out = tmp_path / "out"
    command = batch_command(pictures, out, model, "--engine", "local", "--workers", "2")
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(rows_so_far(out / "manifest.jsonl")) < 50:
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    kept = rows_so_far(out / "manifest.jsonl")
    times = {row["output"]: os.stat(row["output"]).st_mtime_ns for row in kept if row["status"] == "ok"}
    subprocess.run(command, capture_output=True)
    rows = rows_so_far(out / "manifest.jsonl")
    assert rows[: len(kept)] == kept
    assert sorted(row["input"] for row in rows) == sorted(map(str, pictures.rglob("*.png")))
    assert {path: os.stat(path).st_mtime_ns for path in times} == times
    assert not list(out.rglob(".clearsr-*"))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_machine_of_a_cluster_is_lost(pictures, model, tmp_path):
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    out = tmp_path / "out"
    size = {"num_cpus": 1, "object_store_memory": 100_000_000}
    cluster = Cluster(initialize_head=True, head_node_args=size)
    try:
        lost = cluster.add_node(**size)
        command = batch_command(pictures, out, model, "--address", cluster.address)
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        while len({row["worker"] for row in rows_so_far(out / "manifest.jsonl")}) < 2:
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        cluster.remove_node(lost, allow_graceful=False)
        assert len(rows_so_far(out / "manifest.jsonl")) < PICTURES
        process.communicate()
    finally:
        cluster.shutdown()
    rows = rows_so_far(out / "manifest.jsonl")
    assert sorted(row["input"] for row in rows) == sorted(map(str, pictures.rglob("*.png")))
    assert sum(row["status"] == "ok" for row in rows) == PICTURES - len(CORRUPT)
