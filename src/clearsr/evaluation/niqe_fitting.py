"""Fitting NIQE's model to photographs on disk: the work behind `clearsr fit-niqe`.

The photographs should be what NIQE is to call perfect: sharp at the pixel level, without noise, heavy JPEG
compression or upscaling, and of many subjects. Some hundred are enough (the original used 125).
"""

import logging
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import torch

from clearsr.data.photographs import Photographs
from clearsr.errors import ClearSRError
from clearsr.evaluation.niqe import (
    BLOCK_SIZE,
    SHARPNESS_THRESHOLD,
    NiqeModel,
    model_of_blocks,
    sharp_features,
)

logger = logging.getLogger(__name__)


def fit_niqe_from_files(
    paths: Sequence[Path], source: str = "", on_progress: Callable[[int, int], None] | None = None
) -> NiqeModel:
    """The NIQE model of photographs on disk; write it with its `save`.

    Args:
        paths: image files, or folders of them (recursive).
        source: what to note about the photographs, such as "with free licences"; ends the description.
        on_progress: called with (done, total) after each photograph.

    Raises:
        ClearSRError: a file (named) is missing, unreadable, below 96x96 or flat, or there are too few.
    """
    photographs = Photographs(paths)
    total = len(photographs)
    sharp_blocks: list[torch.Tensor] = []
    for index, item in enumerate(photographs.items):
        image = photographs[index].double() / 255
        try:
            sharp_blocks.append(sharp_features(image))
        except ClearSRError as error:
            raise ClearSRError(f"{item.label()}: {error}") from None
        if on_progress is not None:
            on_progress(index + 1, total)
    meta = {
        "description": f"fitted by clearsr fit-niqe on {total} photographs {source}".rstrip(),
        "date": datetime.now(timezone.utc).date().isoformat(),
        "software": f"clearsr {version('clearsr')}, torch {torch.__version__}",
        "block_size": str(BLOCK_SIZE),
        "sharpness_threshold": str(SHARPNESS_THRESHOLD),
    }
    model = model_of_blocks(sharp_blocks, meta)
    logger.info("NIQE model of %s sharp blocks from %d photographs", model.meta["blocks"], total)
    return model
