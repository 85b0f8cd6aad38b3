"""Jacobians of encoder and decoder, Theorem 1's bound and Proposition 1's radius, for a batch of points."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
import torch
from scipy import stats
from torch import Tensor
from torch.func import jacfwd, jacrev, vmap

from vaerobust import checks
from vaerobust.criterion import Robustness, distances, probability_of_robustness, slices
from vaerobust.model import GaussianVAE

POINTS = 512
"""Points whose Jacobians are held at a time where only their norms are asked for: about 32 MB."""


class JacobianNorms(NamedTuple):
    """Norms of the encoder's Jacobian, each shape (n,), in latent units per input unit.

    Attributes
    ----------
    frobenius : Tensor
        ||J||_F, which Theorem 1 uses.
    spectral : Tensor
        ||J||_2, the largest singular value.
    """

    frobenius: Tensor
    spectral: Tensor


class FirstOrderBound(NamedTuple):
    """Theorem 1's lower bound on the margin: first order, so not a guarantee.

    Attributes
    ----------
    radius : Tensor, shape (n,)
        The bound with the estimated probability, in input units; 0 where that is <= 1/2.
    low, high : Tensor, shape (n,)
        The bound at the limits of the probability's interval.
    robustness : Robustness
        P(D(x) <= r), from which it was computed.
    """

    radius: Tensor
    low: Tensor
    high: Tensor
    robustness: Robustness


def encoder_jacobian(model: GaussianVAE, x: Tensor) -> Tensor:
    """Return d mu / d x at each point.

    Parameters
    ----------
    model : GaussianVAE
    x : Tensor, shape (n, d_x)

    Returns
    -------
    Tensor, shape (n, d_z, d_x)
        Element (i, j) is d mu_i / d x_j, as below Eq. 5.

    Raises
    ------
    TypeError, ValueError
        If ``x`` is not a finite float tensor of shape (n, d_x).
    """
    checks.vectors("x", x)
    # reverse mode costs a pass for each of the few latents; forward mode one for each of the many pixels
    return vmap(jacrev(lambda point: model.encode(point[None])[0][0]))(x).detach()


def decoder_jacobian(model: GaussianVAE, z: Tensor) -> Tensor:
    """Return d g / d z at each latent point, shape (n, d_x, d_z) for ``z`` of shape (n, d_z).

    Raises
    ------
    TypeError, ValueError
        If ``z`` is not a finite float tensor of shape (n, d_z).
    """
    checks.vectors("z", z)
    with warnings.catch_warnings():
        # torch's forward mode loads its rules through its own deprecated scripting, once, and would warn the reader
        warnings.simplefilter("ignore", FutureWarning)
        return vmap(jacfwd(lambda point: model.decode(point[None])[0]))(z).detach()


def jacobian_norms(model: GaussianVAE, x: Tensor) -> JacobianNorms:
    """Return ||J||_F and ||J||_2 of the encoder's Jacobian at each of any number of points.

    Parameters
    ----------
    model : GaussianVAE
    x : Tensor, shape (n, d_x)

    Returns
    -------
    JacobianNorms

    Raises
    ------
    TypeError, ValueError
        If ``x`` is not a finite float tensor of shape (n, d_x).
    """
    checks.vectors("x", x)
    norms = [_norms(encoder_jacobian(model, x[i])) for i in slices(len(x), POINTS)]
    return JacobianNorms(*(torch.cat(parts) for parts in zip(*norms, strict=True)))


def _norms(jacobian: Tensor) -> tuple[Tensor, Tensor]:
    # the small d_z x d_z Gram matrix has the squared singular values of J as its eigenvalues
    gram = jacobian @ jacobian.mT
    return jacobian.flatten(1).norm(dim=1), torch.linalg.eigvalsh(gram)[:, -1].clamp(min=0).sqrt()


def half_space_shift(probability: np.ndarray | float) -> np.ndarray:
    """Return Phi^-1(p), the whitened shift that a half-space of probability p survives; 0 where p <= 1/2.

    Raises
    ------
    ValueError
        If a probability lies outside [0, 1].
    """
    p = np.asarray(probability, dtype=float)
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"probability must lie in [0, 1], but ranges over [{p.min()}, {p.max()}]")
    return np.maximum(stats.norm.ppf(p), 0.0)


def theorem_1(
    model: GaussianVAE,
    x: Tensor,
    r: float | Tensor,
    *,
    samples: int = 1000,
    generator: torch.Generator | None = None,
    confidence: float = 0.95,
) -> FirstOrderBound:
    """Compute Theorem 1's bound, Eq. 5 without its higher-order terms.

    min_i sigma_i(x) * Phi^-1(P(D(x) <= r)) / ||J(x)||_F, a first-order lower bound on the margin of Eq. 4.

    Parameters
    ----------
    model : GaussianVAE
    x : Tensor, shape (n, d_x)
    r : float or Tensor, shape (n,)
        >= 0; chosen with other samples than this call draws.
    samples, generator
        As in :func:`vaerobust.criterion.distances`. With every sample inside r the estimate of the probability is
        1 and the bound infinite; ``low`` stays finite.
    confidence : float
        Of the probability's interval.

    Returns
    -------
    FirstOrderBound

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong shape or range.
    """
    d = distances(model, x, samples=samples, generator=generator)
    robustness = probability_of_robustness(d, r, confidence=confidence)
    with torch.no_grad():
        sigma = model.encode(x)[1]
    scale = sigma.min(dim=1).values / jacobian_norms(model, x).frobenius
    shifts = (
        torch.as_tensor(half_space_shift(p), dtype=x.dtype, device=x.device)
        for p in (robustness.probability, robustness.low, robustness.high)
    )
    # a shift of 0 gives margin 0 even where the encoder is locally constant and the scale infinite
    radius, low, high = (torch.where(shift > 0, scale * shift, 0.0) for shift in shifts)
    return FirstOrderBound(radius, low, high, robustness)


def proposition_1(model: GaussianVAE, x: Tensor) -> Tensor:
    """Return Proposition 1's radius sqrt(2 Tr Sigma(x)), Sigma = J_g diag(sigma^2) J_g^T (Appendix A).

    To first order in sigma, every r above it is r-robust. The paper calls it necessary; it is sufficient, by Markov's
    inequality.

    Parameters
    ----------
    model : GaussianVAE
    x : Tensor, shape (n, d_x)

    Returns
    -------
    Tensor, shape (n,)
        In the units of D.

    Raises
    ------
    TypeError, ValueError
        If ``x`` is not a finite float tensor of shape (n, d_x).
    """
    checks.vectors("x", x)
    with torch.no_grad():
        mu, sigma = model.encode(x)
    traces = [
        (decoder_jacobian(model, mu[i]) * sigma[i, None]).pow(2).sum((1, 2)) for i in slices(len(x), POINTS)
    ]  # fmt: skip
    return (2 * torch.cat(traces)).sqrt()
