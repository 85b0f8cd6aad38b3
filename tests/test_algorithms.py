"""Algorithms 1 and 2 as printed, against the exact law of what they return; minimum_r, against exact quantiles."""

from __future__ import annotations

import math
import re
from math import ceil, log, sqrt

import numpy as np
import pytest
import torch
from conftest import ALARM, SpreadingVAE, graded_model, seeded, share_error, square_model, uniform
from scipy import stats

from vaerobust.algorithms import algorithm_1_as_printed, algorithm_2_as_printed, minimum_r
from vaerobust.linear import LinearGaussianVAE

RUNS = 600


def law_of_the_first_success(chances):
    """Return P(the loop ends at or before pass k), where pass k ends it with the k-th probability, independently."""
    return 1 - np.cumprod(1 - np.asarray(chances))


def largest_gap(found, law):
    """Return the largest distance between the share of runs that ended by pass k and its exact probability."""
    share = np.searchsorted(np.sort(found), np.arange(1, len(law) + 1), side="right") / len(found)
    return np.abs(share - law).max()


# Dvoretzky, Kiefer, Wolfowitz: a share of RUNS runs is further than this from its probability, anywhere, with
# probability ALARM at most
GAP = sqrt(log(2 / ALARM) / (2 * RUNS))


# Algorithm 1


def test_algorithm_1_as_printed_ends_when_chance_says(linear):
    """Pass k compares new samples with r = k * step, so the exact probability that it is the last is binomial."""
    x = uniform(1, linear.weight.shape[1])
    step, samples, generator = 0.2 * linear.quantile(0.5), 20, seeded(0)
    runs = [algorithm_1_as_printed(linear, x, step=step, samples=samples, seed=generator) for _ in range(RUNS)]
    chances = [stats.binom.sf(9, samples, linear.probability(k * step)) for k in range(1, 30)]
    assert largest_gap([run.iterations for run in runs], law_of_the_first_success(chances)) <= GAP
    for run in runs:
        assert run.ended
        assert run.value == pytest.approx(run.iterations * step, rel=1e-13)  # a sum of few equal steps
        assert run.samples == run.iterations * samples


def test_algorithm_1_as_printed_finds_the_order_statistic_it_converges_to(linear):
    """Both lie within the sampling error of the exact median; the printed one may lie one step further above."""
    x = uniform(1, linear.weight.shape[1])
    samples, step = 20_000, 0.01 * linear.quantile(0.5)
    printed = algorithm_1_as_printed(linear, x, step=step, samples=samples, seed=1)
    error = share_error(samples, 300)  # it tests far fewer radii than 300
    assert linear.quantile(0.5 - error) <= printed.value <= linear.quantile(0.5 + error) + step
    direct = minimum_r(linear, x, samples=samples, seed=2, confidence=1 - ALARM)
    assert float(direct.low) <= linear.quantile(0.5) <= float(direct.high)
    assert float(direct.low) - linear.quantile(0.5) >= linear.quantile(0.5 - error) - linear.quantile(0.5 + error)
    width = linear.quantile(0.5 + error) - linear.quantile(0.5 - error)
    assert abs(printed.value - float(direct.value)) <= width + step


def test_algorithm_1_says_when_it_did_not_end(linear):
    x = uniform(1, linear.weight.shape[1])
    run = algorithm_1_as_printed(linear, x, step=1e-6 * linear.sigma, samples=10, most=7, seed=0)
    assert not run.ended
    assert np.isnan(run.value)
    assert (run.iterations, run.samples) == (7, 70)


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_minimum_r_is_the_exact_quantile_at_every_point(linear, level):
    """The law of D does not depend on x. At confidence 1 - ALARM an interval misses once in a million."""
    x = uniform(4, linear.weight.shape[1])
    found = minimum_r(linear, x, level=level, samples=5000, seed=3, confidence=1 - ALARM)
    exact = linear.quantile(level)
    assert found.value.shape == (4,)
    assert ((found.low <= exact) & (exact <= found.high)).all()
    assert ((found.low <= found.value) & (found.value <= found.high)).all()
    assert (found.level, found.confidence) == (level, 1 - ALARM)


# Algorithm 2


def algorithm_2_law(kind, r, step, start, samples):
    """Return the radii that Algorithm 2 tries on a model of ``square_model`` at x = 0, and P(it ended by each).

    There the second model's sigma is 0.1 exp(R) in every direction, so the law of D is known for both.
    """
    tried = start - step * np.arange(ceil(start / step))
    spread = 0.1 * np.exp(tried) if kind is SpreadingVAE else np.full_like(tried, 0.1)
    within = stats.ncx2.cdf((r / spread) ** 2, 4, (0.5 * tried / spread) ** 2)
    chances = stats.binom.sf((samples - 1) // 2, samples, within)
    return tried, law_of_the_first_success(chances)


@pytest.mark.parametrize("kind", [LinearGaussianVAE, SpreadingVAE], ids=["constant sigma", "sigma grows with radius"])
def test_algorithm_2_as_printed_ends_when_chance_says(kind):
    """The algorithm perturbs sigma, and returns one step less than the radius that it accepted."""
    model, x = square_model(gain=0.5, kind=kind), torch.zeros(1, 4, dtype=torch.float64)
    r, options = 0.35, {"step": 0.05, "start": 0.8, "samples": 15}
    tried, law = algorithm_2_law(kind, r, **options)
    generator = seeded(0)
    runs = [algorithm_2_as_printed(model, x, r, **options, seed=generator) for _ in range(RUNS)]
    assert largest_gap([run.iterations for run in runs], law) <= GAP
    # the law with the other sigma is out of reach, so this shows that sigma is taken at the perturbed input
    other = algorithm_2_law(LinearGaussianVAE if kind is SpreadingVAE else SpreadingVAE, r, **options)[1]
    assert np.abs(law - other).max() > 2 * GAP
    for run in runs:
        assert run.ended
        assert run.value == pytest.approx(tried[run.iterations - 1] - 0.05, abs=1e-13)  # rounding of a few differences
        assert run.samples == run.iterations * 15


def test_algorithm_2_says_where_it_would_go_on_for_ever(square):
    """With r below the median of D(x), fewer than half of the samples lie within r at every R. It ends at R < 0."""
    x, r = uniform(1, 4), 0.5 * square.quantile(0.01)
    run = algorithm_2_as_printed(square, x, r, step=0.25, start=1.0, samples=200, seed=0)
    assert not run.ended
    assert np.isnan(run.value)
    assert (run.iterations, run.samples) == (5, 1000)  # at 1, 3/4, 1/2, 1/4 and 0
    square.decoder = torch.zeros_like(square.decoder)
    # it asks for d < r, which no d meets at r = 0; algorithm 1 asks for d <= r
    assert not algorithm_2_as_printed(square, x, 0.0, step=0.25, start=1.0, samples=5).ended
    assert algorithm_1_as_printed(square, x, step=0.25, samples=5).iterations == 1


# steps that floating point cannot make


@pytest.mark.parametrize(("start", "step"), [(1e30, 0.1), (10.0, 1e-16), (2.0**53 + 2, 1.0)])
def test_algorithm_2_refuses_a_step_that_rounding_swallows(start, step, square):
    """Next to these starts, numbers are further apart than the step. Rounding moves the last one once, then never."""
    with pytest.raises(
        ValueError, match=rf"^step must be at least .* start = {re.escape(repr(start))}.*, but is {step}"
    ):
        algorithm_2_as_printed(square, uniform(1, 4), 1.0, step=step, start=start, samples=1)


@pytest.mark.parametrize("start", [1e30, 10.0, 2.0**53 + 2, 1e-300])
def test_algorithm_2_takes_every_step_that_moves_the_radius(start, square):
    """The smallest step that is accepted lowers the radius. With r this large the first pass is the last one."""
    run = algorithm_2_as_printed(square, uniform(1, 4), 1e40, step=math.ulp(start), start=start, samples=1)
    assert run.ended
    assert (run.value, run.iterations) == (math.nextafter(start, 0), 1)


@pytest.mark.parametrize("step", [1e-20, 1e-300, 5e-324])
def test_algorithm_1_ends_however_small_its_step(step, linear):
    """It starts from r = 0 and meets its limit of iterations long before rounding could swallow a step."""
    run = algorithm_1_as_printed(linear, uniform(1, linear.weight.shape[1]), step=step, samples=2, most=50)
    assert not run.ended
    assert np.isnan(run.value)
    assert run.iterations == 50


@pytest.mark.parametrize("run", [algorithm_1_as_printed, lambda model, x: algorithm_2_as_printed(model, x, 1.0)])
def test_the_printed_algorithms_take_one_point(run):
    with pytest.raises(ValueError, match=r"x must be one point, .*\(2, 20\)"):
        run(graded_model(), uniform(2, 20))
