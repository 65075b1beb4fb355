"""The Structure Preserving Module against a chain of ResBlocks written out by hand."""

import pytest
import torch
import torch.nn.functional as F

from clearsr.models.structure_preserving import StructurePreservingModule


def _norm_act(hidden, weights, name, groups, eps):
    return F.silu(F.group_norm(hidden, groups, weights[f"{name}.weight"], weights[f"{name}.bias"], eps))


def _conv(hidden, weights, name, **arguments):
    return F.conv2d(hidden, weights[f"{name}.weight"], weights[f"{name}.bias"], **arguments)


def _by_hand(module, z_lr, unet_config):
    """conv_in, then at each level a ResBlock (norm, act, conv, twice, plus shortcut) and a strided conv."""
    weights = module.state_dict()
    groups, eps = unet_config.norm_num_groups, unet_config.norm_eps
    hidden = _conv(z_lr, weights, "conv_in", padding=1)
    features = [hidden]
    levels = len(unet_config.block_out_channels)
    for level in range(levels):
        for block in range(unet_config.layers_per_block):
            name = f"levels.{level}.{block}"
            inner = _norm_act(hidden, weights, f"{name}.norm1", groups, eps)
            inner = _conv(inner, weights, f"{name}.conv1", padding=1)
            inner = _norm_act(inner, weights, f"{name}.norm2", groups, eps)
            inner = _conv(inner, weights, f"{name}.conv2", padding=1)
            if f"{name}.conv_shortcut.weight" in weights:
                hidden = _conv(hidden, weights, f"{name}.conv_shortcut")
            hidden = hidden + inner
            features.append(hidden)
        if level < levels - 1:
            name = f"levels.{level}.{unet_config.layers_per_block}.conv"
            hidden = _conv(hidden, weights, name, stride=2, padding=1)
            features.append(hidden)
    return features


@torch.no_grad()
@pytest.mark.parametrize("size", [(16, 16), (9, 13)])
def test_equals_a_chain_of_resblocks_without_time_or_attention(network, normal, size):
    z_lr = normal(2, 8, *size)
    expected = _by_hand(network.structure_preserving, z_lr, network.unet.config)
    features = network.structure_preserving(z_lr)
    assert len(features) == len(expected)
    for ours, theirs in zip(features, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_features_have_the_shapes_of_the_skip_connections(network, normal):
    encoded = network.unet_encode(normal(1, 8, 9, 13), torch.tensor([7]), network.null_prompt)
    features = network.structure_preserving(normal(1, 8, 9, 13))
    assert [f.shape for f in features] == [s.shape for s in encoded.skips]


def test_starts_with_the_encoders_weights_but_does_not_share_them(fresh_network):
    unet, module = fresh_network.unet, fresh_network.structure_preserving
    resnets = [r for block in unet.down_blocks for r in block.resnets]
    copies = [m for m in module.modules() if type(m) is type(resnets[0])]
    assert len(copies) == len(resnets)
    for copy, resnet in zip(copies, resnets, strict=True):
        for name in ("conv1.weight", "conv2.bias", "norm1.weight", "norm2.bias"):
            ours, theirs = copy.get_parameter(name), resnet.get_parameter(name)
            assert torch.equal(ours, theirs) and ours.data_ptr() != theirs.data_ptr()
    assert torch.equal(module.conv_in.weight, unet.conv_in.weight)
    assert module.conv_in.weight.data_ptr() != unet.conv_in.weight.data_ptr()


def test_holds_resblocks_and_downsamplers_only(fresh_network):
    module = fresh_network.structure_preserving
    assert isinstance(module, StructurePreservingModule)
    assert not [name for name, _ in module.named_parameters() if "time" in name or "attn" in name]


def test_it_is_trainable_though_what_it_copies_is_frozen(network):
    unet = network.unet
    assert not any(parameter.requires_grad for parameter in unet.parameters())
    module = StructurePreservingModule(unet)
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert not any(parameter.requires_grad for parameter in unet.parameters())
