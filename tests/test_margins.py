"""The attack margin and the strongest attack, against the exact margin of linear VAEs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ALARM, DOUBLE, SpreadingVAE, graded_model, most_misses, square_model, uniform
from scipy import optimize, stats

from vaerobust import margins
from vaerobust.algorithms import minimum_r
from vaerobust.attacks import AttackSettings, maximum_damage
from vaerobust.criterion import probability_of_robustness as count
from vaerobust.distance import distances
from vaerobust.linear import LinearGaussianVAE
from vaerobust.linearised import linearised_radii
from vaerobust.margins import (
    ATTEMPTS,
    STRONGEST_ATTACK,
    STRONGEST_SEARCH,
    MarginSearch,
    attack_margin,
    strongest_attack,
    worst_directions,
)
from vaerobust.random_direction import RandomSearch, random_direction_radius

SURE = 1 - ALARM
"""Confidence of the tests: a confirmed margin lies below the exact one with probability ALARM at most."""
QUICK = AttackSettings(steps=3, restarts=2)
"""A quick attack, for properties that hold for every attack."""
ENOUGH = AttackSettings(steps=6, restarts=2)
"""A longer attack. Where all directions are alike, it finds the worst case."""


def shift_at(model, r, probability):
    """Return the shift at which P(D <= r) has a given value."""
    return optimize.brentq(lambda shift: model.probability(r, shift) - probability, 0.0, 2 * r)


def surely_rejected(samples, confidence, tests):
    """Return a P so small that the samples reject P > 1/2 in every one of some tests, with probability 1 - ALARM.

    The exact test rejects at most ``k`` of ``samples``; Hoeffding's error for the tests is taken off k / samples.
    """
    k = stats.binom.ppf((1 - confidence) / 2, samples, 0.5) - 1
    return k / samples - np.sqrt(np.log(tests / ALARM) / (2 * samples))


def test_attack_margin_is_just_above_the_exact_margin(square):
    """Every direction is a worst one. The excess comes from the tests, the width of the bracket and new attempts."""
    samples, tolerance = 4000, 0.02
    search = MarginSearch(judging_samples=samples, tolerance=tolerance, confidence=SURE)
    for level in (0.6, 0.9, 0.999):
        r = square.quantile(level)
        found = attack_margin(square, uniform(3, 4), r, attack=ENOUGH, search=search)
        exact = square.margin(r)
        p = surely_rejected(samples, 1 - (1 - SURE) / ATTEMPTS, 100)
        most = shift_at(square, r, p) / 2 * (1 + tolerance) ** ATTEMPTS
        assert found.confirmed.all()
        assert not found.censored.any()
        assert (found.radius >= exact).all()
        assert (found.radius <= most).all()
        assert (found.judged.high <= 0.5).all()


def test_attack_margin_finds_the_one_bad_direction():
    """With s = 0.01 and r = 1 the distance differs from the shift by s ||eta|| at most.

    So the attack falls short by twice the mean of s ||eta|| over r at most, and by the angle that 40 steps leave: they
    shrink its tangent, at most 100 but for one in a million of starts, by the product below.
    """
    model, tolerance, samples, steps = graded_model(sigma=0.01), 0.02, 2000, 40
    lengths = 0.5 * (1 - np.arange(steps + 1) / (steps + 1))
    tangent = 100 * np.prod((1 + lengths / 4) / (1 + lengths))
    short = 2 * 0.01 * np.sqrt(stats.chi2(4).isf(ALARM)) / 0.9 + 1 - 1 / np.sqrt(1 + tangent**2)
    attack = AttackSettings(steps=steps, restarts=2)
    search = MarginSearch(judging_samples=samples, tolerance=tolerance, confidence=SURE)
    found = attack_margin(model, uniform(2, 20), 1.0, attack=attack, search=search)
    p = surely_rejected(samples, 1 - (1 - SURE) / ATTEMPTS, 100)
    assert found.confirmed.all()
    assert (found.radius >= model.margin(1.0)).all()
    assert (found.radius <= shift_at(model, 1.0, p) * (1 + tolerance) ** ATTEMPTS / (1 - short)).all()
    assert short < 0.15  # a bound worth having
    # random directions are far from this one
    random = random_direction_radius(model, uniform(2, 20), 1.0, RandomSearch(limit=10.0))
    assert (random.low > 1.5 * found.radius).all()


def test_radius_is_the_length_of_a_perturbation_that_breaks_robustness(vae):
    """Other samples confirm that fewer than half are within r, up to Hoeffding's error for each point."""
    x = uniform(4, 12)
    r = minimum_r(vae, x, level=0.7, samples=2000, seed=1).value
    for box in (False, True):
        attack, search = AttackSettings(box=box, restarts=2), MarginSearch(judging_samples=2000, confidence=SURE)
        found = attack_margin(vae, x, r, attack=attack, search=search)
        broken = torch.as_tensor(found.confirmed)
        assert broken.any()
        torch.testing.assert_close(found.delta.norm(dim=1)[broken], found.radius[broken], rtol=DOUBLE, atol=0)
        within = (distances(vae, x, found.delta, samples=2000, seed=7) <= r[:, None]).double().mean(1)
        assert (within[broken] < 0.5 + np.sqrt(np.log(4 / ALARM) / 4000)).all()
        assert (found.radius <= found.limit).all()
        if box:
            assert ((x + found.delta >= 0) & (x + found.delta <= 1)).all()


def test_a_margin_is_confirmed_wrongly_as_seldom_as_it_says(square, monkeypatch):
    """The limit is the exact margin, and no perturbation within it breaks robustness. So every confirmation is wrong.

    The search is always fooled. All its samples have the seed after the call's own, and they are replaced by samples
    that say that any perturbation breaks robustness. The last tests have new samples; together they err with
    probability (1 - 0.6) / 2 at most.
    """
    r, x = square.quantile(0.501), uniform(1, 4)

    def fooled(model, x, delta, *, seed, **options):
        d = distances(model, x, delta, seed=seed, **options)
        return d if seed % 10 > 1 else torch.where(delta.any(1), torch.inf, 0.0)[:, None].expand_as(d)

    monkeypatch.setattr(margins, "distances", fooled)
    monkeypatch.setattr(margins, "probability_of_robustness", lambda d, r, **o: count(d.nan_to_num(posinf=1e9), r, **o))
    attack = AttackSettings(steps=1, restarts=1, samples=1)
    search = MarginSearch(limit=square.margin(r), judging_samples=50, tolerance=0.9, confidence=0.6)
    found = [attack_margin(square, x, r, attack=attack, search=search, seed=10 * seed) for seed in range(400)]
    assert not any(one.censored for one in found)
    assert all(one.radius <= square.margin(r) for one in found)
    wrong = sum(bool(one.confirmed) for one in found)
    assert 0 < wrong <= most_misses(400, 0.2)


def test_no_margin_is_both_confirmed_and_censored(square):
    """At the exact margin chance decides, so all cases occur. The last test may succeed where the search failed."""
    r, x = square.quantile(0.9), uniform(1, 4)
    attack = AttackSettings(steps=3, restarts=1, samples=1)
    search = MarginSearch(limit=square.margin(r), judging_samples=50, tolerance=0.9, confidence=0.6)
    found = [attack_margin(square, x, r, attack=attack, search=search, seed=10 * seed) for seed in range(200)]
    cases = {(bool(one.confirmed), bool(one.censored)) for one in found}
    assert cases == {(True, False), (False, False), (False, True)}


def test_nothing_is_robust_below_the_median(square):
    """At the 0.2 quantile far fewer than half of 2,000 samples lie within r, which the test confirms."""
    r = torch.tensor([0.0, square.quantile(0.2), square.quantile(0.9)], dtype=torch.float64)
    found = attack_margin(square, uniform(3, 4), r, attack=QUICK, search=MarginSearch(judging_samples=2000))
    assert found.radius[:2].tolist() == [0.0, 0.0]
    assert torch.equal(found.delta[:2], torch.zeros(2, 4, dtype=torch.float64))
    assert found.radius[2] > 0
    assert found.confirmed.tolist() == [True, True, True]
    assert not found.censored.any()


def test_censoring_is_reported(square):
    """Below the exact margin no perturbation breaks robustness, and 2,000 samples do not reject it by chance."""
    r = square.quantile(0.99)
    search = MarginSearch(limit=0.5 * square.margin(r), judging_samples=2000)
    found = attack_margin(square, uniform(2, 4), r, attack=QUICK, search=search)
    assert found.censored.all()
    assert found.radius.tolist() == [found.limit] * 2
    assert found.limit == 0.5 * square.margin(r)
    assert not found.confirmed.any()


def test_a_guess_changes_how_long_the_search_takes_and_not_what_it_finds(square, monkeypatch):
    """From every guess the search ends in a bracket, one tolerance wide, about the same margin.

    Each attempt of the last tests adds one tolerance. Strides double in the logarithm of the radius, until the margin
    is passed; the smallest radius is 1e-4 of the largest.
    """
    r, x, tolerance = torch.full((3,), square.quantile(0.9), dtype=torch.float64), uniform(3, 4), 0.02
    attacked = []

    def watched(model, x, radius, settings, **options):
        attacked.extend(radius.tolist())
        return maximum_damage(model, x, radius, settings, **options)

    monkeypatch.setattr(margins, "maximum_damage", watched)
    search = MarginSearch(judging_samples=4000, tolerance=tolerance, confidence=SURE)
    plain, exact = attack_margin(square, x, r, attack=ENOUGH, search=search), square.margin(float(r[0]))
    usual = len(attacked)
    counts = {}
    for guess in (0.0, 1e-3, 0.9 * exact, 1.05 * exact, 3 * exact, 1e6, torch.tensor([0.0, exact, 20.0]).double()):
        attacked.clear()
        found = attack_margin(square, x, r, attack=ENOUGH, search=search, guess=guess)
        counts[str(guess)] = len(attacked)
        assert found.confirmed.all() and not found.censored.any()
        assert (found.radius >= exact).all()
        assert ((found.radius / plain.radius).log().abs() <= ATTEMPTS * np.log1p(tolerance)).all()
        assert 1e-4 * found.limit <= min(attacked) and max(attacked) <= found.limit
    assert counts[str(1.05 * exact)] < 0.75 * usual
    assert max(counts.values()) < 2 * usual


def test_a_guess_below_a_margin_that_is_beyond_the_limit_ends_at_the_limit(square):
    r = square.quantile(0.99)
    limit = 0.5 * square.margin(r)
    search = MarginSearch(limit=limit, judging_samples=2000)
    for guess in (0.0, 0.3 * limit, limit, 2 * limit):
        found = attack_margin(square, uniform(2, 4), r, attack=QUICK, search=search, guess=guess)
        assert found.censored.all() and not found.confirmed.any()
        assert found.radius.tolist() == [limit] * 2
        assert (found.delta.norm(dim=1) > 0.99 * limit).all()  # that which failed


def test_bounds_estimates_and_margins_lie_in_their_order(square, graded):
    """Theorem 1 <= exact margin <= attack margin <= random-direction radius; the last up to sampling error."""
    for model in (square, graded):
        r, x = model.quantile(0.9), uniform(1, model.weight.shape[1])
        attack, search = AttackSettings(samples=64, restarts=2), MarginSearch(judging_samples=2000, confidence=SURE)
        broken = float(attack_margin(model, x, r, attack=attack, search=search).radius)
        assert 0 < model.theorem_1(r) < model.margin(r) <= broken
    assert broken < float(random_direction_radius(graded, x, r, RandomSearch(limit=5.0)).radius)


def test_perturbing_sigma_matters_where_sigma_depends_on_the_input():
    """At x = 0 the perturbed sigma is 0.1 exp(R), and the exact margin is the R with P(D <= r) = 1/2 for that sigma."""
    x, r, tolerance, samples = torch.zeros(1, 4, dtype=torch.float64), 0.4, 0.02, 4000
    model = square_model(gain=0.5, kind=SpreadingVAE)

    def probability(radius):
        s = 0.1 * np.exp(radius)
        return stats.ncx2.cdf((r / s) ** 2, 4, (0.5 * radius / s) ** 2)

    p = surely_rejected(samples, 1 - (1 - SURE) / ATTEMPTS, 100)
    exact, most = (optimize.brentq(lambda radius, p=p: probability(radius) - p, 0, 5) for p in (0.5, p))
    search = MarginSearch(judging_samples=samples, tolerance=tolerance, confidence=SURE)
    moved = float(attack_margin(model, x, r, attack=replace(ENOUGH, perturb_sigma=True), search=search).radius)
    assert exact <= moved <= most * (1 + tolerance) ** ATTEMPTS
    fixed = float(attack_margin(model, x, r, attack=ENOUGH, search=search).radius)
    assert fixed >= shift_at(model, r, 0.5) / 0.5 > most * (1 + tolerance) ** ATTEMPTS


def test_the_margin_depends_neither_on_order_nor_on_company(vae):
    """Three steps enlarge roundings as in the test of the attacks. They move none of the 100 samples across r."""
    x = uniform(4, 12)
    r = minimum_r(vae, x, level=0.7, samples=500, seed=1).value
    attack = AttackSettings(steps=3, samples=4, restarts=2)
    options = {"attack": attack, "search": MarginSearch(judging_samples=100, tolerance=0.2)}
    whole = attack_margin(vae, x, r, **options)
    for points in (torch.tensor([2, 0, 3, 1]), torch.tensor([3])):
        found = attack_margin(vae, x[points], r[points], **options)
        torch.testing.assert_close(found.radius, whole.radius[points], rtol=1e-9, atol=0)
        torch.testing.assert_close(found.delta, whole.delta[points], rtol=1e-9, atol=1e-10)
        assert np.array_equal(found.confirmed, whole.confirmed[points.numpy()])
        assert np.array_equal(found.judged.probability, whole.judged.probability[points.numpy()])
        assert torch.equal(found.censored, whole.censored[points])


def test_a_finer_tolerance_brings_the_margin_closer(square):
    """The bracket's ends differ by a factor of 1 + tolerance at most, and so do the radii of two attempts."""
    r, x = square.quantile(0.9), uniform(1, 4)
    searches = (MarginSearch(tolerance=tolerance) for tolerance in (0.5, 0.01))
    coarse, fine = (float(attack_margin(square, x, r, attack=ENOUGH, search=search).radius) for search in searches)
    assert fine <= coarse <= fine * 1.5**ATTEMPTS


def test_the_last_samples_are_not_the_attacks(square):
    """Equal seeds give equal margins. The perturbation is as long as that of the attack alone at this radius."""
    r, x = square.quantile(0.9), uniform(1, 4)
    first, again, other = (attack_margin(square, x, r, attack=QUICK, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first.delta, again.delta)
    assert not torch.equal(first.delta, other.delta)
    direct = maximum_damage(square, x, float(first.radius), QUICK, seed=3).delta
    assert float(direct.norm()) == pytest.approx(float(first.radius), rel=1e-6)


def test_a_sampled_reference_is_a_model_with_twice_the_variance(square):
    """Two independent outputs differ by a Gaussian of variance 2 s^2 about the shift."""
    doubled = square_model(sigma=square.sigma * 2**0.5)
    r = doubled.quantile(0.9)
    search = MarginSearch(reference="sample", judging_samples=4000, confidence=SURE)
    found = attack_margin(square, uniform(3, 4), r, attack=ENOUGH, search=search)
    p = surely_rejected(4000, 1 - (1 - SURE) / ATTEMPTS, 100)
    assert found.confirmed.all()
    assert (found.radius >= doubled.margin(r)).all()
    assert (found.radius <= shift_at(doubled, r, p) / 2 * 1.05**ATTEMPTS).all()


def test_either_optimiser_finds_the_margin_of_a_linear_model(graded):
    r, x = graded.quantile(0.9), uniform(2, 20)
    for method in ("projected_gradient", "lbfgs"):
        attack, search = AttackSettings(method=method, restarts=2), MarginSearch(judging_samples=4000, confidence=SURE)
        found = attack_margin(graded, x, r, attack=attack, search=search)
        assert found.confirmed.all()
        assert (found.radius >= graded.margin(r)).all()
        assert (found.radius <= 1.5 * graded.margin(r)).all()  # one direction in twenty is the worst, and both find it


@pytest.mark.parametrize(("dtype", "least"), [(torch.float32, "5e-07"), (torch.float64, "9e-16")])
def test_a_tolerance_below_the_resolution_is_named(dtype, least, vae):
    """The ends of the bracket are numbers of this precision, so their ratio cannot come arbitrarily close to 1."""
    vae, x = vae.to(dtype), uniform(1, 12).to(dtype)
    for tolerance in (1e-30, torch.finfo(dtype).eps):
        message = rf"^search\.tolerance must be at least {least} for {dtype}, but is {tolerance}$"
        with pytest.raises(ValueError, match=message):
            attack_margin(vae, x, 1.0, search=MarginSearch(tolerance=tolerance))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_search_ends_at_the_finest_tolerance(dtype):
    """The search halves the logarithm of the bracket about fifty times."""
    model, x = square_model(), uniform(1, 4).to(dtype)
    search = MarginSearch(tolerance=4 * torch.finfo(dtype).eps, judging_samples=50)
    found = attack_margin(model, x, model.quantile(0.9), attack=QUICK, search=search)
    assert 0 < float(found.radius) < found.limit


# the strongest attack


def test_the_strongest_attack_is_above_the_exact_margin_and_close(graded):
    """Each of its tests is wrong with probability 1e-6. One of 20 directions is bad, and the starts are along it.

    Where P is below p, 4,000 samples reject 1/2 in each of 100 tests, except with probability ALARM. The bracket and
    three more attempts are 3% each, and 10 steps from starts along the worst direction lose 3% more.
    """
    r, x = torch.full((3,), graded.quantile(0.9), dtype=torch.float64), uniform(3, 20)
    exact = graded.margin(float(r[0]))
    p = stats.binom.ppf(ALARM / 8, 4000, 0.5) / 4000 - np.sqrt(np.log(100 / ALARM) / 8000)
    most = shift_at(graded, float(r[0]), p)
    search = replace(STRONGEST_SEARCH, confidence=SURE, judging_samples=4000, final_samples=4000)
    for linearised in (None, linearised_radii(graded, x, r, seed=0)):
        found = strongest_attack(graded, x, r, linearised=linearised, search=search)
        assert found.confirmed.all() and not found.censored.any()
        assert (found.radius >= exact).all()
        assert (found.radius <= most * 1.03**5).all()


def test_confirmed_attacks_are_above_the_exact_margin_as_often_as_they_say():
    """In independent runs, a confirmed radius lies below the exact margin with probability alpha / 2 at most."""
    model, alpha, runs = LinearGaussianVAE(6, 3, seed=3), 0.4, 60
    r, x = torch.tensor([model.quantile(0.8)], dtype=torch.float64), uniform(1, 6)
    attack = replace(STRONGEST_ATTACK, steps=2, samples=4)
    search = replace(STRONGEST_SEARCH, judging_samples=100, final_samples=100, confidence=1 - alpha)
    found = [strongest_attack(model, x, r, attack=attack, search=search, seed=10 * run) for run in range(runs)]
    wrong = sum(bool(one.confirmed) and float(one.radius) < model.margin(float(r)) for one in found)
    assert wrong <= most_misses(runs, alpha / 2)
    assert sum(bool(one.confirmed) for one in found) > runs / 2


def test_the_worst_directions_of_a_linear_model_are_its_top_singular_vector(graded):
    """Sigma is constant, so whitening changes no direction. The first two differ from it by the error of a mean."""
    x = uniform(2, 20)
    found = worst_directions(graded, x, linearised_radii(graded, x, graded.quantile(0.9), samples=4000))
    assert found.shape == (3, 2, 20)
    top = torch.linalg.svd(graded.weight).Vh[0]
    assert torch.equal(found[1], -found[0])
    assert ((found[:2] @ top).abs() > 0.95).all()
    torch.testing.assert_close((found[2] @ top).abs(), torch.ones(2, dtype=torch.float64), rtol=DOUBLE, atol=0)


# rounding, and what is no upper bound


def test_an_attack_margin_is_never_shorter_than_the_perturbation_that_is_applied():
    """In single precision, where the norm and x + delta are rounded. Both are checked in double precision."""
    model = LinearGaussianVAE(784, 3)
    x = uniform(12, 784).float()
    found = strongest_attack(model, x, model.quantile(0.9), attack=replace(STRONGEST_ATTACK, steps=2))
    assert found.confirmed.all() and found.radius.dtype == torch.float32
    delta, applied = found.delta.double(), (x + found.delta).double() - x.double()
    assert (delta.norm(dim=1) <= found.radius.double()).all()
    assert (applied.norm(dim=1) <= found.radius.double()).all()
    assert (found.radius.double() <= torch.maximum(delta.norm(dim=1), applied.norm(dim=1)) * (1 + 3e-7)).all()


class Near(LinearGaussianVAE):
    """Any perturbation moves the reconstruction by 1 plus one epsilon of its type, and noise does not move it."""

    def __init__(self):
        super().__init__(4, 1)

    def encode(self, x):
        mu = x[:, :1]
        return mu, torch.full_like(mu, 1e-30)

    def decode(self, z):
        moved = (1 + torch.finfo(z.dtype).eps) * torch.tanh(1e6 * z)
        return torch.nn.functional.pad(moved, (0, 3))


def test_a_distance_that_exceeds_r_by_rounding_alone_confirms_no_attack():
    x = torch.zeros(1, 4)
    found = attack_margin(Near(), x, 1.0, attack=QUICK)
    assert not found.confirmed.any()
    assert torch.isinf(found.upper_bound).all() and torch.isfinite(found.radius).all()
    found = attack_margin(Near(), x, 0.9, attack=QUICK)
    assert found.confirmed.all() and torch.equal(found.upper_bound, found.radius)
