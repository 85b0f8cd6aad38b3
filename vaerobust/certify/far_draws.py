"""What draws far out say about the noise that fails, where failures are too rare for draws of the noise itself.

The mathematics is the lemma "Failures far out" of chapter 5 (lem-far) and the theorem that follows from it
(thm-far). Where r is large, none of 100,000 draws of eta fails, and nothing else can be learned from them: the
half-space lemma certifies a shift of about four standard deviations, whether failures begin there or at forty. So eta
is drawn from a wider normal distribution N(0, C) instead, spread out along the directions in which the encoder moves.
The share of these draws that fail, F, bounds the probability of failure after any shift by Hoelder's inequality, with a
price that depends on C and the shift only. Both are known in closed form, also at their worst over all shifts that a
perturbation can cause.

Start reading at :func:`far_failures`, which chooses C by pilot draws and counts failures with new ones, then
:func:`allowed_radius`, which turns the count into a radius.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from scipy import stats
from torch import Tensor

from vaerobust import checks
from vaerobust.batches import slices
from vaerobust.certify.failures import DRAWS
from vaerobust.certify.safe_shift import half_space_length
from vaerobust.contract import check_model, decode_points, encode_points, require_distances, rows_at_once
from vaerobust.distance import distance, rounding
from vaerobust.jacobians import largest_eigenvalue
from vaerobust.model import GaussianVAE
from vaerobust.numerics import at_least_single
from vaerobust.randomness import Seed, as_generator, as_number, normal
from vaerobust.results import Result

ORDERS = (1.05, 1.1, 1.2, 1.3, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0, 6.0)
"""Values of the order a > 1 of lem-far that are tried."""
LEVELS = (1e-5, 1e-4, 1e-3, 0.01, 0.03, 0.06, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45)
"""Values of b in thm-far that are tried: the bound on the probability of failure up to which lem-far is used. Beyond,
the half-space lemma goes on."""
SPREADS = (1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 48.0)
"""Sizes of C that pilot draws compare. Along the direction in which the encoder moves furthest, C is (s + 1) / 2 for
spread s, its variance in units of that of eta."""
PILOT = 1000
"""Pilot draws of each spread."""
PILOT_LEVEL = 0.3
"""The pilot's limit of F is too low with this probability; a better guess of F is not needed to choose a spread."""


@dataclass(frozen=True, eq=False)
class FarFailures(Result):
    """Number of failures, D > r, among draws of the noise from N(0, C) in place of N(0, I).

    Attributes
    ----------
    number : Tensor, shape (n,)
        Number of draws that fail. Where no spread was promising there are no draws, and it is ``samples``.
    covariance : Tensor, shape (n, d_z, d_z)
        C, with no eigenvalue below 1; the identity where there are no draws.
    samples : int
        Number of draws, for each point.
    """

    number: Tensor
    covariance: Tensor
    samples: int


class _Points(NamedTuple):
    """What D is sampled with at some points."""

    mu: Tensor  # (n, d_z)
    sigma: Tensor  # (n, d_z)
    centre: Tensor  # (n, d_x)
    r: Tensor  # (n,), smaller than r by what rounding may take from D

    def at(self, rows: Tensor) -> _Points:
        """Return the same for some of the points."""
        return _Points(*(one[rows] for one in self))


class _Choice(NamedTuple):
    """What the pilot draws chose."""

    promised: Tensor  # (n,), the radius that is hoped for
    covariance: Tensor  # (n, d_z, d_z), C
    promising: Tensor  # (n,), whether that radius is worth the draws


@torch.no_grad()
def far_failures(
    model: GaussianVAE,
    x: Tensor,
    r: float | Tensor,
    metric: Tensor,
    least: Tensor,
    *,
    samples: int = 100_000,
    seed: Seed = 3,
) -> FarFailures:
    """Choose for each point how far to spread the noise, and count the failures of noise drawn like that.

    Parameters
    ----------
    model : GaussianVAE
    x : Tensor, shape (n, d_x)
    r : float or Tensor, shape (n,)
        Largest distance that counts as robust, >= 0, in input units; chosen with other samples.
    metric : Tensor, shape (n, d_z, d_z)
        W of lem-shift for a ball of about the size that may be certified. C is spread along its large eigenvectors.
    least : Tensor, shape (n,)
        No draws are made where the pilot draws promise no larger radius than this, in input units.
    samples : int
        Draws of the chosen distribution. All points share the standard normal numbers that they are made of.
    seed : int or torch.Generator
        See :mod:`vaerobust.randomness`.

    Returns
    -------
    FarFailures

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong shape or range.
    """
    checks.vectors("x", x)
    r = checks.per_point("r", r, len(x), x)
    checks.count("samples", samples)
    stream = as_number(as_generator(seed, x), x)
    check_model(model, x)
    mu, sigma = encode_points(model, x)
    points = _Points(mu, sigma, decode_points(model, mu, x), r * (1 - rounding(x.shape[1], x.dtype)))
    choice = _chosen_spread(model, points, metric, least, samples, stream + 1)
    number = torch.full_like(choice.promised, samples)
    rows = torch.nonzero(choice.promising)[:, 0]
    if len(rows):
        number[rows] = _count(model, points.at(rows), choice.covariance[rows], samples, as_generator(stream, x)).to(
            number
        )
    return FarFailures(number, choice.covariance, samples)


def _chosen_spread(
    model: GaussianVAE, points: _Points, metric: Tensor, least: Tensor, samples: int, stream: int
) -> _Choice:  # fmt: skip
    """Choose for each point the spread that promises the largest radius; each spread has pilot draws of its own."""
    known = torch.isfinite(metric).all((1, 2))
    best = torch.where(known, least.to(metric), torch.inf)
    chosen = torch.eye(metric.shape[1]).to(metric).repeat(len(metric), 1, 1)
    promising, rows = torch.zeros_like(known), torch.nonzero(known)[:, 0]
    for k, spread in enumerate(SPREADS):
        if not len(rows):
            break
        covariance = spread_out(metric[rows], spread)
        fails = _count(model, points.at(rows), covariance, PILOT, as_generator(stream + k, points.mu)).to(metric)
        # Where no pilot draw fails, the best that can be hoped for is that none of all draws does
        draws = torch.where(fails > 0, PILOT, samples)
        share = torch.as_tensor(stats.beta.isf(PILOT_LEVEL, (fails + 1).cpu(), (draws - fails).clamp(min=1).cpu()))
        promised = allowed_radius(share.to(metric), covariance, metric[rows])
        better = promised > best[rows]
        best[rows] = torch.where(better, promised, best[rows])
        chosen[rows] = torch.where(better[:, None, None], covariance, chosen[rows])
        promising[rows] |= better
        rows = rows[promised > 0]  # a spread that promises nothing is too wide, and so are all larger ones
    return _Choice(best, chosen, promising)


def spread_out(metric: Tensor, spread: float) -> Tensor:
    """Return C, shape (n, d_z, d_z), with the variances (1 + max(1, s w / w_1)) / 2 along the eigenvectors of W.

    Here w is the eigenvalue and w_1 the largest one. At order a = 2, lem-far depends on det K and on the largest
    eigenvalue of K^-1 W, K = I + 2 (C - I). Of all C with the same det K, this one makes that eigenvalue smallest.
    """
    values, vectors = torch.linalg.eigh(metric)
    relative = values / values[:, -1:].clamp(min=1e-300)
    variances = (1 + (spread * relative).clamp(min=1)) / 2  # (n, d_z)
    return (vectors * variances[:, None]) @ vectors.mT


def _count(
    model: GaussianVAE, points: _Points, covariance: Tensor, samples: int, generator: torch.Generator
) -> Tensor:  # fmt: skip
    """Return the number of draws from N(0, C) that fail, shape (n,)."""
    values, vectors = torch.linalg.eigh(covariance)
    root = (vectors * values.sqrt()[:, None]).to(at_least_single(points.mu))  # (n, d_z, d_z), C = root root'
    rows, total = rows_at_once(model, points.centre), torch.zeros(len(root), dtype=torch.int64, device=points.mu.device)
    for draws in slices(samples, DRAWS):
        eta = normal(draws.stop - draws.start, points.mu, generator)  # (draws, d_z), the same for all points
        for j in slices(len(eta), rows):
            for i in slices(len(root), max(1, rows // len(eta[j]))):
                some = points.at(torch.arange(len(root), device=total.device)[i])
                noise = (at_least_single(eta[j]) @ root[i].mT).to(eta)  # (points, draws, d_z)
                d = distance(model, some.mu[:, None], some.sigma[:, None], noise, some.centre[:, None])
                total[i] += (require_distances(d) > some.r[:, None]).sum(1)
    return total


def allowed_radius(share: Tensor, covariance: Tensor, metric: Tensor) -> Tensor:
    """Return the radius that thm-far certifies within the ball of a metric.

    Parameters
    ----------
    share : Tensor, shape (n,)
        F, an upper limit of the share of draws from N(0, C) that fail.
    covariance, metric : Tensor, shape (n, d_z, d_z)
        C, with no eigenvalue below 1, and W of lem-shift; W may be infinite.

    Returns
    -------
    Tensor, shape (n,)
        In input units, without regard to the size of the ball that W holds for; 0 where nothing is certified.
    """
    known = torch.isfinite(metric).all((1, 2))
    same = torch.eye(metric.shape[1]).to(metric)
    metric = torch.where(known[:, None, None], metric, same)
    orders = torch.tensor(ORDERS).to(metric)
    variances, vectors = torch.linalg.eigh(covariance)  # (n, d_z)
    # K_a = I + a (C - I) has the eigenvectors of C
    stretched = 1 + orders[:, None] * (variances[:, None] - 1).clamp(min=0)  # (n, orders, d_z)
    logs = (1 - 1 / orders) * share.clamp(min=1e-300).log()[:, None]
    logs = logs + variances.log().sum(-1)[:, None] / 2 - stretched.log().sum(-1) / (2 * orders)  # (n, orders)
    turned = vectors.mT @ metric @ vectors  # W in the eigenvectors of C
    root = stretched.rsqrt()
    reach = largest_eigenvalue(
        root[..., None] * turned[:, None] * root[..., None, :]
    )  # of K^-1/2 W K^-1/2, (n, orders)
    # lem-far over the ellipsoid of radius R: log b = logs + (a - 1) / 2 R^2 reach, so this R has the bound b
    levels = torch.tensor(LEVELS).to(metric)
    room = levels.log() - logs[..., None]  # (n, orders, levels)
    radius = (2 * room.clamp(min=0) / ((orders - 1)[:, None] * reach[..., None]).clamp(min=1e-300)).sqrt()
    # lem-half-space goes on from there
    further = half_space_length(levels) / largest_eigenvalue(metric).clamp(min=1e-300).sqrt()[:, None]  # (n, levels)
    total = torch.where(room >= 0, radius + further[:, None], 0.0)
    return torch.where(known, total.amax((1, 2)), 0.0)
