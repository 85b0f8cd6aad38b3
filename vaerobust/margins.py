"""The attack margin: an upper bound on the margin of Eq. 4, proved by a perturbation that breaks r-robustness.

:func:`attack_margin` looks for the smallest radius at which an attack of :mod:`vaerobust.attacks` breaks r-robustness.
:func:`strongest_attack` does the same from the best known starts and settings; it is the one to use for a result.

The search holds a bracket per point: at ``low`` the attack failed, at ``high`` it succeeded. It begins at a guess, goes
away from it in growing steps until the bracket is closed, then bisects. Last, an exact binomial test on fresh samples
confirms the result. Wherever ``confirmed`` is True, the margin of Eq. 4 is below the radius found, with the stated
confidence.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from vaerobust import checks
from vaerobust.attacks import AttackSettings, maximum_damage
from vaerobust.contract import check_model, encode_points
from vaerobust.criterion import Robustness, probability_of_robustness
from vaerobust.distance import REFERENCES, distances, rounding
from vaerobust.jacobians import encoder_jacobian
from vaerobust.linearised import LinearisedRadii, linearised_radii
from vaerobust.model import GaussianVAE
from vaerobust.numerics import at_least_single, double, svd
from vaerobust.randomness import Seed, as_number
from vaerobust.results import Result

ATTEMPTS = 4
"""Tests on fresh samples, at growing radii, before a margin is reported as not confirmed."""
LEAST = 1e-4
"""Smallest radius tried, as a share of the largest. No attack is tried below it."""
STRIDE = 4
"""The first step away from a guess is a factor of (1 + tolerance)^STRIDE. The next factor is its square, and so on."""
GUESS = 1.2
"""First radius of :func:`strongest_attack`, as a multiple of the second-moment margin (:mod:`vaerobust.linearised`).
Attack margins are about 1 to 1.5 times as large as that."""


@dataclass(frozen=True)
class MarginSearch:
    """How the attack margin is searched for and tested.

    Attributes
    ----------
    limit : float
        Largest radius tried, > 0, in input units.
    tolerance : float
        Relative width of the bracket at which the search ends, in (0, 1).
    judging_samples : int
        Samples in each test of the search.
    final_samples : int, optional
        Fresh samples in each of the last tests, which decide; ``judging_samples`` if left out. The more there are, the
        closer to 1/2 is the share of samples within r that rejects r-robustness. The search aims at that share.
    confidence : float
        Confidence level of all last tests of a point together, in (0, 1). The tests use two-sided intervals.
    reference : {'mean', 'sample'}
        What the tests measure the distance from; see :func:`vaerobust.distance.distances`. The attack always moves
        away from g(mu(x)).
    warm_start : bool
        True lets each attack start also from the smallest perturbation that has broken r-robustness so far, scaled to
        the attack's radius. Before there is one, it starts from the largest perturbation that was tried.

    Raises
    ------
    ValueError
        If a value is out of its range.
    """

    limit: float = 10.0
    tolerance: float = 0.05
    judging_samples: int = 1000
    final_samples: int | None = None
    confidence: float = 0.95
    reference: str = "mean"
    warm_start: bool = False

    def __post_init__(self) -> None:
        checks.positive("MarginSearch.limit", self.limit)
        checks.probability("MarginSearch.tolerance", self.tolerance)
        checks.count("MarginSearch.judging_samples", self.judging_samples)
        if self.final_samples is not None:
            checks.count("MarginSearch.final_samples", self.final_samples)
        checks.probability("MarginSearch.confidence", self.confidence)
        checks.one_of("MarginSearch.reference", self.reference, REFERENCES)
        checks.flag("MarginSearch.warm_start", self.warm_start)

    @property
    def deciding_samples(self) -> int:
        """Samples in each of the last tests."""
        return self.judging_samples if self.final_samples is None else self.final_samples

    @property
    def rejected_share(self) -> float:
        """Largest share of the deciding samples within r with which one test at ``confidence`` rejects P(D <= r) > 1/2.

        The search aims at this share. The last tests are slightly stricter, since each has only its share of the error.
        """
        most = stats.binom.ppf((1 - self.confidence) / 2, self.deciding_samples, 0.5) - 1
        return float(most / self.deciding_samples)


STRONGEST_ATTACK = AttackSettings(steps=10, restarts=1)
"""Settings of each attack in :func:`strongest_attack`: few steps, since that function supplies good starts."""
STRONGEST_SEARCH = MarginSearch(
    tolerance=0.03, judging_samples=2000, final_samples=10_000, confidence=0.999, warm_start=True
)
"""Settings of the search in :func:`strongest_attack`."""


@dataclass(frozen=True, eq=False)
class AttackMargin(Result):
    """Smallest radius, of those tried, at which an attack breaks r-robustness.

    Attributes
    ----------
    radius : Tensor, shape (n,)
        Norm of the perturbation that breaks r-robustness, in input units and rounded up: an upper bound on the margin
        where ``confirmed``; see ``upper_bound``. It is 0 where P(D(x) <= r) <= 1/2 without any perturbation, and
        ``limit`` where no attack up to that radius succeeded.
    delta : Tensor, shape (n, d_x)
        That perturbation.
    judged : Robustness
        P(D(x, delta) <= r), on samples that neither the attack nor the search has seen.
    confirmed : ndarray of bool, shape (n,)
        True where those samples reject P > 1/2, that is ``judged.high`` <= 1/2. A rejection is wrong with probability
        at most 1 - confidence, whatever the search did.
    censored : Tensor of bool, shape (n,)
        True where no attack succeeded up to ``limit``.
    limit : float
        Largest radius tried.
    """

    radius: Tensor
    delta: Tensor
    judged: Robustness
    confirmed: np.ndarray
    censored: Tensor
    limit: float

    @property
    def upper_bound(self) -> Tensor:
        """Upper bound on the margin, shape (n,): ``radius`` where ``confirmed``, and infinity elsewhere."""
        return torch.where(torch.as_tensor(self.confirmed, device=self.radius.device), self.radius, torch.inf)


def strongest_attack(
    model: GaussianVAE,
    x: Tensor,
    r: float | Tensor,
    *,
    attack: AttackSettings = STRONGEST_ATTACK,
    search: MarginSearch = STRONGEST_SEARCH,
    linearised: LinearisedRadii | None = None,
    seed: Seed = 3,
) -> AttackMargin:
    """Return the attack margin, where attacks start along the directions that are worst for the linearised model.

    Each attack starts from up to five perturbations: next to 0; along the linearised model's worst direction and its
    opposite; along the right singular vector of S^-1 J with the largest singular value, where S = diag(sigma); and
    along the smallest perturbation that has succeeded so far. The search begins near the second-moment margin.

    Parameters
    ----------
    model, x, r
        As in :func:`attack_margin`.
    attack : AttackSettings
        Settings of each attack.
    search : MarginSearch
        Settings of the search and its tests. To change one of them:
        ``dataclasses.replace(STRONGEST_SEARCH, confidence=0.95)``.
    linearised : LinearisedRadii, optional
        Result of :func:`vaerobust.linearised.linearised_radii` for the same points and r; computed if left out.
    seed : int or torch.Generator
        Source of all noise; see :mod:`vaerobust.randomness`.

    Returns
    -------
    AttackMargin

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong shape or range.
    """
    number = as_number(seed, checks.vectors("x", x))
    r = checks.per_point("r", r, len(x), x)
    checks.instance("attack", attack, AttackSettings)
    checks.instance("search", search, MarginSearch)
    check_model(model, x, gradient=("encode", "decode"))
    if linearised is None:
        linearised = linearised_radii(model, x, r, seed=number)
    checks.instance("linearised", linearised, LinearisedRadii)
    starts = worst_directions(model, x, linearised)
    # a model that does not move to first order has no such margin, and the search begins at its limit
    guess = (GUESS * at_least_single(linearised.second_moment)).clamp(max=search.limit)
    return attack_margin(model, x, r, attack=attack, search=search, guess=guess, starts=starts, seed=number)


def worst_directions(model: GaussianVAE, x: Tensor, linearised: LinearisedRadii) -> Tensor:
    """Return unit perturbations along which attacks should start, shape (3, n, d_x).

    They are the linearised model's worst direction, its opposite, and the direction along which the encoder's whitened
    mean, mu / sigma(x), moves furthest to first order.
    """
    checks.vectors("linearised.direction", linearised.direction, like=x)
    jacobian = encoder_jacobian(model, x)
    whitened = jacobian / encode_points(model, x)[1][:, :, None]  # S^-1 J, (n, d_z, d_x)
    top = svd(whitened)[2][:, 0].to(x)
    return torch.stack([linearised.direction, -linearised.direction, top])


def attack_margin(
    model: GaussianVAE,
    x: Tensor,
    r: float | Tensor,
    *,
    attack: AttackSettings | None = None,
    search: MarginSearch | None = None,
    guess: float | Tensor | None = None,
    starts: Tensor | None = None,
    seed: Seed = 3,
) -> AttackMargin:
    """Search for the smallest radius at which the maximum-damage attack breaks r-robustness.

    Parameters
    ----------
    model : GaussianVAE
    x : Tensor, shape (n, d_x)
    r : float or Tensor, shape (n,)
        Largest distance that counts as robust, >= 0, in input units; chosen with other samples.
    attack : AttackSettings, optional
        Settings of the attack at each radius; ``AttackSettings(restarts=2)`` if left out.
    search : MarginSearch, optional
        Settings of the search and its tests; the defaults of :class:`MarginSearch` if left out.
    guess : float or Tensor, shape (n,), optional
        Radius at which the search begins, ``search.limit`` if left out. The nearer it is to the margin, the faster the
        search; the result is valid for any guess.
    starts : Tensor, shape (k, n, d_x), optional
        Further starting points of every attack, scaled to its radius.
    seed : int or torch.Generator
        Source of all noise; see :mod:`vaerobust.randomness`. All radii share the same noise; the last tests use fresh
        noise.

    Returns
    -------
    AttackMargin

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong shape or range.
    """
    checks.vectors("x", x)
    r = checks.per_point("r", r, len(x), x)
    search = MarginSearch() if search is None else checks.instance("search", search, MarginSearch)
    attack = AttackSettings(restarts=2) if attack is None else checks.instance("attack", attack, AttackSettings)
    radii = at_least_single(x[:, 0])  # the type of all radii
    finest = 4 * torch.finfo(radii.dtype).eps  # a narrower bracket holds only a few floating point numbers
    if search.tolerance < finest:
        raise ValueError(f"search.tolerance must be at least {finest:.1g} for {radii.dtype}, but is {search.tolerance}")
    guess = None if guess is None else checks.per_point("guess", guess, len(x), radii)
    if starts is not None:
        checks.stack("starts", starts, x)
    trial = _Trial(model, x, r, attack, search, starts, as_number(seed, x))
    check_model(model, x, gradient=("encode", "decode"))
    state = trial.begin(guess)
    while len(rows := state.searching):
        state = trial.step(state, rows)
    return trial.confirm(state)


def _norm_from_above(x: Tensor, delta: Tensor) -> Tensor:
    """Return norms rounded up: of each delta, or of what x + delta adds to x where that is longer; shape (n,)."""
    applied = double(x + delta) - double(x)
    norm = torch.maximum(double(delta).norm(dim=1), applied.norm(dim=1))
    norm = norm * (1 + rounding(x.shape[1], norm.dtype))
    near = norm.to(at_least_single(delta).dtype)
    return torch.where(double(near) < norm, torch.nextafter(near, torch.full_like(near, torch.inf)), near)


class _State(NamedTuple):
    """State of the search, one entry per point.

    Points that are not robust without any perturbation are not searched.
    """

    low: Tensor  # (n,), radius at which the attack failed, or the smallest radius to try
    high: Tensor  # (n,), radius at which the attack succeeded where ``broken``, elsewhere the largest radius to try
    radius: Tensor  # (n,), radius that is tried next
    stride: Tensor  # (n,), factor of the next step away from the guess
    delta: Tensor  # (n, d_x), the smallest perturbation that succeeded, or else the largest one that failed
    broken: Tensor  # (n,), True where r-robustness has been broken
    robust: Tensor  # (n,), True where the point is r-robust without perturbation
    searching: Tensor  # (k,), indices of the points whose search goes on


class _Trial(NamedTuple):
    """What every attack and test of one search shares."""

    model: GaussianVAE
    x: Tensor
    r: Tensor
    attack: AttackSettings
    search: MarginSearch
    starts: Tensor | None
    seed: int

    def begin(self, guess: Tensor | None) -> _State:
        """Test the points without perturbation and place the first radii."""
        every = torch.arange(len(self.x), device=self.x.device)
        delta = torch.zeros_like(self.x)
        unperturbed = self.judge(every, delta, 1, self.search.judging_samples)
        robust = torch.as_tensor(unperturbed.probability > 0.5, device=self.x.device)
        high = self.search.limit * robust.to(at_least_single(self.x).dtype)
        low = LEAST * high
        radius = high if guess is None else torch.maximum(torch.minimum(guess, high), low)
        # Without a guess the first radius is the limit, and an infinite stride makes every later step a bisection
        factor = torch.inf if guess is None else (1 + self.search.tolerance) ** STRIDE
        return _State(
            low, high, radius, torch.full_like(high, factor), delta, ~robust, robust, every[robust]
        )  # fmt: skip

    def step(self, state: _State, rows: Tensor) -> _State:
        """Attack the points that are still searched, each at its radius, and move their brackets.

        The tensors of ``state`` are changed in place.
        """
        low, high, radius, stride, delta, broken, robust, _ = state
        found, breaks = self.attempt(rows, radius[rows], delta)
        delta[rows] = torch.where((breaks | ~broken[rows])[:, None], found, delta[rows])
        high[rows] = torch.where(breaks, radius[rows], high[rows])
        low[rows] = torch.where(breaks, low[rows], radius[rows])
        broken[rows] |= breaks
        # Margins span decades, so the middle is the geometric mean of the two ends. While ``low`` is far
        # away, ``high`` / ``stride`` is larger than that, so the steps away from a guess are short at first.
        middle = torch.maximum((low * high).sqrt(), high / stride)
        radius = torch.where(broken, middle, torch.minimum(low * stride, high))
        stride[rows] = stride[rows] ** 2
        # The search goes on while the bracket is wider than the tolerance and a number lies between its ends. Where no
        # attack has succeeded, it goes on until one has failed at the limit.
        width = torch.where(broken[rows], 1 + self.search.tolerance, 1.0)
        splits = ~broken[rows] | ((low[rows] < radius[rows]) & (radius[rows] < high[rows]))
        rows = rows[(high[rows] > low[rows] * width) & splits]
        return _State(low, high, radius, stride, delta, broken, robust, rows)

    def attempt(self, rows: Tensor, radius: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
        """Attack the points ``rows``; return the perturbations, (k, d_x), and whether they break r-robustness, (k,)."""
        starts = [] if self.starts is None else [self.starts[:, rows]]
        if self.search.warm_start:
            starts.append(delta[None, rows])
        found = maximum_damage(
            self.model, self.x[rows], radius, self.attack, starts=torch.cat(starts) if starts else None, seed=self.seed
        ).delta  # fmt: skip
        share = self.judge(rows, found, 1, self.search.judging_samples).probability
        return found, torch.as_tensor(share <= self.search.rejected_share, device=self.x.device)

    def judge(self, rows: Tensor, delta: Tensor, stream: int, samples: int) -> Robustness:
        """Estimate P(D <= r) under perturbations, on stream 1 of noise in the search, on others in the last tests.

        The error that the confidence allows is divided among the last tests, of which there are at most ATTEMPTS. What
        rounding may have added to D is allowed for, so that a rejection is one of the exact D.
        """
        d = distances(
            self.model, self.x[rows], delta, samples=samples, seed=self.seed + stream,
            perturb_sigma=self.attack.perturb_sigma, reference=self.search.reference,
        )  # fmt: skip
        confidence = 1 - (1 - self.search.confidence) / ATTEMPTS
        allowed = self.r[rows] * (1 + rounding(self.x.shape[1], self.x.dtype))
        return probability_of_robustness(d, allowed, confidence=confidence)

    def confirm(self, state: _State) -> AttackMargin:
        """Test the perturbations on fresh samples; where a test fails to reject, attack at a larger radius.

        The search chose among many tests on one set of samples, so its last success may be luck. At most ATTEMPTS tests
        decide, each on samples of its own, and they share the error that the confidence allows.
        """
        _, high, _, _, delta, broken, robust, _ = state
        every, samples = torch.arange(len(self.x), device=self.x.device), self.search.deciding_samples
        outcome = self.judge(every, delta, 2, samples)
        probability, lower, upper = outcome.probability, outcome.low, outcome.high
        for attempt in range(1, ATTEMPTS):
            rows = every[robust & broken & torch.as_tensor(upper > 0.5, device=self.x.device)]
            if not len(rows):
                break
            high[rows] = (high[rows] * (1 + self.search.tolerance)).clamp(max=self.search.limit)
            delta[rows], _ = self.attempt(rows, high[rows], delta)
            again = self.judge(rows, delta[rows], 2 + attempt, samples)
            at = rows.cpu().numpy()
            probability[at], lower[at], upper[at] = again.probability, again.low, again.high
        judged = replace(outcome, probability=probability, low=lower, high=upper)
        confirmed = judged.high <= 0.5
        # Where all attacks of the search failed, the final test of the last one may still reject r-robustness
        broken = broken | torch.as_tensor(confirmed, device=self.x.device)
        # a perturbation may be shorter than the radius that it was allowed, above all in a box
        radius = torch.where(robust & broken, _norm_from_above(self.x, delta).to(high), high)
        return AttackMargin(radius, delta, judged, confirmed, robust & ~broken, self.search.limit)
