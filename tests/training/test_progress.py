"""What is seen of a run elsewhere: the same numbers and pictures as in its folder."""

import io
import json
import os
import struct
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from accelerate.tracking import GeneralTracker
from PIL import Image

from clearsr.errors import ClearSRError
from clearsr.training.engine import fit
from clearsr.training.progress import require_trackers
from clearsr.training.stages import AutoencoderStage


@pytest.fixture
def make_tracked(make_run, photos):
    """`make_tracked(steps=2)`: a run that logs and looks at each step."""

    def make(**changes):
        validation = {"count": 1, "crop_size": 32, "measures": ["psnr"], "sampling": {"steps": 1}}
        settings = {"trackers": ["wandb"], "log_every": 1, "validate_every": 1, "checkpoint_every": 1}
        data = {"validation": [str(photos)]}
        return make_run("autoencoder", data=data, validation=validation, **{**settings, **changes})

    return make


@pytest.fixture
def tracked(monkeypatch):
    """What accelerate's tracker for Weights & Biases is given, in its place; nothing is installed or sent."""
    made = []

    class Tracker(GeneralTracker):
        name, requires_logging_directory = "wandb", False

        def __init__(self, project, **options):
            super().__init__()
            self.project, self.options, self.rows, self.pictures, self.ended = project, options, [], [], []
            made.append(self)

        @property
        def tracker(self):
            return SimpleNamespace(finish=lambda exit_code: self.ended.append(exit_code))

        def store_init_configuration(self, values):
            self.config = values

        def log(self, values, step=None):
            self.rows.append((step, values))

        def log_images(self, values, step=None):
            self.pictures.append((step, values))

        def finish(self):
            self.ended.append(0)

    wandb = ModuleType("wandb")
    wandb.Settings, wandb.errors = SimpleNamespace, SimpleNamespace(Error=RuntimeError)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setattr("accelerate.tracking.WandBTracker", Tracker)
    return made


def rows_of(run):
    """`metrics.jsonl` as a tracker names it."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    named = ("step", "group", "steps_per_second")
    return [
        (row["step"], {f"{row['group']}/{k}": v for k, v in row.items() if k not in named}) for row in rows
    ]


def sample(run, step):
    return np.asarray(Image.open(run / "samples" / f"step-{step:08d}.png"))


def test_a_tracker_gets_what_the_folder_has_also_of_a_run_that_goes_on(tracked, make_tracked):
    fit(make_tracked(steps=2))
    config = make_tracked(steps=3, wandb_project="mine")
    fit(config, "latest")
    first, second = tracked
    assert first.rows + second.rows == rows_of(config.output) and len(first.rows) == 4
    for step, values in first.pictures + second.pictures:
        np.testing.assert_array_equal(values["validation/pictures"], sample(config.output, step)[None])
    assert [step for step, _ in first.pictures + second.pictures] == [1, 2, 3]
    assert (first.project, second.project) == ("clearsr", "mine") and first.ended == second.ended == [0]
    assert first.options["id"] == second.options["id"] and second.options["resume"] == "allow"
    assert second.config["optimizer.learning_rate"] == 1e-3 and second.config["steps"] == 3


def test_a_run_that_fails_is_said_to_have_failed(tracked, make_tracked, monkeypatch):
    def forward(self, batch, seed):
        raise ClearSRError("enough")

    monkeypatch.setattr(AutoencoderStage, "forward", forward)
    with pytest.raises(ClearSRError, match="enough"):
        fit(make_tracked())
    assert tracked[0].ended == [1]


def test_what_does_not_start_is_an_error_before_the_first_step(tracked, make_tracked, monkeypatch):
    def start(self):
        raise RuntimeError("api_key not configured (no-tty)\nmore")

    monkeypatch.setattr("accelerate.tracking.WandBTracker.start", start)
    config = make_tracked()
    with pytest.raises(
        ClearSRError, match=r"^trackers: wandb does not start \(api_key not.*\); try `wandb login`"
    ):
        fit(config)
    assert not (config.output / "checkpoints").exists()


def test_what_is_not_installed_is_an_error_before_anything(make_tracked, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = make_tracked()
    with pytest.raises(ClearSRError, match=r"trackers: wandb: needs wandb; .*'clearsr\[wandb\]'"):
        fit(config)
    assert not config.output.exists()
    require_trackers(config.model_copy(update={"trackers": ("tensorboard",)}))


def test_tensorboard_shows_the_same(make_tracked, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.undo()
    config = make_tracked(trackers=["tensorboard"])
    fit(config)
    events = EventAccumulator(str(config.output / "tensorboard"))
    events.Reload()
    found = {(e.step, tag): e.value for tag in events.Tags()["scalars"] for e in events.Scalars(tag)}
    expected = {(step, name): v for step, values in rows_of(config.output) for name, v in values.items()}
    assert found == pytest.approx(expected)
    for event in events.Images("validation/pictures"):
        with Image.open(io.BytesIO(event.encoded_image_string)) as picture:
            np.testing.assert_array_equal(np.asarray(picture), sample(config.output, event.step))
    assert [event.step for event in events.Images("validation/pictures")] == [1, 2]


def read_offline(file):
    """The records of a run that W&B keeps for later: blocks of 32 KiB, as LevelDB's log has them."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, place, record = file.read_bytes(), 7, b""
    while place < len(content):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        length, kind = struct.unpack("<HB", content[place + 4 : place + 7])
        record += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(record)
            record = b""


def test_weights_and_biases_itself_keeps_the_same_offline(make_tracked, tmp_path):
    """In a process of its own: it starts a service, and leaves threads."""
    pytest.importorskip("wandb")
    from clearsr.config.base import write_yaml

    config = make_tracked(wandb_project="offline")
    write_yaml(config, tmp_path / "recipe.yaml")
    environment = {**os.environ, "WANDB_MODE": "offline", "WANDB_SILENT": "true", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "clearsr", "train", tmp_path / "recipe.yaml"]
    subprocess.run(command, env=environment, check=True, timeout=200)
    (folder,) = (config.output / "wandb").glob("offline-run-*")
    found, settings = {}, {}
    for record in read_offline(next(folder.glob("*.wandb"))):
        if record.WhichOneof("record_type") == "history":
            items = {
                item.key or ".".join(item.nested_key): json.loads(item.value_json)
                for item in record.history.item
            }
            step = record.history.step.num
            found |= {(step, name): value for name, value in items.items() if "/" in name}
        for source in (record.run.config, record.config):
            settings |= {
                item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in source.update
            }
    expected = {(step, name): v for step, values in rows_of(config.output) for name, v in values.items()}
    pictures = {key: found.pop(key) for key in list(found) if key[1].startswith("validation/pictures.")}
    assert found == pytest.approx(expected) and settings["batch_size"] == 2
    for step in (1, 2):
        (name,) = pictures[step, "validation/pictures.filenames"]
        stored = np.asarray(Image.open(folder / "files" / name).convert("RGB"))
        np.testing.assert_array_equal(stored, sample(config.output, step))
