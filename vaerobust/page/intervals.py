"""Intervals for what a chapter measures over images: the percentile bootstrap.

Exact intervals of a probability are in ``vaerobust.criterion``: :func:`~vaerobust.criterion.clopper_pearson`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats


def over_images(
    statistic: Callable[..., float],
    *columns: ArrayLike,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Return a statistic of some images, and its percentile bootstrap interval over images.

    Parameters
    ----------
    statistic : callable
        Called as ``statistic(*columns)``; returns one number.
    *columns : array_like, each shape (..., images)
        What was measured. Each resample draws images with replacement, the same ones in all columns.
    resamples : int
        Number of resamples.
    confidence : float
        Nominal probability, in (0, 1), that the interval contains the statistic over all images of the population.
    seed : int
        Seed of the resamples.

    Returns
    -------
    value, low, high : float
        The statistic and the ends of the interval. If the bootstrap interval does not contain the value, as a skewed
        statistic can cause, the interval is extended to the value.
    """
    arrays = [np.asarray(column) for column in columns]
    ends = stats.bootstrap(
        (np.arange(arrays[0].shape[-1]),),
        lambda chosen: statistic(*(array[..., chosen] for array in arrays)),
        vectorized=False,
        n_resamples=resamples,
        confidence_level=confidence,
        method="percentile",
        rng=seed,
    ).confidence_interval
    value = float(statistic(*arrays))
    return value, min(value, float(ends.low)), max(value, float(ends.high))
