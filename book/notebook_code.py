"""Format and lint the code of the MyST notebooks with Ruff.

``python book/notebook_code.py [FILE ...]`` applies Ruff's safe fixes and its formatter to the code cells of the files
named, by default of ``notebooks/*.md``. Markdown, the headers of cells and the captions in them stay byte for byte.
With ``--check`` nothing is written: each broken rule and each cell that is not formatted is printed with its file,
line and cell, and the exit status is 1 if there is one.

Ruff reads the cells of one notebook as one file, so that a name of the first cell is known in all later ones. Its
rules are those of ``pyproject.toml``; ``notebooks/ruff.toml`` says what differs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from checkout import ROOT


class Cell(NamedTuple):
    """The code of one cell, and the number of its first line in the file, from 0."""

    line: int
    source: str


class Problem(NamedTuple):
    """A broken rule, or a cell that is not formatted; line and cell are counted from 1."""

    path: Path
    line: int
    cell: int
    message: str

    def __str__(self) -> str:
        """Return one line, as compilers do."""
        path = self.path.relative_to(ROOT) if self.path.is_relative_to(ROOT) else self.path
        return f"{path}:{self.line}: code cell {self.cell}: {self.message}"


class RuffError(Exception):
    """Ruff could not read what it was given; the message is its own."""


def main(arguments: list[str] | None = None) -> int:
    """Rewrite or check the notebooks named; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="*", metavar="FILE", help="default: notebooks/*.md")
    parser.add_argument("--check", action="store_true", help="report what has to change, and write nothing")
    options = parser.parse_args(arguments)
    files = [file.resolve() for file in options.files] or sorted((ROOT / "notebooks").glob("*.md"))
    if not options.check:
        for file in files:
            rewrite(file)
    found = check(files)
    print(*found, f"problems in the code of notebooks: {len(found) or 'none'}", sep="\n")
    return 1 if found else 0


def check(files: Iterable[Path]) -> list[Problem]:
    """Return the broken rules and the cells that are not formatted."""
    found: list[Problem] = []
    for file in files:
        cells = code_cells(file.read_text())
        found += sorted([*broken_rules(file, cells), *unformatted_cells(file, cells)])
    return found


def rewrite(file: Path) -> None:
    """Apply Ruff's safe fixes and its formatter to the code cells of a file; code with a syntax error stays."""
    text = file.read_text()
    cells = code_cells(text)
    try:
        sources = formatted(fixed([cell.source for cell in cells]))
    except RuffError:
        return
    lines = text.split("\n")
    for cell, source in reversed([*zip(cells, sources, strict=True)]):  # from the end, so that line numbers stay valid
        lines[cell.line : cell.line + cell.source.count("\n") + 1] = source.split("\n")
    if (new := "\n".join(lines)) != text:
        file.write_text(new)


def code_cells(text: str) -> list[Cell]:
    """Return the code cells of a MyST notebook, the cells' headers left out."""
    from jupytext.myst import myst_to_notebook

    notebook = myst_to_notebook(text, add_source_map=True)
    lines, cells = text.split("\n"), []
    for cell, top in zip(notebook.cells, notebook.metadata["source_map"], strict=True):
        if cell.cell_type == "code" and cell.source:
            code = cell.source.split("\n")
            line = next(line for line in range(top, len(lines)) if lines[line : line + len(code)] == code)
            cells.append(Cell(line, cell.source))
    return cells


def broken_rules(file: Path, cells: list[Cell]) -> Iterator[Problem]:
    """Yield what ``ruff check`` reports."""
    reports = json.loads(ruff("check", "--output-format=json", sources=[cell.source for cell in cells]))
    for report in reports:
        line = cells[report["cell"] - 1].line + report["location"]["row"]
        yield Problem(file, line, report["cell"], f"{report['code']} {report['message']}")


def unformatted_cells(file: Path, cells: list[Cell]) -> Iterator[Problem]:
    """Yield the first line that ``ruff format`` changes in each cell; nothing for code with a syntax error."""
    try:
        sources = formatted([cell.source for cell in cells])
    except RuffError:
        return
    for number, (cell, source) in enumerate(zip(cells, sources, strict=True), start=1):
        if source != cell.source:
            old, new = cell.source.split("\n"), source.split("\n")
            first = next((i for i, pair in enumerate(zip(old, new, strict=False)) if pair[0] != pair[1]), len(new))
            message = "not formatted from this line on; `make format` formats it"
            yield Problem(file, cell.line + first + 1, number, message)


def fixed(sources: list[str]) -> list[str]:
    """Return the code of the cells of one notebook after Ruff's safe fixes."""
    return sources_of(ruff("check", "--fix", "--quiet", sources=sources))


def formatted(sources: list[str]) -> list[str]:
    """Return the code of the cells of one notebook as ``ruff format`` writes it."""
    return sources_of(ruff("format", sources=sources))


def ruff(*command: str, sources: list[str]) -> str:
    """Run Ruff on a notebook that has these code cells, and return what it prints."""
    import nbformat

    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"language_info": {"name": "python"}})
    place = ROOT / "notebooks/notebook.ipynb"  # no such file exists: the folder tells Ruff which settings to use
    command = (sys.executable, "-m", "ruff", *command, f"--stdin-filename={place}", "-")
    done = subprocess.run(command, input=nbformat.writes(notebook), capture_output=True, text=True, cwd=ROOT)
    if done.returncode > 1 or not done.stdout:  # 1 says that a rule is broken
        raise RuffError(done.stderr.strip())
    return done.stdout


def sources_of(notebook: str) -> list[str]:
    """Return the code of the cells of a notebook in Jupyter's own format."""
    import nbformat

    return [cell.source for cell in nbformat.reads(notebook, as_version=4).cells]


if __name__ == "__main__":
    raise SystemExit(main())
