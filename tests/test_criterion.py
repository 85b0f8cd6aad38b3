"""Probabilities and quantiles of D with their intervals, against exact binomial sums and exact laws."""

from __future__ import annotations

from fractions import Fraction
from math import ceil

import numpy as np
import pytest
import torch
from conftest import ALARM, most_misses, seeded, shifted, uniform
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import stats

from vaerobust.criterion import clopper_pearson, distance_quantile, probability_of_robustness
from vaerobust.distance import distances

# the interval of a probability


@pytest.mark.parametrize("trials", [1, 7, 40])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
def test_clopper_pearson_errs_on_each_side_as_seldom_as_it_says(trials, confidence):
    """For every true p the probability of a miss is a finite sum, computed exactly up to rounding."""
    k = np.arange(trials + 1)
    low, high = clopper_pearson(k, trials, confidence)
    for p in np.linspace(0, 1, 201):
        mass = stats.binom.pmf(k, trials, p)
        assert mass[low > p].sum() <= (1 - confidence) / 2 + 1e-12
        assert mass[high < p].sum() <= (1 - confidence) / 2 + 1e-12


@given(st.integers(1, 300), st.data(), st.floats(0.01, 0.999))
def test_clopper_pearson_agrees_with_scipy(trials, data, confidence):
    k = data.draw(st.integers(0, trials))
    low, high = clopper_pearson(k, trials, confidence)
    exact = stats.binomtest(k, trials).proportion_ci(confidence, method="exact")
    assert (float(low), float(high)) == pytest.approx((exact.low, exact.high), abs=1e-9)  # scipy searches for the root


def test_probability_interval_covers_the_exact_probability(linear):
    """One long run is cut into 2,000 independent repetitions of 60 samples."""
    x = uniform(1, linear.weight.shape[1])
    shift = 1.5 * linear.sigma
    d = distances(linear, x, shifted(linear, x, shift), samples=2000 * 60, seed=7).reshape(2000, 60)
    for level in (0.05, 0.5, 0.97):
        r = linear.sigma * stats.ncx2.ppf(level, linear.latents, 1.5**2) ** 0.5
        found = probability_of_robustness(d, r, confidence=0.9)
        exact = linear.probability(r, shift)
        assert exact == pytest.approx(level, rel=1e-9)
        assert (found.low > exact).sum() <= most_misses(2000, 0.05)
        assert (found.high < exact).sum() <= most_misses(2000, 0.05)
        assert np.array_equal(found.robust, found.low > 0.5)
        # the estimate itself: all samples together against the exact binomial
        within = round(float(found.probability.sum()) * 60)
        assert stats.binomtest(within, d.numel(), exact).pvalue > ALARM


def test_probability_counts_ties_as_within_and_takes_one_r_per_point():
    d = torch.tensor([[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0]])
    found = probability_of_robustness(d, torch.tensor([2.0, 3.5]), confidence=0.5)
    assert found.probability.tolist() == [0.5, 0.75]
    assert (found.samples, found.confidence) == (4, 0.5)
    assert probability_of_robustness(d, 0.0).probability.tolist() == [0.0, 0.0]


# the quantile and its interval


@given(st.integers(1, 400), st.sampled_from([0.01, 0.05, 0.1, 0.25, 0.3, 0.5, 0.55, 0.7, 0.9, 0.95, 0.99]))
@example(100, 0.55)  # 0.55 * 100 is slightly above 55 in floating point
def test_quantile_is_the_least_sample_that_the_level_does_not_exceed(samples, level):
    """The samples are their own ranks, so the value is a rank. It is compared with rational arithmetic."""
    ranks = torch.arange(1, samples + 1, dtype=torch.float64)[torch.randperm(samples, generator=seeded(0))]
    assert float(distance_quantile(ranks[None], level).value) == ceil(Fraction(str(level)) * samples)


@given(st.integers(1, 200), st.floats(0.02, 0.98), st.sampled_from([0.5, 0.9, 0.95, 0.9999]))
def test_quantile_interval_is_the_narrowest_with_its_confidence(samples, level, confidence):
    """With B samples below the quantile, rank l misses it iff B < l and rank u iff B >= u, for every continuous law."""
    ranks = torch.arange(1, samples + 1, dtype=torch.float64)
    found = distance_quantile(ranks[None], level, confidence=confidence)
    below, tail = stats.binom(samples, level), (1 - confidence) / 2 + 1e-12  # 1e-12 is for rounding
    low, high = float(found.low), float(found.high)
    assert below.cdf(low - 1) <= tail
    assert below.cdf(low) >= tail - 2e-12  # one rank more would err too often
    if np.isinf(high):
        assert below.sf(samples - 1) >= tail - 2e-12
    else:
        assert below.sf(high - 1) <= tail
        assert below.sf(high - 2) >= tail - 2e-12


def test_quantile_interval_covers_the_exact_quantile(linear):
    d = distances(linear, uniform(1, linear.weight.shape[1]), samples=2000 * 60, seed=8).reshape(2000, 60)
    for level in (0.1, 0.5, 0.9):
        found = distance_quantile(d, level, confidence=0.9)
        exact = linear.quantile(level)
        assert int((found.low > exact).sum()) <= most_misses(2000, 0.05)
        assert int((found.high < exact).sum()) <= most_misses(2000, 0.05)
        assert ((found.low <= found.value) & (found.value <= found.high)).all()


def test_too_few_samples_give_an_open_interval():
    found = distance_quantile(torch.tensor([[3.0, 1.0, 2.0]]), confidence=0.95)
    assert (float(found.low), float(found.value), float(found.high)) == (0.0, 2.0, float("inf"))
