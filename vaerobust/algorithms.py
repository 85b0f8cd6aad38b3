"""Algorithms 1 and 2 of Appendix D, as the paper prints them, and a direct estimate of what Algorithm 1 looks for.

Algorithm 1 finds the smallest r with which a VAE is r-robust to its own encoder's noise: the median of D(x), which
:func:`minimum_r` estimates directly. Algorithm 2 finds the norm at which a perturbation in a random direction breaks
r-robustness; :mod:`vaerobust.random_direction` estimates that norm directly. Begin with :func:`minimum_r`; the
printed algorithms serve to check the paper, take one point at a time and are slow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from vaerobust import checks
from vaerobust.criterion import Quantile, distance_quantile
from vaerobust.distance import distances, distances_in_random_directions
from vaerobust.model import GaussianVAE
from vaerobust.randomness import Seed, as_generator
from vaerobust.results import Result


@dataclass(frozen=True, eq=False)
class Printed(Result):
    """Result of an algorithm that was run as the paper prints it, at one point.

    Attributes
    ----------
    value : float
        r of Algorithm 1, or R of Algorithm 2; NaN where the loop did not end.
    iterations : int
        Passes of the while loop.
    samples : int
        Samples drawn over all passes.
    ended : bool
        False where the loop would never end, or reached the limit of iterations.
    """

    value: float
    iterations: int
    samples: int
    ended: bool


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
        Which quantile, in (0, 1). 0.5 is the median; 0.9 gives the r of Fig. 10 (i).
    samples, seed
        As in :func:`vaerobust.distance.distances`.
    confidence : float
        Confidence level of the interval, for each point by itself, in (0, 1).

    Returns
    -------
    Quantile
        ``value`` holds one r per point.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong shape or range.
    """
    return distance_quantile(distances(model, x, samples=samples, seed=seed), level, confidence=confidence)


def algorithm_1_as_printed(
    model: GaussianVAE,
    x: Tensor,
    *,
    step: float = 0.01,
    samples: int = 1000,
    seed: Seed = 0,
    most: int = 100_000,
) -> Printed:
    """Run Algorithm 1 (Appendix D.1.2) as printed: raise r by ``step`` until half of new samples lie within r.

    Parameters
    ----------
    model : GaussianVAE
    x : Tensor, shape (1, d_x)
    step : float
        Increment of r, > 0, in input units.
    samples : int
        New samples at each r.
    seed : int or torch.Generator
        Source of the samples; see :mod:`vaerobust.randomness`.
    most : int
        Largest number of iterations; the loop ends there, however small the step.

    Returns
    -------
    Printed

    Raises
    ------
    TypeError, ValueError
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
    return _printed(r, iterations, samples, probability >= 0.5)


def algorithm_2_as_printed(
    model: GaussianVAE,
    x: Tensor,
    r: float,
    *,
    step: float = 0.1,
    samples: int = 1000,
    start: float = 10.0,
    seed: Seed = 1,
    most: int = 100_000,
) -> Printed:
    """Run Algorithm 2 (Appendix D.2) as printed, from ``start`` down.

    The printed algorithm takes sigma at x + delta. It lowers R before it tests, so it returns a radius one step below
    the one that passed. And it never ends where P(D <= r) < 1/2 at R = 0: once R is negative, the norm of R nu / ||nu||
    grows again. In that case this function stops at the first negative R, and ``ended`` is False.

    Parameters
    ----------
    model : GaussianVAE
    x : Tensor, shape (1, d_x)
    r : float
        Largest distance that counts as robust, >= 0, in input units.
    step, start : float
        Decrement and first value of R, each > 0, in input units. ``step`` must be at least the distance from ``start``
        to the next number in double precision. Otherwise rounding would undo each step, and the loop would never end.
    samples : int
        New samples at each R.
    seed : int or torch.Generator
        Source of the samples; see :mod:`vaerobust.randomness`.
    most : int
        Limit of iterations.

    Returns
    -------
    Printed

    Raises
    ------
    TypeError, ValueError
        If ``x`` holds more than one point, an argument is out of range, or ``step`` is too small for ``start``.
    """
    _one_point(x)
    checks.positive("r", r, zero=True)
    checks.positive("step", step)
    checks.positive("start", start)
    checks.per_point("start", start, 1, x)  # a number that the type of x has
    checks.count("most", most)
    # numbers lie closer together towards 0, so a step that moves R at the start moves it everywhere
    finest = math.ulp(start)
    if step < finest:
        raise ValueError(f"step must be at least {finest:.3g}, the resolution at start = {start!r}, but is {step!r}")
    generator = as_generator(seed, x)
    radius, probability, iterations = float(start), 0.0, 0
    while probability < 0.5 and radius >= 0 and iterations < most:
        d = distances_in_random_directions(model, x, radius, samples=samples, seed=generator, perturb_sigma=True)
        radius -= step
        probability = float((d < r).double().mean())
        iterations += 1
    return _printed(radius, iterations, samples, probability >= 0.5)


def _printed(value: float, iterations: int, samples: int, ended: bool) -> Printed:
    """Return the result of a loop that drew ``samples`` samples in each of its iterations."""
    return Printed(value if ended else math.nan, iterations, iterations * samples, ended)


def _one_point(x: Tensor) -> None:
    """Raise a ValueError if ``x`` holds more than one point."""
    checks.vectors("x", x)
    if len(x) != 1:
        raise ValueError(f"x must be one point, shape (1, d), since the printed algorithm is; but has {tuple(x.shape)}")
