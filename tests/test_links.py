"""From theorems to their tests and from figures to their code: the mapping, and the links on the pages."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import jupytext
import pytest
import yaml
from bs4 import BeautifulSoup
from conftest import ROOT
from test_book import NOTEBOOKS

CHECKS = yaml.safe_load((ROOT / "book/checks.yml").read_text())
INTERNAL = {
    "vaerobust.batches",
    "vaerobust.checks",
    "vaerobust.commands",
    "vaerobust.measuring.command",
    "vaerobust.numerics",
    "vaerobust.study.benchmarks",
    "vaerobust.study.equal_error",
    "vaerobust.study.growth",
    "vaerobust.study.scaling",
    "vaerobust.study.timing",
    "vaerobust.zoo.files",
    "vaerobust.zoo.typed_json",
    "vaerobust.zoo.sealed",
}
"""Modules that nobody who measures a VAE needs, and that the reference leaves out."""
BOX = re.compile(r"^`{3,}\{prf:(?!proof)\w+\}.*\n(?::label: (\S+))?", re.MULTILINE)


def labels(path: Path) -> list[str]:
    """Return the labels of the boxes of a chapter; a box without one could not be linked to, and fails."""
    found = BOX.findall(path.read_text())
    assert all(found), f"a theorem in {path.name} has no label in its first line"
    return found


def functions(path: Path) -> set[str]:
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}


def soup(site: Path, page: str) -> BeautifulSoup:
    return BeautifulSoup((site / page).read_text(), "html.parser")


def test_every_theorem_has_a_test_and_every_test_exists():
    stated = [label for path in NOTEBOOKS for label in labels(path)]
    assert set(CHECKS) == set(stated), "book/checks.yml must name each label once"
    assert all(CHECKS.values())
    named = [test for tests in CHECKS.values() for test in tests]
    assert len(named) == len(set(named)), "a test stands under one label only"
    for file, _, function in (test.partition("::") for test in named):
        path = ROOT / "tests" / file
        assert path.exists() and function in functions(path), f"tests/{file} has no {function}"


def test_an_unlabelled_theorem_is_noticed(tmp_path):
    source = tmp_path / "chapter.md"
    source.write_text("```{prf:theorem} A\n:label: thm-a\n```\n\n````{prf:lemma} B\nText\n````\n")
    with pytest.raises(AssertionError, match="no label"):
        labels(source)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_theorems_link_to_the_source_of_their_tests(site, path):
    page, checks = soup(site, f"notebooks/{path.stem}.html"), soup(site, "book/checks.html")
    for label in labels(path):
        links = page.select(f"[id='{label}'] .checked-by a")
        assert [link.get_text() for link in links] == [test.partition("::")[2] for test in CHECKS[label]]
        for link in links:
            target, _, fragment = link["href"].partition("#")
            assert target == "../book/checks.html"
            assert f"def {link.get_text()}(" in checks.find(id=fragment).get_text()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_figures_link_to_the_code_that_drew_them(site, path):
    page = soup(site, f"notebooks/{path.stem}.html")
    drawn = {}
    for cell in jupytext.read(path).cells:
        if name := cell.metadata.get("mystnb", {}).get("figure", {}).get("name"):
            drawn[name] = cell.source
    assert drawn
    for name, source in drawn.items():
        link = page.find("figure", id=name).figcaption.find("a", class_="code-of-figure")
        assert page.find(id=link["href"].removeprefix("#")).get_text().strip() == source.strip()


def test_the_reference_has_every_module_and_links_to_the_source(site):
    page = soup(site, "book/api.html")
    for path in (ROOT / "vaerobust").rglob("*.py"):
        place = path.relative_to(ROOT).with_suffix("")
        module = ".".join(place.parts)
        if place.name.startswith("__") or module in INTERNAL:
            continue
        for name in {name for name in functions(path) if not name.startswith("_")}:
            entry = page.find(id=f"{module}.{name}")
            assert entry is not None, f"{module}.{name}"
            assert entry.find("a", href=re.compile(rf"_modules/{place.as_posix()}\.html#")), name
