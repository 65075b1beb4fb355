"""The second-order degradation model of Real-ESRGAN (Wang et al. 2021, section 3) as a list of steps.

Differences from the original code, on purpose: every choice is drawn per image (there it is per batch, and a
queue of 180 pairs makes up for that); the first resize maps the whole image onto a whole number of pixels
(there a fraction of one is cut off, which shifts the LR image against the HR one); JPEG is Pillow's.
All draws come from one CPU generator, so a result depends on the image, the settings and the seed alone.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, get_args

import torch

from clearsr.config.degradation import (
    BlurConfig,
    DegradationConfig,
    DegradationMix,
    KernelName,
    NoiseConfig,
    ResizeConfig,
    ResizeMode,
    SharpeningConfig,
    StageConfig,
)
from clearsr.degradation.steps import (
    add_gaussian_noise,
    add_poisson_noise,
    apply_blur,
    chance,
    choose,
    compress_jpeg,
    gaussian_kernel,
    generalized_gaussian_kernel,
    integer,
    plateau_kernel,
    resize,
    round_to_8_bit,
    sharpen,
    sharpen_original,
    sinc_kernel,
    uniform,
)
from clearsr.errors import ClearSRError

Size = tuple[int, int]

_KERNEL_NAMES: tuple[KernelName, ...] = get_args(KernelName)


class TrainingPair(NamedTuple):
    """An LR image and the HR image that belongs to it, each 3×H×W in [0, 1]."""

    hr: torch.Tensor
    lr: torch.Tensor


@torch.no_grad()
def degrade(
    hr: torch.Tensor, config: DegradationConfig, generator: torch.Generator, upscale: int = 4
) -> torch.Tensor:
    """One low-resolution version of an image.

    Args:
        hr: 3×H×W float32, RGB, in [0, 1], on any device; H and W are multiples of `upscale`.
        config: what happens to it; `original` is left out, for the image is the original here.
        generator: on the CPU; the source of every draw.
        upscale: how many times smaller the result is.

    Returns:
        3×(H/upscale)×(W/upscale) float32 in [0, 1] on the 256 levels of 8 bits, on the device of `hr`.

    Raises:
        ClearSRError: the image's shape, type or size does not fit, or `upscale` is below 1.
    """
    _check(hr, upscale)
    hr_size = (hr.shape[1], hr.shape[2])
    lr_size = (hr.shape[1] // upscale, hr.shape[2] // upscale)

    image = _random_blur(hr, config.first.blur, generator)
    image = _random_resize(image, hr_size, config.first.resize, generator)
    image = _random_noise(image, config.first.noise, generator)
    image = _random_jpeg(image, config.first, generator)

    image = _random_blur(image, config.second.blur, generator)
    image = _random_resize(image, lr_size, config.second.resize, generator)
    image = _random_noise(image, config.second.noise, generator)
    if config.sharpening.probability:
        image = _random_sharpening(image, config.sharpening, generator)
    if chance(0.5, generator):
        image = _final_resize(image, lr_size, config, generator)
        image = _random_jpeg(image, config.second, generator)
    else:
        image = _random_jpeg(image, config.second, generator)
        image = _final_resize(image, lr_size, config, generator)
    return round_to_8_bit(image)


@torch.no_grad()
def degrade_pair(
    hr: torch.Tensor, config: DegradationConfig, generator: torch.Generator, upscale: int = 4
) -> TrainingPair:
    """`degrade`, after the HR image itself has been blurred as `config.original` says.

    Raises:
        ClearSRError: as `degrade`.
    """
    _check(hr, upscale)
    if config.original.probability:
        hr = _random_blur(hr, config.original, generator).clamp(0, 1)
    return TrainingPair(hr, degrade(hr, config, generator, upscale))


def degrade_batch(
    hr: torch.Tensor,
    config: DegradationConfig,
    generators: Sequence[torch.Generator],
    upscale: int = 4,
) -> torch.Tensor:
    """`degrade` for each image of B×3×H×W with its own generator, so that nothing depends on the batch.

    Raises:
        ClearSRError: as `degrade`; also if there is not one generator per image.
    """
    if len(generators) != len(hr) or len(hr) == 0:
        raise ClearSRError(f"degrade: {len(hr)} images came with {len(generators)} generators; give one each")
    pairs = zip(hr, generators, strict=True)
    return torch.stack([degrade(image, config, generator, upscale) for image, generator in pairs])


def degrade_mixed(
    hr: torch.Tensor, mix: DegradationMix, generator: torch.Generator, upscale: int = 4
) -> TrainingPair:
    """`degrade_pair` with a preset or set drawn by the weights of the mixture (from the same generator).

    Raises:
        ClearSRError: as `degrade`.
    """
    names = sorted(mix.weights)  # the order in which a file lists them must not matter
    name = choose(names, [mix.weights[name] for name in names], generator)
    return degrade_pair(sharpen_original(hr) if mix.usm else hr, mix.named(name), generator, upscale)


def crop_to_multiple(image: torch.Tensor, upscale: int) -> torch.Tensor:
    """...×H×W without the fewest rows at the bottom and columns at the right, so that `upscale` divides it.

    Raises:
        ClearSRError: the image is smaller than one LR pixel.
    """
    height, width = (length - length % upscale for length in image.shape[-2:])
    if not (height and width):
        size = f"{image.shape[-1]}x{image.shape[-2]}"
        raise ClearSRError(
            f"image of {size} pixels: smaller than {upscale}x{upscale}, one pixel after shrinking"
        )
    return image[..., :height, :width]


def _check(hr: torch.Tensor, upscale: int) -> None:
    if upscale < 1:
        raise ClearSRError(f"upscale: must be 1 or more, got {upscale}")
    if hr.ndim != 3 or hr.shape[0] != 3 or hr.dtype != torch.float32:
        found = f"{'x'.join(map(str, hr.shape))} {str(hr.dtype).removeprefix('torch.')}"
        raise ClearSRError(f"degrade: the image must be 3xHxW float32 in [0, 1], got {found}")
    height, width = hr.shape[1:]
    if height % upscale or width % upscale or not (height and width):
        raise ClearSRError(
            f"degrade: an image of {width}x{height} pixels cannot be shrunk {upscale} times; "
            f"width and height must be multiples of {upscale}"
        )


def _random_blur(image: torch.Tensor, config: BlurConfig, generator: torch.Generator) -> torch.Tensor:
    if not chance(config.probability, generator):
        return image
    size = _draw_kernel_size(config, generator)
    if chance(config.sinc_probability, generator):
        # A small window cannot hold the slow waves of a low cutoff.
        lowest = math.pi / 3 if size < 13 else math.pi / 5
        kernel = sinc_kernel(size, uniform(lowest, math.pi, generator))
    else:
        kernel = _draw_kernel(size, config, generator)
    return apply_blur(image, kernel)


def _draw_kernel_size(config: BlurConfig, generator: torch.Generator) -> int:
    low, high = config.kernel_size
    return 2 * integer(low // 2, high // 2, generator) + 1


def _draw_kernel(size: int, config: BlurConfig, generator: torch.Generator) -> torch.Tensor:
    """One of the six kernels: round (`iso`), or of two widths and turned at random (`aniso`)."""
    name = choose(_KERNEL_NAMES, config.kernel_probabilities, generator)
    sigma_x = sigma_y = uniform(*config.sigma, generator)
    angle = 0.0
    if name.endswith("aniso"):
        sigma_y = uniform(*config.sigma, generator)
        angle = uniform(-math.pi, math.pi, generator)
    if name.startswith("generalized"):
        beta = _draw_beta(config.beta_generalized, generator)
        return generalized_gaussian_kernel(size, (sigma_x, sigma_y), beta, angle)
    if name.startswith("plateau"):
        beta = _draw_beta(config.beta_plateau, generator)
        return plateau_kernel(size, (sigma_x, sigma_y), beta, angle)
    return gaussian_kernel(size, (sigma_x, sigma_y), angle)


def _draw_beta(limits: tuple[float, float], generator: torch.Generator) -> float:
    """Below 1 and above 1 equally often, however unequal the two sides of the range are."""
    low, high = limits
    return uniform(low, 1.0, generator) if chance(0.5, generator) else uniform(1.0, high, generator)


def _random_resize(
    image: torch.Tensor, base: Size, config: ResizeConfig, generator: torch.Generator
) -> torch.Tensor:
    """The image at a random factor of the size `base` (which need not be its own)."""
    shrink, grow = config.factor
    limits = choose([(1.0, grow), (shrink, 1.0), (1.0, 1.0)], config.probabilities, generator)
    factor = uniform(*limits, generator)
    size = (max(1, int(base[0] * factor)), max(1, int(base[1] * factor)))
    return resize(image, size, _draw_mode(config, generator), antialias=config.antialias)


def _draw_mode(config: ResizeConfig, generator: torch.Generator) -> ResizeMode:
    return choose(config.modes, [1.0] * len(config.modes), generator)


def _random_noise(image: torch.Tensor, config: NoiseConfig, generator: torch.Generator) -> torch.Tensor:
    if not chance(config.probability, generator):
        return image
    gray = chance(config.gray_probability, generator)
    if chance(config.gaussian_probability, generator):
        sigma = uniform(*config.gaussian_sigma, generator)
        return add_gaussian_noise(image, sigma, gray=gray, generator=generator)
    strength = uniform(*config.poisson_strength, generator)
    return add_poisson_noise(image, strength, gray=gray, generator=generator)


def _random_sharpening(
    image: torch.Tensor, config: SharpeningConfig, generator: torch.Generator
) -> torch.Tensor:
    if not chance(config.probability, generator):
        return image
    amount = uniform(*config.amount, generator)
    return sharpen(image, amount, uniform(*config.sigma, generator))


def _random_jpeg(image: torch.Tensor, config: StageConfig, generator: torch.Generator) -> torch.Tensor:
    if not chance(config.jpeg_probability, generator):
        return image
    return compress_jpeg(image, integer(*config.jpeg_quality, generator))


def _final_resize(
    image: torch.Tensor, lr_size: Size, config: DegradationConfig, generator: torch.Generator
) -> torch.Tensor:
    """The image at its final size, perhaps with the ringing of a sinc filter."""
    stage = config.second
    mode = _draw_mode(stage.resize, generator)
    image = resize(image, lr_size, mode, antialias=stage.resize.antialias)
    if not chance(config.final_sinc_probability, generator):
        return image
    size = _draw_kernel_size(stage.blur, generator)
    return apply_blur(image, sinc_kernel(size, uniform(math.pi / 3, math.pi, generator)))
