"""Certified margins: coverage of exact margins, dependence on the arguments, and the certified r."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ALARM, DOUBLE, graded_model, most_misses, random_vae, seeded, square_model, uniform
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from vaerobust.bounds import half_space_shift
from vaerobust.certify import certificates
from vaerobust.certify import failures as failures_module
from vaerobust.certify.certificates import certified_margin, certified_r, certify
from vaerobust.certify.encoder_shift import shift_metric
from vaerobust.certify.failures import BANDS, Failures, failures
from vaerobust.distance import distances
from vaerobust.linear import LinearGaussianVAE
from vaerobust.model import mean_layers

PHI, DENSITY = stats.norm.cdf, stats.norm.pdf

# the radius that the safe shifts allow


@given(st.integers(1, 5), st.integers(0, 999))
def test_the_allowed_radius_keeps_every_band_within_its_safe_shift(latents, seed):
    """R^2 a' W a <= T_j^2 for 300 random directions and for the axes of both metrics, up to rounding."""
    generator = seeded(seed)
    root = torch.randn(2, latents, latents, generator=generator, dtype=torch.float64)
    still = root[:1] @ root[:1].mT
    moving = still + 0.3 * root[1:] @ root[1:].mT
    scaled = still / torch.linalg.eigvalsh(still)[0, -1]
    safe = 1 + torch.rand(1, len(BANDS), generator=generator, dtype=torch.float64)
    radius = float(certificates._radius_by_bands(moving, scaled, safe))
    axes = [torch.linalg.eigh(one[0]).eigenvectors.T for one in (still, moving)]
    a = torch.cat([torch.randn(300, latents, generator=generator, dtype=torch.float64), *axes])
    a = a / a.norm(dim=1, keepdim=True)
    reach = torch.einsum("di,ij,dj->d", a, scaled[0], a).clamp(max=1)
    moved = radius * torch.einsum("di,ij,dj->d", a, moving[0], a).sqrt()
    for lower in (0, DOUBLE):  # rounding may put the furthest direction into the band below the last one
        band = torch.searchsorted(BANDS**2, (reach - lower).clamp(min=0), right=True) - 1
        assert (moved <= safe[0, band] * (1 + DOUBLE)).all() or lower == 0
    one = float(certificates._radius_by_half_space(moving, safe[:, 0]))
    assert one == pytest.approx(float(safe[0, 0] / torch.linalg.eigvalsh(moving)[0, -1].sqrt()), rel=DOUBLE)
    assert float(certificates._radius_by_bands(moving * torch.inf, scaled, safe)) == 0
    assert float(certificates._radius_by_half_space(moving * torch.inf, safe[:, 0])) == 0


# certificates


class OneSidedVAE(LinearGaussianVAE):
    """One latent and g(z) = relu(z): the noise that fails at x = 0 is a half-space, the worst set of its mass."""

    def __init__(self):
        super().__init__(3, 1, sigma=0.5)

    def decode(self, z):
        return torch.nn.functional.pad(z.clamp(min=0), (0, 2))  # as wide as the inputs

    def one_sided_margin(self, level):
        return self.sigma * stats.norm.ppf(level) / float(self.weight.norm())

    def one_sided_r(self, level):
        return self.sigma * stats.norm.ppf(level)


def independent(model, x, r, samples, runs, seed=0):
    """Return the point and its failures in many independent runs: one call per run, since a call shares its noise."""
    found = [failures(model, x, [r], samples=samples, seed=seeded(seed + run))[0] for run in range(runs)]
    names = ("number", "first", "second")
    together = Failures(*(torch.cat([getattr(one, name) for one in found]) for name in names), samples)
    return x.repeat(runs, 1), together


def test_coverage_where_the_half_space_lemma_is_sharp(monkeypatch):
    """The half-space radius is wrong no more often than p_low, in alpha / 3 of the runs; ``radius`` in alpha of them.

    With the estimate of p in place of its limit, half of the runs would be wrong, so the test can fail.
    """
    for module in (failures_module, certificates):  # one latent has one direction
        monkeypatch.setattr(module, "BANDS", torch.tensor([0.0, 1.0]).double())
    model, level, alpha, runs, samples = OneSidedVAE(), 0.8, 0.3, 300, 300
    exact, r = model.one_sided_margin(level), model.one_sided_r(level)
    x, found = independent(model, torch.zeros(1, 3, dtype=torch.float64), r, samples, runs)
    certificate = certify(model, x, found, confidence=1 - alpha)
    wrong = int((certificate.half_space > exact).sum())
    assert wrong <= int((certificate.p_low > level).sum()) <= most_misses(runs, alpha / 3)
    assert int((certificate.radius > exact).sum()) <= most_misses(runs, alpha)
    estimate = half_space_shift(1 - found.number.numpy() / samples) * exact / stats.norm.ppf(level)
    assert (estimate > exact).sum() > most_misses(runs, alpha)
    # p_low is wrong nearly as often as it may be. It moves in steps of one sample, and one count of failures has a
    # probability of up to 1 / sqrt(2 pi 300 0.16) = 0.06
    assert int((certificate.p_low > level).sum()) >= 1


@pytest.mark.parametrize(("pixels", "latents", "sigma"), [(6, 1, 0.3), (8, 3, 1.0), (30, 10, 0.1)])
def test_coverage_on_linear_models(pixels, latents, sigma):
    """Of the exact margin, in independent runs; with 10 latents the certificate clearly exceeds the half-space's."""
    model, alpha, runs = LinearGaussianVAE(pixels, latents, sigma=sigma, seed=3), 0.1, 40
    r = model.quantile(0.8)
    x, found = independent(model, uniform(1, pixels), r, 1000, runs)
    certificate = certify(model, x, found, confidence=1 - alpha)
    assert int((certificate.radius > model.margin(r)).sum()) <= most_misses(runs, alpha)
    assert (certificate.radius >= certificate.half_space).all() and (certificate.half_space > 0).all()
    if latents == 10:
        assert certificate.radius.mean() > 1.05 * certificate.half_space.mean()


class CurvedVAE:
    """A ReLU encoder from two pixels to two latents with unequal sigma; g(z) = (z_1, 0.4 z_2), so D has a known law."""

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
        """Return P(D <= r) at whitened shifts (..., 2): an integral over the first coordinate, by Gauss quadrature."""
        nodes, weights = np.polynomial.legendre.leggauss(40)
        angle = nodes * np.pi / 2
        wide, high = (float(r) / (self.gains * self.sigma)).tolist()
        one, two = wide * np.sin(angle), high * np.cos(angle)
        u = u.numpy()[..., None]
        inside = PHI(two - u[..., 1, :]) - PHI(-two - u[..., 1, :])
        return (weights * np.pi / 2 * wide * np.cos(angle) * DENSITY(one - u[..., 0, :]) * inside).sum(-1)

    def margin(self, x, r):
        """Return the length of the shortest perturbation on a polar grid that breaks r-robustness, which is >= R*."""
        angle = torch.linspace(0, 2 * math.pi, 121, dtype=torch.float64)[:-1]
        length = torch.logspace(-2, 1, 200, dtype=torch.float64)
        delta = length[:, None, None] * torch.stack([angle.cos(), angle.sin()], 1)
        u = (self.mean((x + delta).flatten(0, 1)) - self.mean(x)).unflatten(0, delta.shape[:2]) / self.sigma
        broken = (self.probability(u, r) <= 0.5).any(1)
        return float(length[broken.argmax()])


@pytest.mark.parametrize("seed", range(3))
def test_coverage_on_a_curved_encoder(seed):
    """The exact margin is found on a grid of 120 directions, in steps of 3.5%, so it is never too short."""
    model, alpha, runs = CurvedVAE(seed), 0.1, 40
    x = uniform(1, 2, seed=seed)
    r = float(distances(model, x, samples=4000, seed=1).quantile(0.85))
    exact = model.margin(x, r)
    with_noise = (distances(model, x, samples=40_000, seed=2) <= r).double().mean()
    # More than three standard errors of 40,000 samples with p = 0.85: the integral agrees with the model
    assert abs(float(with_noise) - model.probability(torch.zeros(1, 2), r)[0]) < 0.01
    x, found = independent(model, x, r, 2000, runs)
    certificate = certify(model, x, found, confidence=1 - alpha, refine=2)
    assert int((certificate.radius > exact).sum()) <= most_misses(runs, alpha)
    assert certificate.radius.min() > 0.2 * exact  # the claim is not empty


def test_coverage_fails_for_radii_twice_as_long():
    """The tests of coverage can fail."""
    model, r = LinearGaussianVAE(8, 3, seed=3), LinearGaussianVAE(8, 3, seed=3).quantile(0.8)
    x, found = independent(model, uniform(1, 8), r, 1000, 20)
    assert int((2 * certify(model, x, found, confidence=0.9).radius > model.margin(r)).sum()) > most_misses(20, 0.1)


# how certificates depend on the arguments


@pytest.fixture(scope="module")
def judged():
    """A model, points, three values of r, and the failures at each of them in the same samples."""
    vae, x = random_vae(12, 16, 3), uniform(3, 12)
    d = distances(vae, x, samples=2000, seed=1)
    r = [d.quantile(level, dim=1) for level in (0.7, 0.9, 0.99)]
    return vae, x, r, failures(vae, x, r, samples=5000, seed=2)


def test_less_confidence_and_a_larger_r_certify_more(judged):
    """Up to 2% for ``radius``: the march may lose 0.01 of a shift of 0.5 or more. The half-space's radius is exact."""
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
        certify(vae, x, replace(one, number=times * one.number, samples=times * one.samples), refine=0)
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
    """If all of 10 are within r, the limit is P > (share alpha / 3)^(1 / 10): 0.44 at alpha = 0.001, 0.70 at 0.1.

    The share of alpha is what wider draws leave of it.
    """
    vae, x, _, _ = judged
    share = 1 - certificates.FAR_SHARE
    for confidence, low in ((0.999, (share * 0.001 / 3) ** 0.1), (0.9, (share * 0.1 / 3) ** 0.1)):
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
    """W is exact there and does not depend on the radius, so the search loses nothing."""
    r = graded.quantile(0.9)
    found = certified_margin(graded, uniform(2, 20), r, samples=5000, seed=0)
    for radius, p in zip(found.half_space.tolist(), found.p_low, strict=True):
        assert radius == pytest.approx(graded.sigma * stats.norm.ppf(p), rel=1e-9)  # ||A||_2 = 1
    assert (found.radius > 1.02 * found.half_space).all()


def test_the_encoder_is_bounded_over_the_certified_ball(judged):
    """The W of the certified ball, computed anew, keeps the shift within the half-space's safe one.

    Up to 1%: the search used the W of a slightly larger ball, whose descent has ended elsewhere.
    """
    vae, x, _, found = judged
    layers, sigma = mean_layers(vae, x), vae.encode(x)[1]
    for one in found:
        certificate = certify(vae, x, one)
        top = torch.linalg.eigvalsh(shift_metric(layers, sigma, x, certificate.half_space, refine=6))[:, -1]
        shift, safe = certificate.half_space * top.sqrt(), torch.as_tensor(half_space_shift(certificate.p_low))
        assert (shift <= 1.01 * safe).all()
        assert (shift >= 0.7 * safe).all()  # the larger ball does not lose much
        still = torch.linalg.eigvalsh(shift_metric(layers, sigma, x, 0.0))[:, -1]
        assert (top / still).max() > 1.1  # with the Jacobian alone the first assertion would fail


def test_radii_are_never_rounded_up():
    """In single precision a radius is the next number at or below that in double precision, 1.2e-7 of it at most."""
    model = LinearGaussianVAE(20, 4, sigma=0.125)
    x = uniform(1, 20)
    for level in np.linspace(0.7, 0.99, 8):
        (found,) = failures(model, x, [model.quantile(level)], samples=1000, seed=0)
        double, single = certify(model, x, found), certify(model, x.float(), found)
        assert single.radius.dtype == single.half_space.dtype == torch.float32
        for name in ("radius", "half_space"):
            exact, rounded = float(getattr(double, name)), float(getattr(single, name))
            assert (1 - 1.2e-7) * exact <= rounded <= exact


ROUNDING = 1e-4
"""Relative error of a radius from rounding. Batched products round differently in other batches and on other numbers of
threads, and the descent in single precision may end at slightly different multipliers."""


def test_a_certificate_is_the_same_in_any_order_and_any_split_of_a_batch(judged):
    vae, x, r, _ = judged
    whole = certified_margin(vae, x, r[1], samples=1000, seed=0)
    for points in (torch.tensor([2, 0, 1]), torch.tensor([1]), torch.tensor([0, 2])):
        found = certified_margin(vae, x[points], r[1][points], samples=1000, seed=0)
        torch.testing.assert_close(found.radius, whole.radius[points], rtol=ROUNDING, atol=0)
        torch.testing.assert_close(found.half_space, whole.half_space[points], rtol=ROUNDING, atol=0)
        assert np.array_equal(found.p_low, whole.p_low[points.numpy()])


def test_a_certificate_is_the_same_on_one_thread_and_two_in_any_split_of_a_batch():
    """A batch on one thread, one of its points alone on two: so many samples that torch does use both threads."""
    vae, x = random_vae(40, 64, 4), uniform(3, 40)
    r = distances(vae, x, samples=1000, seed=1).quantile(0.9, dim=1)
    whole = certified_margin(vae, x, r, samples=4000, seed=0, refine=3)
    assert (whole.radius > 0).all()
    try:
        torch.set_num_threads(2)
        alone = certified_margin(vae, x[1:2], r[1:2], samples=4000, seed=0, refine=3)
    finally:
        torch.set_num_threads(1)
    torch.testing.assert_close(alone.radius, whole.radius[1:2], rtol=ROUNDING, atol=0)
    torch.testing.assert_close(alone.half_space, whole.half_space[1:2], rtol=ROUNDING, atol=0)
    assert np.array_equal(alone.p_low, whole.p_low[1:2])


# the certified r: the certificate read the other way round


def test_the_certified_r_lies_between_the_quantiles_that_its_order_statistic_allows():
    """The quantiles of D at Phi(R ||A|| / s) are exact for the linear model; above them, r-robustness holds up to R."""
    model, samples, confidence = LinearGaussianVAE(20, 3, seed=1), 4000, 1 - 1e-6
    norm = float(torch.linalg.matrix_norm(model.weight, 2))
    shifts = np.array([0.0, 0.5, 1.0, 2.0])
    radii = (shifts * model.sigma / norm).tolist()
    found = certified_r(
        model, uniform(2, 20), radii, samples=samples, seed=0, confidence=confidence
    )  # fmt: skip
    assert found.shape == (4, 2)
    for radius, shift, (r, same) in zip(radii, shifts, found.tolist(), strict=True):
        assert r == pytest.approx(same, rel=DOUBLE)  # the law of D does not depend on x
        assert r >= model.quantile(float(PHI(shift)))
        # the rank is that of the confidence, and it is also an upper limit at a level this much higher
        rank = stats.binom.ppf(confidence, samples, PHI(shift)) + 1
        assert r <= model.quantile(float(stats.beta.isf(ALARM, rank, samples - rank + 1)))
        assert model.margin(r * (1 + 1e-9)) >= radius


def test_the_certified_r_is_wrong_as_seldom_as_it_says():
    """It lies below its quantile of D in at most alpha of the runs, by the law of order statistics."""
    model, alpha, runs = LinearGaussianVAE(6, 2, sigma=0.3, seed=2), 0.3, 300
    radius = 0.7 * model.sigma / float(torch.linalg.matrix_norm(model.weight, 2))
    quantile = model.quantile(float(PHI(0.7)))
    wrong = sum(
        float(certified_r(model, uniform(1, 6), [radius], samples=200, seed=run, confidence=1 - alpha, refine=0))
        < quantile
        for run in range(runs)
    )
    assert 0 < wrong <= most_misses(runs, alpha)
    assert wrong > runs * alpha / 2  # and not much less often


def test_both_readings_of_the_half_space_lemma_agree(judged):
    """The certified r of a certificate's own radius is about its r; the two have different samples and errors."""
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
    few = certified_r(vae, x, radii, samples=8, seed=0)  # 2^-8 is more than alpha = 0.001
    assert torch.isinf(few).all()
    assert certified_r(vae, x, [], samples=8).shape == (0, 3)


def test_the_certified_r_is_the_same_in_any_split_of_a_batch(judged, monkeypatch):
    """Up to rounding, which may move the rank by one: r is the distance of some sample, and the next one is close."""
    vae, x, _, _ = judged
    radii = [0.0, 0.02, 0.05]
    whole = certified_r(vae, x, radii, samples=2000, seed=0)
    alone = torch.cat([certified_r(vae, x[[i]], radii, samples=2000, seed=0) for i in range(3)], 1)
    torch.testing.assert_close(alone, whole, rtol=0.01, atol=0)
    torch.testing.assert_close(alone[0], whole[0], rtol=DOUBLE, atol=0)
    monkeypatch.setattr(certificates, "KEPT", 2000)
    blocks = certified_r(vae, x, radii, samples=2000, seed=0)
    torch.testing.assert_close(blocks, whole, rtol=DOUBLE, atol=0)


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


# errors


def test_an_encoder_that_cannot_be_certified_is_an_error_before_any_sample():
    class Other(LinearGaussianVAE):
        mean_layers = property()

        def encode(self, x):
            mu, sigma = super().encode(x)
            return mu.cumsum(1), sigma

        def decode(self, z):
            raise AssertionError("sampled")

    with pytest.raises(TypeError, match="uses cumsum, which is not supported"):
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


def without_biases(vae):
    """Return the network with biases of 0: all units of its encoder have their kinks at x = 0."""
    for layer in (vae.encoder_shared, *vae.encoder_mu):
        if hasattr(layer, "bias"):
            layer.bias.data.zero_()
    return vae


def test_kinks_at_a_point_certify_nothing_there_and_leave_the_other_points_alone():
    vae, x = without_biases(random_vae(12, 16, 3)), torch.cat([torch.zeros(1, 12).double(), uniform(2, 12)])
    found = certified_margin(vae, x, 1.0, samples=500)
    alone = certified_margin(vae, x[1:], 1.0, samples=500)
    assert found.radius[0] == found.half_space[0] == 0 and found.p_low[0] > 0.5
    torch.testing.assert_close(found.radius[1:], alone.radius, rtol=ROUNDING, atol=0)
    assert (alone.radius > 0).all()


def test_at_radius_0_the_certified_r_needs_no_bound_on_the_encoder():
    vae, x = without_biases(random_vae(12, 16, 3)), torch.zeros(1, 12).double()
    still, moved = certified_r(vae, x, [0.0, 0.01], samples=500)[:, 0].tolist()
    assert distances(vae, x, samples=500).median() <= still < math.inf == moved
