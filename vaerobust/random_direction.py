"""The random-direction radius: the norm at which a perturbation in a random direction breaks r-robustness.

This is what Algorithm 2 looks for. Eq. 4 asks for every direction, so this radius overstates the margin; it is never
called a margin here. Begin with :func:`random_direction_radius`.

The search uses one set of samples. A sample is a pair of noise eta and direction nu; at each radius it either lies
within r or not. With common samples the number within r is a fixed function of the radius, which a grid brackets and
bisection narrows. While the bracket narrows, samples that agree at both of its ends are not asked again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from scipy import stats
from torch import Tensor

from vaerobust import checks
from vaerobust.batches import slices
from vaerobust.contract import check_model, decode_points, encode_points, require_distances, rows_at_once
from vaerobust.distance import distance
from vaerobust.model import GaussianVAE
from vaerobust.randomness import DIRECTIONS, Seed, as_number, normal, unit_directions
from vaerobust.results import Result

PAIRS = 2**20
"""Pairs of point and sample in one search: about 50 MB of state. More points are searched one part after the other."""
SCOUTS = 128
"""Samples asked first at each radius of the grid, to rule out radii at which far too few of them lie within r."""
MISSED = 1e-9
"""Probability with which the scouts rule out a radius wrongly."""


@dataclass(frozen=True)
class RandomSearch:
    """How the random-direction radius is searched for.

    Attributes
    ----------
    limit : float
        Largest radius tried, > 0, in input units; the paper starts from 10.
    samples : int
        Pairs of noise and direction, the same for every radius and point.
    grid : int
        Radii of the grid, >= 2. If the share of samples within r falls and rises between two of them, the search does
        not see it.
    tolerance : float
        Width of the bracket at which bisection ends, > 0, in input units.
    perturb_sigma : bool
        True takes sigma at x + delta, as Algorithm 2 is printed. False takes it at x, as Eq. 3 does.
    confidence : float
        Of the interval, in (0, 1).

    Raises
    ------
    ValueError
        If a value is out of its range.
    """

    limit: float = 10.0
    samples: int = 1000
    grid: int = 16
    tolerance: float = 0.01
    perturb_sigma: bool = False
    confidence: float = 0.95

    def __post_init__(self) -> None:
        checks.positive("RandomSearch.limit", self.limit)
        checks.positive("RandomSearch.tolerance", self.tolerance)
        checks.count("RandomSearch.samples", self.samples)
        checks.count("RandomSearch.grid", self.grid, least=2)
        checks.probability("RandomSearch.confidence", self.confidence)
        checks.flag("RandomSearch.perturb_sigma", self.perturb_sigma)


@dataclass(frozen=True, eq=False)
class RandomDirectionRadius(Result):
    """Radius at which random directions break r-robustness half of the time: an estimate, and no margin.

    Attributes
    ----------
    radius : Tensor, shape (n,)
        In input units; 0 where P(D(x) <= r) < 1/2 without any perturbation, ``limit`` where censored.
    low, high : Tensor, shape (n,)
        Binomial interval from the same samples. It is exact where the number of samples within r falls as the radius
        grows.
    censored : Tensor of bool, shape (n,)
        True where the search met its limit: the radius is at least ``limit``.
    limit : float
        Largest radius tried.
    samples : int
        Samples at each radius.
    confidence : float
        Of the interval, for each point by itself.
    drawn : Tensor of int, shape (n,)
        Samples of D that were computed for each point, over all radii.
    """

    radius: Tensor
    low: Tensor
    high: Tensor
    censored: Tensor
    limit: float
    samples: int
    confidence: float
    drawn: Tensor


@torch.no_grad()
def random_direction_radius(
    model: GaussianVAE, x: Tensor, r: float | Tensor, search: RandomSearch | None = None, *, seed: Seed = 0
) -> RandomDirectionRadius:
    """Estimate what Algorithm 2 looks for, at all points at once.

    Parameters
    ----------
    model : GaussianVAE
    x : Tensor, shape (n, d_x)
    r : float or Tensor, shape (n,)
        Largest distance that counts as robust, >= 0; chosen with other samples.
    search : RandomSearch, optional
        Limit, samples, grid, tolerance and confidence; the defaults of :class:`RandomSearch` if left out.
    seed : int or torch.Generator
        Source of noise and directions; see :mod:`vaerobust.randomness`.

    Returns
    -------
    RandomDirectionRadius

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong shape or range.
    """
    search = RandomSearch() if search is None else checks.instance("search", search, RandomSearch)
    checks.vectors("x", x)
    r = checks.per_point("r", r, len(x), x)
    number = as_number(seed, x)
    check_model(model, x)
    tail = (1 - search.confidence) / 2
    # The radius lies where half of the samples are within r; its interval, where the count has its binomial quantiles.
    # A share of exactly 1/2 counts as robust in the printed algorithm, hence ">= samples / 2".
    fewest, most = stats.binom(search.samples, 0.5).ppf([tail, 1 - tail])
    needed = [search.samples / 2, most + 1, fewest]
    radii = torch.linspace(0, search.limit, search.grid + 1, dtype=x.dtype, device=x.device)
    found = []
    for part in slices(len(x), max(1, PAIRS // search.samples)):
        draws = _Draws(model, x[part], r[part], search, number)
        brackets = [_narrowed(draws, bracket, search.tolerance) for bracket in _on_grid(draws, radii, needed)]
        (radius, outer), (low, _), (_, high) = ((bracket.low, bracket.high) for bracket in brackets)
        found.append((radius, low, high, outer == torch.inf, draws.asked))
    # ``high`` is the outer end of its bracket, since the true radius may lie anywhere in it
    radius, low, high, censored, drawn = (torch.cat(parts) for parts in zip(*found, strict=True))
    return RandomDirectionRadius(radius, low, high, censored, search.limit, search.samples, search.confidence, drawn)


class _Draws:
    """Noise and directions, the same for every point and radius, and a count of the samples of D made from them."""

    def __init__(self, model: GaussianVAE, x: Tensor, r: Tensor, search: RandomSearch, seed: int) -> None:
        self.model, self.x, self.r, self.search, self.seed = model, x, r, search, seed
        mu, self.sigma = encode_points(model, x)
        self.centre = decode_points(model, mu, x)
        self.rows = rows_at_once(model, x)
        self.asked = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        # all directions at once if they fit, else they are drawn anew whenever they are needed
        self.kept = list(self._noise()) if search.samples <= DIRECTIONS else None

    def _noise(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Draw eta and unit directions, in parts: which samples, (k, d_z) and (k, d_x)."""
        generator = torch.Generator(self.x.device).manual_seed(self.seed)
        eta = normal(self.search.samples, self.sigma, generator)
        for j, direction in unit_directions(self.search.samples, self.x, generator):
            yield j, eta[j], direction

    def within(self, rows: Tensor, radius: Tensor, asked: Tensor) -> Tensor:
        """Tell which samples have D <= r at some points, each with a radius of its own.

        Parameters
        ----------
        rows : Tensor of int, shape (k,)
            The points.
        radius : Tensor, shape (k,)
        asked : Tensor of bool, shape (k, samples)
            Which samples to compute; the others come back as False.
        """
        self.asked[rows] += asked.sum(1)
        out = torch.zeros_like(asked)
        for j, eta, direction in self.kept or self._noise():
            if not asked[:, j.start :].any():
                break  # scouts are the first samples, so the rest need not be drawn
            pairs = asked[:, j].nonzero()
            for part in slices(len(pairs), self.rows):
                at, draw = pairs[part].unbind(1)
                i = rows[at]
                mu, sigma = self.model.encode(self.x[i] + radius[at, None] * direction[draw])
                sigma = sigma if self.search.perturb_sigma else self.sigma[i]
                d = require_distances(distance(self.model, mu, sigma, eta[draw], self.centre[i]))
                out[at, draw + j.start] = d <= self.r[i]
        return out


class _Bracket(NamedTuple):
    """State of the search: at radius ``low`` enough samples are within r, at ``high`` too few.

    ``low`` and ``high`` have shape (n,). Which samples are within r at either end is in ``at_low`` and ``at_high``,
    shape (n, samples). ``needed`` is how many are enough.
    """

    low: Tensor
    high: Tensor
    at_low: Tensor
    at_high: Tensor
    needed: float


def _on_grid(draws: _Draws, radii: Tensor, needed: list[float]) -> list[_Bracket]:
    """Bracket the largest radius of the grid at which enough samples are within r, for each number that is needed.

    A bracket is from 0 to 0 where no radius has enough, and ends in infinity where the grid's last radius has.
    """
    place = _outermost_plausible(draws, radii, min(needed))
    samples = torch.zeros(len(draws.x), draws.search.samples, dtype=torch.bool, device=radii.device)
    zero = torch.zeros_like(draws.r)
    brackets = [_Bracket(zero.clone(), zero.clone(), samples.clone(), samples.clone(), count) for count in needed]
    searching = torch.ones(len(needed), len(draws.x), dtype=torch.bool, device=radii.device)
    outer, at_outer = torch.full_like(draws.r, torch.inf), samples
    rows = (place >= 0).nonzero()[:, 0]
    while len(rows):  # one step inwards on the grid per pass, all samples asked
        radius = radii[place[rows]]
        now = draws.within(rows, radius, torch.ones_like(at_outer[rows]))
        for bracket, open_ in zip(brackets, searching, strict=True):
            held = open_[rows] & (now.sum(1) >= bracket.needed)
            here = rows[held]
            bracket.low[here], bracket.high[here] = radius[held], outer[here]
            bracket.at_low[here], bracket.at_high[here] = now[held], at_outer[here]
            open_[here] = False
        outer[rows], at_outer[rows] = radius, now
        place[rows] -= 1
        rows = rows[(place[rows] >= 0) & searching[:, rows].any(0)]
    return brackets


def _outermost_plausible(draws: _Draws, radii: Tensor, needed: float) -> Tensor:
    """Return where the search on the grid begins: one place outside the outermost radius that the scouts allow.

    Shape (n,); -1 where they allow none.
    """
    samples = draws.search.samples
    scouts = torch.arange(samples, device=radii.device) < SCOUTS
    plausible = stats.binom(int(scouts.sum()), needed / samples).ppf(MISSED)
    place = torch.full_like(draws.asked, -1)
    for k in range(len(radii) - 1, -1, -1):
        rows = (place < 0).nonzero()[:, 0]
        seen = draws.within(rows, radii[k].expand(len(rows)), scouts.expand(len(rows), -1))
        place[rows[seen.sum(1) >= plausible]] = k
    return torch.where(place >= 0, (place + 1).clamp(max=len(radii) - 1), -1)


def _narrowed(draws: _Draws, bracket: _Bracket, tolerance: float) -> _Bracket:
    """Bisect a bracket until it is no wider than the tolerance, or no number lies between its ends."""
    low, high, at_low, at_high, needed = bracket
    rows = torch.isfinite(high).nonzero()[:, 0]
    while len(rows := rows[high[rows] - low[rows] > tolerance]):
        middle = (low[rows] + high[rows]) / 2
        between = (low[rows] < middle) & (middle < high[rows])
        rows, middle = rows[between], middle[between]
        asked = at_low[rows] != at_high[rows]
        now = torch.where(asked, draws.within(rows, middle, asked), at_low[rows])
        holds = now.sum(1) >= needed
        inner, outer = rows[holds], rows[~holds]
        low[inner], at_low[inner] = middle[holds], now[holds]
        high[outer], at_high[outer] = middle[~holds], now[~holds]
    return bracket
