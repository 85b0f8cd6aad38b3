"""Work in blocks, so that memory does not grow with the number of points and samples that a caller asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

ROWS = 16_384
"""Rows that pass through a network at a time: about 50 MB of reconstructions of 784 pixels in single precision."""


def slices(total: int, size: int) -> Iterator[slice]:
    """Cut range(total) into consecutive slices of at most ``size`` elements."""
    return (slice(start, min(start + size, total)) for start in range(0, total, size))


def blockwise(block: Callable[[slice, slice], Tensor], n: int, samples: int, like: Tensor) -> Tensor:
    """Fill an (n, samples) tensor by blocks of at most :data:`ROWS` elements.

    Parameters
    ----------
    block : callable
        Maps a slice of points and a slice of samples to their values, shape (points, samples).
    n, samples : int
        Numbers of points and of samples.
    like : Tensor
        A tensor with the type and device of the result.

    Returns
    -------
    Tensor, shape (n, samples)
    """
    out = torch.empty(n, samples, dtype=like.dtype, device=like.device)
    width = min(samples, ROWS)
    for i in slices(n, max(1, ROWS // width)):
        for j in slices(samples, width):
            out[i, j] = block(i, j)
    return out
