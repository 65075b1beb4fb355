"""The section at Stable Diffusion's size, run on a miniature in its place."""

import pytest
import torch

from clearsr.config.evaluation import BenchmarkConfig
from clearsr.config.model import ModelConfig
from clearsr.paper.complexity import sd21

CPU = torch.device("cpu")


@pytest.fixture
def miniature(base, monkeypatch):
    """`preset_model_config` gives a network on the base in miniature, and pictures are of 128 pixels."""
    config = ModelConfig(preset="sd21", base_model=str(base), image_encoder=None, null_prompt_tokens=16)
    monkeypatch.setattr(sd21, "preset_model_config", lambda _: config)
    monkeypatch.setattr(sd21, "SIDE", 128)
    return config


@torch.no_grad()
def test_random_network_is_whole_and_gives_finite_numbers(miniature, normal):
    network = sd21.random_network(CPU, torch.bfloat16)
    assert not any(tensor.is_meta for tensor in (*network.parameters(), *network.buffers()))
    assert network.unet.conv_in.weight.dtype == torch.bfloat16 and network.has_merged_adapters()
    assert network.alpha_bars[0] > 0.99 and network.alpha_bars[999] < 0.01
    with torch.autocast("cpu", torch.bfloat16):
        prompt = network.image_prompt(normal(1, 3, 64, 64))
        output = network(normal(1, 4, 8, 8), torch.tensor([500]), normal(1, 4, 8, 8, seed=1), prompt.float())
    assert output.isfinite().all() and output.float().std() > 0


def test_every_batch_size_has_its_figures(miniature):
    config = BenchmarkConfig(device="cpu", precision="bf16", batches=(1, 2), steps=3)
    figures = sd21.measure_sd21(config)
    names = [f"eager, batch {batch}{how}" for batch in (1, 2) for how in ("", ", no guidance")]
    assert list(figures["runs"]) == names
    one, one_unguided, two, two_unguided = figures["runs"].values()
    for single, double in ((one, two), (one_unguided, two_unguided)):
        assert double["arithmetic_floor"] == pytest.approx(2 * single["arithmetic_floor"])
        assert double["bandwidth_floor"] == single["bandwidth_floor"]
    for floor in ("arithmetic_floor", "bandwidth_floor"):  # the decoder runs once and not twice
        assert one_unguided[floor] < 0.9 * one[floor]
    for row in figures["runs"].values():
        assert row["peak_bytes"] > 1e6 and 0 < row["seconds_per_step"] < row["seconds_per_image"] * 2
    assert figures["dtype"] == "bfloat16" and all(rate > 0 for rate in figures["rates"].values())


def test_without_guidance_the_decoder_runs_once_a_step(miniature, monkeypatch):
    decoded = []
    decode = sd21.ClearSRNetwork.unet_decode

    def count(network, encoded, control, prompt, *rest):
        decoded.append(network)
        return decode(network, encoded, control, prompt, *rest)

    monkeypatch.setattr(sd21.ClearSRNetwork, "unet_decode", count)
    seen = {}
    measure = sd21._measure_batch

    def counted(pipeline, pixels, guided, warm_up):
        before = len(decoded)
        row = measure(pipeline, pixels, guided, warm_up)
        seen[guided] = len(decoded) - before
        return row

    monkeypatch.setattr(sd21, "_measure_batch", counted)
    sd21.measure_sd21(BenchmarkConfig(device="cpu", precision="fp32", steps=3), side=64)
    assert seen == {True: 6, False: 3}
