"""Timing named alternatives side by side.

Alternatives take turns in one process on the same input, and the fastest turn of each counts: other work on the machine
can only add time. Ratios can be quoted; seconds depend on the machine. Where an alternative is too slow to be run as a
whole, a part of it is timed and scaled, and the comparison's ``note`` says so.

Start at :func:`fastest`. What is compared is in :mod:`vaerobust.study.benchmarks` and
:mod:`vaerobust.study.equal_error`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from vaerobust.algorithms import minimum_r
from vaerobust.model import VAE
from vaerobust.zoo import data
from vaerobust.zoo.weights import pretrained

if TYPE_CHECKING:
    import pandas as pd

Call = Callable[[], object]
"""A piece of work that is timed."""


@dataclass(frozen=True)
class Comparison:
    """Two ways to do one task, with their times.

    Attributes
    ----------
    task : str
        What is done.
    ours, other : str
        The two ways.
    seconds, other_seconds : float
        Time of each for the whole task.
    note : str
        What was scaled, and what else makes the two comparable.
    """

    task: str
    ours: str
    other: str
    seconds: float
    other_seconds: float
    note: str = ""

    @property
    def ratio(self) -> float:
        """Time of the other way over ours."""
        return self.other_seconds / self.seconds


def as_table(comparisons: Sequence[Comparison]) -> pd.DataFrame:
    """Return a DataFrame with one row per comparison: its fields, and its ratio."""
    import pandas as pd  # takes half a second to import

    return pd.DataFrame([asdict(one) | {"ratio": one.ratio} for one in comparisons])


def fastest(*calls: Call, turns: int = 3) -> list[float]:
    """Make calls in turns, and return the seconds of the fastest turn of each.

    Parameters
    ----------
    *calls : callable
        Without arguments.
    turns : int
        Number of timed turns. If there are three or more, one turn that is not timed comes first, to warm up.
    """
    seconds = [float("inf")] * len(calls)
    warm_up = turns > 2
    for turn in range(turns + warm_up):
        for i, call in enumerate(calls):
            start = time.perf_counter()
            call()
            if turn or not warm_up:
                seconds[i] = min(seconds[i], time.perf_counter() - start)
    return seconds


def example(points: int) -> tuple[VAE, Tensor, Tensor]:
    """Return a trained model, some MNIST test images, and the 0.9-quantile of D(x) at each of them."""
    vae, x = pretrained("mnist").vae, data.load("mnist").pixels[:points]
    return vae, x, minimum_r(vae, x, level=0.9, samples=4000, seed=0).value
