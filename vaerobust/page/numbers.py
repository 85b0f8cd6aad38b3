"""Numbers on the page: a cell of a notebook hands over what it measured, and the text refers to it by name.

- :func:`number` makes values available to the text;
- :func:`claim` does the same and records the value with its interval for the ledger of claims;
- :func:`trend` says in words how a list of values rises or falls.

The rules that judge claims are in ``book/claims.yml``. ``book/ledger.py`` applies them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from numbers import Real

import numpy as np
from IPython.display import display
from myst_nb import glue

CLAIM = "application/vnd.vaerobust.claim+json"
"""MIME type of the output in which an executed notebook carries the record of a claim."""


def number(**measured: float | int | str) -> None:
    """Make measured values available to the text of the page, as ``{glue:text}`name:.2f```.

    Parameters
    ----------
    **measured : float, int or str
        Values by the names that the text uses. Scalars of numpy and torch become Python's own numbers.

    Raises
    ------
    ValueError
        If a value is NaN, which the text would print as ``nan``, or is neither a number nor a string.
    """
    for name, value in measured.items():
        if not isinstance(value, str):
            # scalars of numpy and torch have a method item(); a number of Python is its own value
            value = getattr(value, "item", lambda value=value: value)()
            if not isinstance(value, Real) or math.isnan(value):
                raise ValueError(f"{name} must be a number that is not NaN, or a string, but is {value}")
        glue(name, value, display=False)


def claim(
    name: str,
    value: float,
    low: float | None = None,
    high: float | None = None,
    *,
    part: str = "",
    n: int | None = None,
) -> None:
    """Record a measurement by which a claim of the paper is judged, and make it available to the text.

    Parameters
    ----------
    name : str
        The claim's name in ``book/claims.yml``. The rule that turns the interval into a verdict is there, too.
    value : float
        The quantity that decides the claim.
    low, high : float, optional
        Ends of its interval. Leave both out if the value has no error, as in a closed form or a full count.
    part : str
        Name of a part of the claim, such as a data set. A claim of several parts takes one call per part.
    n : int, optional
        Number of cases behind the value: images, pairs or training runs.

    Raises
    ------
    ValueError
        If a number is not finite, if the value lies outside the interval, or if the name is not of words in lower
        case with hyphens.

    Notes
    -----
    The text can say ``{glue:text}`name:.2f```, ``{glue:text}`name-low:.2f``` and ``{glue:text}`name-high:.2f```. For a
    part these names are ``name-part``, ``name-part-low`` and ``name-part-high``, where the part is in lower case and
    hyphens replace everything but letters and digits.
    """
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise ValueError(f"name must be words in lower case with hyphens, but is {name!r}")
    value = float(value)
    low, high = (value if end is None else float(end) for end in (low, high))
    if not math.isfinite(low + high + value) or not low <= value <= high:
        raise ValueError(f"{name} must lie in a finite interval, but is {value} in [{low}, {high}]")
    key = "-".join(filter(None, [name, re.sub(r"[^a-z0-9]+", "-", part.lower()).strip("-")]))
    number(**{key: value, f"{key}-low": low, f"{key}-high": high})
    record = {"claim": name, "part": part, "value": value, "low": low, "high": high, "n": None if n is None else int(n)}
    display({CLAIM: record}, raw=True)


def trend(values: Iterable[float]) -> str:
    """Say how a sequence of values changes, in words for the text of a page.

    Parameters
    ----------
    values : iterable of float
        At least two values, in order.

    Returns
    -------
    str
        "rises at every step", "falls at every step", or at how many of the steps it rises.

    Raises
    ------
    ValueError
        If there are fewer than two values, or one is NaN.
    """
    listed = np.array(list(values), dtype=float)
    if len(listed) < 2 or np.isnan(listed).any():
        raise ValueError(f"values must be at least two numbers that are not NaN, but are {listed.tolist()}")
    steps = np.diff(listed)
    if (steps > 0).all() or (steps < 0).all():
        return f"{'rises' if steps[0] > 0 else 'falls'} at every step"
    return f"rises at {(steps > 0).sum()} of {len(steps)} steps"
