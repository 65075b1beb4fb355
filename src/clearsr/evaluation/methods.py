"""What makes a large picture of a small one: resampling, ClearSR, and whatever it is compared with.

A method is a function from an LR image, the size to arrive at and a seed to a picture of that size. Networks
of others are in `other_networks`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from PIL import Image

from clearsr.config.sampling import SamplingConfig
from clearsr.errors import ClearSRError
from clearsr.image import ImageData, from_pil, resize, to_pil

if TYPE_CHECKING:
    from clearsr.pipeline import ClearSRPipeline

Upscaler = Callable[[ImageData, tuple[int, int], int], torch.Tensor]


@dataclass(frozen=True)
class Method:
    """A way to upscale, with the name that tables show.

    Attributes:
        upscale: (LR image, (height, width), seed) -> 3×height×width in [0, 1].
        draws: its result depends on the seed.
        settings: what to note beside the results.
    """

    name: str
    upscale: Upscaler
    draws: bool = False
    settings: dict[str, object] | None = None


def baseline(name: str) -> Method:
    """Bicubic (antialiased, as Pillow's) or Lanczos (Pillow's own, on 8 bits)."""
    return Method(name, BASELINES[name])


def clearsr_method(name: str, pipeline: "ClearSRPipeline", config: SamplingConfig) -> Method:
    """ClearSR under fixed settings; the factor follows from the sizes, the seed is given for each run.

    Whether it draws at all follows from the settings: without steps, or with a deterministic scheduler and no
    initial noise, every seed gives the same picture.
    """

    def upscale(image: ImageData, size: tuple[int, int], seed: int) -> torch.Tensor:
        factor = factor_of(image, size)
        settings = config.model_copy(update={"upscale": factor, "seed": seed})
        return pipeline.upscale([image], settings)[0].color

    is_fixed = config.steps == 0 or (config.scheduler != "ddpm" and config.noise_scale == 0)
    return Method(
        name, upscale, draws=not is_fixed, settings=config.model_dump(mode="json", exclude={"seed"})
    )


def factor_of(image: ImageData, size: tuple[int, int]) -> float:
    """The factor that takes an image to that size.

    Raises:
        ClearSRError: height and width ask for different ones.
    """
    factor = size[0] / image.height
    if round(image.width * factor) == size[1]:
        return factor
    factor = size[1] / image.width
    if round(image.height * factor) == size[0]:
        return factor
    raise ClearSRError(
        f"{image.source}: {image.width}x{image.height} cannot become {size[1]}x{size[0]} by one factor"
    )


def _bicubic(image: ImageData, size: tuple[int, int], _seed: int) -> torch.Tensor:
    return resize(image.color[None], size)[0]


def _lanczos(image: ImageData, size: tuple[int, int], _seed: int) -> torch.Tensor:
    picture = to_pil(ImageData(image.color)).resize((size[1], size[0]), Image.Resampling.LANCZOS)
    return from_pil(picture).color


BASELINES: dict[str, Upscaler] = {"bicubic": _bicubic, "lanczos": _lanczos}
