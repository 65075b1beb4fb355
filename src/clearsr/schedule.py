"""Which diffusers scheduler, and which timesteps. Every scheduler is told that the network predicts z_0."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import (
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    UniPCMultistepScheduler,
)

from clearsr.config.sampling import SamplingConfig, SchedulerName

TRAIN_TIMESTEPS = 1000

# Stable Diffusion's noise schedule. `sample` is diffusers' name for predicting z_0.
_COMMON: dict[str, Any] = {
    "num_train_timesteps": TRAIN_TIMESTEPS,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "sample",
}
_CLASSES: dict[SchedulerName, tuple[Any, dict[str, Any]]] = {
    "ddpm": (DDPMScheduler, {"clip_sample": False}),
    # DDIM is first-order DPM-Solver++ (Lu et al. 2022). diffusers' own DDIM class goes 1000 // N timesteps on
    # at each step, which misses the next timestep wherever the spacing is not uniform.
    "ddim": (DPMSolverMultistepScheduler, {"solver_order": 1}),
    "dpm++": (DPMSolverMultistepScheduler, {}),
    "unipc": (UniPCMultistepScheduler, {}),
    "euler": (EulerDiscreteScheduler, {}),
}
_CUSTOM_TIMESTEPS = ("ddpm", "ddim", "dpm++", "euler")


def alpha_bars() -> torch.Tensor:
    """alpha-bar(t) for t = 0..999, float32."""
    return DDPMScheduler(**_COMMON).alphas_cumprod


def make_scheduler(config: SamplingConfig, device: torch.device) -> Any:
    """A diffusers scheduler with its timesteps set."""
    cls, extra = _CLASSES[config.scheduler]
    spacing = config.spacing or ("linspace" if config.scheduler == "ddpm" else "trailing")
    if config.scheduler in _CUSTOM_TIMESTEPS:
        scheduler = cls(**_COMMON, **extra)
        timesteps = spaced_timesteps(config.steps, config.start_timestep, spacing)
        scheduler.set_timesteps(timesteps=timesteps, device=device)
    else:
        scheduler = cls(**_COMMON, **extra, timestep_spacing=spacing)
        scheduler.set_timesteps(config.steps, device=device)
    return scheduler


def generator_argument(scheduler: Any, generators: Sequence[torch.Generator]) -> dict[str, Any]:
    """The generators as `step` takes them; deterministic schedulers have no such argument."""
    takes_generator = "generator" in inspect.signature(scheduler.step).parameters
    return {"generator": list(generators)} if takes_generator else {}


def spaced_timesteps(steps: int, start: int, spacing: str) -> list[int]:
    """Distinct descending timesteps from at most `start`, at most `steps` of them.

    linspace: round(i·start/(N-1)), the spaced DDPM of Nichol & Dhariwal 2021, which ends at 0; leading:
    i·(T/N) + 1, as Stable Diffusion's own configuration has it; trailing: ends one stride above 0; quadratic:
    closer together towards the end, where a few steps count most.
    """
    if steps == 1:
        return [start]
    steps = min(steps, start + 1)
    if spacing == "linspace":
        ascending = [round(i * start / (steps - 1)) for i in range(steps)]
    elif spacing == "leading":
        stride = (start + 1) // steps
        ascending = [i * stride + 1 for i in range(steps)]
    elif spacing == "trailing":
        ascending = [round((i + 1) * (start + 1) / steps) - 1 for i in range(steps)]
    else:
        ascending = [round(start * ((i + 1) / steps) ** 2) for i in range(steps)]
    return sorted({min(t, start) for t in ascending}, reverse=True)
