"""The least r for each size of perturbation, enclosed from both sides.

For each norm R of perturbations there is a least r with which a point is r-robust under all of them. Here it is
enclosed between a certified r, which is large enough (:func:`vaerobust.certify.certificates.certified_r`), and an r
that an attack breaks, which is too small. The opposite question, the margin for a given r, is answered from both sides
in :mod:`vaerobust.certify.both_sides`.

Start reading at :func:`curves`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from vaerobust import checks
from vaerobust.attacks import AttackSettings, maximum_damage
from vaerobust.certify.certificates import certified_r
from vaerobust.contract import check_model
from vaerobust.criterion import distance_quantile
from vaerobust.distance import distances
from vaerobust.linearised import linearised_radii
from vaerobust.margins import worst_directions
from vaerobust.model import GaussianVAE
from vaerobust.randomness import Seed, as_generator, as_number
from vaerobust.results import Result

if TYPE_CHECKING:
    import pandas as pd

ATTACK = AttackSettings(steps=10, restarts=1)
"""Default settings of the attack at each radius: few steps, since its starts are good."""
LEVEL = 0.9
"""Attacks start along the worst directions of the linearised model at this quantile of D(x)."""


@dataclass(frozen=True, eq=False)
class Curves(Result):
    """Upper and lower limits of the least r, for each of some norms R of perturbations.

    Attributes
    ----------
    radii : Tensor, shape (radii,)
        R, in input units.
    certified : Tensor, shape (radii, n)
        No perturbation shorter than R breaks r-robustness with any r above this. Infinite where the samples are too
        few.
    broken : Tensor, shape (radii, n)
        Some perturbation of norm at most R breaks r-robustness with every r below this.
    confidence : float
        Confidence level of each limit by itself, in (0, 1).
    """

    radii: Tensor
    certified: Tensor
    broken: Tensor
    confidence: float

    def to_frame(self) -> pd.DataFrame:
        """Return a DataFrame with one row per radius and point: radius, point, certified, broken and confidence."""
        import pandas as pd  # takes half a second to import

        radius, point = np.indices(tuple(self.certified.shape)).reshape(2, -1)
        columns = {
            "radius": self.radii.cpu().numpy()[radius],
            "point": point,
            "certified": self.certified.cpu().numpy().ravel(),
            "broken": self.broken.cpu().numpy().ravel(),
        }
        return pd.DataFrame(columns).assign(confidence=self.confidence)


def curves(
    model: GaussianVAE,
    x: Tensor,
    radii: Sequence[float],
    *,
    samples: int = 50_000,
    judging_samples: int = 2000,
    attack: AttackSettings = ATTACK,
    confidence: float = 0.999,
    seed: Seed = 0,
) -> Curves:
    """Enclose, for each norm R, the least r with which each point is r-robust to all perturbations up to that norm.

    Parameters
    ----------
    model : GaussianVAE
        With a ReLU encoder; see :func:`vaerobust.certify.certificates.certified_margin`.
    x : Tensor, shape (n, d_x)
    radii : sequence of float
        Norms R of perturbations, >= 0, in input units and in ascending order: each attack also starts from the
        perturbation that was found at the radius before.
    samples : int
        Draws of eta for the certified limit, the same for all radii.
    judging_samples : int
        Draws of eta for the lower limit. The attacks do not see them.
    attack : AttackSettings
        Settings of the attack at each radius.
    confidence : float
        Confidence level of each limit, at each point and radius by itself, in (0, 1).
    seed : int or torch.Generator
        See :mod:`vaerobust.randomness`.

    Returns
    -------
    Curves

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong shape or range.
    """
    checks.vectors("x", x)
    checks.count("judging_samples", judging_samples)
    checks.instance("attack", attack, AttackSettings)
    radii = _norms(radii, x)
    number = as_number(seed, x)
    check_model(model, x, gradient=("encode", "decode"))
    certified = certified_r(
        model, x, radii, samples=samples, seed=as_generator(number + 1, x), confidence=confidence
    )  # fmt: skip
    broken = broken_r(
        model, x, radii, judging_samples=judging_samples, attack=attack, confidence=confidence, seed=number
    )  # fmt: skip
    return Curves(torch.as_tensor(radii, dtype=torch.float64, device=x.device), certified, broken, confidence)


def broken_r(
    model: GaussianVAE,
    x: Tensor,
    radii: Sequence[float],
    *,
    judging_samples: int = 2000,
    attack: AttackSettings = ATTACK,
    confidence: float = 0.999,
    seed: Seed = 0,
) -> Tensor:
    """Return, for each norm R, an r below which an attack of at most that norm breaks r-robustness.

    It is the lower end of :func:`curves`, for models of any differentiable encoder.

    Parameters
    ----------
    model : GaussianVAE
    x : Tensor, shape (n, d_x)
    radii, judging_samples, attack, confidence, seed
        As in :func:`curves`.

    Returns
    -------
    Tensor, shape (radii, n)

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong shape or range.
    """
    checks.vectors("x", x)
    checks.count("judging_samples", judging_samples)
    checks.instance("attack", attack, AttackSettings)
    checks.probability("confidence", confidence)
    radii = _norms(radii, x)
    number = as_number(seed, x)
    check_model(model, x, gradient=("encode", "decode"))
    r = distance_quantile(distances(model, x, samples=1000, seed=number + 2), LEVEL).value  # (n,)
    worst = worst_directions(model, x, linearised_radii(model, x, r, seed=number + 3))  # (starts, n, d_x)
    # With the stated confidence at least this many samples lie below the median of D(x, delta). So the sample of this
    # rank is a lower limit of the median, and any r below the median is broken.
    rank = int(stats.binom.ppf(1 - confidence, judging_samples, 0.5))
    delta = torch.zeros_like(x)
    broken = torch.zeros(len(radii), len(x), dtype=r.dtype, device=x.device)
    for i, radius in enumerate(radii):
        starts = torch.cat([worst, delta[None]])
        delta = maximum_damage(model, x, radius, attack, starts=starts, seed=number + 4).delta
        if rank:
            ordered = distances(model, x, delta, samples=judging_samples, seed=number + 5).sort(dim=1).values
            broken[i] = ordered[:, rank - 1]
    return broken


def _norms(radii: Sequence[float], x: Tensor) -> list[float]:
    """Return norms as numbers after a check."""
    return [float(checks.per_point("radii", one, 1, x, exact=True)) for one in checks.sequence("radii", radii)]
