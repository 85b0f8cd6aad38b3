"""The random-direction radius: against exact margins, against Algorithm 2 as printed, and where the search ends."""

from __future__ import annotations

import pytest
import torch
from conftest import DOUBLE, SpreadingVAE, most_misses, random_vae, share_error, square_model, uniform
from scipy import optimize

from vaerobust import batches, random_direction
from vaerobust.algorithms import algorithm_2_as_printed, minimum_r
from vaerobust.contract import check_model
from vaerobust.distance import distances_in_random_directions
from vaerobust.linear import LinearGaussianVAE
from vaerobust.random_direction import RandomSearch, random_direction_radius
from vaerobust.zoo.weights import pretrained

FIELDS = ("radius", "low", "high", "censored", "drawn")
"""Fields with one number per point."""


def radius_at(model, r, probability, gain):
    """Return the radius at which a model with A = gain * rotation has P(D <= r) = probability."""
    return optimize.brentq(lambda radius: model.probability(r, gain * radius) - probability, 0.0, 2 * r / gain)


def test_algorithm_2_as_printed_agrees_with_random_direction_radius(square):
    """Both lie within Hoeffding's error of the margin. The printed one loses a step, and may stop a step early."""
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


def test_random_direction_radius_is_the_margin_where_all_directions_are_alike(square):
    """At each radius of the search, fewer than 40, the share of samples within r errs by Hoeffding's error at most."""
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


def test_random_direction_interval_covers_the_exact_radius(square):
    """Over 300 seeds. Each limit errs with probability 0.1 at most if the number within r falls with the radius."""
    x, r = uniform(1, 4), square.quantile(0.9)
    exact = square.margin(r)
    search = RandomSearch(limit=0.5, samples=60, tolerance=1e-3, confidence=0.8)
    found = [random_direction_radius(square, x, r, search, seed=seed) for seed in range(300)]
    low, radius, high = (torch.cat([getattr(one, name) for one in found]) for name in ("low", "radius", "high"))
    assert ((low <= radius) & (radius <= high)).all()
    assert int((low > exact).sum()) <= most_misses(300, 0.1)
    assert int((high < exact).sum()) <= most_misses(300, 0.1)


def test_the_upper_limit_holds_however_coarse_the_search(square):
    """With brackets as wide as those of the grid, the upper limit is the outer end of its bracket."""
    r = square.quantile(0.9)
    search = RandomSearch(limit=1.0, samples=4000, grid=4, tolerance=1.0)
    found = random_direction_radius(square, uniform(1, 4), r, search)
    assert float(found.low) <= float(found.radius) <= square.margin(r) <= float(found.high)


def test_random_directions_overstate_the_margin_where_directions_differ(graded):
    """Few random directions are near the worst one, so at the margin far more than half of the samples are within r."""
    r = graded.quantile(0.9)
    found = random_direction_radius(graded, uniform(1, 20), r, RandomSearch(limit=5.0, samples=4000))
    # ||A u|| <= ||A||_F / sqrt(d) in the root of the mean square over directions, against ||A||_2 = 1 at the worst
    assert float(found.low) > 1.5 * graded.margin(r)


def test_censoring_is_reported(square):
    """At the first r the margin is about 0.47, which is beyond the search's limit of 0.1."""
    r, search = torch.tensor([1.0, 0.19]), RandomSearch(limit=0.1, samples=2000)
    found = random_direction_radius(square, uniform(2, 4), r, search)
    assert found.censored.tolist() == [True, False]
    assert found.radius[0] == 0.1
    assert found.high[0] == torch.inf
    assert found.low[0] == 0.1
    assert float(found.high[1]) < 0.1


def test_nothing_is_robust_below_the_median(square):
    """At the 0.2 quantile, half of 2,000 samples lie within r with a probability far below ALARM."""
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
        searches = (RandomSearch(limit=1.0, tolerance=1e-3, perturb_sigma=which) for which in (False, True))
        fixed, moved = (float(random_direction_radius(model, x, 0.4, search).radius) for search in searches)
        assert (moved < fixed - 1e-3) == smaller
        assert smaller or moved == fixed


def test_the_radius_depends_neither_on_order_nor_on_company_nor_on_chunks(vae, monkeypatch):
    """The search makes the same choices, unless rounding moves a distance across r, which it does not here."""
    x, search = uniform(5, 12), RandomSearch(limit=8.0, samples=150)
    r = minimum_r(vae, x, level=0.8, samples=500, seed=1).value
    whole = random_direction_radius(vae, x, r, search)
    assert 0 < float(whole.radius.min()) < float(whole.radius.max())
    order = torch.tensor([4, 2, 0, 1, 3])
    shuffled = random_direction_radius(vae, x[order], r[order], search)
    alone = random_direction_radius(vae, x[3:4], r[3:4], search)
    for name in FIELDS:
        expected = getattr(whole, name)
        torch.testing.assert_close(getattr(shuffled, name), expected[order], rtol=DOUBLE, atol=0)
        torch.testing.assert_close(getattr(alone, name), expected[3:4], rtol=DOUBLE, atol=0)
    for size in (1, 300):
        monkeypatch.setattr(random_direction, "PAIRS", size)
        chunked = random_direction_radius(vae, x, r, search)
        for name in FIELDS:
            torch.testing.assert_close(getattr(chunked, name), getattr(whole, name), rtol=DOUBLE, atol=0)


def test_directions_that_are_drawn_anew_are_the_same_ones(vae, monkeypatch):
    """Where there are too many directions to keep, they are drawn again at each radius."""
    x, search = uniform(3, 12), RandomSearch(limit=8.0, samples=150, grid=4)
    kept = random_direction_radius(vae, x, 1.0, search)
    monkeypatch.setattr(random_direction, "DIRECTIONS", 149)
    anew = random_direction_radius(vae, x, 1.0, search)
    for name in FIELDS:
        assert torch.equal(getattr(anew, name), getattr(kept, name))


def test_no_block_is_larger_than_it_may_be(vae, monkeypatch):
    monkeypatch.setattr(batches, "ROWS", 10)
    sizes = []
    decode = vae.decode
    monkeypatch.setattr(vae, "decode", lambda z: sizes.append(len(z)) or decode(z))
    x, search = uniform(3, 12), RandomSearch(limit=8.0, samples=27, grid=4)
    check_model(vae, x)  # the probe decodes a few rows too
    sizes.clear()
    found = random_direction_radius(vae, x, 1.0, search)
    assert max(sizes) == 10
    assert sum(sizes) == int(found.drawn.sum()) + 3  # and the three centres


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bisection_ends_where_no_number_lies_between_the_ends(dtype):
    """Every tolerance up to the distance between neighbouring numbers gives the same result."""
    vae, x = random_vae().to(dtype), uniform(1, 12).to(dtype)
    finest = random_direction_radius(vae, x, 1.0, RandomSearch(limit=8.0, samples=50, grid=4, tolerance=1e-30), seed=0)
    assert 0 < float(finest.radius) < 8
    apart = float(torch.nextafter(finest.radius, torch.tensor(8.0, dtype=dtype)) - finest.radius)
    for tolerance in (apart / 3, apart):
        search = RandomSearch(limit=8.0, samples=50, grid=4, tolerance=tolerance)
        assert torch.equal(random_direction_radius(vae, x, 1.0, search, seed=0).radius, finest.radius)
    coarse = RandomSearch(limit=8.0, samples=50, grid=4, tolerance=1e6 * apart)
    assert not torch.equal(random_direction_radius(vae, x, 1.0, coarse, seed=0).radius, finest.radius)


def test_draws_are_counted(square, monkeypatch):
    rows = []
    decode = square.decode
    monkeypatch.setattr(square, "decode", lambda z: rows.append(len(z)) or decode(z))
    search = RandomSearch(limit=1.0, samples=500, grid=8)
    check_model(square, uniform(1, 4))  # the probe decodes a few rows too
    rows.clear()
    found = random_direction_radius(square, uniform(1, 4), square.quantile(0.9), search)
    assert int(found.drawn) == sum(rows) - 1  # the point itself
    # less than half of what it takes to ask all samples at each of the 9 radii of the grid and in 12 halvings
    assert 500 <= int(found.drawn) < (9 + 12) * 500 / 2


def test_no_sample_that_was_not_asked_would_have_changed_the_count():
    """All samples of a trained model are asked at both ends of the last bracket. Rounding may move two of them."""
    model, x, samples, width = pretrained("mnist").vae, uniform(2, 784).float(), 1000, 1 / 128
    r = minimum_r(model, x, level=0.9, samples=1000, seed=1).value
    found = random_direction_radius(model, x, r, RandomSearch(limit=16.0, samples=samples, tolerance=width), seed=0)
    assert (found.radius > 0).all() and not found.censored.any()
    inner, outer = (
        (distances_in_random_directions(model, x, radius, samples=samples, seed=0) <= r[:, None]).sum(1)
        for radius in (found.radius, found.radius + width)
    )
    assert (inner >= samples / 2 - 2).all() and (outer < samples / 2 + 2).all()
