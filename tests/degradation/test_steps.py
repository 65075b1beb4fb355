"""Each step of the degradation against SciPy, Pillow or the statistics that it promises."""

import io

import numpy as np
import pytest
import scipy.ndimage
import torch
import torch.nn.functional as F
from PIL import Image

from clearsr.degradation.steps import (
    add_gaussian_noise,
    add_poisson_noise,
    apply_blur,
    choose,
    compress_jpeg,
    gaussian_kernel,
    resize,
    round_to_8_bit,
    sharpen,
    sinc_kernel,
)


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def _random_image(height, width, seed=0):
    return torch.rand(3, height, width, generator=_generator(seed))


def _smooth_image(height, width, seed=0):
    coarse = torch.rand(1, 3, 6, 6, generator=_generator(seed))
    return F.interpolate(coarse, size=(height, width), mode="bilinear")[0]


def _as_array(image):
    return (image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


@pytest.mark.parametrize(("height", "width"), [(40, 33), (64, 64), (24, 7), (5, 3), (1, 9)])
@pytest.mark.parametrize(
    "kernel",
    [gaussian_kernel(7, (1.2, 1.2)), gaussian_kernel(21, (3.0, 0.9), 0.7), sinc_kernel(13, 1.5)],
    ids=["iso", "aniso", "sinc"],
)
def test_blur_is_scipy_correlation_with_mirrored_borders(kernel, height, width):
    image = _random_image(height, width)
    expected = [scipy.ndimage.correlate(channel, kernel.numpy(), mode="mirror") for channel in image.numpy()]
    np.testing.assert_allclose(apply_blur(image, kernel), np.stack(expected), atol=2e-6)


def test_blur_is_a_correlation_for_a_kernel_without_symmetry():
    kernel = torch.rand(5, 5, generator=_generator(3))
    image = _random_image(12, 16)
    expected = [scipy.ndimage.correlate(channel, kernel.numpy(), mode="mirror") for channel in image.numpy()]
    np.testing.assert_allclose(apply_blur(image, kernel), np.stack(expected), atol=2e-5)


@pytest.mark.parametrize("size", [(16, 12), (37, 50), (80, 61)])
def test_bicubic_and_bilinear_resizing_with_antialias_is_pillow(size):
    image = _random_image(40, 48)
    for mode, filter_ in (("bicubic", Image.Resampling.BICUBIC), ("bilinear", Image.Resampling.BILINEAR)):
        channels = [
            np.array(Image.fromarray(channel).resize(size[::-1], filter_)) for channel in image.numpy()
        ]
        np.testing.assert_allclose(resize(image, size, mode, antialias=True), np.stack(channels), atol=1e-5)


def test_area_resizing_by_a_whole_factor_averages_blocks():
    image = _random_image(24, 36)
    expected = image.reshape(3, 8, 3, 12, 3).mean(dim=(2, 4))
    torch.testing.assert_close(resize(image, (8, 12), "area"), expected)


def test_resizing_without_antialias_takes_two_neighbours_only():
    image = _random_image(16, 16)
    # Shrinking by 4, the centre of an output pixel lies between inputs 1 and 2 of its block of 4.
    expected = image.reshape(3, 4, 4, 4, 4)[:, :, 1:3, :, 1:3].mean(dim=(2, 4))
    torch.testing.assert_close(resize(image, (4, 4), "bilinear"), expected)


@pytest.mark.parametrize("mode", ["area", "bilinear", "bicubic"])
def test_resizing_to_the_same_size_changes_nothing(mode):
    image = _random_image(9, 11)
    assert torch.equal(resize(image, (9, 11), mode), image)


@pytest.mark.parametrize("quality", [10, 60, 95])
def test_jpeg_is_a_pillow_round_trip(quality):
    image = _smooth_image(37, 50)
    stream = io.BytesIO()
    Image.fromarray(_as_array(image)).save(stream, "JPEG", quality=quality)
    expected = np.array(Image.open(stream))
    np.testing.assert_array_equal(_as_array(compress_jpeg(image, quality)), expected)
    assert not np.array_equal(expected, _as_array(image))


def test_jpeg_clamps_values_outside_the_range():
    image = torch.stack([torch.full((16, 16), value) for value in (-0.3, 1.4, 0.5)])
    torch.testing.assert_close(compress_jpeg(image, 95), compress_jpeg(image.clamp(0, 1), 95))


@pytest.mark.parametrize("sigma", [1.0, 12.0, 25.0])
def test_gaussian_noise_has_the_asked_deviation_and_no_mean(sigma):
    image = torch.full((3, 200, 200), 0.5)
    noise = 255 * (add_gaussian_noise(image, sigma, gray=False, generator=_generator()) - image)
    assert noise.std().item() == pytest.approx(sigma, rel=0.02)
    assert abs(noise.mean().item()) < 4 * sigma / noise.numel() ** 0.5
    correlation = torch.corrcoef(noise.flatten(1))
    assert (correlation - torch.eye(3)).abs().max() < 0.03


def test_grey_noise_is_the_same_in_all_channels():
    image = _smooth_image(64, 64) * 0.4 + 0.3  # far enough from 0 and 1 that nothing is clamped
    for noisy in (
        add_gaussian_noise(image, 5.0, gray=True, generator=_generator()),
        add_poisson_noise(image, 0.5, gray=True, generator=_generator()),
    ):
        noise = noisy - image
        assert noise.std() > 0.005
        torch.testing.assert_close(noise[0], noise[1], rtol=0, atol=1e-6)
        torch.testing.assert_close(noise[0], noise[2], rtol=0, atol=1e-6)


@pytest.mark.parametrize("strength", [0.5, 2.0])
def test_poisson_noise_has_the_variance_of_its_photons(strength):
    # Three levels make four photons' worth of range: variance strength^2 * x / 4.
    rows = torch.tensor([102, 128, 153]).repeat_interleave(100) / 255
    image = rows[None, :, None].expand(3, 300, 300)
    levels = torch.unique((image * 255).round())
    photons = 2 ** np.ceil(np.log2(len(levels)))
    generator = _generator()
    # Small strengths keep the noise away from the clamp; the factor must scale it linearly.
    noise = add_poisson_noise(image, strength / 10, gray=False, generator=generator) - image
    for row in (0, 100, 200):
        block = noise[:, row : row + 100]
        expected = (strength / 10) ** 2 * rows[row].item() / photons
        assert block.var().item() == pytest.approx(expected, rel=0.05)
        assert abs(block.mean().item()) < 5 * (expected / block.numel()) ** 0.5


def test_poisson_photons_double_with_the_number_of_levels():
    variances = []
    for distinct in (64, 128):  # powers of two, hence that many photons
        ramp = (64 + torch.arange(0, 128, 128 // distinct)) / 255
        image = ramp.expand(3, 512, distinct)
        noise = add_poisson_noise(image, 0.1, gray=False, generator=_generator()) - image
        variances.append(noise.var().item())
    assert variances[0] / variances[1] == pytest.approx(2.0, rel=0.05)


def test_grey_poisson_noise_is_that_of_the_luminance():
    image = torch.tensor([40, 120, 200])[:, None, None].expand(3, 300, 300) / 255
    luma = round(0.299 * 40 + 0.587 * 120 + 0.114 * 200) / 255  # ITU-R BT.601
    noise = add_poisson_noise(image, 0.05, gray=True, generator=_generator())[0] - image[0]
    assert noise.var().item() == pytest.approx(0.05**2 * luma, rel=0.03)  # one level: one photon
    assert abs(noise.mean().item()) < 5 * 0.05 * (luma / noise.numel()) ** 0.5


def test_noise_stays_in_range_and_black_gets_no_photons():
    image = torch.cat([torch.zeros(3, 8, 32), torch.ones(3, 8, 32)], dim=1)
    noisy = add_poisson_noise(image, 3.0, gray=False, generator=_generator())
    assert noisy.min() >= 0 and noisy.max() <= 1
    assert torch.equal(noisy[:, :8], image[:, :8])
    noisy = add_gaussian_noise(image, 30.0, gray=False, generator=_generator())
    assert noisy.min() >= 0 and noisy.max() <= 1


def test_photons_of_what_lies_beyond_the_range_are_those_of_its_ends():
    image = 1.1 * _random_image(64, 64) - 0.05
    held = image.clamp(0, 1)
    ours, theirs = (add_poisson_noise(x, 2.0, gray=False, generator=_generator()) for x in (image, held))
    free = (ours > 0) & (ours < 1) & (theirs > 0) & (theirs < 1)  # where nothing is clamped
    assert (free & (image > 1.01)).any()
    torch.testing.assert_close((ours - image)[free], (theirs - held)[free], atol=1e-6, rtol=0)


def test_what_rounding_leaves_beyond_the_last_weight_is_the_last_that_is_possible(monkeypatch):
    monkeypatch.setattr("clearsr.degradation.steps.uniform", lambda low, high, generator: high)
    assert choose("abcd", [0.3, 0.0, 0.7, 0.0], _generator()) == "c"


def test_rounding_gives_the_nearest_of_256_levels():
    image = torch.tensor([-0.2, 0.0, 0.4 / 255, 0.6 / 255, 200.49 / 255, 1.0, 1.7])
    levels = torch.tensor([0, 0, 0, 1, 200, 255, 255])
    torch.testing.assert_close(round_to_8_bit(image) * 255, levels.float())


def test_sharpening_is_unsharp_masking():
    image = torch.rand(3, 24, 30, generator=torch.Generator().manual_seed(3)) * 0.5 + 0.25
    blurred = scipy.ndimage.gaussian_filter(
        image.double().numpy(), (0, 1.1, 1.1), mode="mirror", radius=(0, 4, 4)
    )
    expected = (image.numpy() + 0.8 * (image.numpy() - blurred)).clip(0, 1)
    np.testing.assert_allclose(sharpen(image, 0.8, 1.1).numpy(), expected, atol=1e-5)
