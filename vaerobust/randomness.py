"""Randomness: the one way in which every public function takes it, and the noise that they draw.

A function that draws takes ``seed``. A whole number starts a new stream, so the same call gives the same numbers each
time it is made. A ``torch.Generator`` is drawn from where it stands and moves on, so that the next call with it gets
new numbers. All points of a call meet the same noise: results depend neither on the order of the points nor on how a
batch is split between calls with the same whole number. Where two quantities are compared, give both calls the same
number, and they are compared on the same noise. Where one result chooses what another one judges, give them different
numbers. The one exception is :meth:`vaerobust.model.VAE.sample`, in which each row has noise of its own.
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
"""Random directions that are held at a time, which bounds the memory. What is drawn depends on it."""


def as_generator(seed: Seed, like: Tensor) -> torch.Generator:
    """Return the generator that a seed stands for: itself, or a new one on the device of ``like``.

    Raises
    ------
    TypeError
        If the seed is neither a whole number nor a generator.
    ValueError
        If it is negative, or 2**63 or larger.
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
    as_generator(seed, like)
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
        Which of the samples these are, and their directions.
    """
    for part in slices(samples, DIRECTIONS):
        nu = normal(part.stop - part.start, like, generator)
        yield part, nu / nu.norm(dim=-1, keepdim=True)
