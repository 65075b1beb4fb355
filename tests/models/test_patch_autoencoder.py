"""The compact VAE: its start as a cosine transform, its sizes, and the reach that exact tiling needs."""

import math

import numpy as np
import pytest
import scipy.fft
import torch

from clearsr.config.model import AutoencoderConfig
from clearsr.models.patch_autoencoder import (
    MIN_LOG_VARIANCE,
    PatchAutoencoderKL,
    PatchDecoder,
    PatchEncoder,
    PatchOverlap,
    dct_basis,
)
from clearsr.tiling import map_exactly

LUMA = np.array([1, 1, 1]) / math.sqrt(3)


@pytest.fixture(scope="module")
def untrained():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = AutoencoderConfig(encoder_channels=(8, 8), decoder_channels=(8, 8))
        return PatchAutoencoderKL(config).requires_grad_(False)


def test_linear_path_is_an_orthonormal_cosine_transform():
    basis, gains = dct_basis(32, 8)
    flat = basis.flatten(1)
    torch.testing.assert_close(flat @ flat.T, torch.eye(32), atol=1e-5, rtol=0)
    assert (gains > 0).all() and (gains.flatten().diff() >= 0).all()  # coarsest first


def test_every_pattern_is_one_of_scipys(normal):
    """The coefficients of a patch are SciPy's of its colour channels: luma, blue-yellow, red-green."""
    basis, _ = dct_basis(192, 8)  # all of them
    patch = normal(3, 8, 8)
    colours = np.stack([LUMA, np.array([-1, -1, 2]) / math.sqrt(6), np.array([1, -1, 0]) / math.sqrt(2)])
    channels = np.einsum("kc,cyx->kyx", colours, patch.double().numpy())
    expected = np.sort([scipy.fft.dctn(channel, norm="ortho") for channel in channels], axis=None)
    ours = np.sort(torch.einsum("kcyx,cyx->k", basis, patch).numpy())
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_first_patterns_are_the_lowest_frequencies_of_luma(normal):
    basis, _ = dct_basis(3, 8)
    patch = normal(3, 8, 8)
    luma = scipy.fft.dctn(np.einsum("c,cyx->yx", LUMA, patch.numpy()), norm="ortho")
    ours = torch.einsum("kcyx,cyx->k", basis, patch)
    np.testing.assert_allclose(ours, [luma[0, 0], luma[0, 1], luma[1, 0]], atol=1e-5)


@torch.no_grad()
def test_untrained_it_keeps_what_the_kept_frequencies_hold(untrained, make_picture):
    """The linear paths alone are analysis and synthesis of the truncated transform."""
    pixels = make_picture(64, 96)[None] * 2 - 1
    restored = untrained.decoder(untrained.encoder.linear(pixels))
    basis, _ = dct_basis(32, 8)
    patches = pixels.unfold(2, 8, 8).unfold(3, 8, 8)  # 1×3×h×w×8×8
    coefficients = torch.einsum("kcyx,bchwyx->bkhw", basis, patches)
    expected = torch.einsum("kcyx,bkhw->bchywx", basis, coefficients).reshape(pixels.shape)
    torch.testing.assert_close(restored, expected, atol=1e-4, rtol=0)
    blocks = (untrained.encoder(pixels)[:, :32] - untrained.encoder.linear(pixels)).abs()
    assert 0 < blocks.mean() < 0.2  # the convolutions start as a small correction
    weight = untrained.encoder.conv_out.weight
    assert weight.abs().max() <= 0.1 / weight[0].numel() ** 0.5  # a tenth of what torch starts from


@torch.no_grad()
@pytest.mark.parametrize(("patch", "widths"), [(4, (8, 8)), (8, (8,)), (2, (8, 8, 8))])
def test_sizes_follow_from_patch_and_levels(patch, widths, make_picture):
    layers = (1,) * len(widths)
    encoder, decoder = PatchEncoder(3, 6, patch, widths, layers), PatchDecoder(3, 6, patch, widths, layers)
    side = patch * 2 ** (len(widths) - 1)
    assert encoder.side == decoder.side == side == 8
    moments = encoder(make_picture(6 * side, 5 * side)[None])
    assert moments.shape == (1, 12, 6, 5)
    assert decoder(moments[:, :6]).shape == (1, 3, 6 * side, 5 * side)


@torch.no_grad()
def test_overlap_starts_as_the_identity_and_joins_patches_then(randomise, normal):
    plain = PatchDecoder(3, 2, 4, (4, 4), (1, 1))
    overlap = PatchOverlap(3, 8, 1)
    joined = PatchDecoder(3, 2, 4, (4, 4), (1, 1), overlap)
    joined.load_state_dict(plain.state_dict(), strict=False)
    latents = normal(1, 2, 3, 5)
    assert torch.equal(joined(latents), plain(latents))
    randomise(overlap, spread=0.3)
    pixels = normal(1, 3, 16, 24, seed=1)
    changed = pixels.clone()
    changed[..., 16:] += 1  # the third patch of each row
    difference = (overlap(changed) - overlap(pixels)).abs().sum((0, 1, 2))
    reached = difference.nonzero().flatten()
    assert 16 - overlap.reach <= int(reached[0]) < 14, "its neighbour's pixels depend on it"


@torch.no_grad()
def test_log_variance_is_kept_within_bounds(untrained, make_picture, randomise):
    encoder = randomise(PatchEncoder(3, 4, 4, (8, 8), (1, 1)), spread=2)
    _, log_variance = encoder(100 * make_picture(64, 64)[None]).chunk(2, dim=1)
    assert log_variance.min() == MIN_LOG_VARIANCE and log_variance.max() == 10
    posterior = untrained.encode(make_picture(64, 64)[None]).latent_dist
    assert posterior.std.min() >= math.exp(MIN_LOG_VARIANCE / 2)
    torch.testing.assert_close(posterior.mode(), untrained.encoder(make_picture(64, 64)[None])[:, :32])


@torch.no_grad()
@pytest.mark.parametrize("layers", [0, 1, 3])
def test_pieces_of_a_decoder_with_overlap_are_the_whole(layers, randomise, normal):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        decoder = PatchDecoder(3, 2, 4, (4, 4), (1, 1), PatchOverlap(3, 4, layers))
    randomise(decoder, spread=0.2)
    latents = normal(1, 2, 20, 40)
    whole = decoder(latents)
    torch.testing.assert_close(map_exactly(decoder, latents, 5, decoder.margin), whole, atol=1e-5, rtol=0)
    with pytest.raises(AssertionError):
        less = map_exactly(decoder, latents, 5, decoder.margin - 2)
        torch.testing.assert_close(less, whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("widths", "layers"), [((4, 4), (1, 2)), ((4, 4), (2, 1)), ((4,), (2,)), ((4, 4, 4), (1, 0, 2))]
)
def test_margin_covers_the_receptive_field_and_no_more(widths, layers, randomise, make_picture, normal):
    patch = 4
    side = patch * 2 ** (len(widths) - 1)
    encoder = randomise(PatchEncoder(3, 2, patch, widths, layers), spread=0.1)
    decoder = randomise(PatchDecoder(3, 2, patch, widths, layers), spread=0.1)
    cells = 2 * decoder.margin + 5
    middle = cells // 2
    pixels = make_picture(side, cells * side)[None].requires_grad_()
    encoder(pixels)[..., middle].sum().backward()
    columns = pixels.grad.abs().sum((0, 1, 2)).nonzero().flatten()
    left, right = middle * side - int(columns[0]), int(columns[-1]) - (middle * side + side - 1)
    assert left == right  # what a latent depends on lies evenly around its patch
    assert encoder.margin - side < left <= encoder.margin
    latents = normal(1, 2, 1, cells).requires_grad_()
    decoder(latents)[..., middle * side : (middle + 1) * side].sum().backward()
    columns = latents.grad.abs().sum((0, 1, 2)).nonzero().flatten()
    assert middle - int(columns[0]) == int(columns[-1]) - middle == decoder.margin
