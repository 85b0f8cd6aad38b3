"""Algorithm 2 as printed against our search for the same radius, both at the same error.

Two estimators of one number can only be compared at equal error. Start at :func:`compare_random_directions`, which sets
up both to reach a given root mean square error at the least cost, and then measures errors and times.

Let F(R) = P(D <= r) for perturbations of norm R in random directions. Both look for the radius where F = 1/2.

*Our search* uses the same samples at every radius. Its error is the standard error of F, sqrt(1/4 / samples), divided
by the slope of F at the radius.

*The printed algorithm* walks down from :data:`START` in steps and draws new samples at each radius; one radius is one
pass. It stops at the first radius at which at least half of the samples are within r. So F determines the probability
distribution of the radius that it returns, and thus its error for each step and number of samples.
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
"""Seeds of the radius that errors are measured from, of F, and of our search in the first repeat."""
EARLY = 1e-3
"""In the repeats, the walk skips the first radii. It would stop at one of them with at most this probability."""


@dataclass(frozen=True)
class EqualError:
    """Algorithm 2 as printed against :func:`random_direction_radius` at one point, at the same error.

    Attributes
    ----------
    timed : Comparison
    target : float
        Root mean square error for which both were set up, relative to the radius.
    error, other_error : float
        Root mean square error over the repeats relative to the radius: of our search, and of the printed algorithm.
    step : float
        Step of the printed algorithm, in pixels.
    samples, other_samples : int
        Samples at each radius: of our search, and of the printed algorithm.
    drawn, other_drawn : float
        Mean number of samples that one search draws in all: ours, and the printed algorithm.
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
    """Settings of the printed algorithm, and the number of passes that follows from them.

    Attributes
    ----------
    step : float
        In pixels.
    samples : int
        New samples at each radius.
    passes : float
        Mean number of radii at which it draws samples until it stops.
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
        Radii in pixels: of our search, and of the printed algorithm.
    drawn : ndarray
        Number of samples that our search drew.
    seconds : ndarray
        Time of our search.
    seconds_per_pass : ndarray
        Mean time of the printed algorithm at one radius.
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

    Many pairs of step and number of samples are tried for the printed algorithm. It gets the pair that reaches the
    target with the fewest draws. Errors are then measured over repeats with new noise. In the repeats the walk begins a
    little above the radius, because it hardly ever stops further out. Its time is scaled to a walk from
    :data:`START`.

    Parameters
    ----------
    target : float
        Root mean square error that both should have, relative to the radius.
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
    """Return the number of samples with which our search has a root mean square error of ``allowed`` pixels."""
    near = 0.1 * radius
    slope = float(share(radius - near) - share(radius + near)) / (2 * near)
    return int(np.ceil((0.5 / slope / allowed) ** 2))


def success(share: np.ndarray, samples: int) -> np.ndarray:
    """Return the probability that at least half of ``samples`` are within r, if each is with probability ``share``."""
    return np.asarray(stats.binom.sf(np.ceil(samples / 2) - 1, samples, share))


def cheapest_walk(share: Share, radius: float, allowed: float) -> Walk:
    """Return the walk with the fewest draws whose root mean square error is at most ``allowed`` pixels.

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
    """Return the mean square error of a walk in squared pixels, and its mean number of passes, both computed from F."""
    errors, passes = [], []
    for offset in (0.25, 0.75):  # the error depends on where the radius lies between two steps
        radii = START - step * (np.arange(int(START / step)) + offset)
        passing = success(share(radii), samples)
        # The walk stops at a radius if its samples pass there, and failed to pass at all larger radii.
        stopping = passing * np.cumprod(np.r_[1.0, 1 - passing[:-1]])
        errors.append(stopping @ (radii - step - radius) ** 2)  # it returns a radius one step below
        passes.append(stopping @ np.arange(1, len(radii) + 1))
    return float(np.mean(errors)), float(np.mean(passes))


def likely_start(share: Share, radius: float, walk: Walk) -> float:
    """Return the smallest start above which a walk stops with a probability of at most :data:`EARLY`."""
    above = radius + walk.step * np.arange(int((START - radius) / walk.step))[::-1]
    early = 1 - np.cumprod(1 - success(share(above), walk.samples))
    return float(above[max(0, int(np.searchsorted(early, EARLY)) - 1)])


def repeat(
    vae: VAE, x: Tensor, r: Tensor, repeats: int, samples: int, tolerance: float, walk: Walk, begin: float
) -> Repeats:  # fmt: skip
    """Run both searches in turns, each time with new noise.

    Parameters
    ----------
    vae, x, r
        The model; one point, shape (1, d_x); and its r, shape (1,).
    repeats : int
        Runs of each search.
    samples, tolerance
        Settings of our search.
    walk : Walk
        Settings of the printed algorithm.
    begin : float
        Radius in pixels at which the printed algorithm begins. Each repeat begins a little further out, so that the
        radius lies at different places between two steps.
    """
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
