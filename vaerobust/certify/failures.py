"""What samples of the unperturbed model say about the noise that fails.

Noise eta fails at the point x if it takes the reconstruction further than r: D(x) > r. The set of such noise is called
B here and in chapter 5. A certificate needs to know how likely B is, and how far from 0 it lies along each direction.

:func:`failures` counts the samples in B and sums their first two moments. :func:`confidence_limits` returns upper
limits on P(B) and on the moments of B, by the lemma "Moments of failure" of chapter 5 (lem-moments). What the limits
allow is computed in :mod:`vaerobust.certify.safe_shift`, and the certificate in :mod:`vaerobust.certify.certificates`.

Start reading at :func:`failures`, then :func:`confidence_limits`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from vaerobust import checks
from vaerobust.batches import slices
from vaerobust.certify.safe_shift import normal_density
from vaerobust.contract import check_model, decode_points, encode_points, require_distances, rows_at_once
from vaerobust.distance import distance, rounding
from vaerobust.jacobians import largest_eigenvalue
from vaerobust.model import GaussianVAE
from vaerobust.numerics import at_least_single, double
from vaerobust.randomness import Seed, as_generator, normal
from vaerobust.results import Result

BANDS = torch.cat([torch.zeros(1), torch.linspace(0.6, 1.0, 11)]).double()
"""Edges beta_j between the bands of thm-certified, which divide the directions of the latent space. Each band has
limits and a safe shift of its own. A direction a belongs to band j if beta_j <= (a' V a)^(1/2) <= beta_{j+1}. That
number, in [0, 1], says how far a perturbation moves the encoder along a, relative to the direction along which it moves
furthest. The last band is that direction alone. V is the ``metric`` of :func:`confidence_limits`."""
WEIGHTS = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0)
"""c_k of lem-moments: weights of V in the largest eigenvalue of (second moments + c_k V), which bounds both
together."""
FIRST_SHARE = 0.1
"""c'_k / c_k of lem-moments. First moments get smaller weights: their squares are about ten times smaller than second
moments."""
DRAWS = 2048
"""Draws of eta that are held at a time. Which numbers are drawn depends on it."""
GAMMAS = (0.03, 0.1, 0.3, 1.0, 3.0)
"""Values of gamma in lem-moments that are tried."""


@dataclass(frozen=True, eq=False)
class Failures(Result):
    """Number and moments of the samples that fail, D(x) > r, for one value of r.

    Attributes
    ----------
    number : Tensor, shape (n,)
        Number of samples that fail, from 0 to ``samples``.
    first : Tensor, shape (n, d_z)
        Sample mean of 1_B eta: eta where it fails, and 0 where it does not.
    second : Tensor, shape (n, d_z, d_z)
        Sample mean of 1_B eta eta'.
    samples : int
        Number of samples, whether they fail or not.
    """

    number: Tensor
    first: Tensor
    second: Tensor
    samples: int


class Limits(NamedTuple):
    """Upper confidence limits on the probability and the moments of the noise that fails, for each band of directions.

    Attributes
    ----------
    mass : Tensor, shape (n,)
        Limit of P(B): m_0.
    first : Tensor, shape (n, bands)
        Limit of |E[1_B a.eta]| for every unit vector a in the band: m_1.
    second : Tensor, shape (n, bands)
        Limit of E[1_B (a.eta)^2] for the same: m_2.
    """

    mass: Tensor
    first: Tensor
    second: Tensor


class MomentErrors(NamedTuple):
    """Upper limits on the errors of the samples' moments: eps_1 and eps_2 of lem-moments at m_0, each of shape (n,)."""

    first: Tensor
    second: Tensor


@torch.no_grad()
def failures(
    model: GaussianVAE,
    x: Tensor,
    r_values: Sequence[float | Tensor],
    *,
    samples: int = 100_000,
    seed: Seed = 2,
) -> list[Failures]:
    """Count the noise that takes D(x) beyond each of some values of r, and sum its first two moments.

    Noise counts as failing also where D(x) is below r by no more than what rounding may have taken from it
    (:func:`vaerobust.distance.rounding`): about 2e-5 of r for 784 pixels in single precision.

    Parameters
    ----------
    model : GaussianVAE
    x : Tensor, shape (n, d_x)
    r_values : sequence of float or Tensor of shape (n,)
        Values of r, >= 0, in input units, chosen with other samples. The same samples serve all values.
    samples : int
        Draws of eta, the same for every point. Any number fits in memory, since only sums are kept.
    seed : int or torch.Generator
        See :mod:`vaerobust.randomness`.

    Returns
    -------
    list of Failures
        One for each r.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong shape or range.
    """
    checks.vectors("x", x)
    checks.count("samples", samples)
    values = [checks.per_point("r_values", one, len(x), x) for one in checks.sequence("r_values", r_values)]
    if not values:
        raise ValueError("r_values must hold at least one value of r, but holds none")
    generator = as_generator(seed, x)
    check_model(model, x)
    mu, sigma = encode_points(model, x)  # each (n, d_z)
    centre = decode_points(model, mu, x)  # (n, d_x)
    r = torch.stack(values, 1) * (1 - rounding(x.shape[1], x.dtype))  # (n, values): D that rounding lowered fails too
    width = mu.shape[1]
    total = double(torch.zeros_like(r)).new_zeros(*r.shape, 1 + width + width**2)
    rows = rows_at_once(model, x)
    for draws in slices(samples, DRAWS):
        eta = normal(draws.stop - draws.start, mu, generator)  # (draws, d_z)
        for j in slices(len(eta), rows):
            powers = _powers(at_least_single(eta[j]))
            for i in slices(len(x), max(1, rows // len(eta[j]))):
                d = require_distances(distance(model, mu[i, None], sigma[i, None], eta[j], centre[i, None]))
                fails = d[:, None] > r[i, :, None]  # (points, values, draws)
                total[i] += _sums(fails, powers).to(total.device)
    count, first, second = total.split([1, width, width**2], dim=2)
    return [
        Failures(count[:, k, 0], first[:, k] / samples, second[:, k].unflatten(1, (width, width)) / samples, samples)
        for k in range(len(values))
    ]


def _powers(eta: Tensor) -> Tensor:
    """Return 1, eta and eta eta' side by side, shape (draws, 1 + d_z + d_z^2)."""
    return torch.cat([torch.ones_like(eta[:, :1]), eta, (eta[:, :, None] * eta[:, None]).flatten(1)], 1)


def _sums(fails: Tensor, powers: Tensor) -> Tensor:
    """Return the sums over the draws that fail of 1, eta and eta eta', in double precision.

    One matrix product makes all of them. The number is counted apart, since some devices round the terms of a product.
    """
    sums = double(fails.to(powers.dtype) @ powers)
    sums[..., 0] = double(fails.sum(-1))
    return sums


def confidence_limits(found: Failures, metric: Tensor, alpha: float) -> Limits:
    """Return limits on what fails that hold all at once, for all directions, with probability 1 - alpha (lem-moments).

    The largest true moment over all directions is reached in one direction, which does not depend on the draws. The
    samples' largest moment is at least the samples' moment in that direction. So an inequality for that single
    direction is enough, whatever the number of latents.

    Parameters
    ----------
    found : Failures
    metric : Tensor, shape (n, d_z, d_z)
        V of lem-moments: W_0 / lambda_max(W_0) with W_0 = S^-1 J J' S^-1, which does not depend on the draws.
    alpha : float
        Probability that some limit is too low, in (0, 1). The limits of P(B), of the first and of the second moments
        have a third of it each.

    Returns
    -------
    Limits
    """
    mass = mass_limit(found, alpha / 3).to(metric)
    errors = moment_errors(mass, found.samples, alpha)
    return Limits(mass, first_limits(found, metric, errors.first), second_limits(found, metric, errors.second))


class Counted(Protocol):
    """A number of draws that fail, shape (n,), among all draws."""

    @property
    def number(self) -> Tensor:
        """Number of draws that fail, shape (n,)."""

    @property
    def samples(self) -> int:
        """Number of draws."""


def mass_limit(found: Counted, alpha: float) -> Tensor:
    """Return the one-sided upper Clopper-Pearson limit of P(B), (n,), which is too low with probability <= alpha."""
    count = found.number.cpu().numpy()
    high = stats.beta.isf(alpha, count + 1, np.maximum(found.samples - count, 1))
    return torch.as_tensor(np.where(count == found.samples, 1.0, high))


def moment_errors(mass: Tensor, samples: int, alpha: float) -> MomentErrors:
    """Return eps_1 and eps_2 of lem-moments at m_0 = ``mass``.

    There are N weights c_k, and so N inequalities for the first and N for the second moments. Each is wrong with
    probability at most exp(-kappa). The errors are evaluated at the upper limit of P(B), where they are at least as
    large as at P(B) itself.
    """
    kappa = math.log(len(WEIGHTS) / (alpha / 3))
    # With s standard normal, the set |s| > edge has the largest moments among all sets of this probability
    edge = torch.as_tensor(stats.norm.isf(mass.cpu().numpy() / 2)).to(mass)  # e(m_0)
    density, tail = normal_density(edge), mass / 2
    # The lower tail of a mean of numbers >= 0 is bounded by their second moment, E[s^4; |s| > edge]
    fourth = 2 * ((edge**3 + 3 * edge) * density + 3 * tail)
    second = (2 * fourth * kappa / samples).sqrt()
    # The lower tail of a mean of numbers of both signs is bounded by E[s^2 exp(theta |s|); |s| > edge]. The theta of
    # the proof must not depend on the samples: it belongs to the mass in [P(B), 1] whose eps_1 is least. Since m_0 lies
    # in that interval, eps_1(m_0) is at least the error of the proof
    square = 2 * (edge * density + tail)  # E[s^2; |s| > edge]
    theta = (2 * kappa / (samples * square)).sqrt()
    lower = edge - theta  # completing the square turns the exponential moment into moments beyond this edge
    moved = torch.special.ndtr(-lower)
    tilted = 2 * torch.exp(theta**2 / 2) * ((1 + theta**2) * moved + (lower + 2 * theta) * normal_density(lower))
    return MomentErrors(kappa / (samples * theta) + theta * tilted / 2, second)


def first_limits(found: Failures, metric: Tensor, error: Tensor) -> Tensor:
    """Return the limit of |E[1_B a.eta]| in each band: the least over c'_k and gamma in lem-moments, (n, bands)."""
    weights, edges = torch.tensor(WEIGHTS).to(metric), BANDS.to(metric) ** 2
    outer = found.first[:, :, None] * found.first[:, None, :]  # (n, d_z, d_z)
    options = []
    for gamma in GAMMAS:  # (m + eps)^2 <= (1 + gamma) m^2 + (1 + 1 / gamma) eps^2
        joint = (1 + gamma) * outer[:, None] + FIRST_SHARE * (weights[:, None, None] * metric[:, None])
        largest = largest_eigenvalue(joint) + (1 + 1 / gamma) * error[:, None] ** 2  # (n, weights)
        # In band j, a' V a >= beta_j^2, so c' beta_j^2 of the joint bound is due to V and can be taken off
        options.append(largest[:, :, None] - FIRST_SHARE * weights[:, None] * edges)  # (n, weights, bands)
    return torch.cat(options, 1).amin(1).clamp(min=0).sqrt()


def second_limits(found: Failures, metric: Tensor, error: Tensor) -> Tensor:
    """Return the limit of E[1_B (a.eta)^2] in each band: the least over c_k in lem-moments, (n, bands)."""
    weights, edges = torch.tensor(WEIGHTS).to(metric), BANDS.to(metric) ** 2
    joint = found.second[:, None] + weights[:, None, None] * metric[:, None]  # (n, weights, d_z, d_z)
    largest = largest_eigenvalue(joint) + error[:, None]  # (n, weights)
    return (largest[:, :, None] - weights[:, None] * edges).amin(1).clamp(min=0)
