"""The criterion of Section 3: the probability of r-robustness, and the quantiles of D, from samples of D.

A point is r-robust to a perturbation when P(D(x, delta) <= r) > 1/2 (Definition 3.1, Eqs. 2 and 4). Each estimate
here comes with an exact interval: Clopper-Pearson limits for a probability, order statistics for a quantile. Both hold
for any number of samples and any distribution of D. The samples themselves come from :mod:`vaerobust.distance`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from vaerobust import checks
from vaerobust.results import Result


@dataclass(frozen=True, eq=False)
class Robustness(Result):
    """Estimate of P(D(x, delta) <= r) per point, with an exact binomial interval.

    Attributes
    ----------
    probability : ndarray, shape (n,)
        Share of the samples with D <= r.
    low, high : ndarray, shape (n,)
        Clopper-Pearson limits, two-sided, at ``confidence`` for each point by itself.
    samples : int
        Number of samples per point.
    confidence : float
        Confidence level of the interval, in (0, 1).
    """

    probability: np.ndarray
    low: np.ndarray
    high: np.ndarray
    samples: int
    confidence: float

    @property
    def robust(self) -> np.ndarray:
        """True where ``low`` > 1/2, so that r-robustness is confirmed with the stated confidence; shape (n,)."""
        return self.low > 0.5


@dataclass(frozen=True, eq=False)
class Quantile(Result):
    """A quantile of D per point, with an interval that holds for every distribution.

    Attributes
    ----------
    value, low, high : Tensor, shape (n,)
        The quantile and the limits of its interval: order statistics of the samples, in input units. Where the samples
        are too few for the confidence, ``low`` is 0, ``high`` is infinite, or both.
    level : float
        Which quantile, in (0, 1); 0.5 is the median.
    confidence : float
        Confidence level of the interval, for each point by itself, in (0, 1).
    """

    value: Tensor
    low: Tensor
    high: Tensor
    level: float
    confidence: float


def probability_of_robustness(distance: Tensor, r: float | Tensor, *, confidence: float = 0.95) -> Robustness:
    """Estimate P(D <= r) from samples of D, with its exact interval (Definition 3.1, Eqs. 2 and 4).

    Parameters
    ----------
    distance : Tensor, shape (n, samples)
        From :func:`vaerobust.distance.distances`.
    r : float or Tensor, shape (n,)
        Largest distance that counts as robust, >= 0, in input units. It must have been chosen without a look at these
        samples.
    confidence : float
        Confidence level of the two-sided Clopper-Pearson interval, in (0, 1).

    Returns
    -------
    Robustness

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong shape or range.
    """
    checks.vectors("distance", distance)
    r = checks.per_point("r", r, len(distance), distance)
    confidence = checks.probability("confidence", confidence)
    samples = distance.shape[1]
    within = (distance <= r[:, None]).sum(1).cpu().numpy()
    low, high = clopper_pearson(within, samples, confidence)
    return Robustness(within / samples, low, high, samples, confidence)


def clopper_pearson(
    successes: np.ndarray | int, trials: int, confidence: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """Return the exact two-sided interval of a binomial proportion.

    Parameters
    ----------
    successes : ndarray of int or int
        Each between 0 and ``trials``.
    trials : int
        >= 1.
    confidence : float
        In (0, 1). Each side errs with probability at most (1 - confidence) / 2.

    Returns
    -------
    low, high : ndarray
        In the shape of ``successes``.

    Raises
    ------
    ValueError
        If an argument is out of range.
    """
    checks.count("trials", trials)
    confidence = checks.probability("confidence", confidence)
    k = checks.numbers("successes", successes)
    if not (k == np.floor(k)).all():
        raise ValueError(f"successes must be whole numbers, but hold {k[k != np.floor(k)].flat[0]}")
    if k.size and ((k < 0).any() or (k > trials).any()):
        raise ValueError(f"successes must lie in 0 to trials = {trials}, but range over {k.min():g} to {k.max():g}")
    tail = (1 - confidence) / 2
    low = np.where(k == 0, 0.0, stats.beta.ppf(tail, np.maximum(k, 1), trials - k + 1))
    high = np.where(k == trials, 1.0, stats.beta.ppf(1 - tail, k + 1, np.maximum(trials - k, 1)))
    return low, high


def distance_quantile(distance: Tensor, level: float = 0.5, *, confidence: float = 0.95) -> Quantile:
    """Estimate a quantile of D by an order statistic; the median is what Algorithm 1 converges to.

    The number of samples below the true quantile is binomial. So two order statistics enclose the quantile with known
    probability, whatever the distribution. (With ties it is enclosed at least as often.)

    Parameters
    ----------
    distance : Tensor, shape (n, samples)
        From :func:`vaerobust.distance.distances`.
    level : float
        Which quantile, in (0, 1).
    confidence : float
        Confidence level of the interval, for each point by itself, in (0, 1).

    Returns
    -------
    Quantile

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong shape or range.
    """
    checks.vectors("distance", distance)
    level = checks.probability("level", level)
    confidence = checks.probability("confidence", confidence)
    samples = distance.shape[1]
    ordered = distance.sort(dim=1).values
    below = stats.binom(samples, level)
    tail = (1 - confidence) / 2
    # Let B samples lie below the quantile q. Then D_(l) <= q iff B >= l, and q <= D_(u) iff B < u, where D_(k) is the
    # k-th smallest sample. So l and u are quantiles of the law of B.
    first = int(below.ppf(tail))
    last = int(below.ppf(1 - tail)) + 1
    low = ordered[:, first - 1] if first >= 1 else torch.zeros_like(ordered[:, 0])
    high = ordered[:, last - 1] if last <= samples else torch.full_like(ordered[:, 0], torch.inf)
    # The estimate is the k-th smallest sample, where k is level * samples, rounded up. It is first rounded to 6 places,
    # since 0.55 * 100 lies slightly above 55 in floating point.
    place = min(samples - 1, max(0, int(np.ceil(round(level * samples, 6))) - 1))
    return Quantile(ordered[:, place], low, high, level, confidence)
