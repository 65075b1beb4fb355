"""The Detail Preserving Module against diffusers' own ControlNet and transformer block."""

import copy
from functools import partial

import pytest
import torch
from diffusers import ControlNetModel
from torch.utils.checkpoint import checkpoint

from clearsr.models.detail_preserving import DetailPreservingModule, LRTransformerBlock


@pytest.fixture(scope="module")
def plain(make_network):
    """Without window cross-attention: the ablation that leaves a ControlNet on x_lr."""
    return make_network(control={"cross_attention": False})


def _controlnet_of(network, unet):
    """diffusers' ControlNet with the module's weights; its hint convolution adds nothing."""
    controlnet = ControlNetModel.from_unet(unet)
    renamed = {}
    for name, value in network.detail_preserving.state_dict().items():
        name = name.replace("mid_zero_conv", "controlnet_mid_block")
        renamed[name.replace("zero_convs", "controlnet_down_blocks")] = value
    result = controlnet.load_state_dict(renamed, strict=False)
    assert not result.unexpected_keys
    assert all(name.startswith("controlnet_cond_embedding") for name in result.missing_keys)
    for parameter in controlnet.controlnet_cond_embedding.conv_out.parameters():
        torch.nn.init.zeros_(parameter)
    return controlnet.eval()


@torch.no_grad()
@pytest.mark.parametrize("size", [(16, 16), (10, 13)])
def test_without_cross_attention_it_is_diffusers_controlnet(plain, diffusers_unet, normal, size):
    z_lr, timestep = normal(2, 8, *size), torch.tensor([3, 700])
    text = plain.null_prompt.expand(2, -1, -1)
    hint = torch.zeros(2, 3, 8 * size[0], 8 * size[1])
    controlnet = _controlnet_of(plain, diffusers_unet(plain.unet))
    expected, expected_middle = controlnet(z_lr, timestep, text, hint, return_dict=False)
    skips, middle = plain.detail_preserving.project(*plain.detail_preserving(z_lr, timestep, text))
    torch.testing.assert_close(skips, list(expected))
    torch.testing.assert_close(middle, expected_middle)
    assert middle.abs().mean() > 0.01


@torch.no_grad()
def test_at_first_the_cross_attention_changes_nothing(fresh_network, normal):
    z_lr, timestep, text = normal(1, 8, 11, 13), torch.tensor([500]), fresh_network.null_prompt
    detail = fresh_network.detail_preserving
    features, middle = detail(z_lr, timestep, text)
    without = copy.deepcopy(detail)
    for transformer in (m for m in without.modules() if hasattr(m, "transformer_blocks")):
        transformer.transformer_blocks = torch.nn.ModuleList(b.block for b in transformer.transformer_blocks)
    for block in [*without.down_blocks, without.mid_block]:
        for transformer in getattr(block, "attentions", []):
            transformer.register_forward_pre_hook(_drop_kwargs, with_kwargs=True)
    expected, expected_middle = without(z_lr, timestep, text)
    torch.testing.assert_close(features, expected)
    torch.testing.assert_close(middle, expected_middle)


def _drop_kwargs(module, args, kwargs):
    return args, {**kwargs, "cross_attention_kwargs": None}


def test_every_attention_level_and_the_middle_attend_to_x_lr_at_their_own_ratio(network):
    ratios = {
        name: module.lr_attention.ratio
        for name, module in network.detail_preserving.named_modules()
        if isinstance(module, LRTransformerBlock)
    }
    levels = {name.split(".attentions")[0]: ratio for name, ratio in ratios.items()}
    assert levels == {"down_blocks.0": 1, "down_blocks.1": 2, "mid_block": 4}


@torch.no_grad()
def test_what_the_cross_attention_adds_goes_between_text_attention_and_feed_forward(network, normal):
    block = next(m for m in network.detail_preserving.modules() if isinstance(m, LRTransformerBlock))
    hidden, text, z_lr = normal(1, 8 * 8, 16), network.null_prompt, normal(1, 8, 8, 8)
    original = copy.deepcopy(block.block)
    for parameter in original.ff.parameters():
        parameter.zero_()
    attended = original(hidden, encoder_hidden_states=text)  # both attentions of diffusers' block alone
    attended = attended + block.lr_attention(attended, z_lr)
    expected = attended + block.block.ff(block.block.norm3(attended))
    result = block(hidden, encoder_hidden_states=text, cross_attention_kwargs={"z_lr": z_lr})
    torch.testing.assert_close(result, expected)


@torch.no_grad()
def test_depends_on_time_and_on_x_lr(network, normal):
    text, z_lr = network.null_prompt, normal(1, 8, 8, 8)
    outputs = [
        network.detail_preserving(z, torch.tensor([t]), text)[1]
        for z, t in ((z_lr, 10), (z_lr, 900), (-z_lr, 10))
    ]
    assert not torch.allclose(outputs[0], outputs[1], atol=1e-3)
    assert not torch.allclose(outputs[0], outputs[2], atol=1e-3)


def test_learns_through_gradient_checkpointing_as_without(make_network, normal):
    gradients = []
    for checkpointing in (False, True):
        network = make_network().train()
        detail = network.detail_preserving.requires_grad_(True)
        for block in (m for m in detail.modules() if hasattr(m, "gradient_checkpointing")):
            block.gradient_checkpointing = checkpointing
            block._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
        _, middle = detail(normal(1, 8, 8, 8), torch.tensor([5]), network.null_prompt)
        middle.square().mean().backward()
        gradients.append([p.grad for p in detail.parameters() if p.grad is not None])
    assert len(gradients[0]) > 50
    torch.testing.assert_close(gradients[0], gradients[1])


def test_it_is_trainable_though_what_it_copies_is_frozen(network):
    unet = network.unet
    assert not any(parameter.requires_grad for parameter in unet.parameters())
    module = DetailPreservingModule(unet, network.config.control, 8)
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert not any(parameter.requires_grad for parameter in unet.parameters())
