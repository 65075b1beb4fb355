"""Blur kernels against SciPy's densities and Bessel function, and the symmetries they must have."""

import math

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch

from clearsr.degradation.steps import (
    gaussian_kernel,
    generalized_gaussian_kernel,
    plateau_kernel,
    sinc_kernel,
)

KERNELS = {
    "iso": lambda size: gaussian_kernel(size, (1.3, 1.3)),
    "aniso": lambda size: gaussian_kernel(size, (2.5, 0.7), 0.6),
    "narrow": lambda size: gaussian_kernel(size, (0.2, 0.2)),
    "generalized_iso": lambda size: generalized_gaussian_kernel(size, (1.5, 1.5), 0.5),
    "generalized_aniso": lambda size: generalized_gaussian_kernel(size, (3.0, 1.0), 4.0, -2.0),
    "plateau_iso": lambda size: plateau_kernel(size, (0.2, 0.2), 1.7),
    "plateau_aniso": lambda size: plateau_kernel(size, (1.0, 2.0), 2.0, 1.0),
    "sinc_low": lambda size: sinc_kernel(size, math.pi / 5),
    "sinc_high": lambda size: sinc_kernel(size, math.pi),
}


def _offsets(size):
    axis = np.arange(size) - size // 2
    return np.stack(np.meshgrid(axis, axis, indexing="xy"), axis=-1).astype(float)  # (x, y) of each cell


def _covariance(sigma, angle):
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return turn @ np.diag(np.square(sigma)) @ turn.T


@pytest.mark.parametrize("size", [7, 13, 21])
@pytest.mark.parametrize("name", KERNELS)
def test_kernel_sums_to_one_and_is_symmetric_about_its_centre(name, size):
    kernel = KERNELS[name](size)
    assert kernel.shape == (size, size) and kernel.dtype == torch.float32
    assert kernel.sum().item() == pytest.approx(1.0, abs=1e-6)
    torch.testing.assert_close(kernel, kernel.flip(0, 1), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", ["iso", "generalized_iso", "plateau_iso", "sinc_low", "sinc_high"])
def test_round_kernel_is_unchanged_by_a_quarter_turn(name):
    kernel = KERNELS[name](11)
    torch.testing.assert_close(kernel, kernel.rot90(), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(("sigma", "angle"), [((1.3, 1.3), 0.0), ((3.0, 0.8), 0.0), ((2.5, 0.7), 0.6)])
def test_gaussian_is_the_normal_density_normalised(sigma, angle):
    density = scipy.stats.multivariate_normal([0, 0], _covariance(sigma, angle)).pdf(_offsets(15))
    np.testing.assert_allclose(gaussian_kernel(15, sigma, angle), density / density.sum(), atol=1e-7)


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.5])
def test_generalized_and_plateau_kernels_follow_their_formulas(beta):
    sigma, angle = (2.0, 1.1), -0.9
    offsets = _offsets(9)
    inverse = np.linalg.inv(_covariance(sigma, angle))
    distance = np.einsum("hwi,ij,hwj->hw", offsets, inverse, offsets)
    pointed = np.exp(-0.5 * distance**beta)
    flat = 1 / (distance**beta + 1)
    kernel = generalized_gaussian_kernel(9, sigma, beta, angle)
    np.testing.assert_allclose(kernel, pointed / pointed.sum(), atol=1e-7)
    np.testing.assert_allclose(plateau_kernel(9, sigma, beta, angle), flat / flat.sum(), atol=1e-7)


@pytest.mark.parametrize("cutoff", [math.pi / 5, 1.7, math.pi])
def test_sinc_kernel_follows_the_bessel_formula(cutoff):
    radius = np.hypot(*np.moveaxis(_offsets(13), -1, 0))
    with np.errstate(invalid="ignore"):
        expected = cutoff * scipy.special.j1(cutoff * radius) / (2 * np.pi * radius)
    expected[6, 6] = cutoff**2 / (4 * np.pi)
    np.testing.assert_allclose(sinc_kernel(13, cutoff), expected / expected.sum(), atol=1e-6)


def test_sinc_kernel_passes_slow_waves_and_stops_fast_ones():
    x = torch.arange(21) - 10.0
    response = {
        frequency: (sinc_kernel(21, 1.2) * torch.cos(frequency * x)).sum().item() for frequency in (0.3, 2.8)
    }
    assert response[0.3] > 0.8
    assert abs(response[2.8]) < 0.15


@pytest.mark.parametrize("size", [0, 8, -3])
def test_kernel_of_even_or_no_size_is_refused(size):
    with pytest.raises(ValueError, match="odd"):
        gaussian_kernel(size, (1.0, 1.0))


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_of_one_pixel_changes_nothing(name):
    assert KERNELS[name](1).tolist() == [[1.0]]
