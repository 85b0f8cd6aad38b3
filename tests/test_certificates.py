"""Certified margins: the shift that moments allow against closed forms, and coverage of exact margins."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from conftest import ALARM, DOUBLE, graded_model, most_misses, random_vae, seeded, square_model, uniform
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, optimize, stats

from vaerobust.bounds import half_space_shift
from vaerobust.certify import certificates
from vaerobust.certify.certificates import BANDS, Failures, certified_margin, certified_r, certify, failures, safe_shift
from vaerobust.criterion import distances
from vaerobust.linear import LinearGaussianVAE

PHI, DENSITY = stats.norm.cdf, stats.norm.pdf

MARCH = 0.01
"""Marching stops where a step is below 0.003, and 0.003 more may be lost to multipliers that are not the best."""


def shift(mass, first, second):
    """Return one safe shift as a number."""
    return float(safe_shift(*torch.tensor([[mass], [first], [second]], dtype=torch.float64)))


# the safe shift


@pytest.mark.parametrize("mass", [1e-6, 0.01, 0.1, 0.3, 0.49])
def test_a_half_space_survives_exactly_the_probit(mass):
    """Its moments are those of a half-space, so no more can be safe; and the half-space lemma gives as much."""
    edge = stats.norm.isf(mass)
    assert shift(mass, DENSITY(edge), mass + edge * DENSITY(edge)) == pytest.approx(edge, rel=DOUBLE)


@pytest.mark.parametrize("dimensions", [1, 2, 5, 20])
@pytest.mark.parametrize("mass", [1e-4, 0.02, 0.1, 0.3])
def test_a_ball_survives_more_than_a_half_space_and_no_more_than_it_does(dimensions, mass):
    """Outside a ball lies the same in every direction: no first moment, and E[1_B s^2] by chi-square of d + 2."""
    square = stats.chi2.isf(mass, dimensions)
    exact = optimize.brentq(lambda t: stats.ncx2.cdf(square, dimensions, t * t) - 0.5, 1e-9, square**0.5)
    found, half_space = shift(mass, 0.0, stats.chi2.sf(square, dimensions + 2)), stats.norm.isf(mass)
    assert found <= exact
    assert found >= half_space * (1 + (0.01 if dimensions > 1 else 0))
    if dimensions == 20 and mass == 0.1:
        assert found > 1.3 * half_space  # where the half-space lemma is furthest from the truth


SETS = st.lists(st.tuples(st.floats(0.02, 2.0), st.floats(0.0, 1.0)), min_size=1, max_size=12)
"""Lengths of intervals and how much of each fails, from -4 on; beyond the last, and below -4, all or nothing does."""


@given(SETS, st.booleans(), st.booleans(), st.floats(1.0, 1.2))
def test_no_set_with_these_moments_is_more_likely_than_half_up_to_the_safe_shift(pieces, left, right, loose):
    """Integrals of the normal density over intervals are known; the lengths up to the safe one are tried, 200 of them.

    A set may be random, failing with a probability that depends on s.
    """
    lengths, share = zip(*pieces, strict=True)
    ends = np.concatenate([[-np.inf], -4 + np.concatenate([[0], np.cumsum(lengths)]), [np.inf]])
    share = np.array([left, *share, right], dtype=float)
    density, edges = DENSITY(ends), np.nan_to_num(ends, posinf=0, neginf=0)
    share *= min(1.0, 0.4 / max(share @ np.diff(PHI(ends)), 1e-300))  # so that the half-space lemma gives something
    mass = share @ np.diff(PHI(ends))
    first = -share @ np.diff(density)
    second = mass - share @ np.diff(edges * density)
    found = shift(loose * mass, loose * abs(first), loose * second)
    assert half_space_shift(1 - loose * mass) <= found
    for sign in (1, -1):
        for t in np.linspace(0, min(found, 30.0), 200):
            assert share @ np.diff(PHI(ends - sign * t)) <= 0.5 + DOUBLE


def most_likely(t, mass, first, second):
    """Return the largest P(s + t in B) of a random set with these moments, by a linear programme.

    It is constant on cells, 0.05 wide, from -7 to 10, over which all integrals are exact: none that is found breaks a
    limit.
    """
    ends = np.linspace(-7, 10, 341)
    density = DENSITY(ends)
    moments = np.diff(PHI(ends)), -np.diff(density), np.diff(PHI(ends)) - np.diff(ends * density)
    gain = np.diff(PHI(ends - t))
    found = optimize.linprog(-gain, A_ub=np.stack(moments), b_ub=[mass, first, second], bounds=(0, 1), method="highs")
    assert found.status == 0
    return -found.fun


@pytest.mark.parametrize(
    ("mass", "first", "second"),
    [(0.1, 0.0, 0.2), (0.1, 0.05, 0.3), (0.1, 0.1, 0.12), (0.01, 0.0, 0.03), (0.001, 0.001, 0.01), (0.3, 0.0, 0.5)],
)
def test_the_safe_shift_is_that_of_the_worst_set(mass, first, second):
    """No set found by linear programming is likelier than 1/2 up to the safe shift, but for the solver's tolerance.

    And at 1.04 times the safe shift some set is: the bound loses little by its multipliers, MARCH and the cells.
    """
    found = shift(mass, first, second)
    assert found > stats.norm.isf(mass) * 1.001 + MARCH  # so that the moments matter
    for part in (0.3, 0.7, 0.9, 0.97, 1.0):
        assert most_likely(part * found, mass, first, second) <= 0.5 + 1e-6
    assert most_likely(1.04 * found + MARCH, mass, first, second) > 0.5


def test_more_of_what_fails_is_never_safer():
    """In each of the three numbers; MARCH on either side. Where all of them are small, a little of each counts."""
    grid = torch.cartesian_prod(*torch.tensor([[0.01, 0.1, 0.3], [0.0, 0.05, 0.2], [0.02, 0.2, 0.6]]).double())
    found = safe_shift(*grid.T).reshape(3, 3, 3)
    for dimension in range(3):
        assert (found.diff(dim=dimension) <= 2 * MARCH).all()
        assert found.diff(dim=dimension).min() < -0.1


def test_nothing_is_safe_where_half_may_fail_and_everything_where_nothing_does():
    for mass in (0.5, 0.7, 1.0):
        assert shift(mass, 0.0, 0.0) == 0
    assert shift(0.0, 0.0, 0.0) == math.inf
    assert 7 < shift(1e-14, 0.0, 0.0) < math.inf


# limits of the moments


def exact_errors(mass, samples, alpha):
    """Return what may be added to a first and a second moment, from their definitions, by numerical integration."""
    nats = math.log(3 * len(certificates.TILTS) / alpha)
    edge = stats.norm.isf(mass / 2)

    def beyond(f):
        return 2 * integrate.quad(lambda t: f(t) * DENSITY(t), edge, edge + 12, epsabs=0, epsrel=1e-10)[0]

    tilt = math.sqrt(2 * nats / (samples * beyond(lambda t: t**2)))
    tilted = beyond(lambda t: t**2 * math.exp(tilt * t))
    return nats / (samples * tilt) + tilt * tilted / 2, math.sqrt(2 * beyond(lambda t: t**4) * nats / samples)


@pytest.mark.parametrize(("number", "samples", "alpha"), [(0, 100, 0.1), (30, 1000, 0.3), (5000, 50_000, 1e-3)])
def test_errors_are_those_of_the_lemma(number, samples, alpha):
    """Each of the three kinds of limit has a third of alpha, shared by as many directions as there are tilts."""
    none = torch.zeros(1, 2, dtype=torch.float64)
    found = Failures(torch.tensor([float(number)]), none, torch.zeros(1, 2, 2, dtype=torch.float64), samples)
    limits = certificates._Limits(found, torch.eye(2, dtype=torch.float64)[None], alpha)
    mass = stats.binomtest(number, samples).proportion_ci(1 - 2 * alpha / 3, "exact").high  # one-sided
    assert float(limits.mass) == pytest.approx(mass, rel=1e-9)
    first, second = exact_errors(mass, samples, alpha)
    assert float(limits.first_error) == pytest.approx(first, rel=1e-7)
    assert float(limits.second_error) == pytest.approx(second, rel=1e-7)
    # nothing was seen along any direction, so the limits are the errors alone, and (1 + 1 / s) e^2 for the largest s
    both = limits.moments()
    assert both[0].tolist() == [pytest.approx([first * (1 + 1 / max(certificates.SHARES)) ** 0.5] * len(BANDS))]
    assert both[1].tolist() == [pytest.approx([second] * len(BANDS))]


EDGE = stats.norm.isf(0.1)
METRIC = torch.diag(torch.tensor([4.0, 3.0, 0.5], dtype=torch.float64))


def seen(runs, samples, seed=0):
    """Return samples, of many independent runs, of noise that fails where its first coordinate is beyond EDGE."""
    eta = torch.randn(runs, samples, 3, generator=seeded(seed), dtype=torch.float64)
    fails = (eta[..., 0] > EDGE).double()
    first = torch.einsum("ks,ksi->ki", fails, eta) / samples
    second = torch.einsum("ks,ksi,ksj->kij", fails, eta, eta) / samples
    return Failures(fails.sum(1), first, second, samples)


def beyond_limits(limits):
    """Return for each run whether the exact mass or moments of some direction exceed the limit of its band.

    Directions: 500 at random, and those along the axes, where the moments are the largest.
    """
    a = torch.cat([torch.eye(3).double(), torch.randn(500, 3, generator=seeded(9), dtype=torch.float64)])
    a = a / a.norm(dim=1, keepdim=True)
    reach = torch.einsum("di,ij,dj->d", a, METRIC, a) / 4
    first = a[:, 0].abs() * DENSITY(EDGE)
    second = 0.1 + a[:, 0] ** 2 * EDGE * DENSITY(EDGE)
    band = torch.searchsorted(BANDS**2, reach.clamp(max=1), right=True) - 1
    limit_first, limit_second = (one[:, band] for one in limits.moments())
    return (limits.mass < 0.1), (first > limit_first).any(1), (second > limit_second).any(1)


def test_limits_cover_the_exact_moments_of_every_band():
    """Each kind of limit errs in a third of alpha of the runs at most; without their errors they fail the test."""
    alpha, runs = 0.5, 400
    limits = certificates._Limits(seen(runs, 1000), METRIC.expand(runs, -1, -1), alpha)
    most = most_misses(runs, alpha / 3)
    for wrong in beyond_limits(limits):
        assert int(wrong.sum()) <= most
    limits.mass = limits.found.number / 1000
    limits.first_error, limits.second_error = torch.zeros(2, runs, dtype=torch.float64)
    mass, first, second = beyond_limits(limits)
    assert int(mass.sum()) > most
    assert int(second.sum()) > most
    # a first moment enters as (1 + s) m^2 with s >= 0.03, which alone may cover the chance of 1,000 samples
    assert int(first.sum()) > 0


def test_bands_narrow_the_moments():
    """What fails does so along the direction in which the encoder moves least; then the others have smaller moments."""
    found = seen(1, 100_000)
    turned = torch.diag(torch.tensor([0.5, 3.0, 4.0], dtype=torch.float64))[None]
    first, second = certificates._Limits(found, turned, 1e-3).moments()
    assert float(first[0, 0]) >= DENSITY(EDGE) and float(second[0, 0]) >= 0.1 + EDGE * DENSITY(EDGE)
    # exactly along the third axis nothing fails more on one side; and a tenth, on average once, as anywhere else
    assert float(first[0, -1]) < 0.6 * DENSITY(EDGE) and float(second[0, -1]) < 0.7 * float(second[0, 0])
    assert (first.diff() <= DOUBLE).all() and (second.diff() <= DOUBLE).all()


@given(st.integers(1, 5), st.integers(0, 999))
def test_the_allowed_radius_keeps_every_band_within_its_safe_shift(latents, seed):
    """For 300 directions, and the axes of both metrics: R^2 a' W a <= shift^2, but for roundings."""
    generator = seeded(seed)
    root = torch.randn(2, latents, latents, generator=generator, dtype=torch.float64)
    still = root[:1] @ root[:1].mT
    moving = still + 0.3 * root[1:] @ root[1:].mT
    safe = 1 + torch.rand(1, len(BANDS), generator=generator, dtype=torch.float64)
    radius = float(certificates._allowed(still, moving, safe))
    axes = [torch.linalg.eigh(one[0]).eigenvectors.T for one in (still, moving)]
    a = torch.cat([torch.randn(300, latents, generator=generator, dtype=torch.float64), *axes])
    a = a / a.norm(dim=1, keepdim=True)
    top = torch.linalg.eigvalsh(still)[0, -1]
    reach = (torch.einsum("di,ij,dj->d", a, still[0], a) / top).clamp(max=1)
    moved = radius * torch.einsum("di,ij,dj->d", a, moving[0], a).sqrt()
    for lower in (0, DOUBLE):  # the furthest direction may be rounded into the band below the last
        band = torch.searchsorted(BANDS**2, (reach - lower).clamp(min=0), right=True) - 1
        assert (moved <= safe[0, band] * (1 + DOUBLE)).all() or lower == 0
    one = float(certificates._allowed(still, moving, safe[:, :1]))
    assert one == pytest.approx(float(safe[0, 0] / torch.linalg.eigvalsh(moving)[0, -1].sqrt()), rel=DOUBLE)
    assert float(certificates._allowed(still, moving * torch.inf, safe)) == 0


# certificates


class OneSidedVAE(LinearGaussianVAE):
    """One latent, and g(z) = relu(z): the noise that fails at x = 0 is a half-space, the worst there is."""

    def __init__(self):
        super().__init__(3, 1, sigma=0.5)

    def decode(self, z):
        return z.clamp(min=0)

    def one_sided_margin(self, level):
        return self.sigma * stats.norm.ppf(level) / float(self.weight.norm())

    def one_sided_r(self, level):
        return self.sigma * stats.norm.ppf(level)


def independent(model, x, r, samples, runs, seed=0):
    """Return points and their failures as of many independent runs: noise is shared within a call, so call anew."""
    found = [failures(model, x, [r], samples=samples, seed=seeded(seed + run))[0] for run in range(runs)]
    together = Failures(*(torch.cat([getattr(one, name) for one in found]) for name in Failures._fields[:3]), samples)
    return x.repeat(runs, 1), together


def test_coverage_where_the_half_space_lemma_is_sharp(monkeypatch):
    """The half-space radius errs no more often than p_low, in a third of alpha of the runs; the other in alpha at most.

    The same with the estimate of p in place of its limit errs in half of the runs, so the test would see it.
    """
    monkeypatch.setattr(certificates, "BANDS", torch.tensor([0.0, 1.0]).double())  # one latent has one direction
    model, level, alpha, runs, samples = OneSidedVAE(), 0.8, 0.3, 300, 300
    exact, r = model.one_sided_margin(level), model.one_sided_r(level)
    x, found = independent(model, torch.zeros(1, 3, dtype=torch.float64), r, samples, runs)
    certificate = certify(model, x, found, confidence=1 - alpha)
    wrong = int((certificate.half_space > exact).sum())
    assert wrong <= int((certificate.p_low > level).sum()) <= most_misses(runs, alpha / 3)
    assert int((certificate.radius > exact).sum()) <= most_misses(runs, alpha)
    estimate = half_space_shift(1 - found.number.numpy() / samples) * exact / stats.norm.ppf(level)
    assert (estimate > exact).sum() > most_misses(runs, alpha)
    # p_low errs nearly as often as it may: but for steps of one sample, 6 cases of 100, or 1 / sqrt(2 pi 300 0.16)
    assert int((certificate.p_low > level).sum()) >= 1


@pytest.mark.parametrize(("pixels", "latents", "sigma"), [(6, 1, 0.3), (8, 3, 1.0), (30, 10, 0.1)])
def test_coverage_on_linear_models(pixels, latents, sigma):
    """Of the exact margin, by independent runs; and the certificate is more than the half-space's where d_z > 1."""
    model, alpha, runs = LinearGaussianVAE(pixels, latents, sigma=sigma, seed=3), 0.1, 40
    r = model.quantile(0.8)
    x, found = independent(model, uniform(1, pixels), r, 1000, runs)
    certificate = certify(model, x, found, confidence=1 - alpha)
    assert int((certificate.radius > model.margin(r)).sum()) <= most_misses(runs, alpha)
    assert (certificate.radius >= certificate.half_space).all() and (certificate.half_space > 0).all()
    if latents == 10:
        assert certificate.radius.mean() > 1.05 * certificate.half_space.mean()


class CurvedVAE:
    """A ReLU encoder of two pixels and two latents with unequal sigma; g(z) = (z_1, 0.4 z_2), so D has a known law."""

    gains, sigma = torch.tensor([1.0, 0.4], dtype=torch.float64), torch.tensor([0.3, 0.5], dtype=torch.float64)

    def __init__(self, seed):
        vae = random_vae(2, 12, 2, gain=2.0, seed=seed)
        self.layers, self.mean_layers = vae.mean_layers(), vae.mean_layers
        self.mean = lambda x: vae.encode(x)[0]

    def encode(self, x):
        mu = self.mean(x)
        return mu, self.sigma.expand_as(mu)

    def decode(self, z):
        return z * self.gains

    def probability(self, u, r):
        """Return P(D <= r) at whitened shifts (..., 2): an integral over the first coordinate, by Gauss's rule."""
        nodes, weights = np.polynomial.legendre.leggauss(40)
        angle = nodes * np.pi / 2
        wide, high = (float(r) / (self.gains * self.sigma)).tolist()
        one, two = wide * np.sin(angle), high * np.cos(angle)
        u = u.numpy()[..., None]
        inside = PHI(two - u[..., 1, :]) - PHI(-two - u[..., 1, :])
        return (weights * np.pi / 2 * wide * np.cos(angle) * DENSITY(one - u[..., 0, :]) * inside).sum(-1)

    def margin(self, x, r):
        """Return the length of the shortest perturbation on a polar grid that breaks r-robustness: at least R*."""
        angle = torch.linspace(0, 2 * math.pi, 121, dtype=torch.float64)[:-1]
        length = torch.logspace(-2, 1, 200, dtype=torch.float64)
        delta = length[:, None, None] * torch.stack([angle.cos(), angle.sin()], 1)
        u = (self.mean((x + delta).flatten(0, 1)) - self.mean(x)).unflatten(0, delta.shape[:2]) / self.sigma
        broken = (self.probability(u, r) <= 0.5).any(1)
        return float(length[broken.argmax()])


@pytest.mark.parametrize("seed", range(3))
def test_coverage_on_a_curved_encoder(seed):
    """The exact margin is found on a grid of 120 directions and lengths with steps of 3.5%, so never too short."""
    model, alpha, runs = CurvedVAE(seed), 0.1, 40
    x = uniform(1, 2, seed=seed)
    r = float(distances(model, x, samples=4000, seed=1).quantile(0.85))
    exact = model.margin(x, r)
    with_noise = (distances(model, x, samples=40_000, seed=2) <= r).double().mean()
    # three standard errors of 40,000 samples with p = 0.85, and more: the integral is the model's law
    assert abs(float(with_noise) - model.probability(torch.zeros(1, 2), r)[0]) < 0.01
    x, found = independent(model, x, r, 2000, runs)
    certificate = certify(model, x, found, confidence=1 - alpha, refine=2)
    assert int((certificate.radius > exact).sum()) <= most_misses(runs, alpha)
    assert certificate.radius.min() > 0.2 * exact  # no empty claim


def test_coverage_fails_for_radii_twice_as_long():
    """So these tests can fail."""
    model, r = LinearGaussianVAE(8, 3, seed=3), LinearGaussianVAE(8, 3, seed=3).quantile(0.8)
    x, found = independent(model, uniform(1, 8), r, 1000, 20)
    assert int((2 * certify(model, x, found, confidence=0.9).radius > model.margin(r)).sum()) > most_misses(20, 0.1)


# how certificates depend on what goes in


@pytest.fixture(scope="module")
def judged():
    """A model, points, and their failures at three values of r, by the same samples."""
    vae, x = random_vae(12, 16, 3), uniform(3, 12)
    d = distances(vae, x, samples=2000, seed=1)
    r = [d.quantile(level, dim=1) for level in (0.7, 0.9, 0.99)]
    return vae, x, r, failures(vae, x, r, samples=5000, seed=2)


def test_counts_and_moments_are_those_of_the_samples():
    """Of up to 2,048 samples the noise is one draw, which the test repeats."""
    vae, x = random_vae(12, 16, 3), uniform(3, 12)
    eta = torch.randn(2000, 3, generator=seeded(2), dtype=torch.float64)
    mu, sigma = vae.encode(x)
    d = (vae.decode(mu[:, None] + sigma[:, None] * eta) - vae.decode(mu)[:, None]).norm(dim=-1)
    radii = [0.3, d.quantile(0.9, dim=1)]
    for r, found in zip(radii, failures(vae, x, radii, samples=2000, seed=2), strict=True):
        fails = (d > (r if isinstance(r, float) else r[:, None])).double()
        assert torch.equal(found.number, fails.sum(1))
        torch.testing.assert_close(found.first, fails @ eta / 2000, rtol=DOUBLE, atol=1e-12)
        direct = torch.einsum("ns,si,sj->nij", fails, eta, eta) / 2000
        torch.testing.assert_close(found.second, direct, rtol=DOUBLE, atol=1e-12)
        assert found.samples == 2000


def test_any_number_of_samples_is_counted_in_pieces(square):
    """Three pieces, the last of them short; the count is binomial, and the moments agree with their exact values."""
    samples, level = 5000, 0.8
    (found,) = failures(square, uniform(2, 4), [square.quantile(level)], samples=samples, seed=0)
    assert abs(float(found.number[0]) - 1000) < 5 * math.sqrt(samples * 0.16)  # five standard errors
    assert torch.equal(found.number[0], found.number[1])  # the same noise, and the same law at every point
    # E[1_B s^2] by chi-square of d + 2, and five standard errors of it: the fourth moment of s is 3
    second = stats.chi2.sf(stats.chi2.ppf(level, 4), 6)
    assert (found.second[0].diagonal() - second).abs().max() < 5 * math.sqrt(3 / samples)
    assert found.first.abs().max() < 5 / math.sqrt(samples)


def test_less_confidence_and_a_larger_r_certify_more(judged):
    """The half-space's radius follows p_low exactly; the other may lose MARCH of a shift of 0.5 and more, so 2%."""
    vae, x, _, found = judged
    for one in found:
        chain = [certify(vae, x, one, confidence=1 - alpha, refine=0) for alpha in (1e-9, 1e-3, 0.1)]
        for strict, loose in itertools.pairwise(chain):
            assert (strict.p_low < loose.p_low).all()
            assert (strict.radius <= 1.02 * loose.radius).all() and (strict.radius < loose.radius).any()
            assert (strict.half_space < loose.half_space).all()
    small, middle, large = (certify(vae, x, one, refine=0) for one in found)
    assert (small.radius < middle.radius).all() and (middle.radius < large.radius).all()
    assert (small.half_space < middle.half_space).all() and (middle.half_space < large.half_space).all()


def test_more_samples_with_the_same_shares_certify_more(judged):
    vae, x, _, found = judged
    chain = [
        certify(vae, x, one._replace(number=times * one.number, samples=times * one.samples), refine=0)
        for one in found
        for times in (1, 10)
    ]
    for few, many in zip(chain[::2], chain[1::2], strict=True):
        assert (few.p_low < many.p_low).all()
        assert (few.radius < many.radius).all() and (few.half_space < many.half_space).all()


def test_nothing_is_certified_where_half_may_fail(judged):
    vae, x, _, _ = judged
    r = torch.stack([torch.zeros(()).double(), *distances(vae, x[1:], samples=2000, seed=1).quantile(0.5, dim=1)])
    for samples in (1, 10, 2000):
        found = certified_margin(vae, x, r, samples=samples, seed=2)
        assert found.radius.tolist() == found.half_space.tolist() == [0, 0, 0]
        assert (found.p_low <= 0.51).all()


def test_ten_samples_say_something_only_with_little_confidence(judged):
    """All of 10 within r leave P > (alpha / 3)^(1 / 10): 0.45 at alpha = 0.001 and 0.71 at 0.1."""
    vae, x, _, _ = judged
    for confidence, low in ((0.999, (0.001 / 3) ** 0.1), (0.9, (0.1 / 3) ** 0.1)):
        found = certified_margin(vae, x, 1e3, samples=10, seed=0, confidence=confidence)
        assert found.p_low == pytest.approx([low] * 3)
        assert ((found.radius > 0) == (low > 0.5)).all()
        assert found.samples == 10 and found.confidence == confidence


def test_a_confidence_next_to_1_still_gives_a_number(judged):
    vae, x, _, found = judged
    certificate = certify(vae, x, found[2], confidence=1 - 1e-15)
    assert torch.isfinite(certificate.radius).all()
    assert (certificate.radius > 0).all() and (certificate.radius < certify(vae, x, found[2]).radius).all()


def test_a_constant_encoder_is_certified_up_to_the_largest_radius():
    model = square_model(gain=0.0)
    found = certified_margin(model, uniform(2, 4), model.quantile(0.9), samples=500, seed=0)
    assert found.radius.tolist() == [certificates.LARGEST] * 2
    found = certified_margin(model, uniform(2, 4), model.quantile(0.2), samples=500, seed=0)
    assert found.radius.tolist() == [0, 0]


def test_on_a_linear_encoder_the_half_space_radius_is_its_formula(graded):
    """There W is exact, so nothing is lost but the search's last step: none where W does not depend on the radius."""
    r = graded.quantile(0.9)
    found = certified_margin(graded, uniform(2, 20), r, samples=5000, seed=0)
    for radius, p in zip(found.half_space.tolist(), found.p_low, strict=True):
        assert radius == pytest.approx(graded.sigma * stats.norm.ppf(p), rel=1e-9)  # ||A||_2 = 1
    assert (found.radius > 1.02 * found.half_space).all()


def test_the_encoder_is_bounded_over_the_certified_ball(judged):
    """W of the certified radius, not of a smaller one, allows the shift: recomputed at the half-space's own.

    To 1%: W of a slightly larger ball was used, whose descent has ended elsewhere.
    """
    vae, x, _, found = judged
    layers, sigma = certificates.mean_layers(vae, x), vae.encode(x)[1]
    for one in found:
        certificate = certify(vae, x, one)
        reach = torch.linalg.eigvalsh(certificates.shift_metric(layers, sigma, x, certificate.half_space, refine=6))
        safe = torch.as_tensor(half_space_shift(certificate.p_low))
        assert (certificate.half_space * reach[:, -1].sqrt() <= 1.01 * safe).all()
        assert (
            certificate.half_space * reach[:, -1].sqrt() >= 0.7 * safe
        ).all()  # and W of the larger ball gives not too much away
        still = torch.linalg.eigvalsh(certificates.shift_metric(layers, sigma, x, 0.0))[:, -1]
        assert (reach[:, -1] / still).max() > 1.1  # so the Jacobian alone would fail the first


def test_radii_are_never_rounded_up():
    """In single precision the same certificate is the largest number that is no larger: a rounding of 1.2e-7 below."""
    model = LinearGaussianVAE(20, 4, sigma=0.125)
    x = uniform(1, 20)
    for level in np.linspace(0.7, 0.99, 8):
        (found,) = failures(model, x, [model.quantile(level)], samples=1000, seed=0)
        double, single = certify(model, x, found), certify(model, x.float(), found)
        assert single.radius.dtype == single.half_space.dtype == torch.float32
        for exact, rounded in zip(double[:2], single[:2], strict=True):
            assert (1 - 1.2e-7) * float(exact) <= float(rounded) <= float(exact)


def test_the_certificate_depends_neither_on_order_nor_on_company(judged):
    """Batched products of double precision round differently in other company; descent in single precision more."""
    vae, x, r, _ = judged
    whole = certified_margin(vae, x, r[1], samples=1000, seed=0)
    for points in (torch.tensor([2, 0, 1]), torch.tensor([1])):
        found = certified_margin(vae, x[points], r[1][points], samples=1000, seed=0)
        torch.testing.assert_close(found.radius, whole.radius[points], rtol=1e-4, atol=0)
        torch.testing.assert_close(found.half_space, whole.half_space[points], rtol=1e-4, atol=0)
        assert np.array_equal(found.p_low, whole.p_low[points.numpy()])


# the certificate read the other way round


def test_the_certified_r_lies_between_the_quantiles_that_its_order_statistic_allows():
    """Of D at Phi(R ||A|| / s), which the linear model has exactly; and above the exact least r, by the lemma."""
    model, samples, confidence = LinearGaussianVAE(20, 3, seed=1), 4000, 1 - 1e-6
    norm = float(torch.linalg.matrix_norm(model.weight, 2))
    shifts = np.array([0.0, 0.5, 1.0, 2.0])
    radii = (shifts * model.sigma / norm).tolist()
    found = certified_r(
        model, uniform(2, 20), radii, samples=samples, seed=0, confidence=confidence
    )  # fmt: skip
    assert found.shape == (4, 2)
    for radius, shift, (r, same) in zip(radii, shifts, found.tolist(), strict=True):
        assert r == pytest.approx(same, rel=DOUBLE)  # sigma and the distance's law do not depend on x
        assert r >= model.quantile(float(PHI(shift)))
        # as many samples lie below as the confidence asks for, and that many would do for a level this much higher
        rank = stats.binom.ppf(confidence, samples, PHI(shift)) + 1
        assert r <= model.quantile(float(stats.beta.isf(ALARM, rank, samples - rank + 1)))
        assert model.margin(r * (1 + 1e-9)) >= radius


def test_the_certified_r_is_wrong_as_seldom_as_it_says():
    """Below the quantile of D that it stands for: by the law of order statistics in alpha of the runs at most."""
    model, alpha, runs = LinearGaussianVAE(6, 2, sigma=0.3, seed=2), 0.3, 300
    radius = 0.7 * model.sigma / float(torch.linalg.matrix_norm(model.weight, 2))
    quantile = model.quantile(float(PHI(0.7)))
    wrong = sum(
        float(certified_r(model, uniform(1, 6), [radius], samples=200, seed=run, confidence=1 - alpha, refine=0))
        < quantile
        for run in range(runs)
    )
    assert 0 < wrong <= most_misses(runs, alpha)
    assert wrong > runs * alpha / 2  # not far less often either


def test_both_readings_of_the_half_space_lemma_agree(judged):
    """A certificate's radius at some r, put in, gives back about that r: the two have other samples and errors."""
    vae, x, r, _ = judged
    for one in r:
        radius = certified_margin(vae, x, one, samples=50_000, seed=3).half_space
        back = torch.stack([certified_r(vae, x[[i]], [float(radius[i])], seed=4)[0, 0] for i in range(len(x))])
        assert ((back / one).log().abs() < 0.05).all()


def test_r_rises_with_the_radius_and_is_infinite_beyond_what_samples_know(judged):
    vae, x, _, _ = judged
    radii = [0.3, 0.0, 50.0, 0.01, 0.1]
    found = certified_r(vae, x, radii, samples=500, seed=0)
    ordered = found[np.argsort(radii)]
    assert (ordered.diff(dim=0).nan_to_num() >= 0).all()
    assert torch.isinf(found[2]).all() and torch.isfinite(found[1]).all()
    median = distances(vae, x, samples=500, seed=1).median(dim=1).values
    assert (found[1] > 0.95 * median).all()
    few = certified_r(vae, x, radii, samples=8, seed=0)  # 2^-8 is more than a thousandth
    assert torch.isinf(few).all()
    assert certified_r(vae, x, [], samples=8).shape == (0, 3)


def test_the_certified_r_depends_neither_on_company_nor_on_pieces(judged, monkeypatch):
    """But for roundings of the descent; one r is a distance of some sample, and the next one is close by."""
    vae, x, _, _ = judged
    radii = [0.0, 0.02, 0.05]
    whole = certified_r(vae, x, radii, samples=2000, seed=0)
    alone = torch.cat([certified_r(vae, x[[i]], radii, samples=2000, seed=0) for i in range(3)], 1)
    torch.testing.assert_close(alone, whole, rtol=0.01, atol=0)
    torch.testing.assert_close(alone[0], whole[0], rtol=DOUBLE, atol=0)
    monkeypatch.setattr(certificates, "KEPT", 2000)
    pieces = certified_r(vae, x, radii, samples=2000, seed=0)
    torch.testing.assert_close(pieces, whole, rtol=DOUBLE, atol=0)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.full((1, 20), torch.nan)}, ValueError, "x must be finite"),
        ({"radii": [0.1, -1.0]}, ValueError, "radii must be finite and >= 0, but holds -1"),
        ({"radii": [torch.nan]}, ValueError, "radii must be finite and >= 0"),
        ({"samples": 0}, ValueError, "samples must be a whole number of at least 1"),
        ({"confidence": 1.0}, ValueError, "confidence must lie strictly between 0 and 1"),
        ({"refine": -1}, ValueError, "refine must be a whole number of at least 0"),
    ],
)
def test_wrong_arguments_of_the_certified_r_are_named(change, error, message):
    arguments = {"x": uniform(1, 20), "radii": [0.1], "samples": 1000} | change
    with pytest.raises(error, match=message):
        certified_r(graded_model(), arguments.pop("x"), arguments.pop("radii"), **arguments)


def test_shifts_are_sought_in_pieces(monkeypatch):
    """The same numbers as all at once, to the last digit but for the order of sums."""
    mass = torch.linspace(1e-4, 0.45, 23).double()
    first, second = 0.8 * mass, 1.5 * mass
    whole = safe_shift(mass, first, second)
    monkeypatch.setattr(certificates, "SHIFTS", 5)
    torch.testing.assert_close(safe_shift(mass, first, second), whole, rtol=1e-9, atol=0)


# what is wrong


def test_an_encoder_that_cannot_be_certified_is_an_error_before_any_sample():
    class Other(LinearGaussianVAE):
        mean_layers = property()

        def decode(self, z):
            raise AssertionError("sampled")

    with pytest.raises(TypeError, match="only such encoders can be certified"):
        certified_margin(Other(), uniform(1, 50), 1.0)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.full((1, 20), torch.nan)}, ValueError, "x must be finite"),
        ({"x": np.zeros((1, 20))}, TypeError, "x must be a tensor of floating point numbers"),
        ({"r": -1.0}, ValueError, "r must be finite and >= 0, but holds -1"),
        ({"r": torch.ones(3)}, ValueError, r"r must be one number or shape \(1,\)"),
        ({"samples": 0}, ValueError, "samples must be a whole number of at least 1"),
        ({"confidence": 1.0}, ValueError, "confidence must lie strictly between 0 and 1"),
        ({"confidence": 0.0}, ValueError, "confidence must lie strictly between 0 and 1"),
        ({"refine": -1}, ValueError, "refine must be a whole number of at least 0"),
    ],
)
def test_wrong_arguments_are_named(change, error, message):
    arguments = {"x": uniform(1, 20), "r": 1.0, "samples": 10} | change
    with pytest.raises(error, match=message):
        certified_margin(graded_model(), arguments.pop("x"), arguments.pop("r"), **arguments)
