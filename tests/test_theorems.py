"""Statements of the book that no function of the package is, checked by closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats

ROUNDING = 1e-9
"""Of scipy's distribution functions, which state fewer digits than double precision has."""


@given(st.integers(1, 30), st.floats(0.001, 0.999), st.floats(0.0, 6.0))
def test_a_half_space_loses_most_by_a_shift(latents, p, shift):
    """Balls and their complements, whose probabilities are known, keep at least what a half-space of equal p keeps."""
    least = stats.norm.cdf(stats.norm.ppf(p) - shift)
    inside, outside = stats.chi2.ppf(p, latents), stats.chi2.isf(p, latents)
    assert stats.ncx2.cdf(inside, latents, shift**2) >= least - ROUNDING
    assert stats.ncx2.sf(outside, latents, shift**2) >= least - ROUNDING


@given(st.integers(1, 30), st.floats(0.001, 0.999), st.floats(0.0, 6.0))
def test_half_space_itself_loses_exactly_that(latents, p, shift):
    """Whichever way it faces: sigma is arbitrary, and the half-space is orthogonal to the whitened shift."""
    rng = np.random.default_rng(latents)
    sigma, direction = rng.uniform(0.1, 2.0, latents), rng.normal(size=latents)
    moved = shift * sigma * direction / np.linalg.norm(direction)
    normal = moved / sigma**2  # A = {z: normal . z <= edge}
    spread = np.linalg.norm(normal * sigma)
    if spread > 0:
        edge = spread * stats.norm.ppf(p)
        kept = stats.norm.cdf((edge - normal @ moved) / spread)
        assert kept == pytest.approx(stats.norm.cdf(stats.norm.ppf(p) - np.linalg.norm(moved / sigma)), abs=ROUNDING)


@given(st.floats(0.05, 20.0), st.integers(2, 40), st.integers(0, 99))
def test_the_tempered_posterior_is_optimal(beta, states, seed):
    """Theorem 2 with a latent of finitely many states, where integrals are sums: any prior, likelihood and rival."""
    rng = np.random.default_rng(seed)
    prior, rival = rng.dirichlet(np.ones(states), size=2)
    log_p = rng.normal(scale=3.0, size=states)

    def objective(q):
        return q @ log_p - beta * (special.xlogy(q, q).sum() - q @ np.log(prior))

    log_weight = np.log(prior) + log_p / beta
    log_z = np.logaddexp.reduce(log_weight)
    tempered, log_tempered = np.exp(log_weight - log_z), log_weight - log_z
    divergence = rival @ (np.log(rival) - log_tempered)
    assert objective(tempered) == pytest.approx(beta * log_z, rel=ROUNDING, abs=ROUNDING)
    assert objective(rival) == pytest.approx(beta * log_z - beta * divergence, rel=ROUNDING, abs=ROUNDING)
    assert objective(rival) <= objective(tempered) + ROUNDING
