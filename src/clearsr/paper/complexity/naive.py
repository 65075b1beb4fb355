"""The same modules run the way a diffusers ControlNet pipeline runs them: the reference for what is saved.

At every step both branches of guidance go through DPM, SPM and the whole U-Net as one batch of two, and every
attention is computed. The result is that of `sampling.denoise`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from clearsr.config.sampling import SamplingConfig
from clearsr.models.clearsr import ClearSRNetwork
from clearsr.models.prediction import network_input, predicted_z_0
from clearsr.models.transformer import Attention, OneTokenProcessor
from clearsr.sampling.guidance import Conditioning
from clearsr.sampling.noise import draw_noise
from clearsr.sampling.schedule import make_solver


@torch.no_grad()
def naive_denoise(
    network: ClearSRNetwork,
    conditioning: Conditioning,
    config: SamplingConfig,
    generators: Sequence[torch.Generator],
) -> torch.Tensor:
    """z_0, B×c×h×w, as `denoise` with the settings that it shares; LSA, tiles and negative prompts are not.

    Args:
        generators: one CPU generator per image.
    """
    start = conditioning.embedding.mean
    solver = make_solver(config, start.device)
    z_t = solver.start(config.noise_scale * draw_noise(start, generators), start)
    past: list[torch.Tensor] = []
    with stock_attention(network):
        for i, t in enumerate(solver.timesteps):
            z_0 = naive_z_0(network, conditioning, solver.seen(z_t, i), t, config)
            z_t, *past = solver.step(z_0, z_t, i, past, generators)
    return z_t


def naive_z_0(
    network: ClearSRNetwork,
    conditioning: Conditioning,
    z_t: torch.Tensor,
    t: torch.Tensor,
    config: SamplingConfig,
) -> torch.Tensor:
    """z_0 as predicted at timestep `t`, with everything computed anew for both branches of guidance."""
    embedding, prompt = conditioning.embedding, conditioning.prompt
    batch = len(z_t)
    timestep = t.to(z_t.device).round().long().expand(batch)
    alpha_bar = network.alpha_bars[timestep].view(-1, 1, 1, 1)
    latent = network_input(network.config.prediction, z_t, alpha_bar, embedding)
    prompts = [prompt]
    if config.guidance_scale != 1:
        prompts.append(network.null_prompt.expand(batch, -1, -1))
    outputs = _branches(network, latent, timestep, embedding.mean, prompts)
    output = outputs[-1] + config.guidance_scale * (outputs[0] - outputs[-1])
    return predicted_z_0(network.config.prediction, output.to(z_t.dtype), z_t, alpha_bar, embedding)


def _branches(
    network: ClearSRNetwork,
    latent: torch.Tensor,
    timestep: torch.Tensor,
    z_lr: torch.Tensor,
    prompts: list[torch.Tensor],
) -> list[torch.Tensor]:
    """The network's output for each prompt, as one batch where the prompts are of one length."""
    if prompts[0].shape[1] == 1:
        # Repeated to the null prompt's length, which changes nothing: equal keys get equal weights.
        prompts = [prompts[0].expand(-1, prompts[-1].shape[1], -1), *prompts[1:]]
    if len({p.shape[1] for p in prompts}) > 1:
        return [network(latent, timestep, z_lr, p.to(latent.dtype)) for p in prompts]
    n = len(prompts)
    inputs = (latent.repeat(n, 1, 1, 1), timestep.repeat(n), z_lr.repeat(n, 1, 1, 1))
    return list(network(*inputs, torch.cat(prompts).to(latent.dtype)).chunk(n))


@contextmanager
def stock_attention(module: nn.Module) -> Iterator[None]:
    """Within the block every attention inside `module`, diffusers' and ours, is computed in full."""
    shortened: list[Any] = [
        child
        for child in module.modules()
        if isinstance(getattr(child, "processor", None), OneTokenProcessor)
    ]
    before = [attention.processor for attention in shortened]
    own = [child for child in module.modules() if isinstance(child, Attention) and child.takes_short_cut]
    try:
        for child in own:
            child.takes_short_cut = False
        for attention in shortened:
            attention.set_processor(attention.processor.stock)
        yield
    finally:
        for child in own:
            child.takes_short_cut = True
        for attention, processor in zip(shortened, before, strict=True):
            attention.set_processor(processor)
