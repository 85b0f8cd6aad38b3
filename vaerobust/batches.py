"""Work in parts: how much passes through a network at a time, so that memory does not grow with what is asked for.

How many rows a model may be given at a time is decided by :func:`rows_within`, from the memory that one row takes. That
number is measured by :func:`vaerobust.contract.check_model`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

ROWS = 16_384
"""Most rows that pass through a network at a time: about 50 MB of reconstructions of 784 pixels in single precision."""
MEMORY = 2**30
"""Bytes that all intermediate results of these rows may take together. The shipped models stay below it with the full
number of rows, also in double precision; a large convolutional model gets fewer rows."""
LARGEST = 2**33
"""Most numbers in one result. A call that asks for more is an error, since the result would not fit in memory."""


def rows_within(bytes_per_row: float) -> int:
    """Return how many rows may pass through a network at a time: at least 1, and at most :data:`ROWS`."""
    return max(1, min(ROWS, int(MEMORY // max(bytes_per_row, 1.0))))


def points_within(rows: int, each: int, most: int) -> int:
    """Return for how many points Jacobians are computed at a time, where each takes ``each`` passes: at most ``most``.

    A model that may be given all of :data:`ROWS` is small, and only ``most`` limits it.
    """
    return most if rows >= ROWS else max(1, min(most, rows // each))


def slices(total: int, size: int) -> Iterator[slice]:
    """Cut range(total) into consecutive slices of at most ``size`` elements."""
    return (slice(start, min(start + size, total)) for start in range(0, total, size))


def blockwise(block: Callable[[slice, slice], Tensor], n: int, samples: int, like: Tensor, rows: int) -> Tensor:
    """Fill an (n, samples) tensor by blocks of at most ``rows`` elements.

    Parameters
    ----------
    block : callable
        Maps a slice of points and a slice of samples to their values, shape (points, samples).
    n, samples : int
        Numbers of points and of samples.
    like : Tensor
        A tensor with the type and device of the result.
    rows : int
        See :func:`rows_within`.

    Returns
    -------
    Tensor, shape (n, samples)

    Raises
    ------
    ValueError
        If the result would have more than :data:`LARGEST` elements.
    """
    if n * samples > LARGEST:
        raise ValueError(f"samples must be at most {LARGEST // n} for {n} points, but is {samples}")
    out = torch.empty(n, samples, dtype=like.dtype, device=like.device)
    width = min(samples, rows)
    for i in slices(n, max(1, rows // width)):
        for j in slices(samples, width):
            out[i, j] = block(i, j)
    return out
