"""Mend what screen readers and phones stumble over in the HTML that Sphinx, MyST-NB and pandas write."""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx

MENDED = (
    # entries of a bibliography are items of the list that they stand in; their own role is deprecated
    (re.compile(r'role="doc-biblioentry"'), 'role="listitem"'),
    # pandas heads the column of the index by an empty cell, which heads nothing
    (re.compile(r"<th>\s*</th>"), "<td></td>"),
    # a wide table of pandas scrolls by itself, by keyboard too, and the page does not
    (
        re.compile(r'<table [^>]*class="dataframe".*?</table>', re.DOTALL),
        r'<div class="table-box" tabindex="0">\g<0></div>',
    ),
)


def mend(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: object) -> None:
    """Replace what is found in the body of a page."""
    for found, instead in MENDED:
        context["body"] = found.sub(instead, context.get("body", ""))


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx."""
    app.connect("html-page-context", mend)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
