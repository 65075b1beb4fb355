"""A training killed at random moments and resumed each time ends as if nothing had happened."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from clearsr.config.base import write_yaml
from clearsr.training.engine import fit
from clearsr.training.run_folder import checkpoint_folders

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has neither SIGKILL nor fork")

SETTINGS = {
    "batch_size": 2,
    "ema_decay": 0.9,
    "checkpoint_every": 1,
    "keep_checkpoints": 2,
    "log_every": 1,
    "optimizer": {"schedule": "cosine"},
}
PATIENCE = 600


def rows_of(run):
    path = run / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def timeless(rows):
    return [{name: value for name, value in row.items() if name != "steps_per_second"} for row in rows]


def hidden(run):
    return [path for path in run.rglob("*") if path.name.startswith(".")]


class Fork:
    """The training in a process of its own, which is there at once; has what `Popen` has."""

    def __init__(self, config):
        self.returncode = None
        self.pid = os.fork()
        if self.pid == 0:
            try:
                fit(config, resume="latest")
                os._exit(0)
            except BaseException:
                os._exit(1)

    def poll(self, flags=os.WNOHANG):
        if self.returncode is None:
            done, status = os.waitpid(self.pid, flags)
            self.returncode = os.waitstatus_to_exitcode(status) if done else None
        return self.returncode

    def wait(self):
        return self.poll(0)

    def kill(self):
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


def kill_after(process, run, rows, seconds):
    """Kill it that long after `metrics.jsonl` has so many rows; returns whether it was still there."""
    deadline = time.monotonic() + PATIENCE
    path = run / "metrics.jsonl"
    while process.poll() is None and (not path.exists() or path.read_bytes().count(b"\n") < rows):
        assert time.monotonic() < deadline
        time.sleep(0.002)
    time.sleep(seconds)
    was_there = process.poll() is None
    process.kill()
    process.wait()
    assert process.returncode == (-signal.SIGKILL if was_there else 0)
    return was_there


def assert_nothing_is_half(run, whole_steps, checkpoint_tensors):
    """Each checkpoint that has its name is complete."""
    for folder in checkpoint_folders(run):
        step = json.loads((folder / "state.json").read_text())["step"]
        assert folder.name == f"step-{step:08d}"
        assert checkpoint_tensors(folder).keys() == whole_steps.keys()


def assert_same_end(run, whole, steps, checkpoint_tensors, assert_identical):
    last = f"checkpoints/step-{steps:08d}"
    assert_identical(checkpoint_tensors(run / last), checkpoint_tensors(whole / last))
    assert_identical(checkpoint_tensors(run / "export"), checkpoint_tensors(whole / "export"))
    rows = rows_of(run)
    assert [row["step"] for row in rows] == list(range(1, steps + 1))  # none lost, none twice
    assert timeless(rows) == timeless(rows_of(whole))
    assert [folder.name for folder in checkpoint_folders(run)] == [
        folder.name for folder in checkpoint_folders(whole)
    ]
    assert not hidden(run)


def test_kill_at_random_moments(make_run, checkpoint_tensors, assert_identical):
    steps = 14
    whole = make_run("autoencoder", "whole", steps=steps, **SETTINGS)
    fit(whole)
    names = checkpoint_tensors(whole.output / f"checkpoints/step-{steps:08d}")
    config = make_run("autoencoder", "killed", steps=steps, **SETTINGS)
    draw = random.Random(4)
    kills = 0
    for rows in (1, 4, 7, 10):
        kills += kill_after(Fork(config), config.output, rows, 0.06 * draw.random())
        assert_nothing_is_half(config.output, names, checkpoint_tensors)
    assert kills >= 2
    assert Fork(config).wait() == 0
    assert_same_end(config.output, whole.output, steps, checkpoint_tensors, assert_identical)


@pytest.mark.slow
@pytest.mark.timeout(6 * PATIENCE)
def test_the_command_killed_at_random_moments(
    make_run, photos, tmp_path, checkpoint_tensors, assert_identical
):
    """The same through `clearsr train`, with validation, workers that read ahead, and more steps."""
    steps = 30
    changes = {
        "steps": steps,
        **SETTINGS,
        "validate_every": 4,
        "data": {"workers": 1, "validation": [str(photos)]},
    }
    whole, config = (make_run("clearsr", name, **changes) for name in ("whole", "killed"))
    for one in (whole, config):
        write_yaml(one, tmp_path / f"{one.output.name}.yaml")
    command = [sys.executable, "-m", "clearsr", "train"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run([*command, str(tmp_path / "whole.yaml")], check=True, **quiet)
    names = checkpoint_tensors(whole.output / f"checkpoints/step-{steps:08d}")
    draw, kills = random.Random(1), 0
    resumed = [*command, str(tmp_path / "killed.yaml"), "--resume", "latest"]
    for goal in (0, 5, 12, 19, 26):
        process = subprocess.Popen(resumed, **quiet)
        kills += kill_after(process, config.output, goal, 0.2 * draw.random())
        assert_nothing_is_half(config.output, names, checkpoint_tensors)
    assert kills >= 4
    subprocess.run(resumed, check=True, **quiet)
    assert yaml.safe_load((config.output / "config.yaml").read_text())["steps"] == steps
    ours, theirs = (
        [row for row in timeless(rows_of(one.output)) if row["group"] == "validation"]
        for one in (config, whole)
    )
    assert ours == theirs
    keep_training_rows(config.output)
    keep_training_rows(whole.output)
    assert_same_end(config.output, whole.output, steps, checkpoint_tensors, assert_identical)


def keep_training_rows(run: Path):
    path = run / "metrics.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows_of(run) if row["group"] == "train"))
