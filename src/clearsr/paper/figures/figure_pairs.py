"""LR and HR pairs to look into: photographs that are degraded here, or the pictures of a test set."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from clearsr.config.evaluation import PairConfig
from clearsr.degradation import crop_to_multiple, degrade, preset_config
from clearsr.errors import ClearSRError
from clearsr.evaluation.pairs import ImagePair, fitting_hr, read_8_bit
from clearsr.image import ImageData, list_images
from clearsr.seeds import make_generator


@dataclass(frozen=True)
class Pair:
    """A low-resolution image and the original that it was made from, 3×H×W in [0, 1]."""

    name: str
    lr: ImageData
    hr: torch.Tensor


def degraded_pairs(
    photographs: Sequence[Path], config: PairConfig, upscale: int, seed: int, limit: int | None = None
) -> Iterator[Pair]:
    """The middle of each photograph and its LR version, drawn by `seed` and the file's path alone.

    Raises:
        ClearSRError: a file is missing, unreadable or too small.
    """
    settings = preset_config(config.degradation)
    for item in list_images(photographs)[:limit]:
        middle = _middle(read_8_bit(item.file), config.side)
        try:
            hr = crop_to_multiple(middle, upscale).contiguous()
        except ClearSRError as error:
            raise ClearSRError(f"{item.file}: {error}") from None
        generator = make_generator("degrade", seed, item.relative.as_posix())
        lr = ImageData(degrade(hr, settings, generator, upscale))
        yield Pair(item.relative.with_suffix("").as_posix(), lr, hr)


def stored_pairs(pairs: Sequence[ImagePair], config: PairConfig, upscale: int) -> Iterator[Pair]:
    """The middle of each LR image, and the same part of its original.

    Raises:
        ClearSRError: a file is unreadable, or an original is not `upscale` times as large.
    """
    for pair in pairs:
        assert pair.lr is not None and pair.hr is not None, "pairs to analyse have both"
        lr = read_8_bit(pair.lr)
        hr = fitting_hr(read_8_bit(pair.hr), ImageData(lr), pair.name)
        height, width = lr.shape[1:]
        if hr.shape[1:] != (height * upscale, width * upscale):
            raise ClearSRError(
                f"{pair.name}: the original is {hr.shape[2]}x{hr.shape[1]}, not {upscale} times the LR image "
                f"({width}x{height}); see --upscale"
            )
        part = _middle(lr, config.side // upscale)
        rows, columns = part.shape[1] * upscale, part.shape[2] * upscale
        top, left = (height - part.shape[1]) // 2 * upscale, (width - part.shape[2]) // 2 * upscale
        original = hr[:, top : top + rows, left : left + columns]
        yield Pair(pair.name, ImageData(part), original.contiguous())


def _middle(image: torch.Tensor, side: int) -> torch.Tensor:
    """The central `side`×`side`, or as much as there is."""
    height, width = (min(side, size) for size in image.shape[-2:])
    top, left = (image.shape[-2] - height) // 2, (image.shape[-1] - width) // 2
    return image[:, top : top + height, left : left + width].contiguous()
