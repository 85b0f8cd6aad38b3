"""Types of numbers and devices: what some of them lack, and how this package does without.

Half-precision types have no decompositions of matrices, and some devices have no double precision. The functions here
take what these lack from the next type or device, and change nothing anywhere else. There is no statistics here; begin
with :func:`at_least_single` and :func:`double`.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)
"""Types in which torch offers no decompositions, and in which a count above a few hundred is rounded."""


def at_least_single(value: Tensor) -> Tensor:
    """Return a tensor of half precision in single precision, and any other one as it is."""
    return value.float() if value.dtype in HALF else value


@cache
def has_doubles(device: torch.device) -> bool:
    """Tell whether a device has double precision; that of Apple has none, for example."""
    try:
        torch.zeros(1, dtype=torch.float64, device=device)
    except (RuntimeError, TypeError):
        return False
    return True


def precise(device: torch.device) -> torch.dtype:
    """Return the most precise type that a device has: double or single precision."""
    return torch.float64 if has_doubles(device) else torch.float32


def double(value: Tensor) -> Tensor:
    """Return a tensor in double precision: on its own device where that has it, and on the CPU elsewhere."""
    return value.double() if has_doubles(value.device) else value.cpu().double()


def eigvalsh(symmetric: Tensor) -> Tensor:
    """Return the eigenvalues of symmetric matrices, rising, in single precision or better."""
    return torch.linalg.eigvalsh(at_least_single(symmetric))


def svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return U, the singular values and V' of matrices, without the rest of U and V, in single precision or better."""
    return torch.linalg.svd(at_least_single(matrix), full_matrices=False)


def tolerance(dtype: torch.dtype) -> float:
    """Return the difference that rounding may cause, relative to the largest value: 2e-4 in single precision."""
    eps = torch.finfo(dtype).eps
    return 16 * eps if dtype in HALF else 30 * eps**0.75
