"""Show ``CITATION.cff`` as BibTeX.

A page asks for an entry by a comment on a line of its own: ``<!-- citation: work -->`` for this work, or
``<!-- citation: paper -->`` for the paper.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from sphinx.application import Sphinx

MARKER = re.compile(r"^<!-- citation: (work|paper) -->$", re.MULTILINE)


def bibtex(kind: str, key: str, record: dict[str, Any]) -> str:
    """Return a BibTeX entry.

    Parameters
    ----------
    kind, key : str
        Type and key of the entry, such as "software" and "vaerobust".
    record : dict
        A work in the Citation File Format.
    """
    people = [
        f"{who['family-names']}, {who['given-names']}" if "family-names" in who else f"{{{who['name']}}}"
        for who in record["authors"]
    ]
    fields = {
        "author": " and ".join(people),
        "title": record["title"],
        "booktitle": record.get("collection-title"),
        "series": record.get("volume-title"),
        "volume": record.get("volume"),
        "pages": f"{record['start']}--{record['end']}" if "start" in record else None,
        "year": record.get("year") or str(record["date-released"])[:4],
        "version": record.get("version"),
        "note": record.get("notes"),
    }
    lines = [f"  {name:9} = {{{value}}}," for name, value in fields.items() if value]
    return "\n".join([f"@{kind}{{{key},", *lines, "}"])


def entries(root: Path) -> dict[str, str]:
    """Return the entries of this work and of the paper, by the words that comments use."""
    work = yaml.safe_load((root / "CITATION.cff").read_text())
    return {
        "work": bibtex("software", "vaerobust", work),
        "paper": bibtex("inproceedings", "camuto2021", work["references"][0]),
    }


def fill_page(app: Sphinx, docname: str, source: list[str]) -> None:
    """Replace the comments of a page by the entries that they ask for."""
    if MARKER.search(source[0]):
        app.env.note_dependency("CITATION.cff")
        found = entries(Path(app.srcdir))
        source[0] = MARKER.sub(lambda match: f"```bibtex\n{found[match[1]]}\n```", source[0])


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx."""
    app.connect("source-read", fill_page)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
