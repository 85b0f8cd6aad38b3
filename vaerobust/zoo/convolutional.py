"""A convolutional VAE, the counterpart of the paper's network for the question whether its theory holds for others.

Here is one network, :class:`ConvolutionalVAE`. It meets the contract of the paper's own, which is
:class:`vaerobust.model.VAE`: images are flat rows, q(z|x) is a diagonal Gaussian, and pixels are Bernoulli. It has no
``mean_layers``; what needs the encoder's operations (:mod:`vaerobust.certify.network`) records them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vaerobust import checks

SIDE = 28
"""Height and width of an image in pixels."""
CHANNELS = (8, 16)
"""Channels after the first and after the second convolution."""
FEATURES = CHANNELS[1] * (SIDE // 4) ** 2
"""Width of the flattened output of the second convolution; each convolution halves height and width."""


class ConvolutionalVAE(nn.Module):
    """Two strided convolutions with batch normalisation, and a decoder that mirrors them.

    In training mode the batch normalisation uses the statistics of the batch, so that a reconstruction depends on the
    other images. Everything in this package measures a model in evaluation mode.

    Parameters
    ----------
    latents : int
        Number of latents d_z, >= 1.
    tau : float
        Offset added to the encoder's standard deviation, >= 0 (Section 4.2).

    Attributes
    ----------
    pixels, latents : int
        d_x = 784 and d_z.
    likelihood : str
        'bernoulli'.

    Raises
    ------
    ValueError
        If ``latents`` is below 1 or ``tau`` is negative.
    """

    def __init__(self, latents: int = 20, *, tau: float = 0.0) -> None:
        super().__init__()
        self.pixels, self.latents = SIDE**2, checks.count("latents", latents)
        self.tau = checks.positive("tau", tau, zero=True)
        self.likelihood = "bernoulli"
        first, second = CHANNELS
        size = (4, 2, 1)  # kernel, stride and padding: halves, or doubles, height and width
        self.encoder_shared = nn.Sequential(
            nn.Unflatten(-1, (1, SIDE, SIDE)),
            nn.Conv2d(1, first, *size), nn.BatchNorm2d(first), nn.ReLU(),
            nn.Conv2d(first, second, *size), nn.BatchNorm2d(second), nn.ReLU(),
            nn.Flatten(1),
        )  # fmt: skip
        self.encoder_mu = nn.Linear(FEATURES, latents)
        self.encoder_sigma = nn.Linear(FEATURES, latents)
        self.decoder = nn.Sequential(
            nn.Linear(latents, FEATURES), nn.ReLU(), nn.Unflatten(-1, (second, SIDE // 4, SIDE // 4)),
            nn.ConvTranspose2d(second, first, *size), nn.ReLU(),
            nn.ConvTranspose2d(first, 1, *size), nn.Flatten(1),
        )  # fmt: skip

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of q(z|x), sigma = softplus(.) + tau.

        Parameters
        ----------
        x : Tensor, shape (n, 784)
            Images, row by row of pixels.

        Returns
        -------
        mu, sigma : Tensor, shape (n, d_z)

        Raises
        ------
        ValueError
            If x has another shape.
        """
        if x.dim() != 2 or x.shape[1] != self.pixels:
            raise ValueError(f"x must have shape (n, {self.pixels}), but has {tuple(x.shape)}")
        shared = self.encoder_shared(x)  # (n, FEATURES)
        return self.encoder_mu(shared), F.softplus(self.encoder_sigma(shared)) + self.tau

    def decode(self, z: Tensor) -> Tensor:
        """Return g(z) = E[x|z], (n, 784), of latents (n, d_z)."""
        return torch.sigmoid(self.decoder(z))

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """Return log p(x|z) in nats, summed over pixels.

        Parameters
        ----------
        x : Tensor, shape (..., 784)
            Images in [0, 1].
        z : Tensor, shape (..., d_z)
            Latents; leading dimensions broadcast against those of ``x``.

        Returns
        -------
        Tensor, shape (...)
        """
        logits = self.decoder(z.reshape(-1, self.latents)).reshape(*z.shape[:-1], self.pixels)
        return (logits * x - F.softplus(logits)).sum(-1)
