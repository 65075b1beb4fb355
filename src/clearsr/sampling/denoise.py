"""The denoising loop (paper, sections 3.1 and 3.3): predict z_0, guide, adjust, step.

All images of a batch are independent: each brings its own generator.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from clearsr.config.sampling import SamplingConfig
from clearsr.models.clearsr import ClearSRNetwork
from clearsr.sampling.guidance import Conditioning, Predictor
from clearsr.sampling.latent_space_adjustment import adjust
from clearsr.sampling.noise import Bands, draw_noise
from clearsr.sampling.schedule import make_solver

Generators = Sequence[torch.Generator]
# (steps done, all steps, z_0 as now predicted); where an image is done in blocks: (parts done, parts, None).
StepCallback = Callable[[int, int, Any], None]


def denoise(
    network: ClearSRNetwork,
    conditioning: Conditioning,
    config: SamplingConfig,
    generators: Generators,
    on_step: StepCallback | None = None,
    on_tile: Callable[[], None] | None = None,
    tiles_at_once: int = 1,
) -> Any:
    """z_0, B×c×h×w, of the images that `conditioning` describes, a grid as their x_lr.

    Training takes gradients through it; all others call it without.

    Args:
        generators: one CPU generator per image.
        on_step: called after each step; may raise to stop the run.
        on_tile: called after each tile of each step; may raise as well.
        tiles_at_once: tiles of each image that the network takes as one batch; changes rounding alone.
    """
    z_lr: Any = conditioning.embedding.mean
    if config.steps == 0:
        return z_lr
    solver, bands, lsa = make_solver(config, z_lr.device), Bands(z_lr, generators), config.lsa
    predict = Predictor(network, conditioning, config, solver, tiles_at_once, on_tile)
    steps = len(solver.timesteps)

    def start(own: Generators, begin: torch.Tensor) -> list[torch.Tensor]:
        noise = config.noise_scale * draw_noise(begin, own)
        return [solver.start(noise, begin if config.start == "lr" else None)]  # LRE: the start carries x_lr

    def step(
        i: int, own: Generators, z_0: torch.Tensor, z_t: torch.Tensor, z_lr: torch.Tensor, *past: torch.Tensor
    ) -> list[torch.Tensor]:
        z_t, *past_now = solver.step(z_0, z_t, i, past, own)
        return [adjust(z_t, z_lr, i, steps, lsa) if lsa.target == "step" else z_t, *past_now]

    z_t, *past = bands.map(start, conditioning.embedding.mean)
    for i in range(steps):
        z_0 = predict(z_t, i)
        z_t, *past = bands.map(partial(step, i), z_0, z_t, z_lr, *past)
        if on_step is not None:
            on_step(i + 1, steps, z_0)
    return z_t
