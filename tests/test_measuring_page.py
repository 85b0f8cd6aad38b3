"""The page of a report: one file, in order, with words for every picture, and accessible in both themes."""

from __future__ import annotations

import re
from pathlib import Path

import citation
import pytest
from axe_playwright_python.sync_playwright import Axe
from bs4 import BeautifulSoup
from conftest import ROOT
from test_measuring import QUICK, images, model
from usual_models import held_out

import vaerobust
from vaerobust.measuring.html import called, page
from vaerobust.study import summaries
from vaerobust.study.records import BothSidesSummary
from vaerobust.zoo.protocol import GRID


@pytest.fixture(scope="module")
def reports():
    return [
        vaerobust.measure(model(seed), images().unflatten(1, (1, 4, 4)), name=name, **QUICK)
        for seed, name in ((0, "random"), (7, "other"))
    ]


@pytest.fixture(scope="module")
def soup(reports):
    return BeautifulSoup(page(reports[0], vaerobust.compare(*reports)), "html.parser")


def test_nothing_is_loaded_from_elsewhere(soup):
    assert not soup.find_all(["script", "link", "iframe", "object"])
    addresses = [tag[name] for tag in soup.find_all(True) for name in ("src", "href", "xlink:href") if tag.get(name)]
    assert [one for one in addresses if not one.startswith(("data:image/png;base64,", "#"))] == []
    assert not re.search(r"url\((?!#)|@import", str(soup))


def test_ids_are_unique_and_what_they_refer_to_is_there(soup):
    ids = [tag["id"] for tag in soup.find_all(id=True)]
    assert len(ids) == len(set(ids))
    assert set(re.findall(r"url\(#([^)]+)\)|href=\"#([^\"]+)\"", str(soup))) <= {(one, "") for one in ids} | {
        ("", one) for one in ids
    }


def test_headings_are_in_order_and_say_what_must_be_there(soup):
    levels = [int(tag.name[1]) for tag in soup.find_all(re.compile("^h[1-6]$"))]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(levels, levels[1:], strict=False))
    text = soup.get_text()
    for words in ("How sure is this?", "The least robust", "book's models", "could not be measured", "How to cite"):
        assert words in text


def test_the_answer_comes_first(soup, reports):
    assert soup.h1.find_next("p").get_text() == reports[0].headline


def test_pictures_have_words_and_tables_have_captions(soup):
    assert all(tag["alt"] for tag in soup.find_all("img"))
    drawn = soup.find_all(attrs={"role": "img"})
    assert len(drawn) == len(soup.find_all("svg")) >= 6
    assert all(re.search(r"\d", tag["aria-label"]) for tag in drawn)
    assert all(table.caption and table.caption.get_text(strip=True) for table in soup.find_all("table"))
    assert all(cell.get("scope") for cell in soup.find_all("th"))


def test_every_image_and_every_margin_is_in_the_table(soup, reports):
    rows = soup.find("h2", string="All images").find_next("tbody").find_all("tr")
    assert [row.th.get_text() for row in rows] == [str(i) for i in range(7)]
    assert len(rows[0].find_all("td")) == 6


def test_the_books_models_stand_beside_it(soup):
    names = [row.th.get_text() for row in soup.find("table", string=None).find_all_next("tr") if row.th]
    for spec in GRID:
        assert called(spec.name) in names
    median = float(summaries.load(GRID[0], BothSidesSummary).own.attack.median())
    (row,) = [row for row in soup.find_all("tr") if row.th and row.th.get_text() == called(GRID[0].name)]
    assert vaerobust.measuring.record.shown(median) in [cell.get_text() for cell in row.find_all("td")]


def test_models_measured_at_another_r_are_not_beside_the_books(reports):
    report = vaerobust.measure(model(), images(1), r=0.3, samples=50, progress=False)
    assert "so they are not comparable" in report.to_html()


def test_the_entries_are_those_of_the_citation_file(soup):
    entries = citation.entries(ROOT)
    text = soup.find("pre").get_text()
    assert entries["paper"] in text
    assert re.sub(r"version .*\n", "", entries["work"]) in re.sub(r"version .*\n", "", text)


def test_the_page_is_the_same_at_each_call(reports):
    assert reports[0].to_html() == reports[0].to_html()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_page_is_accessible_in_both_themes(theme, reports, browser, tmp_path):
    comparison = vaerobust.compare(*reports)
    (tmp_path / "report.html").write_text(page(reports[0], comparison))
    comparison.save(tmp_path)
    context = browser.new_context(color_scheme=theme, viewport={"width": 390, "height": 844})
    try:
        for name in ("report.html", "comparison.html"):
            shown = context.new_page()
            problems: list[str] = []
            shown.on("console", lambda message, found=problems: found.append(message.text))
            shown.on("request", lambda request, found=problems: found.append(request.url))
            shown.goto(Path(tmp_path / name).as_uri())
            assert [one for one in problems if not one.startswith(("data:", "file:"))] == []
            shown.eval_on_selector_all("details", "all => all.forEach(one => { one.open = true })")
            found = Axe().run(shown).response["violations"]
            assert [(one["id"], [node["target"] for node in one["nodes"]]) for one in found] == []
            assert shown.evaluate("document.documentElement.scrollWidth") <= 390
            assert (shown.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)") == (
                theme == "light"
            )
    finally:
        context.close()


def test_a_model_that_ignores_its_input_is_said_to():
    vae = model()
    decode = vae.decode
    vae.decode = lambda z: decode(1e-3 * z)
    encode = vae.encode
    vae.encode = lambda x: (1e-3 * encode(x)[0], encode(x)[1])
    found = vaerobust.measure(vae, images(), samples=200, progress=False)
    assert "hardly uses its input" in found.to_html()
    clear = vaerobust.measure(vaerobust.pretrained("mnist", 0.1), held_out(2), samples=200, progress=False)
    assert "hardly uses its input" not in clear.to_html()
