"""Checks of arguments: each error names the argument, what it must be, and what it was.

Each function returns the value that it accepts, some of them in a uniform type. The checks of a model are in
:mod:`vaerobust.contract`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Integral
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from vaerobust.numerics import precise

T = TypeVar("T")

MOST = 2**31 - 1
"""Largest whole number that counts something; more is taken for a mistake."""


def positive(name: str, value: float, *, zero: bool = False) -> float:
    """Return a finite number > 0, or >= 0 with ``zero``, as a float.

    Raises
    ------
    ValueError
        If it is anything else.
    """
    number = _number(value)
    if not math.isfinite(number) or number < 0 or (number == 0 and not zero):
        raise ValueError(f"{name} must be a finite number {'>=' if zero else '>'} 0, but is {value!r}")
    return number


def count(name: str, value: int, *, least: int = 1) -> int:
    """Return a whole number of at least ``least`` and at most :data:`MOST`.

    Raises
    ------
    ValueError
        If it is anything else.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, but is {value!r}")
    if value > MOST:
        raise ValueError(f"{name} must be a whole number of at most {MOST}, but is {value!r}")
    return int(value)


def probability(name: str, value: float) -> float:
    """Return a number strictly between 0 and 1 as a float.

    Raises
    ------
    ValueError
        If it is anything else.
    """
    number = _number(value)
    if not 0 < number < 1:
        raise ValueError(f"{name} must lie strictly between 0 and 1, but is {value!r}")
    return number


def _number(value: object) -> float:
    """Return a value as a float, and NaN where it is no number: no check lets that through."""
    try:
        return math.nan if isinstance(value, str | bytes) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return math.nan


def flag(name: str, value: bool) -> bool:
    """Return True or False.

    Raises
    ------
    TypeError
        If it is anything else, such as a text, which Python would take for True.
    """
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be True or False, but is {value!r}")
    return bool(value)


def one_of(name: str, value: str, choices: Iterable[str]) -> str:
    """Return a value that is one of the choices.

    Raises
    ------
    ValueError
        If it is not.
    """
    choices = list(choices)
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, but is {value!r}")
    return value


def instance(name: str, value: object, kind: type[T]) -> T:
    """Return an object of the given class, such as the settings of a search.

    Raises
    ------
    TypeError
        If it is of another class.
    """
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be of the class {kind.__name__}, but is {_shown(value)}")
    return value


def sequence(name: str, value: Iterable[T]) -> list[T]:
    """Return the elements of a list, tuple, array, tensor or iterator as a list.

    Raises
    ------
    TypeError
        If it is one number, a text, a mapping, or nothing to go through.
    """
    single = isinstance(value, str | bytes | dict) or (isinstance(value, Tensor | np.ndarray) and value.ndim == 0)
    if single or not isinstance(value, Iterable):
        raise TypeError(f"{name} must be a sequence of numbers, but is {_shown(value)}")
    return list(value)


def numbers(name: str, value: float | np.ndarray) -> np.ndarray:
    """Return one real number, or an array of them, as an array in double precision; NaN passes.

    Raises
    ------
    TypeError
        If it holds anything else.
    """
    try:
        found = np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value)
    except (TypeError, ValueError, RuntimeError, NotImplementedError):
        found = np.array(None)
    if found.dtype.kind not in "biuf":
        raise TypeError(f"{name} must be a number or an array of numbers, but is {_shown(value)}")
    return found.astype(float)


def vectors(name: str, value: Tensor, width: int | None = None, *, like: Tensor | None = None) -> Tensor:
    """Return a finite float tensor of shape (n, width), with n and width >= 1.

    Parameters
    ----------
    name : str
        The argument's name, for the message.
    value : Tensor
        What was passed.
    width : int, optional
        Required size of the second dimension; any size if left out.
    like : Tensor, optional
        A tensor whose shape, type and device it must have.

    Raises
    ------
    TypeError
        If it is no dense tensor of floating point numbers, or ``like`` is of another type.
    ValueError
        If the shape or the device is wrong, or an element is NaN or infinite.
    """
    _dense(name, value)
    want = "(n, d) with n, d >= 1" if width is None else f"(n, {width}) with n >= 1"
    wrong = value.ndim != 2 or value.numel() == 0 or (width is not None and value.shape[1] != width)
    if wrong or (like is not None and value.shape != like.shape):
        want = want if like is None else str(tuple(like.shape))
        raise ValueError(f"{name} must have shape {want}, but has {tuple(value.shape)}")
    if like is not None:
        _alike(name, value, like)
    if not torch.isfinite(value).all():
        raise ValueError(f"{name} must be finite, but holds {int((~torch.isfinite(value)).sum())} NaN or infinite")
    return value


def stack(name: str, value: Tensor, like: Tensor) -> Tensor:
    """Return a finite float tensor of shape (k, n, d), where (n, d) is the shape of ``like``.

    Raises
    ------
    TypeError
        If it is no dense tensor of floating point numbers, or ``like`` is of another type.
    ValueError
        If the shape or the device is wrong, or an element is NaN or infinite.
    """
    _dense(name, value)
    if value.ndim != 3 or value.shape[1:] != like.shape:
        want = ", ".join(map(str, like.shape))
        raise ValueError(f"{name} must have shape (k, {want}), but has {tuple(value.shape)}")
    for one in value:
        vectors(name, one, like=like)
    return value


def _dense(name: str, value: Tensor) -> None:
    """Refuse what is no dense tensor of floating point numbers with values."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        kind = str(value.dtype) if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name} must be a tensor of floating point numbers, but is {kind}")
    if value.layout != torch.strided or value.device.type == "meta":
        kind = "on the meta device" if value.device.type == "meta" else str(value.layout)
        raise TypeError(f"{name} must be a dense tensor with values, but is {kind}")


def _alike(name: str, value: Tensor, like: Tensor) -> None:
    """Refuse a tensor of another type or device."""
    if value.dtype != like.dtype:
        raise TypeError(f"{name} must have the type of x, {like.dtype}, but is {value.dtype}")
    if value.device != like.device:
        raise ValueError(f"{name} must be on the device of x, {like.device}, but is on {value.device}")


def pixels(name: str, value: Tensor, width: int | None = None) -> Tensor:
    """Return a batch of images, shape (n, width), with every pixel in [0, 1].

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


def per_point(name: str, value: float | Tensor, n: int, like: Tensor, *, exact: bool = False) -> Tensor:
    """Return one number, or one number per point, as a tensor of shape (n,), with all elements finite and >= 0.

    Parameters
    ----------
    name : str
        The argument's name, for the message.
    value : float or Tensor, shape (n,)
        What was passed.
    n : int
        Number of points.
    like : Tensor
        Its type and device are those of the result.
    exact : bool
        True takes the most precise type of the device in place of that of ``like``.

    Raises
    ------
    TypeError
        If it holds no real numbers.
    ValueError
        If the shape is neither () nor (n,), or a number is negative, NaN or infinite.
    """
    dtype = precise(like.device) if exact else like.dtype
    try:
        if isinstance(value, str | bytes) or (isinstance(value, Tensor) and value.is_complex()):
            raise TypeError
        out = torch.as_tensor(value, dtype=dtype, device=like.device).detach()
        wrong = out[~(torch.isfinite(out) & (out >= 0))].flatten().tolist()
    except (TypeError, ValueError, RuntimeError, NotImplementedError) as error:
        raise TypeError(f"{name} must be one number or a tensor of shape ({n},), but is {_shown(value)}") from error
    if out.ndim > 1 or (out.ndim == 1 and len(out) != n):
        raise ValueError(f"{name} must be one number or shape ({n},), but has shape {tuple(out.shape)}")
    if wrong:
        raise ValueError(f"{name} must be finite and >= 0, but holds {wrong[0]}")
    return out.expand(n)


def _shown(value: object) -> str:
    """Return a value as a short text."""
    text = repr(value)
    return text if len(text) <= 60 else f"a {type(value).__name__}"
