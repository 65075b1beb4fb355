"""Which solver, and which timesteps. Every scheduler of diffusers is told that the network predicts z_0.

DDIM and DPM-Solver++ are our own (`sampling/solver.py`), so that the embedded model needs no diffusers.
"""

import threading
from typing import Any

import torch

from clearsr.config.sampling import SamplingConfig, SchedulerName
from clearsr.errors import optional
from clearsr.models.prediction import BETAS, TRAIN_TIMESTEPS, alpha_bars
from clearsr.sampling.solver import DiffusersSolver, DPMSolver, Solver

# Stable Diffusion's noise schedule. `sample` is diffusers' name for predicting z_0.
_COMMON: dict[str, Any] = {
    "num_train_timesteps": TRAIN_TIMESTEPS,
    "beta_start": BETAS[0],
    "beta_end": BETAS[1],
    "beta_schedule": "scaled_linear",
    "prediction_type": "sample",
}
# Order of our solver. DDIM is first-order DPM-Solver++; diffusers' own DDIM class goes 1000 // N timesteps on
# at each step, which misses the next timestep wherever the spacing is not uniform.
_SOLVER_ORDERS: dict[SchedulerName, int] = {"ddim": 1, "dpm++": 2}
_DIFFUSERS: dict[SchedulerName, tuple[str, dict[str, Any]]] = {
    "ddpm": ("DDPMScheduler", {"clip_sample": False}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
}

# diffusers puts another module into its place while it is imported: a second thread would see the first one.
_IMPORTING = threading.Lock()


def make_solver(config: SamplingConfig, device: torch.device) -> Solver:
    """The solver of a run: our own, or one of diffusers' schedulers."""
    spacing = config.spacing or ("linspace" if config.scheduler == "ddpm" else "trailing")
    timesteps = spaced_timesteps(config.steps, config.start_timestep, spacing)
    if config.scheduler in _SOLVER_ORDERS:
        return DPMSolver(alpha_bars("cpu"), timesteps, _SOLVER_ORDERS[config.scheduler], device)
    name, extra = _DIFFUSERS[config.scheduler]
    with _IMPORTING, optional(f"--scheduler {config.scheduler}"):
        import diffusers

        cls = getattr(diffusers, name)
    if config.scheduler == "unipc":  # it takes no timesteps
        scheduler = cls(**_COMMON, **extra, timestep_spacing=spacing)
        scheduler.set_timesteps(config.steps, device=device)
        return DiffusersSolver(scheduler, order=scheduler.config.solver_order)
    scheduler = cls(**_COMMON, **extra)
    scheduler.set_timesteps(timesteps=timesteps, device=device)
    return DiffusersSolver(scheduler, draws=config.scheduler == "ddpm")


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
