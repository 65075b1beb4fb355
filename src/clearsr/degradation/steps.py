"""The single steps of the degradation model, with their parameters already drawn.

Images are 3×H×W float32, RGB, nominally in [0, 1]: sharp kernels and bicubic resizing overshoot, and the
steps that need the range (noise, JPEG) clamp. Noise comes from a CPU generator whatever the image's device.
"""

import io
import math
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from clearsr.config.degradation import ResizeMode
from clearsr.degradation.kernels import gaussian_kernel
from clearsr.image.geometry import mirrored

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
