"""Tiles: they cover the grid, their weights are symmetric, and an exact map equals the untiled one."""

import itertools
import math

import pytest
import torch
from torch import nn

from clearsr.models.patch_autoencoder import PatchDecoder, PatchEncoder
from clearsr.tiling import Window, blend_tiles, map_exactly, stack_windows, tile_windows


@pytest.mark.parametrize("length", [1, 31, 64, 65, 100, 129, 500])
@pytest.mark.parametrize(("size", "overlap"), [(64, 16), (64, 0), (48, 24), (32, 8)])
def test_windows_cover_the_grid_and_overlap_by_at_least_what_is_asked(length, size, overlap):
    windows = tile_windows(length, 40, size, overlap)
    rows = sorted({(w.top, w.bottom) for w in windows})
    assert rows[0][0] == 0 and rows[-1][1] == length
    assert all(bottom - top == min(size, length) for top, bottom in rows)
    assert len({window.size for window in windows}) == 1  # so that any of them can share a batch
    for (_, bottom), (top, _) in itertools.pairwise(rows):
        assert bottom - top >= overlap
    if length > size:
        # One fewer would not do: their sides less the overlaps are too short.
        fewer = len(rows) - 1
        assert fewer * size - (fewer - 1) * overlap < length


def test_a_window_cuts_its_part():
    grid = torch.arange(24).view(1, 4, 6)
    assert torch.equal(Window(1, 2, 3, 5).of(grid), grid[:, 1:3, 2:5])


def test_windows_of_equal_size_stack_window_by_window():
    grid = torch.arange(48).view(2, 1, 4, 6)
    stacked = stack_windows(grid, [Window(1, 2, 3, 5), Window(0, 0, 2, 3)])
    assert torch.equal(stacked[:2], grid[..., 1:3, 2:5]) and torch.equal(stacked[2:], grid[..., :2, :3])


@pytest.mark.parametrize(("height", "width"), [(40, 24), (17, 33), (33, 16)])
def test_shares_are_positive_symmetric_and_add_up_to_one(height, width):
    windows, like = tile_windows(height, width, 16, 8), torch.zeros(1, 1, height, width)

    def share(chosen):
        return blend_tiles((torch.full_like(w.of(like), float(w == chosen)) for w in windows), like, windows)

    shares = [share(window) for window in windows]
    assert len(shares) > 1
    torch.testing.assert_close(sum(shares), torch.ones_like(like))
    for window, own, opposite in zip(windows, shares, reversed(shares), strict=True):
        assert window.of(own).min() > 0 and own.count_nonzero() == window.of(own).numel()
        torch.testing.assert_close(own, opposite.flip(-1, -2))


def test_blend_of_a_constant_is_constant_and_of_the_identity_the_identity():
    like = torch.randn(2, 3, 100, 77, generator=torch.Generator().manual_seed(0))
    windows = tile_windows(100, 77, 32, 8)
    assert len(windows) > 10
    constant = blend_tiles((torch.full_like(w.of(like), 0.7) for w in windows), like, windows)
    torch.testing.assert_close(constant, torch.full_like(like, 0.7))
    torch.testing.assert_close(blend_tiles((w.of(like) for w in windows), like, windows), like)


def test_blend_is_the_weighted_mean_by_hand():
    like = torch.zeros(1, 1, 1, 6)
    windows = [Window(0, 0, 1, 4), Window(0, 2, 1, 6)]
    blended = blend_tiles((torch.full((1, 1, 1, 4), float(w.left)) for w in windows), like, windows).flatten()
    ramp = [math.sin(math.pi * (i + 0.5) / 4) ** 2 + 1e-3 for i in range(4)]
    for x in range(6):
        weights = {w.left: ramp[x - w.left] for w in windows if w.left <= x < w.right}
        expected = sum(left * weight for left, weight in weights.items()) / sum(weights.values())
        assert float(blended[x]) == pytest.approx(expected, abs=1e-6)


def test_one_window_is_returned_as_it_is():
    like = torch.zeros(1, 1, 20, 30)
    result = object()
    assert blend_tiles([result], like, tile_windows(20, 30, 32, 8)) is result


@torch.no_grad()
@pytest.mark.parametrize("size", [(40, 56), (13, 100), (96, 8)])
@pytest.mark.parametrize("piece", [1, 8, 24, 200])
def test_exact_map_of_convolutions_equals_the_untiled(size, piece):
    layers = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.SiLU(), nn.Conv2d(4, 3, 5, padding=2)).double()
    grid = torch.randn(1, 2, *size, generator=torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(map_exactly(layers, grid, piece, 3), layers(grid), atol=1e-12, rtol=0)
    wrong = map_exactly(layers, grid, 8, 1)  # a margin below the receptive field shows
    assert not torch.allclose(wrong, layers(grid), atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("layers", [(1, 1), (2, 1), (1, 2)])
@pytest.mark.parametrize("piece", [8, 50, 64])
def test_exact_map_of_the_patch_encoder_shrinks(layers, piece, randomise):
    encoder = randomise(PatchEncoder(3, 2, 4, (4, 6), layers), spread=0.1)
    pixels = torch.rand(1, 3, 168, 232, generator=torch.Generator().manual_seed(0))
    pieces = []

    def apply(part):
        pieces.append(part.shape[-2:])
        return encoder(part)

    tiled = map_exactly(apply, pixels, piece, encoder.margin, step=encoder.side)
    torch.testing.assert_close(tiled, encoder(pixels), atol=1e-5, rtol=1e-5)
    assert len(pieces) > 1 and max(h * w for h, w in pieces) < 168 * 232


@torch.no_grad()
@pytest.mark.parametrize("layers", [(1, 1), (2, 1), (1, 2)])
@pytest.mark.parametrize("piece", [1, 5, 8])
def test_exact_map_of_the_patch_decoder_grows(layers, piece, randomise):
    decoder = randomise(PatchDecoder(3, 2, 4, (4, 6), layers), spread=0.1)
    latents = torch.randn(1, 2, 19, 26, generator=torch.Generator().manual_seed(0))
    tiled = map_exactly(decoder, latents, piece, decoder.margin)
    torch.testing.assert_close(tiled, decoder(latents), atol=1e-5, rtol=1e-5)


def test_small_grids_are_mapped_in_one_piece():
    calls = []

    def apply(part):
        calls.append(part.shape)
        return part * 2

    grid = torch.rand(1, 1, 12, 14)
    assert torch.equal(map_exactly(apply, grid, 8, 3), grid * 2)
    assert calls == [grid.shape]
