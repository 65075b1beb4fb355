"""The sharpness measures against scipy, and on pictures whose value is known."""

import pytest
import skimage.data
import torch
from scipy import ndimage

from clearsr.errors import ClearSRError
from clearsr.evaluation.metrics import gradient_energy, laplacian_variance, luma_batch

MEASURES = [laplacian_variance, gradient_energy]


@pytest.fixture(scope="module")
def cat() -> torch.Tensor:
    return torch.from_numpy(skimage.data.chelsea().copy()).permute(2, 0, 1).double() / 255


def test_the_laplacian_equals_scipy(cat: torch.Tensor):
    expected = ndimage.laplace(luma_batch(cat)[0].numpy())[1:-1, 1:-1].var()
    assert laplacian_variance(cat).item() == pytest.approx(expected, rel=1e-10)


def test_the_gradient_equals_scipy(cat: torch.Tensor):
    luma = luma_batch(cat)[0].numpy()
    gradients = [ndimage.sobel(luma, axis=axis)[1:-1, 1:-1] / 8 for axis in (0, 1)]
    assert gradient_energy(cat).item() == pytest.approx(
        (gradients[0] ** 2 + gradients[1] ** 2).mean(), rel=1e-10
    )


def test_a_ramp_has_its_slope_as_gradient_and_no_curvature():
    columns = torch.arange(40, dtype=torch.float64)
    ramp = (columns * 3 / 219).expand(1, 30, 40)  # 3 grey levels of luma per pixel
    for image in (ramp, ramp.transpose(1, 2)):
        assert gradient_energy(image).item() == pytest.approx(9)
        assert laplacian_variance(image).item() == pytest.approx(0, abs=1e-18)


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
