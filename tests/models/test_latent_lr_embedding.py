"""E, E' and D: which weights encode what, the scaling factor, and gradients that survive the switch."""

import copy

import pytest
import torch
from diffusers import AutoencoderKL

from clearsr.errors import ClearSRError
from clearsr.models.latent_lr_embedding import LatentLREmbedding
from clearsr.models.lora import VAE_ENCODER_TARGETS, add_lora
from clearsr.models.patch_autoencoder import PatchAutoencoderKL


@pytest.fixture
def pixels(make_picture):
    return make_picture(64, 96)[None] * 2 - 1


def _base_of(network):
    """The VAE as it was before the LoRA was put on."""
    vae = PatchAutoencoderKL(network.config.autoencoder)
    state = network.latents.vae.state_dict()
    vae.load_state_dict({n.replace("base_layer.", ""): v for n, v in state.items() if "lora_" not in n})
    return vae.eval()


@torch.no_grad()
def test_hr_images_are_encoded_by_the_base_bit_for_bit(tiny_network, pixels):
    expected = _base_of(tiny_network).encode(pixels).latent_dist.mode() * 0.8
    assert torch.equal(tiny_network.latents.encode_hr(pixels), expected)


@torch.no_grad()
def test_lr_images_are_encoded_by_another_encoder(tiny_network, pixels):
    embedding = tiny_network.latents.embed_lr(pixels)
    assert embedding.mean.shape == embedding.std.shape == (1, 8, 8, 12)
    assert (embedding.std > 0).all()
    assert not torch.allclose(embedding.mean, tiny_network.latents.encode_hr(pixels), atol=1e-2)
    assert torch.equal(embedding.mean, tiny_network.latents.embed_lr(pixels).mean)  # the mode, not a draw


@torch.no_grad()
def test_own_encoder_gives_the_posterior_of_its_moments(network, pixels):
    mean, log_variance = network.latents.lr_encoder(pixels).chunk(2, dim=1)
    embedding = network.latents.embed_lr(pixels)
    torch.testing.assert_close(embedding.mean, mean * 0.8)
    torch.testing.assert_close(embedding.std, log_variance.exp().sqrt() * 0.8)


def test_lora_gets_its_gradient_even_when_e_runs_in_between(make_network, lora_encoder, pixels):
    gradients = []
    for encodes_hr in (False, True):
        network = make_network(**lora_encoder)
        network.set_trainable()
        z_lr = network.latents.embed_lr(pixels).mean
        if encodes_hr:
            z_hr = network.latents.encode_hr(pixels.flip(-1)).detach()
            assert z_hr.shape == z_lr.shape
        z_lr.square().sum().backward()
        lora = {n: p.grad for n, p in network.latents.named_parameters() if "lora_" in n}
        assert lora and all(grad is not None and grad.any() for grad in lora.values())
        gradients.append(list(lora.values()))
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


@torch.no_grad()
def test_decoding_undoes_the_scaling(network, pixels):
    unscaled = network.latents.vae.encode(pixels).latent_dist.mode()
    expected = network.latents.vae.decode(unscaled).sample
    torch.testing.assert_close(network.latents.decode(network.latents.encode_hr(pixels)), expected)


@torch.no_grad()
def test_takes_diffusers_autoencoder_as_it_is(pixels):
    vae = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=(8, 8, 8, 8),
        norm_num_groups=4,
        latent_channels=4,
    ).eval()
    latents = LatentLREmbedding(copy.deepcopy(vae))
    add_lora(latents.vae, VAE_ENCODER_TARGETS, 2)
    assert latents.pixels_per_latent() == 8 and latents.scaling_factor == 0.18215
    expected = vae.encode(pixels).latent_dist.mode() * 0.18215
    assert torch.equal(latents.encode_hr(pixels), expected)
    assert torch.equal(latents.embed_lr(pixels).mean, expected)  # an untrained LoRA


def test_training_e_prime_alone_needs_one_of_its_own(lora_network, network):
    assert network.latents.own_lr_encoder() is network.latents.lr_encoder
    with pytest.raises(ClearSRError, match="lr_encoder.kind"):
        lora_network.latents.own_lr_encoder()


@torch.no_grad()
def test_large_images_go_in_pieces_with_the_same_result(network, make_picture):
    pixels = make_picture(200, 264)[None] * 2 - 1
    whole = network.latents.embed_lr(pixels)
    decoded = network.latents.decode(whole.mean)
    sizes = []
    handles = [
        module.register_forward_pre_hook(lambda _, args: sizes.append(args[0].numel()))
        for module in (network.latents.lr_encoder, network.latents.vae.decoder)
    ]
    try:
        pieces = network.latents.embed_lr(pixels, piece=32)
        again = network.latents.decode(whole.mean, piece=32)
    finally:
        for handle in handles:
            handle.remove()
    assert len(sizes) > 10 and max(sizes) < pixels.numel()
    for one, other in ((pieces.mean, whole.mean), (pieces.std, whole.std), (again, decoded)):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_the_linear_path_is_taken_in_fp32(network, normal):
    difference = normal(2, 8, 3, 4).bfloat16()
    found = network.latents.decode_linearly(difference)
    assert found.dtype == torch.float32
    assert torch.equal(found, network.latents.decode_linearly(difference.float()))
