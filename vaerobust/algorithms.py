"""Algorithms 1 and 2 of Appendix D: each as printed, and as what it estimates, computed directly.

Algorithm 1 finds the smallest r at which a VAE is r-robust to its own encoder's noise: the median of D(x).
Algorithm 2 finds the radius at which a perturbation in a random direction breaks r-robustness. Eq. 4 asks for every
direction, so that radius overstates the margin; it is named *random-direction radius* here, never margin.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from scipy import stats
from torch import Tensor

from vaerobust import checks
from vaerobust.criterion import Quantile, distance_quantile, distances, distances_in_random_directions, slices
from vaerobust.model import GaussianVAE

POINTS = 1024
"""Pairs of point and radius whose samples are held at a time."""


class Printed(NamedTuple):
    """Outcome of an algorithm run as printed, at one point.

    Attributes
    ----------
    value : float
        r of Algorithm 1 or R of Algorithm 2; NaN where the loop did not end.
    iterations : int
        Passes of the while loop.
    samples : int
        Samples drawn in all.
    ended : bool
        False where the loop would go on for ever, or the limit of iterations was met.
    """

    value: float
    iterations: int
    samples: int
    ended: bool


class RandomDirectionRadius(NamedTuple):
    """Radius at which random directions break r-robustness half of the time: an estimate, not a margin.

    Attributes
    ----------
    radius : Tensor, shape (n,)
        0 where P(D <= r) <= 1/2 without any perturbation; ``limit`` where censored.
    low, high : Tensor, shape (n,)
        Binomial interval from the same samples; exact where their number within r falls as the radius grows.
    censored : Tensor of bool, shape (n,)
        True where the search met its limit: the radius is at least ``limit``.
    limit : float
    samples : int
        Samples at each radius.
    confidence : float
    tests : Tensor of int, shape (n,)
        Radii at which samples were drawn, for each point.
    """

    radius: Tensor
    low: Tensor
    high: Tensor
    censored: Tensor
    limit: float
    samples: int
    confidence: float
    tests: Tensor


def algorithm_1_as_printed(
    model: GaussianVAE,
    x: Tensor,
    *,
    step: float = 0.01,
    samples: int = 1000,
    generator: torch.Generator | None = None,
    most: int = 100_000,
) -> Printed:
    """Run Algorithm 1 (Appendix D.1.2) as it stands: raise r by ``step`` until half of new samples fall within.

    Parameters
    ----------
    model : GaussianVAE
    x : Tensor, shape (1, d_x)
    step : float
        > 0, in the units of D.
    samples : int
        New samples at each r.
    generator : torch.Generator, optional
    most : int
        Limit of iterations.

    Returns
    -------
    Printed

    Raises
    ------
    ValueError
        If ``x`` holds more than one point or an argument is out of range.
    """
    _one_point(x)
    checks.positive("step", step)
    checks.count("most", most)
    r, probability, iterations = 0.0, 0.0, 0
    while probability < 0.5 and iterations < most:
        d = distances(model, x, samples=samples, generator=generator)
        r += step
        probability = float((d <= r).double().mean())
        iterations += 1
    return Printed(r if probability >= 0.5 else float("nan"), iterations, iterations * samples, probability >= 0.5)


def minimum_r(
    model: GaussianVAE,
    x: Tensor,
    *,
    level: float = 0.5,
    samples: int = 1000,
    generator: torch.Generator | None = None,
    confidence: float = 0.95,
) -> Quantile:
    """Estimate what Algorithm 1 looks for, at all points at once: the median of D(x), Eq. 1.

    Parameters
    ----------
    model : GaussianVAE
    x : Tensor, shape (n, d_x)
    level : float
        Another quantile than the median; at 0.9 it is the r of Fig. 10 (i).
    samples, generator
        As in :func:`vaerobust.criterion.distances`.
    confidence : float

    Returns
    -------
    Quantile

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong shape or range.
    """
    return distance_quantile(distances(model, x, samples=samples, generator=generator), level, confidence=confidence)


def algorithm_2_as_printed(
    model: GaussianVAE,
    x: Tensor,
    r: float,
    *,
    step: float = 0.1,
    samples: int = 1000,
    start: float = 10.0,
    generator: torch.Generator | None = None,
) -> Printed:
    """Run Algorithm 2 (Appendix D.2) as it stands, from ``start`` down.

    It perturbs sigma, lowers R before it tests (so that it returns one step less than the radius it accepted) and
    goes on for ever where P(D <= r) < 1/2 at R = 0, since the norm of R nu / ||nu|| grows again below 0. Here that
    case ends, and says so, at the first R below 0.

    Parameters
    ----------
    model : GaussianVAE
    x : Tensor, shape (1, d_x)
    r : float
        >= 0.
    step, start : float
        > 0, in input units (pixels, 2-norm).
    samples : int
        New samples at each R.
    generator : torch.Generator, optional

    Returns
    -------
    Printed

    Raises
    ------
    ValueError
        If ``x`` holds more than one point or an argument is out of range.
    """
    _one_point(x)
    checks.positive("r", r, zero=True)
    checks.positive("step", step)
    radius, probability, iterations = checks.positive("start", start), 0.0, 0
    while probability < 0.5 and radius >= 0:
        d = distances_in_random_directions(
            model, x, radius, samples=samples, generator=generator, perturb_sigma=True
        )  # fmt: skip
        radius -= step
        probability = float((d < r).double().mean())
        iterations += 1
    return Printed(radius if probability >= 0.5 else float("nan"), iterations, iterations * samples, probability >= 0.5)


def random_direction_radius(
    model: GaussianVAE,
    x: Tensor,
    r: float | Tensor,
    *,
    limit: float = 10.0,
    samples: int = 1000,
    grid: int = 16,
    tolerance: float = 0.01,
    seed: int = 0,
    perturb_sigma: bool = False,
    confidence: float = 0.95,
) -> RandomDirectionRadius:
    """Estimate what Algorithm 2 looks for, at all points at once.

    A grid from ``limit`` down brackets the largest radius at which at least half of the samples have D <= r, then
    bisection narrows the bracket. Every radius meets the same noise and directions, so that the share of samples is a
    fixed function of the radius and a search in it makes sense.

    Parameters
    ----------
    model : GaussianVAE
    x : Tensor, shape (n, d_x)
    r : float or Tensor, shape (n,)
        >= 0.
    limit : float
        Largest radius looked at, in input units; the paper starts from 10.
    samples : int
        Pairs of noise and direction, the same for every radius and point.
    grid : int
        Radii of the grid. A rise and fall of the share between two of them goes unseen.
    tolerance : float
        Width, in input units, at which bisection ends.
    seed : int
        Of noise and directions.
    perturb_sigma : bool
        As Algorithm 2 prints; Eq. 3 does not.
    confidence : float
        Of the interval.

    Returns
    -------
    RandomDirectionRadius

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong shape or range.
    """
    checks.vectors("x", x)
    r = checks.per_point("r", r, len(x), x)
    checks.positive("limit", limit)
    checks.positive("tolerance", tolerance)
    checks.count("grid", grid, least=2)
    checks.probability("confidence", confidence)
    n = len(x)
    tail = (1 - confidence) / 2
    # a share of exactly 1/2 counts as robust in the printed algorithm, so the middle search asks for >= samples / 2
    fewest, most = stats.binom(samples, 0.5).ppf([tail, 1 - tail])
    needed = torch.tensor([samples / 2, most + 1, fewest], dtype=x.dtype, device=x.device).repeat_interleave(n)

    tests = torch.zeros(n, dtype=torch.int64, device=x.device)

    def within(points: Tensor, radius: Tensor) -> Tensor:
        """Count the samples with D <= r at the given rows of x and radii."""
        tests.add_(points.bincount(minlength=n))
        counts = []
        for some in slices(len(points), POINTS):
            generator = torch.Generator(x.device).manual_seed(seed)
            d = distances_in_random_directions(
                model, x[points[some]], radius[some], samples=samples, generator=generator, perturb_sigma=perturb_sigma
            )  # fmt: skip
            counts.append((d <= r[points[some], None]).sum(1))
        return torch.cat(counts)

    every = torch.arange(n, device=x.device)
    radii = torch.linspace(0, limit, grid + 1, dtype=x.dtype, device=x.device)
    counts = within(every.repeat_interleave(len(radii)), radii.repeat(n)).reshape(n, -1)
    held = counts.repeat(3, 1) >= needed[:, None]
    last = torch.where(held.any(1), len(radii) - 1 - held.flip(1).int().argmax(1), -1)
    low, high = radii[last.clamp(min=0)], radii[(last + 1).clamp(max=len(radii) - 1)]
    open_ = (last >= 0) & (last < len(radii) - 1)
    while open_.any() and float((high - low)[open_].max()) > tolerance:
        rows = open_.nonzero()[:, 0]
        middle = (low[rows] + high[rows]) / 2
        holds = within(rows % n, middle) >= needed[rows]
        low[rows] = torch.where(holds, middle, low[rows])
        high[rows] = torch.where(holds, high[rows], middle)
    # the true radius may lie anywhere in the last bracket, so the upper limit is that bracket's upper end
    radius, surely = torch.where(last >= 0, low, 0.0).reshape(3, n)[:2]
    at_most = torch.where(last >= 0, high, 0.0).reshape(3, n)[2]
    return RandomDirectionRadius(
        radius, surely, torch.where(held.reshape(3, n, -1)[2, :, -1], torch.inf, at_most),
        held[:n, -1], limit, samples, confidence, tests,
    )  # fmt: skip


def _one_point(x: Tensor) -> None:
    checks.vectors("x", x)
    if len(x) != 1:
        raise ValueError(f"x must be one point, shape (1, d), since the printed algorithm is; but has {tuple(x.shape)}")
