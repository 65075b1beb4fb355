"""Control signals of many timesteps at once against those of one after the other."""

import pytest
import torch

from clearsr.config.base import build_config
from clearsr.config.sampling import SamplingConfig
from clearsr.models.latent_lr_embedding import LatentLR
from clearsr.sampling import guidance
from clearsr.sampling.denoise import denoise
from clearsr.sampling.guidance import Conditioning, ControlAhead, chunk_length


@torch.no_grad()
@pytest.mark.parametrize("length", [1, 3, 5, 9])
@pytest.mark.parametrize("control", [{}, {"structure_preserving": False}])
def test_every_step_of_every_chunk_is_the_single_pass(make_network, normal, length, control):
    network = make_network(control=control).double()
    z_lr, timesteps = normal(2, 8, 8, 12).double(), torch.tensor([999, 700, 450, 120, 0])
    structure = network.structure_features(z_lr)
    text = network.null_prompt.expand(2, -1, -1)
    ahead = ControlAhead(network, z_lr, structure, timesteps, length)
    for step in (0, 1, 2, 3, 4, 4, 1):  # again, and backwards
        expected = network.control_signals(z_lr, timesteps[step].expand(2), text, structure)
        torch.testing.assert_close(ahead.at(step).skips, expected.skips, atol=1e-12, rtol=1e-10)
        torch.testing.assert_close(ahead.at(step).middle, expected.middle, atol=1e-12, rtol=1e-10)


def _run(network, normal, monkeypatch, cells, **settings):
    """The result in double precision and how many passes the DPM made."""
    monkeypatch.setattr(guidance, "CELLS_AT_ONCE", cells)
    mean = normal(2, 8, 8, 12).double()
    given = Conditioning(
        LatentLR(mean, mean.abs() + 0.1), normal(2, 1, 16, seed=2).double(), settings.pop("negative", None)
    )
    config = build_config(SamplingConfig, {"steps": 5, "scheduler": "ddim", **settings})
    passes = []
    handle = network.detail_preserving.register_forward_hook(lambda *_: passes.append(1))
    try:
        generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
        return denoise(network, given, config, generators), len(passes)
    finally:
        handle.remove()


@pytest.mark.parametrize(("cells", "passes"), [(96, 5), (2 * 96, 3), (3 * 96, 2), (4096, 1)])
def test_sampling_is_the_same_in_fewer_passes(make_network, normal, monkeypatch, cells, passes):
    network = make_network().double()
    expected, one_by_one = _run(network, normal, monkeypatch, 1, guidance_scale=2)
    assert one_by_one == 5
    result, counted = _run(network, normal, monkeypatch, cells, guidance_scale=2)
    assert counted == passes
    torch.testing.assert_close(result, expected, atol=1e-9, rtol=1e-8)


def test_a_negative_prompt_has_signals_of_its_own(make_network, normal, monkeypatch):
    network, negative = make_network().double(), normal(1, 5, 16, seed=4).double()
    settings = {"guidance_scale": 2, "negative": negative}
    expected, _ = _run(network, normal, monkeypatch, 1, **settings)
    result, passes = _run(network, normal, monkeypatch, 4096, **settings)
    assert passes == 1 + 5
    torch.testing.assert_close(result, expected, atol=1e-9, rtol=1e-8)


def test_large_grids_go_one_by_one():
    assert chunk_length(64, 64) == chunk_length(512, 512) == 1
    assert chunk_length(32, 32) == 4 and chunk_length(16, 8) == 32
