"""Algorithm 2 as printed against our search for the same radius, both at the same error.

Two estimators of one number can only be compared at equal error. Start at :func:`compare_random_directions`, which sets
up both to reach a given root mean square error at the least cost, and then measures errors and times.

*Ours* asks the same samples at every radius. With F(R) = P(D <= r) in random directions of norm R, its error is
sqrt(1/4 / samples) over the slope of F at the radius, where F = 1/2.

*The printed algorithm* walks down from :data:`START` in steps and stops at the first radius at which at least half of
its new samples are within r. So the law of what it returns follows from F, and so does its error for each step and
number of samples.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats
from scipy.interpolate import PchipInterpolator
from torch import Tensor

from vaerobust.algorithms import algorithm_2_as_printed
from vaerobust.distance import distances_in_random_directions
from vaerobust.model import VAE
from vaerobust.random_direction import RandomDirectionRadius, RandomSearch, random_direction_radius
from vaerobust.study.timing import Comparison, example

Share = Callable[[np.ndarray | float], np.ndarray]
"""F: maps the norm of a perturbation in a random direction to P(D <= r)."""
START = 10.0
"""The radius in pixels at which Algorithm 2 begins."""
REFERENCE_SEED, SHARE_SEED, FIRST_SEED = 1, 2, 100
EARLY = 1e-3
"""In the repeats, the walk begins where it stops earlier with at most this probability."""


@dataclass(frozen=True)
class EqualError:
    """Algorithm 2 as printed against :func:`random_direction_radius` at one point, at the same error.

    Attributes
    ----------
    timed : Comparison
    target : float
        Root mean square error of the radius for which both were set up, as a share of the radius.
    error, other_error : float
        Root mean square error over the repeats, ours and the printed algorithm's, as a share of the radius.
    step : float
        Step of the printed algorithm, in pixels.
    samples, other_samples : int
        Samples at each radius.
    drawn, other_drawn : float
        Samples drawn in all.
    """

    timed: Comparison
    target: float
    error: float
    other_error: float
    step: float
    samples: int
    other_samples: int
    drawn: float
    other_drawn: float


@dataclass(frozen=True)
class Walk:
    """A set-up of the printed algorithm.

    Attributes
    ----------
    step : float
        In pixels.
    samples : int
        New samples at each radius.
    passes : float
        Mean number of radii until it stops.
    """

    step: float
    samples: int
    passes: float

    @property
    def drawn(self) -> float:
        """Mean number of samples drawn in all."""
        return self.passes * self.samples


@dataclass(frozen=True)
class Repeats:
    """What both searches returned and took, one entry per repeat.

    Attributes
    ----------
    ours, other : ndarray
        Radii, in pixels.
    drawn : ndarray
        Samples that ours drew.
    seconds : ndarray
        Time of ours.
    seconds_per_pass : ndarray
        Time of the printed algorithm at each radius.
    """

    ours: np.ndarray
    other: np.ndarray
    drawn: np.ndarray
    seconds: np.ndarray
    seconds_per_pass: np.ndarray


def compare_random_directions(
    target: float = 0.01, repeats: int = 10, pool: int = 2000, reference: int = 32_000
) -> EqualError:
    """Compare both searches at equal root mean square error of the radius, each set up for the least cost.

    Of many steps and numbers of samples the printed algorithm gets those that reach the target with the fewest draws.
    Errors are then measured over repeats with new noise. In the repeats the walk begins a little above the radius,
    because it hardly ever stops further out; its time is scaled to a walk from the start.

    Parameters
    ----------
    target : float
        Share of the radius.
    repeats : int
        Runs of each search.
    pool : int
        Samples behind F at each radius.
    reference : int
        Samples behind the radius from which errors are measured.
    """
    vae, x, r = example(1)
    radius = float(search(vae, x, r, reference, 1e-4, REFERENCE_SEED).radius)
    share = share_within(vae, x, r, radius, pool)
    allowed = target * radius
    samples = samples_for(share, radius, allowed)
    walk = cheapest_walk(share, radius, allowed)
    tolerance = allowed / 4
    runs = repeat(vae, x, r, repeats, samples, tolerance, walk, likely_start(share, radius, walk))
    error, other_error = (float(np.sqrt(np.mean((found / radius - 1) ** 2))) for found in (runs.ours, runs.other))
    timed = Comparison(
        f"random-direction radius within {100 * target:g} %", "random_direction_radius", "Algorithm 2 as printed",
        float(runs.seconds.min()), float(runs.seconds_per_pass.min()) * walk.passes,
        "the walk's last passes, scaled to all of them",
    )  # fmt: skip
    return EqualError(
        timed, target, error, other_error, walk.step, samples, walk.samples, float(runs.drawn.mean()), walk.drawn
    )  # fmt: skip


def search(vae: VAE, x: Tensor, r: Tensor, samples: int, tolerance: float, seed: int) -> RandomDirectionRadius:
    """Return our estimate; as in the printed algorithm, the perturbation reaches sigma."""
    settings = RandomSearch(START, samples, tolerance=tolerance, perturb_sigma=True)
    return random_direction_radius(vae, x, r, settings, seed=seed)


def share_within(vae: VAE, x: Tensor, r: Tensor, radius: float, pool: int) -> Share:
    """Return F as a smooth function, from samples that are common to all radii."""
    radii = np.unique(np.r_[np.linspace(0, 2 * radius, 17), np.linspace(2 * radius, START, 5)])
    d = [
        distances_in_random_directions(vae, x, float(one), samples=pool, perturb_sigma=True, seed=SHARE_SEED)
        for one in radii
    ]
    smooth = PchipInterpolator(radii, [float((one <= r).double().mean()) for one in d])
    # Shifted a little so that F is exactly 1/2 at the radius, which is known from more samples.
    return lambda at: np.clip(smooth(np.clip(at, 0, START)) + 0.5 - smooth(radius), 0, 1)


def samples_for(share: Share, radius: float, allowed: float) -> int:
    """Return the number of samples with which our search errs by ``allowed``."""
    near = 0.1 * radius
    slope = float(share(radius - near) - share(radius + near)) / (2 * near)
    return int(np.ceil((0.5 / slope / allowed) ** 2))


def success(share: np.ndarray, samples: int) -> np.ndarray:
    """Return the probability that at least half of new samples are within r, where each is with probability share."""
    return np.asarray(stats.binom.sf(np.ceil(samples / 2) - 1, samples, share))


def cheapest_walk(share: Share, radius: float, allowed: float) -> Walk:
    """Return the walk that errs by no more than ``allowed`` with the fewest draws.

    Raises
    ------
    ValueError
        If none of the walks that are tried is exact enough.
    """
    best = None
    for step in allowed * np.array([0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0]):
        for samples in np.unique(np.geomspace(8, 4 / allowed**2 + 8, 40).astype(int)):
            error, passes = walk_error(share, radius, step, int(samples))
            if error <= allowed**2 and (best is None or passes * samples < best.drawn):
                best = Walk(float(step), int(samples), float(passes))
    if best is None:
        raise ValueError(f"allowed = {allowed} is more exact than any of the walks that were tried")
    return best


def walk_error(share: Share, radius: float, step: float, samples: int) -> tuple[float, float]:
    """Return mean square error and mean number of passes of a walk, from the law of what it returns."""
    errors, passes = [], []
    for offset in (0.25, 0.75):  # the error depends on where the radius lies between two steps
        at = START - step * (np.arange(int(START / step)) + offset)
        stops = success(share(at), samples)
        # P(it stops at this radius) = P(it stops here) times P(it stopped at no larger radius)
        law = stops * np.cumprod(np.r_[1.0, 1 - stops[:-1]])
        errors.append(law @ (at - step - radius) ** 2)
        passes.append(law @ np.arange(1, len(at) + 1))
    return float(np.mean(errors)), float(np.mean(passes))


def likely_start(share: Share, radius: float, walk: Walk) -> float:
    """Return the smallest radius before which the walk stops with probability :data:`EARLY` at most."""
    above = radius + walk.step * np.arange(int((START - radius) / walk.step))[::-1]
    early = 1 - np.cumprod(1 - success(share(above), walk.samples))
    return float(above[max(0, int(np.searchsorted(early, EARLY)) - 1)])


def repeat(
    vae: VAE, x: Tensor, r: Tensor, repeats: int, samples: int, tolerance: float, walk: Walk, begin: float
) -> Repeats:  # fmt: skip
    """Run both searches in turns, each time with new noise."""
    ours, other, drawn, seconds, seconds_per_pass = [], [], [], [], []
    for k in range(repeats):
        start = time.perf_counter()
        found = search(vae, x, r, samples, tolerance, FIRST_SEED + k)
        seconds.append(time.perf_counter() - start)
        ours.append(float(found.radius) + tolerance / 2)  # about the middle of the last bracket
        drawn.append(int(found.drawn))
        start = time.perf_counter()
        printed = algorithm_2_as_printed(
            vae, x, float(r), step=walk.step, samples=walk.samples, start=begin + walk.step * k / repeats, seed=k
        )
        seconds_per_pass.append((time.perf_counter() - start) / printed.iterations)
        other.append(printed.value)
    return Repeats(*(np.array(values) for values in (ours, other, drawn, seconds, seconds_per_pass)))
