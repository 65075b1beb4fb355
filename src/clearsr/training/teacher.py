"""The teacher's pictures of a run's first samples: made where they are missing, before the first step."""

import logging
import os
from pathlib import Path

import torch

from clearsr.config.training import TrainConfig
from clearsr.data.crops import CropDataset
from clearsr.data.labels import Labels
from clearsr.evaluation.methods import Method, baseline, spandrel_method
from clearsr.image import ImageData
from clearsr.training.setup import DTYPES

logger = logging.getLogger(__name__)


def labels_of(config: TrainConfig, images: str) -> Labels | None:
    """The labels that a run learns from, if it has a teacher; `images` is its photographs' fingerprint."""
    teacher = None if config.perceptual is None else config.perceptual.teacher
    if teacher is None:
        return None
    settings = {
        "teacher": str(teacher.network),
        "images": images,
        "seed": config.seed,
        "crop_size": config.data.crop_size,
        "upscale": config.data.upscale,
        "rotate": config.data.rotate,
        "degradation": config.degradation.as_dict(),
    }
    return Labels(teacher.labels, teacher.samples, settings)


def make_labels(config: TrainConfig, dataset: CropDataset, labels: Labels, device: torch.device) -> None:
    """Make what is missing of them; several processes may do so at once, and one that was stopped goes on.

    Args:
        dataset: the samples without labels.

    Raises:
        ClearSRError: the teacher cannot be loaded or enlarges by another factor, a sample cannot be made, or
            the folder holds other labels.
    """
    missing = labels.missing()
    if not missing:
        return
    logger.info("%s: %d of %d pictures are missing", labels.folder, sum(map(len, missing)), labels.count)
    method = _method(config, device)
    begin = os.getpid() % len(missing)  # processes that start together take different files
    for numbers in missing[begin:] + missing[:begin]:
        if labels.has(numbers):  # another process was faster
            continue
        with torch.autocast(device.type, DTYPES[config.precision], enabled=config.precision != "fp32"):
            labels.write(numbers, torch.stack([_picture(method, dataset, number) for number in numbers]))


def _method(config: TrainConfig, device: torch.device) -> Method:
    assert config.perceptual is not None and config.perceptual.teacher is not None
    network = config.perceptual.teacher.network
    return (
        baseline("realesrgan", device) if network == "realesrgan" else spandrel_method(Path(network), device)
    )


def _picture(method: Method, dataset: CropDataset, number: int) -> torch.Tensor:
    """What the teacher makes of the LR image of a sample, uint8 3×H×W."""
    batch = dataset.batch([number])
    assert batch.lr is not None, "the configuration sees to it"
    picture = method.upscale(ImageData(batch.lr[0]), (batch.hr.shape[-2], batch.hr.shape[-1]), 0)
    return (255 * picture.float()).round().byte()
