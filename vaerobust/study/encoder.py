"""Statistics of an encoder: its standard deviations, the norms of its Jacobian, and Theorem 1's bound.

These are the quantities of Fig. 7 (c) and (d), Fig. 10 (g) to (i) and Fig. 11 (g) to (i). Start at
:func:`encoder_statistics`.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vaerobust.bounds import theorem_1_quotient
from vaerobust.jacobians import jacobian_norms
from vaerobust.model import VAE, kl_to_prior
from vaerobust.results import Result

ACTIVE_NATS = 0.01
"""A latent is active if its mean KL term over images exceeds this many nats; else it has collapsed to the prior."""


@dataclass(frozen=True, eq=False)
class EncoderStatistics(Result):
    """Statistics of an encoder, one per image.

    Attributes
    ----------
    sigma : Tensor, shape (n,)
        Mean of sigma(x) over all latents.
    active_sigma : Tensor, shape (n,)
        Mean of sigma(x) over the active latents; NaN if none is active.
    min_sigma : Tensor, shape (n,)
        Smallest entry of sigma(x).
    frobenius, spectral : Tensor, shape (n,)
        Norms of the Jacobian J(x) of the encoder's mean, per pixel.
    theorem_1 : Tensor, shape (n,)
        Theorem 1's bound in pixels, at P(D(x) <= r) = ``level``.
    active_latents : int
        Number of active latents.
    """

    sigma: Tensor
    active_sigma: Tensor
    min_sigma: Tensor
    frobenius: Tensor
    spectral: Tensor
    theorem_1: Tensor
    active_latents: int


def encoder_statistics(
    vae: VAE, x: Tensor, *, level: float = 0.9, active_nats: float = ACTIVE_NATS
) -> EncoderStatistics:  # fmt: skip
    """Return the statistics of an encoder, one per image.

    Parameters
    ----------
    vae : VAE
    x : Tensor, shape (n, d_x)
    level : float
        The probability p of Theorem 1, in (0, 1). If r is a quantile of D(x), p is the level of that quantile.
    active_nats : float
        A latent is active if its KL term, averaged over these images, exceeds this.

    Returns
    -------
    EncoderStatistics

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong shape or range.
    """
    norms = jacobian_norms(vae, x)
    mu, sigma = vae.encode(x)  # (n, d_z) each
    active = kl_to_prior(mu[..., None], sigma[..., None]).mean(0) > active_nats  # (d_z,)
    return EncoderStatistics(
        sigma=sigma.mean(1),
        active_sigma=sigma[:, active].mean(1),
        min_sigma=sigma.min(1).values,
        frobenius=norms.frobenius,
        spectral=norms.spectral,
        theorem_1=theorem_1_quotient(sigma, norms.frobenius, level),
        active_latents=int(active.sum()),
    )
