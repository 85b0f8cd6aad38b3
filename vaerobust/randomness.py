"""Randomness: what ``seed`` means in every public function, and how noise and directions are drawn.

Every function that draws random numbers takes ``seed``, in one of two forms:

- A whole number starts a new stream, so that the same call gives the same numbers each time it is made.
- A ``torch.Generator`` continues its stream, so that the next call with it gets new numbers.

All points of a call share the same noise. So results depend neither on the order of the points nor on how a batch is
split between calls with the same whole number. The one exception is :meth:`vaerobust.model.VAE.sample`, where each row
has noise of its own.

To compare two quantities on the same noise, give both calls the same number. Where one call chooses r and another
judges that r, give them different numbers. The defaults follow this rule: they are 0 in functions that choose r, and
another number in functions that take an r. So calls without any seed may be combined.
"""

from __future__ import annotations

from collections.abc import Iterator
from numbers import Integral

import torch
from torch import Tensor

from vaerobust.batches import slices

Seed = int | torch.Generator
"""What a public function takes as ``seed``."""

DIRECTIONS = 16_384
"""Random directions held in memory at a time. Another value would give other directions for the same seed."""


def as_generator(seed: Seed, like: Tensor) -> torch.Generator:
    """Return the seed itself if it is a generator, or else a new generator with that seed on the device of ``like``.

    Raises
    ------
    TypeError
        If the seed is neither a whole number nor a generator.
    ValueError
        If the seed is negative, or 2**63 or larger.
    """
    if isinstance(seed, torch.Generator):
        return seed
    if isinstance(seed, bool) or not isinstance(seed, Integral):
        raise TypeError(f"seed must be a whole number or a torch.Generator, but is {seed!r}")
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed must be at least 0 and below 2**63, but is {seed!r}")
    return torch.Generator(like.device).manual_seed(int(seed))


def as_number(seed: Seed, like: Tensor) -> int:
    """Return a whole number from which a function can start several streams: the seed itself, or one drawn from it.

    Raises
    ------
    TypeError, ValueError
        As :func:`as_generator`.
    """
    if isinstance(seed, torch.Generator):
        return int(torch.randint(2**62, (), generator=seed, device=seed.device))
    as_generator(seed, like)  # only checks the seed
    return int(seed)


def normal(samples: int, like: Tensor, generator: torch.Generator) -> Tensor:
    """Draw standard normal noise, shape (samples, d) with the width, type and device of ``like`` (n, d)."""
    return torch.randn(
        samples, like.shape[-1], generator=generator, dtype=like.dtype, device=generator.device
    ).to(like.device)  # fmt: skip


def unit_directions(samples: int, like: Tensor, generator: torch.Generator) -> Iterator[tuple[slice, Tensor]]:
    """Draw uniform unit vectors as wide as ``like``, in parts of at most :data:`DIRECTIONS`.

    Yields
    ------
    slice, Tensor of shape (k, d)
        Which of the samples these are, and one unit vector for each of them.
    """
    for part in slices(samples, DIRECTIONS):
        nu = normal(part.stop - part.start, like, generator)
        yield part, nu / nu.norm(dim=-1, keepdim=True)
