r"""Find measured numbers that were typed into the text of notebooks, where only code may put them.

``python book/prose.py [FILE ...]`` looks at the text, the captions and the strings in the code of MyST notebooks, by
default at all notebooks of the book. It prints file, line, number and context of what it finds. ``book/build.py`` calls
:func:`check` before it executes anything, and stops if there is something.

A measured number is written in digits. It is a decimal number, a percentage, a factor ("3 times", "×"), or a whole
number before the name of a unit or of something that is counted (:data:`UNITS`). It may come

- from the code, by ``number`` or ``claim`` of ``vaerobust.page.numbers`` and the role ``{glue:text}``;
- from the notebook's parameters, whose values the text may repeat: ``level = 0.9`` allows 0.9 and 90 %. Factors are the
  exception, because small whole numbers are the values of some parameter in almost every notebook;
- from the paper, if it is marked: ``[0.84]{.paper}``, or ``[$\rho = 0.84$]{.paper}`` around mathematics;
- from the short list :data:`CONSTANTS`, with reasons.

Places in the paper (Fig. 4, Section 5.1), whole numbers without a unit, and code are not measured numbers.

The search works on a copy of the text in which everything but prose is *covered*: replaced by :data:`COVER`, character
by character, so that places stay the same. Start with :func:`typed_numbers`.
"""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from checkout import ROOT
from parameters import parameter_values

if TYPE_CHECKING:
    from nbformat import NotebookNode

CONSTANTS = (
    (r"95\s?%", "the confidence of every interval in the book"),
    (r"784(?= (pixels|dimensions)\b)", "pixels of an image"),
    (r"28 by 28(?= pixels\b)", "pixels of an image"),
    (r"\b20(?= (latents|dimensions)\b)", "latent dimensions of the paper's models"),
    (r"\b400(?= (hidden|units)\b)", "width of the hidden layers of the paper's models"),
)
"""Numbers that any text may repeat: pattern and reason. The one half of the criterion is written 1/2."""

UNITS = (
    "nats? bits? pixels? images? digits? garments? seconds? minutes? hours? draws? samples? runs? points? pairs? "
    "models? seeds? epochs? latents? dimensions? parameters?"
).replace(" ", "|")
"""Words that make the whole number before them a measured one."""

COVER = "■"
"""Replaces each character that is not part of the prose."""

SILENT = r"glue(?::\w+)?|cite(?::\w+)?|numref|eq|ref|doc|prf:ref|term|download"
"""Roles whose content is a name. In the form ``text <name>``, the text before it is prose, as in all other roles."""

# A template: the words in capitals are replaced below.
PLACE = r"""(?:
    (?:Fig|Eq|Table|Algorithm|Theorem|Proposition|Lemma|Corollary|Step|Line|Chapter|Part|Claim|Footnote|Page|Seed)
        (?:s|ures?|uations?)?\.?[\s~]+ INTEGER (?:SEPARATOR INTEGER)*
  | (?:Section|Appendix|Appendice|Definition|§)s?[\s~]* DOTTED (?:SEPARATOR DOTTED)*
  )"""
PLACE = (
    PLACE.replace("INTEGER", r"\d+(?![.,]?\d) LETTERS NO_UNIT")
    .replace("DOTTED", r"(?:[A-Z](?:\.\d+)*|[1-9](?:\.\d+)*)\b LETTERS NO_UNIT")
    .replace("LETTERS", r"(?:\s?\((?:[a-z](?:[,-]\s?|\sto\s|\sand\s)?)+\))*")
    .replace("SEPARATOR", r"(?:,?\s(?:and|to|or|with)\s|,\s|\s?[-–]\s?)(?:\s?\([a-z]\)(?:\sto\s|\sand\s|,\s))?")
    .replace("NO_UNIT", rf"(?!\s*(?:%|×|times\b|per\s?cent|(?:{UNITS})\b))")
)
"""A place in the paper, or a list of such places: Figs. 3 to 5 and 7 (a), Sections 3.1 and 4, Appendix D."""

# A template: each use names the group that holds the number without its sign.
NUMBER = r"(?<![\w.,])(?<!\d/)[-+−]?(?P<{0}>\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?|\.\d+)(?<!,)"
# Between a number and its unit there may be words ("3 random samples"), but none of these.
SMALL_WORDS = "a an and are as at but by for from has have if in into is it its no not of on or that the to we with"
WORD = rf"(?!(?:{SMALL_WORDS.replace(' ', '|')})\b)[A-Za-z][\w'-]*"
KINDS = {
    "factor": (
        rf"{NUMBER.format('a')}(?:\s*×|x\b|-?fold\b|[\s-]+times\b)|×\s*{NUMBER.format('b')}"
        rf"|\bfactors?\s(?:of|by)\s(?:about\s|around\s|nearly\s|over\s|almost\s)?{NUMBER.format('c')}"
    ),
    "percentage": rf"{NUMBER.format('a')}\s*(?:%|per\s?cent\b)",
    "number with a unit": rf"{NUMBER.format('a')}(?:[\s-]+{WORD}){{0,2}}?[\s-]+(?:{UNITS})\b",
    "decimal number": NUMBER.format("a"),
}
"""Patterns of measured numbers by kind; a number counts as the first kind that it matches."""


class Finding(NamedTuple):
    """A measured number that was typed: its line, from 1, its kind (:data:`KINDS`), and the text around it."""

    path: Path
    line: int
    number: str
    kind: str
    context: str

    def __str__(self) -> str:
        """Return one line, in the format of compilers' messages."""
        path = self.path.relative_to(ROOT) if self.path.is_relative_to(ROOT) else self.path
        return f"{path}:{self.line}: {self.number} ({self.kind}) in: {self.context}"


class Piece(NamedTuple):
    """A text that readers see.

    Attributes
    ----------
    line : int
        Where it begins in the file, from 1.
    text : str
    markdown : bool
        False for a string of the code.
    """

    line: int
    text: str
    markdown: bool


def main() -> int:
    """Print the typed numbers in the files of the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="*", metavar="FILE", help="default: notebooks/*.md")
    files = parser.parse_args().files or sorted((ROOT / "notebooks").glob("*.md"))
    found = check(file.resolve() for file in files)
    print(*found, f"{len(found) or 'no'} typed numbers", sep="\n")
    return 1 if found else 0


def check(files: Iterable[Path]) -> list[Finding]:
    """Return the typed numbers in MyST notebooks and in pages of Markdown.

    A notebook may repeat its own parameters; a page, which has no code, may repeat those of any notebook.
    """
    of_all_notebooks: set[float] = set()  # filled when the first page needs it
    found = []
    for file in files:
        text = file.read_text()
        notebook = read(text)
        values = parameter_values(notebook)
        if all(cell.cell_type != "code" for cell in notebook.cells):
            notebooks = (read(path.read_text()) for path in (ROOT / "notebooks").glob("*.md"))
            values = of_all_notebooks = of_all_notebooks or parameter_values(*notebooks)
        found += [
            Finding(file, piece.line + line, number, kind, context)
            for piece in pieces(text, notebook)
            for line, number, kind, context in typed_numbers(piece.text, values, markdown=piece.markdown)
        ]
    return sorted(found)


def read(text: str) -> NotebookNode:
    """Parse a MyST notebook."""
    import jupytext

    return jupytext.reads(text, fmt="md:myst")


def pieces(text: str, notebook: NotebookNode) -> Iterator[Piece]:
    """Yield the texts of a notebook that readers see: prose, captions, and strings of its code except parameters."""
    lines, here = [line.rstrip() for line in text.split("\n")], 0
    for cell in notebook.cells:
        # jupytext keeps no line numbers, so find the cell's source below the cell before it
        source, before = [line.rstrip() for line in cell.source.split("\n")], here
        here = next((i for i in range(here, len(lines)) if lines[i : i + len(source)] == source), here)
        if cell.cell_type == "markdown":
            yield Piece(here + 1, cell.source, True)
        elif cell.cell_type == "code":
            for shown in cell.metadata.get("mystnb", {}).values():
                for caption in [shown[key] for key in ("caption", "alt") if isinstance(shown, dict) and key in shown]:
                    first = caption.strip().split("\n")[0].strip()
                    top = next((i for i in range(before, here) if first in lines[i]), before)
                    yield Piece(top + 1, caption.strip(), True)
            if "parameters" not in cell.metadata.get("tags", []):
                yield from (Piece(here + line, words, False) for line, words in strings(cell.source))
        here += len(source)


def strings(source: str) -> Iterator[tuple[int, str]]:
    """Yield line and text of the strings in a code cell, without docstrings; values in f-strings are covered."""
    try:
        tree = ast.parse(source)
    except SyntaxError:  # a magic of IPython
        return
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree):  # breadth first: a parent comes before the parts of it that it adds to skipped
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            skipped.add(node.value)
        if isinstance(node, ast.FormattedValue) and node.format_spec is not None:
            skipped.update(ast.walk(node.format_spec))
        if isinstance(node, ast.JoinedStr):
            skipped.update(part for part in node.values if isinstance(part, ast.Constant))
            if node not in skipped:
                parts = (part.value if isinstance(part, ast.Constant) else COVER for part in node.values)
                yield node.lineno, "".join(map(str, parts))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in skipped:
            yield node.lineno, node.value


def typed_numbers(text: str, values: set[float], *, markdown: bool = True) -> Iterator[tuple[int, str, str, str]]:
    """Yield line (from 0), number, kind and context of the measured numbers in a text.

    Parameters
    ----------
    text : str
    values : set of float
        Values of parameters, which the text may repeat.
    markdown : bool
        False for a string of the code. Such a string is no text if it has no word: "0.5" may be a shade of grey.
    """
    if not markdown and not re.search(r"[^\W\d_]{2}", text):
        return
    shown = covered(text) if markdown else text
    # spaces and signs of TeX become plain ones, of the same length
    shown = re.sub(r"\\[,;:! ]|\$", lambda m: " " * len(m[0]), shown).replace(r"\%", " %").replace("~", " ")
    # numbers that are not measured: constants, places in the paper, identifiers of arXiv, versions of Python
    for pattern in (*(pattern for pattern, _ in CONSTANTS), rf"(?xi:\b{PLACE})", r"(?i:arxiv|python)[:\s]\d+\.\d+"):
        shown = cover(pattern, shown)
    seen = set()
    for kind, pattern in KINDS.items():
        for match in re.finditer(pattern, shown):
            group = next(name for name, value in match.groupdict().items() if value)
            number, start = match[group], match.start(group)
            if start in seen or (kind == "decimal number" and not re.search(r"[.e]", number)):
                continue
            seen.add(start)
            value = float(number.replace(",", ""))
            if kind == "percentage":
                value = round(value / 100, 9)
            if kind != "factor" and value in values:
                continue
            context = " ".join(text[max(0, start - 50) : start + 50].split())
            yield text.count("\n", 0, start), number, kind, context


def covered(text: str) -> str:
    """Return Markdown in which everything but prose is covered: code, names, links, numbers marked as the paper's."""
    text = cover_fenced(text)
    text = cover(r"(?s)<!--.*?-->", text)
    text = cover(r"(?m)^:(?!alt|caption)[\w-]+:.*$", text)  # options of directives
    text = cover(r"(?m)^\([^()\n]+\)=\s*$|^\{[.#][^}\n]*\}\s*$", text)  # labels, and attributes of blocks
    text = cover(r"\[(?:[^\[\]]|\[[^\[\]]*\])*\]\{[^}\n]*\.paper\b[^}\n]*\}", text)  # [...]{.paper}
    text = re.sub(rf"\{{(?:{SILENT})\}}(`+)(?:([^`]*?)<[^`>]*>|[^`]*?)\1", keep_group(2), text)  # roles in SILENT
    text = re.sub(r"\{[\w:-]+\}(`+)([^`]+?)\1", keep_group(2), text)  # other roles
    text = re.sub(r"(?<!`)(`+)(?!`)([\d.,\s%×-]+)(?<!`)\1(?!`)", keep_group(2), text)  # `0.84`
    text = cover(r"(?s)(?<!`)(`+)(?!`)(?:(?!\n\s*\n).)+?(?<!`)\1(?!`)", text)  # code
    text = cover(r"(?<=\])\([^)\s]*\)|<https?:[^>\s]*>|https?://\S+", text)  # links
    return cover(r"\{[\w:-]+\}|(?<=\$\$)\s\([\w-]+\)", text)  # names of directives, labels of equations


def cover_fenced(text: str) -> str:
    """Cover blocks of code and the names of directives; the content of other directives is prose."""
    lines = text.split("\n")
    fences: list[tuple[str, bool]] = []  # the open ones, innermost last: the sign, and whether code is inside
    for i, line in enumerate(lines):
        fence = re.match(r"\s*(`{3,}|~{3,}|:{3,})\s*(.*)", line)
        in_code = bool(fences) and fences[-1][1]
        if fence and fences and not fence[2] and fence[1].startswith(fences[-1][0]):
            fences.pop()
            lines[i] = COVER * len(line)
        elif fence and not in_code:
            in_code = not fence[2].startswith("{") or fence[2].startswith(("{code", "{literal"))
            fences.append((fence[1], in_code))
            lines[i] = COVER * fence.start(2) + cover(r"^\{(?:figure|image|include)\}.*", fence[2])
        if in_code:
            lines[i] = COVER * len(line)
    return "\n".join(lines)


def cover(pattern: str, text: str) -> str:
    """Return a text in which all matches of a pattern are covered."""
    return re.sub(pattern, lambda match: hidden(match[0]), text)


def hidden(text: str) -> str:
    """Return a text of the same length and lines that is covered as a whole."""
    return re.sub(r"[^\n]", COVER, text)


def keep_group(group: int) -> Callable[[re.Match[str]], str]:
    """Return a replacement for ``re.sub`` that covers a match except one of its groups."""

    def replacement(match: re.Match[str]) -> str:
        if match[group] is None:
            return hidden(match[0])
        start, end = match.start(group) - match.start(), match.end(group) - match.start()
        return hidden(match[0][:start]) + match[group] + hidden(match[0][end:])

    return replacement


if __name__ == "__main__":
    raise SystemExit(main())
