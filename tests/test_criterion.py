"""Distances, probabilities and quantiles against the exact laws of linear VAEs."""

from __future__ import annotations

from fractions import Fraction
from math import ceil

import numpy as np
import pytest
import torch
from conftest import ALARM, DOUBLE, SpreadingVAE, follows, most_misses, random_vae, seeded, square_model, uniform
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import stats

from vaerobust import criterion
from vaerobust.criterion import clopper_pearson, distance_quantile, probability_of_robustness
from vaerobust.distance import distances, distances_in_random_directions
from vaerobust.likelihood import log_likelihood
from vaerobust.linear import LinearGaussianVAE

SAMPLES = 4000


def shifted(model, x, shift):
    """Return perturbations, each in a direction of its own, with ||A delta||_2 = shift."""
    delta = torch.randn(x.shape, generator=seeded(5), dtype=x.dtype)
    return delta * shift / (delta @ model.weight.T).norm(dim=1, keepdim=True)


def test_distance_has_its_chi_square_law(linear):
    d = distances(linear, uniform(2, linear.weight.shape[1]), samples=SAMPLES, seed=0)
    assert d.shape == (2, SAMPLES)
    for row in d:
        assert follows((row / linear.sigma) ** 2, stats.chi2(linear.latents).cdf)


@pytest.mark.parametrize("shifts", [0.5, 3.0])
def test_perturbed_distance_has_its_noncentral_law(linear, shifts):
    x = uniform(2, linear.weight.shape[1])
    delta = shifted(linear, x, shifts * linear.sigma)
    for row in distances(linear, x, delta, samples=SAMPLES, seed=1):
        assert follows((row / linear.sigma) ** 2, stats.ncx2(linear.latents, shifts**2).cdf)


@pytest.mark.parametrize("shifts", [0.0, 2.0])
def test_definition_3_1_compares_two_random_outputs(linear, shifts):
    """The difference of two independent reconstructions has twice the variance of one."""
    x = uniform(1, linear.weight.shape[1])
    delta = shifted(linear, x, shifts * linear.sigma) if shifts else None
    d = distances(linear, x, delta, samples=SAMPLES, seed=2, reference="sample")
    law = stats.ncx2(linear.latents, shifts**2 / 2) if shifts else stats.chi2(linear.latents)
    assert follows(d**2 / (2 * linear.sigma**2), law.cdf)


def test_exact_probability_and_quantile_of_the_linear_model_agree(linear):
    for level in (0.1, 0.5, 0.9):
        assert linear.probability(linear.quantile(level)) == pytest.approx(level, rel=1e-9)  # scipy's root finding


def test_random_directions_have_the_asked_radius():
    """Where A is a rotation the direction does not matter: the law is that of the radius alone."""
    model = square_model(gain=2.0, sigma=0.1)
    radius = torch.tensor([0.0, 0.05, 0.3], dtype=torch.float64)
    d = distances_in_random_directions(model, uniform(3, 4), radius, samples=SAMPLES, seed=3)
    for row, r in zip(d, radius, strict=True):
        assert follows((row / 0.1) ** 2, lambda value, r=r: stats.ncx2.cdf(value, 4, (2 * float(r) / 0.1) ** 2))


def test_random_directions_are_uniform_on_the_sphere():
    """The square of one coordinate of a uniform direction in d dimensions is Beta(1/2, (d - 1)/2)."""
    model = LinearGaussianVAE(6, 1, sigma=1e-9)
    d = distances_in_random_directions(model, uniform(1, 6), 0.7, samples=SAMPLES, seed=4)
    assert follows((d / (0.7 * model.weight.norm())) ** 2, stats.beta(0.5, 2.5).cdf)


@pytest.mark.parametrize(("perturb_sigma", "growth"), [(False, 1.0), (True, float(np.exp(0.4)))])
def test_sigma_is_taken_where_it_was_asked_for(perturb_sigma, growth):
    """At x = 0 every perturbation of length 0.4 multiplies sigma by exp(0.4); A = 0 leaves nothing else."""
    model = square_model(gain=0.0, kind=SpreadingVAE)
    x, delta = torch.zeros(1, 4, dtype=torch.float64), torch.tensor([[0.0, 0.4, 0.0, 0.0]], dtype=torch.float64)
    options = {"samples": SAMPLES, "generator": seeded(6), "perturb_sigma": perturb_sigma}
    for d in (distances(model, x, delta, **options), distances_in_random_directions(model, x, 0.4, **options)):
        assert follows((d / (0.1 * growth)) ** 2, stats.chi2(4).cdf)


def test_perturbing_sigma_changes_nothing_where_sigma_is_constant(square):
    x, delta = uniform(3, 4), 0.1 * uniform(3, 4, seed=1)
    for reference in criterion.REFERENCES:
        fixed, moved = (
            distances(square, x, delta, samples=9, seed=0, perturb_sigma=which, reference=reference)
            for which in (False, True)
        )
        assert torch.equal(fixed, moved)


def draws(model, x, delta):
    """Every function that draws samples, by name, with the same seed at each call."""
    return {
        "distances": lambda x, d: distances(model, x, d, samples=23, seed=1),
        "unperturbed": lambda x, d: distances(model, x, samples=23, seed=1),
        "perturbed sigma": lambda x, d: distances(model, x, d, samples=23, seed=1, perturb_sigma=True),
        "two samples": lambda x, d: distances(model, x, d, samples=23, seed=1, reference="sample"),
        "random directions": lambda x, d: distances_in_random_directions(model, x, d.norm(dim=1), samples=23, seed=1),
        "log-likelihood": lambda x, d: log_likelihood(model, x, d, samples=23, seed=1)[:, None],
    }


@pytest.mark.parametrize("name", draws(None, None, None))
def test_results_depend_neither_on_order_nor_on_company_nor_on_blocks(name, vae, monkeypatch):
    x, delta = uniform(7, 12), 0.2 * uniform(7, 12, seed=1)
    draw = draws(vae, x, delta)[name]
    whole = draw(x, delta)
    order = torch.tensor([3, 0, 6, 5, 1, 4, 2])
    torch.testing.assert_close(draw(x[order], delta[order]), whole[order], rtol=DOUBLE, atol=0)
    torch.testing.assert_close(draw(x[2:3], delta[2:3]), whole[2:3], rtol=DOUBLE, atol=0)
    for rows in (1, 5, 23, 60):
        monkeypatch.setattr(criterion, "ROWS", rows)
        torch.testing.assert_close(draw(x, delta), whole, rtol=DOUBLE, atol=0)


def test_no_block_is_larger_than_it_may_be(vae, monkeypatch):
    monkeypatch.setattr(criterion, "ROWS", 10)
    sizes = []
    decode = vae.decode
    monkeypatch.setattr(vae, "decode", lambda z: sizes.append(len(z)) or decode(z))
    distances(vae, uniform(3, 12), samples=27)
    assert max(sizes) == 10
    assert sum(sizes) == 3 * 27 + 3  # and the three centres


def test_equal_seeds_give_equal_noise_whatever_the_perturbation(vae):
    x = uniform(3, 12)
    plain = distances(vae, x, samples=9, seed=1)
    assert torch.equal(distances(vae, x, torch.zeros_like(x), samples=9, seed=1), plain)
    at_rest = distances_in_random_directions(vae, x, 0.0, samples=9, seed=1)
    torch.testing.assert_close(at_rest, plain, rtol=DOUBLE, atol=0)
    assert not torch.equal(distances(vae, x, samples=9, seed=2), plain)


def test_without_a_generator_torchs_own_is_used(vae):
    x = uniform(2, 12)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        first, second = distances(vae, x, samples=5), distances(vae, x, samples=5)
        torch.manual_seed(3)
        again = distances(vae, x, samples=5)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("likelihood", ["bernoulli", "continuous_bernoulli", "gaussian"])
@pytest.mark.parametrize("perturb_sigma", [False, True])
def test_log_likelihood_is_the_mean_over_the_embedding_of_the_perturbed_input(likelihood, perturb_sigma):
    vae = random_vae(likelihood=likelihood, gain=1.5)
    x, delta = uniform(2, 12), 0.3 * uniform(2, 12, seed=1)
    eta = torch.randn(400, 3, generator=seeded(1), dtype=torch.float64)
    mu, sigma = vae.encode(x + delta)
    sigma = sigma if perturb_sigma else vae.encode(x)[1]
    for i in range(2):
        z = mu[i] + sigma[i] * eta
        direct = torch.stack([vae.log_likelihood(x[i], one) for one in z]).mean()
        found = log_likelihood(vae, x, delta, samples=400, seed=1, perturb_sigma=perturb_sigma)[i]
        torch.testing.assert_close(found, direct, rtol=DOUBLE, atol=0)


# the interval of a probability


@pytest.mark.parametrize("trials", [1, 7, 40])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
def test_clopper_pearson_errs_on_each_side_as_seldom_as_it_says(trials, confidence):
    """The chance of a miss is a finite sum, exact up to rounding, for whatever p is the truth."""
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
    """One long run cut into 2,000 independent repetitions of 60 samples."""
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


def test_probability_counts_ties_as_within_and_takes_one_radius_a_point():
    d = torch.tensor([[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0]])
    found = probability_of_robustness(d, torch.tensor([2.0, 3.5]), confidence=0.5)
    assert found.probability.tolist() == [0.5, 0.75]
    assert (found.samples, found.confidence) == (4, 0.5)
    assert probability_of_robustness(d, 0.0).probability.tolist() == [0.0, 0.0]


# the quantile and its interval


@given(st.integers(1, 400), st.sampled_from([0.01, 0.05, 0.1, 0.25, 0.3, 0.5, 0.55, 0.7, 0.9, 0.95, 0.99]))
@example(100, 0.55)  # 0.55 * 100 is a hair above 55 in floating point
def test_quantile_is_the_least_sample_that_the_level_does_not_exceed(samples, level):
    """With the ranks for samples the value is the rank itself; the reference is rational arithmetic."""
    ranks = torch.arange(1, samples + 1, dtype=torch.float64)[torch.randperm(samples, generator=seeded(0))]
    assert float(distance_quantile(ranks[None], level).value) == ceil(Fraction(str(level)) * samples)


@given(st.integers(1, 200), st.floats(0.02, 0.98), st.sampled_from([0.5, 0.9, 0.95, 0.9999]))
def test_quantile_interval_is_the_narrowest_with_its_confidence(samples, level, confidence):
    """With B samples below the quantile, rank l misses it iff B < l and rank u iff B >= u, for every continuous law."""
    ranks = torch.arange(1, samples + 1, dtype=torch.float64)
    found = distance_quantile(ranks[None], level, confidence=confidence)
    below, tail = stats.binom(samples, level), (1 - confidence) / 2 + 1e-12  # a hair for rounding
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
