"""Tables on the page: aligned decimals, no NaN, a caption, and a number in the book."""

from __future__ import annotations

import sys

import nbformat
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

from vaerobust.page import tables
from vaerobust.page.tables import show_table

sys.path.insert(0, str(ROOT / "book/_ext"))

FRAME = pd.DataFrame(
    {
        "model": ["TC", "a|b"],
        "radius": [20.639999, np.nan],
        "draws": [12_000, 3],
        "found": [True, False],
    },
    index=pd.Index([0.1, 5.0], name="beta"),
)


@pytest.fixture
def shown(monkeypatch):
    """What was put on the page: (data, metadata) of each display."""
    found = []
    monkeypatch.setattr(tables, "display", lambda data, *, raw, metadata: found.append((data, metadata)))
    return found


def test_entries_are_rounded_and_never_nan(shown):
    show_table(FRAME, "Radii, in pixels.", "tab-radii", digits={"radius": 3})
    ((data, metadata),) = shown
    assert data["text/markdown"].split("\n") == [
        "| beta | model | radius | draws | found |",
        "| :--- | :--- | ---: | ---: | :--- |",
        "| 0.1 | TC | 20.640 | 12,000 | yes |",
        "| 5 | a\\|b | – | 3 | no |",
    ]
    assert metadata == {"text/markdown": {"table": "tab-radii", "caption": "Radii, in pixels."}}


def test_what_rounds_to_zero_has_no_sign(shown):
    show_table(pd.DataFrame({"gap": [-0.001, -1.5]}), "Gaps.", "tab-gaps")
    assert shown[0][0]["text/markdown"].split("\n")[2:] == ["| 0.00 |", "| -1.50 |"]


def test_a_notebook_opened_elsewhere_shows_table_and_caption(shown):
    show_table(FRAME, "Radii < 21.", "tab-radii")
    html = shown[0][0]["text/html"]
    assert "<caption>Radii &lt; 21.</caption>" in html
    assert "20.64" in html
    assert "NaN" not in html


def test_an_index_without_a_name_is_no_column(shown):
    show_table(FRAME.reset_index(drop=True), "Radii.", "tab-radii")
    assert shown[0][0]["text/markdown"].startswith("| model | radius |")


@pytest.mark.parametrize(
    ("caption", "name", "message"),
    [
        ("", "tab-a", "caption must be one line"),
        ("two\nlines", "tab-a", "caption must be one line"),
        ("One.", "a", "name must be 'tab-'"),
        ("One.", "tab-A b", "name must be 'tab-'"),
    ],
)
def test_a_table_needs_caption_and_name(shown, caption, name, message):
    with pytest.raises(ValueError, match=message):
        show_table(FRAME, caption, name)
    assert shown == []


def test_the_book_makes_numbered_tables_of_them(shown):
    import executed_notebooks

    show_table(FRAME, "Radii, in pixels.", "tab-radii")
    data, metadata = shown[0]
    output = nbformat.v4.new_output("display_data", data=data, metadata=metadata)
    other = nbformat.v4.new_output("display_data", data={"text/plain": "1"})
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("x", outputs=[output, other])])
    executed_notebooks.set_tables(notebook)
    code, table = notebook.cells
    assert code.outputs == [other]
    assert table.source.startswith("````{table} Radii, in pixels.\n:name: tab-radii\n\n| beta |")
