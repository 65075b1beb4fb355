"""Checkpoints are whole or not there, whatever happens while one is written."""

import errno
import math
import threading

import pytest
import torch
from torch import nn

from clearsr.errors import ClearSRError
from clearsr.training import run_folder
from clearsr.training.engine import CheckpointWriter
from clearsr.training.run_folder import (
    Best,
    checkpoint_folders,
    clean_up,
    load_checkpoint,
    read_best,
    require_space,
    save_best,
    save_checkpoint,
    write_folder,
)
from clearsr.training.state import TrainingState


@pytest.fixture
def state(make_run):
    """The state of a linear layer after one step."""
    layer = nn.Linear(3, 2)
    state = TrainingState.of(layer, make_run())
    layer(torch.ones(1, 3)).sum().backward()
    state.optimizer.step()
    return state


def test_a_checkpoint_comes_back_with_its_notes(tmp_path, state, make_run, assert_identical):
    folder = save_checkpoint(tmp_path, 7, state.tensors(), 2, {"data": "abc"})
    fresh = TrainingState.of(nn.Linear(3, 2), make_run())
    assert load_checkpoint(folder, fresh) == {"step": 7, "data": "abc"}
    for group, tensors in state.tensors().items():
        assert tensors
        assert_identical(fresh.tensors()[group], tensors)


def test_only_the_newest_are_kept(tmp_path, state):
    for step in (1, 20, 3):
        save_checkpoint(tmp_path, step, state.tensors(), 2)
    assert [folder.name for folder in checkpoint_folders(tmp_path)] == ["step-00000003", "step-00000020"]


def test_what_a_kill_left_half_written_is_passed_over_and_removed(tmp_path, state):
    save_checkpoint(tmp_path, 1, state.tensors(), 2)
    for name in (".writing-step-00000002.4711", ".step-00000002.4711"):
        half = tmp_path / "checkpoints" / name
        half.mkdir()
        (half / "parameters.safetensors").write_bytes(b"half")
    (tmp_path / ".writing-export-best.4711").mkdir()
    assert [folder.name for folder in checkpoint_folders(tmp_path)] == ["step-00000001"]
    clean_up(tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path, state):
    folder = save_checkpoint(tmp_path, 1, state.tensors(), 2)
    folder.rename(folder.with_name(".replaced-step-00000001"))
    clean_up(tmp_path)
    assert checkpoint_folders(tmp_path) == [folder]


def test_a_kill_after_the_second_rename_leaves_the_new_one(tmp_path):
    write_folder(tmp_path / "best", lambda folder: (folder / "new").touch())
    old = tmp_path / ".replaced-best"
    old.mkdir()
    clean_up(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["best"]
    assert (tmp_path / "best" / "new").exists()


def test_a_full_disk_is_said_and_the_last_checkpoint_stays(tmp_path, state, make_run, monkeypatch):
    folder = save_checkpoint(tmp_path, 1, state.tensors(), 1)

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run_folder, "save_file", full)
    with pytest.raises(ClearSRError, match="No space left on device.*saved before is whole"):
        save_checkpoint(tmp_path, 2, state.tensors(), 1)
    with pytest.raises(ClearSRError, match="No space left"):
        save_checkpoint(tmp_path, 1, state.tensors(), 1)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]
    assert load_checkpoint(folder, TrainingState.of(nn.Linear(3, 2), make_run()))["step"] == 1


def test_too_small_a_disk_is_refused_before_training(tmp_path):
    require_space(tmp_path, 1000, 2)
    with pytest.raises(ClearSRError, match="GB free and checkpoints need"):
        require_space(tmp_path, 10**18, 2)


def test_a_checkpoint_of_another_network_is_refused(tmp_path, state, make_run):
    folder = save_checkpoint(tmp_path, 1, state.tensors(), 2)
    with pytest.raises(ClearSRError, match="other parameters than this configuration trains"):
        load_checkpoint(folder, TrainingState.of(nn.Linear(4, 2), make_run()))


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path, state):
    with pytest.raises(ClearSRError, match="is not a checkpoint"):
        load_checkpoint(tmp_path, state)


def test_the_best_model_replaces_the_one_before(tmp_path):
    assert read_best(tmp_path) is None
    bests = [Best(step, {"psnr": score}, {"psnr": 1.0}) for step, score in ((10, 20.5), (20, math.inf))]
    for best in bests:
        save_best(tmp_path, best, lambda folder, step=best.step: (folder / str(step)).touch())
        assert read_best(tmp_path) == best
    assert sorted(path.name for path in (tmp_path / "export-best").iterdir()) == ["20", "best.json"]


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def held(monkeypatch):
    """`held.set()` lets files of checkpoints be written, which until then wait."""
    go, save = threading.Event(), run_folder.save_file
    monkeypatch.setattr(run_folder, "save_file", lambda *args: (go.wait(60), save(*args)))
    return go


def move(state):
    """What a step does to all that a checkpoint holds."""
    with torch.no_grad():
        for tensors in state.tensors().values():
            for value in tensors.values():
                value.add_(1)


def test_a_checkpoint_in_the_background_is_the_blocking_one_byte_for_byte(tmp_path, state, held):
    notes = {"data": "abc", "losses": [0.5]}
    folders = []
    with CheckpointWriter(tmp_path / "behind", 9, in_background=True) as writer:
        for step in (1, 2):  # the second goes into the memory of the first
            held.set()
            folders.append(save_checkpoint(tmp_path / "at once", step, state.tensors(), 9, notes))
            writer.wait()
            held.clear()
            writer.save(step, state, notes)
            move(state)  # while it is being written
            assert len(checkpoint_folders(tmp_path / "behind")) == step - 1
        held.set()
    written = checkpoint_folders(tmp_path / "behind")
    assert [files_of(folder) for folder in written] == [files_of(folder) for folder in folders]
    assert files_of(written[0]) != files_of(written[1])


def test_what_goes_wrong_in_the_background_is_raised(tmp_path, state, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    save_checkpoint(tmp_path, 1, state.tensors(), 1)
    monkeypatch.setattr(run_folder, "save_file", full)
    for ask in (CheckpointWriter.wait, lambda writer: writer.save(3, state, {}), lambda writer: None):
        with (
            pytest.raises(ClearSRError, match="step-00000002: cannot be written .*No space left"),
            CheckpointWriter(tmp_path, 1, in_background=True) as writer,
        ):
            writer.save(2, state, {})
            ask(writer)
    with pytest.raises(ClearSRError, match="No space left"), CheckpointWriter(tmp_path, 1, True) as writer:
        writer.save(2, state, {})
        while True:
            writer.check()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]


@pytest.mark.parametrize("fails", [False, True])
def test_an_error_of_the_loop_waits_for_the_checkpoint_and_hides_no_other(
    tmp_path, state, held, monkeypatch, caplog, fails
):
    if fails:
        monkeypatch.setattr(run_folder, "_flush", lambda file: 1 / 0)
    with pytest.raises(ClearSRError, match="of the loop"), CheckpointWriter(tmp_path, 1, True) as writer:
        writer.save(2, state, {})
        threading.Timer(0.1, held.set).start()
        raise ClearSRError("of the loop")
    assert len(checkpoint_folders(tmp_path)) == (not fails)
    assert ("division by zero" in caplog.text) == fails


def test_a_second_ctrl_c_does_not_wait_and_leaves_nothing_half(tmp_path, state, held):
    save_checkpoint(tmp_path, 1, {}, 1)
    with pytest.raises(KeyboardInterrupt), CheckpointWriter(tmp_path, 1, in_background=True) as writer:
        writer.save(2, state, {})
        raise KeyboardInterrupt
    assert [folder.name for folder in checkpoint_folders(tmp_path)] == ["step-00000001"]
    held.set()
    writer.wait()
    assert [folder.name for folder in checkpoint_folders(tmp_path)] == ["step-00000002"]
