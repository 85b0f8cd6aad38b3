"""The network of Appendix F, its likelihoods against torch's distributions, and the layers of encoders."""

from __future__ import annotations

import mpmath
import pytest
import torch
from conftest import DOUBLE, follows, random_vae, seeded, uniform
from scipy import stats
from torch import distributions

from vaerobust.model import (
    LIKELIHOODS,
    VAE,
    continuous_bernoulli_log_normaliser,
    continuous_bernoulli_mean,
    elbo_terms,
    kl_to_prior,
    mean_layers,
)

APPENDIX_F = {
    "encoder_shared": [(784, 400)],
    "encoder_mu": [(400, 400), (400, 20)],
    "encoder_sigma": [(400, 400), (400, 20)],
    "decoder": [(20, 400), (400, 400), (400, 784)],
}
"""Widths of the inputs and outputs of each layer."""

LOGITS = torch.tensor(
    [-800.0, -90.0, -3.0, -0.3, -0.051, -0.05, -0.04, -1e-3, -1e-9, 0.0, 1e-9, 1e-3, 0.04, 0.05, 0.051, 0.7, 90, 800],
    dtype=torch.float64,
)  # fmt: skip


def test_the_network_is_that_of_appendix_f():
    vae = VAE()
    weights = {name: [tuple(p.shape) for p in getattr(vae, name).parameters() if p.ndim == 2] for name in APPENDIX_F}
    assert weights == {name: [(fan_out, fan_in) for fan_in, fan_out in layers] for name, layers in APPENDIX_F.items()}
    layers = [layer for group in APPENDIX_F.values() for layer in group]
    assert sum(p.numel() for p in vae.parameters()) == sum((a + 1) * b for a, b in layers) == 1_134_024
    # a ReLU between each two layers, and nothing else that could depend on a mode
    kinds = {type(module) for module in vae.modules()}
    assert kinds == {VAE, torch.nn.Sequential, torch.nn.Linear, torch.nn.ReLU}
    relus = {name: sum(isinstance(m, torch.nn.ReLU) for m in getattr(vae, name).modules()) for name in APPENDIX_F}
    assert relus == {"encoder_shared": 0, "encoder_mu": 1, "encoder_sigma": 1, "decoder": 2}


def test_the_encoder_is_written_out():
    vae, x = random_vae(tau=0.3), uniform(4, 12)
    shared = (vae.encoder_shared.weight @ x.T).T + vae.encoder_shared.bias
    heads = []
    for head in (vae.encoder_mu, vae.encoder_sigma):
        hidden = (shared.clamp(min=0) @ head[0].weight.T + head[0].bias).clamp(min=0)
        heads.append(hidden @ head[2].weight.T + head[2].bias)
    mu, sigma = vae.encode(x)
    torch.testing.assert_close(mu, heads[0], rtol=DOUBLE, atol=DOUBLE)
    torch.testing.assert_close(sigma, torch.log1p(heads[1].exp()) + 0.3, rtol=DOUBLE, atol=0)


@pytest.mark.parametrize("tau", [0.1, 1.0])
def test_tau_is_an_offset_of_sigma_and_of_nothing_else(tau):
    plain, offset = random_vae(), random_vae(tau=tau)
    x = uniform(5, 12)
    (mu, sigma), (mu_offset, sigma_offset) = plain.encode(x), offset.encode(x)
    assert torch.equal(mu_offset, mu)
    assert torch.equal(sigma_offset, sigma + tau)
    assert torch.equal(offset.decode(mu), plain.decode(mu))
    assert (sigma > 0).all()


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("lead", [(), (3,), (2, 3)])
def test_shapes_keep_their_leading_dimensions(likelihood, lead):
    vae, x = random_vae(likelihood=likelihood), uniform(*lead, 12)
    mu, sigma = vae.encode(x)
    assert mu.shape == sigma.shape == (*lead, 3)
    assert vae.decode(mu).shape == (*lead, 12)
    assert vae.log_likelihood(x, mu).shape == lead
    assert vae.log_likelihood(x, mu.expand(5, *lead, 3)).shape == (5, *lead)
    assert kl_to_prior(mu, sigma).shape == lead


def test_images_of_another_size_are_named():
    with pytest.raises(ValueError, match=r"x must have shape \(..., 784\), but has \(2, 785\)"):
        VAE().encode(torch.zeros(2, 785))


# likelihoods


def law(vae, z):
    """Return torch's distribution p(x|z)."""
    out = vae.decoder(z)
    return {
        "bernoulli": lambda: distributions.Bernoulli(logits=out),
        "continuous_bernoulli": lambda: distributions.ContinuousBernoulli(logits=out),
        "gaussian": lambda: distributions.Normal(out, 1.0),
    }[vae.likelihood]()


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_log_likelihood_and_mean_are_those_of_torch(likelihood):
    """Torch clamps probabilities to within 2.2e-16 of 0 and 1, so logits stay below 30 here."""
    vae, z = random_vae(likelihood=likelihood), torch.randn(50, 3, generator=seeded(1), dtype=torch.float64)
    assert 2 < float(vae.decoder(z).abs().max()) < 30
    x = uniform(50, 12)
    x = x.round() if likelihood == "bernoulli" else x
    # torch's own formulas for the continuous Bernoulli lose digits near p = 1/2: up to 1e-16 / 0.001**2
    error = 1e-9 if likelihood == "continuous_bernoulli" else DOUBLE
    # and our series next to 0 leaves out terms of 7 u**4 / 1440 and u**3 / 720 a pixel, at most 3.1e-8 and 1.8e-7
    series = 12 * 3.1e-8 if likelihood == "continuous_bernoulli" else 0.0
    found = vae.log_likelihood(x, z)
    torch.testing.assert_close(found, law(vae, z).log_prob(x).sum(-1), rtol=error, atol=series)
    torch.testing.assert_close(vae.decode(z), law(vae, z).mean, rtol=error, atol=series / 12 * 6)


def test_grey_pixels_have_the_bernoulli_cross_entropy():
    vae, z, x = random_vae(), torch.randn(20, 3, generator=seeded(1), dtype=torch.float64), uniform(20, 12)
    p = vae.decode(z)
    direct = (x * p.log() + (1 - x) * (1 - p).log()).sum(-1)
    torch.testing.assert_close(vae.log_likelihood(x, z), direct, rtol=1e-9, atol=0)  # 1 - p loses digits next to p = 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_continuous_bernoulli_matches_its_definition_at_all_logits(dtype):
    """Compared with log C and the mean in 60 digits, up to the rounding of the type.

    Next to 0 the series leave out 7 u**4 / 1440 <= 3.1e-8 and u**3 / 720 <= 1.8e-7; above it 1 / (2 tanh) and 1 / u,
    both up to 20, cancel, which leaves 20 roundings of the type a few times over.
    """
    rounding = torch.finfo(dtype).eps
    logits = LOGITS.to(dtype)
    for u, log_c, mean in zip(
        logits, continuous_bernoulli_log_normaliser(logits), continuous_bernoulli_mean(logits), strict=True
    ):
        exact = mpmath.mpf(float(u))
        with mpmath.workdps(60):
            c = mpmath.log(exact / mpmath.tanh(exact / 2)) if exact else mpmath.log(2)
            m = 1 / (1 - mpmath.exp(-exact)) - 1 / exact if exact else mpmath.mpf("0.5")
        assert float(log_c) == pytest.approx(float(c), abs=3.2e-8 + 8 * rounding)
        assert float(mean) == pytest.approx(float(m), abs=1.8e-7 + 80 * rounding)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_continuous_bernoulli_has_finite_gradients_at_all_logits(dtype):
    """Attacks differentiate the mean, so no overflow may become NaN. The slope is the variance, between 0 and 1/12."""
    logits = LOGITS.to(dtype).requires_grad_(True)
    for function in (continuous_bernoulli_log_normaliser, continuous_bernoulli_mean):
        (gradient,) = torch.autograd.grad(function(logits).sum(), logits)
        assert torch.isfinite(gradient).all()
    # 1 / u**2 and 1 / sinh**2, both up to 400, cancel next to 0; the series there leaves out u**2 / 240, at most 1.1e-5
    error = 1.1e-5 + 400 * 20 * torch.finfo(dtype).eps
    assert float(gradient.min()) >= -error
    assert float(gradient.max()) <= 1 / 12 + error


def test_kl_is_that_of_torch():
    mu = torch.randn(40, 7, generator=seeded(0), dtype=torch.float64)
    sigma = torch.randn(40, 7, generator=seeded(1), dtype=torch.float64).exp()
    prior = distributions.Normal(torch.zeros_like(mu), torch.ones_like(mu))
    direct = distributions.kl_divergence(distributions.Normal(mu, sigma), prior).sum(-1)
    torch.testing.assert_close(kl_to_prior(mu, sigma), direct, rtol=DOUBLE, atol=0)
    assert torch.equal(kl_to_prior(torch.zeros(1, 3), torch.ones(1, 3)), torch.zeros(1))


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_elbo_terms_are_likelihood_and_kl_at_the_given_noise(likelihood):
    vae, x = random_vae(likelihood=likelihood), uniform(9, 12)
    eta = torch.randn(9, 3, generator=seeded(1), dtype=torch.float64)
    mu, sigma = vae.encode(x)
    reconstruction, kl = elbo_terms(vae, x, eta)
    assert torch.equal(reconstruction, vae.log_likelihood(x, mu + sigma * eta))
    assert torch.equal(kl, kl_to_prior(mu, sigma))


# sampling


def test_samples_have_the_encoders_law():
    vae, x = random_vae(), uniform(1, 12).expand(4000, 12)
    mu, sigma = vae.encode(x)
    assert follows((vae.sample(x, seeded(1)) - mu) / sigma, stats.norm.cdf)


def test_sampling_uses_the_seed_and_no_mode_turns_it_off():
    vae, x = random_vae(), uniform(5, 12)
    assert torch.equal(vae.train().sample(x, seed=1), vae.eval().sample(x, seed=1))
    assert torch.equal(vae.sample(x, seed=1), vae.sample(x, seeded(1)))
    assert not torch.equal(vae.sample(x, seed=1), vae.sample(x, seed=2))
    generator = seeded(1)
    assert not torch.equal(vae.sample(x, generator), vae.sample(x, generator))
    before = torch.get_rng_state()
    assert torch.equal(vae.sample(x), vae.sample(x, seed=0))
    assert torch.equal(torch.get_rng_state(), before)


def test_every_row_of_a_sample_has_its_own_noise():
    vae, x = random_vae(), uniform(1, 12).expand(6, 12)
    assert len(vae.sample(x).unique(dim=0)) == 6


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_gradients_reach_every_weight_and_the_input(likelihood):
    vae, x = random_vae(likelihood=likelihood).requires_grad_(True), uniform(20, 12).requires_grad_(True)
    reconstruction, kl = elbo_terms(vae, x, torch.randn(20, 3, generator=seeded(1), dtype=torch.float64))
    (kl - reconstruction).mean().backward()
    for name, weight in [*vae.named_parameters(), ("x", x)]:
        assert torch.isfinite(weight.grad).all(), name
        assert float(weight.grad.abs().max()) > 0, name
    z = vae.sample(x.detach(), seeded(0))
    assert z.requires_grad  # the reparameterisation lets the gradient through


# the layers of the encoder's mean


def test_layers_come_in_double_precision_and_without_a_graph():
    vae = random_vae().float().requires_grad_(True)
    layers = mean_layers(vae, uniform(2, 12).float())
    assert len(layers) == 3
    assert all(one.dtype == torch.float64 and not one.requires_grad for layer in layers for one in layer)


def test_an_encoder_without_layers_is_an_error():
    class Other:
        def encode(self, x):
            return x, torch.ones_like(x)

    with pytest.raises(TypeError, match=r"must have a method mean_layers\(\).*but Other has none"):
        mean_layers(Other(), uniform(1, 3))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda layers: [(2 * layers[0][0], layers[0][1]), *layers[1:]],
        lambda layers: [*layers[:-1], (layers[-1][0], layers[-1][1] + 1)],
        lambda layers: [*layers[:-1], (layers[-1][0] * torch.nan, layers[-1][1])],
        lambda layers: layers[:-1],
        lambda layers: [*layers, (2 * torch.eye(3).double(), torch.zeros(3).double())],
    ],
    ids=["weight", "bias", "NaN", "too few", "too many"],
)
def test_layers_of_another_encoder_are_an_error(spoil, monkeypatch):
    vae = random_vae()
    layers = spoil(vae.mean_layers())
    monkeypatch.setattr(vae, "mean_layers", lambda: layers)
    with pytest.raises(ValueError, match="must be the layers of model.encode's mean, but they compute another one"):
        mean_layers(vae, uniform(2, 12))


def test_layers_that_do_not_fit_are_an_error(monkeypatch):
    vae = random_vae()
    layers = vae.mean_layers()
    monkeypatch.setattr(vae, "mean_layers", lambda: [layers[0], layers[2], layers[1]])
    with pytest.raises(ValueError, match="must fit each other and the inputs, but: mat1 and mat2 shapes"):
        mean_layers(vae, uniform(2, 12))


def test_an_activation_that_is_no_relu_is_an_error():
    vae = random_vae()
    vae.encoder_mu[1] = torch.nn.Tanh()
    with pytest.raises(ValueError, match="they compute another one"):
        mean_layers(vae, uniform(2, 12))
