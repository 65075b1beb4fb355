"""Spectra of patterns whose frequencies are known, and radial profiles by a loop."""

import math

import numpy as np
import pytest
import torch

from clearsr.paper.figures.figures_4_9_spectra import (
    high_frequency_share,
    power_spectrum,
    radial_profile,
)


def waves(cycles_down, cycles_across, size=32):
    y, x = torch.meshgrid(torch.arange(size) / size, torch.arange(size) / size, indexing="ij")
    return torch.sin(2 * math.pi * (cycles_down * y + cycles_across * x) + 0.3)[None]


@pytest.mark.parametrize("cycles", [(5, 0), (0, 9), (6, 8)])
def test_a_wave_peaks_at_its_frequency(cycles):
    power = power_spectrum(waves(*cycles))
    row, column = divmod(int(power.argmax()), 32)
    assert {abs(row - 16), abs(column - 16)} == set(cycles)
    profile = radial_profile(power)
    assert profile.frequencies[profile.power.argmax()] == pytest.approx(math.hypot(*cycles) / 16, abs=1 / 32)


def test_energy_is_kept(normal):
    features = normal(3, 12, 10)
    window = np.outer(np.hanning(14)[1:-1], np.hanning(12)[1:-1])
    values = features.double().numpy()
    mean = (values * window).sum((1, 2), keepdims=True) / window.sum()
    energy = (((values - mean) * window) ** 2).sum((1, 2)).mean() * 120
    assert power_spectrum(features).sum().item() == pytest.approx(energy)


def test_profile_equals_a_loop_over_rings(normal):
    power = normal(10, 14).square().double()
    profile = radial_profile(power)
    for ring in range(1, 6):
        inside = [
            power[row, column].item()
            for row in range(10)
            for column in range(14)
            if round(10 * math.hypot((row - 5) / 10, (column - 7) / 14)) == ring
        ]
        assert profile.power[ring - 1].item() == pytest.approx(np.mean(inside))
    assert profile.frequencies.tolist() == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_share_of_high_frequencies():
    noise = torch.randn(16, 64, 64, generator=torch.Generator().manual_seed(0))
    assert high_frequency_share(power_spectrum(noise)) == pytest.approx(1 - math.pi / 16, abs=0.02)
    assert high_frequency_share(power_spectrum(waves(3, 0))) < 0.01
    assert high_frequency_share(power_spectrum(waves(0, 12))) > 0.99
    assert high_frequency_share(power_spectrum(torch.ones(1, 8, 8))) == 0


def test_an_offset_has_no_frequency(normal):
    features = normal(2, 16, 16)
    torch.testing.assert_close(power_spectrum(features + 100), power_spectrum(features), rtol=1e-4, atol=1e-6)
