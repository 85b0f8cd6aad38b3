"""What every result can do: turn into a table with one row per point, or into JSON.

:class:`Result` is the base of the dataclasses that the functions of this package return. It holds no numbers of its
own; read a result's own class for its fields.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class Result:
    """Base of all results: named fields, each a tensor or array, a number, a string, or another result."""

    def to_frame(self) -> pd.DataFrame:
        """Return a DataFrame with one row per point.

        Returns
        -------
        DataFrame
            One column per field. A field with one number per point fills its column; a single number or string is
            repeated in every row. The fields of a result within this one get that result's name as a prefix. Fields
            with several numbers per point, such as perturbations, are left out; :meth:`to_json` has them.
        """
        import pandas as pd  # takes half a second to import

        columns = self._columns()
        rows = max((len(column) for column in columns.values() if np.ndim(column)), default=1)
        return pd.DataFrame(columns, index=range(rows))

    def to_json(self) -> str:
        """Return all fields as a JSON object; tensors become nested lists, infinite numbers and NaN strings."""
        return json.dumps(_plain(self), allow_nan=False)

    def _columns(self, prefix: str = "") -> dict[str, Any]:
        """Return what :meth:`to_frame` shows, by the name of the column."""
        columns: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            name = prefix + field.name
            if isinstance(value, Result):
                columns |= value._columns(f"{name}_")
            elif isinstance(value, Tensor | np.ndarray):
                if value.ndim <= 1:
                    columns[name] = _array(value)
            elif isinstance(value, str | bool | int | float | np.generic):
                columns[name] = value
        return columns


def _array(value: Tensor | np.ndarray) -> np.ndarray:
    """Return a tensor or array as a numpy array."""
    if isinstance(value, np.ndarray):
        return value
    value = value.detach().cpu()
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy()  # numpy has no bfloat16


def _plain(value: Any) -> Any:
    """Return a value in the types of JSON: objects, lists, strings, finite numbers, booleans and null."""
    if isinstance(value, Result):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Tensor | np.ndarray):
        return _plain(_array(value).tolist())
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
