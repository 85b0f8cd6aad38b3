"""What certify is about to offer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vaerobust.certify import both_sides as old
from vaerobust.results import Result


@dataclass(frozen=True, eq=False)
class BothSides(Result):
    r: Tensor
    p_low: Tensor
    theorem_1: Tensor
    spectral: Tensor
    whitened: Tensor
    half_space: Tensor
    certified: Tensor
    decoder_aware: Tensor
    second_moment: Tensor
    attack: Tensor
    confirmed: Tensor
    censored: Tensor
    random_direction: Tensor
    random_direction_censored: Tensor
    moment_at_attack: Tensor
    delta: Tensor


@dataclass(frozen=True, eq=False)
class Sandwich(Result):
    own: BothSides
    fixed: BothSides


@dataclass(frozen=True, eq=False)
class Curves(Result):
    radii: Tensor
    certified: Tensor
    broken: Tensor
    confidence: float


RENAMED = {"random": "random_direction", "random censored": "random_direction_censored"}


def both_sides(model: Any, x: Tensor, confidence: float) -> Sandwich:
    columns, deltas = old.sandwich(model, x)
    return Sandwich(
        **{
            which: BothSides(**{RENAMED.get(k, k.replace(" ", "_")): v for k, v in found.items()}, delta=deltas[which])
            for which, found in columns.items()
        }
    )


def curves(model: Any, x: Tensor, radii: Any, confidence: float) -> Curves:
    return Curves(torch.tensor(radii), *old.curves(model, x, radii))
