"""The sharpness measures against scipy, and on pictures whose value is known."""

import numpy as np
import pytest
import skimage.data
import torch
from scipy import fft, ndimage, signal

from clearsr.errors import ClearSRError
from clearsr.evaluation.metrics import luma_batch
from clearsr.evaluation.sharpness import gradient_energy, high_frequency_energy, laplacian_variance

MEASURES = [laplacian_variance, gradient_energy, high_frequency_energy]


@pytest.fixture(scope="module")
def cat() -> torch.Tensor:
    return torch.from_numpy(skimage.data.chelsea().copy()).permute(2, 0, 1).double() / 255


def grating(frequency: float, size: int = 128) -> torch.Tensor:
    """A grey sine of `frequency` cycles per pixel along the columns, 1×size×size."""
    return (0.5 + 0.4 * torch.sin(2 * torch.pi * frequency * torch.arange(size))).expand(1, size, size)


def test_the_laplacian_equals_scipy(cat: torch.Tensor):
    expected = ndimage.laplace(luma_batch(cat)[0].numpy())[1:-1, 1:-1].var()
    assert laplacian_variance(cat).item() == pytest.approx(expected, rel=1e-10)


def test_the_gradient_equals_scipy(cat: torch.Tensor):
    luma = luma_batch(cat)[0].numpy()
    gradients = [ndimage.sobel(luma, axis=axis)[1:-1, 1:-1] / 8 for axis in (0, 1)]
    assert gradient_energy(cat).item() == pytest.approx(
        (gradients[0] ** 2 + gradients[1] ** 2).mean(), rel=1e-10
    )


def test_the_spectrum_equals_scipy(cat: torch.Tensor):
    luma = luma_batch(cat)[0].numpy()
    rows, columns = (signal.windows.hann(size + 2)[1:-1] for size in luma.shape)
    window = np.outer(rows, columns)
    luma = (luma - np.average(luma, weights=window)) * window
    power = np.abs(fft.fft2(luma)) ** 2
    frequency = np.hypot(*np.meshgrid(*(fft.fftfreq(size) for size in luma.shape), indexing="ij"))
    expected = power[frequency > 0.25].sum() / power.sum()
    assert high_frequency_energy(cat).item() == pytest.approx(expected, rel=1e-9)


def test_a_ramp_has_its_slope_as_gradient_and_no_curvature():
    ramp = (torch.arange(40, dtype=torch.float64) * 3 / 219).expand(
        1, 30, 40
    )  # 3 grey levels of luma per pixel
    for image in (ramp, ramp.transpose(1, 2)):
        assert gradient_energy(image).item() == pytest.approx(9)
        assert laplacian_variance(image).item() == pytest.approx(0, abs=1e-18)


def test_a_sine_lies_on_its_side_of_half_nyquist():
    assert high_frequency_energy(grating(0.2)).item() < 1e-3
    assert high_frequency_energy(grating(0.3)).item() > 0.999


def test_white_noise_has_the_share_of_the_area():
    noise = torch.rand(1, 256, 256, generator=torch.Generator().manual_seed(4))
    assert high_frequency_energy(noise).item() == pytest.approx(1 - torch.pi / 16, abs=0.02)


@pytest.mark.parametrize("measure", MEASURES)
def test_blur_lowers_every_measure(measure, cat: torch.Tensor):
    blurred = [torch.from_numpy(ndimage.gaussian_filter(cat.numpy(), (0, s, s))) for s in (0.7, 1.5, 3)]
    values = [measure(image).item() for image in (cat, *blurred)]
    assert values == sorted(values, reverse=True)
    assert values[-1] < values[0] / 5


@pytest.mark.parametrize("measure", MEASURES)
def test_a_flat_picture_has_none(measure):
    assert measure(torch.full((3, 33, 47), 0.3)).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("measure", MEASURES)
def test_a_batch_gives_the_values_of_its_images(measure, cat: torch.Tensor):
    batch = torch.stack([cat[:, :100, :90], cat[:, 100:200, 100:190]])
    torch.testing.assert_close(measure(batch), torch.cat([measure(batch[0]), measure(batch[1])]))


@pytest.mark.parametrize("measure", MEASURES)
def test_a_picture_without_inner_pixels_is_an_error(measure):
    assert measure(torch.rand(3, 3, 3)).shape == (1,)
    with pytest.raises(ClearSRError, match="40x2.*at least 3x3"):
        measure(torch.rand(3, 2, 40))
