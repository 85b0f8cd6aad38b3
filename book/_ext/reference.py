"""Adapt Sphinx's autodoc to this package, for the reference in ``book/api.md``.

The reference shows functions and classes but no constants. Docstrings are plain text in numpydoc's format, so signs
that reStructuredText would interpret are escaped.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

from sphinx.application import Sphinx


def skip(app: Sphinx, what: str, name: str, member: object, skipped: bool, options: Any) -> bool | None:
    """Leave out constants, and fields of named tuples, which the docstring of the class lists as attributes."""
    constant = what == "module" and not (inspect.isclass(member) or inspect.isroutine(member))
    field = (inspect.getdoc(member) or "").startswith("Alias for field number")
    return True if constant or field else None


def escape(app: Sphinx, what: str, name: str, member: object, options: Any, lines: list[str]) -> None:
    """Escape the bars of norms and conditional probabilities, except in code."""
    lines[:] = [re.sub(r"(``.*?``)|\|", lambda match: match[1] or r"\|", line) for line in lines]


def join(app: Sphinx, what: str, name: str, member: object, options: Any, lines: list[str]) -> None:
    """Keep attributes with one description together: in ``a, b, c`` Sphinx would take all but the last for a type."""
    shared = re.compile(r"^:(?:ivar|vartype) [^:]+:")
    lines[:] = [shared.sub(lambda match: match[0].replace(", ", ","), line) for line in lines]


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx."""
    app.connect("autodoc-skip-member", skip)
    app.connect("autodoc-process-docstring", escape, priority=400)  # escape runs before napoleon (500), join after it
    app.connect("autodoc-process-docstring", join, priority=600)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
