"""The folder of a training run: checkpoints are written aside and renamed; nothing is pickled.

    RUN/config.yaml  metrics.jsonl  samples/  checkpoints/step-00001000/  export/

A checkpoint holds the trained tensors, their moving average, Adam's moments and the step. Batches and noise
are pure functions of (seed, step), so there is no random state to keep.
"""

import json
import os
import re
import shutil
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from clearsr.errors import ClearSRError
from clearsr.training.state import TrainingState

_NAME = re.compile(r"step-(\d+)")


def checkpoint_folders(run: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    folders = [p for p in (run / "checkpoints").glob("step-*") if _NAME.fullmatch(p.name)]
    return sorted(folders, key=lambda p: int(p.name.removeprefix("step-")))


def save_checkpoint(run: Path, step: int, state: TrainingState, keep: int) -> Path:
    """Write the state after `step` steps and delete all but the newest `keep` checkpoints.

    Raises:
        ClearSRError: the disk is full or not writable; the checkpoint before stays as it was.
    """
    final = run / "checkpoints" / f"step-{step:08d}"
    aside = final.with_name(f".{final.name}.{os.getpid()}")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        for name, tensors in state.tensors().items():
            save_file({k: v.cpu().contiguous() for k, v in tensors.items()}, aside / f"{name}.safetensors")
        (aside / "state.json").write_text(json.dumps({"step": step}))
        shutil.rmtree(final, ignore_errors=True)
        aside.rename(final)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise ClearSRError(f"{final}: the checkpoint cannot be written ({error})") from error
    for old in checkpoint_folders(run)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def load_checkpoint(folder: Path, state: TrainingState) -> int:
    """Restore everything that `save_checkpoint` wrote; returns the number of steps done.

    Raises:
        ClearSRError: the folder is no checkpoint, or holds other tensors than the configuration asks for.
    """
    try:
        step = int(json.loads((folder / "state.json").read_text())["step"])
        stored = {name: load_file(folder / f"{name}.safetensors") for name in state.tensors()}
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ClearSRError(f"{folder}: is not a checkpoint of this kind of run ({error})") from None
    shapes = {name: parameter.shape for name, parameter in state.parameters.items()}
    if {name: value.shape for name, value in stored["parameters"].items()} != shapes:
        raise ClearSRError(
            f"{folder}: holds other parameters than this configuration trains; use a new output folder"
        )
    state.load(stored)
    return step
