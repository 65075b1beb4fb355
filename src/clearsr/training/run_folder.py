"""The folder of a training run: folders are written aside and renamed; nothing is pickled.

    RUN/config.yaml  metrics.jsonl  image-sizes.json  samples/
        checkpoints/step-00001000/  export/  export-best/

A checkpoint holds the trained tensors, their moving average, the optimizer's moments and the step. Batches
and noise are pure functions of (seed, step), so there is no random state to keep.
"""

import json
import logging
import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from clearsr.atomic import written_aside
from clearsr.config.base import build_config, flat, parse_json, read_yaml, write_yaml
from clearsr.config.training import TrainConfig
from clearsr.errors import ClearSRError
from clearsr.training.state import Tensors, TrainingState

BEST_NAME, METRICS_NAME, SIZES_NAME = "best.json", "metrics.jsonl", "image-sizes.json"
_NAME = re.compile(r"step-(\d+)")
_ASIDE, _REPLACED = ".writing-", ".replaced-"


def checkpoint_folders(run: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    folders = [p for p in (run / "checkpoints").glob("step-*") if _NAME.fullmatch(p.name)]
    return sorted(folders, key=lambda p: int(p.name.removeprefix("step-")))


def steps_done(run: Path) -> int:
    """Steps that the newest checkpoint of a run has seen; 0 without one."""
    folders = checkpoint_folders(run)
    return int(folders[-1].name.removeprefix("step-")) if folders else 0


def save_checkpoint(
    run: Path, step: int, groups: dict[str, Tensors], keep: int, notes: dict[str, Any] | None = None
) -> Path:
    """Write what a state's `tensors` are after `step` steps and delete all but the newest `keep` checkpoints.

    Args:
        notes: JSON values that `load_checkpoint` gives back.

    Raises:
        ClearSRError: the disk is full or not writable; the checkpoint before stays as it was.
    """
    final = run / "checkpoints" / f"step-{step:08d}"

    def write(folder: Path) -> None:
        for name, tensors in groups.items():
            save_file({k: v.cpu().contiguous() for k, v in tensors.items()}, folder / f"{name}.safetensors")
        (folder / "state.json").write_text(json.dumps({**(notes or {}), "step": step}))

    write_folder(final, write)
    for old in checkpoint_folders(run)[:-keep]:
        with suppress(OSError):  # what cannot be moved aside, so that it is never half there, stays
            shutil.rmtree(old.rename(_aside(old)), ignore_errors=True)
    return final


def load_checkpoint(folder: Path, state: TrainingState) -> dict[str, Any]:
    """Restore everything that `save_checkpoint` wrote; returns its notes, with the number of steps as `step`.

    Raises:
        ClearSRError: the folder is no checkpoint, or holds other tensors than the configuration asks for.
    """
    try:
        notes = parse_json((folder / "state.json").read_text())
        notes["step"] = int(notes["step"])
        stored = {name: load_file(folder / f"{name}.safetensors") for name in state.tensors()}
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ClearSRError(f"{folder}: is not a checkpoint of this kind of run ({error})") from None
    shapes = {name: parameter.shape for name, parameter in state.parameters.items()}
    if {name: value.shape for name, value in stored["parameters"].items()} != shapes:
        raise ClearSRError(
            f"{folder}: holds other parameters than this configuration trains; use a new output folder"
        )
    state.load(stored)
    return notes


class Best(NamedTuple):
    """The validation that `export-best` is of: its step, its scores, and the measures that chose it."""

    step: int
    scores: dict[str, float]
    by: dict[str, float]


def read_best(run: Path) -> Best | None:
    """What is said of `export-best`; None where there is none."""
    try:
        return Best(**parse_json((run / "export-best" / BEST_NAME).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def save_best(run: Path, best: Best, export: Callable[[Path], None]) -> None:
    """Replace `export-best` by what `export` writes, with what chose it.

    Raises:
        ClearSRError: the disk is full or not writable; the best so far stays.
    """

    def write(folder: Path) -> None:
        export(folder)
        (folder / BEST_NAME).write_text(json.dumps(best._asdict()) + "\n")

    write_folder(run / "export-best", write)


def validations(run: Path) -> dict[int, dict[str, float]]:
    """The scores of a run's validations by their steps, from `metrics.jsonl`."""
    rows = [parse_json(line) for line in (run / METRICS_NAME).read_text(encoding="utf-8").splitlines()]
    return {row["step"]: row for row in rows if row["group"] == "validation"}


def write_folder(final: Path, write: Callable[[Path], None]) -> None:
    """Have `write` fill a folder aside, then rename it into place: a kill leaves the old one or the new.

    Raises:
        ClearSRError: it cannot be written; what was there stays.
    """
    aside = _aside(final)
    replaced = final.with_name(f"{_REPLACED}{final.name}")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        write(aside)
        for file in aside.iterdir():
            _flush(file)
        if final.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            final.rename(replaced)
        aside.rename(final)
    except (OSError, SafetensorError, ClearSRError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise ClearSRError(f"{final}: cannot be written ({error}); what was saved before is whole") from error
    shutil.rmtree(replaced, ignore_errors=True)


def clean_up(run: Path) -> None:
    """Remove what a killed process left half-written, and put back what it was about to replace."""
    for folder in (run, run / "checkpoints"):
        for left in folder.glob(f"{_REPLACED}*"):
            final = left.with_name(left.name.removeprefix(_REPLACED))
            if final.exists():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.rename(final)
        for left in [*folder.glob(f"{_ASIDE}*"), *folder.glob(".step-*")]:
            shutil.rmtree(left, ignore_errors=True)


def require_space(run: Path, checkpoint_bytes: int, keep: int) -> None:
    """Refuse to start where the disk cannot hold one checkpoint more than are kept.

    Raises:
        ClearSRError: says how much is missing.
    """
    held = sum(file.stat().st_size for folder in checkpoint_folders(run) for file in folder.iterdir())
    needed = max(checkpoint_bytes, checkpoint_bytes * (keep + 1) - held)
    free = shutil.disk_usage(run).free
    if free < needed:
        raise ClearSRError(
            f"{run}: the disk has {free / 1e9:.1f} GB free and checkpoints need {needed / 1e9:.1f} GB; "
            "make room, lower keep_checkpoints or choose another output"
        )


def drop_later_rows(metrics: Path, step: int) -> None:
    """Cut `metrics.jsonl` to the rows up to a step: what a killed run wrote later now comes again.

    Raises:
        OSError: it cannot be written.
    """
    if not metrics.is_file():
        return
    lines = metrics.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if line.endswith("\n") and _step_of(line) <= step]
    if len(kept) < len(lines):
        aside = metrics.with_name(f".{metrics.name}")
        aside.write_text("".join(kept), encoding="utf-8")
        os.replace(aside, metrics)


def _step_of(line: str) -> float:
    """The step of a row; infinity if it is none."""
    try:
        return float(parse_json(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


def _aside(folder: Path) -> Path:
    """Where a folder lies that is being written or deleted; `clean_up` knows it."""
    return folder.with_name(f"{_ASIDE}{folder.name}.{os.getpid()}")


def _flush(file: Path) -> None:
    """Have the disk hold the file before its name says that it is whole."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# Going on with a run: which checkpoint, and whether the configuration is still that of the run.
# What decides the parameters, the batches or what the loss means must not change under a run; how long it
# goes on, how fast it learns and what is written may.
logger = logging.getLogger(__name__)

CONFIG_NAME = "config.yaml"
# Dotted names, or beginnings of them.
FIXED_SETTINGS = (
    "stage",
    "model",
    "init_from",
    "data.crop_size",
    "data.upscale",
    "data.rotate",
    "degradation",
    "loss",
    "perceptual",
    "batch_size",
    "optimizer.kind",
    "seed",
)
MOVABLE = "perceptual.teacher.labels"  # every file in it says what it was made by
SAMPLER = "validation.sampling"  # fixed where its pictures are what the loss is on


def find_checkpoint(run: Path, resume: str | None) -> Path | None:
    """The checkpoint to go on from; None starts at step 0.

    Args:
        resume: `latest`, or the path of a checkpoint folder.

    Raises:
        ClearSRError: the folder holds a run that nobody asked to go on with, or there is no such checkpoint.
    """
    existing = checkpoint_folders(run)
    if resume is None:
        if existing:
            raise ClearSRError(f"{run}: holds an earlier run; give --resume latest or another output folder")
        return None
    if resume == "latest":
        if not existing:
            logger.info("%s: holds no checkpoint yet; starting at step 0", run)
        return existing[-1] if existing else None
    if not Path(resume).is_dir():
        known = ", ".join(folder.name for folder in existing) or "none yet"
        raise ClearSRError(
            f"--resume {resume}: is no folder; accepted: latest, or a checkpoint ({run}: {known})"
        )
    return Path(resume)


def require_same_run(config: TrainConfig, checkpoint: Path) -> None:
    """Refuse a configuration that a checkpoint's run cannot go on with; other changes are logged.

    Raises:
        ClearSRError: names the settings that differ.
    """
    path = checkpoint.parent.parent / CONFIG_NAME
    if not path.is_file():
        return
    saved = flat(build_config(TrainConfig, read_yaml(path)).model_dump(mode="json"))
    now = flat(config.model_dump(mode="json"))
    changed = [name for name in sorted({*saved, *now}) if saved.get(name) != now.get(name)]
    fixed = FIXED_SETTINGS if config.perceptual is None else (*FIXED_SETTINGS, SAMPLER)
    refused = [name for name in changed if _is_one_of(name, fixed) and name != MOVABLE]
    if bool(saved.get("ema_decay")) != bool(now.get("ema_decay")):
        refused.append("ema_decay")
    if refused:
        listed = ", ".join(f"{n} ({saved.get(n)!r} there, {now.get(n)!r} here)" for n in refused[:3])
        more = f" and {len(refused) - 3} more" if len(refused) > 3 else ""
        raise ClearSRError(
            f"{path}: the run was started with other settings: {listed}{more}; go on with the same, or start "
            "a new run with another output (and init_from)"
        )
    for name in changed:
        logger.info("going on with %s %r, before it was %r", name, now.get(name), saved.get(name))


def require_same_data(saved: str | None, now: str) -> None:
    """Say so where the images are not those that the run began with: its order of samples is another one."""
    if saved is not None and saved != now:
        logger.warning(
            "data.train: holds other images than when the run began; samples now come in another order"
        )


def record_config(config: TrainConfig, run: Path, first_step: int) -> None:
    """Write the resolved configuration; an earlier one that differs is kept under the step that it held to.

    Raises:
        ClearSRError: the folder cannot be written.
    """
    path = run / CONFIG_NAME
    try:
        with written_aside(path) as aside:
            write_yaml(config, aside)
            if path.is_file() and path.read_bytes() != aside.read_bytes():
                path.replace(run / f"config-until-step-{first_step:08d}.yaml")
    except OSError as error:
        raise ClearSRError(f"{path}: cannot be written ({error.strerror or error})") from None


def _is_one_of(name: str, settings: tuple[str, ...]) -> bool:
    return any(name == fixed or name.startswith(f"{fixed}.") for fixed in settings)
