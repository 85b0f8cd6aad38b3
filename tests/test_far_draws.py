"""Wider draws of the noise: the bound against integrals, sets whose probability after a shift is known, and counts."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from conftest import ALARM, DOUBLE, random_vae, seeded, square_model, uniform
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats

from vaerobust.certify import far_draws
from vaerobust.certify.certificates import LARGEST, certify, certify_with_far_draws
from vaerobust.certify.failures import failures
from vaerobust.certify.far_draws import FarFailures, allowed_radius, far_failures, spread_out
from vaerobust.distance import distances


def radius(share, covariance, metric):
    """Return one allowed radius as a number; covariance and metric are matrices, or lists of their diagonals."""
    matrices = [torch.as_tensor(one, dtype=torch.float64) for one in (covariance, metric)]
    matrices = [torch.diag(one) if one.ndim == 1 else one for one in matrices]
    return float(allowed_radius(torch.tensor([share], dtype=torch.float64), *(one[None] for one in matrices)))


def shifts(found, most=30.0):
    """Return shifts up to the allowed one; none where it is 0, which claims nothing."""
    return np.linspace(1e-6, min(found, most), 40) if found else []


# the bound


def log_moment(order, variance, shift):
    """Return log of the integral of h^a dQ of lem-far in one dimension, by numerical integration."""

    def integrand(z):
        return math.exp(order * log_density(z - shift) + (1 - order) * (log_density(z / scale) - math.log(scale)))

    def log_density(z):
        return -z * z / 2 - math.log(2 * math.pi) / 2

    scale = variance**0.5
    return math.log(integrate.quad(integrand, -20, 40, points=[0, shift], limit=200, epsrel=1e-11)[0])


@pytest.mark.parametrize(("variance", "share"), [(1.5, 1e-4), (4.0, 1e-3), (9.0, 1e-6)])
def test_the_bound_is_hoelders_inequality(variance, share):
    """In one dimension. The logarithm is quadratic in the shift: values at 0 and 1 determine it, and 2 checks it."""
    best, w = 0.0, 0.7
    for order in far_draws.ORDERS:
        still, one, two = (log_moment(order, variance, shift) / order for shift in (0.0, 1.0, 2.0))
        assert two - still == pytest.approx(4 * (one - still), rel=1e-6)
        for level in far_draws.LEVELS:
            room = math.log(level) - (1 - 1 / order) * math.log(share) - still
            if room >= 0:
                shift = math.sqrt(room / (one - still))
                best = max(best, (shift + stats.norm.isf(level)) / math.sqrt(w))
    assert radius(share, [variance], [w]) == pytest.approx(best, rel=1e-6)


def test_without_a_spread_it_is_nearly_the_half_space_lemma():
    """Order 1.05 and a bound near the share itself: the half-space lemma goes on from almost no shift at all."""
    for share in (1e-4, 0.01, 0.1):
        exact = stats.norm.isf(share)
        assert 0.9 * exact < radius(share, [1.0, 1.0], [1.0, 0.5]) <= exact * (1 + DOUBLE)


DIMENSIONS = st.sampled_from([2, 5, 20])
SCALES = st.floats(1.0, 6.0)


@given(st.integers(1, 6), st.integers(0, 999), st.floats(0.5, 6.0))
def test_no_half_space_is_more_likely_than_half_within_the_allowed_radius(latents, seed, edge):
    """Slanted ones, a . z > edge, for any C and W: the worst shift for this set is R sqrt(a' W a) along a."""
    generator = seeded(seed)
    root = torch.randn(2, latents, latents, generator=generator, dtype=torch.float64)
    covariance = torch.eye(latents).double() + root[0] @ root[0].mT
    metric = root[1] @ root[1].mT
    for a in torch.nn.functional.normalize(torch.randn(20, latents, generator=generator, dtype=torch.float64)):
        share = stats.norm.sf(edge / float(a @ covariance @ a) ** 0.5)
        assert radius(share, covariance, metric) * float(a @ metric @ a) ** 0.5 <= edge * (1 + DOUBLE)


@given(DIMENSIONS, SCALES, st.floats(1.0, 12.0), st.floats(0.0, 3.0))
def test_no_shell_is_more_likely_than_half_within_the_allowed_radius(latents, scale, start, width):
    """Thin shells, and the outside of a ball where the width is large."""
    end = start + width if width < 2.5 else math.inf

    def between(variance, shift):
        shifted = [stats.ncx2.cdf(one**2 / variance, latents, shift**2 / variance) for one in (start, end)]
        return shifted[1] - shifted[0]

    found = radius(between(scale, 1e-9), [scale] * latents, [1.0] * latents)
    for shift in shifts(found):
        assert between(1.0, shift) <= 0.5 + 1e-9


@given(DIMENSIONS, SCALES, st.floats(1.0, 12.0), st.floats(0.1, 6.0))
def test_no_far_ball_is_more_likely_than_half_within_the_allowed_radius(latents, scale, distance, size):
    """The ball lies in the direction of the shift, which goes through it."""
    share = stats.ncx2.cdf(size**2 / scale, latents, distance**2 / scale)
    found = radius(share, [scale] * latents, [1.0] * latents)
    for shift in shifts(found):
        inside = stats.ncx2.cdf(size**2, latents, max((distance - shift) ** 2, 1e-12))
        assert inside <= 0.5 + 1e-9


@given(DIMENSIONS, SCALES, st.floats(0.1, 4.0))
def test_no_cone_is_more_likely_than_half_within_the_allowed_radius(latents, scale, slope):
    """s > slope times the length of the other coordinates: a noncentral t distribution. C does not change its share."""
    degrees = latents - 1

    def within(shift):
        return stats.nct.sf(slope * degrees**0.5, degrees, shift)

    found = radius(float(stats.t.sf(slope * degrees**0.5, degrees)), [scale] * latents, [1.0] * latents)
    for shift in shifts(found, 12.0):
        assert within(shift) <= 0.5 + 1e-6


def test_wider_draws_certify_more_where_few_directions_matter_and_nothing_fails():
    """One direction of twenty: the half-space lemma ends at 4.3 from the same share, this bound goes on beyond 10."""
    metric = [1.0] + [1e-3] * 19
    share = 1e-5
    wide = spread_out(torch.diag(torch.tensor(metric, dtype=torch.float64))[None], 48.0)[0]
    assert radius(share, wide, metric) > 10 > 2 * stats.norm.isf(share)


def test_nothing_is_allowed_where_half_fails_or_the_encoder_is_unknown():
    assert radius(0.5, [2.0, 1.0], [1.0, 1.0]) == radius(1.0, [2.0, 1.0], [1.0, 1.0]) == 0
    infinite = torch.diag(torch.tensor([math.inf, 1.0]).double())
    assert radius(1e-6, [2.0, 1.0], infinite) == 0


def test_draws_are_spread_along_the_directions_of_the_metric():
    root = torch.randn(3, 3, generator=seeded(1), dtype=torch.float64)
    metric = (root @ root.mT)[None]
    covariance = spread_out(metric, 8.0)
    values, vectors = torch.linalg.eigh(metric[0])
    spread = vectors.mT @ covariance[0] @ vectors
    expected = (1 + (8 * values / values[-1]).clamp(min=1)) / 2
    torch.testing.assert_close(spread, torch.diag(expected), rtol=DOUBLE, atol=1e-12)
    assert float(expected[-1]) == 4.5


# the counts


def test_the_count_is_binomial_with_the_exact_share():
    """The decoder is an isometry, so D^2 is a weighted chi-square: all its variances are C's where C is isotropic."""
    model, samples = square_model(sigma=0.1), 20_000
    r = model.quantile(0.999)
    metric = torch.eye(4).double().repeat(2, 1, 1)
    found = far_failures(model, uniform(2, 4), r, metric, torch.zeros(2), samples=samples, seed=0)
    assert found.number[0] == found.number[1]  # the same noise, and the same law at every point
    variance = float(found.covariance[0, 0, 0])
    assert variance > 1 and torch.allclose(found.covariance, variance * metric)
    share = float(stats.chi2.sf(stats.chi2.ppf(0.999, 4) / variance, 4))
    assert stats.binomtest(int(found.number[0]), samples, share).pvalue > ALARM


def test_no_draws_are_made_where_nothing_is_promised():
    model = square_model(sigma=0.1)
    for r, least in ((model.quantile(0.999), 1e3), (model.quantile(0.3), 0.0)):
        metric = torch.eye(4).double()[None]
        found = far_failures(model, uniform(1, 4), r, metric, torch.tensor([least]), samples=500, seed=0)
        assert isinstance(found, FarFailures) and found.number.tolist() == [500]
    unknown = torch.full((1, 4, 4), math.inf).double()
    found = far_failures(model, uniform(1, 4), 5.0, unknown, torch.zeros(1), samples=500, seed=0)
    assert found.number.tolist() == [500]


# the certificates


def test_wider_draws_never_certify_less_and_often_more():
    """The level of failures is below what 5,000 draws of the noise can see; both have the error that they claim."""
    vae, x = random_vae(12, 16, 3), uniform(4, 12)
    r = 3 * distances(vae, x, samples=1000, seed=1).quantile(0.9, dim=1)
    (found,) = failures(vae, x, [r], samples=5000, seed=2)
    near = certify(vae, x, found, confidence=1 - 0.8e-3)
    both = certify_with_far_draws(vae, x, r, found, confidence=0.999)
    assert torch.equal(both.half_space, near.half_space) and both.confidence == 0.999
    assert (both.radius >= near.radius).all() and (both.radius > 1.05 * near.radius).any()
    again = torch.cat([certify_with_far_draws(vae, x[[i]], r[[i]], found_at(found, [i])).radius for i in range(4)])
    torch.testing.assert_close(again, both.radius, rtol=1e-4, atol=0)


def found_at(found, rows):
    """Return the failures of some points."""
    return type(found)(found.number[rows], found.first[rows], found.second[rows], found.samples)


def test_a_certificate_with_wider_draws_lies_below_the_exact_margin():
    """Of linear models with r far beyond the noise, in which all directions but one move the encoder little."""
    for seed in range(6):
        model = square_model(6, sigma=0.1)
        model.weight = model.weight * torch.tensor([1.0, *[0.2] * 5]).double()
        x, r = uniform(1, 6), 1.3 * model.quantile(0.9999)
        (found,) = failures(model, x, [r], samples=2000, seed=seed)
        certificate = certify_with_far_draws(model, x, r, found, seed=100 + seed, confidence=0.5)
        near = certify(model, x, found, confidence=0.5)
        assert 1.1 * float(near.radius) < float(certificate.radius) <= model.margin(r)


def test_a_constant_encoder_needs_no_wider_draws():
    model = square_model(gain=0.0)
    (found,) = failures(model, uniform(2, 4), [model.quantile(0.9)], samples=500, seed=0)
    certificate = certify_with_far_draws(model, uniform(2, 4), model.quantile(0.9), found)
    assert certificate.radius.tolist() == [LARGEST] * 2
