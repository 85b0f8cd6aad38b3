"""Jacobians of encoder and decoder, and the margins that follow to first order: Theorem 1 and its relatives."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
import torch
from scipy import stats
from torch import Tensor
from torch.func import jacfwd, jacrev, vmap

from vaerobust import checks
from vaerobust.batches import slices
from vaerobust.criterion import Robustness, decode_all, distances, probability_of_robustness
from vaerobust.model import GaussianVAE, mean_layers
from vaerobust.randomness import Seed, as_generator, normal

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


class FirstOrderRadii(NamedTuple):
    """Three readings of Theorem 1's argument, each shape (n,), in input units; each at least the one before.

    Attributes
    ----------
    frobenius : Tensor
        min_i sigma_i Phi^-1(p) / ||J||_F, Eq. 5.
    spectral : Tensor
        The same with ||J||_2.
    whitened : Tensor
        Phi^-1(p) / ||S^-1 J||_2, S = diag(sigma): all that the half-space lemma can give to first order.
    """

    frobenius: Tensor
    spectral: Tensor
    whitened: Tensor


class LinearisedRadii(NamedTuple):
    """Margins of the model linearised at x, which look through the decoder too. Estimates, not guarantees.

    Attributes
    ----------
    decoder_aware : Tensor, shape (n,)
        Median over eta of (r - D(x)) / ||J_g(mu + S eta) J||_2: by the triangle inequality; 0 where it is negative.
    second_moment : Tensor, shape (n,)
        Largest R with E_eta ||g(mu + S eta) - g(mu) + J_g(mu + S eta) J delta||^2 <= r^2 for all ||delta|| <= R; 0
        where that fails at R = 0.
    direction : Tensor, shape (n, d_x)
        Unit perturbation that reaches this maximum at R.
    """

    decoder_aware: Tensor
    second_moment: Tensor
    direction: Tensor


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
    gram = encoder_gram(model, x)
    return JacobianNorms(gram.diagonal(dim1=1, dim2=2).sum(1).sqrt(), _spectral(gram))


@torch.no_grad()
def encoder_gram(model: GaussianVAE, x: Tensor) -> Tensor:
    """Return J J' of the encoder's Jacobian at each of any number of points, shape (n, d_z, d_z).

    Its eigenvalues are the squared singular values of J. A ReLU encoder that offers ``mean_layers`` (see
    :func:`vaerobust.model.mean_layers`) needs no Jacobian for it: with P the product of all layers but the first,
    as they are switched at the point, it is P (W_1 W_1') P', which has no dimension as large as d_x.

    Parameters
    ----------
    model : GaussianVAE
    x : Tensor, shape (n, d_x)

    Returns
    -------
    Tensor, shape (n, d_z, d_z)

    Raises
    ------
    TypeError, ValueError
        If ``x`` is not a finite float tensor of shape (n, d_x), or layers that are offered are not the encoder's.
    """
    checks.vectors("x", x)
    if not hasattr(model, "mean_layers"):
        jacobians = (encoder_jacobian(model, x[i]) for i in slices(len(x), POINTS))
        return torch.cat([jacobian @ jacobian.mT for jacobian in jacobians])
    (first, bias), *rest = [(weight.to(x), bias.to(x)) for weight, bias in mean_layers(model, x)]
    inner = first @ first.T
    if not rest:
        return inner.expand(len(x), -1, -1)
    last = rest[-1][0].T.contiguous()
    grams = []
    for i in slices(len(x), POINTS):
        activations = [x[i] @ first.T + bias]
        for weight, shift in rest[:-1]:
            activations.append(torch.relu(activations[-1]) @ weight.T + shift)
        # a point at a time: a third or so of the units are on there, and products over these alone take half as long
        # as one of all points over all units
        for switched in zip(*(activation > 0 for activation in activations), strict=True):
            on = [units.nonzero()[:, 0] for units in switched]
            product = last.index_select(0, on[-1]).T
            for (weight, _), units, before in zip(rest[-2::-1], on[:0:-1], on[-2::-1], strict=True):
                product = (product @ weight.index_select(0, units)).index_select(1, before)
            grams.append(product @ inner.index_select(0, on[0]).index_select(1, on[0]) @ product.T)
    return torch.stack(grams)


def _spectral(gram: Tensor) -> Tensor:
    return torch.linalg.eigvalsh(gram)[:, -1].clamp(min=0).sqrt()


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
    seed: Seed = 0,
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
    samples, seed
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
    d = distances(model, x, samples=samples, seed=seed)
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


@torch.no_grad()
def first_order_radii(model: GaussianVAE, x: Tensor, probability: float | np.ndarray) -> FirstOrderRadii:
    """Return Theorem 1's bound beside two that are sharper by the same argument.

    Parameters
    ----------
    model : GaussianVAE
    x : Tensor, shape (n, d_x)
    probability : float or ndarray, shape (n,)
        P(D(x) <= r), or a lower limit of it; 1 makes the radii infinite.

    Returns
    -------
    FirstOrderRadii
        0 where the probability is <= 1/2.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong shape or range.
    """
    checks.vectors("x", x)
    shift = torch.as_tensor(half_space_shift(probability), dtype=x.dtype, device=x.device)
    sigma = model.encode(x)[1]
    least = sigma.min(dim=1).values
    gram = encoder_gram(model, x)
    whitened = _spectral(gram / (sigma[:, :, None] * sigma[:, None, :]))
    frobenius = gram.diagonal(dim1=1, dim2=2).sum(1).sqrt()
    radii = torch.stack([least / frobenius, least / _spectral(gram), 1 / whitened]) * shift
    return FirstOrderRadii(*torch.where(shift > 0, radii, 0.0))


@torch.no_grad()
def linearised_radii(
    model: GaussianVAE,
    x: Tensor,
    r: float | Tensor,
    *,
    samples: int = 200,
    seed: Seed = 0,
) -> LinearisedRadii:
    """Return the margins of the model whose encoder and decoder are linearised, the decoder at each of its samples.

    Parameters
    ----------
    model : GaussianVAE
    x : Tensor, shape (n, d_x)
    r : float or Tensor, shape (n,)
        >= 0.
    samples : int
        Draws of eta, the same for every point.
    seed : int or torch.Generator
        See :mod:`vaerobust.randomness`.

    Returns
    -------
    LinearisedRadii

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong shape or range.
    """
    checks.vectors("x", x)
    checks.count("samples", samples)
    r = checks.per_point("r", r, len(x), x)
    mu, sigma = model.encode(x)
    eta = normal(samples, mu, as_generator(seed, x))
    found = [
        _linearised(model, x[i], r[i], mu[i], sigma[i], eta) for i in slices(len(x), max(1, POINTS // samples))
    ]  # fmt: skip
    return LinearisedRadii(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def _linearised(
    model: GaussianVAE, x: Tensor, r: Tensor, mu: Tensor, sigma: Tensor, eta: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    z = mu[:, None] + sigma[:, None] * eta
    moved = decode_all(model, z) - model.decode(mu)[:, None]  # (n, samples, d_x)
    slopes = decoder_jacobian(model, z.flatten(0, 1)).unflatten(0, z.shape[:2])  # (n, samples, d_x, d_z)
    left, singular, right = torch.linalg.svd(encoder_jacobian(model, x), full_matrices=False)
    slopes = slopes @ (left * singular[:, None])[:, None]  # in the basis of the encoder's right singular vectors
    gram = slopes.mT @ slopes
    norm = torch.linalg.eigvalsh(gram)[..., -1].clamp(min=0).sqrt()
    aware = ((r[:, None] - moved.norm(dim=-1)) / norm).median(dim=1).values.clamp(min=0)
    # in double precision: the secular equation below divides by small differences
    constant = moved.double().pow(2).sum(-1).mean(1)
    linear = (slopes.mT @ moved[..., None]).double()[..., 0].mean(1)
    values, vectors = torch.linalg.eigh(gram.double().mean(1))
    along = (vectors.mT @ linear[..., None])[..., 0]
    radius, best = _largest_ball(r.double() ** 2 - constant, along, values.clamp(min=0))
    direction = (right.mT.double() @ (vectors @ best[..., None]))[..., 0]
    return aware, radius.to(x), (direction / direction.norm(dim=1, keepdim=True).clamp(min=1e-300)).to(x)


def _largest_ball(room: Tensor, linear: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest R with max over ||v|| <= R of 2 b'v + v' diag(values) v at most ``room``, and the v.

    The maximum lies on the sphere, at v = (nu - values)^-1 b with nu above the largest value; R and the maximum fall as
    nu grows, so nu itself is halved for.
    """
    top = values[:, -1:]
    # b orthogonal to the top eigenvector is the hard case, in which no nu reaches far: step aside by a hair
    scale = linear.norm(dim=1, keepdim=True) + top * 1e-3 + 1e-300
    last = torch.where(linear[:, -1:].abs() < 1e-9 * scale, 1e-9 * scale, linear[:, -1:])
    linear = torch.cat([linear[:, :-1], last], 1)
    low, high = torch.full_like(top, -60.0), torch.full_like(top, 60.0)  # nu = top + exp(.) scale
    for _ in range(100):
        middle = (low + high) / 2
        v = linear / (top + middle.exp() * scale - values)
        over = (2 * linear * v + values * v**2).sum(1, keepdim=True) > room[:, None]
        low, high = torch.where(over, middle, low), torch.where(over, high, middle)
    v = linear / (top + high.exp() * scale - values)
    return torch.where(room > 0, v.norm(dim=1), 0.0), v


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
