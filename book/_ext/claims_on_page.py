"""Show the ledger of claims, ``OUT/claims.json``, on pages and below the cells that measured the claims.

A page asks for a text by a comment on a line of its own: ``<!-- claims: summary -->``, ``<!-- claims: counts -->`` or
``<!-- claims: entries -->``. Within a sentence of a chapter, ``<!-- verdict: NAME -->`` asks for the verdict on one
claim. The texts come from ``book/wording.py``. Nothing is connected to Sphinx here: ``executed_notebooks.py`` calls
:func:`fill`, :func:`fill_verdicts` and :func:`insert_verdicts`.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from sphinx.util import logging

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # book/

import wording
from ledger import Ledger, records

from vaerobust.page.numbers import CLAIM

log = logging.getLogger(__name__)
MARKER = re.compile(r"^<!-- claims: (\w+) -->$", re.MULTILINE)
VERDICT = re.compile(r"<!-- verdict: ([\w-]+) -->")
"""Comment by which a chapter asks for the verdict on a claim, as words that link to the claim's entry."""
SNIPPETS = {
    "summary": lambda ledger: wording.warning(ledger) + wording.summary(ledger, linked=True),
    "counts": wording.counts,
    "entries": wording.entries,
}
"""What a page can ask for."""


def load(out: Path) -> Ledger | None:
    """Return the ledger of a build; None if there is none."""
    path = out / "claims.json"
    return json.loads(path.read_bytes()) if path.exists() else None


def fill(out: Path, page: str, source: list[str]) -> None:
    """Replace the comments of a page by what they ask for."""
    if not MARKER.search(source[0]):
        return
    if (ledger := load(out)) is None:
        log.warning("no ledger of claims: run book/build.py", location=page)
        return
    source[0] = MARKER.sub(lambda match: SNIPPETS[match[1]](ledger), source[0])


def fill_verdicts(notebook: NotebookNode, ledger: Ledger | None) -> list[str]:
    """Replace the comments in the text of a notebook by the verdicts that they ask for; without a ledger, by nothing.

    Returns
    -------
    list of str
        The claims that are asked for and not in the ledger.
    """
    known = {claim["name"]: wording.verdict(claim) for claim in ledger["claims"]} if ledger else {}
    missing = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            missing += [name for name in VERDICT.findall(cell.source) if ledger and name not in known]
            cell.source = VERDICT.sub(lambda match: known.get(match[1], ""), cell.source)
    return missing


def insert_verdicts(notebook: NotebookNode, name: str, ledger: Ledger | None) -> None:
    """Remove the records of claims from the outputs of a notebook, and insert the verdicts below their cells.

    If several cells record the parts of a claim, its verdict is below the last of them.
    """
    measured_by = {record["claim"]: record["cell"] for record in records(notebook)}
    lines: dict[int, list[str]] = {}
    if ledger:
        for claim in ledger["claims"]:
            if claim["notebook"] == name and claim["name"] in measured_by:
                line = wording.line(claim, changed=name in ledger["changed"])
                lines.setdefault(measured_by[claim["name"]], []).append(line)
    cells = []
    for index, cell in enumerate(notebook.cells):
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if CLAIM not in output.get("data", {})]
        cells.append(cell)
        if index in lines:
            cells.append(nbformat.v4.new_markdown_cell("\n\n".join(lines[index]), id=f"claims-{index}"))
    notebook.cells = cells
