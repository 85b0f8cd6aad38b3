"""Put the live explorer on the page that has a line ``<!-- explorer -->``.

At the start of a build, ``book/explorer.py`` writes the explorer's data into the output folder. At the end, these data
are moved beside the scripts, into ``_static/explorer``. The page has a picture of one state of the explorer. The
scripts replace this picture with controls.
"""

from __future__ import annotations

import html
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.util import logging

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # book/

import explorer
from executed_notebooks import out_folder

log = logging.getLogger(__name__)
PAGE = "book/explorer"
MARKER = "<!-- explorer -->"
FOLDER = "explorer"


def made(app: Sphinx) -> Path:
    """Return the folder in which the build keeps the data of the explorer."""
    return out_folder(app) / FOLDER


def make(app: Sphinx) -> None:
    """Write models, index and picture. An error becomes a warning of Sphinx, which fails the build."""
    shutil.rmtree(made(app), ignore_errors=True)  # left over from a build that was cut off
    try:
        explorer.write(made(app))
    except ValueError as error:
        log.warning("%s", error, location=PAGE)


def fill(app: Sphinx, docname: str, source: list[str]) -> None:
    """Replace the marker on the page by the explorer."""
    index = made(app) / "index.json"
    if docname == PAGE and index.exists():
        template = Path(__file__).with_name("explorer.html").read_text()
        alt = json.loads(index.read_bytes())["alt"]
        shown = template.replace("{folder}", f"../_static/{FOLDER}/").replace("{alt}", html.escape(alt, quote=True))
        source[0] = source[0].replace(MARKER, f"```{{raw}} html\n{shown}```")


def add_files(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: object) -> None:
    """Load style and script, on this page alone."""
    if pagename == PAGE and made(app).exists():
        app.add_css_file(f"{FOLDER}/explorer.css")
        app.add_js_file(f"{FOLDER}/explorer.js", type="module")


def publish(app: Sphinx, exception: Exception | None) -> None:
    """Move the data beside the scripts."""
    if exception is None and app.builder.format == "html" and made(app).exists():
        shutil.copytree(made(app), Path(app.outdir, "_static", FOLDER), dirs_exist_ok=True)
        shutil.rmtree(made(app))


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx."""
    app.connect("builder-inited", make)
    app.connect("source-read", fill)
    app.connect("html-page-context", add_files)
    app.connect("build-finished", publish)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
