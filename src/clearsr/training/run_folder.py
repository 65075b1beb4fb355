"""The folder of a training run: checkpoints written aside and renamed, rotated, found again; nothing is pickled.

    RUN/config.yaml  metrics.jsonl  samples/  checkpoints/step-00001000/  export/

A checkpoint holds the trained tensors, their moving average, Adam's moments and the step. Batches and noise are pure
functions of (seed, step), so there is no random state to keep.
"""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from clearsr.errors import ClearSRError

_NAME = re.compile(r"step-(\d+)")


def checkpoint_folders(run: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    folders = [p for p in (run / "checkpoints").glob("step-*") if _NAME.fullmatch(p.name)]
    return sorted(folders, key=lambda p: int(p.name.removeprefix("step-")))


def save_checkpoint(
    run: Path,
    step: int,
    parameters: dict[str, nn.Parameter],
    average: dict[str, torch.Tensor],
    optimizer: torch.optim.Optimizer,
    keep: int,
) -> Path:
    """Write the state after `step` steps and delete all but the newest `keep` checkpoints.

    Raises:
        ClearSRError: the disk is full or not writable; the checkpoint before stays as it was.
    """
    final = run / "checkpoints" / f"step-{step:08d}"
    aside = final.with_name(f".{final.name}.{os.getpid()}")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        save_file(
            {k: p.detach().cpu().contiguous() for k, p in parameters.items()},
            aside / "parameters.safetensors",
        )
        if average:
            save_file({k: v.cpu().contiguous() for k, v in average.items()}, aside / "average.safetensors")
        save_file(_optimizer_tensors(parameters, optimizer), aside / "optimizer.safetensors")
        (aside / "state.json").write_text(json.dumps({"step": step}))
        if final.exists():
            shutil.rmtree(final)
        aside.rename(final)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise ClearSRError(
            f"{final}: the checkpoint cannot be written ({error.strerror or error})"
        ) from error
    for old in checkpoint_folders(run)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def load_checkpoint(
    folder: Path,
    parameters: dict[str, nn.Parameter],
    average: dict[str, torch.Tensor],
    optimizer: torch.optim.Optimizer,
) -> int:
    """Restore everything that `save_checkpoint` wrote; returns the number of steps done.

    Raises:
        ClearSRError: the folder holds other tensors than the run's configuration asks for.
    """
    try:
        step = int(json.loads((folder / "state.json").read_text())["step"])
        stored = load_file(folder / "parameters.safetensors")
        moments = load_file(folder / "optimizer.safetensors")
        stored_average = load_file(folder / "average.safetensors") if average else {}
    except (OSError, ValueError, KeyError) as error:
        raise ClearSRError(f"{folder}: is not a checkpoint of this version ({error})") from None
    if {k: v.shape for k, v in stored.items()} != {k: p.shape for k, p in parameters.items()}:
        raise ClearSRError(
            f"{folder}: holds other parameters than this configuration trains; use a new output folder"
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(stored[name])
            if average:
                average[name].copy_(stored_average[name])
    for name, parameter in parameters.items():
        prefix = f"{name}/"
        state: dict[str, Any] = {
            key.removeprefix(prefix): value for key, value in moments.items() if key.startswith(prefix)
        }
        if state:
            optimizer.state[parameter] = {
                key: value if key == "step" else value.to(parameter.device) for key, value in state.items()
            }
    return step


def _optimizer_tensors(
    parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> dict[str, torch.Tensor]:
    """Adam's state as flat tensors named `<parameter>/<moment>`."""
    return {
        f"{name}/{key}": value.detach().cpu().contiguous()
        for name, parameter in parameters.items()
        for key, value in optimizer.state.get(parameter, {}).items()
    }
