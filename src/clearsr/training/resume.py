"""Going on with a run: which checkpoint, and whether the configuration is still that of the run.

What decides the parameters, the batches or what the loss means must not change under a run; how long it goes
on, how fast it learns and what is written may.
"""

import logging
from pathlib import Path

from clearsr.atomic import written_aside
from clearsr.config.base import build_config, flat, read_yaml, write_yaml
from clearsr.config.training import TrainConfig
from clearsr.errors import ClearSRError
from clearsr.training.run_folder import checkpoint_folders

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
    refused = [name for name in changed if _is_one_of(name, fixed)]
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
