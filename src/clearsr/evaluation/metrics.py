"""PSNR and SSIM on luma (or on RGB), as the super-resolution literature reports them; sharpness; patch grid.

Luma is BT.601 in studio range (16..235 on the 0-255 scale), the Y of MATLAB's `rgb2ycbcr` and of BasicSR.
SSIM is the original one of Wang et al. 2004: Gaussian window 11x11 with sigma 1.5, averaged over the
positions where it fits. Everything is computed in float64; these are measures, not losses (no gradient
flows).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from clearsr.errors import ClearSRError

SSIM_WINDOW = 11
SSIM_SIGMA = 1.5
PYIQA_EPSILON = 1e-8
_PEAK = 255.0
_LUMA_WEIGHTS = (65.481, 128.553, 24.966)  # sum 219 = 235 - 16
_LUMA_OFFSET = 16.0


def to_luma(image: Tensor) -> Tensor:
    """BT.601 studio-range luma of an image, on the 0-255 scale (black 16, white 235), not rounded.

    Args:
        image: B×C×H×W or C×H×W, floating point in [0, 1]; C is 3 (RGB) or 1 (grey).

    Returns:
        B×1×H×W or 1×H×W, float64, on the image's device (on the CPU if that device has no float64).

    Raises:
        ClearSRError: the tensor is not such an image.
    """
    image = _as_double(image)
    if image.shape[-3] == 1:
        return image * sum(_LUMA_WEIGHTS) + _LUMA_OFFSET
    red, green, blue = image.split(1, dim=-3)
    return _LUMA_WEIGHTS[0] * red + _LUMA_WEIGHTS[1] * green + _LUMA_WEIGHTS[2] * blue + _LUMA_OFFSET


def _as_double(image: Tensor) -> Tensor:
    """The picture in float64; refuses what is none."""
    if image.ndim not in (3, 4) or image.shape[-3] not in (1, 3) or image.numel() == 0:
        raise ClearSRError(
            f"image: a tensor of shape {tuple(image.shape)} is no picture; "
            "accepted are B×C×H×W and C×H×W with 3 (RGB) or 1 (grey) channels"
        )
    if not image.is_floating_point():
        raise ClearSRError(f"image: values are {image.dtype}; accepted are floating-point values in [0, 1]")
    image = image.detach()
    if image.device.type == "mps":  # MPS has no float64
        image = image.cpu()
    return image.double()


def luma_batch(image: Tensor) -> Tensor:
    """`to_luma` as B×H×W whatever the input's shape; a single image becomes a batch of one."""
    return to_luma(image).reshape(-1, *image.shape[-2:])


def psnr(
    sr: Tensor,
    hr: Tensor,
    crop_border: int = 0,
    epsilon: float = 0.0,
    round_luma: bool = False,
    rgb: bool = False,
) -> Tensor:
    """Peak signal-to-noise ratio of the luma in dB, one value per image; infinite for identical images.

    Args:
        sr: B×C×H×W or C×H×W in [0, 1], the image to judge.
        hr: the same size, the truth.
        crop_border: pixels to leave out on each side (classical tables leave out the upscale factor).
        epsilon: added to the mean squared error on the scale of [0, 1], unless that is zero; pyiqa has
            `PYIQA_EPSILON` there, which takes off 0.0004 dB at 40 dB and 0.004 dB at 50 dB.
        round_luma: round the luma to whole levels first, as MATLAB's `rgb2ycbcr` of 8-bit images does.
        rgb: take all three channels in place of the luma.

    Returns:
        B values (one for a single image), float64.

    Raises:
        ClearSRError: the sizes differ, or the crop leaves nothing.
    """
    of_sr, of_hr = _comparable(sr, hr, crop_border, rgb)
    if round_luma:
        of_sr, of_hr = of_sr.round(), of_hr.round()
    error = (of_sr - of_hr).square().mean(dim=(-3, -2, -1))
    return 10 * torch.log10(_PEAK**2 / torch.where(error > 0, error + epsilon * _PEAK**2, error))


def ssim(sr: Tensor, hr: Tensor, crop_border: int = 0, round_luma: bool = False, rgb: bool = False) -> Tensor:
    """Structural similarity of the luma, at most 1, one value per image.

    Arguments and result are those of `psnr`; what remains after the crop must measure at least 11 pixels.

    Args:
        round_luma: round the luma to whole levels first and count negative contrast terms as 0, as pyiqa does
            (with which the tables of the diffusion papers were made); else as scikit-image and BasicSR do.
        rgb: the mean of the three channels' values in place of the luma's.

    Raises:
        ClearSRError: the sizes differ, or the images are smaller than the window.
    """
    of_sr, of_hr = _comparable(sr, hr, crop_border, rgb)
    if round_luma:
        of_sr, of_hr = of_sr.round(), of_hr.round()
    if min(of_sr.shape[-2:]) < SSIM_WINDOW:
        raise ClearSRError(
            f"ssim: {_size(of_sr)} pixels remain after a crop of {crop_border} per side; "
            f"its window needs at least {SSIM_WINDOW}x{SSIM_WINDOW}"
        )
    taps = gaussian_taps(SSIM_WINDOW, SSIM_SIGMA)
    mean_sr, mean_hr = filter_valid(of_sr, taps), filter_valid(of_hr, taps)
    variance_sr = filter_valid(of_sr.square(), taps) - mean_sr.square()
    variance_hr = filter_valid(of_hr.square(), taps) - mean_hr.square()
    covariance = filter_valid(of_sr * of_hr, taps) - mean_sr * mean_hr
    c1, c2 = (0.01 * _PEAK) ** 2, (0.03 * _PEAK) ** 2
    luminance = (2 * mean_sr * mean_hr + c1) / (mean_sr.square() + mean_hr.square() + c1)
    contrast_structure = (2 * covariance + c2) / (variance_sr + variance_hr + c2)
    if round_luma:
        contrast_structure = contrast_structure.clamp_min(0)
    return (luminance * contrast_structure).mean(dim=(-3, -2, -1))


def gaussian_taps(size: int, sigma: float) -> list[float]:
    """A sampled Gaussian of `size` taps that sum to one."""
    positions = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    taps = torch.exp(-0.5 * (positions / sigma).square())
    return (taps / taps.sum()).tolist()


def filter_valid(maps: Tensor, taps: list[float]) -> Tensor:
    """Correlation with the separable kernel taps ⊗ taps, where it fits: ...×H×W -> ...×(H-n+1)×(W-n+1).

    Shifted sums, no convolution: PyTorch's float64 convolution on the CPU unfolds the whole image first.
    """
    for dim in (-2, -1):
        length = maps.shape[dim] - len(taps) + 1
        total = maps.narrow(dim, 0, length) * taps[0]
        for start, tap in enumerate(taps[1:], start=1):
            total.add_(maps.narrow(dim, start, length), alpha=tap)
        maps = total
    return maps


def _comparable(sr: Tensor, hr: Tensor, crop_border: int, rgb: bool) -> tuple[Tensor, Tensor]:
    """Luma or channels of both on the scale of 0-255 and the device of `sr`, B×C×H×W, cropped and checked."""
    of_sr, of_hr = (_channels(image) if rgb else luma_batch(image)[:, None] for image in (sr, hr))
    if of_sr.shape != of_hr.shape:
        raise ClearSRError(
            f"sizes (width x height) must be equal: sr is {_size(of_sr)}, hr is {_size(of_hr)}"
        )
    if crop_border < 0 or 2 * crop_border >= min(of_sr.shape[-2:]):
        raise ClearSRError(
            f"crop_border: {crop_border} pixels per side do not fit an image of {_size(of_sr)}; "
            f"accepted are 0 to {(min(of_sr.shape[-2:]) - 1) // 2}"
        )
    of_hr = of_hr.to(of_sr.device)
    border = (-crop_border,) * 4
    return F.pad(of_sr, border), F.pad(of_hr, border)


def _channels(image: Tensor) -> Tensor:
    """B×3×H×W float64 on the scale of 0-255; a grey image has its one channel three times."""
    values = _as_double(image) * _PEAK
    return values.reshape(-1, *values.shape[-3:]).expand(-1, 3, -1, -1)


def _size(images: Tensor) -> str:
    """`640x480`, with the number of images in front if there are several."""
    count, height, width = images.shape[0], *images.shape[-2:]
    return f"{width}x{height}" if count == 1 else f"{count} images of {width}x{height}"


# How sharp a whole picture is, in two classical numbers that need no reference and no model.
# All work on the luma of `metrics.to_luma` (0-255 scale), invent no pixels beyond the border and return one
# float64 value per image. They compare versions of the same picture; between different pictures they measure
# the content. Noise and ringing count as sharpness: read them beside PSNR or NIQE, never alone.
_MINIMUM_SIZE = 3


def laplacian_variance(image: Tensor) -> Tensor:
    """Variance of the 4-neighbour Laplacian (Pech-Pacheco et al. 2000); 0 for a flat picture or a ramp.

    Args:
        image: B×C×H×W or C×H×W in [0, 1], RGB or grey.

    Returns:
        B values, in squared grey levels.

    Raises:
        ClearSRError: the image is smaller than 3x3.
    """
    luma = _checked_luma(image)
    neighbours = luma[:, :-2, 1:-1] + luma[:, 2:, 1:-1] + luma[:, 1:-1, :-2] + luma[:, 1:-1, 2:]
    return (neighbours - 4 * luma[:, 1:-1, 1:-1]).var(dim=(-2, -1), correction=0)


def gradient_energy(image: Tensor) -> Tensor:
    """Mean squared gradient by the Sobel operator; s² for a ramp that rises s grey levels per pixel.

    This is the Tenengrad measure without a threshold. Arguments and errors are those of `laplacian_variance`.
    """
    luma = _checked_luma(image)
    smoothed_down = (luma[:, :-2] + 2 * luma[:, 1:-1] + luma[:, 2:]) / 4
    smoothed_across = (luma[:, :, :-2] + 2 * luma[:, :, 1:-1] + luma[:, :, 2:]) / 4
    horizontal = (smoothed_down[:, :, 2:] - smoothed_down[:, :, :-2]) / 2
    vertical = (smoothed_across[:, 2:] - smoothed_across[:, :-2]) / 2
    return (horizontal.square() + vertical.square()).mean(dim=(-2, -1))


def _checked_luma(image: Tensor) -> Tensor:
    """B×H×W luma of an image that has at least one inner pixel."""
    luma = luma_batch(image)
    height, width = luma.shape[-2:]
    if min(height, width) < _MINIMUM_SIZE:
        raise ClearSRError(f"sharpness: the image is {width}x{height}; it must measure at least 3x3 pixels")
    return luma


# Whether a picture shows a grid of 8 pixels, as networks that work on patches of 8 may leave.
# A grid is power at its period and at the harmonics of it, where photographs have no more than at the
# frequencies beside.
PERIODS = {"8": 1, "4": 2, "8_3": 3}  # pixels -> cycles in 8 pixels
MINIMUM_SIDE = 80  # below it the neighbours of one period reach the next
_NEIGHBOURS = range(2, 10)  # on each side, the nearest left out


def grid_power(image: Tensor) -> Tensor:
    """Power of the luma at periods of 8, 4 and 8/3 pixels over that beside them: B×3, near 1 without a grid.

    Of every row, cut to a multiple of 8, the power spectrum is taken (discrete Fourier transform, no window),
    averaged over the rows, and its value at a period divided by the median of the 8 frequencies on each side,
    without the nearest; the same of the columns, and the mean of both.

    Args:
        image: B×C×H×W or C×H×W in [0, 1], RGB or grey.

    Returns:
        B×3, float64; NaN where a side is shorter than `MINIMUM_SIDE`.
    """
    luma = luma_batch(image)
    return (_along_rows(luma) + _along_rows(luma.transpose(1, 2))) / 2


def _along_rows(luma: Tensor) -> Tensor:
    """The ratios of B×H×W, B×3, between the columns of one row."""
    length = luma.shape[-1] // 8 * 8
    if length < MINIMUM_SIDE:
        return luma.new_full((len(luma), len(PERIODS)), torch.nan)
    power = torch.fft.rfft(luma[..., :length]).abs().square().mean(1)
    ratios = []
    for cycles in PERIODS.values():
        at = length // 8 * cycles
        beside = torch.cat([power[:, [at - n, at + n]] for n in _NEIGHBOURS], 1)
        ratios.append(power[:, at] / beside.quantile(0.5, dim=1))
    return torch.stack(ratios, 1)
