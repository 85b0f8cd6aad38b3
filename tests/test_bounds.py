"""Theorem 1, its two sharper relatives and Proposition 1: their formulas, and exact margins of linear VAEs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import ALARM, DOUBLE, LinearGaussianVAE, most_misses, random_vae, seeded, square_model, uniform
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from vaerobust import bounds, jacobians
from vaerobust.algorithms import minimum_r
from vaerobust.bounds import first_order_radii, half_space_shift, proposition_1, theorem_1, theorem_1_quotient
from vaerobust.distance import distances
from vaerobust.jacobians import decoder_jacobian, encoder_jacobian
from vaerobust.model import LIKELIHOODS

BOUNDS = {
    "theorem_1": lambda model, x, r: theorem_1(model, x, r, samples=50, seed=2),
    "first_order_radii": lambda model, x, r: first_order_radii(model, x, 0.5 + r.numpy() / 100),
    "proposition_1": lambda model, x, r: proposition_1(model, x),
}
"""Every bound of the module, by name, as a function of a model, points, and one r per point."""


def columns(found):
    """Return the tensors of a bound, each with one number per point."""
    return [found] if isinstance(found, torch.Tensor) else [v for v in vars(found).values() if torch.is_tensor(v)]


@pytest.mark.parametrize("name", BOUNDS)
def test_bounds_depend_neither_on_order_nor_on_company_nor_on_chunks(name, vae, monkeypatch):
    x = uniform(7, 12)
    r = minimum_r(vae, x, level=0.8, samples=500, seed=1).value
    every, order = torch.arange(7), torch.tensor([3, 0, 6, 5, 1, 4, 2])
    whole = columns(BOUNDS[name](vae, x, r))
    assert len(whole) == (1 if name == "proposition_1" else 3)
    for points in (order, every[2:3]):
        for found, expected in zip(columns(BOUNDS[name](vae, x[points], r[points])), whole, strict=True):
            torch.testing.assert_close(found, expected[points], rtol=DOUBLE, atol=0)
    for size in (1, 2, 7):
        monkeypatch.setattr(bounds, "POINTS", size)
        monkeypatch.setattr(jacobians, "POINTS", size)
        for found, expected in zip(columns(BOUNDS[name](vae, x, r)), whole, strict=True):
            torch.testing.assert_close(found, expected, rtol=DOUBLE, atol=0)


@pytest.mark.parametrize("name", BOUNDS)
def test_no_bound_carries_a_graph(name):
    vae = random_vae().requires_grad_(True)
    for found in columns(BOUNDS[name](vae, uniform(2, 12), torch.ones(2, dtype=torch.float64))):
        assert not found.requires_grad


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
    for bound, p in zip(columns(found), (robustness.probability, robustness.low, robustness.high), strict=True):
        assert bound.numpy() == pytest.approx(scale * stats.norm.ppf(p), rel=DOUBLE)
    assert ((found.low < found.radius) & (found.radius < found.high)).all()


def test_the_quotient_is_the_least_sigma_times_the_probit_over_the_norm():
    """Computed by hand with Phi^-1(0.975) = 1.959964. The quotient is 0 up to p = 1/2, even where the norm is 0."""
    sigma = torch.tensor([[0.3, 0.2], [0.1, 0.5], [1.0, 2.0]], dtype=torch.float64)
    norm = torch.tensor([2.0, 4.0, 0.0], dtype=torch.float64)
    found = theorem_1_quotient(sigma, norm, 0.975)
    assert found.tolist() == pytest.approx([0.1 * 1.959964, 0.025 * 1.959964, torch.inf], abs=1e-6)
    found = theorem_1_quotient(sigma, norm, np.array([0.5, 0.975, 0.3]))
    assert found.tolist() == pytest.approx([0.0, 0.025 * 1.959964, 0.0], abs=1e-6)


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
    """A linear encoder has no higher orders, so Theorem 1 holds without them. 1e-9 is the error of the root finding."""
    model = LinearGaussianVAE(latents + more, latents, sigma=sigma, seed=seed)
    r = model.quantile(level)
    assert 0 <= model.theorem_1(r) <= model.margin(r) * (1 + 1e-9)
    assert (model.margin(r) > 0) == (level > 0.5)


def test_the_bound_is_zero_where_half_of_the_samples_leave(linear):
    """At the 0.2 quantile, half of 2,000 samples lie within r with a probability far below ALARM."""
    x = uniform(2, linear.weight.shape[1])
    r = torch.tensor([0.0, linear.quantile(0.2)], dtype=torch.float64)
    found = theorem_1(linear, x, r, samples=2000, seed=0)
    for bound in columns(found):
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
    for bound in columns(found):
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


# sharper bounds by the same argument


def test_first_order_radii_are_ordered_and_are_their_formulas(vae):
    x, p = uniform(5, 12), np.array([0.3, 0.5, 0.7, 0.9, 0.999])
    found = first_order_radii(vae, x, p)
    sigma, jacobian = vae.encode(x)[1], encoder_jacobian(vae, x)
    shift = torch.as_tensor(np.maximum(stats.norm.ppf(p), 0))
    norms = (
        jacobian.pow(2).sum((1, 2)).sqrt() / sigma.min(1).values,
        torch.linalg.matrix_norm(jacobian, 2) / sigma.min(1).values,
        torch.linalg.matrix_norm(jacobian / sigma[:, :, None], 2),
    )
    for radii, norm in zip(columns(found), norms, strict=True):
        torch.testing.assert_close(radii, shift / norm, rtol=DOUBLE, atol=0)
    assert (found.frobenius <= found.spectral).all() and (found.spectral <= found.whitened * (1 + DOUBLE)).all()
    assert found.whitened[:2].tolist() == [0, 0]
