"""Numbers on the page: what a cell measured, put into the text by name, never typed."""

from __future__ import annotations

import math
from numbers import Integral

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
        If a number is NaN: the text would say ``nan``.
    """
    for name, value in measured.items():
        if not isinstance(value, str):
            value = int(value) if isinstance(value, Integral) else float(value)
            if math.isnan(value):
                raise ValueError(f"{name} is NaN, which no text can report")
        glue(name, value, display=False)
