"""Blur kernels of the degradation model (Real-ESRGAN, Wang et al. 2021): pure functions of their parameters.

All are size×size float32, symmetric about the centre and sum to 1. x runs along columns and y down rows;
`sigma` is (sigma_x, sigma_y) in pixels before the kernel is turned by `angle` (radians, from x towards y).
"""

import math

import torch


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
