"""Link each theorem to the tests that check it, and each figure to the code that drew it.

``book/checks.yml`` names the tests of each labelled theorem, definition, proposition, lemma and algorithm. Each of
them stands in a box, whose last line links to its tests. The source of all tests is on the page that has the comment
``<!-- checks -->`` on a line of its own. The caption of a figure links to the code of the cell that drew it.
This code unfolds if it is folded.
"""

from __future__ import annotations

import re
from pathlib import Path

import yaml
from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx_proof.nodes import NODE_TYPES

MARKER = re.compile(r"^<!-- checks -->$", re.MULTILINE)
Checks = dict[str, list[str]]


def load(root: Path) -> Checks:
    """Return the tests, each as ``test_file.py::test_name``, by the label of what they check."""
    checks: Checks = yaml.safe_load((root / "book/checks.yml").read_text())
    return checks


def name_of(test: str) -> str:
    """Return the label of a test's source, such as ``check-bounds-theorem-1-is-its-formula``."""
    file, _, function = test.partition("::")  # the slices below cut off "test_" and ".py"
    return re.sub(r"[._]", "-", f"check-{file[5:-3]}-{function[5:]}")


def source_of(label: str, tests: list[str]) -> str:
    """Return Markdown for the tests of one theorem: a line with a link to the theorem, and the source of each test."""
    parts = [f"{{prf:ref}}`{label}` is checked by:"]
    for test in tests:
        file, _, function = test.partition("::")
        options = f":pyobject: {function}\n:name: {name_of(test)}\n:caption: tests/{file}"
        parts.append(f"```{{literalinclude}} ../tests/{file}\n{options}\n```")
    return "\n\n".join(parts)


def fill_page(app: Sphinx, docname: str, source: list[str]) -> None:
    """Replace the comment of a page with the source of all tests."""
    if MARKER.search(source[0]):
        app.env.note_dependency("book/checks.yml")
        shown = "\n\n".join(source_of(label, tests) for label, tests in load(Path(app.srcdir)).items())
        source[0] = MARKER.sub(lambda _: shown, source[0])


def link_theorems(app: Sphinx, doctree: nodes.document) -> None:
    """Append to the box of each theorem a line with links to its tests."""
    boxes = list(doctree.findall(lambda node: isinstance(node, tuple(NODE_TYPES.values()))))
    checks = load(Path(app.srcdir)) if boxes else {}
    for box in boxes:
        line = nodes.paragraph("", "Checked by ", classes=["checked-by"])
        for number, test in enumerate(checks.get(box["label"], [])):
            function = test.partition("::")[2]
            link = addnodes.pending_xref(
                "", nodes.literal("", function), refdomain="std", reftype="ref", reftarget=name_of(test),
                refexplicit=True, refdoc=app.env.docname, refwarn=True,
            )  # fmt: skip
            line += [nodes.Text(", "), link] if number else [link]
        if len(line) > 1:
            box[-1] += line


def link_figures(app: Sphinx, doctree: nodes.document) -> None:
    """Append to the caption of each figure a link to the code of its cell."""
    for figure in doctree.findall(nodes.figure):
        cell = figure.parent
        while cell is not None and "cell" not in cell.get("classes", []):
            cell = cell.parent
        caption = next(iter(figure.findall(nodes.caption)), None)
        if cell is None or caption is None or not figure["ids"]:
            continue
        code = next(node for node in cell.findall(nodes.container) if "cell_input" in node["classes"])
        code["ids"].append(f"code-of-{figure['ids'][0]}")
        caption += [
            nodes.Text(" "),
            nodes.reference("", "Code", refid=code["ids"][-1], internal=True, classes=["code-of-figure"]),
        ]


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx."""
    app.connect("source-read", fill_page)
    app.connect("doctree-read", link_theorems)
    app.connect("doctree-read", link_figures)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
