"""What all chapters write in the same way: names of the data sets, and counts, where none and all are special."""

from __future__ import annotations

DATASETS = {"mnist": "MNIST", "fashion-mnist": "fashion-MNIST"}
"""The names of the data sets as the book writes them."""


def of_all(count: int, total: int, noun: str) -> str:
    """Say how many of all have a property, in words that stay true and readable where it is none or all.

    Parameters
    ----------
    count, total : int
        0 <= ``count`` <= ``total``, and ``total`` at least 1.
    noun : str
        What is counted, in the plural, such as "pairs".

    Returns
    -------
    str
        "none of the 300 pairs", "6 of the 300 pairs" or "all 300 pairs".

    Raises
    ------
    ValueError
        If ``total`` is below 1, or ``count`` is not from 0 to ``total``.
    """
    count, total = int(count), int(total)
    if total < 1 or not 0 <= count <= total:
        raise ValueError(f"count must be from 0 to total, and total at least 1, but they are {count} and {total}")
    if count == total:
        return f"all {total:,} {noun}"
    return f"{f'{count:,}' if count else 'none'} of the {total:,} {noun}"


def percent(share: float) -> str:
    """Write a share in [0, 1] as a percentage that says 0 % and 100 % only where they are exact.

    Parameters
    ----------
    share : float
        In [0, 1].

    Returns
    -------
    str
        Such as "0 %", "less than 1 %", "21 %", "more than 99 %" or "100 %".

    Raises
    ------
    ValueError
        If the share is not in [0, 1].
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must be in [0, 1], but is {share}")
    if 0 < share < 0.01:
        return "less than 1 %"
    if 0.99 < share < 1:
        return "more than 99 %"
    return f"{100 * share:.0f} %"


def listed(items: list[str]) -> str:
    """Join items as a sentence does: "a", "a and b", or "a, b and c".

    Parameters
    ----------
    items : list of str
        At least one.

    Returns
    -------
    str

    Raises
    ------
    ValueError
        If there are no items.
    """
    if not items:
        raise ValueError("items must hold at least one, but is empty")
    *first, last = items
    return f"{', '.join(first)} and {last}" if first else last


def with_interval(found: tuple[float, float, float], digits: int = 2) -> str:
    """Write a value with its interval, for an entry of a table.

    Parameters
    ----------
    found : tuple of float
        The value and the ends of its interval.
    digits : int
        Decimals of all three.

    Returns
    -------
    str
        Such as "0.86 (0.82 to 0.91)".
    """
    value, low, high = (f"{number:.{digits}f}" for number in found)
    return f"{value} ({low} to {high})"
