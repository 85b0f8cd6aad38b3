"""Work in parts: how much passes through a network at a time, so that memory does not grow with what is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

ROWS = 16_384
"""Rows that pass through a network at a time: about 50 MB of reconstructions, whatever is asked for."""


def slices(total: int, size: int) -> Iterator[slice]:
    """Cut range(total) into runs of at most ``size``."""
    return (slice(start, min(start + size, total)) for start in range(0, total, size))


def blockwise(block: Callable[[slice, slice], Tensor], n: int, samples: int, like: Tensor) -> Tensor:
    """Fill an (n, samples) tensor by blocks of at most :data:`ROWS` elements.

    Parameters
    ----------
    block : callable
        Maps a slice of points and a slice of samples to their values.
    n, samples : int
    like : Tensor
        Its type and device are those of the result.
    """
    out = torch.empty(n, samples, dtype=like.dtype, device=like.device)
    width = min(samples, ROWS)
    for i in slices(n, max(1, ROWS // width)):
        for j in slices(samples, width):
            out[i, j] = block(i, j)
    return out
