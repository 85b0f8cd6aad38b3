"""The log-likelihood of an image under the embedding of a perturbed one, against its definition."""

from __future__ import annotations

import pytest
import torch
from conftest import DOUBLE, random_vae, seeded, uniform

from vaerobust.likelihood import log_likelihood


@pytest.mark.parametrize("likelihood", ["bernoulli", "continuous_bernoulli", "gaussian"])
@pytest.mark.parametrize("perturb_sigma", [False, True])
def test_log_likelihood_is_the_mean_over_the_embedding_of_the_perturbed_input(likelihood, perturb_sigma):
    vae = random_vae(likelihood=likelihood, gain=1.5)
    x, delta = uniform(2, 12), 0.3 * uniform(2, 12, seed=1)
    eta = torch.randn(400, 3, generator=seeded(1), dtype=torch.float64)
    mu, sigma = vae.encode(x + delta)
    sigma = sigma if perturb_sigma else vae.encode(x)[1]
    for i in range(2):
        z = mu[i] + sigma[i] * eta
        direct = torch.stack([vae.log_likelihood(x[i], one) for one in z]).mean()
        found = log_likelihood(vae, x, delta, samples=400, seed=1, perturb_sigma=perturb_sigma)[i]
        torch.testing.assert_close(found, direct, rtol=DOUBLE, atol=0)
