"""What makes a large picture of a small one: resampling, ClearSR, and whatever it is compared with.

A method is a function from an LR image, the size to arrive at and a seed to a picture of that size.
Real-ESRGAN x4plus is a baseline with a name; networks of others from files and hubs are in `other_networks`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from PIL import Image

from clearsr.config.evaluation import BaselineName
from clearsr.config.sampling import SamplingConfig
from clearsr.errors import ClearSRError
from clearsr.image import ImageData, from_pil, resize, to_pil

if TYPE_CHECKING:
    from clearsr.pipeline.pipeline import ClearSRPipeline

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


def baseline(name: BaselineName, device: torch.device | str = "cpu") -> Method:
    """Bicubic (antialiased, as Pillow's), Lanczos (Pillow's own, on 8 bits) or Real-ESRGAN x4plus.

    Args:
        device: of a network.

    Raises:
        ClearSRError: the network's weights are not installed.
    """
    return _realesrgan(device) if name == "realesrgan" else Method(name, _RESAMPLING[name])


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


def of_size(picture: torch.Tensor, size: tuple[int, int], image: ImageData, flag: str) -> torch.Tensor:
    """A network's picture in [0, 1], which must have come out at the size that is asked for.

    Raises:
        ClearSRError: it has another one.
    """
    if tuple(picture.shape[-2:]) != size:
        raise ClearSRError(
            f"{flag}: makes {picture.shape[-1]}x{picture.shape[-2]} of {image.width}x{image.height}, "
            f"{size[1]}x{size[0]} is needed; compare at the network's own factor"
        )
    return picture.clamp(0, 1)


def _realesrgan(device: torch.device | str) -> Method:
    from clearsr.models import realesrgan

    network = realesrgan.load_realesrgan(device)

    def upscale(image: ImageData, size: tuple[int, int], _seed: int) -> torch.Tensor:
        picture = realesrgan.upscale(network, image.color[None].to(device))[0].cpu()
        return of_size(picture, size, image, "realesrgan")

    settings: dict[str, object] = {
        "network": realesrgan.NAME,
        "weights": realesrgan.published_weights(),
        "upscale": realesrgan.FACTOR,
        "padding": realesrgan.PADDING,
    }
    return Method("Real-ESRGAN", upscale, settings=settings)


def _bicubic(image: ImageData, size: tuple[int, int], _seed: int) -> torch.Tensor:
    return resize(image.color[None], size)[0]


def _lanczos(image: ImageData, size: tuple[int, int], _seed: int) -> torch.Tensor:
    picture = to_pil(ImageData(image.color)).resize((size[1], size[0]), Image.Resampling.LANCZOS)
    return from_pil(picture).color


_RESAMPLING: dict[str, Upscaler] = {"bicubic": _bicubic, "lanczos": _lanczos}
