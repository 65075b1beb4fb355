"""Building: reproducible from a seed, without touching the global one, and with everything at its start."""

import pytest
import torch

from clearsr.config.model import preset_model_config
from clearsr.errors import ClearSRError
from clearsr.models.build import build_network, meta_network, own_components, random_network
from clearsr.models.clearsr import head_dimension


def test_the_seed_decides_and_the_global_generator_is_left_alone(tiny_config):
    before = torch.random.get_rng_state()
    first = build_network(tiny_config, 3).state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(77)
    again, other = build_network(tiny_config, 3).state_dict(), build_network(tiny_config, 4).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["unet.conv_in.weight"], other["unet.conv_in.weight"])


def test_a_network_to_measure_with_is_as_random_as_its_seed_and_one_of_shapes_has_no_memory(tiny_config):
    before = torch.random.get_rng_state()
    first, built = random_network(tiny_config, 3).state_dict(), build_network(tiny_config, 3).state_dict()
    torch.manual_seed(77)
    again, other = (random_network(tiny_config, seed).state_dict() for seed in (3, 4))
    torch.random.set_rng_state(before)
    shapes = meta_network(tiny_config)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["unet.conv_in.weight"], other["unet.conv_in.weight"])
    assert {p.device.type for p in shapes.parameters()} == {"meta"}
    assert all(torch.equal(first[name], built[name]) for name in built)  # what training starts from
    assert {n: v.shape for n, v in shapes.state_dict().items()} == {n: v.shape for n, v in built.items()}


@pytest.mark.parametrize(("hidden", "heads"), [(16, 1), (32, 1), (64, 2), (96, 3)])
def test_attention_has_heads_of_the_width_that_is_given(make_config, hidden, heads):
    """Of the U-Net by `head_dim`, of the image encoder 32 channels, or what there is."""
    config = make_config(image_prompt={"hidden_size": hidden}, unet={"head_dim": 4})
    parts = own_components(config)
    assert parts.image_encoder.config.num_attention_heads == heads
    assert list(parts.unet.config.attention_head_dim) == [16 // 4, 16 // 4, 32 // 4]
    assert head_dimension(parts.unet) == 4
    assert parts.image_encoder.visual_projection.out_features == config.unet.cross_attention_dim


def test_the_null_prompt_starts_small(make_config):
    null = build_network(make_config(null_prompt_tokens=64)).null_prompt.detach()
    assert null.shape == (1, 64, 16) and abs(float(null.std()) / 0.02 - 1) < 0.1


def test_windows_are_what_the_coarsest_level_divides(make_config):
    build_network(make_config(control={"window_size": 12}))  # three levels: 4 cells are one there
    with pytest.raises(ClearSRError, match="window_size must be a multiple of 4"):
        build_network(make_config(control={"window_size": 6}))


def test_untrained_it_predicts_the_best_linear_guess(tiny_config, normal):
    """The U-Net's last layer and every way into it start at zero."""
    network = build_network(tiny_config)
    output = network(normal(1, 8, 8, 8), torch.tensor([10]), normal(1, 8, 8, 8), normal(1, 1, 16))
    assert not output.any()
    names = [n for n, p in network.named_parameters() if not p.any() and n.endswith("weight")]
    assert any("zero_convs" in n for n in names) and any("lr_attention.to_out" in n for n in names)
    assert any("lora_B" in n for n in names) and "unet.conv_out.weight" in names


def test_compact_model_is_within_its_budget():
    network = build_network(preset_model_config("compact"))
    assert sum(p.numel() for p in network.parameters()) <= 25_000_000


def test_both_presets_share_every_class(tiny_network):
    kinds = {type(module).__name__ for module in tiny_network.modules()}
    assert {"DetailPreservingModule", "StructurePreservingModule"} <= kinds
