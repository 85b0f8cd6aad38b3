"""Files that tools and people rely on: sources of notebooks, pins, citation, hooks and workflows."""

from __future__ import annotations

import datetime
import re
import subprocess
import tomllib
from importlib.metadata import version

import citation
import jupytext
import pytest
import yaml
from conftest import ROOT
from test_book import NOTEBOOKS

LARGEST = 1_000_000
"""Bytes of a file that is tracked, the weights that ship aside."""
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
        for target in re.findall(r"make (\w+)", command):
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), command


def test_front_matter_is_on_one_screen():
    assert len((ROOT / "CONTRIBUTING.md").read_text().splitlines()) < 40
    assert (ROOT / "book/_static/readme.png").stat().st_size < 100_000
