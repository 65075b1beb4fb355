"""Latent Space Adjustment: Eq. 3 and 4 by hand, and the same total at any number of steps."""

import math

import pytest
import torch

from clearsr.config.base import build_config
from clearsr.config.sampling import LSA_PRESETS, LSAConfig
from clearsr.errors import ClearSRError
from clearsr.sampling.latent_space_adjustment import (
    adjust,
    early_adjustment,
    later_adjustment,
    step_strengths,
    total,
)


@pytest.fixture
def latents(normal):
    return normal(2, 4, 5, 5), normal(2, 4, 5, 5, seed=1)


def test_equations_by_hand(latents):
    x, z_lr = latents
    torch.testing.assert_close(early_adjustment(x, z_lr, 0.03), 0.97 * x + 0.03 * z_lr)
    torch.testing.assert_close(later_adjustment(x, z_lr, 0.01), 1.01 * x - 0.01 * z_lr)
    torch.testing.assert_close(early_adjustment(x, z_lr, 1.0), z_lr)


def test_strength_zero_is_the_identity(latents):
    x, z_lr = latents
    assert early_adjustment(x, z_lr, 0.0) is x and later_adjustment(x, z_lr, 0.0) is x
    config = LSAConfig(preset="off")
    assert all(adjust(x, z_lr, step, 20, config) is x for step in range(20))


def test_at_fifty_steps_the_papers_values_hold_in_the_first_and_last_ten(latents):
    x, z_lr = latents
    config = LSAConfig(preset="fidelity")
    for step in range(50):
        expected = x
        if step < 10:
            expected = 0.97 * x + 0.03 * z_lr
        elif step >= 40:
            expected = 1.01 * x - 0.01 * z_lr
        torch.testing.assert_close(adjust(x, z_lr, step, 50, config), expected)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7, 10, 20, 49, 50, 51, 100, 1000])
@pytest.mark.parametrize("share", [0.005, 0.1, 0.2, 0.5, 1.0])
def test_total_is_that_of_fifty_steps_at_any_number(steps, share):
    config = LSAConfig(alpha=0.03, beta=0.02, ela_end=share, lla_start=1 - share)
    pulls = [step_strengths(step, steps, config)[0] for step in range(steps)]
    pushes = [step_strengths(step, steps, config)[1] for step in range(steps)]
    at_fifty = max(1, round(50 * share))  # a part that exists has at least one step
    assert math.prod(1 - a for a in pulls) == pytest.approx((1 - 0.03) ** at_fifty)
    assert math.prod(1 + b for b in pushes) == pytest.approx((1 + 0.02) ** at_fifty)
    assert sum(a > 0 for a in pulls) == sum(b > 0 for b in pushes) == max(1, round(steps * share))
    assert pulls == sorted(pulls, reverse=True) and pushes == sorted(pushes)  # first and last part


@pytest.mark.parametrize("steps", [1, 2, 7, 50])
@pytest.mark.parametrize("values", [{}, {"alpha": 0.3, "beta": 0.2}, {"preset": "off"}, {"alpha": 1.0}])
def test_all_adjustments_together_scale_what_differs_from_x_lr(latents, steps, values):
    x, z_lr = latents
    config = build_config(LSAConfig, values)
    adjusted = x
    for step in range(steps):
        adjusted = adjust(adjusted, z_lr, step, steps, config)
    torch.testing.assert_close(adjusted - z_lr, total(steps, config) * (x - z_lr), atol=1e-4, rtol=1e-4)


def test_without_steps_nothing_differs_from_x_lr():
    assert total(0, LSAConfig()) == 0.0


def test_a_part_of_no_length_never_acts():
    config = LSAConfig(alpha=0.5, beta=0.5, ela_end=0, lla_start=1)
    assert {step_strengths(step, 30, config) for step in range(30)} == {(0.0, 0.0)}


def test_presets_and_single_values():
    assert LSAConfig().strengths == (0.01, 0.01) == LSA_PRESETS["clearsr"]
    assert LSAConfig(preset="fidelity").strengths == (0.03, 0.01)
    assert LSAConfig(preset="off").strengths == (0, 0)
    assert LSAConfig(preset="fidelity", beta=0.2).strengths == (0.03, 0.2)
    assert LSAConfig(alpha=0).strengths == (0, 0.01)


@pytest.mark.parametrize("values", [{"alpha": 1.1}, {"beta": -0.1}, {"preset": "best"}, {"target": "noise"}])
def test_values_out_of_range_are_refused(values):
    with pytest.raises(ClearSRError, match=next(iter(values))):
        build_config(LSAConfig, values)
