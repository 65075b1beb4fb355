"""Prompts of two lengths in one pass through diffusers' own decoder, on a base in miniature."""

import pytest
import torch

from clearsr.config.base import build_config
from clearsr.config.model import ModelConfig
from clearsr.models.build import build_network
from clearsr.training.setup import recompute_activations

WIDTH = 32  # of a prompt token of the miniature base


@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("tokens", [1, 20])  # the null prompt of the miniature has 16
def test_one_pass_equals_separate_ones_with_all_gradients(base, randomise, normal, tokens, recomputed):
    """In double precision; each sample of the reference is a batch of its own, which nothing pads."""
    fields = {"preset": "sd21", "base_model": str(base), "image_encoder": None, "unet_lora_rank": 2}
    network = randomise(build_network(build_config(ModelConfig, fields))).double()
    network.requires_grad_(False)
    network.set_trainable()
    if recomputed:
        recompute_activations(network)
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    latent, z_lr = (normal(2, 4, 8, 16, seed=seed).double() for seed in (0, 1))
    timestep, prompt = torch.tensor([3, 700]), normal(2, tokens, WIDTH, seed=5).double()

    def with_gradients(output):
        found = torch.autograd.grad((output * output).sum(), list(trained.values()), allow_unused=True)
        return output.detach(), dict(zip(trained, found, strict=True))

    together, ours = with_gradients(network(latent, timestep, z_lr, prompt, torch.tensor([True, False])))
    rows = (slice(0, 1), network.null_prompt), (slice(1, 2), prompt[1:])
    alone = torch.cat([network(latent[r], timestep[r], z_lr[r], p) for r, p in rows])
    alone, theirs = with_gradients(alone)
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)
    assert {n for n, g in ours.items() if g is None} == {n for n, g in theirs.items() if g is None}
    for name, gradient in theirs.items():
        if gradient is not None:
            torch.testing.assert_close(ours[name], gradient, rtol=1e-9, atol=1e-11, msg=name)
    assert any("attn2.to_q.lora" in name and ours[name].any() for name in trained)
