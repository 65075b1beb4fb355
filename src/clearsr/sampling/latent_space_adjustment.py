"""Latent Space Adjustment, LSA (paper, section 3.3, Eq. 3 and 4): pure functions, no weights.

alpha and beta are strengths per step at 50 steps. With other step counts each is rescaled so that the
adjustments of its part of the run compound to the same total.
"""

import torch

from clearsr.config.sampling import LSAConfig

REFERENCE_STEPS = 50  # the paper's number of steps


def early_adjustment(x: torch.Tensor, z_lr: torch.Tensor, alpha: float) -> torch.Tensor:
    """ELA (Eq. 3): (1 - alpha)·x + alpha·x_lr. alpha = 0 returns `x` itself."""
    return x if alpha == 0 else (1 - alpha) * x + alpha * z_lr


def later_adjustment(x: torch.Tensor, z_lr: torch.Tensor, beta: float) -> torch.Tensor:
    """LLA (Eq. 4): (1 + beta)·x - beta·x_lr. beta = 0 returns `x` itself."""
    return x if beta == 0 else (1 + beta) * x - beta * z_lr


def adjust(x: torch.Tensor, z_lr: torch.Tensor, step: int, steps: int, config: LSAConfig) -> torch.Tensor:
    """The adjustment that falls to step `step` (0-based) of `steps`: ELA, LLA, both or none."""
    alpha, beta = step_strengths(step, steps, config)
    return later_adjustment(early_adjustment(x, z_lr, alpha), z_lr, beta)


def step_strengths(step: int, steps: int, config: LSAConfig) -> tuple[float, float]:
    """(alpha, beta) of one step, rescaled for the number of steps; 0 outside their parts of the run."""
    alpha, beta = config.strengths
    early, early_reference = (_part_length(config.ela_end, n) for n in (steps, REFERENCE_STEPS))
    later, later_reference = (_part_length(1 - config.lla_start, n) for n in (steps, REFERENCE_STEPS))
    early_alpha = 1 - (1 - alpha) ** (early_reference / early) if step < early else 0.0
    later_beta = (1 + beta) ** (later_reference / later) - 1 if step >= steps - later else 0.0
    return early_alpha, later_beta


def total(steps: int, config: LSAConfig) -> float:
    """What all adjustments of a run together make of 1: of what differs from x_lr and is left alone else.

    Without steps there is x_lr alone: 0.
    """
    if steps == 0:
        return 0.0
    left = 1.0
    for step in range(steps):
        alpha, beta = step_strengths(step, steps, config)
        left *= (1 - alpha) * (1 + beta)
    return left


def _part_length(share: float, steps: int) -> int:
    """Steps in a part: at least one where the share is not zero."""
    return max(1, round(share * steps)) if share > 0 else 0
