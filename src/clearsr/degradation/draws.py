"""Single random draws from an explicit generator, as plain Python numbers."""

from collections.abc import Sequence
from typing import TypeVar

import torch

T = TypeVar("T")


def uniform(low: float, high: float, generator: torch.Generator) -> float:
    """A number from [low, high)."""
    return low + (high - low) * torch.rand((), generator=generator, dtype=torch.float64).item()


def integer(low: int, high: int, generator: torch.Generator) -> int:
    """A whole number from low to high, both possible."""
    return int(torch.randint(low, high + 1, (), generator=generator).item())


def chance(probability: float, generator: torch.Generator) -> bool:
    """True with the given probability; 0 is never and 1 is always, and each call uses one draw."""
    return uniform(0.0, 1.0, generator) < probability


def choose(options: Sequence[T], weights: Sequence[float], generator: torch.Generator) -> T:
    """One of the options, each as often as its share of the weights; one of weight 0 never."""
    possible = [(option, weight) for option, weight in zip(options, weights, strict=True) if weight > 0]
    remaining = uniform(0.0, sum(weights), generator)
    for option, weight in possible:
        remaining -= weight
        if remaining < 0:
            return option
    return possible[-1][0]  # rounding left a crumb beyond the last weight
