"""PSNR of a result made small again: against Pillow and scikit-image, and what it ranks."""

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from scipy import ndimage
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio

from clearsr.evaluation.measures import lr_consistency
from clearsr.image import resize


@pytest.fixture(scope="module")
def hr():
    return torch.from_numpy(skimage.data.astronaut().copy()).permute(2, 0, 1) / 255


@pytest.fixture(scope="module")
def lr(hr):
    return resize(hr[None], (128, 128))[0].mul(255).round() / 255


def test_it_equals_pillow_and_scikit_image(hr, lr):
    sr = hr.flip(0)
    shrunk = Image.fromarray(sr.mul(255).byte().permute(1, 2, 0).numpy()).resize((128, 128), Image.BICUBIC)
    luma = [rgb2ycbcr(np.asarray(p)) for p in (shrunk, lr.mul(255).round().byte().permute(1, 2, 0).numpy())]
    expected = peak_signal_noise_ratio(luma[0][..., 0], luma[1][..., 0], data_range=255)
    assert lr_consistency(sr, lr).item() == pytest.approx(expected, abs=0.01)


def test_what_shows_its_input_is_consistent_and_blur_and_shifts_are_not(hr, lr):
    assert lr_consistency(hr, lr).item() > 55  # but for rounding, it is what the input was made of
    enlarged = resize(lr[None], (512, 512))[0]
    blurs = [
        torch.from_numpy(ndimage.gaussian_filter(enlarged.numpy(), (0, sigma, sigma)))
        for sigma in (1, 2, 4, 8)
    ]
    values = [lr_consistency(picture, lr).item() for picture in (hr, enlarged, *blurs, hr.roll(16, 2))]
    assert values[1] > 35 and values[:-1] == sorted(values[:-1], reverse=True)
    assert values[-1] < 20


def test_detail_that_the_input_cannot_show_costs_nothing(hr, lr):
    """A checkerboard of single pixels is gone in the small picture."""
    signs = 1 - 2 * ((torch.arange(512)[:, None] + torch.arange(512)) % 2)
    assert lr_consistency((hr * 0.9 + 0.05 + 0.05 * signs), lr * 0.9 + 0.05).item() > 50


def test_a_batch_gives_the_values_of_its_pictures(hr, lr):
    batch = lr_consistency(torch.stack([hr, hr.flip(0)]), torch.stack([lr, lr]))
    torch.testing.assert_close(batch, torch.cat([lr_consistency(hr, lr), lr_consistency(hr.flip(0), lr)]))
