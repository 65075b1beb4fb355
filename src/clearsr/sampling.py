"""The denoising loop (paper, sections 3.1 and 3.3): predict z_0, guide, adjust, step.

All images of a batch are independent: each brings its own generator.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch

from clearsr.config.sampling import SamplingConfig
from clearsr.control_ahead import ControlAhead, chunk_length
from clearsr.latent_space_adjustment import adjust
from clearsr.models.clearsr import ClearSRNetwork, ControlSignals
from clearsr.models.latent_lr_embedding import LatentLR
from clearsr.models.prediction import network_input, predicted_z_0
from clearsr.schedule import generator_argument, make_scheduler
from clearsr.tiling import Window, blend_tiles, tile_windows


class Conditioning(NamedTuple):
    """Everything that the loop knows of the images."""

    embedding: LatentLR  # x_lr, B×c×h×w
    prompt: torch.Tensor  # image prompt p, B×T×D
    negative: torch.Tensor | None = None  # embedding of a non-empty negative prompt, 1×tokens×D


class Tile(NamedTuple):
    """One window's share of the images."""

    conditioning: Conditioning
    structure: list[torch.Tensor] | None  # the SPM's features, which hold for every step; None: not kept

    @classmethod
    def cut(cls, network: ClearSRNetwork, whole: Conditioning, window: Window, keep: bool) -> "Tile":
        """x_lr is cut with the window; the prompts are the whole image's."""
        embedding = LatentLR(*(window.of(part) for part in whole.embedding))
        structure = network.structure_features(embedding.mean) if keep else None
        return cls(whole._replace(embedding=embedding), structure)


KEPT_TILES = 32  # with more, the SPM runs again at each step instead of holding its features for all tiles

StepCallback = Callable[[int, int, torch.Tensor], None]  # (steps done, all steps, z_0 as now predicted)


@torch.no_grad()
def denoise(
    network: ClearSRNetwork,
    conditioning: Conditioning,
    config: SamplingConfig,
    generators: Sequence[torch.Generator],
    on_step: StepCallback | None = None,
) -> torch.Tensor:
    """z_0, B×c×h×w, of the images that `conditioning` describes.

    Args:
        generators: one CPU generator per image.
        on_step: called after each step; may raise to stop the run.
    """
    embedding = conditioning.embedding
    z_lr = embedding.mean
    if config.steps == 0:
        return z_lr
    scheduler = make_scheduler(config, z_lr.device)
    timesteps = scheduler.timesteps
    noise = config.noise_scale * draw_noise(z_lr, generators)
    if config.start == "lr":  # LRE: the start carries x_lr
        z_t = scheduler.add_noise(z_lr, noise, timesteps[:1].expand(len(z_lr)))
    else:
        z_t = noise * scheduler.init_noise_sigma
    windows = tile_windows(z_lr.shape[-2], z_lr.shape[-1], config.tile.size, config.tile.overlap)
    tiles = {
        window: Tile.cut(network, conditioning, window, keep=len(windows) <= KEPT_TILES) for window in windows
    }
    drawing = generator_argument(scheduler, generators)
    ahead = control_ahead(network, tiles, timesteps)
    for step, t in enumerate(timesteps):
        scaled = scheduler.scale_model_input(z_t, t)

        def predict(
            window: Window, latent: torch.Tensor = scaled, t: torch.Tensor = t, step: int = step
        ) -> torch.Tensor:
            control = None if ahead is None else ahead.at(step)
            return guided_z_0(network, tiles[window], window.of(latent), t, config, control)

        z_0 = blend_tiles(predict, z_t, windows)
        if config.lsa.target == "z_0":
            z_0 = adjust(z_0, z_lr, step, len(timesteps), config.lsa)
        z_t = scheduler.step(z_0, t, z_t, **drawing).prev_sample
        if config.lsa.target == "step":
            z_t = adjust(z_t, z_lr, step, len(timesteps), config.lsa)
        if on_step is not None:
            on_step(step + 1, len(timesteps), z_0)
    return z_t


def control_ahead(
    network: ClearSRNetwork, tiles: Mapping[Window, Tile], timesteps: torch.Tensor
) -> ControlAhead | None:
    """x_c of several timesteps at a time, where the picture is one small tile; else None."""
    if len(tiles) != 1 or len(timesteps) == 1:
        return None
    (tile,) = tiles.values()
    z_lr = tile.conditioning.embedding.mean
    length = chunk_length(*z_lr.shape[-2:])
    return ControlAhead(network, z_lr, tile.structure, timesteps, length) if length > 1 else None


def guided_z_0(
    network: ClearSRNetwork,
    tile: Tile,
    z_t: torch.Tensor,
    t: torch.Tensor,
    config: SamplingConfig,
    control: ControlSignals | None = None,
) -> torch.Tensor:
    """z_0 as predicted at timestep `t`, with classifier-free guidance (Ho & Salimans 2022) if it is on.

    Both branches of guidance share the U-Net encoder, the DPM and the SPM, because the image prompt enters in
    the decoder only: exact, and nearly a third less work. A non-empty negative prompt needs its own full
    pass.

    Args:
        control: x_c of the null prompt at `t`; unset: it is computed.
    """
    embedding, prompt, negative = tile.conditioning
    structure = tile.structure
    if structure is None and (control is None or negative is not None):
        structure = network.structure_features(embedding.mean)
    prediction = network.config.prediction
    batch = len(z_t)
    timestep = t.to(z_t.device).round().long().expand(batch)
    alpha_bar = network.alpha_bars[timestep].view(-1, 1, 1, 1)
    latent = network_input(prediction, z_t, alpha_bar, embedding)

    def decode(
        text: torch.Tensor, prompts: list[torch.Tensor], control: ControlSignals | None = None
    ) -> list[torch.Tensor]:
        """Outputs for several decoder prompts under one text in the encoder and the DPM."""
        text = text.expand(batch, -1, -1).to(latent.dtype)
        if control is None:
            control = network.control_signals(embedding.mean, timestep, text, structure)
        encoded = network.unet_encode(latent, timestep, text)
        return [network.unet_decode(encoded, control, p.to(latent.dtype)) for p in prompts]

    null = network.null_prompt.expand(batch, -1, -1)
    if config.guidance_scale == 1:
        (output,) = decode(network.null_prompt, [prompt], control)
    else:
        if negative is None:
            conditional, unconditional = decode(network.null_prompt, [prompt, null], control)
        else:
            (conditional,) = decode(network.null_prompt, [prompt], control)
            (unconditional,) = decode(negative, [negative.expand(batch, -1, -1)])
        output = unconditional + config.guidance_scale * (conditional - unconditional)
    return predicted_z_0(prediction, output.to(z_t.dtype), z_t, alpha_bar, embedding)


def draw_noise(like: torch.Tensor, generators: Sequence[torch.Generator]) -> torch.Tensor:
    """Standard normal noise of the shape of `like`, row i from generator i, drawn on the CPU."""
    rows = [torch.randn(like.shape[1:], generator=generator) for generator in generators]
    return torch.stack(rows).to(like)
