"""Networks of others to compare with: weights files that spandrel knows, and diffusers' own pipelines.

Nothing is unpickled: `.safetensors` as it is, `.pth` and `.ckpt` by torch's loader for tensors alone.
"""

import inspect
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from clearsr.errors import ClearSRError, first_line
from clearsr.evaluation.methods import Method, of_size
from clearsr.image import ImageData, from_pil, pad_to_multiple, to_pil
from clearsr.seeds import make_generator

_SUFFIXES = (".safetensors", ".pth", ".ckpt")
_DIFFUSERS_MULTIPLE = 64  # sides that every level of such a U-Net can halve


def spandrel_method(file: Path, device: torch.device | str = "cpu") -> Method:
    """The network in a weights file, whose architecture spandrel finds out (Real-ESRGAN, LDL, SwinIR, ...).

    Raises:
        ClearSRError: spandrel is not installed, the file cannot be read, or it is no such network.
    """
    tensors = _read_weights(file)
    try:
        import spandrel
    except ImportError as error:
        raise ClearSRError(
            f"--spandrel {file}: needs the extra eval: pip install 'clearsr[eval]' ({error})"
        ) from None
    loader = spandrel.ModelLoader(device=torch.device(device))
    try:
        network = loader.load_from_state_dict(spandrel.canonicalize_state_dict(tensors))
    except (spandrel.UnsupportedModelError, RuntimeError, KeyError, ValueError) as error:
        raise ClearSRError(
            f"--spandrel {file}: is no network that spandrel {spandrel.__version__} knows "
            f"({first_line(error)})"
        ) from None
    if not isinstance(network, spandrel.ImageModelDescriptor) or network.input_channels not in (1, 3):
        raise ClearSRError(f"--spandrel {file}: {network.architecture.name} takes no single colour image")
    network.eval()

    @torch.no_grad()
    def upscale(image: ImageData, size: tuple[int, int], _seed: int) -> torch.Tensor:
        channels = image.color[None].to(device)
        if network.input_channels == 1:
            result = network(channels.transpose(0, 1))[:, :1].transpose(0, 1)  # each colour as a grey image
        else:
            result = network(channels)
        return of_size(result[0].float().cpu(), size, image, f"--spandrel {file}")

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


def _read_weights(file: Path) -> dict[str, Any]:
    """The tensors of a weights file by name, perhaps nested.

    Raises:
        ClearSRError: it cannot be read, or holds more than tensors.
    """
    suffix = file.suffix.lower()
    if suffix not in _SUFFIXES:
        raise ClearSRError(f"--spandrel {file}: accepted are {', '.join(_SUFFIXES)}")
    try:
        if suffix == ".safetensors":
            return dict(load_file(file))
        loaded = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError) as error:
        raise ClearSRError(f"--spandrel {file}: cannot be read ({first_line(error)})") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ClearSRError(
            f"--spandrel {file}: holds something else than tensors, which is not loaded ({first_line(error)})"
        ) from None
    if not isinstance(loaded, dict):
        raise ClearSRError(f"--spandrel {file}: holds a {type(loaded).__name__}; expected tensors by name")
    return loaded
