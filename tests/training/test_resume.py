"""A run that was stopped and resumed ends with the same bits as one that was not."""

import json
import os
import signal
import time

import pytest
import yaml

from clearsr.data import sources
from clearsr.errors import ClearSRError
from clearsr.training import engine, run_folder
from clearsr.training.engine import fit
from clearsr.training.progress import Report

EVERYTHING = {
    "steps": 5,
    "batch_size": 4,
    "accumulation": 2,
    "ema_decay": 0.9,
    "optimizer": {"schedule": "cosine", "warmup_steps": 1},
}


@pytest.fixture
def signal_at(monkeypatch):
    """`signal_at(3)` sends this process a SIGTERM just before it takes step 3."""

    def arm(step, number=signal.SIGTERM):
        original = Report.advance

        def advance(self, done):
            if done == step - 1:
                os.kill(os.getpid(), number)
            original(self, done)

        monkeypatch.setattr(Report, "advance", advance)

    return arm


@pytest.mark.parametrize("stage", ["clearsr", "autoencoder"])
def test_a_stopped_and_resumed_run_equals_the_uninterrupted_one(
    stage, make_run, signal_at, checkpoint_tensors, assert_identical
):
    whole = make_run(stage, "whole", **EVERYTHING)
    fit(whole)
    parts = make_run(stage, "parts", **EVERYTHING)
    before = signal.getsignal(signal.SIGTERM)
    signal_at(3)
    told = []
    fit(parts, on_signal=told.append)
    assert signal.getsignal(signal.SIGTERM) is before and told == [signal.SIGTERM]
    saved = [path.name for path in (parts.output / "checkpoints").iterdir()]
    assert saved == ["step-00000003"]  # within an epoch: 12 of 5, 10, 15 samples
    fit(parts, resume="latest")

    last = "checkpoints/step-00000005"
    ours, theirs = (checkpoint_tensors(config.output / last) for config in (parts, whole))
    assert {name.split("/")[0] for name in ours} == {"parameters", "optimizer", "average"}
    assert_identical(ours, theirs)
    exports = [checkpoint_tensors(config.output / "export") for config in (parts, whole)]
    assert_identical(*exports)
    described = [(config.output / "export" / "config.json").read_text() for config in (parts, whole)]
    assert described[0] == described[1]


def test_checkpoints_in_the_background_change_nothing_and_are_there_before_the_export(
    make_run, photos, signal_at, monkeypatch, checkpoint_tensors, assert_identical
):
    """With validation, which lends the parameters' memory to the averages, and a stop in between."""
    changes = {
        **EVERYTHING, "checkpoint_every": 1, "keep_checkpoints": 9, "validate_every": 1,
        "data": {"validation": [str(photos)]},
        "validation": {"count": 1, "crop_size": 32, "sampling": {"steps": 1}},
    }  # fmt: skip
    whole = make_run("clearsr", "whole", **changes)
    fit(whole)
    slow = run_folder.save_file
    monkeypatch.setattr(run_folder, "save_file", lambda *args: (time.sleep(0.1), slow(*args)))
    there, export = [], engine._Trainer._export

    def seen(self, folder):
        if folder.name.startswith(".writing-export."):
            there.append([path.name for path in run_folder.checkpoint_folders(self.config.output)][-1])
        export(self, folder)

    monkeypatch.setattr(engine._Trainer, "_export", seen)
    behind = make_run("clearsr", "behind", **changes, background_checkpoints=True)
    signal_at(3)
    fit(behind)
    fit(behind, resume="latest")
    assert there == ["step-00000003", "step-00000005"]
    for step in range(1, 6):
        at = f"checkpoints/step-{step:08d}"
        assert_identical(*(checkpoint_tensors(run.output / at) for run in (behind, whole)))
        assert (behind.output / at / "state.json").read_bytes() == (
            whole.output / at / "state.json"
        ).read_bytes()
    assert_identical(*(checkpoint_tensors(run.output / "export") for run in (behind, whole)))


def test_a_run_that_goes_on_opens_no_picture_to_see_its_size(make_run, monkeypatch):
    changes = {"batch_size": 2, "data": {"small": "skip"}}
    fit(make_run("autoencoder", steps=1, **changes))
    monkeypatch.setattr(sources, "pixel_size", None)
    fit(make_run("autoencoder", steps=2, **changes), resume="latest")


def test_a_run_without_average_resumes_with_more_steps(make_run, checkpoint_tensors, assert_identical):
    fit(make_run("lr_encoder", "whole", steps=4, ema_decay=0))
    fit(make_run("lr_encoder", "parts", steps=2, ema_decay=0))
    longer = make_run("lr_encoder", "parts", steps=4, ema_decay=0)
    fit(longer, resume="latest")
    whole = longer.output.with_name("whole")
    assert_identical(
        *(checkpoint_tensors(run / "checkpoints/step-00000004") for run in (longer.output, whole))
    )
    assert yaml.safe_load((longer.output / "config.yaml").read_text())["steps"] == 4
    assert yaml.safe_load((longer.output / "config-until-step-00000002.yaml").read_text())["steps"] == 2


def test_a_run_that_degrades_on_its_device_is_the_same_run(
    make_run, signal_at, checkpoint_tensors, assert_identical
):
    by_workers = make_run("lr_encoder", "workers", **EVERYTHING)
    fit(by_workers)
    on_device = make_run("lr_encoder", "device", **EVERYTHING, data={"degrade_on": "device"})
    signal_at(3)
    fit(on_device)
    fit(on_device, resume="latest")
    runs = [config.output / "checkpoints/step-00000005" for config in (by_workers, on_device)]
    assert_identical(*map(checkpoint_tensors, runs))


def test_latest_starts_from_the_beginning_where_there_is_nothing(make_run, caplog):
    config = make_run("autoencoder", steps=1)
    caplog.set_level("INFO", "clearsr")
    fit(config, resume="latest")
    assert "holds no checkpoint yet" in caplog.text
    assert (config.output / "checkpoints" / "step-00000001").is_dir()


def test_an_earlier_run_is_not_overwritten(make_run):
    config = make_run("autoencoder", steps=1)
    fit(config)
    with pytest.raises(ClearSRError, match="--resume latest or another output"):
        fit(config)


def test_a_checkpoint_that_does_not_exist_is_named(make_run):
    with pytest.raises(ClearSRError, match="--resume nowhere: is no folder"):
        fit(make_run("autoencoder"), resume="nowhere")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 1}, "seed"),
        ({"batch_size": 4}, "batch_size"),
        ({"data": {"crop_size": 32}}, "data.crop_size"),
        ({"loss": {"kl": 0.5}}, "loss.kl"),
        ({"ema_decay": 0}, "ema_decay"),
        ({"model": {"autoencoder": {"decoder_layers": (1, 2)}}}, "model.autoencoder.decoder_layers"),
    ],
)
def test_a_run_is_not_resumed_with_what_would_make_it_another(make_run, changes, named):
    fit(make_run("autoencoder", steps=1))
    with pytest.raises(ClearSRError, match="started with other settings") as caught:
        fit(make_run("autoencoder", **{"steps": 2, **changes}), resume="latest")
    assert f" {named} (" in str(caught.value)


def test_other_pictures_than_the_runs_are_said(make_run, make_picture, tmp_path, caplog):
    from clearsr.image import ImageData, write_image

    fit(make_run("autoencoder", steps=1))
    other = tmp_path / "other"
    other.mkdir()
    write_image(ImageData(make_picture(40, 40)), other / "other.png")
    fit(make_run("autoencoder", steps=2, data={"train": [str(other)]}), resume="latest")
    assert "holds other images than when the run began" in caplog.text


def test_metrics_go_on_where_they_stopped(make_run):
    fit(make_run("autoencoder", steps=2, log_every=1))
    config = make_run("autoencoder", steps=3, log_every=1)
    fit(config, resume="latest")
    rows = [json.loads(line) for line in (config.output / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert {"loss", "grad_norm", "learning_rate"} <= rows[0].keys()


def test_fewer_steps_than_are_done_are_refused(make_run):
    config = make_run("autoencoder", "run", steps=2)
    fit(config)
    with pytest.raises(ClearSRError, match="steps: is 1, and the checkpoint is at step 2"):
        fit(config.model_copy(update={"steps": 1}), resume="latest")


def test_a_run_does_not_lie_among_its_photographs(make_run, photos):
    for output in (photos, photos / "run"):
        config = make_run("autoencoder", "run").model_copy(update={"output": output})
        before = sorted(photos.rglob("*"))
        with pytest.raises(ClearSRError, match=r"output .*: is or lies in data\.train"):
            fit(config)
        assert sorted(photos.rglob("*")) == before
