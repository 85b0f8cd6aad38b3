"""Jacobians against finite differences, Theorem 1 and Proposition 1 against the linear VAE."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import ALARM, DOUBLE, LinearGaussianVAE, most_misses, random_vae, seeded, square_model, uniform
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from vaerobust import bounds
from vaerobust.algorithms import minimum_r
from vaerobust.bounds import half_space_shift, proposition_1, theorem_1
from vaerobust.distance import distances
from vaerobust.jacobians import decoder_jacobian, encoder_jacobian, jacobian_norms
from vaerobust.model import LIKELIHOODS

STEP = 1e-6
DIFFERENCE = 1e-8
"""Error of a central difference with step 1e-6: rounding, a few dozen times 1.1e-16 / 1e-6, and the curvature of a
sigmoid of pre-activations whose slopes are below 100, 1e-12 * 100**3 / 6 / 10; both below 1e-8."""


def finite_differences(function, point):
    """Return the Jacobian at one point, by central differences; the one-sided ones must agree that there is no kink."""
    columns = []
    for j in range(len(point)):
        step = torch.zeros_like(point)
        step[j] = STEP
        ahead, here, behind = (function((point + sign * step)[None])[0] for sign in (1, 0, -1))
        forward, backward = (ahead - here) / STEP, (here - behind) / STEP
        torch.testing.assert_close(forward, backward, rtol=0, atol=1e-3)  # a kink would show as a difference of slopes
        columns.append((forward + backward) / 2)
    return torch.stack(columns, dim=1)


@pytest.mark.parametrize("seed", range(3))
def test_encoder_jacobian_is_that_of_finite_differences(seed):
    vae, x = random_vae(seed=seed), uniform(3, 12, seed=seed)
    found = encoder_jacobian(vae, x)
    assert found.shape == (3, 3, 12)
    for point, jacobian in zip(x, found, strict=True):
        assert float(jacobian.abs().max()) > 0.1
        torch.testing.assert_close(
            jacobian, finite_differences(lambda p: vae.encode(p)[0], point), rtol=0, atol=DIFFERENCE
        )


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_decoder_jacobian_is_that_of_finite_differences(likelihood):
    vae, z = random_vae(likelihood=likelihood), torch.randn(3, 3, generator=seeded(1), dtype=torch.float64)
    found = decoder_jacobian(vae, z)
    assert found.shape == (3, 12, 3)
    for point, jacobian in zip(z, found, strict=True):
        assert float(jacobian.abs().max()) > 0.01
        torch.testing.assert_close(jacobian, finite_differences(vae.decode, point), rtol=0, atol=DIFFERENCE)


def test_jacobians_of_the_linear_model_are_its_matrices(linear):
    x = uniform(2, linear.weight.shape[1])
    for jacobian in encoder_jacobian(linear, x):
        assert torch.equal(jacobian, linear.weight)
    for jacobian in decoder_jacobian(linear, linear.encode(x)[0]):
        assert torch.equal(jacobian, linear.decoder)


@pytest.mark.parametrize("shape", [(12, 3), (3, 12), (1, 1)], ids=["d_x > d_z", "d_x < d_z", "one each"])
def test_norms_are_those_of_torch(shape):
    pixels, latents = shape
    vae, x = random_vae(pixels, 16, latents), uniform(5, pixels)
    found = jacobian_norms(vae, x)
    jacobian = encoder_jacobian(vae, x)
    torch.testing.assert_close(found.frobenius, torch.linalg.matrix_norm(jacobian), rtol=DOUBLE, atol=0)
    torch.testing.assert_close(found.spectral, torch.linalg.matrix_norm(jacobian, 2), rtol=DOUBLE, atol=0)
    assert (found.spectral <= found.frobenius * (1 + DOUBLE)).all()


@pytest.mark.parametrize("name", ["jacobian_norms", "proposition_1", "theorem_1"])
def test_bounds_depend_neither_on_order_nor_on_company_nor_on_chunks(name, vae, monkeypatch):
    x = uniform(7, 12)
    r = minimum_r(vae, x, level=0.8, samples=500, seed=1).value

    def compute(points):
        if name == "theorem_1":
            return theorem_1(vae, x[points], r[points], samples=50, seed=2)[:3]
        found = getattr(bounds, name)(vae, x[points])
        return found if isinstance(found, tuple) else (found,)

    every, order = torch.arange(7), torch.tensor([3, 0, 6, 5, 1, 4, 2])
    whole = compute(every)
    for points in (order, every[2:3]):
        for found, expected in zip(compute(points), whole, strict=True):
            torch.testing.assert_close(found, expected[points], rtol=DOUBLE, atol=0)
    for size in (1, 2, 7):
        monkeypatch.setattr(bounds, "POINTS", size)
        for found, expected in zip(compute(every), whole, strict=True):
            torch.testing.assert_close(found, expected, rtol=DOUBLE, atol=0)


def test_no_result_carries_a_graph():
    vae = random_vae().requires_grad_(True)
    x = uniform(2, 12)
    for found in (encoder_jacobian(vae, x), decoder_jacobian(vae, vae.encode(x)[0].detach()), proposition_1(vae, x)):
        assert not found.requires_grad
    assert not theorem_1(vae, x, 1.0, samples=10).radius.requires_grad


# Theorem 1


def test_half_space_shift_is_the_probit_and_zero_up_to_one_half():
    p = np.array([0.0, 0.2, 0.5, 0.6, 0.9, 1.0])
    assert np.array_equal(half_space_shift(p), [0, 0, 0, stats.norm.ppf(0.6), stats.norm.ppf(0.9), np.inf])
    assert half_space_shift(0.975) == pytest.approx(1.959964, abs=1e-6)  # the known two-sided 5% point
    for wrong in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match=rf"probability must lie in \[0, 1\].*{wrong}"):
            half_space_shift([0.5, wrong])


def test_theorem_1_is_its_formula(linear):
    x = uniform(2, linear.weight.shape[1])
    found = theorem_1(linear, x, linear.quantile(0.9), samples=500, seed=0)
    scale = linear.sigma / float(torch.linalg.matrix_norm(linear.weight))
    robustness = found.robustness
    for bound, p in zip(found[:3], (robustness.probability, robustness.low, robustness.high), strict=True):
        assert bound.numpy() == pytest.approx(scale * stats.norm.ppf(p), rel=DOUBLE)
    assert ((found.low < found.radius) & (found.radius < found.high)).all()


def test_theorem_1_takes_the_least_sigma_and_the_jacobian_of_each_point(vae):
    x = uniform(4, 12)
    r = minimum_r(vae, x, level=0.8, samples=500, seed=1).value
    found = theorem_1(vae, x, r, samples=500, seed=2)
    for i in range(4):
        sigma, jacobian = vae.encode(x[i : i + 1])[1].min(), encoder_jacobian(vae, x[i : i + 1])[0]
        direct = float(sigma / jacobian.pow(2).sum().sqrt()) * stats.norm.ppf(found.robustness.probability[i])
        assert float(found.radius[i]) == pytest.approx(direct, rel=DOUBLE)


def test_theorem_1_interval_covers_the_exact_bound(linear):
    x, r = uniform(1, linear.weight.shape[1]), linear.quantile(0.8)
    generator, exact = seeded(1), linear.theorem_1(r)
    found = [theorem_1(linear, x, r, samples=80, seed=generator, confidence=0.8) for _ in range(300)]
    assert sum(float(one.low) > exact for one in found) <= most_misses(300, 0.1)
    assert sum(float(one.high) < exact for one in found) <= most_misses(300, 0.1)


@given(
    st.integers(1, 30),
    st.integers(0, 20),
    st.floats(0.01, 0.9999).filter(lambda level: abs(level - 0.5) > 1e-9),
    st.floats(1e-3, 10.0),
    st.integers(0, 99),
)
def test_theorem_1_is_below_the_exact_margin(latents, more, level, sigma, seed):
    """The encoder is linear, so there are no higher orders: Theorem 1 holds as it stands; 1e-9 for root finding."""
    model = LinearGaussianVAE(latents + more, latents, sigma=sigma, seed=seed)
    r = model.quantile(level)
    assert 0 <= model.theorem_1(r) <= model.margin(r) * (1 + 1e-9)
    assert (model.margin(r) > 0) == (level > 0.5)


def test_the_bound_is_zero_where_half_of_the_samples_leave(linear):
    """At the 0.2 quantile 2,000 samples put half within r with a probability far below ALARM."""
    x = uniform(2, linear.weight.shape[1])
    r = torch.tensor([0.0, linear.quantile(0.2)], dtype=torch.float64)
    found = theorem_1(linear, x, r, samples=2000, seed=0)
    for bound in found[:3]:
        assert bound.tolist() == [0.0, 0.0]
    for small in (0.0, linear.quantile(0.2), linear.quantile(0.4999)):
        assert linear.margin(small) == linear.theorem_1(small) == 0.0


def test_with_every_sample_within_the_lower_limit_stays_finite(linear):
    x = uniform(1, linear.weight.shape[1])
    found = theorem_1(linear, x, 100 * linear.sigma, samples=100, seed=0)
    assert found.radius == found.high == torch.inf
    scale = linear.sigma / float(torch.linalg.matrix_norm(linear.weight))
    assert float(found.low) == pytest.approx(scale * stats.norm.ppf(0.025 ** (1 / 100)), rel=DOUBLE)


def test_a_constant_encoder_has_an_infinite_bound_or_none():
    model = square_model(gain=0.0)
    r = torch.tensor([model.quantile(0.1), model.quantile(0.9)], dtype=torch.float64)
    found = theorem_1(model, uniform(2, 4), r, samples=500, seed=0)
    for bound in found[:3]:
        assert bound.tolist() == [0.0, torch.inf]


# Proposition 1


def test_proposition_1_on_the_linear_model_is_exact_and_sufficient(linear):
    x = uniform(3, linear.weight.shape[1])
    found = proposition_1(linear, x)
    # orthonormal columns are so up to the rounding of their factorisation
    torch.testing.assert_close(found, torch.full_like(found, linear.proposition_1()), rtol=DOUBLE, atol=0)
    assert linear.probability(float(found[0])) > 0.5
    assert linear.quantile(0.5) < linear.proposition_1()  # so it is not necessary


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_proposition_1_is_twice_the_trace_of_the_covariance(likelihood):
    vae, x = random_vae(likelihood=likelihood), uniform(3, 12)
    mu, sigma = vae.encode(x)
    for found, jacobian, s in zip(proposition_1(vae, x), decoder_jacobian(vae, mu), sigma, strict=True):
        covariance = jacobian @ torch.diag(s**2) @ jacobian.T
        torch.testing.assert_close(found**2, 2 * covariance.trace(), rtol=DOUBLE, atol=0)


def test_the_trace_is_the_mean_square_distance_for_a_small_sigma():
    """A sum of squares of normals has a variance of at most 2 trace^2, which limits the error of a mean.

    Sigma is small enough, 1e-5, that a sample in 20,000 crosses a kink of the decoder once in a while at most, and then
    changes D^2 by less than the limit.
    """
    vae, x = random_vae(gain=2.0), uniform(2, 12)
    vae.encoder_sigma[-1].bias -= 11.5
    vae.encoder_sigma[-1].weight *= 0.01
    samples = 20_000
    mean_square = distances(vae, x, samples=samples, seed=0).pow(2).mean(1)
    error = -stats.norm.ppf(ALARM / 2) * (2 / samples) ** 0.5
    torch.testing.assert_close(2 * mean_square, proposition_1(vae, x) ** 2, rtol=error, atol=0)
