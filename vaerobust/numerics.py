"""Substitutes for what some number types and devices cannot do.

PyTorch cannot decompose matrices in half precision, and some devices have no double precision. The functions here
compute in the next better type, or on the CPU, where that is needed; all other tensors are left as they are. Start
reading at :func:`at_least_single` and :func:`double`.
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
    """Tell whether a device has double precision. Apple's GPUs, for example, do not."""
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
    """Return the eigenvalues of symmetric matrices in ascending order, in single precision or better."""
    return torch.linalg.eigvalsh(at_least_single(symmetric))


def svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the reduced singular value decomposition U, s, V' of matrices, in single precision or better."""
    return torch.linalg.svd(at_least_single(matrix), full_matrices=False)


def tolerance(dtype: torch.dtype) -> float:
    """Return how much two computations of a network may differ by rounding, relative to the largest value.

    It is 2e-4 in single precision.
    """
    eps = torch.finfo(dtype).eps
    return 16 * eps if dtype in HALF else 30 * eps**0.75
