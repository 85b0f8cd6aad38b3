"""The built site as a reader has it: in a browser, with no other network, on a phone, in both themes, by keyboard."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import jupytext
import nbformat
import papermill
import pytest
import yaml
from conftest import ROOT, SMOKE, Visitor
from playwright.sync_api import Page
from test_book import NOTEBOOKS, documents

PHONES = (390, 360)
AXE = files("axe_playwright_python") / "axe.min.js"
STILL = "*, ::before, ::after { transition: none !important; animation: none !important; }"
"""Colours are looked at when they have come to rest."""

LOOK = r"""async () => {
  const wrong = [], article = document.querySelector("article") ?? document.body;
  document.querySelectorAll("details").forEach(folded => folded.open = true);
  document.querySelectorAll(".toggle-hidden").forEach(folded => folded.classList.remove("toggle-hidden"));
  for (const image of document.images) {
    image.loading = "eager";
    await image.decode().catch(() => 0);
    if (!image.naturalWidth) wrong.push(`no picture: ${image.src}`);
    if (!image.alt.trim() || /\.(png|svg)$/.test(image.alt)) wrong.push(`no alternative text: ${image.src}`);
  }
  for (const formula of document.querySelectorAll(".math"))
    if (!formula.querySelector("mjx-container")) wrong.push(`not set: ${formula.textContent}`);
  for (const error of document.querySelectorAll("mjx-merror, [data-mjx-error]"))
    wrong.push(`rejected by MathJax: ${error.textContent}`);
  const texts = document.createTreeWalker(article, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const { textContent: text, parentElement: parent } = texts.currentNode;
    if (!parent.closest("pre, code, script, style") && /\\\(|\\\[|\\begin\{|\$\$|\\[a-z]+\{/.test(text))
      wrong.push(`raw TeX: ${text}`);
  }
  const shown = [...document.querySelectorAll("h1, h2, h3, h4, h5, h6")].filter(heading => heading.checkVisibility());
  const levels = shown.map(heading => Number(heading.tagName[1]));
  if (levels.filter(level => level == 1).length != 1 || levels[0] != 1) wrong.push(`levels of headings: ${levels}`);
  levels.forEach((level, i) => i && level > levels[i - 1] + 1 && wrong.push(`skipped: ${shown[i].textContent}`));
  return wrong;
}"""
UNTANGLE = """() => {
  const seen = new Set();
  for (const token of document.querySelectorAll("pre span, dl.py span")) {
    const kind = [token.className, token.parentElement.className, token.closest("pre, dl").className].join();
    if (seen.has(kind)) token.replaceWith(...token.childNodes);
    seen.add(kind);
  }
}"""
"""Leaves one token of each kind in code: axe-core would compare thousands of equal colours, for a minute a page."""
WIDER = "[...document.querySelectorAll('main *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1)"


def barriers(page: Page, theme: str) -> list[str]:
    """Return what axe-core finds serious or critical on a page in a theme: all rules in the light one.

    In the dark one only the rules on colour can find anything else.
    """
    page.emulate_media(color_scheme=theme)
    page.wait_for_function("theme => document.documentElement.dataset.theme == theme", arg=theme)
    # preload would fetch the imports of style sheets, from where the page is instead of from where the sheet is
    options = {"resultTypes": ["violations"], "preload": False}
    if theme == "dark":
        options["runOnly"] = ["color-contrast", "link-in-text-block"]
    found = page.evaluate("options => axe.run(options)", options)["violations"]
    return [
        f"{theme}: {rule['id']} ({rule['impact']}): {node['html'][:200]} {node['failureSummary']}"
        for rule in found
        if rule["impact"] in {"serious", "critical"}
        for node in rule["nodes"]
    ]


def overflow(page: Page, width: int) -> list[str]:
    """Say if a page scrolls sideways in a window of that width, and what sticks out."""
    page.set_viewport_size({"width": width, "height": 844})
    if page.evaluate("document.documentElement.scrollWidth <= innerWidth"):
        return []
    wide = page.evaluate(f"{WIDER}.slice(0, 5).map(e => e.outerHTML.slice(0, 100))")
    return [f"scrolls sideways at {width} px: {wide}"]


def problems_of(open_page: Visitor, path: str) -> list[str]:
    page = open_page(path, width=1280)
    page.add_style_tag(content=STILL)
    page.evaluate(AXE.read_text())
    wrong = page.evaluate(LOOK)
    for width in PHONES:
        wrong += overflow(page, width)
    page.set_viewport_size({"width": 1280, "height": 900})
    page.evaluate(UNTANGLE)
    for theme in ("light", "dark"):
        wrong += barriers(page, theme)
    return wrong


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """Variables of a reader who has installed the package of this checkout."""
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize("name", documents())
def test_page_is_whole_accessible_and_fits_a_phone(name, open_page):
    wrong = problems_of(open_page, f"{name}.html")
    assert wrong == [], "\n".join(wrong)


def test_pages_that_sphinx_adds_are_whole_too(site, open_page):
    """Search, indices, and of the many pages of source code the longest."""
    sources = sorted(site.glob("_modules/vaerobust/*.html"), key=lambda path: path.stat().st_size)
    assert len(sources) > 10
    wrong = []
    for path in ("search.html", "genindex.html", "py-modindex.html", "_modules/index.html", sources[-1]):
        wrong += [f"{path}: {problem}" for problem in problems_of(open_page, str(path).removeprefix(f"{site}/"))]
    assert wrong == [], "\n".join(wrong)


def test_front_page_tells_the_result_on_one_screen(open_page):
    page = open_page("", width=1280, height=900)
    page.wait_for_url("**/book/index.html")
    page.wait_for_load_state()
    for shown in ("text=The question.", "text=The answer.", "figure img", "p.counts", "text=make book"):
        box = page.locator("article").locator(shown).first.bounding_box()
        assert box["y"] + box["height"] <= 900, f"below the screen: {shown}"


def test_search_finds_a_theorem(open_page):
    page = open_page("book/index.html")
    page.keyboard.press("Control+k")
    page.keyboard.type("tempered posterior")
    page.keyboard.press("Enter")
    page.wait_for_selector("ul.search li a")
    found = page.eval_on_selector_all("ul.search li a", "links => links.map(link => link.href)")
    assert any("notebooks/03a_optimum.html" in link for link in found)


def test_a_figure_leads_to_its_code(open_page):
    page = open_page("notebooks/02a_sigma.html")
    code = page.locator("#code-of-fig-tau")
    assert not code.is_visible()
    page.locator("figure#fig-tau a.code-of-figure").click()
    code.wait_for(state="visible")
    assert "plt.subplots" in code.inner_text()


def test_a_theorem_leads_to_its_tests(open_page):
    page = open_page("notebooks/02_theorem_1.html")
    page.locator("#thm-1 .checked-by a").first.click()
    page.wait_for_url("**/book/checks.html#*")
    target = page.locator(f"[id='{page.url.partition('#')[2]}']")
    assert "def test_theorem_1_is_its_formula" in target.inner_text()


def downloads(open_page: Visitor, folder: Path) -> Iterator[Path]:
    for path in NOTEBOOKS:
        page = open_page(f"notebooks/{path.stem}.html")
        with page.expect_download() as started:
            page.locator(".executed a[download]").click()
        started.value.save_as(folder / f"{path.stem}.ipynb")
        yield folder / f"{path.stem}.ipynb"


def raw_markup(cell: nbformat.NotebookNode) -> list[str]:
    """Return what only the book can show: roles, directives, their options, targets and comments of MyST."""
    outputs = [output.data.get("text/markdown", "") for output in cell.get("outputs", []) if "data" in output]
    texts = [cell.source] if cell.cell_type == "markdown" else outputs
    raw = r"\{[\w:.-]+\}`[^`\n]*|^\s*(?:`{3,}|:{3,})\s*\{.*|^\([\w-]+\)=|^:{3,}|^:[a-z-]+:.*|<!--.*|^\{[.#].*"
    return [found for text in texts for found in re.findall(raw, "".join(text), re.MULTILINE)]


def test_downloaded_notebooks_hold_no_markup_that_only_the_book_can_show(open_page, tmp_path):
    sizes = []
    for path in downloads(open_page, tmp_path):
        cells = nbformat.read(path, as_version=4).cells
        assert [(path.name, found) for cell in cells for found in raw_markup(cell)] == []
        sizes.append(sum(len(cell.source) for cell in cells if cell.cell_type == "markdown"))
    assert len(sizes) == len(NOTEBOOKS)
    assert min(sizes) > 1000


def test_downloaded_notebooks_are_valid_and_run_anywhere(open_page, environment, tmp_path, monkeypatch):
    """All of them up to their parameters, in one process; one to its end, at smoke scale."""
    found = list(downloads(open_page, tmp_path))
    script = []
    for path in found:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        assert all(cell.execution_count for cell in code)
        last = next(i for i, cell in enumerate(code) if "parameters" in cell.metadata.get("tags", []))
        script += ["\n".join(cell.source for cell in code[: last + 1])]
    # pages are made by display and glue, which need a running IPython; what stands before the parameters does not
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(script)], cwd=tmp_path, env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    name = "07_choices"
    parameters = yaml.safe_load(SMOKE.read_text())[name]
    ran = papermill.execute_notebook(
        tmp_path / f"{name}.ipynb", tmp_path / "again.ipynb", parameters, cwd=tmp_path, progress_bar=False
    )
    source = jupytext.read(ROOT / f"notebooks/{name}.md")
    assert sum(cell.cell_type == "code" for cell in ran.cells) == 1 + sum(
        cell.cell_type == "code" for cell in source.cells
    )
