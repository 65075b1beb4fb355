"""Intervals against scipy, and what they do without enough numbers."""

import math

import numpy as np
import pytest
from scipy import stats

from clearsr.evaluation.evaluate import mean_interval, student_cdf, student_quantile


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 7, 10, 99, 100, 2999])
def test_students_distribution_is_scipys(degrees):
    for t in (0.0, 0.3, 1.3, 5.0):
        assert student_cdf(t, degrees) == pytest.approx(stats.t.cdf(t, degrees), abs=1e-12)
    for probability in (0.75, 0.95, 0.995):
        expected = stats.t.ppf(probability, degrees)
        assert student_quantile(probability, degrees) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_the_interval_is_scipys(confidence):
    values = np.random.default_rng(0).normal(25, 3, 17)
    found = mean_interval([*values, math.nan], confidence)
    expected = stats.t.interval(confidence, 16, loc=values.mean(), scale=stats.sem(values))
    assert (found.low, found.high) == pytest.approx(expected)
    assert found.mean == pytest.approx(values.mean())
    assert found.half_width == pytest.approx((expected[1] - expected[0]) / 2)


def test_the_interval_covers_the_mean_as_often_as_it_says():
    draws = np.random.default_rng(1).normal(0, 1, (1000, 6))
    covered = sum(i.low <= 0 <= i.high for i in (mean_interval(list(row), 0.9) for row in draws))
    assert 870 <= covered <= 930


def test_what_has_no_interval():
    assert mean_interval([]) is None
    assert mean_interval([math.nan]) is None
    single = mean_interval([3.0])
    assert single.mean == 3 and math.isnan(single.low)
    infinite = mean_interval([3.0, math.inf])
    assert infinite.mean == math.inf and math.isnan(infinite.high)
