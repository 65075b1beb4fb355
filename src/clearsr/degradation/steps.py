"""The single steps of the degradation model and their kernels, with their parameters already drawn.

Images are 3×H×W float32, RGB, nominally in [0, 1]: sharp kernels and bicubic resizing overshoot, and the
steps that need the range (noise, JPEG) clamp. Noise comes from a CPU generator whatever the image's device.
"""

import io
import math
from collections.abc import Sequence
from functools import cache
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from clearsr.config.degradation import ResizeMode
from clearsr.image.geometry import mirrored

T = TypeVar("T")


def uniform(low: float, high: float, generator: torch.Generator) -> float:
    """A number from [low, high)."""
    return low + (high - low) * torch.rand((), generator=generator, dtype=torch.float64).item()


def integer(low: int, high: int, generator: torch.Generator) -> int:
    """A whole number from low to high, both possible."""
    return int(torch.randint(low, high + 1, (), generator=generator).item())


def chance(probability: float, generator: torch.Generator) -> bool:
    """True with the given probability; 0 is never and 1 is always, and each call uses one draw."""
    return uniform(0.0, 1.0, generator) < probability


def choose(options: Sequence[T], weights: Sequence[float], generator: torch.Generator) -> T:
    """One of the options, each as often as its share of the weights; one of weight 0 never."""
    possible = [(option, weight) for option, weight in zip(options, weights, strict=True) if weight > 0]
    remaining = uniform(0.0, sum(weights), generator)
    for option, weight in possible:
        remaining -= weight
        if remaining < 0:
            return option
    return possible[-1][0]  # rounding left a crumb beyond the last weight


# Blur kernels of the degradation model (Real-ESRGAN, Wang et al. 2021): pure functions of their parameters.
# All are size×size float32, symmetric about the centre and sum to 1. x runs along columns and y down rows;
# `sigma` is (sigma_x, sigma_y) in pixels before the kernel is turned by `angle` (radians, from x towards y).
def gaussian_kernel(size: int, sigma: tuple[float, float], angle: float = 0.0) -> torch.Tensor:
    """A Gaussian, normalised over the window: exp(-q/2) with q the squared Mahalanobis distance."""
    return generalized_gaussian_kernel(size, sigma, 1.0, angle)


def generalized_gaussian_kernel(
    size: int, sigma: tuple[float, float], beta: float, angle: float = 0.0
) -> torch.Tensor:
    """exp(-q^beta / 2): pointed with long tails for beta < 1, flat-topped with steep sides for beta > 1."""
    return _normalised(torch.exp(-0.5 * _squared_distance(size, sigma, angle) ** beta))


def plateau_kernel(size: int, sigma: tuple[float, float], beta: float, angle: float = 0.0) -> torch.Tensor:
    """1 / (1 + q^beta): a plateau with slowly falling sides."""
    return _normalised(1.0 / (1.0 + _squared_distance(size, sigma, angle) ** beta))


def sinc_kernel(size: int, cutoff: float) -> torch.Tensor:
    """The circular ideal low-pass filter, cutoff * J1(cutoff * r) / (2 pi r): it overshoots and rings.

    Args:
        size: odd width in pixels.
        cutoff: angular frequency in radians per pixel, in (0, pi].
    """
    x, y = _grid(size)
    radius = torch.hypot(x, y)
    centre = radius == 0
    safe = radius.masked_fill(centre, 1.0)
    kernel = cutoff * torch.special.bessel_j1(cutoff * safe) / (2 * math.pi * safe)
    return _normalised(kernel.masked_fill(centre, cutoff**2 / (4 * math.pi)))


def _grid(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """x and y of every cell, size×size float64, zero in the middle."""
    if size < 1 or size % 2 == 0:
        raise ValueError(f"a kernel's size must be odd and positive, got {size}")
    axis = torch.arange(size, dtype=torch.float64) - size // 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return x, y


def _squared_distance(size: int, sigma: tuple[float, float], angle: float) -> torch.Tensor:
    """Squared Mahalanobis distance from the centre: each cell turned back by `angle`, then over sigma."""
    x, y = _grid(size)
    along = math.cos(angle) * x + math.sin(angle) * y
    across = math.cos(angle) * y - math.sin(angle) * x
    return (along / sigma[0]) ** 2 + (across / sigma[1]) ** 2


def _normalised(kernel: torch.Tensor) -> torch.Tensor:
    return (kernel / kernel.sum()).float()


_LUMA = (0.2989, 0.587, 0.114)  # BT.601, as Real-ESRGAN's grey Poisson noise has it


def apply_blur(image: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    """The image correlated with an odd k×k kernel, mirrored at its borders about the edge pixels.

    By FFT: every image has another size here, and convolutions spend longer on preparing for a new one than
    on the work (a 256×256 image and k = 21: 1.5 ms against 7 ms on one core).
    """
    height, width = image.shape[-2:]
    size = kernel.shape[-1]
    rows, columns = (mirrored(n, -(size // 2), n + size // 2, image.device) for n in (height, width))
    padded = image.index_select(1, rows).index_select(2, columns)
    shape = [_fast_length(length) for length in padded.shape[-2:]]
    response = torch.fft.rfft2(kernel.to(image), s=shape).conj()  # conjugate: a correlation
    filtered = torch.fft.irfft2(torch.fft.rfft2(padded, s=shape) * response, s=shape)
    return filtered[..., :height, :width]


def resize(
    image: torch.Tensor, size: tuple[int, int], mode: ResizeMode, *, antialias: bool = False
) -> torch.Tensor:
    """The image at size (height, width); `antialias` widens bilinear and bicubic kernels when shrinking."""
    if tuple(image.shape[-2:]) == size:
        return image
    if mode == "area":
        return F.interpolate(image[None], size=size, mode=mode)[0]
    return F.interpolate(image[None], size=size, mode=mode, antialias=antialias, align_corners=False)[0]


def add_gaussian_noise(
    image: torch.Tensor, sigma: float, *, gray: bool, generator: torch.Generator
) -> torch.Tensor:
    """The image with white noise of `sigma` (on the 0-255 scale), clamped; `gray` shares it over channels."""
    shape = (1 if gray else 3, *image.shape[-2:])
    noise = torch.randn(shape, generator=generator) * (sigma / 255)
    return (image + noise.to(image.device)).clamp(0, 1)


def add_poisson_noise(
    image: torch.Tensor, strength: float, *, gray: bool, generator: torch.Generator
) -> torch.Tensor:
    """The image with photon noise, clamped: `strength` times (Poisson(v * x) / v - x), x the image in 8 bits.

    v is the number of distinct levels of x rounded up to a power of two, so the variance at x is
    strength² * x / v. `gray` draws the noise of the luminance and adds it to all channels.
    """
    signal = image.detach().cpu()
    if gray:
        signal = torch.einsum("c,chw->hw", torch.tensor(_LUMA), signal)[None]
    levels = (signal * 255).round().clamp(0, 255)
    distinct = int((torch.bincount(levels.to(torch.uint8).flatten(), minlength=256) > 0).sum())
    photons = float(2 ** math.ceil(math.log2(distinct)))
    signal = levels / 255
    noise = torch.poisson(signal * photons, generator=generator) / photons - signal
    return (image + (strength * noise).to(image.device)).clamp(0, 1)


def sharpen(image: torch.Tensor, amount: float, sigma: float) -> torch.Tensor:
    """Unsharp masking, clamped: x + amount·(x - x blurred by a Gaussian of `sigma` pixels)."""
    size = 2 * math.ceil(3 * sigma) + 1
    blurred = apply_blur(image, gaussian_kernel(size, (sigma, sigma)))
    return (image + amount * (image - blurred)).clamp(0, 1)


def sharpen_original(image: torch.Tensor) -> torch.Tensor:
    """Unsharp masking as Real-ESRGAN does it to HR images: by half, by sigma 8, where contrast is above 10.

    The mask of such places (on the 0-255 scale) is blurred as the image is.
    """
    kernel = gaussian_kernel(51, (8.0, 8.0))
    difference = image - apply_blur(image, kernel)
    mask = apply_blur((255 * difference.abs() > 10).to(image.dtype), kernel)
    return (mask * (image + 0.5 * difference).clamp(0, 1) + (1 - mask) * image).clamp(0, 1)


def compress_jpeg(image: torch.Tensor, quality: int) -> torch.Tensor:
    """The image after a JPEG round trip by Pillow (4:2:0, quality 1-100), which is on the CPU."""
    levels = (image * 255).round().clamp(0, 255).to(torch.uint8)
    stream = io.BytesIO()
    Image.fromarray(levels.permute(1, 2, 0).contiguous().cpu().numpy()).save(stream, "JPEG", quality=quality)
    with Image.open(stream) as decoded:
        pixels = torch.from_numpy(np.array(decoded))
    return pixels.to(image.device).permute(2, 0, 1).to(image.dtype).contiguous() / 255


def round_to_8_bit(image: torch.Tensor) -> torch.Tensor:
    """The image on the 256 levels that a file holds, in [0, 1]."""
    return (image * 255).round().clamp(0, 255) / 255


@cache
def _fast_length(length: int) -> int:
    """The next number without a prime factor above 5, for which FFTs are several times faster."""
    while True:
        rest = length
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        if rest == 1:
            return length
        length += 1
