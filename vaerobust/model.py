"""The variational autoencoder of Section 2.1, with the network of Appendix F.

The rest of the package asks only two things of a model: ``encode(x) -> (mu, sigma)`` and ``decode(z) -> mean``, both
with one row per point. :class:`GaussianVAE` states this protocol, and :class:`VAE` is the paper's network; begin there.
:func:`mean_layers` returns the layers that compute an encoder's mean, for certificates and fast Jacobians. The last
functions are the terms of training objectives. Training itself is in :mod:`vaerobust.zoo.training`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vaerobust import checks
from vaerobust.contract import check_model
from vaerobust.numerics import double
from vaerobust.randomness import Seed, as_generator, normal

LIKELIHOODS = ("bernoulli", "continuous_bernoulli", "gaussian")
SCALES: dict[str, Callable[[Tensor], Tensor]] = {"softplus": F.softplus, "exp": torch.exp}
"""Functions that turn the network's output into a positive standard deviation."""

Layers = list[tuple[Tensor, Tensor]]
"""Weight (fan_out, fan_in) and bias (fan_out,) of each layer of the encoder's mean, in order, with ReLUs between."""

CHECKED = 16
"""Inputs at which :func:`mean_layers` compares the layers with the encoder, at most."""


class GaussianVAE(Protocol):
    """What criterion, bounds and attacks ask of a model: a diagonal Gaussian encoder and a decoder mean."""

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map inputs (n, d_x) to the mean and standard deviation of q(z|x), each (n, d_z)."""

    def decode(self, z: Tensor) -> Tensor:
        """Map latents (n, d_z) to the mean reconstruction g(z), (n, d_x)."""


def perceptron(*widths: int) -> nn.Sequential:
    """Stack linear layers, from the first width to the last, with ReLUs between them."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in zip(widths, widths[1:], strict=False):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])  # no ReLU after the last layer


class VAE(nn.Module):
    """The paper's VAE: ReLU perceptrons, where mean and standard deviation share the first encoder layer.

    Parameters
    ----------
    pixels, hidden, latents : int
        Numbers of pixels d_x, of units in every hidden layer, and of latents d_z. Appendix F has 784, 400 and 20.
    tau : float
        Offset added to the encoder's standard deviation, >= 0 (Section 4.2).
    likelihood : {'bernoulli', 'continuous_bernoulli', 'gaussian'}
        p(x|z). The Gaussian has unit variance, as Eq. 7 assumes.
    scale : {'softplus', 'exp'}
        How the network's output becomes a standard deviation. With 'exp' the output is log sigma, which is half of the
        log-variance that most implementations use.

    Raises
    ------
    ValueError
        If a width is below 1, ``tau`` is negative, or likelihood or scale are unknown.
    """

    def __init__(
        self,
        pixels: int = 784,
        hidden: int = 400,
        latents: int = 20,
        *,
        tau: float = 0.0,
        likelihood: str = "bernoulli",
        scale: str = "softplus",
    ) -> None:
        super().__init__()
        for name, width in (("pixels", pixels), ("hidden", hidden), ("latents", latents)):
            checks.count(name, width)
        self.pixels, self.latents = pixels, latents
        self.tau = checks.positive("tau", tau, zero=True)
        self.likelihood = checks.one_of("likelihood", likelihood, LIKELIHOODS)
        self.scale = SCALES[checks.one_of("scale", scale, SCALES)]
        self.encoder_shared = nn.Linear(pixels, hidden)
        self.encoder_mu = perceptron(hidden, hidden, latents)
        self.encoder_sigma = perceptron(hidden, hidden, latents)
        self.decoder = perceptron(latents, hidden, hidden, pixels)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of q(z|x); sigma is softplus or exp of the network's output, plus tau.

        Parameters
        ----------
        x : Tensor, shape (..., d_x)
            Images.

        Returns
        -------
        mu, sigma : Tensor, shape (..., d_z)

        Raises
        ------
        ValueError
            If the images do not have d_x pixels.
        """
        if x.shape[-1] != self.pixels:
            raise ValueError(f"x must have shape (..., {self.pixels}), but has {tuple(x.shape)}")
        shared = F.relu(self.encoder_shared(x))
        return self.encoder_mu(shared), self.scale(self.encoder_sigma(shared)) + self.tau

    def mean_layers(self) -> list[tuple[Tensor, Tensor]]:
        """Return weight and bias of each layer of mu, as :data:`Layers` describes; no gradient reaches them."""
        layers = [self.encoder_shared, *(layer for layer in self.encoder_mu if isinstance(layer, nn.Linear))]
        return [(layer.weight.detach(), layer.bias.detach()) for layer in layers]

    def decode(self, z: Tensor) -> Tensor:
        """Return g(z) = E[x|z], the mean of the likelihood (Section 2.1), (..., d_x) for latents of (..., d_z)."""
        out = self.decoder(z)
        if self.likelihood == "gaussian":
            return out
        return torch.sigmoid(out) if self.likelihood == "bernoulli" else continuous_bernoulli_mean(out)

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """Return log p(x|z) in nats, summed over pixels.

        Parameters
        ----------
        x : Tensor, shape (..., d_x)
            Images in [0, 1].
        z : Tensor, shape (..., d_z)
            Latents; leading dimensions broadcast against those of ``x``.

        Returns
        -------
        Tensor, shape (...)
        """
        out = self.decoder(z)
        if self.likelihood == "gaussian":
            return -0.5 * ((x - out) ** 2 + math.log(2 * math.pi)).sum(-1)
        # log Bernoulli(x | sigmoid(out)), also for x between 0 and 1; kept short, since training calls it most
        log_p = (out * x - F.softplus(out)).sum(-1)
        if self.likelihood == "continuous_bernoulli":
            log_p = log_p + continuous_bernoulli_log_normaliser(out).sum(-1)
        return log_p

    def sample(self, x: Tensor, seed: Seed = 0) -> Tensor:
        """Draw z = mu(x) + sigma(x) * eta with eta ~ N(0, I), one sample per row: shape (n, d_z).

        Parameters
        ----------
        x : Tensor, shape (n, d_x)
            Images.
        seed : int or torch.Generator
            Source of eta. Each row has noise of its own, unlike elsewhere; see :mod:`vaerobust.randomness`.

        Returns
        -------
        Tensor, shape (n, d_z)

        Raises
        ------
        TypeError, ValueError
            If the seed is no whole number >= 0 and no generator, or the images do not have d_x pixels.
        """
        mu, sigma = self.encode(x)
        return mu + sigma * normal(len(mu), mu, as_generator(seed, mu))


def mean_layers(model: GaussianVAE, x: Tensor) -> Layers:
    """Return the layers that compute a model's encoder mean, in double precision, and check that they do.

    Parameters
    ----------
    model : GaussianVAE
        With a method ``mean_layers`` that returns weight (fan_out, fan_in) and bias of each layer of mu, in order. The
        encoder must apply a ReLU after each of these layers but the last.
    x : Tensor, shape (n, d_x)
        Inputs. The layers are compared with ``encode`` at the first :data:`CHECKED` inputs and at noisy copies of them.

    Returns
    -------
    Layers

    Raises
    ------
    TypeError
        If the model has no such method.
    ValueError
        If its layers do not fit each other, or do not compute the model's mean.
    """
    if not hasattr(model, "mean_layers") or isinstance(model, type):
        raise TypeError(
            f"model must have a method mean_layers() that returns weight and bias of each layer of a ReLU encoder, "
            f"but {type(model).__name__} has none: only such encoders can be certified"
        )
    checks.vectors("x", x)
    check_model(model, x, decoder=False)
    layers = _in_double_precision(model.mean_layers())
    some = x[:CHECKED].detach()
    nudge = 0.1 * torch.randn(some.shape, generator=torch.Generator().manual_seed(0)).to(x)
    points = torch.cat([some, some + nudge])
    with torch.no_grad():
        mu = double(model.encode(points)[0])
        try:
            out, size = _forward(layers, double(points))
        except RuntimeError as error:
            raise ValueError(f"model.mean_layers() must fit each other and the inputs, but: {error}") from error
    # A loose tolerance, since the encoder may compute in single precision. In half precision each number of the network
    # may be rounded to three digits or two.
    rounding = 2 * torch.finfo(x.dtype).eps * size
    same = out.shape == mu.shape and ((out - mu).abs() <= 1e-3 * (mu.abs() + mu.abs().max()) + rounding).all()
    if not same:
        raise ValueError("model.mean_layers() must be the layers of model.encode's mean, but they compute another one")
    return layers


def _in_double_precision(layers: object) -> Layers:
    """Return what a method ``mean_layers`` returned in double precision.

    Raises
    ------
    TypeError
        If it is no list of pairs of tensors.
    """
    try:
        return [(double(weight.detach()), double(bias.detach())) for weight, bias in layers]  # type: ignore[attr-defined]
    except (TypeError, ValueError, AttributeError) as error:
        raise TypeError(
            f"model.mean_layers() must return a list of pairs of tensors, weight and bias, but: {error}"
        ) from error


def _forward(layers: Layers, x: Tensor) -> tuple[Tensor, Tensor]:
    """Evaluate a ReLU network given by its layers; and with absolute values everywhere, the size of what is summed."""
    size = x.abs()
    for i, (weight, bias) in enumerate(layers):
        x = (torch.relu(x) if i else x) @ weight.T + bias
        size = size @ weight.abs().T + bias.abs()
    return x, size


def kl_to_prior(mu: Tensor, sigma: Tensor) -> Tensor:
    """Return KL(N(mu, diag sigma^2) || N(0, I)) in nats, summed over the last dimension: (..., d_z) to (...)."""
    return 0.5 * (mu**2 + sigma**2 - 1 - 2 * torch.log(sigma)).sum(-1)


def total_correlation(z: Tensor, mu: Tensor, sigma: Tensor) -> Tensor:
    """Estimate the total correlation of the aggregate posterior from a batch, up to a constant.

    It is the penalty of the beta-TCVAE.

    Parameters
    ----------
    z : Tensor, shape (n, d_z)
        A sample of each q(z|x_i).
    mu, sigma : Tensor, shape (n, d_z)
        Mean and standard deviation of the same q(z|x_i), sigma > 0.

    Returns
    -------
    Tensor, shape ()
        Mean of log q(z) - sum_d log q(z_d), in nats, with each q a mixture over the batch (minibatch-weighted
        sampling of Chen et al. 2018). Weights that depend only on the numbers of images and latents are left out:
        they have no gradient.
    """
    precision = sigma**-2
    # log_q, shape (d_z, n, n), holds the log density of z_i,d under N(mu_j,d, sigma_j,d^2). It is a quadratic in z, so
    # that one batched product computes all of it. The constant -log(2 pi) / 2 is left out, since it cancels.
    powers = torch.stack([z**2, z, torch.ones_like(z)])
    coefficients = torch.stack([-0.5 * precision, mu * precision, -0.5 * mu**2 * precision - torch.log(sigma)])
    log_q = torch.bmm(powers.permute(2, 1, 0), coefficients.permute(2, 0, 1))
    return (log_q.sum(0).logsumexp(1) - log_q.logsumexp(2).sum(0)).mean()


def elbo_terms(vae: VAE, x: Tensor, eta: Tensor) -> tuple[Tensor, Tensor]:
    """Return the two terms of the ELBO at each point, with one sample of z.

    Parameters
    ----------
    vae : VAE
    x : Tensor, shape (n, d_x)
        Images in [0, 1].
    eta : Tensor, shape (n, d_z)
        Standard normal noise; z = mu + sigma * eta.

    Returns
    -------
    reconstruction, kl : Tensor, shape (n,)
        log p(x|z) and KL(q(z|x) || p(z)) in nats; the ELBO is the first less the second, and the
        beta-VAE's objective (Section 2.3) the first less beta times the second.
    """
    mu, sigma = vae.encode(x)
    return vae.log_likelihood(x, mu + sigma * eta), kl_to_prior(mu, sigma)


# The continuous Bernoulli with logit u has density C(u) exp(u x) / (1 + exp(u)) on [0, 1], with C(u) = u / tanh(u / 2)
# and mean 1 / (1 - exp(-u)) - 1 / u = (1 + 1 / tanh(u / 2)) / 2 - 1 / u. Near u = 0 both divide by 0, so their series
# in u replace them where |u| < _NEAR. There the formulas are evaluated at 1, so that the gradient holds no NaN.
_NEAR = 0.05


def continuous_bernoulli_log_normaliser(logits: Tensor) -> Tensor:
    """Return log C(u), elementwise; C(0) = 2."""
    near = logits.abs() < _NEAR
    u = torch.where(near, torch.ones_like(logits), logits)
    return torch.where(near, math.log(2) + logits**2 / 12, torch.log(u / torch.tanh(u / 2)))


def continuous_bernoulli_mean(logits: Tensor) -> Tensor:
    """Return the mean of the continuous Bernoulli with the given logits, elementwise; 1/2 at 0."""
    near = logits.abs() < _NEAR
    u = torch.where(near, torch.ones_like(logits), logits)
    return torch.where(near, 0.5 + logits / 12, 0.5 + 0.5 / torch.tanh(u / 2) - 1 / u)
