"""Power spectra of features and their radial profiles (Figures 4 and 9).

Each channel loses its mean and is weighted with a Hann window, without which the jump between opposite
borders would be the loudest high frequency; powers are averaged over the channels.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Profile(NamedTuple):
    """A spectrum by distance from its centre.

    Attributes:
        frequencies: share of the Nyquist frequency, rising, the last is 1.
        power: mean power in the ring around each frequency.
    """

    frequencies: Tensor
    power: Tensor


def power_spectrum(features: Tensor) -> Tensor:
    """|FFT|² of C×h×w features, mean over the channels: h×w float64 on the CPU, frequency 0 at h//2, w//2."""
    values = features.detach().cpu().double()
    height, width = values.shape[-2:]
    window = _hann(height, values)[:, None] * _hann(width, values)
    mean = (values * window).sum(dim=(-2, -1), keepdim=True) / window.sum()
    power = torch.fft.fft2((values - mean) * window).abs().square().mean(dim=0)
    return torch.fft.fftshift(power)


def radial_profile(power: Tensor) -> Profile:
    """Means of an h×w spectrum over rings, one for each whole frequency that the short side can hold.

    Ring k holds what rounds to k cycles per short side, k = 1 to min(h, w) // 2; the zero frequency and the
    corners beyond the Nyquist frequency are left out.
    """
    rings = min(power.shape) // 2
    radius = (_radius(power) * 2 * rings).round().long()  # Nyquist is 0.5 cycles per cell
    inside = (radius >= 1) & (radius <= rings)
    sums = torch.zeros(rings + 1, dtype=power.dtype).index_add_(0, radius[inside], power[inside])
    counts = torch.bincount(radius[inside], minlength=rings + 1)
    frequencies = torch.arange(1, rings + 1, dtype=power.dtype) / rings
    return Profile(frequencies, sums[1:] / counts[1:].clamp_min(1))


def high_frequency_share(power: Tensor) -> float:
    """Share of the power beyond half the Nyquist frequency, corners included; 0.80 for white noise."""
    total = power.sum()
    return float(power[_radius(power) > 0.25].sum() / total) if total > 0 else 0.0


def _hann(size: int, like: Tensor) -> Tensor:
    """Hann window whose zeros lie just outside the features, so that every cell counts."""
    return torch.hann_window(size + 2, periodic=False, dtype=like.dtype, device=like.device)[1:-1]


def _radius(power: Tensor) -> Tensor:
    """Cycles per cell of each entry of an h×w spectrum with zero frequency at h//2, w//2."""
    vertical, horizontal = (torch.fft.fftshift(torch.fft.fftfreq(n, dtype=power.dtype)) for n in power.shape)
    return (vertical[:, None].square() + horizontal.square()).sqrt()
