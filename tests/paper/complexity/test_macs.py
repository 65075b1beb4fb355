"""MACs at Stable Diffusion 2.1's size against sums from the literature's own parts, and against real runs."""

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from clearsr.config.base import build_config
from clearsr.config.model import preset_model_config
from clearsr.config.sampling import SamplingConfig
from clearsr.models.latent_lr_embedding import LatentLR
from clearsr.paper.complexity.macs import MAC_LABELS, Macs, add, count, count_macs
from clearsr.paper.complexity.naive import naive_denoise
from clearsr.sampling.denoise import denoise
from clearsr.sampling.guidance import Conditioning

GIGA = 1e9


@pytest.fixture(scope="module")
def sd21():
    """Ours and naive: 50 steps with guidance, 512 x 512."""
    config = preset_model_config("sd21")
    return count_macs(config), count_macs(config, naive=True)


def test_stable_diffusion_2_1(sd21):
    """59,306 G and the parts are sums worked out apart from this counter, module by module."""
    ours, naive = sd21
    assert naive.denoising.total / GIGA == pytest.approx(59_306, rel=1e-3)
    assert ours.denoising.total / GIGA <= 41_000
    step = {name: macs.total / GIGA for name, macs in ours.per_step.items()}
    assert step["unet"] == pytest.approx(130.947, abs=1e-3)
    assert step["detail_preserving"] + step["cross_attention"] == pytest.approx(142.334, abs=1e-3)
    once = {name: (macs.layers / GIGA, macs.total / GIGA) for name, macs in ours.once.items()}
    assert once["structure_preserving"] == pytest.approx((48.596, 48.596), abs=1e-3)
    assert once["vae"] == pytest.approx((541.149, 558.329), abs=1e-3)
    assert once["vae_decoder"] == pytest.approx((1240.080, 1257.259), abs=1e-3)
    assert once["image_encoder"] == pytest.approx((161.884, 167.295), abs=1e-3)
    assert once["text_encoder"] == pytest.approx((22.284, 22.564), abs=1e-3)
    for part in ("detail_preserving", "cross_attention", "unet"):
        assert naive.per_step[part] == Macs().plus(ours.per_step[part], 2)
    assert naive.per_step["structure_preserving"] == Macs().plus(ours.once["structure_preserving"], 2)


@pytest.mark.parametrize(("naive", "guided"), [(False, False), (False, True), (True, True)])
def test_the_sum_is_what_a_real_run_of_all_steps_does(make_network, normal, naive, guided):
    network = make_network(unet_lora_rank=0)
    settings = {"steps": 3, "guidance_scale": 2.0 if guided else 1.0, "lsa": {"preset": "off"}}
    config = build_config(SamplingConfig, settings)
    mean = normal(1, 8, 8, 12)
    conditioning = Conditioning(LatentLR(mean, mean.abs() + 0.1), normal(1, 1, 16))
    run = naive_denoise if naive else denoise
    with torch.no_grad(), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        run(network, conditioning, config, [torch.Generator()])
    table = count_macs(network.config, (64, 96), steps=3, guided=guided, naive=naive)
    assert table.denoising.total == counter.get_total_flops() // 2
    assert set(table.parts) <= set(MAC_LABELS) and table.total == add(table.parts.values())


def test_the_painter_counts_as_it_is_run(make_network, normal):
    network = make_network(painter={"blocks": 1})
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network.painter(normal(1, 6, 64, 96))
    table = count_macs(network.config, (64, 96), steps=1)
    assert table.parts["painter"].total == counter.get_total_flops() // 2 > 0


def test_merging_saves_the_work_of_the_loras_alone(make_config, lora_encoder):
    config = make_config(**lora_encoder)
    merged, unmerged = (count_macs(config, (64, 64), steps=2, merged=m) for m in (True, False))
    extra = {"vae_lora", "unet_lora"}
    assert set(unmerged.parts) - set(merged.parts) == extra
    assert {name: macs for name, macs in unmerged.parts.items() if name not in extra} == merged.parts


def test_layers_and_attention_are_told_apart():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.project = nn.Linear(8, 8)

        def forward(self, x):
            q = self.project(x)
            return nn.functional.scaled_dot_product_attention(q, q, q)

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = Attention()
            self.conv = nn.Conv2d(3, 5, 3, padding=1)

    with torch.device("meta"):
        network, tokens, image = Network(), torch.empty(2, 4, 6, 8), torch.empty(1, 3, 10, 10)
    _, parts = count(network, lambda: (network.attention(tokens), network.conv(image)), lambda name: name[:4])
    assert parts == {
        "atte": Macs(layers=2 * 4 * 6 * 8 * 8, attention=2 * (2 * 4 * 6 * 6 * 8)),
        "conv": Macs(layers=3 * 5 * 9 * 100),
    }


def test_plain_numbers_add_up_and_size_is_padded_as_sampling_pads_it(tiny_config):
    table = count_macs(tiny_config, (50, 33), steps=4)
    plain = table.as_dict()
    whole = [*plain["once"].values(), *([step for step in plain["per_step"].values()] * plain["steps"])]
    assert plain["total"]["total"] == sum(part["total"] for part in whole)
    assert 0 < plain["denoising"]["total"] < plain["total"]["total"]
    assert table == count_macs(tiny_config, (64, 64), steps=4)
