"""The U-Net of our own against diffusers', at the compact model's settings."""

import copy
import inspect

import pytest
import torch

from clearsr.config.base import build_config, merge
from clearsr.config.model import ModelConfig, preset_model_config
from clearsr.models.build import own_components
from clearsr.models.transformer import Attention
from clearsr.models.unet import TimeProjection, UNetShape


@pytest.fixture(scope="module", params=[1, 2], ids=lambda layers: f"{layers} per block")
def compact_unet(request, randomise):
    unet = {"unet": {"layers_per_block": request.param}}
    config = build_config(ModelConfig, merge(preset_model_config("compact").model_dump(), unet))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return randomise(own_components(config).unet, spread=0.02)


@torch.no_grad()
def test_compact_unet_loads_into_diffusers_and_computes_the_same(
    compact_unet, make_network, diffusers_unet, normal
):
    theirs = diffusers_unet(compact_unet)  # loads strictly: names and shapes are the same
    inputs = normal(1, 32, 8, 12), torch.tensor([250]), normal(1, 1, 96)
    network = make_network()
    network.unet = compact_unet.eval()
    encoded = network.unet_encode(*inputs)
    none = encoded._replace(skips=[s * 0 for s in encoded.skips], middle=encoded.middle * 0)
    output = network.unet_decode(encoded, none, inputs[2])
    expected = theirs(*inputs).sample
    assert expected.std() > 0.05
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-4)


def test_time_projection_is_diffusers():
    from diffusers.models.embeddings import Timesteps

    theirs = Timesteps(96, flip_sin_to_cos=True, downscale_freq_shift=0)
    timestep = torch.tensor([0, 1, 37, 999])
    torch.testing.assert_close(TimeProjection(96)(timestep), theirs(timestep))


def test_what_a_shape_leaves_out_is_diffusers_default():
    from diffusers import UNet2DConditionModel

    theirs = inspect.signature(UNet2DConditionModel.__init__).parameters
    defaults = UNetShape._field_defaults
    assert defaults and defaults == {name: theirs[name].default for name in defaults}


@torch.no_grad()
def test_without_a_time_a_block_adds_none(compact_unet, normal):
    """Whether it has no embedding or no layer for one."""
    block, width = copy.deepcopy(compact_unet.down_blocks[0].resnets[0]), compact_unet.conv_in.out_channels
    hidden, time = normal(1, width, 6, 5), normal(1, block.time_emb_proj.in_features, seed=1)
    timed, without = block(hidden, time), block(hidden, None)
    assert not torch.allclose(timed, without)
    block.time_emb_proj.weight.zero_()
    block.time_emb_proj.bias.zero_()
    torch.testing.assert_close(block(hidden, time), without)
    block.time_emb_proj = None
    assert torch.equal(block(hidden, time), without) and torch.equal(block(hidden, None), without)


@pytest.mark.parametrize("tokens", [1, 2])
def test_attention_without_gradients_equals_attention_with_them(normal, tokens):
    """Without gradients the attention to one token is taken as the constant that it is."""
    attention = Attention(16, 2, 12)
    hidden, prompt = normal(2, 9, 16), normal(2, tokens, 12)
    with torch.no_grad():
        short = attention(hidden, encoder_hidden_states=prompt)
    full = attention(hidden, encoder_hidden_states=prompt)
    torch.testing.assert_close(short, full.detach())
    full.square().sum().backward()
    assert all(parameter.grad is not None for parameter in attention.parameters())
