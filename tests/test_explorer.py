"""The live explorer: what the build writes for it, and the page in a browser, against the package's own numbers."""

from __future__ import annotations

import json
import shutil
import zlib
from pathlib import Path

import explorer
import explorer_picture
import numpy as np
import pytest
import torch
from conftest import ALARM, DOUBLE, Visitor
from playwright.sync_api import Page, Route
from scipy import stats

from vaerobust import distance, randomness
from vaerobust.criterion import clopper_pearson, probability_of_robustness
from vaerobust.distance import distances, distances_in_random_directions
from vaerobust.study import summaries
from vaerobust.study.records import BothSidesSummary
from vaerobust.zoo import data
from vaerobust.zoo.protocol import GRID
from vaerobust.zoo.weights import pretrained

PAGE = "book/explorer.html"
SPECS = {spec.name: spec for spec in GRID}
AGREE = 100 * DOUBLE
"""Browser and package both work in double precision here, with sums in another order. D is a difference of two
reconstructions, which loses at most two of the digits that each of them has."""


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("explorer")
    explorer.write(folder)
    return folder


@pytest.fixture(scope="module")
def index(written) -> dict:
    return json.loads((written / "index.json").read_bytes())


def some_models(index: dict) -> list[dict]:
    """The first, the last and one with a tau."""
    models = index["models"]
    chosen = [models[0], *[model for model in models if model["tau"]][:1], models[-1]]
    return list({model["name"]: model for model in chosen}.values())


# What the build writes


def test_every_model_of_the_paper_is_offered(index):
    assert [model["name"] for model in index["models"]] == list(SPECS)


def test_file_of_a_model_holds_its_weights_and_worst_directions_exactly(written, index):
    for model in some_models(index):
        content = (written / f"{model['name']}.bin").read_bytes()
        assert len(content) == model["bytes"]
        assert zlib.crc32(content) == model["crc32"]
        numbers = np.frombuffer(content, "<f2")
        weights = pretrained(model["dataset"], model["beta"], model["tau"]).vae.state_dict()
        at = 0
        for name, *shape in index["tensors"]:
            found = torch.from_numpy(numbers[at : at + np.prod(shape)].reshape(shape).astype(np.float32))
            at += found.numel()
            if name in weights:
                assert torch.equal(found, weights.pop(name))
            else:
                assert name in {"worst_own", "worst_fixed"}
                assert found.shape == (index["images"], 784)
        assert not weights
        assert at == len(numbers)


def test_bounds_are_those_of_the_summaries(index):
    for model in index["models"]:
        measured = stored(model)
        assert model["confidence"] == measured.confidence
        for r in ("own", "fixed"):
            for column, numbers in model[r].items():
                assert numbers == getattr(getattr(measured, r), column)[: index["images"]].tolist()


def stored(model: dict) -> BothSidesSummary:
    return summaries.load(SPECS[model["name"]], BothSidesSummary)


def test_every_bound_of_the_index_has_its_numbers(index):
    columns = set(index["models"][0]["own"])
    for bound in index["bounds"]:
        assert bound["column"] in columns
        assert bound["censored"] in columns | {""}


def test_nothing_to_show_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no margins from both sides"):
        explorer.write(tmp_path / "out", tmp_path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: summaries.perturbations_path(path).unlink(), "missing or corrupt"),
        (lambda path: summaries.perturbations_path(path).write_bytes(b"nothing"), "missing or corrupt"),
        (lambda path: path.write_text("{"), "corrupt"),
        (
            lambda path: path.write_text(path.read_text().replace('"weights_sha256": "', '"weights_sha256": "0')),
            "other weights",
        ),
    ],
    ids=["no perturbations", "corrupt perturbations", "corrupt summary", "other weights"],
)
def test_a_damaged_summary_is_an_error(tmp_path, index, damage, message):
    path = summaries.path_of(SPECS[index["models"][0]["name"]], BothSidesSummary)
    for one in (path, summaries.perturbations_path(path)):
        shutil.copy(one, tmp_path)
    damage(tmp_path / path.name)
    with pytest.raises(ValueError, match=message):
        explorer.exhibits(tmp_path)


def test_places_on_the_axis_and_sizes_are_each_others_inverse():
    sizes = np.array([0, 1e-4, 0.01, 1, 64])
    assert explorer_picture.position(0) == 0
    assert explorer_picture.position(64) == 1
    np.testing.assert_allclose(
        explorer_picture.size_at(explorer_picture.position(sizes)), sizes, rtol=1e-12, atol=1e-15
    )


# The page


@pytest.fixture
def page(open_page: Visitor) -> Page:
    return opened(open_page)


def opened(open_page: Visitor, **options: object) -> Page:
    page = open_page(PAGE, **options)
    page.wait_for_function("window.explorer !== undefined")
    assert page.evaluate("explorer.ready")
    return page


def state(page: Page) -> dict:
    page.wait_for_function("!explorer.state().busy")
    return page.evaluate("explorer.state()")


def moved_from(page: Page, size: float) -> float:
    """Wait until the slider has left a size; return the new one."""
    page.wait_for_function("size => explorer.state().size !== size", arg=size)
    return state(page)["size"]


def choose(page: Page, model: dict, image: int, direction: str, r: str, size: float) -> dict:
    page.get_by_label("Data set").select_option(model["dataset"])
    page.get_by_label("Model").select_option(model["name"])
    page.wait_for_function("name => explorer.state().model === name && !explorer.state().busy", arg=model["name"])
    for name, value in (("image", image), ("direction", direction), ("r", r)):
        page.locator(f"input[name={name}][value='{value}']").check()
    page.evaluate("size => explorer.go(size)", size)
    return state(page)


CASES = [
    (0, "worst", "own", 0.0),
    (1, "worst", "own", 0.2),
    (7, "worst", "fixed", 1.5),
    (3, "random", "own", 2.5),
    (5, "random", "fixed", 30.0),
]


def test_numbers_are_those_of_the_package(page, index, monkeypatch, capsys):
    """The package meets the browser's noise: reconstructions and distances agree to rounding, probabilities exactly."""
    milliseconds = []
    drawn = page.evaluate("explorer.noise()")
    eta = torch.tensor(drawn["eta"], dtype=torch.float64).unflatten(0, (-1, 20))
    directions = torch.tensor(drawn["directions"], dtype=torch.float64).unflatten(0, (-1, 784))
    for module in (distance, randomness):
        monkeypatch.setattr(module, "normal", lambda n, like, _: eta if like.shape[1] == 20 else directions)
    for model in some_models(index):
        vae = pretrained(model["dataset"], model["beta"], model["tau"]).vae.double()
        images = data.load(model["dataset"]).pixels.double()
        for image, direction, r, size in CASES:
            shown = choose(page, model, image, direction, r, size)
            x = images[image : image + 1]
            if direction == "worst":
                worst = getattr(stored(model), r).delta.double()[image : image + 1]
                delta = size * worst / worst.norm()
                d = distances(vae, x, delta, samples=len(eta))
            else:
                delta = size * directions[:1]
                d = distances_in_random_directions(vae, x, size, samples=len(eta))
            np.testing.assert_allclose(shown["input"], (x + delta)[0], rtol=AGREE, atol=AGREE)
            for name, point in (("centre", x), ("reconstruction", x + delta)):
                expected = vae.decode(vae.encode(point)[0])[0]
                np.testing.assert_allclose(shown[name], expected, rtol=AGREE, atol=AGREE)
            np.testing.assert_allclose(shown["distances"], d[0], rtol=AGREE)
            judged = probability_of_robustness(d, shown["r"], confidence=explorer.INTERVAL_CONFIDENCE)
            assert shown["r"] == model[r]["r"][image]
            assert shown["probability"] == pytest.approx(judged.probability[0])
            assert shown["interval"] == pytest.approx([judged.low[0], judged.high[0]], abs=1e-9)
            milliseconds.append(shown["milliseconds"])
    with capsys.disabled():
        print(f"\nexplorer: a step takes {np.median(milliseconds):.0f} ms (median), at most {max(milliseconds):.0f} ms")


def test_exact_intervals_are_those_of_the_package(page):
    """Both are exact; the browser bisects sums of up to 300 terms, each good to 1e-13."""
    intervals = page.evaluate(
        """async () => {
            const {clopperPearson} = await import(new URL("../_static/explorer/statistics.js", location.href));
            return [[7, 0.95], [300, 0.95], [300, 0.999]].map(([n, confidence]) =>
                Array.from({length: n + 1}, (_, k) => clopperPearson(k, n, confidence)));
        }"""
    )
    for (n, confidence), found in zip([(7, 0.95), (300, 0.95), (300, 0.999)], intervals, strict=True):
        low, high = clopper_pearson(np.arange(n + 1), n, confidence)
        np.testing.assert_allclose(np.array(found), np.stack([low, high], 1), atol=1e-9)


def test_worst_direction_keeps_within_certificate_and_breaks_at_the_attack(page, index):
    """At the certified margin P(D <= r) > 1/2, at the attack margin not: by samples that neither has seen."""
    model = index["models"][0]
    for image in range(index["images"]):
        bounds = {name: column[image] for name, column in model["fixed"].items()}
        samples = len(choose(page, model, image, "worst", "fixed", bounds["certified"])["distances"])
        fewest, most = stats.binom.ppf([ALARM, 1 - ALARM], samples, 0.5) / samples
        assert bounds["certified"] == 0 or state(page)["probability"] >= fewest
        if bounds["confirmed"]:
            page.locator("[data-bound=attack]").click()
            assert state(page)["size"] == bounds["attack"]
            assert state(page)["probability"] <= most


def test_works_by_mouse(page):
    before = state(page)
    slider = page.get_by_label("Size of the perturbation")
    slider.scroll_into_view_if_needed()
    box = slider.bounding_box()
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + 0.3 * box["width"], middle)
    page.mouse.down()
    sizes = []
    for share in (0.4, 0.6, 0.8):
        page.mouse.move(box["x"] + share * box["width"], middle)
        sizes.append(moved_from(page, sizes[-1] if sizes else before["size"]))
    page.mouse.up()
    assert sizes == sorted(set(sizes))
    assert explorer_picture.position(sizes[-1]) == pytest.approx(0.8, abs=0.02)
    assert state(page)["distances"] != before["distances"]
    page.get_by_text("random", exact=True).click()
    page.locator(".explorer-images label").nth(2).click()
    page.get_by_text("0.9-quantile of D(x)").click()
    now = state(page)
    assert (now["direction"], now["image"], now["choiceOfR"]) == ("random", 2, "own")
    assert now["r"] != before["r"]
    for bound in ("theorem_1", "certified", "random_direction"):
        page.locator(f"[data-bound='{bound}']").click()
        assert page.locator(".explorer-number").inner_text() == f"{state(page)['size']:.3g}"


def test_works_by_keyboard(page, index):
    """From the first control on, by Tab, arrows and letters alone; the result is announced once the reader stops."""
    page.get_by_label("Data set").focus()
    first = state(page)
    page.keyboard.type("fashion")
    page.wait_for_function("name => explorer.state().model?.startsWith(name)", arg="fashion")
    page.keyboard.press("Tab")  # the model
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    assert state(page)["direction"] == "random"
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowLeft")
    assert state(page)["choiceOfR"] == "own"
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    assert state(page)["image"] == index["start"]["image"] + 1
    page.keyboard.press("Tab")
    for key, most in (("Home", 0.0), ("ArrowRight", 0.01), ("PageUp", 1.0), ("End", explorer.SIZES[1])):
        size = state(page)["size"]
        page.keyboard.press(key)
        assert moved_from(page, size) <= most * (1 + 1e-9)
    assert state(page)["size"] == pytest.approx(explorer.SIZES[1])
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # the button at Theorem 1's bound
    assert 0 < state(page)["size"] < 1
    assert state(page)["distances"] != first["distances"]
    page.wait_for_function("document.querySelector('[role=status]').textContent.includes('interval')")


def test_one_model_is_fetched_at_a_time(page, index):
    fetched = "performance.getEntriesByType('resource').map(one => one.name).filter(name => name.includes('.bin'))"
    assert len(page.evaluate(fetched)) == 1
    choose(page, index["models"][-1], 0, "worst", "own", 1.0)
    assert len(page.evaluate(fetched)) == 2


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_fits_a_phone_and_names_everything(open_page, index, theme):
    page = opened(open_page, width=360, height=740, theme=theme)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.evaluate("document.documentElement.dataset.theme") == theme
    nameless = page.locator("#explorer canvas:not([aria-label]):not([aria-hidden]), #explorer svg:not([aria-label])")
    assert nameless.count() == 0
    for role, number in (("combobox", 2), ("slider", 1), ("radio", 4 + index["images"]), ("button", 4)):
        controls = page.locator("#explorer").get_by_role(role)
        assert controls.count() == number
        tree = controls.first.aria_snapshot()
        assert '"' in tree, f"a {role} has no name: {tree}"
    # colours of text differ from the ground enough: at least the contrast of WCAG AA
    for selector in (".explorer-probability", ".explorer-time", ".explorer-bound button"):
        assert contrast(page, selector) >= 4.5


def contrast(page: Page, selector: str) -> float:
    """Return the contrast of text and ground, as WCAG defines it."""
    colours = page.evaluate(
        """selector => [getComputedStyle(document.querySelector(selector)).color,
            getComputedStyle(document.body).backgroundColor]
            .map(colour => colour.match(/[\\d.]+/g).slice(0, 3).map(Number))""",
        selector,
    )
    share = np.array(colours) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    light, dark = sorted(linear @ [0.2126, 0.7152, 0.0722], reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_without_scripts_there_is_a_picture(open_page):
    page = open_page(PAGE, javascript=False)
    image = page.locator(".explorer-static img")
    image.wait_for(state="visible")
    assert image.bounding_box()["width"] > 300
    alt = image.get_attribute("alt")
    assert len(alt) > 100
    assert "sampled distances D" in alt
    assert not page.locator("#explorer form").is_visible()


def flipped(content: bytes) -> bytes:
    """Return a file with one bit wrong."""
    return content[:1000] + bytes([content[1000] ^ 1]) + content[1001:]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda route: route.fulfill(status=404), "the server answers 404"),
        (lambda route: route.abort(), "the server does not answer"),
        (lambda route: refill(route, lambda content: content[:5000]), "its file is incomplete"),
        (lambda route: refill(route, flipped), "its file is corrupt"),
    ],
    ids=["missing", "no answer", "incomplete", "corrupt"],
)
def test_a_model_that_cannot_be_had_is_said_and_another_still_works(page, open_page, index, damage, message):
    good, bad = [model for model in index["models"] if model["dataset"] == index["models"][0]["dataset"]][:2]
    choose(page, good, 0, "worst", "own", 1.0)
    page.route("**/*.bin*", damage)
    page.get_by_label("Model").select_option(bad["name"])
    alert = page.get_by_role("alert")
    alert.wait_for()
    assert message in alert.inner_text()
    assert not page.locator(".explorer-outcome").is_visible()
    page.unroute("**/*.bin*")
    choose(page, good, 0, "worst", "own", 1.0)
    assert page.locator(".explorer-outcome").is_visible()
    assert not alert.is_visible()
    open_page.problems.clear()  # the browser's own words about the damage


def refill(route: Route, change) -> None:
    """Answer with a changed file."""
    answer = route.fetch()
    route.fulfill(response=answer, body=change(answer.body()))


def test_without_an_index_the_picture_stays(page, open_page):
    page.route("**/index.json", lambda route: route.fulfill(status=404))
    page.reload()
    page.get_by_role("alert").wait_for()
    assert "cannot start" in page.get_by_role("alert").inner_text()
    page.locator(".explorer-static img").wait_for(state="visible")
    open_page.problems.clear()
