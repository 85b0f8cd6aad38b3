"""Checks of arguments. Each returns the value if it passes; each error names the argument, its value and the rule."""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Integral

import torch
from torch import Tensor


def positive(name: str, value: float, *, zero: bool = False) -> float:
    """Return ``value`` as a float if it is finite and > 0 (>= 0 with ``zero``).

    Raises
    ------
    ValueError
        If it is not.
    """
    number = _number(value)
    if not math.isfinite(number) or number < 0 or (number == 0 and not zero):
        raise ValueError(f"{name} must be a finite number {'>=' if zero else '>'} 0, but is {value!r}")
    return number


def count(name: str, value: int, *, least: int = 1) -> int:
    """Return ``value`` as an int if it is a whole number of at least ``least``.

    Raises
    ------
    ValueError
        If it is not.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, but is {value!r}")
    return int(value)


def probability(name: str, value: float) -> float:
    """Return ``value`` as a float if it lies strictly between 0 and 1.

    Raises
    ------
    ValueError
        If it does not.
    """
    number = _number(value)
    if not 0 < number < 1:
        raise ValueError(f"{name} must lie strictly between 0 and 1, but is {value!r}")
    return number


def _number(value: object) -> float:
    """Return ``value`` as a float, or NaN if it is not a number; every check rejects NaN."""
    try:
        return float("nan" if isinstance(value, str) else value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return math.nan


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
    """Return ``value`` if it is a finite float tensor of shape (n, width), both >= 1.

    Parameters
    ----------
    name : str
        The argument's name, for the message.
    value : Tensor
        What was passed.
    width : int, optional
        Required size of the second dimension; any size if left out.
    like : Tensor, optional
        A tensor whose shape ``value`` must have.

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
    want = "(n, d) with n, d >= 1" if width is None else f"(n, {width}) with n >= 1"
    wrong = value.ndim != 2 or value.numel() == 0 or (width is not None and value.shape[1] != width)
    if wrong or (like is not None and value.shape != like.shape):
        want = want if like is None else str(tuple(like.shape))
        raise ValueError(f"{name} must have shape {want}, but has {tuple(value.shape)}")
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
    """Return ``value``, one number or one per point, as a tensor of shape (n,) if all are finite and >= 0.

    The result has the type and device of ``like``.

    Raises
    ------
    TypeError
        If it holds no numbers.
    ValueError
        If the shape is neither () nor (n,), or a number is negative, NaN or infinite.
    """
    try:
        out = torch.as_tensor(value, dtype=like.dtype, device=like.device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be one number or a tensor of shape ({n},), but is {value!r}") from error
    if out.ndim > 1 or (out.ndim == 1 and len(out) != n):
        raise ValueError(f"{name} must be one number or shape ({n},), but has shape {tuple(out.shape)}")
    wrong = out[~(torch.isfinite(out) & (out >= 0))]
    if len(wrong):
        raise ValueError(f"{name} must be finite and >= 0, but holds {float(wrong[0])}")
    return out.expand(n)
