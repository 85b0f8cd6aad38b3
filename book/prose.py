r"""No number is typed: find measured numbers in the text of notebooks that no code put there.

``python book/prose.py [FILE ...]`` looks at the prose, the captions and the strings in the code of MyST notebooks, by
default at all of the book's, and prints file, line, number and context of what it finds. ``book/build.py`` does the
same before it executes anything, and stops.

A measured number is, in digits, a decimal number, a percentage, a factor ("3 times", "×"), or a number of something
that is counted or has a unit (:data:`UNITS`). Such a number must come

- from the code, by ``number`` or ``claim`` of ``vaerobust.page.numbers`` and the role ``{glue:text}``; or
- from the notebook's cell of parameters, in a list too, whose values prose may repeat: ``level = 0.9`` allows 0.9 and
  90 %. No parameter allows a factor, since small whole numbers are the values of some parameter everywhere; or
- from the paper, and then marked: ``[0.84]{.paper}``, or ``[$\rho = 0.84$]{.paper}`` around mathematics; or
- from the short list :data:`CONSTANTS`, with reasons.

Places in the paper (Fig. 4, Section 5.1), whole numbers without a unit, and code are no measured numbers.
"""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]

CONSTANTS = (
    (r"95\s?%", "the confidence of every interval in the book"),
    (r"784(?= (pixels|dimensions)\b)", "pixels of an image of MNIST"),
    (r"28 by 28(?= pixels\b)", "the same"),
    (r"\b20(?= (latents|dimensions)\b)", "latents of the paper's models"),
    (r"\b400(?= (hidden|units)\b)", "width of their hidden layers"),
)
"""What prose may say although no parameter has it: pattern and reason. The half of the criterion is written 1/2."""

UNITS = (
    "nats? bits? pixels? images? digits? garments? seconds? minutes? hours? draws? samples? runs? points? pairs? "
    "models? seeds? epochs? latents? dimensions? parameters?"
).replace(" ", "|")

COVER = "■"
"""Stands in the place of what is none of the prose."""

SILENT = r"glue(?::\w+)?|cite(?::\w+)?|numref|eq|ref|doc|prf:ref|term|download"
"""Roles whose content is a name, not text, unless it reads ``text <name>``."""

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

NUMBER = r"(?<![\w.,])(?<!\d/)[-+−]?(?P<{0}>\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?|\.\d+)(?<!,)"
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


class Finding(NamedTuple):
    """A measured number that was typed."""

    path: Path
    line: int
    number: str
    kind: str
    context: str

    def __str__(self) -> str:
        """Return one line, as compilers do."""
        path = self.path.relative_to(ROOT) if self.path.is_relative_to(ROOT) else self.path
        return f"{path}:{self.line}: {self.number} ({self.kind}) in: {self.context}"


class Piece(NamedTuple):
    """Something that readers see: where it begins in the file, and whether it is Markdown or a string of the code."""

    line: int
    text: str
    markdown: bool


def main() -> int:
    """Print what is found in the files named; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="*", metavar="FILE", help="default: notebooks/*.md")
    files = parser.parse_args().files or sorted((ROOT / "notebooks").glob("*.md"))
    found = check(file.resolve() for file in files)
    print(*found, f"{len(found) or 'no'} typed numbers", sep="\n")
    return 1 if found else 0


def check(files: Iterable[Path]) -> list[Finding]:
    """Return what is found in MyST notebooks, or in pages of Markdown, which may repeat any notebook's parameters."""
    everywhere: set[float] = set()
    found = []
    for file in files:
        text = file.read_text()
        notebook = read(text)
        values = parameter_values(notebook)
        if all(cell.cell_type != "code" for cell in notebook.cells):
            notebooks = (read(path.read_text()) for path in (ROOT / "notebooks").glob("*.md"))
            values = everywhere = everywhere or parameter_values(*notebooks)
        found += [
            Finding(file, piece.line + line, number, kind, context)
            for piece in pieces(text, notebook)
            for line, number, kind, context in typed_numbers(piece.text, values, markdown=piece.markdown)
        ]
    return sorted(found)


def read(text: str) -> Any:
    """Parse a MyST notebook."""
    import jupytext

    return jupytext.reads(text, fmt="md:myst")


def parameter_values(*notebooks: Any) -> set[float]:
    """Return the numbers in the cells tagged ``parameters``, less their signs."""
    sources = (
        cell.source
        for notebook in notebooks
        for cell in notebook.cells
        if cell.cell_type == "code" and "parameters" in cell.metadata.get("tags", [])
    )
    nodes = (node for source in sources for node in ast.walk(ast.parse(source)))
    constants = (node.value for node in nodes if isinstance(node, ast.Constant))
    return {float(value) for value in constants if isinstance(value, int | float)}


def pieces(text: str, notebook: Any) -> Iterator[Piece]:
    """Yield what readers see of a notebook: text, captions and the strings of its code, less its parameters."""
    lines, here = [line.rstrip() for line in text.split("\n")], 0
    for cell in notebook.cells:
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
    """Yield line and text of the strings in a code cell, values in f-strings covered; no docstrings, no formats."""
    try:
        tree = ast.parse(source)
    except SyntaxError:  # a magic; the notebook's own run tells
        return
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree):  # breadth first, so that parents come before what they make us skip
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
        Of parameters, which the text may repeat.
    markdown : bool
        False for a string of the code, which may be a number altogether: a colour, say.
    """
    if not markdown and not re.search(r"[^\W\d_]{2}", text):
        return
    shown = covered(text) if markdown else text
    shown = re.sub(r"\\[,;:! ]|\$", lambda m: " " * len(m[0]), shown).replace(r"\%", " %").replace("~", " ")
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
    """Return Markdown with everything covered that is not prose: code, roles, names, links, the paper's numbers."""
    text = cover_fenced(text)
    text = cover(r"(?s)<!--.*?-->", text)
    text = cover(r"(?m)^:(?!alt|caption)[\w-]+:.*$", text)  # options of directives
    text = cover(r"(?m)^\([^()\n]+\)=\s*$|^\{[.#][^}\n]*\}\s*$", text)
    text = cover(r"\[(?:[^\[\]]|\[[^\[\]]*\])*\]\{[^}\n]*\.paper\b[^}\n]*\}", text)
    text = re.sub(rf"\{{(?:{SILENT})\}}(`+)(?:([^`]*?)<[^`>]*>|[^`]*?)\1", keep_group(2), text)
    text = re.sub(r"\{[\w:-]+\}(`+)([^`]+?)\1", keep_group(2), text)  # roles whose content is text
    text = re.sub(r"(?<!`)(`+)(?!`)([\d.,\s%×-]+)(?<!`)\1(?!`)", keep_group(2), text)  # a number is no code
    text = cover(r"(?s)(?<!`)(`+)(?!`)(?:(?!\n\s*\n).)+?(?<!`)\1(?!`)", text)
    text = cover(r"(?<=\])\([^)\s]*\)|<https?:[^>\s]*>|https?://\S+", text)
    return cover(r"\{[\w:-]+\}|(?<=\$\$)\s\([\w-]+\)", text)


def cover_fenced(text: str) -> str:
    """Cover fenced code, and the names of directives; what stands in a directive is prose."""
    lines = text.split("\n")
    fences: list[tuple[str, bool]] = []
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
    """Cover what a pattern finds; lengths and lines stay."""
    return re.sub(pattern, lambda match: hidden(match[0]), text)


def hidden(text: str) -> str:
    """Return a cover of the same length and lines."""
    return re.sub(r"[^\n]", COVER, text)


def keep_group(group: int) -> Any:
    """Return a replacement that covers a match but for one of its groups."""

    def replacement(match: re.Match[str]) -> str:
        if match[group] is None:
            return hidden(match[0])
        start, end = match.start(group) - match.start(), match.end(group) - match.start()
        return hidden(match[0][:start]) + match[group] + hidden(match[0][end:])

    return replacement


if __name__ == "__main__":
    raise SystemExit(main())
