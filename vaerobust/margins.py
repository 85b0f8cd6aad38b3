"""The attack margin: an upper bound on the margin of Eq. 4, proved by a perturbation that breaks r-robustness."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from vaerobust import checks
from vaerobust.attacks import maximum_damage
from vaerobust.criterion import Robustness, distances, probability_of_robustness
from vaerobust.model import GaussianVAE

ATTEMPTS = 4
"""Tests with new samples, at growing radii, before a margin is reported as not confirmed."""
LEAST = 1e-4
"""Smallest radius tried, as a share of the largest; taken for robust where no smaller one than that is broken."""
STRIDE = 4
"""Tolerances that the first step away from a guess is wide; each further step is twice as wide."""


class AttackMargin(NamedTuple):
    """Smallest radius, of those tried, at which an attack breaks r-robustness.

    Attributes
    ----------
    radius : Tensor, shape (n,)
        Norm of the perturbation that breaks it, so an upper bound on the margin; 0 where P(D(x) <= r) <= 1/2 already;
        ``limit`` where no attack up to there succeeded.
    delta : Tensor, shape (n, d_x)
        That perturbation.
    judged : Robustness
        P(D(x, delta) <= r) on samples that neither the attack nor the search has seen.
    confirmed : ndarray of bool, shape (n,)
        True where those samples reject P > 1/2: ``judged.high`` <= 1/2. Holds with the confidence asked for, whatever
        the search did.
    censored : Tensor of bool, shape (n,)
    limit : float
    """

    radius: Tensor
    delta: Tensor
    judged: Robustness
    confirmed: np.ndarray
    censored: Tensor
    limit: float


def attack_margin(
    model: GaussianVAE,
    x: Tensor,
    r: float | Tensor,
    *,
    limit: float = 10.0,
    guess: float | Tensor | None = None,
    tolerance: float = 0.05,
    steps: int = 40,
    restarts: int = 2,
    samples: int = 16,
    choosing_samples: int = 256,
    judging_samples: int = 1000,
    final_samples: int | None = None,
    box: bool = False,
    perturb_sigma: bool = False,
    reference: str = "mean",
    method: str = "projected_gradient",
    directions: Tensor | None = None,
    warm_start: bool = False,
    seed: int = 0,
    confidence: float = 0.95,
) -> AttackMargin:
    """Bisect for the smallest radius at which the maximum-damage attack breaks r-robustness.

    Parameters
    ----------
    model : GaussianVAE
    x : Tensor, shape (n, d_x)
    r : float or Tensor, shape (n,)
        >= 0; chosen with other samples.
    limit : float
        Largest radius tried.
    guess : float or Tensor, shape (n,), optional
        Where to look first; the search goes from there in growing steps until an attack fails and another succeeds. It
        makes the search faster the nearer it is to the margin, and no less valid. If left out the search starts at
        ``limit``.
    tolerance : float
        Relative width of the bracket at which the search ends, in (0, 1).
    steps, restarts, samples, box, perturb_sigma, method
        Of the attack at each radius; see :func:`vaerobust.attacks.maximum_damage`.
    reference : {'mean', 'sample'}
        What the tests measure the distance from; see :func:`vaerobust.criterion.distances`. The attack always moves
        away from g(mu(x)).
    choosing_samples : int
        Samples by which each attack chooses among its starts; ``judging_samples`` of the attack.
    judging_samples : int
        Samples in each test of the search.
    final_samples : int, optional
        New samples in the last tests, which decide; as many as in the search if left out. More of them need a smaller
        share of failures above 1/2 to reject r-robustness, and the search looks for that share.
    directions : Tensor, shape (k, n, d_x), optional
        Further starting points of every attack, scaled to its radius.
    warm_start : bool
        Let each attack start also from the smallest perturbation that has broken r-robustness so far, scaled; from the
        largest that has not, before any has.
    seed : int
        Every radius meets the same noise; the last test meets new noise.
    confidence : float
        Two-sided, of each test.

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
    checks.positive("limit", limit)
    checks.probability("tolerance", tolerance)
    checks.count("judging_samples", judging_samples)
    checks.probability("confidence", confidence)
    if guess is not None:
        first = checks.per_point("guess", guess, len(x), x)
    final_samples = judging_samples if final_samples is None else checks.count("final_samples", final_samples)
    # the largest share within r that rejects P > 1/2, in the last tests
    rejected = (stats.binom.ppf((1 - confidence) / 2, final_samples, 0.5) - 1) / final_samples

    def judge(points: Tensor, delta: Tensor, new: int, samples: int = judging_samples) -> Robustness:
        """Test at a share of the error that the confidence allows: several last tests share it."""
        generator = torch.Generator(x.device).manual_seed(seed + new)
        d = distances(
            model, x[points], delta, samples=samples, seed=generator, perturb_sigma=perturb_sigma,
            reference=reference,
        )  # fmt: skip
        return probability_of_robustness(d, r[points], confidence=1 - (1 - confidence) / ATTEMPTS)

    def attack(points: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
        """Attack the given points; return the perturbations and where they break r-robustness."""
        starts = [] if directions is None else [directions[:, points]]
        if warm_start:
            starts.append(delta[None, points])
        found = maximum_damage(
            model, x[points], radius, steps=steps, restarts=restarts, samples=samples,
            judging_samples=choosing_samples, box=box, method=method,
            perturb_sigma=perturb_sigma, directions=torch.cat(starts) if starts else None,
            seed=torch.Generator(x.device).manual_seed(seed),
        ).delta  # fmt: skip
        return found, torch.as_tensor(judge(points, found, 1).probability <= rejected, device=x.device)

    every = torch.arange(len(x), device=x.device)
    delta = torch.zeros_like(x)
    robust = torch.as_tensor(judge(every, delta, 1).probability > 0.5, device=x.device)
    high = limit * robust.to(x.dtype)
    low = LEAST * high
    broken = ~robust
    radius = high if guess is None else torch.maximum(torch.minimum(first, high), low)
    stride = torch.full_like(high, torch.inf if guess is None else (1 + tolerance) ** STRIDE)
    rows = every[robust]
    while len(rows):
        found, breaks = attack(rows, radius[rows])
        delta[rows] = torch.where((breaks | ~broken[rows])[:, None], found, delta[rows])
        high[rows] = torch.where(breaks, radius[rows], high[rows])
        low[rows] = torch.where(breaks, low[rows], radius[rows])
        broken[rows] |= breaks
        # margins span decades, so halve the ratio of the two ends; next to a guess only as far as the stride reaches
        middle = torch.maximum((low * high).sqrt(), high / stride)
        radius = torch.where(broken, middle, torch.minimum(low * stride, high))
        stride[rows] = stride[rows] ** 2
        rows = rows[high[rows] > low[rows] * torch.where(broken[rows], 1 + tolerance, 1.0)]
    # the search met many tests, so its last success may be luck: new samples decide, and where they do not agree the
    # next larger radius is attacked and tested anew; the tests share the error that the confidence allows
    outcome = judge(every, delta, 2, final_samples)
    probability, lower, upper = outcome.probability, outcome.low, outcome.high
    for attempt in range(1, ATTEMPTS):
        rows = every[robust & broken & torch.as_tensor(upper > 0.5, device=x.device)]
        if not len(rows):
            break
        high[rows] = (high[rows] * (1 + tolerance)).clamp(max=limit)
        delta[rows], _ = attack(rows, high[rows])
        again = judge(rows, delta[rows], 2 + attempt, final_samples)
        at = rows.cpu().numpy()
        probability[at], lower[at], upper[at] = again.probability, again.low, again.high
    judged = Robustness(probability, lower, upper, final_samples, outcome.confidence)
    confirmed = judged.high <= 0.5
    # at the limit the last test may succeed where the first did not
    broken |= torch.as_tensor(confirmed, device=x.device)
    # the perturbation may be shorter than the radius that it was allowed, above all in a box
    radius = torch.where(robust & broken, torch.linalg.vector_norm(delta, dim=1), high)
    return AttackMargin(radius, delta, judged, confirmed, robust & ~broken, limit)
