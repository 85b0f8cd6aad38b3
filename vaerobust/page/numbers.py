"""Numbers on the page: what a cell measured, put into the text by name, never typed."""

from __future__ import annotations

import math
import re
from numbers import Real

from IPython.display import display
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


CLAIM = "application/vnd.vaerobust.claim+json"
"""MIME type under which an executed notebook carries what it measured of a claim."""


def claim(
    name: str,
    value: float,
    low: float | None = None,
    high: float | None = None,
    *,
    part: str = "",
    n: int | None = None,
) -> None:
    """Record what decides a claim of the paper, and make it available to the text.

    Parameters
    ----------
    name : str
        The claim's name in ``book/claims.yml``, where the rule that turns the interval into a verdict stands.
    value : float
        Of the quantity that the claim is decided by.
    low, high : float, optional
        Ends of its interval; both ``value`` if it has no error (a closed form, a full count).
    part : str
        Which part of the claim, such as a data set, if it has several; each is recorded by a call of its own.
    n : int, optional
        Number of cases behind it: images, pairs, training runs.

    Raises
    ------
    ValueError
        If a number is not finite, the interval does not hold the value, or the name is none that a text could use.

    Notes
    -----
    The text can say ``{glue:text}`name:.2f```, ``{glue:text}`name-low:.2f``` and ``name-high``; with a part,
    ``name-part`` and so on, the part in lower case with hyphens.
    """
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise ValueError(f"name must be words in lower case with hyphens, but is {name!r}")
    value = float(value)
    low, high = (value if end is None else float(end) for end in (low, high))
    if not math.isfinite(low + high + value) or not low <= value <= high:
        raise ValueError(f"{name} must lie in a finite interval, but is {value} in [{low}, {high}]")
    key = "-".join(filter(None, [name, re.sub(r"[^a-z0-9]+", "-", part.lower()).strip("-")]))
    number(**{key: value, f"{key}-low": low, f"{key}-high": high})
    record = {"claim": name, "part": part, "value": value, "low": low, "high": high}
    record["n"] = None if n is None else int(n)
    display({CLAIM: record}, raw=True)
