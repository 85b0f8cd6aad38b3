"""Numbers on the page: what a cell measured, put into the text by name, never typed."""

from __future__ import annotations

import math
from numbers import Real

from myst_nb import glue


def number(**measured: float | int | str) -> None:
    """Make measured values available to the text of the page as ``{glue:text}`name:.2f```.

    Parameters
    ----------
    **measured : float, int or str
        By name; numpy and torch scalars are turned into Python's own.

    Raises
    ------
    ValueError
        If a value is NaN, where the text would say ``nan``, or is neither a number nor a string.
    """
    for name, value in measured.items():
        if not isinstance(value, str):
            value = getattr(value, "item", lambda value=value: value)()
            if not isinstance(value, Real) or math.isnan(value):
                raise ValueError(f"{name} must be a number or text that can be reported, but is {value}")
        glue(name, value, display=False)
