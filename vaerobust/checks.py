"""Checks of arguments: each error names the argument, what it was and what it must be."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor


def positive(name: str, value: float, *, zero: bool = False) -> float:
    """Return ``value`` as a float if it is finite and > 0 (>= 0 with ``zero``).

    Raises
    ------
    ValueError
        If it is not.
    """
    value = float(value)
    if not math.isfinite(value) or value < 0 or (value == 0 and not zero):
        raise ValueError(f"{name} must be a finite number {'>=' if zero else '>'} 0, but is {value}")
    return value


def count(name: str, value: int, *, least: int = 1) -> int:
    """Return ``value`` if it is a whole number of at least ``least``.

    Raises
    ------
    ValueError
        If it is not.
    """
    if isinstance(value, bool) or int(value) != value or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, but is {value!r}")
    return int(value)


def probability(name: str, value: float) -> float:
    """Return ``value`` if it lies strictly between 0 and 1.

    Raises
    ------
    ValueError
        If it does not.
    """
    if not 0 < value < 1:
        raise ValueError(f"{name} must lie strictly between 0 and 1, but is {value}")
    return float(value)


def one_of(name: str, value: str, choices: Iterable[str]) -> str:
    """Return ``value`` if it is among ``choices``.

    Raises
    ------
    ValueError
        If it is not.
    """
    choices = list(choices)
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, but is {value!r}")
    return value


def vectors(name: str, value: Tensor, width: int | None = None, *, like: Tensor | None = None) -> Tensor:
    """Return ``value`` if it is a finite float tensor of shape (n, width), n >= 1.

    Parameters
    ----------
    name : str
        The argument's name, for the message.
    value : Tensor
        What was passed.
    width : int, optional
        Its second dimension; any if left out.
    like : Tensor, optional
        A tensor whose whole shape it must have.

    Raises
    ------
    TypeError
        If it is no tensor of floating point numbers.
    ValueError
        If the shape is wrong or an element is NaN or infinite.
    """
    if not isinstance(value, Tensor) or not value.is_floating_point():
        kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name} must be a tensor of floating point numbers, but is {kind}")
    want = f"(n, {'d' if width is None else width})" if like is None else str(tuple(like.shape))
    wrong = value.ndim != 2 or len(value) == 0 or (width is not None and value.shape[1] != width)
    if wrong or (like is not None and value.shape != like.shape):
        raise ValueError(f"{name} must have shape {want} with n >= 1, but has {tuple(value.shape)}")
    if not torch.isfinite(value).all():
        raise ValueError(f"{name} must be finite, but holds {int((~torch.isfinite(value)).sum())} NaN or infinite")
    return value


def pixels(name: str, value: Tensor, width: int | None = None) -> Tensor:
    """Return ``value`` if it is a batch of images, shape (n, width), with every pixel in [0, 1].

    Raises
    ------
    TypeError, ValueError
        As :func:`vectors`; also if a pixel lies outside [0, 1].
    """
    vectors(name, value, width)
    low, high = float(value.min()), float(value.max())
    if low < 0 or high > 1:
        raise ValueError(f"{name} must hold pixels in [0, 1], but ranges over [{low:.4g}, {high:.4g}]")
    return value


def per_point(name: str, value: float | Tensor, n: int, like: Tensor) -> Tensor:
    """Return ``value`` (one number, or one a point) as a tensor of shape (n,), all finite and >= 0.

    Raises
    ------
    ValueError
        If the shape is neither () nor (n,), or a number is negative, NaN or infinite.
    """
    out = torch.as_tensor(value, dtype=like.dtype, device=like.device)
    if out.ndim > 1 or (out.ndim == 1 and len(out) != n):
        raise ValueError(f"{name} must be one number or shape ({n},), but has shape {tuple(out.shape)}")
    if not (torch.isfinite(out) & (out >= 0)).all():
        raise ValueError(f"{name} must be finite and >= 0, but its least is {float(out.min())}")
    return out.expand(n)
