"""Timesteps and schedulers, against the formulas of the papers and diffusers' own DDIM."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, UniPCMultistepScheduler

from clearsr.config.base import build_config
from clearsr.config.sampling import SamplingConfig
from clearsr.errors import ClearSRError
from clearsr.models.prediction import alpha_bars
from clearsr.sampling.schedule import make_solver, spaced_timesteps

CPU = torch.device("cpu")
SPACINGS = ["linspace", "leading", "trailing", "quadratic"]
SCHEDULERS = ["ddpm", "ddim", "dpm++", "unipc", "euler"]
COMBINATIONS = [
    (scheduler, spacing)
    for scheduler in SCHEDULERS
    for spacing in (None, *SPACINGS)
    if (scheduler, spacing) != ("unipc", "quadratic")  # refused by the configuration
]


def _config(**values):
    return build_config(SamplingConfig, values)


def test_noise_levels_are_stable_diffusions():
    beta = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    np.testing.assert_allclose(alpha_bars().numpy(), np.cumprod(1 - beta), rtol=1e-4)


@pytest.mark.parametrize("steps", [2, 3, 4, 7, 20, 50, 250, 1000])
def test_linspace_is_the_spaced_ddpm_of_the_paper(steps):
    expected = [round(i * 999 / (steps - 1)) for i in reversed(range(steps))]
    assert spaced_timesteps(steps, 999, "linspace") == expected
    assert make_solver(_config(steps=steps), CPU).timesteps.tolist() == expected  # the default


@pytest.mark.parametrize("steps", [2, 4, 5, 20, 50])
def test_leading_and_trailing_are_diffusers(steps):
    for spacing, offset in (("leading", 1), ("trailing", 0)):
        theirs = DDIMScheduler(timestep_spacing=spacing, steps_offset=offset)
        theirs.set_timesteps(steps)
        assert spaced_timesteps(steps, 999, spacing) == theirs.timesteps.tolist()


def test_quadratic_is_denser_towards_the_end():
    timesteps = spaced_timesteps(10, 999, "quadratic")
    assert (np.diff(-np.diff(timesteps)) < 0).all()
    roots = [math.sqrt(t / 999) for t in timesteps]  # the square of even spacing
    np.testing.assert_allclose(roots, np.arange(10, 0, -1) / 10, atol=0.003)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("start", [1, 10, 333, 999])
@pytest.mark.parametrize("steps", [1, 2, 3, 12, 13, 334, 1000])
def test_timesteps_are_distinct_descending_and_in_range(spacing, start, steps):
    timesteps = spaced_timesteps(steps, start, spacing)
    assert 1 <= len(timesteps) <= steps
    assert all(later < earlier for earlier, later in zip(timesteps, timesteps[1:], strict=False))
    assert timesteps[-1] >= 0 and timesteps[0] <= start
    if spacing != "leading":
        assert timesteps[0] == start
    if spacing in ("linspace", "trailing"):
        assert len(timesteps) == min(steps, start + 1)


@pytest.mark.parametrize(("scheduler", "spacing"), COMBINATIONS)
@pytest.mark.parametrize("steps", [1, 2, 5, 17])
def test_every_scheduler_ends_at_the_true_latent_if_it_is_told_it(scheduler, spacing, steps, normal):
    config = _config(scheduler=scheduler, spacing=spacing, steps=steps)
    z_0, z_lr = normal(2, 4, 5, 5), normal(2, 4, 5, 5, seed=1)
    made = make_solver(config, CPU)
    generators = [torch.Generator().manual_seed(i) for i in range(2)]
    z_t, past = made.start(normal(2, 4, 5, 5, seed=2), z_lr), []
    for i in range(len(made.timesteps)):
        z_t, *past = made.step(z_0, z_t, i, past, generators)
    assert not past
    torch.testing.assert_close(z_t, z_0, atol=1e-5, rtol=1e-5)


def _follow(solver, guess, z_t):
    """The path from z_t under a network that answers `guess(z_t as the network sees it, t)`."""
    path, past = [], []
    for i, t in enumerate(solver.timesteps):
        z_t, *past = solver.step(guess(solver.seen(z_t, i), t), z_t, i, past)
        path.append(z_t)
    return torch.stack(path)


def _follow_theirs(scheduler, guess, z_t):
    """The same with one of diffusers' schedulers, which remembers by itself."""
    path = []
    for t in scheduler.timesteps:
        seen = scheduler.scale_model_input(z_t, t)
        z_t = scheduler.step(guess(seen, t), t, z_t).prev_sample
        path.append(z_t)
    return torch.stack(path)


def _guess(z_t, t):
    """Some smooth function of z_t and t."""
    return torch.tanh(z_t) * (1 - t / 2000) + 0.1


@pytest.mark.parametrize("steps", [2, 4, 5, 20, 50])
def test_ddim_is_diffusers_where_that_one_is_exact(steps, normal):
    theirs = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="sample",
        clip_sample=False,
        timestep_spacing="trailing",
    )
    theirs.set_timesteps(steps)
    ours = make_solver(_config(scheduler="ddim", steps=steps), CPU)
    z_t = normal(1, 4, 6, 6)
    expected = _follow_theirs(theirs, _guess, z_t)
    torch.testing.assert_close(_follow(ours, _guess, z_t), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
def test_unipc_without_a_memory_of_its_own_is_diffusers(steps, spacing, normal):
    """Bit for bit, and with its latents in parts of which each has its own history."""
    ours = make_solver(_config(scheduler="unipc", steps=steps, spacing=spacing), CPU)
    theirs = UniPCMultistepScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="sample",
        timestep_spacing=spacing,
    )
    theirs.set_timesteps(steps)
    z_t = normal(1, 4, 6, 6)
    expected = _follow_theirs(theirs, _guess, z_t)
    assert torch.equal(_follow(ours, _guess, z_t), expected)
    parts = [_follow(ours, _guess, part) for part in z_t.split(4, dim=2)]
    torch.testing.assert_close(torch.cat(parts, dim=3), expected)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("steps", [3, 7, 13])
def test_ddim_steps_to_the_next_timestep_at_any_spacing(spacing, steps, normal):
    scheduler = make_solver(_config(scheduler="ddim", steps=steps, spacing=spacing, start_timestep=700), CPU)
    alpha = [float(alpha_bars()[t]) for t in scheduler.timesteps] + [1.0]
    z_t = expected = normal(1, 4, 6, 6)
    for i, t in enumerate(scheduler.timesteps):
        z_0 = _guess(expected, t)
        noise = (expected - math.sqrt(alpha[i]) * z_0) / math.sqrt(1 - alpha[i])
        expected = math.sqrt(alpha[i + 1]) * z_0 + math.sqrt(1 - alpha[i + 1]) * noise
    torch.testing.assert_close(_follow(scheduler, _guess, z_t)[-1], expected, atol=1e-3, rtol=1e-3)


def test_euler_is_ddim_in_other_coordinates(normal):
    settings = {"steps": 9, "spacing": "trailing"}
    ddim = make_solver(_config(scheduler="ddim", **settings), CPU)
    euler = make_solver(_config(scheduler="euler", **settings), CPU)
    z_lr, noise = normal(1, 4, 6, 6), normal(1, 4, 6, 6, seed=1)
    first = [s.start(noise, z_lr) for s in (ddim, euler)]
    seen = euler.seen(first[1], 0)
    torch.testing.assert_close(seen, first[0], atol=1e-4, rtol=1e-4)
    ends = [_follow(ddim, _guess, first[0])[-1], _follow(euler, _guess, first[1])[-1]]
    torch.testing.assert_close(ends[0], ends[1], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(("steps", "start"), [(5, 999), (4, 300)])
def test_ddpm_draws_from_the_posterior_of_the_spaced_chain(steps, start, normal):
    """q(z_prev | z_t, z_0) of Ho et al. 2020, with the alpha-bars of the timesteps that are kept."""
    scheduler = make_solver(_config(steps=steps, start_timestep=start), CPU)
    timesteps = scheduler.timesteps.tolist()
    z_t, z_0 = normal(1, 4, 6, 6), normal(1, 4, 6, 6, seed=1)
    for now, following in zip(timesteps[:-1], timesteps[1:], strict=True):
        a_now, a_next = float(alpha_bars()[now]), float(alpha_bars()[following])
        alpha = a_now / a_next
        mean = (math.sqrt(a_next) * (1 - alpha) * z_0 + math.sqrt(alpha) * (1 - a_next) * z_t) / (1 - a_now)
        variance = (1 - a_next) / (1 - a_now) * (1 - alpha)
        noise = torch.randn(1, 4, 6, 6, generator=torch.Generator().manual_seed(7))
        expected = mean + math.sqrt(variance) * noise
        (z_t,) = scheduler.step(z_0, z_t, timesteps.index(now), [], [torch.Generator().manual_seed(7)])
        torch.testing.assert_close(z_t, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_start_adds_the_noise_of_the_first_timestep(scheduler, normal):
    start = 999 if scheduler == "unipc" else 400
    made = make_solver(_config(scheduler=scheduler, steps=4, start_timestep=start), CPU)
    assert int(made.timesteps[0]) == start
    z_lr, noise = normal(1, 4, 6, 6), normal(1, 4, 6, 6, seed=1)
    z_t = made.seen(made.start(noise, z_lr), 0)
    a = float(alpha_bars()[start])
    torch.testing.assert_close(z_t, math.sqrt(a) * z_lr + math.sqrt(1 - a) * noise, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scheduler": "unipc", "start_timestep": 500}, "start_timestep below 999 needs scheduler"),
        ({"scheduler": "unipc", "spacing": "quadratic"}, "spacing quadratic needs scheduler"),
        ({"start": "noise", "start_timestep": 500}, "needs start lr"),
        ({"scheduler": "heun"}, "'dpm\\+\\+'"),
    ],
)
def test_combinations_that_do_not_work_are_refused(values, message):
    with pytest.raises(ClearSRError, match=message):
        _config(**values)


THREADS = """
import sys, threading
import torch
from clearsr.config.sampling import SamplingConfig
from clearsr.sampling.schedule import make_solver
sys.setswitchinterval(1e-5)
start, failed = threading.Barrier(4), []
def make(name):
    start.wait()
    try:
        make_solver(SamplingConfig(steps=4, scheduler=name), torch.device("cpu"))
    except Exception as error:
        failed.append(repr(error))
threads = [threading.Thread(target=make, args=(name,)) for name in ("ddpm", "unipc", "euler", "ddpm")]
[thread.start() for thread in threads], [thread.join() for thread in threads]
print(failed)
"""


def test_threads_may_all_be_the_first_to_need_diffusers():
    done = subprocess.run([sys.executable, "-c", THREADS], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
