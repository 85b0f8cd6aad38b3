"""Correct the HTML of Sphinx, MyST-NB and pandas where it hinders readers with screen readers, keyboards or phones.

Each correction in :data:`CORRECTIONS` is a pattern and its replacement, applied to the body of every page. The tests in
``tests/test_site.py`` look for such barriers with axe-core.
"""

from __future__ import annotations

import re
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


def correct(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: object) -> None:
    """Apply all corrections to the body of a page."""
    for pattern, replacement in CORRECTIONS:
        context["body"] = pattern.sub(replacement, context.get("body", ""))


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx."""
    app.connect("html-page-context", correct)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
