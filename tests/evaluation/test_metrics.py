"""PSNR and SSIM against scikit-image, and what they refuse."""

import numpy as np
import pytest
import skimage.data
import torch
from scipy import ndimage
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from clearsr.errors import ClearSRError
from clearsr.evaluation.metrics import filter_valid, gaussian_taps, psnr, ssim, to_luma


def photograph(name: str) -> torch.Tensor:
    pixels = np.asarray(getattr(skimage.data, name)())
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).double() / 255


def noisy(image: torch.Tensor, strength: float = 0.05) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(image.shape, generator=generator, dtype=torch.float64)
    return (image + strength * noise).clamp(0, 1)


def reference_luma(image: torch.Tensor, crop: int) -> np.ndarray:
    luma = rgb2ycbcr(image.permute(1, 2, 0).numpy())[..., 0]
    return luma[crop : luma.shape[0] - crop, crop : luma.shape[1] - crop]


def reference_ssim(first: np.ndarray, second: np.ndarray) -> float:
    return structural_similarity(
        first, second, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255
    )


IMAGES = {
    "random": torch.rand(3, 37, 52, generator=torch.Generator().manual_seed(1), dtype=torch.float64),
    "astronaut": photograph("astronaut"),
    "odd size": photograph("chelsea"),
}


@pytest.mark.parametrize("crop", [0, 4])
@pytest.mark.parametrize("name", IMAGES)
def test_both_metrics_equal_scikit_image(name: str, crop: int):
    hr = IMAGES[name]
    sr = noisy(hr)
    first, second = reference_luma(sr, crop), reference_luma(hr, crop)
    expected_psnr = peak_signal_noise_ratio(second, first, data_range=255)
    assert psnr(sr, hr, crop).item() == pytest.approx(expected_psnr, abs=1e-6)
    assert ssim(sr, hr, crop).item() == pytest.approx(reference_ssim(first, second), abs=1e-6)


@pytest.mark.parametrize("name", IMAGES)
def test_all_three_channels_equal_scikit_image(name: str):
    hr, sr = IMAGES[name], noisy(IMAGES[name])
    first, second = (255 * image.permute(1, 2, 0).numpy() for image in (sr, hr))
    expected = peak_signal_noise_ratio(second, first, data_range=255)
    assert psnr(sr, hr, rgb=True).item() == pytest.approx(expected, abs=1e-6)
    channels = [reference_ssim(first[..., i], second[..., i]) for i in range(3)]
    assert ssim(sr, hr, rgb=True).item() == pytest.approx(np.mean(channels), abs=1e-6)
    grey = hr[:1]
    assert (
        psnr(noisy(grey), grey, rgb=True).item() == psnr(noisy(grey).expand(3, -1, -1), grey, rgb=True).item()
    )


def test_rounded_luma_is_that_of_whole_levels():
    hr, sr = noisy(IMAGES["astronaut"], 0.01), noisy(IMAGES["astronaut"])  # no luma half-way between levels
    first, second = (np.round(reference_luma(image, 2)) for image in (sr, hr))
    expected = peak_signal_noise_ratio(second, first, data_range=255)
    assert psnr(sr, hr, 2, round_luma=True).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("strength", [0.05, 0.002])
def test_an_epsilon_is_added_to_the_error_on_the_scale_of_one(strength: float):
    hr, sr = IMAGES["astronaut"], noisy(IMAGES["astronaut"], strength)
    first, second = reference_luma(sr, 0) / 255, reference_luma(hr, 0) / 255
    expected = -10 * np.log10(np.square(first - second).mean() + 1e-6)
    assert psnr(sr, hr, epsilon=1e-6).item() == pytest.approx(expected, abs=1e-9)


def test_luma_equals_scikit_image_and_spans_the_studio_range():
    image = IMAGES["odd size"]
    np.testing.assert_allclose(to_luma(image)[0].numpy(), reference_luma(image, 0), atol=1e-9)
    extremes = torch.stack([torch.zeros(3, 2, 2), torch.ones(3, 2, 2)])
    assert to_luma(extremes).shape == (2, 1, 2, 2)
    assert to_luma(extremes)[:, 0, 0, 0].tolist() == pytest.approx([16, 235])


def test_a_grey_image_counts_as_its_rgb_copy():
    grey = torch.rand(1, 30, 40, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(to_luma(grey), to_luma(grey.expand(3, -1, -1)))
    assert psnr(noisy(grey), grey.expand(3, -1, -1)).item() > 20


def test_a_batch_gives_the_values_of_its_images():
    hr = torch.rand(3, 3, 24, 31, generator=torch.Generator().manual_seed(5))
    sr = torch.stack([noisy(image, 0.02 * (i + 1)) for i, image in enumerate(hr)])
    for metric in (psnr, ssim):
        together = metric(sr, hr, 2)
        alone = torch.cat([metric(sr[i], hr[i], 2) for i in range(3)])
        assert together.dtype == torch.float64
        torch.testing.assert_close(together, alone)
        assert together[0] > together[1] > together[2]


def test_identical_images():
    image = IMAGES["random"]
    assert psnr(image, image).item() == psnr(image, image, epsilon=1e-8).item() == float("inf")
    assert ssim(image, image).item() == pytest.approx(1.0, abs=1e-12)


def test_psnr_of_a_known_error():
    grey = torch.full((1, 8, 8), 0.5, dtype=torch.float64)
    brighter = grey + 10 / 219  # ten grey levels of luma
    assert psnr(brighter, grey).item() == pytest.approx(20 * np.log10(255 / 10), abs=1e-9)


def test_the_crop_removes_the_border_on_all_sides():
    hr = torch.full((3, 20, 24), 0.5)
    sr = hr.clone()
    sr[:, :3], sr[:, -3:], sr[..., :3], sr[..., -3:] = 0, 1, 0, 1
    assert psnr(sr, hr, 3).item() == float("inf")
    assert psnr(sr, hr, 2).isfinite().all()


def test_the_separable_filter_is_the_two_dimensional_correlation():
    values = torch.rand(2, 15, 18, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    taps = gaussian_taps(7, 7 / 6)
    assert sum(taps) == pytest.approx(1)
    kernel = np.outer(taps, taps)
    for plane, filtered in zip(values, filter_valid(values, taps), strict=True):
        expected = ndimage.correlate(plane.numpy(), kernel)[3:-3, 3:-3]
        np.testing.assert_allclose(filtered.numpy(), expected, atol=1e-12)


def test_half_precision_is_measured_in_double():
    hr = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(8)).half()
    sr = (hr + 0.01).half()
    torch.testing.assert_close(psnr(sr, hr), psnr(sr.double(), hr.double()))


def test_no_gradient_is_kept():
    sr = torch.rand(3, 16, 16, requires_grad=True)
    assert not psnr(sr, torch.rand(3, 16, 16)).requires_grad


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_different_sizes_are_an_error_that_names_both(metric):
    with pytest.raises(ClearSRError, match="sr is 40x32, hr is 41x32"):
        metric(torch.rand(3, 32, 40), torch.rand(3, 32, 41))
    with pytest.raises(ClearSRError, match="2 images of 40x32, hr is 40x32"):
        metric(torch.rand(2, 3, 32, 40), torch.rand(3, 32, 40))


@pytest.mark.parametrize("crop", [-1, 16])
def test_an_impossible_crop_is_an_error(crop: int):
    with pytest.raises(ClearSRError, match=r"crop_border.*0 to 15"):
        psnr(torch.rand(3, 32, 40), torch.rand(3, 32, 40), crop)


def test_ssim_needs_room_for_its_window():
    assert ssim(torch.rand(3, 11, 11), torch.rand(3, 11, 11)).shape == (1,)
    with pytest.raises(ClearSRError, match="at least 11x11"):
        ssim(torch.rand(3, 10, 40), torch.rand(3, 10, 40))
    with pytest.raises(ClearSRError, match="crop of 4"):
        ssim(torch.rand(3, 18, 40), torch.rand(3, 18, 40), 4)


@pytest.mark.parametrize("shape", [(4, 8, 8), (8, 8), (1, 1, 3, 8, 8), (3, 0, 8)])
def test_other_shapes_are_an_error(shape: tuple[int, ...]):
    with pytest.raises(ClearSRError, match="image: a tensor of shape"):
        to_luma(torch.zeros(shape))


def test_integers_are_an_error():
    with pytest.raises(ClearSRError, match=r"uint8.*\[0, 1\]"):
        to_luma(torch.zeros(3, 8, 8, dtype=torch.uint8))
