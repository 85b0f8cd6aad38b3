"""The random-direction radius: the norm at which a perturbation in a random direction breaks r-robustness.

This is what Algorithm 2 looks for. Eq. 4 asks for every direction, so this radius overstates the margin; it is never
called a margin here. Begin with :func:`random_direction_radius`.

The search uses one set of samples for all radii. A sample is a pair of noise eta and direction nu. At each radius its
distance D is at most r or not, in short: the sample is within r. So the number of samples within r is a fixed function
of the radius. A grid brackets the radius at which it becomes too small (``_on_grid``), and bisection narrows the
bracket (``_narrowed``). A sample that is within r at both ends of a bracket, or at neither, is taken to be so in
between and is not computed again.
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
"""Samples computed first at each radius of the grid, to rule out radii at which far too few of them are within r."""
MISSED = 1e-9
"""Largest probability with which these first samples, the scouts, rule out a radius wrongly."""


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
        Number of radii > 0 on the grid, >= 2. If the share of samples within r falls and rises again between two
        neighbours, the search misses it.
    tolerance : float
        Width of the bracket at which bisection ends, > 0, in input units. Bisection also ends where no floating point
        number lies between the two ends.
    perturb_sigma : bool
        True takes sigma at x + delta, as Algorithm 2 is printed. False takes it at x, as Eq. 3 does.
    confidence : float
        Confidence level of the interval, in (0, 1).

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
    """Norm at which perturbations in random directions leave P(D <= r) at 1/2: an estimate, and no margin.

    Attributes
    ----------
    radius : Tensor, shape (n,)
        In input units; 0 where P(D(x) <= r) < 1/2 without any perturbation, ``limit`` where censored.
    low, high : Tensor, shape (n,)
        Binomial interval from the same samples. It is exact where the number of samples within r falls as the radius
        grows.
    censored : Tensor of bool, shape (n,)
        True where the search ended at ``limit``, so that the radius is at least that.
    limit : float
        Largest radius tried.
    samples : int
        Samples at each radius.
    confidence : float
        Confidence level of the interval, for each point by itself.
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
    model: GaussianVAE, x: Tensor, r: float | Tensor, search: RandomSearch | None = None, *, seed: Seed = 20
) -> RandomDirectionRadius:
    """Estimate what Algorithm 2 looks for, at all points at once.

    Parameters
    ----------
    model : GaussianVAE
    x : Tensor, shape (n, d_x)
    r : float or Tensor, shape (n,)
        Largest distance that counts as robust, >= 0, in input units; chosen with other samples.
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
    # Each radius is the largest at which enough samples are within r. For the estimate, half of them are enough; a
    # share of exactly 1/2 counts as robust in the printed algorithm. For the ends of the interval, these numbers are
    # binomial quantiles: the lower end needs more than ``most`` samples, the upper end at least ``fewest``.
    fewest, most = stats.binom(search.samples, 0.5).ppf([tail, 1 - tail])
    needed = [search.samples / 2, most + 1, fewest]
    radii = torch.linspace(0, search.limit, search.grid + 1, dtype=x.dtype, device=x.device)
    found = []
    for part in slices(len(x), max(1, PAIRS // search.samples)):
        draws = _Draws(model, x[part], r[part], search, number)
        brackets = [_narrowed(draws, bracket, search.tolerance) for bracket in _on_grid(draws, radii, needed)]
        # The true radius may lie anywhere in a bracket, so the interval's upper end is the outer end of its bracket
        (radius, outer), (low, _), (_, high) = ((bracket.low, bracket.high) for bracket in brackets)
        found.append((radius, low, high, outer == torch.inf, draws.computed))
    radius, low, high, censored, drawn = (torch.cat(parts) for parts in zip(*found, strict=True))
    return RandomDirectionRadius(radius, low, high, censored, search.limit, search.samples, search.confidence, drawn)


class _Draws:
    """Noise and directions, the same for every point and radius, and a count of the samples of D made from them."""

    def __init__(self, model: GaussianVAE, x: Tensor, r: Tensor, search: RandomSearch, seed: int) -> None:
        self.model, self.x, self.r, self.search, self.seed = model, x, r, search, seed
        mu, self.sigma = encode_points(model, x)
        self.centre = decode_points(model, mu, x)
        self.rows = rows_at_once(model, x)
        self.computed = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        # Keep all directions if they fit in memory; otherwise draw them anew whenever they are needed
        self.kept = list(self._noise()) if search.samples <= DIRECTIONS else None

    def _noise(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Draw eta and unit directions, in parts: which samples, (k, d_z) and (k, d_x)."""
        generator = torch.Generator(self.x.device).manual_seed(self.seed)
        eta = normal(self.search.samples, self.sigma, generator)
        for j, direction in unit_directions(self.search.samples, self.x, generator):
            yield j, eta[j], direction

    def within(self, rows: Tensor, radius: Tensor, wanted: Tensor) -> Tensor:
        """Compute which samples have D <= r at some points, each with a radius of its own.

        Parameters
        ----------
        rows : Tensor of int, shape (k,)
            Indices of the points.
        radius : Tensor, shape (k,)
            Norm of the perturbations at each of these points.
        wanted : Tensor of bool, shape (k, samples)
            Which samples to compute.

        Returns
        -------
        Tensor of bool, shape (k, samples)
            True where D <= r; False where it is not, and for samples that are not wanted.
        """
        self.computed[rows] += wanted.sum(1)
        out = torch.zeros_like(wanted)
        for j, eta, direction in self.kept or self._noise():
            if not wanted[:, j.start :].any():
                break  # scouts are the first samples, so the rest need not be drawn
            pairs = wanted[:, j].nonzero()
            for part in slices(len(pairs), self.rows):
                row, draw = pairs[part].unbind(1)
                i = rows[row]
                mu, sigma = self.model.encode(self.x[i] + radius[row, None] * direction[draw])
                sigma = sigma if self.search.perturb_sigma else self.sigma[i]
                d = require_distances(distance(self.model, mu, sigma, eta[draw], self.centre[i]))
                out[row, draw + j.start] = d <= self.r[i]
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

    A bracket is (0, 0) where no radius of the grid has enough, and its ``high`` is infinite where the largest radius
    has enough.
    """
    place = _outermost_plausible(draws, radii, min(needed))  # index into ``radii`` of the next radius of each point
    none_within = torch.zeros(len(draws.x), draws.search.samples, dtype=torch.bool, device=radii.device)
    zero = torch.zeros_like(draws.r)
    brackets = [
        _Bracket(zero.clone(), zero.clone(), none_within.clone(), none_within.clone(), enough) for enough in needed
    ]
    searching = torch.ones(len(needed), len(draws.x), dtype=torch.bool, device=radii.device)
    outer, at_outer = torch.full_like(draws.r, torch.inf), none_within
    rows = (place >= 0).nonzero()[:, 0]
    while len(rows):  # each pass computes all samples, one step further inwards on the grid
        radius = radii[place[rows]]
        within = draws.within(rows, radius, torch.ones_like(at_outer[rows]))
        for bracket, sought in zip(brackets, searching, strict=True):
            holds = sought[rows] & (within.sum(1) >= bracket.needed)
            found = rows[holds]
            bracket.low[found], bracket.high[found] = radius[holds], outer[found]
            bracket.at_low[found], bracket.at_high[found] = within[holds], at_outer[found]
            sought[found] = False
        outer[rows], at_outer[rows] = radius, within
        place[rows] -= 1
        rows = rows[(place[rows] >= 0) & searching[:, rows].any(0)]
    return brackets


def _outermost_plausible(draws: _Draws, radii: Tensor, needed: float) -> Tensor:
    """Return where the search on the grid begins, as indices into ``radii``, shape (n,).

    That is one place outside the outermost radius that the scouts do not rule out, if there is one. So the first radius
    most likely has too few samples within r, and becomes the outer end of a bracket. It is -1 where the scouts rule out
    all radii.
    """
    samples = draws.search.samples
    scouts = torch.arange(samples, device=radii.device) < SCOUTS
    # If enough of all samples are within r, fewer scouts than this are within r with probability at most MISSED
    fewest = stats.binom(int(scouts.sum()), needed / samples).ppf(MISSED)
    place = torch.full_like(draws.computed, -1)
    for k in range(len(radii) - 1, -1, -1):
        rows = (place < 0).nonzero()[:, 0]
        seen = draws.within(rows, radii[k].expand(len(rows)), scouts.expand(len(rows), -1))
        place[rows[seen.sum(1) >= fewest]] = k
    return torch.where(place >= 0, (place + 1).clamp(max=len(radii) - 1), -1)


def _narrowed(draws: _Draws, bracket: _Bracket, tolerance: float) -> _Bracket:
    """Bisect a bracket until it is no wider than the tolerance, or no number lies between its ends.

    The bracket's tensors are changed in place.
    """
    low, high, at_low, at_high, needed = bracket
    rows = torch.isfinite(high).nonzero()[:, 0]
    while len(rows := rows[high[rows] - low[rows] > tolerance]):
        middle = (low[rows] + high[rows]) / 2
        between = (low[rows] < middle) & (middle < high[rows])
        rows, middle = rows[between], middle[between]
        wanted = at_low[rows] != at_high[rows]  # the others are taken to be the same at all radii in between
        within = torch.where(wanted, draws.within(rows, middle, wanted), at_low[rows])
        holds = within.sum(1) >= needed
        inner, outer = rows[holds], rows[~holds]
        low[inner], at_low[inner] = middle[holds], within[holds]
        high[outer], at_high[outer] = middle[~holds], within[~holds]
    return bracket
