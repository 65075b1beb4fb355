"""LoRA: on which layers, how it is switched, and merging against W + BA by hand."""

import copy

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn

from clearsr.errors import ClearSRError
from clearsr.models.lora import (
    UNET_DECODER_TARGETS,
    VAE_ENCODER_TARGETS,
    add_lora,
    lora_enabled,
    lora_layers,
    merge_lora,
)


class _Small(nn.Module):
    """A convolution and a linear layer, under names that the VAE's pattern matches."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.ModuleDict(
            {
                "conv_in": nn.Conv2d(3, 6, 3, padding=1, stride=2),
                "mid": nn.ModuleDict({"to_q": nn.Linear(6, 4)}),
            }
        )

    def forward(self, pixels):
        return self.encoder["mid"]["to_q"](self.encoder["conv_in"](pixels).movedim(1, -1))


@pytest.fixture
def small(randomise):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = _Small()
        add_lora(module, VAE_ENCODER_TARGETS, 2)
    return module


def _names(module):
    return {name.rsplit(".lora_A", 1)[0] for name, _ in module.named_parameters() if ".lora_A" in name}


def test_targets_are_the_papers_layers_at_stable_diffusions_size():
    with torch.device("meta"):
        vae = AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
        )
        unet = UNet2DConditionModel(
            block_out_channels=(320, 640, 1280, 1280),
            attention_head_dim=(5, 10, 20, 20),
            cross_attention_dim=1024,
            use_linear_projection=True,
        )
        add_lora(vae, VAE_ENCODER_TARGETS, 16)
        add_lora(unet, UNET_DECODER_TARGETS, 16)
    kinds = (nn.Conv2d, nn.Linear)
    encoder_layers = {
        name.removesuffix(".base_layer")
        for name, module in vae.named_modules()
        if isinstance(module, kinds) and "lora_" not in name and name.startswith("encoder.")
    }
    assert _names(vae) == encoder_layers and len(encoder_layers) == 31  # every layer of E, none of D
    attention = {
        name.removesuffix(".base_layer")
        for name, module in unet.named_modules()
        if isinstance(module, kinds)
        and "lora_" not in name
        and ".attn" in name
        and name.startswith("up_blocks")
    }
    assert _names(unet) == attention and len(attention) == 72
    assert sum(p.numel() for n, p in vae.named_parameters() if "lora_" in n) == 1_477_168
    assert sum(p.numel() for n, p in unet.named_parameters() if "lora_" in n) == 1_800_192


def test_lives_on_encoder_and_decoder_attention_only(lora_network):
    adapted = _names(lora_network)
    assert adapted
    for name in adapted:
        assert name.startswith(("latents.vae.encoder.", "unet.up_blocks."))
        assert name.startswith("latents") or ".attn1.to_" in name or ".attn2.to_" in name
    assert "latents.vae.encoder.conv_in" in adapted and "latents.vae.encoder.conv_out" in adapted


def test_output_does_not_change_until_the_adapter_is_trained(normal):
    plain = _Small()
    module = copy.deepcopy(plain)
    add_lora(module, VAE_ENCODER_TARGETS, 2)
    assert torch.equal(module(normal(1, 3, 8, 8)), plain(normal(1, 3, 8, 8)))
    trainable = {name for name, p in module.named_parameters() if p.requires_grad}
    assert trainable == {name for name, _ in module.named_parameters() if "lora_" in name}
    assert all(p.dtype == torch.float32 for n, p in module.named_parameters() if "lora_" in n)


def test_adapter_of_a_half_precision_base_is_trained_in_single():
    module = _Small().to(torch.bfloat16)
    add_lora(module, VAE_ENCODER_TARGETS, 2)
    assert {p.dtype for n, p in module.named_parameters() if "lora_" in n} == {torch.float32}


def test_no_matching_layer_is_an_error():
    with pytest.raises(ValueError, match="not found"):
        add_lora(nn.Sequential(nn.Linear(2, 2)), VAE_ENCODER_TARGETS, 2)


@torch.no_grad()
def test_merge_is_base_plus_b_times_a(small, randomise, normal):
    randomise(small, spread=0.3)
    state = {name: value.clone() for name, value in small.state_dict().items()}
    adapted = small(normal(2, 3, 8, 8))
    merge_lora(small)
    base, lora_a, lora_b = _parts(state, "encoder.mid.to_q")
    torch.testing.assert_close(small.encoder["mid"]["to_q"].weight, base + lora_b @ lora_a)
    base, lora_a, lora_b = _parts(state, "encoder.conv_in")
    expected = base + torch.einsum("or,rikl->oikl", lora_b[:, :, 0, 0], lora_a)
    torch.testing.assert_close(small.encoder["conv_in"].weight, expected)
    assert not lora_layers(small) and set(small.state_dict()) == set(_Small().state_dict())
    torch.testing.assert_close(small(normal(2, 3, 8, 8)), adapted)
    merged = {name: value.clone() for name, value in small.state_dict().items()}
    merge_lora(small)  # idempotent
    assert all(torch.equal(merged[name], value) for name, value in small.state_dict().items())


def _parts(state, name):
    return (
        state[f"{name}.base_layer.weight"],
        state[f"{name}.lora_A.clearsr.weight"],
        state[f"{name}.lora_B.clearsr.weight"],
    )


@torch.no_grad()
@pytest.mark.parametrize("rank", [1, 2])
def test_merged_network_gives_the_same_output(make_network, normal, rank):
    network = make_network(unet_lora_rank=rank)
    assert not network.has_merged_adapters()
    arguments = (normal(1, 8, 8, 8), torch.tensor([99]), normal(1, 8, 8, 8, seed=1), normal(1, 1, 16))
    before = network(*arguments)
    with lora_enabled(network.unet, False):
        without = network(*arguments)
    merge_lora(network.unet)
    torch.testing.assert_close(network(*arguments), before, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(before, without, atol=1e-2)
    assert network.has_merged_adapters()


@torch.no_grad()
def test_merging_both_adapters_keeps_e_prime_and_gives_up_e(make_network, lora_encoder, make_picture):
    network = make_network(**lora_encoder)
    pixels = make_picture(64, 64)[None] * 2 - 1
    before, hr = network.latents.embed_lr(pixels), network.latents.encode_hr(pixels)
    for _ in range(2):  # idempotent
        network.merge_adapters()
        after = network.latents.embed_lr(pixels)
        torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(before.mean, hr, atol=1e-2)
    assert not lora_layers(network) and network.has_merged_adapters()
    with pytest.raises(ClearSRError, match="merge_adapters=False"):
        network.latents.encode_hr(pixels)


@torch.no_grad()
def test_nothing_is_merged_where_there_are_no_adapters(make_network, make_picture):
    network = make_network(unet_lora_rank=0)
    network.merge_adapters()
    assert not network.has_merged_adapters()
    assert network.latents.encode_hr(make_picture(64, 64)[None]).isfinite().all()


@torch.no_grad()
def test_switched_off_it_is_the_base_bit_for_bit_and_the_switch_goes_back(small, randomise, normal):
    randomise(small, spread=0.3)
    pixels = normal(1, 3, 8, 8)
    base = _Small()
    base.load_state_dict(
        {n.replace("base_layer.", ""): v for n, v in small.state_dict().items() if "lora_" not in n}
    )
    adapted = small(pixels)
    with lora_enabled(small, False):
        assert torch.equal(small(pixels), base(pixels))
        with lora_enabled(small, True):
            assert torch.equal(small(pixels), adapted)
        assert torch.equal(small(pixels), base(pixels))
    with pytest.raises(RuntimeError, match="inside"), lora_enabled(small, False):
        raise RuntimeError("inside")
    assert torch.equal(small(pixels), adapted)
    assert all(p.requires_grad for n, p in small.named_parameters() if "lora_" in n)
