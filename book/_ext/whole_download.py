"""Make the copy of an executed notebook that a reader downloads: plain Markdown, as Jupyter and forges show it.

Only cells of text change: roles become their values or readable names, directives become bold headings with their
text. Cells of code stay as they are, so that the notebook runs again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import claims_on_page
import nbformat
from ledger import Ledger
from nbformat import NotebookNode
from pybtex.database import parse_file

ROLE = re.compile(r"\{([a-z]+(?::[a-z]+)?)\}`([^`]+)`")
OPENING = re.compile(r"^(\s*)(`{3,}|:{3,})\{([\w:-]+)\}\s*(.*)$")
NUMBERED = re.compile(r"\$\$[ ]+\(eq-([\w-]+)\)")
TARGET = re.compile(r"^\(([\w-]+)\)=\n+#+ (.*)$", re.MULTILINE)
LOCAL = re.compile(r"(?<!!)\[([^\]]*)\]\((?!https?:)[^()\s]+\)")
"""Link to another page of the book, which does not stand beside the download."""
COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)


def words(label: str) -> str:
    """Return a label without its kind, as words: "fig-two-sides" becomes "two sides"."""
    return label.partition("-")[2].replace("-", " ") or label


def names_of(notebooks: dict[str, NotebookNode], bibliography: Path) -> dict[str, str]:
    """Return readable names of what roles refer to: titles of blocks, sections, chapters; authors with their year."""
    names: dict[str, str] = {}
    for name, notebook in notebooks.items():
        for text in (cell.source for cell in notebook.cells if cell.cell_type == "markdown"):
            names |= {label: f"“{title}”" for label, title in TARGET.findall(text)}
            block = re.compile(r"\{prf:(\w+)\}([^\n]*)\n(?::[^\n]*\n)*?:label: *(\S+)")
            for kind, title, label in block.findall(text):
                names[label] = f"{kind.capitalize()} “{title.strip()}”" if title.strip() else kind.capitalize()
            title = re.search(r"^# (.*)$", text, re.MULTILINE)
            if title:
                names.setdefault(name, f"“{title[1]}”")
    for key, entry in parse_file(str(bibliography)).entries.items():
        people = [" ".join(person.prelast_names + person.last_names) for person in entry.persons.get("author", [])]
        who = f"{people[0]} et al." if len(people) > 2 else " and ".join(people) or key
        names[key] = f"{who.replace('{', '').replace('}', '')}, {entry.fields.get('year', 'no year')}"
    return names


def values_of(notebook: NotebookNode) -> dict[str, str]:
    """Return the values that a notebook glued, as plain text."""
    values = {}
    for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
        glued = output.get("metadata", {}).get("scrapbook")
        if glued:
            values[glued["name"]] = output.data[f"{glued.get('mime_prefix', '')}text/plain"]
    return values


def formatted(key: str, values: dict[str, str]) -> str:
    """Return a glued value in the format that the role names, as ``{glue:text}`` shows it."""
    other, between, own = key.rpartition("::")
    name, _, form = own.partition(":")
    name = other + between + name
    text = values[name]
    number = int if re.fullmatch(r"-?\d+", text) else float
    return format(number(text), form) if form else text.strip("'\"")


def plain_role(kind: str, target: str, names: dict[str, str], values: dict[str, str]) -> str:
    """Return the text that stands for a role."""
    title = re.fullmatch(r"(.*?)\s*<([^>]+)>", target, re.DOTALL)
    if title:
        return title[1]
    if kind == "glue:text":
        return formatted(target, values)
    if kind == "eq":
        return f"({words(target)})"
    if kind == "numref":
        return f"{'Table' if target.startswith('tab-') else 'Figure'} “{words(target)}”"
    if kind.startswith("cite"):
        found = [names.get(key.strip(), key.strip()) for key in target.split(",")]
        if kind == "cite:t":
            return "; ".join(re.sub(r", (\S+)$", r" (\1)", who) for who in found)
        return f"({'; '.join(found)})"
    name = target.rpartition("/")[2]
    return names.get(target) or names.get(name) or f"“{words(name)}”"


def plain_directives(text: str) -> str:
    """Replace directives by bold headings with their text, formulas by ``$$``; pictures stay where they were drawn."""
    lines, closing = [], []
    for line in text.split("\n"):
        opening = OPENING.match(line)
        if opening:
            kind = opening[3]
            closing.append((opening[2], kind))
            if kind == "math":
                lines.append("$$")
            elif kind not in {"image", "figure"}:
                what = kind.removeprefix("prf:").capitalize() if kind.startswith("prf:") else ""
                title = f"{what} ({opening[4]})" if what and opening[4] else what or opening[4]
                lines += [f"**{title}.**", ""] if title else []
            continue
        if closing and line.strip() == closing[-1][0]:
            lines.append("$$" if closing.pop()[1] == "math" else "")
            continue
        option = re.match(r"\s*:([a-z-]+):(?:\s+(.*))?$", line)
        if closing and option:
            if closing[-1][1] == "math" and option[1] == "label":
                lines.append(rf"\tag{{{words(option[2])}}}")
            continue
        if not closing or closing[-1][1] not in {"image", "figure"}:
            lines.append(line)
    return "\n".join(lines)


def plain(text: str, names: dict[str, str], values: dict[str, str]) -> str:
    """Return a text of MyST Markdown as Markdown that needs no extension."""
    text = re.sub(r"^\([\w-]+\)=\n", "", text, flags=re.MULTILINE)
    text = NUMBERED.sub(lambda match: rf"\tag{{{words('eq-' + match[1])}}} $$", plain_directives(COMMENT.sub("", text)))
    text = re.sub(r"^\{[.#][^}\n]*\}\n", "", text, flags=re.MULTILINE)
    text = ROLE.sub(lambda match: plain_role(match[1], match[2], names, values), text)
    return re.sub(r"\n{3,}", "\n\n", LOCAL.sub(r"\1", text))


def captions(cell: NotebookNode) -> Iterable[str]:
    """Return the captions of the figure and the tables that a cell shows, under the names that the text uses."""
    shown = cell.metadata.get("mystnb", {}).get("figure", {})
    if shown.get("caption"):
        yield f"**Figure “{words(shown.get('name', 'fig-'))}”.** {shown['caption']}"
    for output in cell.get("outputs", []):
        table = output.get("metadata", {}).get("text/markdown", {})
        if "table" in table:
            yield f"**Table “{words(table['table'])}”.** {table['caption']}"


def make_whole(notebook: NotebookNode, names: dict[str, str], values: dict[str, str], ledger: Ledger | None) -> None:
    """Make the text of an executed notebook plain, in place.

    Parameters
    ----------
    notebook : NotebookNode
    names : dict
        From :func:`names_of`.
    values : dict
        What the notebook glued, from :func:`values_of`; under "OTHER.md::NAME" what another one did.
    ledger : Ledger or None
        The verdicts, from ``claims_on_page.load``.
    """
    claims_on_page.fill_verdicts(notebook, ledger)
    cells = []
    for number, cell in enumerate(notebook.cells):
        cells.append(cell)
        if cell.cell_type == "markdown":
            cell.source = plain(cell.source, names, values)
            continue
        for output in cell.get("outputs", []):
            if "text/markdown" in output.get("data", {}):
                shown = "".join(output.data["text/markdown"])
                output.data["text/markdown"] = plain(shown, names, values)
        text = "\n\n".join(plain(caption, names, values) for caption in captions(cell))
        if text:
            cells.append(nbformat.v4.new_markdown_cell(text, id=f"caption-{number}"))
    notebook.cells = cells


def write_all(executed: Path, target: Path, bibliography: Path, out: Path) -> None:
    """Write the whole copies of all executed notebooks into the folder of the downloads."""
    notebooks = {path.stem: nbformat.read(path, as_version=4) for path in sorted(executed.glob("*.ipynb"))}
    names, ledger = names_of(notebooks, bibliography), claims_on_page.load(out)
    glued = {name: values_of(notebook) for name, notebook in notebooks.items()}
    shared = {f"{name}.md::{key}": value for name, values in glued.items() for key, value in values.items()}
    for name, notebook in notebooks.items():
        make_whole(notebook, names, shared | glued[name], ledger)
        nbformat.write(notebook, target / f"{name}.ipynb")
