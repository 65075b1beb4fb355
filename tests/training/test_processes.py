"""Two processes by torchrun: they agree, they equal one process, and a kill -9 costs nothing but time."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from clearsr.config.base import write_yaml
from clearsr.training.engine import fit
from clearsr.training.run_folder import read_best

DRIVER = Path(__file__).with_name("torchrun_driver.py")
PATIENCE = 240  # seconds for what takes ten on a machine of one's own

pytestmark = [pytest.mark.slow, pytest.mark.timeout(4 * PATIENCE)]


def torchrun(*arguments):
    """Two processes of `arguments`."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, *map(str, arguments)], env=environment, stderr=subprocess.PIPE, text=True
    )


def finish(process):
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors[-3000:]


def losses_of(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if row["group"] == "train"]


@pytest.fixture
def make_two(make_run, tmp_path):
    """`make_two("name")`: a configuration for two processes, and the file that it is in."""

    def make(name):
        config = make_run(
            "clearsr", name, steps=10, batch_size=4, accumulation=2, ema_decay=0.9, checkpoint_every=2,
            log_every=1, keep_checkpoints=9, loss={"prompt_dropout": 0.5},
        )  # fmt: skip
        write_yaml(config, tmp_path / f"{name}.yaml")
        return config, tmp_path / f"{name}.yaml"

    return make


def test_two_processes_agree_and_survive_a_kill(
    make_two, make_run, tmp_path, checkpoint_tensors, assert_identical
):
    whole, file = make_two("whole")
    finish(torchrun(DRIVER, tmp_path, file))
    ranks = [load_file(tmp_path / f"rank-{rank}-of-2.safetensors") for rank in (0, 1)]
    assert_identical(*ranks)
    assert_identical(checkpoint_tensors(whole.output / "checkpoints" / "step-00000010"), ranks[0])

    one = whole.model_copy(update={"output": tmp_path / "one"})
    fit(one)
    assert losses_of(whole.output) == pytest.approx(losses_of(one.output), rel=1e-3)

    killed, file = make_two("killed")
    process = torchrun("-m", "clearsr", "train", file)
    deadline = time.monotonic() + PATIENCE
    while not (killed.output / "checkpoints" / "step-00000004").is_dir():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    for victim in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
        victim.kill()
    process.wait()
    assert not (killed.output / "checkpoints" / "step-00000010").exists()
    (killed.output / "checkpoints" / ".writing-step-00000099.1").mkdir()
    finish(torchrun("-m", "clearsr", "train", file, "--resume", "latest"))
    last = "checkpoints/step-00000010"
    assert_identical(*(checkpoint_tensors(run / last) for run in (killed.output, whole.output)))
    assert not list((killed.output / "checkpoints").glob(".*"))


def test_validation_is_shared_and_finds_what_one_process_finds(make_run, tmp_path, photos):
    """Numbers and pictures bit for bit: three crops for two processes, and one, which leaves nothing."""
    for count in (3, 1):
        config = make_run(
            "clearsr", f"two-{count}", validate_every=1, data={"validation": [str(photos)]},
            validation={"count": count, "crop_size": 32, "sampling": {"steps": 2, "noise_scale": 1.0}},
            optimizer={"learning_rate": 1e-20}, ema_decay=0.0,  # so that both have the same weights
        )  # fmt: skip
        write_yaml(config, tmp_path / f"{count}.yaml")
        finish(torchrun("-m", "clearsr", "train", tmp_path / f"{count}.yaml"))
        one = config.model_copy(update={"output": tmp_path / f"one-{count}"})
        fit(one)
        rows = [
            [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
            for run in (config.output, one.output)
        ]
        found, expected = (
            [
                {k: v for k, v in row.items() if k != "steps_per_second"}
                for row in of
                if row["group"] == "validation"
            ]
            for of in rows
        )
        assert found == expected and len(found) == 2 and "bicubic_psnr" in found[0]
        for name in ("step-00000001.png", "step-00000002.png"):
            assert (config.output / "samples" / name).read_bytes() == (
                one.output / "samples" / name
            ).read_bytes()
        assert read_best(config.output) == read_best(one.output)


@pytest.mark.parametrize("prediction", ["epsilon", "lr_anchored"])
def test_two_processes_are_one_bit_for_bit_if_they_take_as_many_images_at_once(
    make_run, photos, tmp_path, checkpoint_tensors, assert_identical, prediction
):
    """With weights per source, prompts of two lengths of which some are dropped, clipping and averaging."""
    extra = tmp_path / "extra"
    extra.mkdir()
    for number in range(3):
        (extra / f"{number}.png").write_bytes((photos / f"{number}.png").read_bytes())
    sources = [{"path": str(photos), "weight": 0.3}, {"path": str(extra), "weight": 0.7, "crops": 2}]
    runs = []
    for name, accumulation in (("one", 2), ("two", 1)):  # two images at once in either
        config = make_run(
            "clearsr", name, steps=6, batch_size=4, accumulation=accumulation, ema_decay=0.9, log_every=1,
            model={"prediction": prediction}, data={"train": sources, "rotate": True},
            loss={"prompt_dropout": 0.5},
        )  # fmt: skip
        write_yaml(config, tmp_path / f"{name}.yaml")
        runs.append(config.output)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "clearsr", "train", tmp_path / "one.yaml"]
    subprocess.run(command, check=True, env=environment, timeout=PATIENCE)
    finish(torchrun("-m", "clearsr", "train", tmp_path / "two.yaml"))
    one, two = (checkpoint_tensors(run / "checkpoints" / "step-00000006") for run in runs)
    assert_identical(one, two)
    assert losses_of(runs[0]) == losses_of(runs[1])
    if prediction == "epsilon":  # four at once: the same sums in another order, which Adam then enlarges
        fit(config.model_copy(update={"output": tmp_path / "at once"}))
        at_once, apart = losses_of(tmp_path / "at once"), losses_of(runs[1])
        assert at_once[:2] == pytest.approx(apart[:2], rel=1e-6)
        assert at_once != apart and at_once == pytest.approx(apart, rel=1e-2)


@pytest.mark.parametrize("stage", ["painter", "clearsr"])
def test_two_processes_learn_from_pictures_as_one(
    make_run, tmp_path, checkpoint_tensors, assert_identical, realesrgan_wheel, stage
):
    """With an adversary, features, a teacher's pictures, and all that is trained along; bit for bit."""
    along = {"decoder": "overlap", "denoising": 0.1, "decoded": 0.5} if stage == "clearsr" else {}
    two = make_run(
        stage, "two", steps=6, batch_size=4, ema_decay=0.9, log_every=1, loss={"prompt_dropout": 0.5},
        model={"painter": {"blocks": 1}, "autoencoder": {"overlap_channels": 4, "overlap_layers": 1}},
        data={"crop_size": 32}, validation={"sampling": {"steps": 1, "start_timestep": 300}},
        perceptual={
            "features": 0.5, "adversarial": 0.1, "adversarial_ramp": 3, "blocks": [0, 3], **along,
            "teacher": {"labels": str(tmp_path / "labels"), "samples": 10, "share": [1, 0]},
        },
    )  # fmt: skip
    torch.manual_seed(time.time_ns())  # whatever has been drawn before: no part of a run comes from it
    one = two.model_copy(update={"accumulation": 2, "output": tmp_path / "one"})  # two images at once, too
    fit(one)  # makes the teacher's pictures
    write_yaml(two, tmp_path / "two.yaml")
    finish(torchrun(DRIVER, tmp_path, tmp_path / "two.yaml"))
    ranks = [load_file(tmp_path / f"rank-{rank}-of-2.safetensors") for rank in (0, 1)]
    assert any("discriminator" in name for name in ranks[0])
    assert_identical(*ranks)
    assert_identical(checkpoint_tensors(one.output / "checkpoints" / "step-00000006"), ranks[0])
    assert losses_of(one.output) == losses_of(two.output) and len(set(losses_of(one.output))) == 6


@pytest.mark.parametrize("checkpointing", [False, True])
def test_two_processes_compile_as_one_does(
    make_run, tmp_path, checkpoint_tensors, assert_identical, monkeypatch, checkpointing
):
    """Against one that does not, bit for bit: what Dynamo makes of the networks, without inductor."""
    monkeypatch.setenv("COMPILE_BACKEND", "eager")
    two = make_run(
        "clearsr", "two", steps=3, batch_size=4, ema_decay=0.9, log_every=1, loss={"prompt_dropout": 0.5},
        compile=True, gradient_checkpointing=checkpointing,
    )  # fmt: skip
    write_yaml(two, tmp_path / "two.yaml")
    finish(torchrun(DRIVER, tmp_path, tmp_path / "two.yaml"))
    one = two.model_copy(update={"accumulation": 2, "output": tmp_path / "one", "compile": False})
    fit(one)
    ranks = [load_file(tmp_path / f"rank-{rank}-of-2.safetensors") for rank in (0, 1)]
    assert_identical(*ranks)
    assert_identical(checkpoint_tensors(one.output / "checkpoints" / "step-00000003"), ranks[0])


def test_one_process_in_trouble_stops_both_and_says_why(make_two, tmp_path, photos):
    config, file = make_two("broken")
    broken = tmp_path / "photos"
    broken.mkdir()
    for number in range(5):
        (broken / f"{number}.png").write_bytes((photos / f"{number}.png").read_bytes())
    good = (broken / "3.png").read_bytes()
    (broken / "3.png").write_bytes(good[: len(good) // 2])  # its header is whole
    process = torchrun("-m", "clearsr", "train", file, "--set", f"data.train=['{broken}']")
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode != 0
    assert "3.png: is damaged" in errors and "another process cannot go on" in errors
