"""What samples say about the noise that fails: sums against the samples themselves, limits against exact moments."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import DOUBLE, most_misses, random_vae, seeded, uniform
from scipy import integrate, stats

from vaerobust.certify.failures import (
    BANDS,
    GAMMAS,
    WEIGHTS,
    Failures,
    Limits,
    confidence_limits,
    failures,
    first_limits,
    mass_limit,
    moment_errors,
    second_limits,
)

DENSITY = stats.norm.pdf

# the sums


def test_counts_and_moments_are_those_of_the_samples():
    """Up to 2,048 samples are one draw, which the test repeats."""
    vae, x = random_vae(12, 16, 3), uniform(3, 12)
    eta = torch.randn(2000, 3, generator=seeded(2), dtype=torch.float64)
    mu, sigma = vae.encode(x)
    d = (vae.decode(mu[:, None] + sigma[:, None] * eta) - vae.decode(mu)[:, None]).norm(dim=-1)
    r_values = [0.3, d.quantile(0.9, dim=1)]
    for r, found in zip(r_values, failures(vae, x, r_values, samples=2000, seed=2), strict=True):
        fails = (d > (r if isinstance(r, float) else r[:, None])).double()
        assert torch.equal(found.number, fails.sum(1))
        torch.testing.assert_close(found.first, fails @ eta / 2000, rtol=DOUBLE, atol=1e-12)
        direct = torch.einsum("ns,si,sj->nij", fails, eta, eta) / 2000
        torch.testing.assert_close(found.second, direct, rtol=DOUBLE, atol=1e-12)
        assert found.samples == 2000


def test_samples_beyond_one_block_are_counted_too(square):
    """Three blocks, the last one short: the count is binomial, and the moments agree with their exact values."""
    samples, level = 5000, 0.8
    (found,) = failures(square, uniform(2, 4), [square.quantile(level)], samples=samples, seed=0)
    assert abs(float(found.number[0]) - 1000) < 5 * math.sqrt(samples * 0.16)  # five standard errors
    assert torch.equal(found.number[0], found.number[1])  # the same noise, and the same law at every point
    # E[1_B s^2] follows from the chi-square law of d + 2; five standard errors, since the fourth moment of s is 3
    second = stats.chi2.sf(stats.chi2.ppf(level, 4), 6)
    assert (found.second[0].diagonal() - second).abs().max() < 5 * math.sqrt(3 / samples)
    assert found.first.abs().max() < 5 / math.sqrt(samples)


# the limits


def exact_errors(mass, samples, alpha):
    """Return eps_1 and eps_2 of lem-moments from their definitions, by numerical integration."""
    kappa = math.log(3 * len(WEIGHTS) / alpha)
    edge = stats.norm.isf(mass / 2)

    def beyond(f):
        return 2 * integrate.quad(lambda t: f(t) * DENSITY(t), edge, edge + 12, epsabs=0, epsrel=1e-10)[0]

    theta = math.sqrt(2 * kappa / (samples * beyond(lambda t: t**2)))
    tilted = beyond(lambda t: t**2 * math.exp(theta * t))
    return kappa / (samples * theta) + theta * tilted / 2, math.sqrt(2 * beyond(lambda t: t**4) * kappa / samples)


@pytest.mark.parametrize(("number", "samples", "alpha"), [(0, 100, 0.1), (30, 1000, 0.3), (5000, 50_000, 1e-3)])
def test_errors_are_those_of_the_lemma(number, samples, alpha):
    """The mass and the two kinds of moments have a third of alpha each; the weights share the thirds of the moments."""
    none = torch.zeros(1, 2, dtype=torch.float64)
    found = Failures(torch.tensor([float(number)]), none, torch.zeros(1, 2, 2, dtype=torch.float64), samples)
    mass = stats.binomtest(number, samples).proportion_ci(1 - 2 * alpha / 3, "exact").high  # one-sided
    limit = mass_limit(found, alpha / 3)
    assert float(limit) == pytest.approx(mass, rel=1e-9)
    first, second = exact_errors(mass, samples, alpha)
    errors = moment_errors(limit, samples, alpha)
    assert float(errors.first) == pytest.approx(first, rel=1e-7)
    assert float(errors.second) == pytest.approx(second, rel=1e-7)
    # The moments of the samples are 0, so the limits are the errors: eps_2, and the root of (1 + 1 / gamma) eps_1^2 at
    # the largest gamma
    limits = confidence_limits(found, torch.eye(2, dtype=torch.float64)[None], alpha)
    assert torch.equal(limits.mass, limit)
    assert limits.first.tolist() == [pytest.approx([first * (1 + 1 / max(GAMMAS)) ** 0.5] * len(BANDS))]
    assert limits.second.tolist() == [pytest.approx([second] * len(BANDS))]


EDGE = stats.norm.isf(0.1)
METRIC = torch.diag(torch.tensor([1.0, 0.75, 0.125], dtype=torch.float64))
"""V: how far the encoder moves along each direction, relative to the first axis."""


def seen(runs, samples, seed=0):
    """Return the failures of many independent runs, for noise that fails if its first coordinate is beyond EDGE."""
    eta = torch.randn(runs, samples, 3, generator=seeded(seed), dtype=torch.float64)
    fails = (eta[..., 0] > EDGE).double()
    first = torch.einsum("ks,ksi->ki", fails, eta) / samples
    second = torch.einsum("ks,ksi,ksj->kij", fails, eta, eta) / samples
    return Failures(fails.sum(1), first, second, samples)


def beyond_limits(limits):
    """Return for each run whether the exact mass, and a first or second moment of some direction, exceeds its limit.

    The directions are 500 random ones and the axes, along which the moments are the largest.
    """
    a = torch.cat([torch.eye(3).double(), torch.randn(500, 3, generator=seeded(9), dtype=torch.float64)])
    a = a / a.norm(dim=1, keepdim=True)
    reach = torch.einsum("di,ij,dj->d", a, METRIC, a)
    first = a[:, 0].abs() * DENSITY(EDGE)
    second = 0.1 + a[:, 0] ** 2 * EDGE * DENSITY(EDGE)
    band = torch.searchsorted(BANDS**2, reach.clamp(max=1), right=True) - 1
    wrong_first, wrong_second = first > limits.first[:, band], second > limits.second[:, band]
    return limits.mass < 0.1, wrong_first.any(1), wrong_second.any(1)


def test_limits_cover_the_exact_moments_of_every_band():
    """Each kind of limit is wrong in a share of at most alpha / 3 of the runs; without its error it fails the test."""
    alpha, runs = 0.5, 400
    found, metric = seen(runs, 1000), METRIC.expand(runs, -1, -1)
    most = most_misses(runs, alpha / 3)
    for wrong in beyond_limits(confidence_limits(found, metric, alpha)):
        assert int(wrong.sum()) <= most
    none = torch.zeros(runs, dtype=torch.float64)
    estimates = Limits(found.number / 1000, first_limits(found, metric, none), second_limits(found, metric, none))
    mass, first, second = beyond_limits(estimates)
    assert int(mass.sum()) > most
    assert int(second.sum()) > most
    # A first moment enters as (1 + gamma) m^2 with gamma >= 0.03, which alone may cover the error of 1,000 samples
    assert int(first.sum()) > 0


def test_bands_narrow_the_moments():
    """The noise that fails lies along the axis where the encoder moves least, so the other bands have lower limits."""
    found = seen(1, 100_000)
    _, first, second = confidence_limits(found, METRIC.flip(0, 1)[None], 1e-3)
    assert float(first[0, 0]) >= DENSITY(EDGE) and float(second[0, 0]) >= 0.1 + EDGE * DENSITY(EDGE)
    # Along the third axis alone the first moment is 0, and the second one is 0.1
    assert float(first[0, -1]) < 0.6 * DENSITY(EDGE) and float(second[0, -1]) < 0.7 * float(second[0, 0])
    assert (first.diff() <= DOUBLE).all() and (second.diff() <= DOUBLE).all()


class Level:
    """Every sample moves the only reconstruction by the same distance, that of 0.1 in single precision."""

    def encode(self, x):
        return torch.zeros_like(x), torch.ones_like(x)

    def decode(self, z):
        return torch.where(z == 0, 0.0, torch.tensor(0.1, dtype=z.dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_an_r_that_its_type_rounds_up_hides_no_failure(dtype):
    """0.1 in single precision is above 0.1: D > r, though D and r are equal in that type."""
    assert float(torch.tensor(0.1, dtype=torch.float32)) > 0.1
    (found,) = failures(Level(), torch.zeros(2, 1, dtype=dtype), [0.1], samples=50)
    assert found.number.tolist() == [50, 50]
    (found,) = failures(Level(), torch.zeros(2, 1, dtype=dtype), [0.11], samples=50)
    assert found.number.tolist() == [0, 0]
