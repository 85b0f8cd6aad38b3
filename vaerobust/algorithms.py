"""Algorithms 1 and 2 of Appendix D: each as printed, and as what it estimates, computed directly.

Algorithm 1 finds the smallest r at which a VAE is r-robust to its own encoder's noise: the median of D(x).
Algorithm 2 finds the radius at which a perturbation in a random direction breaks r-robustness. Eq. 4 asks for every
direction, so that radius overstates the margin; it is named *random-direction radius* here, never margin.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from scipy import stats
from torch import Tensor

from vaerobust import checks
from vaerobust.batches import ROWS, slices
from vaerobust.criterion import (
    Quantile,
    distance_quantile,
    distances,
    distances_in_random_directions,
)
from vaerobust.model import GaussianVAE
from vaerobust.randomness import DIRECTIONS, Seed, as_generator, normal, unit_directions

HELD = 2**20
"""Pairs of point and sample that a search looks after at a time: about 50 MB."""
SCOUTS = 128
"""Samples that tell at which radii of a grid all of them have to be asked."""
RARE = 1e-9
"""Chance that the scouts pass over a radius."""


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
    drawn : Tensor of int, shape (n,)
        Samples drawn for each point, over all radii.
    """

    radius: Tensor
    low: Tensor
    high: Tensor
    censored: Tensor
    limit: float
    samples: int
    confidence: float
    drawn: Tensor


def algorithm_1_as_printed(
    model: GaussianVAE,
    x: Tensor,
    *,
    step: float = 0.01,
    samples: int = 1000,
    seed: Seed = 0,
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
    seed : int or torch.Generator
        See :mod:`vaerobust.randomness`.
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
    generator = as_generator(seed, x)
    r, probability, iterations = 0.0, 0.0, 0
    while probability < 0.5 and iterations < most:
        d = distances(model, x, samples=samples, seed=generator)
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
    seed: Seed = 0,
    confidence: float = 0.95,
) -> Quantile:
    """Estimate what Algorithm 1 looks for, at all points at once: the median of D(x), Eq. 1.

    Parameters
    ----------
    model : GaussianVAE
    x : Tensor, shape (n, d_x)
    level : float
        Another quantile than the median; at 0.9 it is the r of Fig. 10 (i).
    samples, seed
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
    return distance_quantile(distances(model, x, samples=samples, seed=seed), level, confidence=confidence)


def algorithm_2_as_printed(
    model: GaussianVAE,
    x: Tensor,
    r: float,
    *,
    step: float = 0.1,
    samples: int = 1000,
    start: float = 10.0,
    seed: Seed = 0,
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
    seed : int or torch.Generator
        See :mod:`vaerobust.randomness`.

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
    generator = as_generator(seed, x)
    radius, probability, iterations = checks.positive("start", start), 0.0, 0
    while probability < 0.5 and radius >= 0:
        d = distances_in_random_directions(
            model, x, radius, samples=samples, seed=generator, perturb_sigma=True
        )  # fmt: skip
        radius -= step
        probability = float((d < r).double().mean())
        iterations += 1
    return Printed(radius if probability >= 0.5 else float("nan"), iterations, iterations * samples, probability >= 0.5)


@torch.no_grad()
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
    fixed function of the radius and a search in it makes sense. On the grid all samples are asked, but for radii that a
    few of them rule out; while the bracket narrows, only those that differ between its ends, which are ever fewer.

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
    checks.count("samples", samples)
    checks.count("grid", grid, least=2)
    checks.probability("confidence", confidence)
    tail = (1 - confidence) / 2
    # a share of exactly 1/2 counts as robust in the printed algorithm, so the middle search asks for >= samples / 2
    fewest, most = stats.binom(samples, 0.5).ppf([tail, 1 - tail])
    radii = torch.linspace(0, limit, grid + 1, dtype=x.dtype, device=x.device)
    found = []
    for some in slices(len(x), max(1, HELD // samples)):
        draws = _Draws(model, x[some], r[some], samples, seed, perturb_sigma)
        brackets = _on_grid(draws, radii, [samples / 2, most + 1, fewest])
        (radius, outer), (surely, _), (_, at_most) = (_narrowed(draws, bracket, tolerance) for bracket in brackets)
        # the true radius may lie anywhere in the last bracket, so the upper limit is that bracket's upper end
        found.append((radius, surely, at_most, outer == torch.inf, draws.number))
    radius, low, high, censored, drawn = (torch.cat(parts) for parts in zip(*found, strict=True))
    return RandomDirectionRadius(radius, low, high, censored, limit, samples, confidence, drawn)


class _Draws:
    """Noise and directions, the same for every point and radius, and how many samples of D were made of them."""

    def __init__(
        self, model: GaussianVAE, x: Tensor, r: Tensor, samples: int, seed: int, perturb_sigma: bool
    ) -> None:  # fmt: skip
        self.model, self.x, self.r, self.samples = model, x, r, samples
        self.seed, self.perturb_sigma = seed, perturb_sigma
        mu, self.sigma = model.encode(x)
        self.centre = model.decode(mu)
        self.number = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        self.kept = list(self._noise()) if samples <= DIRECTIONS else None

    def _noise(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Draw eta and unit directions, some samples at a time."""
        generator = torch.Generator(self.x.device).manual_seed(self.seed)
        eta = normal(self.samples, self.sigma, generator)
        for j, direction in unit_directions(self.samples, self.x, generator):
            yield j, eta[j], direction

    def within(self, rows: Tensor, radius: Tensor, asked: Tensor) -> Tensor:
        """Tell for some points, each with a radius, which of the samples that are asked have D <= r; (k, samples)."""
        self.number[rows] += asked.sum(1)
        out = torch.zeros_like(asked)
        for j, eta, direction in self.kept or self._noise():
            if not asked[:, j.start :].any():
                break  # scouts are the first samples: the rest need not be drawn
            pairs = asked[:, j].nonzero()
            for some in slices(len(pairs), ROWS):
                at, draw = pairs[some].unbind(1)
                i = rows[at]
                mu, sigma = self.model.encode(self.x[i] + radius[at, None] * direction[draw])
                z = mu + eta[draw] * (sigma if self.perturb_sigma else self.sigma[i])
                out[at, draw + j.start] = (self.model.decode(z) - self.centre[i]).norm(dim=-1) <= self.r[i]
        return out


class _Bracket(NamedTuple):
    """Where enough samples are within r and where not, and which are: shapes (n,), (n,), (n, samples), (n, samples)."""

    low: Tensor
    high: Tensor
    at_low: Tensor
    at_high: Tensor
    needed: float


def _on_grid(draws: _Draws, radii: Tensor, needed: list[float]) -> list[_Bracket]:
    """Bracket the largest radius of a grid with as many samples within r as needed, for each of some numbers.

    The bracket is from 0 to 0 if there is none, and ends in infinity where the last radius of all will do.
    """
    n, last = len(draws.x), len(radii) - 1
    scouts = torch.arange(draws.samples, device=radii.device) < SCOUTS
    plausible = stats.binom(int(scouts.sum()), min(needed) / draws.samples).ppf(RARE)
    place = torch.full_like(draws.number, -1)
    for k in range(last, -1, -1):
        rows = (place < 0).nonzero()[:, 0]
        seen = draws.within(rows, radii[k].expand(len(rows)), scouts.expand(len(rows), -1))
        place[rows[seen.sum(1) >= plausible]] = k
    nothing = torch.zeros(n, draws.samples, dtype=torch.bool, device=radii.device)
    found = [
        _Bracket(torch.zeros_like(draws.r), torch.zeros_like(draws.r), nothing.clone(), nothing.clone(), number)
        for number in needed
    ]
    open_ = torch.ones(len(needed), n, dtype=torch.bool, device=radii.device)
    place = torch.where(place >= 0, (place + 1).clamp(max=last), -1)  # the bracket's outer end is asked in full too
    outer, at_outer = torch.full_like(draws.r, torch.inf), nothing
    rows = (place >= 0).nonzero()[:, 0]
    while len(rows):
        radius = radii[place[rows]]
        now = draws.within(rows, radius, torch.ones_like(at_outer[rows]))
        for bracket, is_open in zip(found, open_, strict=True):
            held = is_open[rows] & (now.sum(1) >= bracket.needed)
            here = rows[held]
            bracket.low[here], bracket.high[here] = radius[held], outer[here]
            bracket.at_low[here], bracket.at_high[here] = now[held], at_outer[here]
            is_open[here] = False
        outer[rows], at_outer[rows] = radius, now
        place[rows] -= 1
        rows = rows[(place[rows] >= 0) & open_[:, rows].any(0)]
    return found


def _narrowed(draws: _Draws, bracket: _Bracket, tolerance: float) -> tuple[Tensor, Tensor]:
    """Halve a bracket until it is as narrow as the tolerance; samples that agree at its ends are not asked between."""
    low, high, at_low, at_high, needed = bracket
    rows = torch.isfinite(high).nonzero()[:, 0]
    while len(rows := rows[high[rows] - low[rows] > tolerance]):
        middle = (low[rows] + high[rows]) / 2
        asked = at_low[rows] != at_high[rows]
        now = torch.where(asked, draws.within(rows, middle, asked), at_low[rows])
        holds = now.sum(1) >= needed
        inner, outer = rows[holds], rows[~holds]
        low[inner], at_low[inner] = middle[holds], now[holds]
        high[outer], at_high[outer] = middle[~holds], now[~holds]
    return low, high


def _one_point(x: Tensor) -> None:
    checks.vectors("x", x)
    if len(x) != 1:
        raise ValueError(f"x must be one point, shape (1, d), since the printed algorithm is; but has {tuple(x.shape)}")
