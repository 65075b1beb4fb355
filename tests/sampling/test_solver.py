"""Our DPM-Solver++ against diffusers'."""

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler

from clearsr.models.prediction import alpha_bars
from clearsr.sampling.schedule import spaced_timesteps
from clearsr.sampling.solver import DPMSolver

CPU = torch.device("cpu")


def _theirs(order, timesteps):
    scheduler = DPMSolverMultistepScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="sample",
        solver_order=order,
    )
    scheduler.set_timesteps(timesteps=timesteps)
    return scheduler


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("spacing", ["trailing", "linspace", "quadratic"])
@pytest.mark.parametrize("steps", [1, 2, 3, 20])
def test_every_step_is_diffusers(order, spacing, steps, normal):
    timesteps = spaced_timesteps(steps, 500, spacing)
    ours, theirs = DPMSolver(alpha_bars(), timesteps, order, CPU), _theirs(order, timesteps)
    assert ours.timesteps.tolist() == theirs.timesteps.tolist()
    z_0, noise = normal(2, 4, 3, 3), normal(2, 4, 3, 3, seed=1)
    z_t, past = ours.start(noise, z_0), []
    torch.testing.assert_close(z_t, theirs.add_noise(z_0, noise, ours.timesteps[:1].expand(2)))
    for i, t in enumerate(ours.timesteps):
        guess = z_0 + 0.3 * normal(2, 4, 3, 3, seed=2 + i) * z_t  # depends on where the run has come to
        expected = theirs.step(guess, t, z_t).prev_sample
        z_t, *past = ours.step(guess, z_t, i, past)
        torch.testing.assert_close(z_t, expected, atol=1e-5, rtol=1e-4)


def test_noise_levels_are_diffusers():
    torch.testing.assert_close(alpha_bars(), _theirs(1, [1]).alphas_cumprod, atol=0, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_the_start_is_of_the_latents_type(dtype, normal):
    solver = DPMSolver(alpha_bars(), spaced_timesteps(3, 500, "trailing"), 2, CPU)
    noise, z_0 = normal(2, 4, 3, 3).to(dtype), normal(2, 4, 3, 3, seed=1).to(dtype)
    expected = solver.start(noise.double(), z_0.double())
    found = solver.start(noise, z_0)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, atol=0.05, rtol=0.02)
    assert solver.start(noise) is noise
