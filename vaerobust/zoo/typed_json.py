"""Frozen dataclasses as JSON and back: every field is checked, and an error names the field that does not fit.

:func:`to_plain` turns a dataclass into what ``json.dumps`` takes. :func:`from_plain` turns what ``json.loads`` returns
into a dataclass. The keys are the names of the fields. JSON has no infinity and no NaN, so these are written as the
strings "inf", "-inf" and "nan", as in :meth:`vaerobust.results.Result.to_json`.
"""

from __future__ import annotations

import math
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import numpy as np
import torch
from torch import Tensor

NOT_FINITE = ("inf", "-inf", "nan")
"""The strings that stand for the numbers that JSON lacks."""

Record = TypeVar("Record")


def to_plain(value: Any) -> Any:
    """Return a value as dicts, lists, strings, numbers and booleans.

    Parameters
    ----------
    value : object
        A dataclass whose fields are dataclasses, tensors, tuples, dicts with strings as keys, strings, numbers or
        booleans.
    """
    if is_dataclass(value):
        return {field.name: to_plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Tensor):
        return to_plain(value.tolist())
    if isinstance(value, tuple | list):
        return [to_plain(inner) for inner in value]
    if isinstance(value, dict):
        return {key: to_plain(inner) for key, inner in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def from_plain(kind: type[Record], value: Any, where: str = "") -> Record:
    """Turn what was read from JSON into an object of a type, which may be a dataclass.

    Parameters
    ----------
    kind : type
        A dataclass, ``Tensor``, ``tuple[T, ...]``, ``dict[str, T]``, ``str``, ``float``, ``int`` or ``bool``.
    value : object
        What ``json.loads`` returned. A tensor may stand in the place of nested lists. A field that has a default may
        be missing, because the file may be older than the field.
    where : str
        Where the value stands in the file, such as ``provenance.spec``, for error messages.

    Raises
    ------
    ValueError
        If a field is missing or unknown, or a value has the wrong type; the message names it.
    """
    found: Any
    if is_dataclass(kind):
        found = _dataclass(kind, value, where)
    elif kind is Tensor:
        found = value if isinstance(value, Tensor) else _tensor(value, where)
    elif get_origin(kind) is tuple:
        inner = get_args(kind)[0]
        found = tuple(from_plain(inner, one, f"{where}[{i}]") for i, one in enumerate(_expect(list, value, where)))
    elif get_origin(kind) is dict:
        inner = get_args(kind)[1]
        found = {key: from_plain(inner, one, f"{where}.{key}") for key, one in _expect(dict, value, where).items()}
    elif kind is float:
        found = float(_expect((float, int), _number(value), where))
    else:
        found = _expect(kind, value, where)
    return found


def _dataclass(kind: Any, value: Any, where: str) -> Any:
    """Return a dataclass from a JSON object; see :func:`from_plain`."""
    content = _expect(dict, value, where)
    declared = {field.name: field for field in fields(kind)}
    prefix = f"{where}." if where else ""
    for name in content:
        if name not in declared:
            raise ValueError(f"{prefix}{name} is not a field of {kind.__name__}")
    for name, field in declared.items():
        if name not in content and _is_required(field):
            raise ValueError(f"{prefix}{name} is missing")
    hints = get_type_hints(kind)
    return kind(**{name: from_plain(hints[name], inner, f"{prefix}{name}") for name, inner in content.items()})


def _is_required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _tensor(value: Any, where: str) -> Tensor:
    """Return nested lists as a tensor of booleans, or of numbers in double precision."""
    numbers = _numbers(_expect(list, value, where))
    try:
        array = np.array(numbers)
    except ValueError as error:
        raise ValueError(f"{where or 'the file'} must hold lists of equal length: {error}") from error
    if array.dtype.kind not in "bif":
        raise ValueError(f"{where or 'the file'} must hold numbers, or true and false")
    return torch.from_numpy(array if array.dtype.kind == "b" else array.astype(np.float64))


def _numbers(value: Any) -> Any:
    """Apply :func:`_number` to every entry of nested lists."""
    return [_numbers(inner) for inner in value] if isinstance(value, list) else _number(value)


def _number(value: Any) -> Any:
    """Return the number for which a string in :data:`NOT_FINITE` stands; return any other value unchanged."""
    return float(value) if isinstance(value, str) and value in NOT_FINITE else value


def _expect(kind: Any, value: Any, where: str) -> Any:
    """Return the value if it has the type, and raise a ValueError if not. True and False do not count as numbers."""
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        names = {"dict": "an object", "list": "a list", "str": "a text", "bool": "true or false"}
        wanted = " or ".join(dict.fromkeys(names.get(one.__name__, "a number") for one in kinds))
        raise ValueError(f"{where or 'the file'} must be {wanted}, but is {value!r:.60}")
    return value
