"""Theorem 1, two sharper bounds by the same argument, and Proposition 1. All of them hold to first order only.

Theorem 1 joins two steps. A set of noise of probability p keeps a probability above 1/2 under every shift shorter than
Phi^-1(p) standard deviations (:func:`half_space_shift`). A perturbation delta shifts the encoder's mean by J delta, to
first order. :func:`theorem_1` estimates p from samples and returns the quotient of Eq. 5. A bound without neglected
terms is in :mod:`vaerobust.certify`. Begin with :func:`theorem_1`.

J' is the transpose of the encoder's Jacobian J, and S = diag(sigma). A whitened latent is divided by sigma, so that the
encoder's noise has unit variance in it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from vaerobust import checks
from vaerobust.batches import points_within, slices
from vaerobust.contract import check_model, encode_points, rows_at_once
from vaerobust.criterion import Robustness, probability_of_robustness
from vaerobust.distance import distances
from vaerobust.jacobians import (
    ENCODER_GRADIENT,
    POINTS,
    decoder_jacobian,
    encoder_gram,
    frobenius_norm,
    jacobian_norms,
    largest_eigenvalue,
)
from vaerobust.model import GaussianVAE
from vaerobust.numerics import at_least_single
from vaerobust.randomness import Seed
from vaerobust.results import Result


@dataclass(frozen=True, eq=False)
class FirstOrderBound(Result):
    """Theorem 1's lower bound on the margin. It holds to first order, so it is no guarantee.

    Attributes
    ----------
    radius : Tensor, shape (n,)
        The bound with the estimated probability, in input units; 0 where that probability is <= 1/2, infinite where it
        is 1.
    low, high : Tensor, shape (n,)
        The bound at the limits of the probability's interval. ``low`` is always finite, since the lower limit is < 1.
    robustness : Robustness
        P(D(x) <= r), from which the bound was computed.
    """

    radius: Tensor
    low: Tensor
    high: Tensor
    robustness: Robustness


@dataclass(frozen=True, eq=False)
class FirstOrderRadii(Result):
    """Three bounds by Theorem 1's argument, in input units; each is at least as large as the one before.

    Attributes
    ----------
    frobenius : Tensor, shape (n,)
        min_i sigma_i Phi^-1(p) / ||J||_F, Eq. 5.
    spectral : Tensor, shape (n,)
        The same with ||J||_2 in place of ||J||_F.
    whitened : Tensor, shape (n,)
        Phi^-1(p) / ||S^-1 J||_2 with S = diag(sigma): the largest bound that the half-space lemma gives to first order.
    """

    frobenius: Tensor
    spectral: Tensor
    whitened: Tensor


def half_space_shift(probability: np.ndarray | float) -> np.ndarray:
    """Return Phi^-1(p), the length of the shift of the noise that lowers the probability of a half-space from p to 1/2.

    Parameters
    ----------
    probability : ndarray or float
        p, each in [0, 1].

    Returns
    -------
    ndarray
        In standard deviations of the noise; 0 where p <= 1/2, infinite where p = 1.

    Raises
    ------
    ValueError
        If a probability lies outside [0, 1].
    """
    p = checks.numbers("probability", probability)
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"probability must lie in [0, 1], but ranges over [{p.min()}, {p.max()}]")
    return np.maximum(stats.norm.ppf(p), 0.0)


def theorem_1_quotient(sigma: Tensor, norm: Tensor, probability: np.ndarray | float) -> Tensor:
    """Return min_i sigma_i Phi^-1(p) / ||J||, the quotient of Eq. 5.

    Parameters
    ----------
    sigma : Tensor, shape (n, d_z)
        sigma(x), > 0.
    norm : Tensor, shape (n,)
        ||J(x)||_F in the paper; ||J(x)||_2 is sharper.
    probability : float or ndarray, shape (n,)
        P(D(x) <= r), or a limit of it.

    Returns
    -------
    Tensor, shape (n,)
        In input units; 0 where the probability is <= 1/2, even if the encoder is constant near x.

    Raises
    ------
    ValueError
        If a probability lies outside [0, 1].
    """
    shift = torch.as_tensor(half_space_shift(probability), dtype=norm.dtype, device=norm.device)
    # Where the norm is 0, the quotient is infinite, and infinity times a shift of 0 would be NaN
    return torch.where(shift > 0, sigma.min(dim=1).values / norm * shift, 0.0)


def theorem_1(
    model: GaussianVAE,
    x: Tensor,
    r: float | Tensor,
    *,
    samples: int = 1000,
    seed: Seed = 1,
    confidence: float = 0.95,
) -> FirstOrderBound:
    """Estimate Theorem 1's bound, Eq. 5 without its higher-order terms.

    min_i sigma_i(x) Phi^-1(P(D(x) <= r)) / ||J(x)||_F is a first-order lower bound on the margin of Eq. 4.

    Parameters
    ----------
    model : GaussianVAE
    x : Tensor, shape (n, d_x)
    r : float or Tensor, shape (n,)
        Largest distance that counts as robust, >= 0, in input units; chosen with other samples than this call draws.
    samples, seed
        As in :func:`vaerobust.distance.distances`.
    confidence : float
        Confidence level of the probability's interval, in (0, 1).

    Returns
    -------
    FirstOrderBound
        With every sample within r, the estimated probability is 1 and ``radius`` infinite; ``low`` stays finite.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong shape or range.
    """
    checks.vectors("x", x)
    checks.probability("confidence", confidence)
    r = checks.per_point("r", r, len(x), x)
    check_model(model, x, gradient=ENCODER_GRADIENT)
    d = distances(model, x, samples=samples, seed=seed)
    robustness = probability_of_robustness(d, r, confidence=confidence)
    sigma = encode_points(model, x)[1]
    norm = jacobian_norms(model, x).frobenius
    probabilities = (robustness.probability, robustness.low, robustness.high)
    radius, low, high = (theorem_1_quotient(sigma, norm, p) for p in probabilities)
    return FirstOrderBound(radius, low, high, robustness)


@torch.no_grad()
def first_order_radii(model: GaussianVAE, x: Tensor, probability: float | np.ndarray) -> FirstOrderRadii:
    """Return Theorem 1's bound beside two that are sharper by the same argument.

    Parameters
    ----------
    model : GaussianVAE
    x : Tensor, shape (n, d_x)
    probability : float or ndarray, shape (n,)
        P(D(x) <= r), or a lower limit of it.

    Returns
    -------
    FirstOrderRadii
        0 where the probability is <= 1/2, infinite where it is 1.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong shape or range.
    """
    checks.vectors("x", x)
    probability = checks.numbers("probability", probability)
    if probability.shape not in ((), (len(x),)):
        raise ValueError(f"probability must be one number or shape ({len(x)},), but has shape {probability.shape}")
    half_space_shift(probability)  # a number outside [0, 1] is an error before the model is asked
    gram = encoder_gram(model, x)
    sigma = encode_points(model, x)[1]
    whitened = gram / (sigma[:, :, None] * sigma[:, None, :])  # S^-1 J J' S^-1
    return FirstOrderRadii(
        theorem_1_quotient(sigma, frobenius_norm(gram), probability),
        theorem_1_quotient(sigma, largest_eigenvalue(gram).sqrt(), probability),
        theorem_1_quotient(torch.ones_like(sigma), largest_eigenvalue(whitened).sqrt(), probability),
    )


def proposition_1(model: GaussianVAE, x: Tensor) -> Tensor:
    """Return sqrt(2 Tr Sigma(x)), Proposition 1's r, with Sigma = J_g diag(sigma^2) J_g' (Appendix A).

    To first order in sigma, D(x)^2 has the mean Tr Sigma. So by Markov's inequality P(D(x) > r) < 1/2 for every r above
    this value, and x is r-robust. The paper calls the condition necessary; it is sufficient.

    Parameters
    ----------
    model : GaussianVAE
    x : Tensor, shape (n, d_x)

    Returns
    -------
    Tensor, shape (n,)
        In input units.

    Raises
    ------
    TypeError, ValueError
        If ``x`` is not a finite float tensor of shape (n, d_x).
    """
    checks.vectors("x", x)
    check_model(model, x, gradient=("decode",))
    mu, sigma = encode_points(model, x)
    points = points_within(rows_at_once(model, x), mu.shape[1], POINTS)
    scaled = (decoder_jacobian(model, mu[i]) * sigma[i, None] for i in slices(len(x), points))  # J_g S
    return (2 * torch.cat([at_least_single(jacobian).pow(2).sum((1, 2)) for jacobian in scaled])).sqrt()
