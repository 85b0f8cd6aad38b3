"""Show the ledger of claims, ``OUT/claims.json``: on the pages that ask for it, and below the cells that measured.

A page asks by a comment of its own line, ``<!-- claims: summary -->`` or ``<!-- claims: entries -->``.
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

import claims

from vaerobust.page.numbers import CLAIM

log = logging.getLogger(__name__)
MARKER = re.compile(r"^<!-- claims: (\w+) -->$", re.MULTILINE)
SNIPPETS = {
    "summary": lambda ledger: claims.warning(ledger) + claims.summary(ledger, linked=True),
    "counts": claims.counts,
    "entries": claims.entries,
}


def load(out: Path) -> claims.Ledger | None:
    """Return the ledger of a build, None if there is none."""
    path = out / "claims.json"
    return json.loads(path.read_bytes()) if path.exists() else None


def fill(out: Path, page: str, source: list[str]) -> None:
    """Put what a page asks for in the place of its comments."""
    if not MARKER.search(source[0]):
        return
    if (ledger := load(out)) is None:
        log.warning("no ledger of claims: run book/build.py", location=page)
        return
    source[0] = MARKER.sub(lambda match: SNIPPETS[match[1]](ledger), source[0])


def insert_verdicts(notebook: NotebookNode, name: str, ledger: claims.Ledger | None) -> None:
    """Take the records of claims out of a notebook's cells, and put the verdicts below the cells they came from.

    A claim whose parts are recorded by several cells has its verdict below the last of them.
    """
    measured_by = {record["claim"]: record["cell"] for record in claims.records(notebook)}
    lines: dict[int, list[str]] = {}
    if ledger:
        for claim in ledger["claims"]:
            if claim["notebook"] == name and claim["name"] in measured_by:
                line = claims.line(claim, changed=name in ledger["changed"])
                lines.setdefault(measured_by[claim["name"]], []).append(line)
    cells = []
    for place, cell in enumerate(notebook.cells):
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if CLAIM not in output.get("data", {})]
        cells.append(cell)
        if place in lines:
            cells.append(nbformat.v4.new_markdown_cell("\n\n".join(lines[place]), id=f"claims-{place}"))
    notebook.cells = cells
