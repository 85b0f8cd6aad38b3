"""The closed forms of the linear VAE against each other, and against the distributions they come from."""

from __future__ import annotations

import pytest
import torch
from conftest import ALARM
from scipy import stats

from vaerobust.linear import LinearGaussianVAE


def test_exact_probability_and_quantile_of_the_linear_model_agree(linear):
    for level in (0.1, 0.5, 0.9):
        assert linear.probability(linear.quantile(level)) == pytest.approx(level, rel=1e-9)  # scipy's root finding


def test_the_decoder_has_orthonormal_columns_and_sigma_is_constant(linear):
    """Orthonormal up to the rounding of their factorisation, a few times 1.1e-16 for each of up to 50 terms."""
    columns = linear.decoder.T @ linear.decoder
    torch.testing.assert_close(columns, torch.eye(linear.latents, dtype=torch.float64), rtol=0, atol=1e-14)
    sigma = linear.encode(torch.zeros(2, linear.weight.shape[1], dtype=torch.float64))[1]
    assert sigma.unique().tolist() == [linear.sigma]


def test_the_encoders_matrix_is_normal_and_depends_on_the_seed():
    one, again, other = (LinearGaussianVAE(40, 20, seed=seed).weight for seed in (3, 3, 4))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert stats.kstest((one * 40**0.5).flatten().numpy(), stats.norm.cdf).pvalue > ALARM
