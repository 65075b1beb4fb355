"""Colour matching against a naive numpy implementation, and the properties it promises."""

import numpy as np
import pytest
import torch

from clearsr.errors import ClearSRError
from clearsr.image.color import COLOR_REACH, ChannelStatistics, low_frequencies, match_color
from clearsr.tiling import Window, pieces


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def _naive_low(plane: np.ndarray, levels: int = 5) -> np.ndarray:
    """One channel, pixel by pixel, by the formula: 3×3 binomial kernel, dilation 2^level, clamped indices."""
    kernel = np.array([[1, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16
    height, width = plane.shape
    for level in range(levels):
        step = 2**level
        result = np.zeros_like(plane)
        for y in range(height):
            for x in range(width):
                for dy in (-1, 0, 1):
                    for dx in (-1, 0, 1):
                        source = plane[
                            min(max(y + dy * step, 0), height - 1), min(max(x + dx * step, 0), width - 1)
                        ]
                        result[y, x] += kernel[dy + 1, dx + 1] * source
        plane = result
    return plane


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 7), (21, 18)])
def test_wavelet_equals_naive_sum_of_high_and_low_bands(height: int, width: int) -> None:
    sr, reference = _random(1, 3, height, width) * 0.4 + 0.3, _random(1, 3, height, width, seed=1) * 0.4 + 0.3
    result = match_color(sr, reference, "wavelet")[0].double().numpy()
    for channel in range(3):
        sr_plane, ref_plane = sr[0, channel].double().numpy(), reference[0, channel].double().numpy()
        expected = sr_plane - _naive_low(sr_plane) + _naive_low(ref_plane)
        assert np.abs(result[channel] - expected.clip(0, 1)).max() < 1e-6


def test_wavelet_keeps_detail_of_result_and_coarse_colour_of_reference() -> None:
    sr, reference = _random(2, 3, 40, 48) * 0.2 + 0.4, _random(2, 3, 40, 48, seed=1) * 0.2 + 0.4
    result = match_color(sr, reference, "wavelet")
    detail = sr - low_frequencies(sr)
    assert torch.allclose(result - low_frequencies(reference), detail, atol=1e-6)
    assert not torch.allclose(result, sr, atol=0.01)


def test_wavelet_undoes_a_colour_cast() -> None:
    reference = _random(1, 3, 32, 32) * 0.5 + 0.2
    cast = torch.tensor([0.1, -0.05, 0.2]).view(1, 3, 1, 1)
    assert torch.allclose(match_color(reference + cast, reference, "wavelet"), reference, atol=1e-6)


def test_adain_equals_formula_and_gives_mean_and_spread_of_reference() -> None:
    sr, reference = _random(2, 3, 24, 20) * 0.3 + 0.1, _random(2, 3, 24, 20, seed=1) * 0.4 + 0.3
    result = match_color(sr, reference, "adain").double().numpy()
    a, b = sr.double().numpy(), reference.double().numpy()
    for image in range(2):
        for channel in range(3):
            x, y = a[image, channel], b[image, channel]
            sigma_x, sigma_y = np.sqrt(x.var(ddof=1) + 1e-5), np.sqrt(y.var(ddof=1) + 1e-5)
            expected = (x - x.mean()) / sigma_x * sigma_y + y.mean()
            assert np.abs(result[image, channel] - expected).max() < 1e-5
            assert result[image, channel].mean() == pytest.approx(y.mean(), abs=1e-5)
            assert result[image, channel].std() == pytest.approx(y.std(), rel=1e-3)


@pytest.mark.parametrize("method", ["wavelet", "adain", "none"])
@pytest.mark.parametrize("size", [(1, 1), (2, 5), (30, 33)])
def test_reference_equal_to_result_changes_nothing(method: str, size: tuple[int, int]) -> None:
    image = _random(2, 3, *size)
    assert torch.allclose(match_color(image, image.clone(), method), image, atol=2e-6)


@pytest.mark.parametrize("method", ["wavelet", "adain"])
def test_constant_images_take_colour_of_reference(method: str) -> None:
    sr, reference = torch.full((1, 3, 9, 9), 0.2), torch.full((1, 3, 9, 9), 0.7)
    assert torch.allclose(match_color(sr, reference, method), reference, atol=1e-6)


@pytest.mark.parametrize("method", ["wavelet", "adain"])
def test_result_stays_in_range_and_dtype_and_images_of_a_batch_are_independent(method: str) -> None:
    sr, reference = _random(2, 3, 16, 16).half(), _random(2, 3, 16, 16, seed=1).round().half()
    result = match_color(sr, reference, method)
    assert result.dtype == torch.float16 and result.min() >= 0 and result.max() <= 1
    single = match_color(sr[1:], reference[1:], method)
    assert torch.allclose(result[1:].float(), single.float(), atol=1e-3)


def test_unknown_method_and_unequal_shapes_are_refused() -> None:
    image = _random(1, 3, 4, 4)
    with pytest.raises(ClearSRError, match="wavelet, adain, none"):
        match_color(image, image, "histogram")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must agree"):
        match_color(image, image[..., :2], "adain")


def test_adain_of_parts_with_the_wholes_statistics_is_the_wholes(make_picture):
    sr_image, reference = make_picture(40, 60, 0)[None], make_picture(40, 60, 1)[None]
    statistics = tuple(ChannelStatistics() for _ in range(2))
    for window in pieces(40, 60, 17):
        for found, image in zip(statistics, (sr_image, reference), strict=True):
            found.add(window.of(image))
    whole = match_color(sr_image, reference, "adain")
    for window in pieces(40, 60, 17):
        part = match_color(window.of(sr_image), window.of(reference), "adain", statistics)
        torch.testing.assert_close(part, window.of(whole), atol=1e-5, rtol=0)


def test_wavelet_looks_as_far_as_it_says(make_picture):
    sr_image, reference = make_picture(100, 140, 0)[None], make_picture(100, 140, 1)[None]
    whole, inner = match_color(sr_image, reference), Window(40, 50, 60, 90)
    for reach, agrees in ((COLOR_REACH["wavelet"], True), (COLOR_REACH["wavelet"] - 1, False)):
        outer = inner.grown(reach, 100, 140)
        part = inner.seen_from(outer).of(match_color(outer.of(sr_image), outer.of(reference)))
        assert torch.allclose(part, inner.of(whole), atol=1e-7, rtol=0) == agrees


@pytest.mark.parametrize("method", ["wavelet", "adain"])
def test_white_and_black_stay_what_they_are_all_around(method):
    """A network's grain on white would be seen as grey, as it goes only one way."""
    reference = torch.full((1, 3, 96, 96), 0.5)
    reference[..., :48] = 1.0
    reference[:, 1, 48:, :48] = 0.0  # magenta
    generator = torch.Generator().manual_seed(0)
    grainy = (reference + 0.02 * torch.randn(reference.shape, generator=generator)).clamp(0, 1)
    matched = match_color(grainy, reference, method)
    white, magenta = matched[..., :40, :40], matched[..., 56:, :40]
    assert (white == 1).all()
    assert (magenta[:, 0] == 1).all() and (magenta[:, 1] == 0).all() and (magenta[:, 2] == 1).all()
    assert matched[..., 60:].std() > 0.01  # grey keeps its detail
    assert (matched[..., 40:48] < 1).any()  # and so does white beside something else


def test_what_is_held_is_so_in_parts_too():
    reference = torch.zeros(1, 3, 80, 80)
    reference[..., 20:60, 30:] = 1.0
    generator = torch.Generator().manual_seed(1)
    given = torch.rand(reference.shape, generator=generator)
    whole = match_color(given, reference, "wavelet")
    reach = COLOR_REACH["wavelet"]
    for window in (Window(0, 0, 40, 40), Window(40, 32, 80, 80)):
        outer = window.grown(reach, 80, 80)
        part = match_color(outer.of(given), outer.of(reference), "wavelet")
        torch.testing.assert_close(window.seen_from(outer).of(part), window.of(whole), atol=1e-5, rtol=0)
