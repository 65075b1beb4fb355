"""What makes a large picture of a small one: resampling, ClearSR, and whatever it is compared with.

A method is a function from an LR image, the size to arrive at and a seed to a picture of that size.
Real-ESRGAN x4plus is a baseline with a name; networks of others from files and hubs are at the end.
"""

import inspect
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file

from clearsr.config.evaluation import BaselineName
from clearsr.config.sampling import SamplingConfig, SizeConfig
from clearsr.errors import ClearSRError, first_line, installing, optional
from clearsr.image import ImageData, from_pil, pad_to_multiple, resize, to_pil
from clearsr.seeds import make_generator

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
        settings = config.model_copy(update={"upscale": factor, "size": SizeConfig(), "seed": seed})
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


# Networks of others to compare with: weights files that spandrel knows, and diffusers' own pipelines.
# Nothing is unpickled: `.safetensors` as it is, `.pth` and `.ckpt` by torch's loader for tensors alone.
_SUFFIXES = (".safetensors", ".pth", ".ckpt")
_DIFFUSERS_MULTIPLE = 64  # sides that every level of such a U-Net can halve


def spandrel_method(file: Path, device: torch.device | str = "cpu", flag: str = "--spandrel") -> Method:
    """The network in a weights file, whose architecture spandrel finds out (Real-ESRGAN, LDL, SwinIR, ...).

    Raises:
        ClearSRError: spandrel is not installed, the file cannot be read, or it is no such network.
    """
    tensors = _read_weights(file, flag)
    try:
        import spandrel
    except ImportError as error:
        raise ClearSRError(f"{flag} {file}: needs spandrel ({error}); {installing('eval')}") from None
    loader = spandrel.ModelLoader(device=torch.device(device))
    try:
        network = loader.load_from_state_dict(spandrel.canonicalize_state_dict(tensors))
    except (spandrel.UnsupportedModelError, RuntimeError, KeyError, ValueError) as error:
        raise ClearSRError(
            f"{flag} {file}: is no network that spandrel {spandrel.__version__} knows ({first_line(error)})"
        ) from None
    if not isinstance(network, spandrel.ImageModelDescriptor) or network.input_channels not in (1, 3):
        raise ClearSRError(f"{flag} {file}: {network.architecture.name} takes no single colour image")
    network.eval()

    @torch.no_grad()
    def upscale(image: ImageData, size: tuple[int, int], _seed: int) -> torch.Tensor:
        channels = image.color[None].to(device)
        if network.input_channels == 1:
            result = network(channels.transpose(0, 1))[:, :1].transpose(0, 1)  # each colour as a grey image
        else:
            result = network(channels)
        return of_size(result[0].float().cpu(), size, image, f"{flag} {file}")

    settings: dict[str, object] = {
        "file": file.name,
        "architecture": network.architecture.name,
        "upscale": network.scale,
        "spandrel": spandrel.__version__,
    }
    return Method(file.stem, upscale, settings=settings)


def diffusers_method(source: str, device: torch.device | str = "cpu", steps: int | None = None) -> Method:
    """An upscaling pipeline of diffusers: Stable Diffusion x4 or LDM super-resolution, without a prompt.

    Args:
        source: a folder or hub id with safetensors.
        steps: denoising steps; unset: the pipeline's own number.

    Raises:
        ClearSRError: it cannot be loaded, or it is no upscaling pipeline.
    """
    with optional(f"--diffusers {source}"):
        from diffusers import DiffusionPipeline

    try:
        pipeline: Any = DiffusionPipeline.from_pretrained(source, use_safetensors=True)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise ClearSRError(f"--diffusers {source}: cannot be loaded ({first_line(error)})") from None
    takes = inspect.signature(pipeline.__call__).parameters
    kind = type(pipeline).__name__
    if "image" not in takes or not ("Upscale" in kind or "SuperResolution" in kind):
        raise ClearSRError(f"--diffusers {source}: is a {kind}; expected an upscaling pipeline")
    pipeline.to(device)
    pipeline.set_progress_bar_config(disable=True)
    arguments: dict[str, Any] = {"prompt": ""} if "prompt" in takes else {}
    if steps is not None:
        arguments["num_inference_steps"] = steps

    def upscale(image: ImageData, size: tuple[int, int], seed: int) -> torch.Tensor:
        padded = pad_to_multiple(image.color, _DIFFUSERS_MULTIPLE)
        picture = pipeline(
            image=to_pil(ImageData(padded)), generator=make_generator("image", seed), **arguments
        ).images[0]
        color = from_pil(picture).color
        factor = color.shape[-1] // padded.shape[-1]
        cut = color[:, : factor * image.height, : factor * image.width]
        return of_size(cut, size, image, f"--diffusers {source}")

    settings: dict[str, object] = {"source": source, "pipeline": kind, **arguments}
    return Method(Path(source).name, upscale, draws=True, settings=settings)


def _read_weights(file: Path, flag: str) -> dict[str, Any]:
    """The tensors of a weights file by name, perhaps nested.

    Raises:
        ClearSRError: it cannot be read, or holds more than tensors.
    """
    suffix = file.suffix.lower()
    if suffix not in _SUFFIXES:
        raise ClearSRError(f"{flag} {file}: accepted are {', '.join(_SUFFIXES)}")
    try:
        if suffix == ".safetensors":
            return dict(load_file(file))
        loaded = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError) as error:
        raise ClearSRError(f"{flag} {file}: cannot be read ({first_line(error)})") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ClearSRError(
            f"{flag} {file}: holds something else than tensors, which is not loaded ({first_line(error)})"
        ) from None
    if not isinstance(loaded, dict):
        raise ClearSRError(f"{flag} {file}: holds a {type(loaded).__name__}; expected tensors by name")
    return loaded
