"""Show the executed copy of each notebook on the notebook's page.

The table of contents and references name the source, ``notebooks/NAME.md``. :func:`read` takes cells and outputs from
the executed copy. This copy is in the output folder of the build, which the environment variable ``VAEROBUST_OUT``
names. This module also

- puts a box below the title, or below the findings there: when, on what machine and from which data the outputs were
  computed;
- hands the alternative text of each figure to the page;
- inserts verdicts below the cells that measured claims;
- makes tables with numbers and captions of what ``vaerobust.page.tables`` put on the page.

A page of prose can show a figure of a chapter, and a chapter can show a figure of its own once more, by a directive
whose path is a comment::

    ```{figure} <!-- figure: 01_r_robustness fig-attacked -->

A copy that is missing or stale, or an image without alternative text, gives a warning, and the build counts warnings as
errors.
"""

from __future__ import annotations

import hashlib
import os
import re
from base64 import b64decode
from pathlib import Path
from typing import Any

import claims_on_page
import jupytext
import nbformat
import whole_download
from nbformat import NotebookNode
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.util import logging

log = logging.getLogger(__name__)
FOLDER = "notebooks"
VARIABLE = "VAEROBUST_OUT"
"""Environment variable with the output folder of the build, set in ``book/rendering.py``."""
FIGURE = re.compile(r"(?<=\} )<!-- figure: (\w+) ([\w-]+) -->")
"""Comment by which a page of prose asks for a figure: name of the notebook, name of the figure."""


def out_folder(app: Sphinx) -> Path:
    """Return the output folder of the build."""
    return Path(os.environ.get(VARIABLE) or Path(app.srcdir, "_build"))


def executed_folder(app: Sphinx) -> Path:
    """Return the folder of the executed copies."""
    return out_folder(app) / "executed" / FOLDER


def register(app: Sphinx, config: Config) -> None:
    """Register :func:`read` as the reader of each notebook: MyST-NB takes the longest key with which a path ends."""
    readers = dict(config.nb_custom_formats)
    for source in sorted(Path(app.srcdir, FOLDER).glob("*.md")):
        paths = {"source": str(source), "out": str(out_folder(app))}
        readers[f"{FOLDER}/{source.name}"] = ["executed_notebooks.read", paths]
    config.nb_custom_formats = readers


def read(text: str, source: str, out: str) -> NotebookNode:
    """Return the executed copy of a notebook, made ready for its page.

    Parameters
    ----------
    text : str
        The notebook as MyST Markdown, which is shown without outputs if there is no copy.
    source, out : str
        Path of the notebook, and the output folder of the build.
    """
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
    show_again(notebook, Path(out), Path(source).parents[1], page)
    ledger = claims_on_page.load(Path(out))
    for claim in claims_on_page.fill_verdicts(notebook, ledger):
        log.warning("no claim %s in the ledger", claim, location=page)
    claims_on_page.insert_verdicts(notebook, name, ledger)
    set_tables(notebook)
    if not insert_below_title(notebook, box(name, notebook, record, run)):
        log.warning("its first cell has no title: a line '# ...'", location=page)
    return notebook


def set_tables(notebook: NotebookNode) -> None:
    """Replace the tables of ``vaerobust.page.tables`` among the outputs by tables that have a number."""
    cells = []
    for index, cell in enumerate(notebook.cells):
        cells.append(cell)
        if cell.cell_type != "code":
            continue
        kept = []
        for output in cell.outputs:
            shown = output.get("metadata", {}).get("text/markdown", {})
            if "table" not in shown:
                kept.append(output)
                continue
            fence = f"````{{table}} {shown['caption']}\n:name: {shown['table']}\n\n"
            text = fence + "".join(output.data["text/markdown"]) + "\n````"
            cells.append(nbformat.v4.new_markdown_cell(text, id=f"table-{index}-{len(cells)}"))
        cell.outputs = kept
    notebook.cells = cells


def describe_images(cell: NotebookNode) -> list[str]:
    """Copy alternative text and classes from a cell's images to the cell's metadata, where MyST-NB looks for them.

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
    if len(found) > 1:
        problems.append("two images in one cell would share one name and one alternative text")
    return problems


def box(name: str, notebook: NotebookNode, record: dict[str, Any], run: dict[str, Any]) -> str:
    """Return the box below a chapter's title, in Markdown: what is in the chapter, and how it was computed.

    Parameters
    ----------
    name : str
        Name of the notebook.
    notebook : NotebookNode
    record : dict
        How the copy was made, as ``book/freshness.py`` and ``book/execution.py`` record it.
    run : dict
        Papermill's record of the run.
    """
    figures = sum("figure" in cell.metadata.get("mystnb", {}) for cell in notebook.cells)
    when = str(run.get("end_time", "?"))[:16].replace("T", " ")
    threads, data = record.get("threads", 1), record.get("made_from", {}).get("data", {})
    commit = f", at commit `{record['commit']}`" if record.get("commit") else ""
    changed = ", ".join(f"`{name} = {value!r}`" for name, value in run.get("parameters", {}).items())
    used = [f"{name}, {images['images']:,} test images from {images['source']}" for name, images in data.items()]
    lines = {
        "To see": f"{figures} figures, each with its code, and the verdicts on the claims that are measured here",
        "Run": f"{when} UTC, in {run.get('duration', 0):.0f} s on {record.get('processor', 'an unknown processor')}"
        f" ({threads} thread{'s' * (threads != 1)}){commit}",
        "Data": "; ".join(used),
        "Parameters": f"changed for this run: {changed}" if changed else "at full scale, as in the cell of parameters",
        "Notebook": f'<a href="../_sources/{FOLDER}/{name}.ipynb" download>{name}.ipynb</a>, as executed; '
        "it runs wherever `vaerobust[book]` is installed",
    }  # fmt: skip
    return "\\\n".join(f"**{what}.** {text}." for what, text in lines.items())


def insert_below_title(notebook: NotebookNode, line: str) -> bool:
    """Insert a paragraph of class ``executed`` below the title of a notebook; tell whether there is a title.

    If the findings stand directly below the title, in a box that opens with ``:::``, the paragraph comes below them.
    """
    if not notebook.cells or notebook.cells[0].cell_type != "markdown":
        return False
    lines = notebook.cells[0].source.split("\n")
    title = next((i for i, text in enumerate(lines) if text.startswith("# ")), None)
    if title is None:
        return False
    after = next((i for i in range(title + 1, len(lines)) if lines[i].strip()), title + 1)
    boxed = after < len(lines) and lines[after].startswith(":::{")
    below = 1 + (lines.index(":::", after) if boxed else title)
    lines[below:below] = ["", "{.executed}", line, ""]
    notebook.cells[0].source = "\n".join(lines)
    return True


def fill_page(app: Sphinx, docname: str, source: list[str]) -> None:
    """Replace the comments of a page of prose by texts from the ledger of claims and figures of the chapters."""
    if not docname.startswith(f"{FOLDER}/"):
        claims_on_page.fill(out_folder(app), docname, source)
        source[0] = FIGURE.sub(lambda match: figure(out_folder(app), Path(app.srcdir), *match.groups()), source[0])


def show_again(notebook: NotebookNode, out: Path, root: Path, page: str) -> None:
    """Replace the comments in the text of a notebook by the figures that they ask for."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = FIGURE.sub(lambda match: figure(out, root, *match.groups(), page=page), cell.source)


def figure(out: Path, root: Path, name: str, label: str, *, page: str | None = None) -> str:
    """Write a figure of a notebook to a file, and return path and options for the directive that shows it.

    Parameters
    ----------
    out, root : Path
        The output folder of the build, and the folder of the book's sources.
    name, label : str
        Name of the notebook, and name of the figure in it.
    page : str, optional
        Where the figure is asked for, for the warning if there is none.
    """
    executed = out / "executed" / FOLDER / f"{name}.ipynb"
    cells = nbformat.read(executed, as_version=4).cells if executed.exists() else []
    cell = next((c for c in cells if c.metadata.get("mystnb", {}).get("figure", {}).get("name") == label), None)
    if cell is None:
        log.warning("no figure %s in the executed copy of %s: run book/build.py", label, name, location=page)
        return ""
    describe_images(cell)
    image = cell.metadata.mystnb.image
    kind, content = next(
        item for output in cell.outputs for item in output.get("data", {}).items() if item[0].startswith("image/")
    )
    path = out / "figures" / f"{label}.{'svg' if 'svg' in kind else 'png'}"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content.encode() if "svg" in kind else b64decode(content))
    return f"/{os.path.relpath(path, root)}\n:alt: {image['alt']}\n:class: {image['classes']}"


def offer_download(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: object) -> None:
    """Name the executed copy to the theme, which then shows a button to download it."""
    if pagename.startswith(f"{FOLDER}/") and doctree is not None:
        context["ipynb_source"] = f"{pagename}.ipynb"


def publish(app: Sphinx, exception: Exception | None) -> None:
    """Write the executed notebooks, in plain Markdown, into the site, beside the sources of the pages."""
    if exception is None and app.builder.name == "html":
        bibliography = Path(app.srcdir, "book", "references.bib")
        target = Path(app.outdir, "_sources", FOLDER)
        whole_download.write_all(executed_folder(app), target, bibliography, out_folder(app))


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx: after MyST-NB has registered suffixes (priority 500), before the theme makes buttons (501)."""
    app.connect("config-inited", register, priority=600)
    app.connect("source-read", fill_page)
    app.connect("html-page-context", offer_download, priority=490)
    app.connect("build-finished", publish)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
