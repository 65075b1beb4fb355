"""Resizing against Pillow, mirrored padding against numpy, and transparency that does not bleed."""

import numpy as np
import pytest
import torch
from PIL import Image

from clearsr.image import crop, fill_transparent, pad_to_multiple, resize, resize_alpha, to_signed, to_unit
from clearsr.image.geometry import resize_axis, resize_share


def _picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _batch(samples: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(samples).permute(2, 0, 1)[None].float() / 255


@pytest.mark.parametrize("size", [(64, 96), (128, 192), (37, 50), (8, 9), (64, 31), (1, 1), (200, 20)])
def test_resize_equals_pillow_within_one_level(size: tuple[int, int]) -> None:
    samples = _picture(64, 96)
    expected = np.asarray(Image.fromarray(samples).resize(size[::-1], Image.Resampling.BICUBIC)).astype(int)
    result = (resize(_batch(samples), size)[0] * 255).round().permute(1, 2, 0).numpy().astype(int)
    assert result.shape == expected.shape
    assert np.abs(result - expected).max() <= 1


def test_resize_keeps_range_dtype_and_constants() -> None:
    step = torch.zeros(2, 3, 16, 16)
    step[..., 8:] = 1
    enlarged = resize(step, (64, 64))
    assert enlarged.min() == 0 and enlarged.max() == 1
    assert resize(step.to(torch.bfloat16), (7, 9)).dtype == torch.bfloat16
    assert resize(step, (16, 16)) is step
    assert torch.allclose(resize(torch.full((1, 3, 5, 4), 0.3), (23, 1)), torch.tensor(0.3), atol=1e-6)
    with pytest.raises(ValueError, match="at least 1×1"):
        resize(step, (0, 5))


@pytest.mark.parametrize("height", [1, 2, 5, 16])
@pytest.mark.parametrize("width", [1, 3, 17, 33])
@pytest.mark.parametrize(("multiple", "minimum"), [(1, 1), (8, 1), (16, 64), (7, 50)])
def test_padding_mirrors_as_numpy_does_and_crops_back(
    height: int, width: int, multiple: int, minimum: int
) -> None:
    image = torch.from_numpy(_picture(height, width)).permute(2, 0, 1)[None].float()
    padded = pad_to_multiple(image, multiple, minimum)
    rows, columns = padded.shape[-2:]
    assert rows % multiple == columns % multiple == 0 and min(rows, columns) >= minimum
    assert rows < max(height, minimum) + multiple and columns < max(width, minimum) + multiple
    extent = ((0, 0), (0, 0), (0, rows - height), (0, columns - width))
    assert np.array_equal(padded.numpy(), np.pad(image.numpy(), extent, mode="reflect"))
    assert torch.equal(crop(padded, height, width), image)


def test_padding_and_cropping_refuse_what_makes_no_sense() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        pad_to_multiple(torch.zeros(1, 3, 4, 4), 0)
    with pytest.raises(ValueError, match="cannot crop"):
        crop(torch.zeros(1, 3, 4, 4), 5, 4)


def test_value_ranges_are_inverse_and_clamped() -> None:
    unit = torch.linspace(0, 1, 11)
    assert torch.allclose(to_unit(to_signed(unit)), unit, atol=1e-6)
    assert to_signed(torch.tensor([0.0, 0.5, 1.0])).tolist() == [-1, 0, 1]
    assert to_unit(torch.tensor([-3.0, 3.0])).tolist() == [0, 1]


@pytest.mark.parametrize("value", [0.0, 1 / 255, 0.3, 1.0])
def test_constant_alpha_stays_exactly_constant(value: float) -> None:
    alpha = torch.full((1, 7, 5), value)
    assert torch.equal(resize_alpha(alpha, (31, 20)), torch.full((1, 31, 20), value))


def test_alpha_is_bicubic_and_in_range() -> None:
    alpha = torch.from_numpy(_picture(9, 11)[..., 0].copy())[None].float() / 255
    resized = resize_alpha(alpha, (36, 44))
    assert torch.equal(resized, resize(alpha[None], (36, 44))[0])
    assert resized.min() >= 0 and resized.max() <= 1


def test_transparent_pixels_take_nearby_visible_colour() -> None:
    color = torch.zeros(3, 32, 48)
    alpha = torch.zeros(1, 32, 48)
    red, blue = torch.tensor([0.9, 0.1, 0.1]), torch.tensor([0.1, 0.2, 0.8])
    color[:, 10:20, 5:12], alpha[:, 10:20, 5:12] = red.view(3, 1, 1), 1
    color[:, 10:20, 36:43], alpha[:, 10:20, 36:43] = blue.view(3, 1, 1), 0.5
    filled = fill_transparent(color, alpha)
    visible = (alpha > 0).expand_as(color)
    assert torch.equal(filled[visible], color[visible])
    assert (filled[:, 9, 8] - red).abs().max() < 0.02 and (filled[:, 15, 44] - blue).abs().max() < 0.02
    assert bool((filled.sum(0) > 0.9).all()), "black is left somewhere"
    for channel in range(3):
        assert filled[channel].min() >= min(red[channel], blue[channel]) - 1e-6
        assert filled[channel].max() <= max(red[channel], blue[channel]) + 1e-6


def test_upscaled_edge_of_transparency_does_not_darken() -> None:
    alpha = torch.zeros(1, 16, 16)
    alpha[:, 4:12, 4:12] = 1
    color = alpha * torch.tensor([0.8, 0.6, 0.4]).view(3, 1, 1)  # black under transparent pixels
    size = (64, 64)
    shown = resize_alpha(alpha, size)
    edge = (shown > 0.05).expand(3, *size)
    wanted = torch.tensor([0.8, 0.6, 0.4]).view(3, 1, 1).expand(3, *size)[edge]
    assert (resize(fill_transparent(color, alpha)[None], size)[0][edge] - wanted).abs().max() < 1e-5
    assert (resize(color[None], size)[0][edge] - wanted).abs().max() > 0.3


def test_nothing_to_fill_changes_nothing() -> None:
    color = torch.rand(3, 5, 7, generator=torch.Generator().manual_seed(0))
    for alpha in (None, torch.full((1, 5, 7), 0.01), torch.zeros(1, 5, 7)):
        assert fill_transparent(color, alpha) is color


@pytest.mark.parametrize("size", [(1, 2), (2, 1), (3, 5), (65, 33)])
def test_one_visible_pixel_fills_any_size(size: tuple[int, int]) -> None:
    color, alpha = torch.zeros(3, *size), torch.zeros(1, *size)
    color[:, -1, -1], alpha[:, -1, -1] = 0.7, 1 / 65535
    assert torch.allclose(fill_transparent(color, alpha), torch.tensor(0.7), atol=1e-5)


@pytest.mark.parametrize("size", [(64, 96), (256, 384), (37, 50), (211, 317), (1, 1), (640, 20)])
def test_parts_of_a_resized_picture_are_the_wholes(size: tuple[int, int]) -> None:
    picture = _batch(_picture(64, 96))
    whole = resize(picture, size)[0]
    for top, left in ((0, 0), (size[0] // 3, size[1] // 2)):
        bottom, right = min(top + 40, size[0]), min(left + 60, size[1])
        first_row, last_row, rows = resize_axis(64, size[0], top, bottom)
        first, last, columns = resize_axis(96, size[1], left, right)
        seen = picture[0, :, first_row:last_row, first:last]
        part = (rows @ (seen @ columns.T).clamp(0, 1)).clamp(0, 1)
        torch.testing.assert_close(part, whole[:, top:bottom, left:right], atol=2e-5, rtol=0)


@pytest.mark.parametrize(("length", "target"), [(1000, 7), (96, 64), (10, 33), (64, 64), (5, 1), (1, 5)])
@pytest.mark.parametrize("part", [1, 3, 37])
def test_the_shares_of_parts_of_an_axis_add_up_to_resizing_it(length: int, target: int, part: int) -> None:
    signal = torch.rand(length, generator=torch.Generator().manual_seed(0))
    whole = resize_axis(length, target, 0, target)[2] @ signal
    summed = torch.zeros(target)
    for first in range(0, length, part):
        last = min(first + part, length)
        cells, share = resize_share(length, target, first, last)
        summed[cells] += share @ signal[first:last]
    assert torch.allclose(summed, whole, atol=1e-6)
