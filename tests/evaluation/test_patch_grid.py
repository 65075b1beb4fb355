"""The power of a grid of 8 pixels against NumPy, on pictures that have one and photographs that have none."""

import numpy as np
import pytest
import skimage.data
import torch

from clearsr.evaluation.metrics import PERIODS, grid_power, to_luma


@pytest.fixture(scope="module")
def astronaut():
    return torch.from_numpy(skimage.data.astronaut().copy()).permute(2, 0, 1).double() / 255


def along_rows(luma, cycles):
    """One period of one picture by a sum over sines and cosines, no fast transform."""
    luma = luma[:, : luma.shape[1] // 8 * 8]
    length = luma.shape[1]

    def power(k):
        wave = np.exp(-2j * np.pi * k * np.arange(length) / length)
        return np.mean([abs(row @ wave) ** 2 for row in luma])

    at = cycles * length // 8
    beside = [power(at + side * n) for n in range(2, 10) for side in (-1, 1)]
    return power(at) / np.median(beside)


def test_it_equals_a_plain_transform(astronaut):
    picture = astronaut[:, 100:197, 60:203]  # odd sides: the last column and rows do not count
    luma = to_luma(picture)[0].numpy()
    expected = [(along_rows(luma, c) + along_rows(luma.T, c)) / 2 for c in PERIODS.values()]
    np.testing.assert_allclose(grid_power(picture)[0], expected, rtol=1e-9)


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("axis", [1, 2])
def test_a_wave_raises_its_period_alone(astronaut, number, axis):
    before = grid_power(astronaut)[0]
    wave = 0.02 * torch.cos(2 * torch.pi * torch.arange(512) * list(PERIODS.values())[number] / 8)
    after = grid_power(astronaut + wave.reshape((1, 512, 1) if axis == 1 else (1, 1, 512)))[0]
    assert after[number] > 2 * before[number]
    others = [other for other in range(3) if other != number]
    torch.testing.assert_close(after[others], before[others], rtol=1e-6, atol=0)


def test_patches_of_their_own_level_raise_all_and_stronger_ones_more(astronaut):
    levels = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)).double()
    patches = levels.repeat_interleave(8, 0).repeat_interleave(8, 1)
    patches[::8] += 1
    patches[:, ::8] += 1
    values = torch.cat([grid_power(astronaut * 0.8 + 0.1 + s * patches) for s in (0, 0.005, 0.02)])
    assert (values[0] < values[1]).all() and (values[1] < values[2]).all()


@pytest.mark.parametrize("name", ["astronaut", "chelsea", "coffee"])
def test_photographs_have_none(name):
    picture = torch.from_numpy(getattr(skimage.data, name)().copy()).permute(2, 0, 1) / 255
    assert ((grid_power(picture) > 0.8) & (grid_power(picture) < 1.25)).all()


def test_noise_has_none_whatever_the_direction():
    noise = torch.rand(3, 400, 640, generator=torch.Generator().manual_seed(1))
    assert grid_power(noise)[0].tolist() == pytest.approx([1, 1, 1], abs=0.15)
    torch.testing.assert_close(grid_power(noise), grid_power(noise.transpose(1, 2)))


def test_a_batch_gives_the_values_of_its_pictures(astronaut):
    parts = astronaut[:, :96, :120], astronaut[:, 200:296, 200:320]
    torch.testing.assert_close(grid_power(torch.stack(parts)), torch.cat([grid_power(p) for p in parts]))


def test_of_small_pictures_it_is_not_defined():
    assert grid_power(torch.rand(3, 87, 80)).isfinite().all()
    assert grid_power(torch.rand(3, 79, 200)).isnan().all()
