"""Algorithms 1 and 2: as printed against the exact law of what they return, and against what they estimate."""

from __future__ import annotations

from math import ceil, log, sqrt

import numpy as np
import pytest
import torch
from conftest import ALARM, DOUBLE, SpreadingVAE, graded_model, most_misses, seeded, square_model, uniform
from scipy import optimize, stats

from vaerobust import algorithms
from vaerobust.algorithms import algorithm_1_as_printed, algorithm_2_as_printed, minimum_r
from vaerobust.distance import distances_in_random_directions
from vaerobust.linear import LinearGaussianVAE
from vaerobust.random_direction import RandomSearch, random_direction_radius
from vaerobust.zoo.weights import pretrained

RUNS = 600


def law_of_the_first_success(chances):
    """Return P(the loop ends at or before pass k), each pass a new trial with its own chance."""
    return 1 - np.cumprod(1 - np.asarray(chances))


def largest_gap(found, law):
    """Return the largest distance between the share of runs that ended by pass k and its exact probability."""
    share = np.searchsorted(np.sort(found), np.arange(1, len(law) + 1), side="right") / len(found)
    return np.abs(share - law).max()


# Dvoretzky, Kiefer, Wolfowitz: a share of RUNS runs is further than this from its probability, anywhere, with
# probability ALARM at most
GAP = sqrt(log(2 / ALARM) / (2 * RUNS))


def share_error(samples, tests):
    """Return how far the shares of samples in any of some tests may be from their probabilities (Hoeffding)."""
    return sqrt(log(2 * tests / ALARM) / (2 * samples))


def radius_at(model, r, probability, gain):
    """Return the radius at which a model with A = gain * rotation has P(D <= r) = probability."""
    return optimize.brentq(lambda radius: model.probability(r, gain * radius) - probability, 0.0, 2 * r / gain)


# Algorithm 1


def test_algorithm_1_as_printed_ends_when_chance_says(linear):
    """Pass k compares new samples with r = k * step, so it ends with a binomial probability known exactly."""
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
    """Both lie within the sampling error of the exact median, the printed one up to a step above it."""
    x = uniform(1, linear.weight.shape[1])
    samples, step = 20_000, 0.01 * linear.quantile(0.5)
    printed = algorithm_1_as_printed(linear, x, step=step, samples=samples, seed=1)
    error = share_error(samples, 300)  # it tests far fewer radii than 300
    assert linear.quantile(0.5 - error) <= printed.value <= linear.quantile(0.5 + error) + step
    direct = minimum_r(linear, x, samples=samples, seed=2, confidence=1 - ALARM)
    assert float(direct.low) <= linear.quantile(0.5) <= float(direct.high)
    assert float(direct.low) - linear.quantile(0.5) >= linear.quantile(0.5 - error) - linear.quantile(0.5 + error)
    assert (
        abs(printed.value - float(direct.value)) <= linear.quantile(0.5 + error) - linear.quantile(0.5 - error) + step
    )


def test_algorithm_1_says_when_it_did_not_end(linear):
    x = uniform(1, linear.weight.shape[1])
    run = algorithm_1_as_printed(linear, x, step=1e-6 * linear.sigma, samples=10, most=7, seed=0)
    assert not run.ended
    assert np.isnan(run.value)
    assert (run.iterations, run.samples) == (7, 70)


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_minimum_r_is_the_exact_quantile_at_every_point(linear, level):
    """The law does not depend on x; at 1 - ALARM the interval may miss once in a million."""
    found = minimum_r(
        linear, uniform(4, linear.weight.shape[1]), level=level, samples=5000, seed=3, confidence=1 - ALARM
    )
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
    chances = stats.binom.sf(
        (samples - 1) // 2, samples, stats.ncx2.cdf((r / spread) ** 2, 4, (0.5 * tried / spread) ** 2)
    )
    return tried, law_of_the_first_success(chances)


@pytest.mark.parametrize("kind", [LinearGaussianVAE, SpreadingVAE], ids=["constant sigma", "sigma grows with radius"])
def test_algorithm_2_as_printed_ends_when_chance_says(kind):
    """It perturbs sigma, and returns one step less than the radius that it accepted."""
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
    """Below the median of D(x) half of the samples are never within r; it ends at the first radius below 0."""
    run = algorithm_2_as_printed(
        square, uniform(1, 4), 0.5 * square.quantile(0.01), step=0.25, start=1.0, samples=200, seed=0
    )
    assert not run.ended
    assert np.isnan(run.value)
    assert (run.iterations, run.samples) == (5, 1000)  # at 1, 3/4, 1/2, 1/4 and 0
    square.decoder = torch.zeros_like(square.decoder)
    assert not algorithm_2_as_printed(
        square, uniform(1, 4), 0.0, step=0.25, start=1.0, samples=5
    ).ended  # it asks d < r
    assert algorithm_1_as_printed(square, uniform(1, 4), step=0.25, samples=5).iterations == 1


def test_random_direction_radius_is_the_margin_where_all_directions_are_alike(square):
    """Its share of samples is within the Hoeffding error at each of the fewer than 40 radii that it looks at."""
    samples, tolerance, x = 4000, 1e-4, uniform(3, 4)
    error = share_error(samples, 40)
    for level in (0.7, 0.9, 0.999):
        r = square.quantile(level)
        found = random_direction_radius(square, x, r, RandomSearch(limit=1.0, samples=samples, tolerance=tolerance))
        low, high = radius_at(square, r, 0.5 + error, 2.0), radius_at(square, r, 0.5 - error, 2.0)
        assert low - tolerance <= float(found.radius.min()) <= float(found.radius.max()) <= high
        assert radius_at(square, r, 0.5, 2.0) == pytest.approx(square.margin(r), rel=1e-9)  # two root findings
        assert not found.censored.any()
        assert (found.limit, found.samples, found.confidence) == (1.0, samples, 0.95)


def test_algorithm_2_as_printed_agrees_with_random_direction_radius(square):
    """Both lie within the Hoeffding error of the margin; the printed one loses a step, and stops up to one early."""
    samples, step, x, r = 4000, 0.002, uniform(1, 4), square.quantile(0.9)
    printed = algorithm_2_as_printed(square, x, r, step=step, start=0.3, samples=samples, seed=5)
    direct = random_direction_radius(
        square, x, r, RandomSearch(limit=0.3, samples=samples, tolerance=1e-4, perturb_sigma=True)
    )
    error = share_error(samples, 200)  # of fewer than 200 radii in all
    low, high = radius_at(square, r, 0.5 + error, 2.0), radius_at(square, r, 0.5 - error, 2.0)
    assert low - 2 * step <= printed.value <= high - step
    assert low - 1e-4 <= float(direct.radius) <= high
    assert abs(printed.value + step - float(direct.radius)) <= high - low + step + 1e-4


def test_random_direction_interval_covers_the_exact_radius(square):
    """300 seeds; each limit errs with probability 0.1 at most, as far as the count of samples falls with the radius."""
    x, r = uniform(1, 4), square.quantile(0.9)
    exact = square.margin(r)
    found = [
        random_direction_radius(
            square, x, r, RandomSearch(limit=0.5, samples=60, tolerance=1e-3, confidence=0.8), seed=seed
        )
        for seed in range(300)
    ]
    low, radius, high = (torch.cat([getattr(one, name) for one in found]) for name in ("low", "radius", "high"))
    assert ((low <= radius) & (radius <= high)).all()
    assert int((low > exact).sum()) <= most_misses(300, 0.1)
    assert int((high < exact).sum()) <= most_misses(300, 0.1)


def test_the_upper_limit_holds_however_coarse_the_search(square):
    """With brackets as wide as the grid's the limit is the upper end of the last bracket."""
    r = square.quantile(0.9)
    found = random_direction_radius(
        square, uniform(1, 4), r, RandomSearch(limit=1.0, samples=4000, grid=4, tolerance=1.0)
    )
    assert float(found.low) <= float(found.radius) <= square.margin(r) <= float(found.high)


def test_random_directions_overstate_the_margin_where_directions_differ(graded):
    """A random direction is hardly ever the worst: the share within r at the margin is above 1/2 by much."""
    r = graded.quantile(0.9)
    found = random_direction_radius(graded, uniform(1, 20), r, RandomSearch(limit=5.0, samples=4000))
    # ||A u|| <= ||A||_F / sqrt(d) in the root of the mean square over directions, against ||A||_2 = 1 at the worst
    assert float(found.low) > 1.5 * graded.margin(r)


def test_censoring_is_reported(square):
    """The margin at this r is about 0.47, so a search up to 0.1 cannot see it."""
    found = random_direction_radius(
        square, uniform(2, 4), torch.tensor([1.0, 0.19]), RandomSearch(limit=0.1, samples=2000)
    )
    assert found.censored.tolist() == [True, False]
    assert found.radius[0] == 0.1
    assert found.high[0] == torch.inf
    assert found.low[0] == 0.1
    assert float(found.high[1]) < 0.1


def test_nothing_is_robust_below_the_median(square):
    """At the 0.2 quantile 2,000 samples put half within r with a probability far below ALARM."""
    r = torch.tensor([0.0, square.quantile(0.2), square.quantile(0.4)], dtype=torch.float64)
    found = random_direction_radius(square, uniform(3, 4), r, RandomSearch(limit=1.0, samples=2000))
    for one in (found.radius, found.low, found.high):
        assert one.tolist() == [0.0, 0.0, 0.0]
    assert not found.censored.any()


def test_a_finer_tolerance_refines_the_radius(square):
    r, x = square.quantile(0.9), uniform(1, 4)
    coarse = random_direction_radius(square, x, r, RandomSearch(limit=1.0, tolerance=1.0, grid=8)).radius
    for tolerance in (0.1, 1e-2, 1e-6):
        fine = random_direction_radius(square, x, r, RandomSearch(limit=1.0, tolerance=tolerance, grid=8)).radius
        assert 0 <= float(fine - coarse) <= 1 / 8  # within the grid's bracket


def test_perturbing_sigma_matters_where_sigma_depends_on_the_input():
    """Sigma grows with the radius, so the radius at which half of the samples leave is smaller."""
    x = torch.zeros(1, 4, dtype=torch.float64)
    for kind, smaller in ((LinearGaussianVAE, False), (SpreadingVAE, True)):
        model = square_model(kind=kind)
        fixed, moved = (
            float(
                random_direction_radius(
                    model, x, 0.4, RandomSearch(limit=1.0, tolerance=1e-3, perturb_sigma=which)
                ).radius
            )
            for which in (False, True)
        )
        assert (moved < fixed - 1e-3) == smaller
        assert smaller or moved == fixed


def test_the_radius_depends_neither_on_order_nor_on_company_nor_on_chunks(vae, monkeypatch):
    """Bisection makes the same choices; only a share of exactly one half could turn over by a rounding."""
    x = uniform(5, 12)
    r = minimum_r(vae, x, level=0.8, samples=500, seed=1).value
    whole = random_direction_radius(vae, x, r, RandomSearch(limit=8.0, samples=150))
    assert 0 < float(whole.radius.min()) < float(whole.radius.max())
    order = torch.tensor([4, 2, 0, 1, 3])
    shuffled = random_direction_radius(vae, x[order], r[order], RandomSearch(limit=8.0, samples=150))
    alone = random_direction_radius(vae, x[3:4], r[3:4], RandomSearch(limit=8.0, samples=150))
    for name in ("radius", "low", "high", "censored", "drawn"):
        expected = getattr(whole, name)
        torch.testing.assert_close(getattr(shuffled, name), expected[order], rtol=DOUBLE, atol=0)
        torch.testing.assert_close(getattr(alone, name), expected[3:4], rtol=DOUBLE, atol=0)
    for size in (1, 300):
        monkeypatch.setattr(algorithms, "HELD", size)
        chunked = random_direction_radius(vae, x, r, RandomSearch(limit=8.0, samples=150))
        for name in ("radius", "low", "high", "censored", "drawn"):
            torch.testing.assert_close(getattr(chunked, name), getattr(whole, name), rtol=DOUBLE, atol=0)


def test_draws_are_counted(square, monkeypatch):
    rows = []
    decode = square.decode
    monkeypatch.setattr(square, "decode", lambda z: rows.append(len(z)) or decode(z))
    found = random_direction_radius(
        square, uniform(1, 4), square.quantile(0.9), RandomSearch(limit=1.0, samples=500, grid=8)
    )
    assert int(found.drawn) == sum(rows) - 1  # the point itself
    # less than half of what it takes to ask all samples at each of the 9 radii of the grid and in 12 halvings
    assert 500 <= int(found.drawn) < (9 + 12) * 500 / 2


def test_no_sample_that_was_not_asked_would_have_changed_the_count():
    """Ask every sample of a trained model at both ends of the last bracket; up to two may turn over by a rounding."""
    model, x, samples, width = pretrained("mnist").vae, uniform(2, 784).float(), 1000, 1 / 128
    r = minimum_r(model, x, level=0.9, samples=1000, seed=1).value
    found = random_direction_radius(model, x, r, RandomSearch(limit=16.0, samples=samples, tolerance=width))
    assert (found.radius > 0).all() and not found.censored.any()
    inner, outer = (
        (distances_in_random_directions(model, x, radius, samples=samples, seed=0) <= r[:, None]).sum(1)
        for radius in (found.radius, found.radius + width)
    )
    assert (inner >= samples / 2 - 2).all() and (outer < samples / 2 + 2).all()


@pytest.mark.parametrize("run", [algorithm_1_as_printed, lambda model, x: algorithm_2_as_printed(model, x, 1.0)])
def test_the_printed_algorithms_take_one_point(run):
    with pytest.raises(ValueError, match=r"x must be one point, .*\(2, 20\)"):
        run(graded_model(), uniform(2, 20))
