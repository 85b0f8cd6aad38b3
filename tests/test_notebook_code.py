"""The code of the notebooks is formatted and linted; the tool that does it touches nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import jupytext
import notebook_code
import pytest
from conftest import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.md"))
REWRITTEN = [path for path in NOTEBOOKS if path.stem[:2] in {"01", "02", "03", "04", "06", "07", "08"}]
"""The chapters whose visible code is short already."""

PAGE = """\
---
kernelspec:
  name: python3
  display_name: Python 3
---

# A page  with two spaces, and 'quotes'

```python
not_a_cell = 'left alone'
```

```{code-cell} ipython3
:tags: [hide-input]

import math

CODE
```

Text   after it.

```{code-cell} ipython3
---
mystnb:
  figure:
    name: fig-one
    caption: |
      A caption  with 'quotes', longer than eighty-eight columns, which no linter of code has any business with.
tags: [hide-input]
---
math.pi
```
"""


def page(folder: Path, code: str) -> Path:
    """Write a notebook whose first cell has this code from line 18 on."""
    path = folder / "page.md"
    path.write_text(PAGE.replace("CODE", code))
    return path


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_code_of_every_notebook_is_formatted_and_linted(path):
    assert [str(problem) for problem in notebook_code.check([path])] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_code_cell_is_found(path):
    assert len(notebook_code.code_cells(path.read_text())) == path.read_text().count("\n```{code-cell}")


@pytest.mark.parametrize("path", REWRITTEN, ids=lambda path: path.stem)
def test_a_visible_code_cell_is_short_enough_to_be_read(path):
    """At most 12 lines of at most 88 columns; imports, parameters, tables and figures are folded."""
    cells = [cell for cell in jupytext.read(path).cells if cell.cell_type == "code"]
    visible = [cell.source.split("\n") for cell in cells if "hide-input" not in cell.metadata.get("tags", [])]
    assert visible, "no code at all is to be read"
    assert [lines for lines in visible if len(lines) > 12 or max(map(len, lines)) > 88] == []
    assert "hide-input" in cells[0].metadata.get("tags", []), "imports are visible"


@pytest.mark.parametrize("path", [path for path in REWRITTEN if path.stem < "05"], ids=lambda path: path.stem)
def test_a_chapter_opens_with_its_findings_and_a_picture(path):
    opening = jupytext.read(path).cells[0].source
    assert re.search(r"^# .+\n\n:::\{admonition\} In short\n", opening, re.MULTILINE)
    box = opening.split(":::")[1]
    findings = re.findall(r"^- \*\*", box, re.MULTILINE)
    assert 3 <= len(findings) <= 5
    assert "{glue:text}" in box
    assert "<!-- verdict: " in box
    assert f"```{{image}} <!-- figure: {path.stem} fig-" in box


@pytest.mark.parametrize(
    ("code", "line", "message"),
    [
        ("x = [1,2]", 18, "not formatted"),
        ("x = 1\ny = 'b'", 19, "not formatted"),
        ("x = 1\ny = undefined", 19, "F821"),
        ("x = 1\n# " + "long " * 20, 19, "E501"),
        ("x = (", 18, "invalid-syntax"),
    ],
)
def test_problem_is_reported_with_its_place(tmp_path, capsys, code, line, message):
    path = page(tmp_path, code)
    before = path.read_bytes()
    assert notebook_code.main(["--check", str(path)]) == 1
    told = capsys.readouterr().out
    assert re.search(rf"page\.md:{line}: code cell 1: .*{message}", told), told
    assert path.read_bytes() == before


def test_problem_of_a_later_cell_is_reported_with_its_place(tmp_path):
    path = page(tmp_path, "")
    path.write_text(path.read_text().replace("math.pi\n", "math.pi\nmath.inf\nmaths.e\n"))
    last = path.read_text().split("\n").index("maths.e") + 1
    undefined = [problem for problem in notebook_code.check([path]) if "F821" in problem.message]
    assert [(problem.line, problem.cell) for problem in undefined] == [(last, 2)]


def test_last_expression_of_a_cell_is_shown_and_an_earlier_cell_is_known(tmp_path):
    assert notebook_code.check([page(tmp_path, "x = 1\nx")]) == []


def test_rewrite_changes_code_cells_only(tmp_path, capsys):
    path = page(tmp_path, "x = [1,2]   # two\nx")
    assert notebook_code.main([str(path)]) == 0
    assert path.read_text() == PAGE.replace("CODE", "x = [1, 2]  # two\nx")
    written = path.stat().st_mtime_ns
    assert notebook_code.main([str(path)]) == 0
    assert path.stat().st_mtime_ns == written
    assert "notebooks: none" in capsys.readouterr().out


def test_rewrite_leaves_code_with_a_syntax_error(tmp_path, capsys):
    path = page(tmp_path, "x = [1,2]\ny = (")
    before = path.read_bytes()
    assert notebook_code.main([str(path)]) == 1
    assert path.read_bytes() == before
    assert "invalid-syntax" in capsys.readouterr().out
