"""Hooks see what the network computes, switch off what they say, and are gone afterwards."""

import pytest
import torch

from clearsr.paper.figures.figures_2_8_control import control_signals
from clearsr.paper.figures.hooks import recording, window_attention_layers, without_cross_attention


def hooks_on(network):
    return sum(len(module._forward_hooks) for module in network.modules())


def test_hooks_are_removed_even_after_an_error(network):
    before = hooks_on(network)
    with recording(network), without_cross_attention(network):
        assert hooks_on(network) > before
    with pytest.raises(KeyError), recording(network), without_cross_attention(network):
        raise KeyError
    assert hooks_on(network) == before


def test_layers_are_named_by_grid_in_the_order_in_which_they_run(network, z_lr):
    assert list(window_attention_layers(network)) == ["level 0a", "level 1a", "middle a"]
    with recording(network) as record:
        control_signals(network, z_lr, 500)
    assert list(record.after) == ["level 0a", "level 1a", "middle a"]


def test_recording_is_what_the_modules_return(network, z_lr):
    text = network.null_prompt
    with torch.no_grad(), recording(network) as record:
        control_signals(network, z_lr, 300)
        features, _ = network.detail_preserving(z_lr, torch.tensor([300]), text)
        structure = network.structure_preserving(z_lr)
    assert all(map(torch.equal, record.detail, features))
    assert all(map(torch.equal, record.structure, structure))


def test_after_less_before_is_what_the_layer_adds(network, z_lr):
    with recording(network) as record:
        control_signals(network, z_lr, 300)
    for name, layer in window_attention_layers(network).items():
        before = record.before[name]
        assert before.shape[-2:] == tuple(-(-side // layer.ratio) for side in z_lr.shape[-2:])
        tokens = before.flatten(2).transpose(1, 2)
        with torch.no_grad():
            added = layer(tokens, z_lr).transpose(1, 2).reshape(before.shape)
        torch.testing.assert_close(record.after[name], before + added)


def test_without_cross_attention_equals_a_network_built_without_it(make_network, z_lr):
    full, plain = make_network(), make_network(control={"cross_attention": False})
    state = {
        name.replace(".block.", "."): value
        for name, value in full.state_dict().items()
        if ".lr_attention." not in name
    }
    plain.load_state_dict(state)
    kept = {name: value.clone() for name, value in full.state_dict().items()}
    switched_off = control_signals(full, z_lr, 500, "no_cross_attention")
    for ours, reference in zip(switched_off, control_signals(plain, z_lr, 500), strict=True):
        torch.testing.assert_close(ours, reference)
    for ours, reference in zip(
        control_signals(full, z_lr, 500, "controlnet"),
        control_signals(plain, z_lr, 500, "no_structure"),
        strict=True,
    ):
        torch.testing.assert_close(ours, reference)
    assert all(torch.equal(full.state_dict()[name], value) for name, value in kept.items())
    with_it = control_signals(full, z_lr, 500)
    assert not torch.allclose(with_it[1], switched_off[1])
