"""Show on the page of ``notebooks/NAME.md`` what ``book/build.py`` executed.

The text file stays the document, so the table of contents, cross-references and source download need no tricks; its
cells and outputs come from the executed copy, in the output folder of the build, which the environment variable
``VAEROBUST_OUT`` names. The reader puts a line below the title that tells when and from what the outputs were computed,
hands the alternative text that came with a figure to the page, and puts verdicts below the cells that measured claims.
A copy that is missing or stale, or an image without alternative text, is a warning, which fails a build with ``-W``.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import claims_on_page
import jupytext
import nbformat
from nbformat import NotebookNode
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.util import logging

log = logging.getLogger(__name__)
FOLDER = "notebooks"
VARIABLE = "VAEROBUST_OUT"


def out_folder(app: Sphinx) -> Path:
    """Return the output folder of the build."""
    return Path(os.environ.get(VARIABLE) or Path(app.srcdir, "_build"))


def executed_folder(app: Sphinx) -> Path:
    """Return the folder of the executed copies."""
    return out_folder(app) / "executed" / FOLDER


def register(app: Sphinx, config: Config) -> None:
    """Give every notebook a reader of its own: MyST-NB takes the longest key with which a path ends."""
    readers = dict(config.nb_custom_formats)
    for source in sorted(Path(app.srcdir, FOLDER).glob("*.md")):
        paths = {"source": str(source), "out": str(out_folder(app))}
        readers[f"{FOLDER}/{source.name}"] = ["executed_notebooks.read", paths]
    config.nb_custom_formats = readers


def read(text: str, source: str, out: str) -> NotebookNode:
    """Return the cells of the executed copy of ``source`` under ``out``, made ready for the page."""
    name = Path(source).stem
    page, executed = f"{FOLDER}/{name}", Path(out, "executed", FOLDER, f"{name}.ipynb")
    if not executed.exists():
        log.warning("not executed: run book/build.py", location=page)
        return jupytext.reads(text, fmt="md:myst")
    notebook = nbformat.read(executed, as_version=4)
    record = notebook.metadata.pop("vaerobust", {})
    if record.get("made_from", {}).get("notebook") != hashlib.sha256(Path(source).read_bytes()).hexdigest():
        log.warning("its outputs are stale: run book/build.py", location=page)
    run = notebook.metadata.pop("papermill", {})
    notebook.cells = [cell for cell in notebook.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    for number, cell in enumerate(notebook.cells, 1):
        for problem in describe_images(cell):
            log.warning("cell %d: %s", number, problem, location=page)
    claims_on_page.insert_verdicts(notebook, name, claims_on_page.load(Path(out)))
    if not insert_below_title(notebook, badge(record, run)):
        log.warning("its first cell has no title: a line '# ...'", location=page)
    return notebook


def describe_images(cell: NotebookNode) -> list[str]:
    """Move alternative text and classes from a cell's image output to where MyST-NB looks for them.

    Returns
    -------
    list of str
        What is wrong with the images of the cell.
    """
    found = []
    for output in cell.get("outputs", []):
        kinds = [kind for kind in output.get("data", {}) if kind.startswith("image/")]
        if kinds:
            found.append({k: v for kind in kinds for k, v in output.metadata.get(kind, {}).items()})
    if not found:
        return []
    image = cell.metadata.setdefault("mystnb", {}).setdefault("image", {})
    for shown in found:
        classes = f"{image.get('classes', '')} {shown.get('classes', '')}".split()
        if classes:
            image["classes"] = " ".join(dict.fromkeys(classes))
        if shown.get("alt"):
            image["alt"] = shown["alt"]
    problems = [] if image.get("alt") else ["an image has no alternative text"]
    return problems + (["two images in one cell would share name and alternative text"] if len(found) > 1 else [])


def badge(record: dict[str, Any], run: dict[str, Any]) -> str:
    """Return one line of Markdown: when, how long, on what and from which data the notebook ran."""
    when = str(run.get("end_time", "?"))[:16].replace("T", " ")
    threads, data = record.get("threads", 1), record.get("made_from", {}).get("data", {})
    parts = [
        f"Executed {when} UTC in {run.get('duration', 0):.0f} s on {record.get('processor', 'an unknown processor')}"
        f" ({threads} thread{'s' * (threads != 1)})",
        f"commit `{record['commit']}`" if record.get("commit") else "",
        "data: " + "; ".join(f"{name} from {images['source']}" for name, images in data.items()),
    ]
    changed = ", ".join(f"`{name} = {value!r}`" for name, value in run.get("parameters", {}).items())
    text = ", ".join(part for part in parts if part) + "."
    return text + (f" **Parameters changed for this run:** {changed}." if changed else "")


def insert_below_title(notebook: NotebookNode, line: str) -> bool:
    """Put a paragraph of class ``executed`` below the level-1 heading of the first cell; tell if there is one."""
    if not notebook.cells or notebook.cells[0].cell_type != "markdown":
        return False
    lines = notebook.cells[0].source.split("\n")
    title = next((i for i, text in enumerate(lines) if text.startswith("# ")), None)
    if title is None:
        return False
    lines[title + 1 : title + 1] = ["", "{.executed}", line, ""]
    notebook.cells[0].source = "\n".join(lines)
    return True


def fill_page(app: Sphinx, docname: str, source: list[str]) -> None:
    """Put the ledger of claims on the pages of prose that ask for it."""
    if not docname.startswith(f"{FOLDER}/"):
        claims_on_page.fill(out_folder(app), docname, source)


def offer_download(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: object) -> None:
    """Name the executed copy to the theme, which then makes a download button for it."""
    if pagename.startswith(f"{FOLDER}/") and doctree is not None:
        context["ipynb_source"] = f"{pagename}.ipynb"


def publish(app: Sphinx, exception: Exception | None) -> None:
    """Copy the executed notebooks beside the sources that Sphinx publishes."""
    if exception is None and app.builder.format == "html":
        for path in executed_folder(app).glob("*.ipynb"):
            shutil.copyfile(path, Path(app.outdir, "_sources", FOLDER, path.name))


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx: after MyST-NB has taken the suffixes (500), before the theme makes its buttons (501)."""
    app.connect("config-inited", register, priority=600)
    app.connect("source-read", fill_page)
    app.connect("html-page-context", offer_download, priority=490)
    app.connect("build-finished", publish)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
