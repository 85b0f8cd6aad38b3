"""The notebooks at smoke scale, through papermill, and the site that is built from them."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import execution
import freshness
import jupytext
import nbformat
import parameters
import pytest
import yaml
from bs4 import BeautifulSoup
from conftest import ROOT, SMOKE, run_build

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.md"))


@pytest.fixture(scope="session")
def pages(site: Path) -> dict[str, BeautifulSoup]:
    paths = [path for path in site.rglob("*.html") if "_static" not in path.parts]
    return {path.relative_to(site).as_posix(): BeautifulSoup(path.read_text(), "html.parser") for path in paths}


def documents() -> list[str]:
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    chapters = [chapter for part in toc["parts"] for chapter in part["chapters"]]
    return [toc["root"], *(page["file"] for chapter in chapters for page in [chapter, *chapter.get("sections", [])])]


def test_overrides_name_parameters_that_exist():
    overrides = yaml.safe_load(SMOKE.read_text())
    assert set(overrides) == {path.stem for path in NOTEBOOKS}
    for path in NOTEBOOKS:
        known = set(parameters.parameter_names(jupytext.read(path)))
        assert known, f"{path.name} has no parameters"
        assert set(overrides[path.stem]) <= known, f"{path.name} lacks {set(overrides[path.stem]) - known}"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"01_r_robustness": {"pionts": 1}}, "no parameter pionts"),
        ({"07_nothing": {"points": 1}}, "no notebook '07_nothing'"),
    ],
)
def test_override_of_nothing_is_an_error_before_anything_runs(tmp_path, overrides, message):
    (tmp_path / "wrong.yml").write_text(yaml.safe_dump(overrides))
    done = run_build("--parameters", str(tmp_path / "wrong.yml"), "--out", str(tmp_path / "out"))
    assert done.returncode != 0
    assert message in done.stderr
    assert not (tmp_path / "out").exists()


def test_second_build_runs_nothing(smoke):
    before = {path: path.stat().st_mtime_ns for path in (smoke / "executed").rglob("*.ipynb")}
    done = run_build("--parameters", str(SMOKE), "--out", "_build/smoke")
    assert done.returncode == 0
    assert done.stdout.count("up to date") == len(NOTEBOOKS) + 1  # and the site
    assert before == {path: path.stat().st_mtime_ns for path in (smoke / "executed").rglob("*.ipynb")}


@pytest.mark.parametrize("what", ["vaerobust", "summaries", "lock file", "data", "parameters", "notebook"])
def test_change_of_what_a_notebook_depends_on_makes_it_run_again(smoke, what, monkeypatch):
    """Compare with a record in which one thing was different when the copy was made."""
    overrides = yaml.safe_load(SMOKE.read_text())
    sources = {path.stem: path for path in NOTEBOOKS}
    assert freshness.out_of_date(sources, overrides, smoke, 600) == []
    honest = freshness.recorded
    monkeypatch.setattr(
        freshness, "recorded", lambda copy: {"made_from": honest(copy)["made_from"] | {what: "different"}}
    )
    assert {task.source.stem for task in freshness.out_of_date(sources, overrides, smoke, 600)} == set(sources)


@pytest.mark.parametrize(
    ("source", "may"),
    [
        ("from vaerobust.study import summaries", True),
        ("from vaerobust.study.summaries import read", True),
        ("import vaerobust.study.summaries as kept", True),
        ("from vaerobust import study", True),
        ("def later():\n    from vaerobust.study import summaries", True),
        ("%matplotlib inline", True),  # no Python: what it imports is unknown
        ("from vaerobust import criterion, margins", False),
        ("import vaerobust.studying", False),
        ("summaries = 'vaerobust.study'", False),
    ],
)
def test_a_notebook_may_read_summaries_if_it_imports_from_their_room(source, may):
    notebook = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_markdown_cell("from vaerobust.study import summaries"),
            nbformat.v4.new_code_cell("import numpy"),
            nbformat.v4.new_code_cell(source),
        ]
    )
    assert freshness.may_read_summaries(notebook) == may


def test_stored_summaries_are_where_the_build_looks():
    assert sum(path.suffix == ".json" for path in freshness.files_under(freshness.SUMMARIES)) > 50


def test_the_environment_of_kernels_is_set_and_restored(tmp_path, monkeypatch):
    monkeypatch.setenv("JUPYTER_PATH", "/elsewhere")
    before = os.environ.copy()
    with execution.kernel_environment(tmp_path, threads=3):
        assert os.environ["OMP_NUM_THREADS"] == "3"
        assert os.environ["PYTHONPATH"].split(os.pathsep)[0] == str(ROOT)
        assert "JUPYTER_PATH" not in os.environ
    assert os.environ.copy() == before


def test_failing_notebook_is_named_and_leaves_no_copy(tmp_path):
    source = tmp_path / "bad.md"
    cell = "```{code-cell} ipython3\nvalue = 0\n1 / value\n```\n"
    source.write_text(f"---\nkernelspec:\n  name: python3\n  display_name: Python 3\n---\n# Bad\n\n{cell}")
    task = freshness.Task(source, tmp_path / "out.ipynb", tmp_path / "failed.ipynb", {}, {}, 60)
    problems = execution.execute([task], 1)
    assert "ZeroDivisionError" in problems["bad"]
    assert "1 / value" in problems["bad"]
    assert not task.target.exists()
    assert task.failed.exists()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_executed_notebook_is_clean(smoke, path):
    notebook = nbformat.read(smoke / "executed/notebooks" / f"{path.stem}.ipynb", as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type in {"error", "stream"}]
    assert str(ROOT) not in json.dumps(notebook)
    assert str(Path.home()) not in json.dumps(notebook)


def test_sources_hold_no_outputs_and_no_notebook_is_tracked():
    for path in NOTEBOOKS:
        assert all(not cell.get("outputs") for cell in jupytext.read(path).cells)
    assert not list((ROOT / "notebooks").glob("*.ipynb"))


def test_every_page_of_the_table_of_contents_is_there(site, pages):
    assert {f"{name}.html" for name in documents()} <= set(pages)
    refresh = pages["index.html"].find("meta", attrs={"http-equiv": "Refresh"})
    assert (site / refresh["content"].partition("url=")[2]).is_file()


def test_every_figure_is_on_its_page(site, pages):
    for path in NOTEBOOKS:
        names = re.findall(r"^ +name: (fig-[\w-]+)$", path.read_text(), re.MULTILINE)
        assert names, f"{path.name} has no figure"
        page = f"notebooks/{path.stem}.html"
        for name in names:
            figure = pages[page].find("figure", id=name)
            assert figure is not None, f"{page} lacks {name}"
            assert figure.figcaption.find(class_="caption-number"), f"{name} has no number"
            image = figure.find("img")
            picture = site / "notebooks" / unquote(image["src"])
            assert picture.stat().st_size > 1000, f"{name}: {picture} is empty"
            assert len(image["alt"]) > 40, f"{name}: alt is {image['alt']!r}"


def test_every_figure_of_the_paper_is_answered():
    """Captions name the figures of the paper that they answer, one by one or as a list: Fig. 3, Figs. 10 and 11."""
    captions = [
        cell.metadata.get("mystnb", {}).get("figure", {}).get("caption", "")
        for path in NOTEBOOKS
        for cell in jupytext.read(path).cells
    ]
    named = {
        int(number)
        for caption in captions
        for listed in re.findall(
            r"Figs?\.((?:[\s,]*(?:and |to )?\d+(?: \([a-i]\)(?:(?:,| and| to) \([a-i]\))*)?)+)", caption
        )
        for number in re.findall(r"\d+", listed)
    }
    assert set(range(1, 13)) <= named, f"no caption names Figs. {set(range(1, 13)) - named}"


def test_no_error_output_and_no_unresolved_reference(pages):
    for page, soup in pages.items():
        text = soup.get_text()
        assert not soup.select(".output.stderr, .output.traceback"), page
        assert "Traceback (most recent call last)" not in text, page
        assert not soup.select("span.problematic, .system-message"), page
        # code may say nan, and the reference how a text asks for a number
        code = ["pre", "code", "script"]
        shown = [str(words) for words in soup.find_all(string=True) if not words.find_parent(code)]
        assert not [words for words in shown if "glue:text" in words], page
        assert not [words for words in shown if re.search(r"\bnan\b", words)], page


def test_nothing_is_loaded_from_elsewhere(pages):
    for page, soup in pages.items():
        for tag, attribute in (("script", "src"), ("link", "href"), ("img", "src"), ("iframe", "src")):
            for element in soup.find_all(tag, **{attribute: True}):
                assert urlsplit(element[attribute]).netloc == "", f"{page}: {element}"


def test_every_local_link_leads_somewhere(site, pages):
    anchors = {page: {e.get("id") or e.get("name") for e in soup.find_all(True)} for page, soup in pages.items()}
    bad = []
    for page, soup in pages.items():
        for link in soup.find_all("a", href=True):
            url = urlsplit(urljoin(f"http://site/{page}", link["href"]))
            if url.netloc != "site" or url.scheme != "http":
                continue
            target = unquote(url.path).lstrip("/")
            missing = url.fragment and target in anchors and unquote(url.fragment) not in anchors[target]
            if not (site / target).is_file() or missing:
                bad.append(f"{page} -> {link['href']}")
    assert bad == []


def test_executed_notebooks_can_be_downloaded(site, pages):
    for path in NOTEBOOKS:
        links = [
            a["href"]
            for a in pages[f"notebooks/{path.stem}.html"].find_all("a", href=True)
            if a["href"].endswith(".ipynb")
        ]
        assert links, f"{path.stem} offers no notebook"
        nbformat.validate(nbformat.read((site / "notebooks" / links[0]).resolve(), as_version=4))


def test_make_help_lists_every_target():
    makefile = (ROOT / "Makefile").read_text()
    declared = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE).group(1).split()
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    listed = [line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")]
    assert sorted(listed) == sorted(declared)
    assert {"book", "test", "smoke", "train", "serve", "bench", "lint", "clean"} <= set(listed)


@pytest.mark.parametrize("name", ["developers", "rerun"])
def test_pages_about_the_code_name_files_and_targets_that_exist(name):
    text = (ROOT / f"book/{name}.md").read_text()
    named = set(re.findall(r"`((?:[\w.]+/)*[\w.]+\.(?:py|md|yml|toml|json)|[\w./]+/)`", text))
    named -= {"notebooks/10_name.md"}  # the chapter to be written
    paths = {path for path in named if not path.startswith(("_build/", "NAME."))}
    assert len(paths) > 3
    missing = {path for path in paths if not any((folder / path).exists() for folder in (ROOT, ROOT / "vaerobust"))}
    assert missing == set()
    targets = set(re.findall(r"\bmake (\w+)`", text)) | set(re.findall(r"^make (\w+)", text, re.MULTILINE))
    declared = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
    assert targets <= set(declared)
