"""Tables on the page: with a caption, a number that the text can refer to, and decimals that stand below each other.

A notebook hands a data frame to :func:`show_table`. ``book/_ext/executed_notebooks.py`` makes of it a table of the
book, to which the text refers by ``{numref}``. A downloaded notebook shows the same table with its caption.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

import pandas as pd
from IPython.display import display

NAME = re.compile(r"tab-[a-z0-9]+(-[a-z0-9]+)*")


def show_table(frame: pd.DataFrame, caption: str, name: str, digits: int | Mapping[str, int] = 2) -> None:
    """Put a table on the page.

    Parameters
    ----------
    frame : DataFrame
        One row per row of the table. Each named level of the index becomes a column, whose numbers are written in
        full.
    caption : str
        What the table shows, with units, as Markdown in one line.
    name : str
        The name to which the text refers: "tab-" and words in lower case with hyphens.
    digits : int or mapping from str to int
        Decimals of the numbers that are not whole: one for all columns, or by column; columns left out have 2.

    Raises
    ------
    ValueError
        If the caption is empty or has more than one line, or the name is not as said.
    """
    if not caption.strip() or "\n" in caption:
        raise ValueError(f"caption must be one line of text, but is {caption!r}")
    if not NAME.fullmatch(name):
        raise ValueError(f"name must be 'tab-' and words in lower case with hyphens, but is {name!r}")
    plain = frame.reset_index() if any(frame.index.names) else frame
    labels = [name for name in frame.index.names if name]
    plain = plain.assign(**{name: [label(value) for value in plain[name]] for name in labels})
    text = pd.DataFrame({column: written(plain[column], digits) for column in plain.columns})
    numeric = [column for column in plain.columns if is_number(plain[column])]
    data = {"text/html": as_html(text, caption), "text/markdown": as_markdown(text, numeric), "text/plain": caption}
    display(data, raw=True, metadata={"text/markdown": {"table": name, "caption": caption}})


def is_number(column: pd.Series) -> bool:
    """Tell whether a column holds numbers, and not truth values."""
    return pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)


def label(value: object) -> str:
    """Return a number of the index in full, as ``0.1`` or ``5``, and everything else as it is."""
    return f"{value:g}" if isinstance(value, Real) else str(value)


def written(column: pd.Series, digits: int | Mapping[str, int]) -> list[str]:
    """Return the entries of a column as text."""
    places = digits if isinstance(digits, int) else digits.get(str(column.name), 2)
    return [entry(value, places) for value in column]


def entry(value: Any, places: int) -> str:
    """Return one entry as text: a dash for what is missing, words for truth values."""
    if isinstance(value, bool) or type(value).__name__ in {"bool_", "bool"}:
        return "yes" if value else "no"
    if isinstance(value, Integral):
        return f"{int(value):,}"
    if isinstance(value, Real):
        # "z" writes what rounds to zero without a sign
        return "–" if math.isnan(value) else f"{float(value):z,.{places}f}"
    return str(value)


def as_markdown(text: pd.DataFrame, numeric: list[str]) -> str:
    """Return a table of Markdown; columns of numbers are aligned to the right."""
    sides = ["---:" if column in numeric else ":---" for column in text.columns]
    rows = [list(map(str, text.columns)), sides, *text.to_numpy().tolist()]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


def as_html(text: pd.DataFrame, caption: str) -> str:
    """Return a table of HTML with its caption, for a notebook that is opened elsewhere."""
    table = text.to_html(index=False, border=0)
    return table.replace(">", f"><caption>{html.escape(caption)}</caption>", 1)
