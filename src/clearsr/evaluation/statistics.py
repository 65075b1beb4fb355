"""Means with confidence intervals: Student's t over images, and over seeds where there are several."""

import math
from collections.abc import Sequence
from typing import NamedTuple


class Interval(NamedTuple):
    """A mean and the interval that covers the true one with the chosen confidence."""

    mean: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """What is written behind ±."""
        return (self.high - self.low) / 2


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval | None:
    """Mean and t interval of the values that are not NaN; None if there are none.

    With one value, or an infinite one (PSNR of equal pictures), the interval is not defined: NaN.
    """
    kept = [value for value in values if not math.isnan(value)]
    if not kept:
        return None
    count = len(kept)
    mean = math.fsum(kept) / count if all(map(math.isfinite, kept)) else sum(kept) / count
    if count < 2 or not math.isfinite(mean):
        return Interval(mean, math.nan, math.nan)
    variance = math.fsum((value - mean) ** 2 for value in kept) / (count - 1)
    half = student_quantile((1 + confidence) / 2, count - 1) * math.sqrt(variance / count)
    return Interval(mean, mean - half, mean + half)


def student_quantile(probability: float, degrees: int) -> float:
    """Where Student's distribution with whole degrees of freedom reaches a probability above one half."""
    low, high = 0.0, 1.0
    while student_cdf(high, degrees) < probability:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if student_cdf(middle, degrees) < probability else (low, middle)
    return (low + high) / 2


def student_cdf(t: float, degrees: int) -> float:
    """The distribution function at t >= 0, by the finite sums of Abramowitz & Stegun 26.7.3 and 26.7.4."""
    theta = math.atan(t / math.sqrt(degrees))
    cosine, sine = math.cos(theta), math.sin(theta)
    is_odd = degrees % 2 == 1
    term, total = (cosine, 0.0) if is_odd else (1.0, 0.0)
    for power in range(1 if is_odd else 0, degrees - 1, 2):
        total += term
        term *= cosine**2 * (power + 1) / (power + 2)
    inside = 2 / math.pi * (theta + sine * total) if is_odd else sine * total
    return 0.5 + inside / 2
