"""How the cost of a call grows with points, samples and latents.

:func:`measure_growth` times calls of several sizes. :func:`calls_by_points`, :func:`calls_by_samples` and
:func:`calls_by_latents` return the calls, by name, whose cost grows with one of the three.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from vaerobust.certify.failures import failures
from vaerobust.distance import distances
from vaerobust.jacobians import jacobian_norms
from vaerobust.model import VAE
from vaerobust.random_direction import RandomSearch, random_direction_radius
from vaerobust.study.timing import Call, example, fastest
from vaerobust.zoo import data
from vaerobust.zoo.protocol import Spec
from vaerobust.zoo.weights import pretrained

Sized = Callable[[int], Call]
"""Maps a size to a call of that size; what it prepares for the call is not timed."""


@dataclass(frozen=True)
class Growth:
    """How the time of a call grows with its size.

    Attributes
    ----------
    sizes : list of int
    seconds : list of float
        Time at each size.
    slope : float
        Slope of a line through the logarithms of sizes and seconds, over the larger half of the sizes. With slope 1
        twice the size takes twice the time.
    """

    sizes: list[int]
    seconds: list[float]
    slope: float


def measure_growth(call: Sized, sizes: Sequence[int], turns: int = 3) -> Growth:
    """Time a call at several sizes, which take turns.

    Parameters
    ----------
    call : callable
        Maps a size to a call.
    sizes : sequence of int
        In ascending order.
    turns : int
        Number of timed turns; see :func:`vaerobust.study.timing.fastest`.
    """
    seconds = fastest(*(call(size) for size in sizes), turns=turns)
    half = len(sizes) // 2
    slope = np.polyfit(np.log(sizes[half:]), np.log(seconds[half:]), 1)[0]
    return Growth(list(sizes), seconds, float(slope))


def calls_by_points(samples: int) -> dict[str, Sized]:
    """Return named calls whose cost grows with the number of points."""
    vae, x = pretrained("mnist").vae, data.load("mnist").pixels
    r = torch.full((len(x),), 2.0)
    search = RandomSearch(samples=samples)
    return {
        "Jacobian norms": lambda n: lambda: jacobian_norms(vae, x[:n]),
        "distances": lambda n: lambda: distances(vae, x[:n], samples=samples),
        "random-direction radius": lambda n: lambda: random_direction_radius(vae, x[:n], r[:n], search),
    }


def calls_by_samples(points: int) -> dict[str, Sized]:
    """Return named calls whose cost grows with the number of samples."""
    vae, x, r = example(points)
    return {
        "distances": lambda n: lambda: distances(vae, x, samples=n),
        "random-direction radius": lambda n: lambda: random_direction_radius(vae, x, r, RandomSearch(samples=n)),
        "failures for a certificate": lambda n: lambda: failures(vae, x, [r], samples=n),
    }


def calls_by_latents(points: int, samples: int) -> dict[str, Sized]:
    """Return named calls whose cost grows with the number of latents, on untrained models."""
    x = data.load("mnist").pixels[:points]

    def on_models(work: Callable[[VAE], object]) -> Sized:
        def prepare(latents: int) -> Call:
            vae = Spec(latents=latents).build()
            return lambda: work(vae)

        return prepare

    return {
        "Jacobian norms": on_models(lambda vae: jacobian_norms(vae, x)),
        "distances": on_models(lambda vae: distances(vae, x, samples=samples)),
        "failures for a certificate": on_models(lambda vae: failures(vae, x, [2.0], samples=samples)),
    }
