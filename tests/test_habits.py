"""Files that tools and people rely on: sources of notebooks, pins, citation, hooks, workflows and the README's map."""

from __future__ import annotations

import ast
import datetime
import io
import re
import subprocess
import tokenize
import tomllib
from importlib.metadata import version
from pathlib import Path

import citation
import jupytext
import pytest
import yaml
from conftest import ROOT
from test_book import NOTEBOOKS

LARGEST = 1_000_000
"""Bytes of a tracked file, except for the trained weights."""
SCREEN = 45
"""Lines of code that a function's body may have: what fits a screen."""
TARGETS = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_sources_survive_a_round_trip_and_hold_no_outputs(path):
    before = jupytext.reads(path.read_text(), fmt="md:myst")
    after = jupytext.reads(jupytext.writes(before, fmt="md:myst"), fmt="md:myst")
    assert [(cell.cell_type, cell.source, cell.metadata) for cell in before.cells] == [
        (cell.cell_type, cell.source, cell.metadata) for cell in after.cells
    ]
    assert not [cell for cell in before.cells if cell.get("outputs")]


def test_no_large_file_is_tracked():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("no git checkout")
    paths = [ROOT / name for name in listed.stdout.split("\0") if name and "vaerobust/zoo/pretrained/" not in name]
    large = [path.name for path in paths if path.is_file() and path.stat().st_size > LARGEST]
    assert large == []


def test_pins_are_sorted_and_installed_and_cover_what_is_asked_for():
    pins = dict(line.split("==") for line in LOCK)
    by_name = sorted(LOCK, key=lambda pin: pin.lower().split("=="))
    assert by_name == LOCK
    assert {name: version(name) for name in pins} == pins
    asked = [*PROJECT["dependencies"], *(name for extra in PROJECT["optional-dependencies"].values() for name in extra)]
    plain = {name.lower() for name in pins}
    assert [need for need in asked if re.match(r"[\w-]+", need)[0].lower() not in plain] == []


def test_citation_is_valid_and_of_this_version():
    """What the Citation File Format 1.2.0 requires, and what must agree with pyproject.toml."""
    record = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert record["cff-version"] == "1.2.0"
    assert isinstance(record["message"], str)
    assert record["type"] in {"software", "dataset"}
    assert isinstance(record["date-released"], datetime.date)
    assert record["version"] == PROJECT["version"]
    assert record["license"] == PROJECT["license"]
    for work in (record, *record["references"]):
        assert isinstance(work["title"], str)
        assert work["authors"]
        assert all({"name"} <= set(who) or {"family-names", "given-names"} <= set(who) for who in work["authors"])
    assert all(work["type"] == "conference-paper" for work in record["references"])


def test_bibtex_of_paper_and_work():
    entries = citation.entries(ROOT)
    assert entries["paper"].startswith("@inproceedings{camuto2021,\n")
    assert "Camuto, Alexander and Willetts, Matthew" in entries["paper"]
    assert "pages     = {3565--3573}" in entries["paper"]
    assert entries["work"].startswith("@software{vaerobust,\n")
    assert f"version   = {{{PROJECT['version']}}}" in entries["work"]
    assert all(entry.count("{") == entry.count("}") for entry in entries.values())


def test_hooks_and_workflows_run_what_exists():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    commands = [hook["entry"] for repo in hooks["repos"] for hook in repo["hooks"]]
    workflows = [yaml.safe_load(path.read_text()) for path in (ROOT / ".github/workflows").glob("*.yml")]
    assert len(workflows) == 2
    commands += [
        step["run"]
        for workflow in workflows
        for job in workflow["jobs"].values()
        for step in job["steps"]
        if "run" in step
    ]
    for command in commands:
        for path in re.findall(r"(?:tests|book|\.ci)/[\w.]+", command):
            assert (ROOT / path).exists(), command
        for targets in re.findall(r"make ((?:\w+ ?)+)", command):
            assert set(targets.split()) <= TARGETS, command


def test_ci_runs_what_the_readme_promises_and_no_more():
    script = (ROOT / ".ci/run").read_text()
    assert re.search(r"^for target in (.*); do$", script, re.MULTILINE)[1] == "lint book test"
    assert "apt" not in script
    commands = re.findall(r"`make (\w+)`", (ROOT / "README.md").read_text() + (ROOT / "CONTRIBUTING.md").read_text())
    assert {"book", "test"} <= set(commands) <= TARGETS


def lines_of_code(function: ast.FunctionDef | ast.AsyncFunctionDef, source: str) -> int:
    """Return how many lines of a function's body have code on them; its docstring, comments and empty lines do not."""
    first = function.body[0]
    docstring = (
        isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    )
    body = function.body[docstring:]
    if not body:
        return 0
    blank = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in blank and body[0].lineno <= token.start[0] <= (function.end_lineno or 0):
            lines |= set(range(token.start[0], token.end[0] + 1))
    return len(lines)


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", python_files("vaerobust", "book"), ids=lambda path: str(path.relative_to(ROOT)))
def test_bodies_fit_a_screen(path):
    source = path.read_text()
    functions = [
        node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert [function.name for function in functions if lines_of_code(function, source) > SCREEN] == []


def test_lines_of_code_counts_neither_docstring_nor_comments():
    source = 'def f(x):\n    """Doc."""\n    # why\n    y = (\n        x\n    )\n\n    return y\n'
    function = ast.parse(source).body[0]
    assert isinstance(function, ast.FunctionDef)
    assert lines_of_code(function, source) == 4


def test_readme_draws_the_subpackages_that_exist():
    """The map names each module at the top of the package and each subpackage in it once, and nothing else."""
    drawn = re.search(r"```\n(vaerobust/.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    inner = re.findall(r"^  (\w+\.py|\w+/) +\S", drawn, re.MULTILINE)
    outer = re.findall(r"^(\w+/) +\S", drawn, re.MULTILINE)
    assert len(inner) + len(outer) == len(drawn.splitlines())
    package = ROOT / "vaerobust"
    modules = [path.name for path in package.glob("*.py") if not path.name.startswith("__")]
    subpackages = [f"{path.parent.name}/" for path in package.glob("*/__init__.py")]
    assert sorted(inner) == sorted(modules + subpackages)
    assert outer == ["vaerobust/", "notebooks/", "book/", "tests/"]


def test_readme_draws_imports_in_the_order_that_the_linter_holds():
    """The linter's layers begin with what imports the most, the map with what imports the least."""
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    layers = [name for name in tools["importlinter"]["contracts"][0]["layers"] if name != "__main__"]
    drawn = re.search(r"```\nvaerobust/(.*?)\nnotebooks/", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    assert re.findall(r"^  (\w+)(?:\.py|/) ", drawn, re.MULTILINE) == layers[::-1]


def test_front_matter_is_on_one_screen():
    assert len((ROOT / "CONTRIBUTING.md").read_text().splitlines()) < 40
    assert (ROOT / "book/_static/readme.png").stat().st_size < 100_000
