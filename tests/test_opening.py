"""How a chapter opens: its findings with verdicts and a picture, and below them how it was computed."""

from __future__ import annotations

import sys

import nbformat
import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "book/_ext"))

import claims_on_page
import executed_notebooks

BOX = ":::{admonition} In short\n:class: tip in-short\n\n- **Loose** (<!-- verdict: bound-loose -->).\n:::"


def notebook(text: str) -> nbformat.NotebookNode:
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text)])


@pytest.mark.parametrize(
    ("text", "opening"),
    [
        (f"# Title\n\n{BOX}\n\nText.", f"# Title\n\n{BOX}\n\n{{.executed}}\nhow\n\n\nText."),
        ("# Title\n\nText.", "# Title\n\n{.executed}\nhow\n\n\nText."),
        ("# Title", "# Title\n\n{.executed}\nhow\n"),
    ],
)
def test_how_a_chapter_was_computed_stands_below_its_findings(text, opening):
    made = notebook(text)
    assert executed_notebooks.insert_below_title(made, "how")
    assert made.cells[0].source == opening


def test_a_verdict_within_a_sentence_links_to_the_claim():
    made = notebook(BOX)
    ledger = {"claims": [{"name": "bound-loose", "verdict": "reproduced"}]}
    assert claims_on_page.fill_verdicts(made, ledger) == []
    assert "({ref}`✔\xa0reproduced <" in made.cells[0].source
    assert "bound-loose>`)." in made.cells[0].source


def test_a_verdict_on_a_claim_that_does_not_exist_is_named():
    assert claims_on_page.fill_verdicts(notebook(BOX), {"claims": []}) == ["bound-loose"]


def test_without_a_ledger_there_is_no_verdict():
    made = notebook(BOX)
    assert claims_on_page.fill_verdicts(made, None) == []
    assert "<!--" not in made.cells[0].source


def test_a_figure_of_a_later_cell_is_shown_in_the_box(tmp_path):
    cell = nbformat.v4.new_code_cell(
        "draw",
        metadata={"mystnb": {"figure": {"name": "fig-a"}}},
        outputs=[
            nbformat.v4.new_output(
                "display_data",
                data={"image/svg+xml": "<svg/>"},
                metadata={"image/svg+xml": {"alt": "A line.", "classes": "lineart"}},
            )
        ],
    )
    copy = tmp_path / "out/executed/notebooks/01_a.ipynb"
    copy.parent.mkdir(parents=True)
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), copy)
    made = notebook("```{image} <!-- figure: 01_a fig-a -->\n```")
    executed_notebooks.show_again(made, tmp_path / "out", tmp_path, "notebooks/01_a")
    assert made.cells[0].source == "```{image} /out/figures/fig-a.svg\n:alt: A line.\n:class: lineart\n```"
    assert (tmp_path / "out/figures/fig-a.svg").read_text() == "<svg/>"
