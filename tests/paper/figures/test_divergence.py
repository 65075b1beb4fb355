"""Divergences against scipy's entropy, numpy's histograms and a loop over cells."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import entropy, norm

from clearsr.paper.figures.figures_2_8_control import (
    BINS,
    REACH,
    activity,
    divergences,
    kl_divergence,
    value_histogram,
)


def test_kl_equals_scipys(normal):
    p, q = normal(200, seed=1).double().softmax(0), normal(200, seed=2).double().softmax(0)
    assert kl_divergence(p, q) == pytest.approx(entropy(p, q))
    assert kl_divergence(p, p) == 0


def test_kl_of_two_gaussians_is_the_known_one():
    edges = np.linspace(-12, 12, 4001)
    p, q = (torch.from_numpy(np.diff(norm(mean, spread).cdf(edges))) for mean, spread in ((0, 1), (1, 2)))
    known = math.log(2) + (1 + 1) / (2 * 4) - 1 / 2
    assert kl_divergence(p, q) == pytest.approx(known, abs=1e-4)


def test_a_cell_without_probability_adds_nothing():
    p, q = torch.tensor([0.0, 1.0]).double(), torch.tensor([0.5, 0.5]).double()
    assert kl_divergence(p, q) == pytest.approx(math.log(2))


def test_activity_is_the_root_mean_square_by_a_loop(normal):
    features = normal(3, 4, 6).numpy().astype(float)
    magnitudes = np.zeros((2, 3))
    for row in range(2):
        for column in range(3):
            cells = features[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            deviation = cells - features.mean(axis=(1, 2))[:, None, None]
            magnitudes[row, column] = math.sqrt((deviation**2).mean())
    expected = magnitudes / magnitudes.sum()
    np.testing.assert_allclose(activity(torch.from_numpy(features), (2, 3)), expected, rtol=1e-4)


def test_histogram_equals_numpys_of_standardised_channels(normal):
    features = 3 + 2 * normal(5, 16, 16)
    channels = features.double().flatten(1).numpy()
    standard = (channels - channels.mean(1, keepdims=True)) / channels.std(1, keepdims=True)
    counts, _ = np.histogram(standard.clip(-REACH, REACH), BINS, (-REACH, REACH))
    np.testing.assert_allclose(value_histogram(features), (counts + 0.5) / (counts + 0.5).sum())


@pytest.mark.parametrize("change", [lambda x: 7 * x, lambda x: x + torch.arange(4.0)[:, None, None]])
def test_scale_and_offsets_change_nothing(normal, change):
    signal, z_lr = normal(4, 8, 8), normal(3, 16, 16, seed=1)
    for name, value in divergences(change(signal), z_lr).items():
        assert value == pytest.approx(divergences(signal, z_lr)[name], abs=1e-5)


def test_what_is_lively_in_the_same_places_is_near(normal):
    envelope = torch.linspace(0, 3, 16).exp()[None, :, None]
    z_lr = normal(4, 16, 16) * envelope
    same, other = normal(32, 16, 16, seed=1) * envelope, normal(32, 16, 16, seed=1) * envelope.flip(1)
    assert divergences(same, z_lr)["spatial"] < 0.1 < 1 < divergences(other, z_lr)["spatial"]


def test_constant_features_are_everywhere_equally_quiet():
    flat = torch.ones(4, 6, 6)
    torch.testing.assert_close(activity(flat), torch.full((6, 6), 1 / 36, dtype=torch.float64))
    assert value_histogram(flat).argmax() == BINS // 2
