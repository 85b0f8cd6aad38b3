"""A VAE whose robustness is known in closed form: linear encoder, linear decoder, constant sigma.

The decoder's columns are orthonormal, so D(x, delta) = ||W (A delta + s eta)||_2 = ||A delta + s eta||_2. Its square
over s^2 has a noncentral chi-square distribution with d_z degrees of freedom and noncentrality ||A delta||^2 / s^2. So
every quantity of the paper has an exact value. The tests and the book compare estimators, bounds and attacks with it.
"""

from __future__ import annotations

import torch
from scipy import optimize, stats
from torch import Tensor

from vaerobust import checks
from vaerobust.randomness import as_generator


class LinearGaussianVAE:
    """mu(x) = A x, sigma(x) = s, g(z) = W z with orthonormal columns of W; a :class:`~vaerobust.model.GaussianVAE`.

    Parameters
    ----------
    pixels, latents : int
        d_x >= d_z.
    sigma : float
        s, > 0.
    seed : int
        Seed of A, whose elements are N(0, 1 / d_x), and of W. ``weight`` holds A, shape (d_z, d_x), and ``decoder``
        holds W, shape (d_x, d_z), both in double precision.

    Raises
    ------
    ValueError
        If an argument is out of range.
    """

    def __init__(self, pixels: int = 50, latents: int = 5, *, sigma: float = 0.1, seed: int = 0) -> None:
        checks.count("latents", latents)
        checks.count("pixels", pixels, least=latents)
        self.sigma = checks.positive("sigma", sigma)
        generator = as_generator(seed, torch.zeros(1))
        normal = torch.randn(2, pixels, latents, generator=generator, dtype=torch.float64)
        self.weight = normal[0].T / pixels**0.5
        self.decoder = torch.linalg.qr(normal[1]).Q
        self.latents = latents

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mu, sigma, each (n, d_z), in the precision of ``x``."""
        mu = x @ self.weight.T.to(x)
        return mu, torch.full_like(mu, self.sigma)

    def mean_layers(self) -> list[tuple[Tensor, Tensor]]:
        """Return the one layer of mu: A, and no bias."""
        return [(self.weight, torch.zeros(self.latents, dtype=self.weight.dtype))]

    def decode(self, z: Tensor) -> Tensor:
        """Return W z, shape (n, d_x)."""
        return z @ self.decoder.T.to(z)

    def probability(self, r: float, shift: float = 0.0) -> float:
        """Return P(D <= r) for a perturbation with ||A delta||_2 = ``shift``, in latent units."""
        return float(stats.ncx2.cdf((r / self.sigma) ** 2, self.latents, (shift / self.sigma) ** 2))

    def quantile(self, level: float = 0.5) -> float:
        """Return the quantile of D(x), Eq. 1, at a level in (0, 1); at 0.5 it is the smallest r of Algorithm 1."""
        return self.sigma * float(stats.chi2.ppf(level, self.latents)) ** 0.5

    def margin(self, r: float) -> float:
        """Return the exact margin of Eq. 4: the shift at which P(D <= r) = 1/2, over the spectral norm of A."""
        if self.probability(r) <= 0.5:
            return 0.0
        # The median of a noncentral chi-square exceeds its noncentrality. So at the shift r, P(D <= r) < 1/2, and the
        # root lies between 0 and r.
        shift = optimize.brentq(lambda s: self.probability(r, s) - 0.5, 0.0, r)
        return float(shift / torch.linalg.matrix_norm(self.weight, 2))

    def theorem_1(self, r: float) -> float:
        """Return Theorem 1's bound with the exact probability, in input units; 0 where that is <= 1/2."""
        shift = max(0.0, float(stats.norm.ppf(self.probability(r))))
        return self.sigma * shift / float(torch.linalg.matrix_norm(self.weight))

    def proposition_1(self) -> float:
        """Return Proposition 1's r, sqrt(2 Tr Sigma) = s sqrt(2 d_z)."""
        return self.sigma * (2 * self.latents) ** 0.5
