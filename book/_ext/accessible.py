"""Correct the HTML of Sphinx, MyST-NB and pandas where it hinders readers with screen readers, keyboards or phones.

Each correction in :data:`CORRECTIONS` is a pattern and its replacement, applied to the body of every page. The theme
makes the list of chapters beside the body, so that list is corrected in the finished files. The tests in
``tests/test_site.py`` look for such barriers with axe-core.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

CORRECTIONS = (
    # an entry of a bibliography is an item of a list; the role that docutils gives it is deprecated
    (re.compile(r'role="doc-biblioentry"'), 'role="listitem"'),
    # above the index, pandas writes an empty header cell; it must be a plain cell, for it is the header of nothing
    (re.compile(r"<th>\s*</th>"), "<td></td>"),
    # a wide table scrolls inside a box that the keyboard reaches, so that the page itself never scrolls sideways
    (
        re.compile(r'<table [^>]*class="dataframe".*?</table>', re.DOTALL),
        r'<div class="table-box" tabindex="0">\g<0></div>',
    ),
)
TOGGLE = '<summary><span class="toctree-toggle"'
"""How the theme begins the arrow that unfolds the pages of a chapter in the list of chapters. It has no name."""
NAMED_TOGGLE = TOGGLE.replace("<summary>", '<summary aria-label="Show or hide the pages of this chapter">')


def correct(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: object) -> None:
    """Apply all corrections to the body of a page."""
    for pattern, replacement in CORRECTIONS:
        context["body"] = pattern.sub(replacement, context.get("body", ""))


def name_toggles(app: Sphinx, exception: Exception | None) -> None:
    """Name the arrows in the list of chapters, in all finished pages."""
    for path in Path(app.outdir).rglob("*.html"):
        text = path.read_text()
        if TOGGLE in text:
            path.write_text(text.replace(TOGGLE, NAMED_TOGGLE))


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx."""
    app.connect("html-page-context", correct)
    app.connect("build-finished", name_toggles)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
