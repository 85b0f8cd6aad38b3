"""The page of a report: one HTML file that needs no other, in light and dark.

:func:`page` collects what the template ``templates/report.html`` shows: the figures, the pictures of single images, and
the models of the book. Start reading there.
"""

from __future__ import annotations

import base64
import io
import math
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import jinja2
import numpy as np
import torch

from vaerobust.measuring import figures
from vaerobust.measuring.record import MARGINS, Record, shown
from vaerobust.study import summaries
from vaerobust.study.records import BothSidesSummary
from vaerobust.zoo.protocol import GRID

BOOK_LEVEL, BOOK_R = 0.9, 4.0
"""The two choices of r at which the book measured its models."""
EXTREMES = 3
"""Images that are shown at each end."""


class Pictures(NamedTuple):
    """One image and what became of it, as addresses of pictures that hold their own data."""

    image: int
    attack: str
    certified: str
    moved: str
    r: str
    views: tuple[tuple[str, str], ...]  # (label, address)


class BookModel(NamedTuple):
    """Medians of a model over images."""

    name: str
    values: dict[str, float]
    own: bool


def page(report: Record, comparison: Any = None) -> str:
    """Return the page of a report, with the comparison with another model if there is one.

    Parameters
    ----------
    report : Record
    comparison : Comparison, optional
        Of :mod:`vaerobust.measuring.compare`.
    """
    book = book_models(report)
    drawn = {
        "r": figures.distribution_of_r(report),
        "margins": figures.margins(report),
        "enclosures": figures.enclosures(report),
        "curve": figures.curve(report),
        "beside": beside(book),
    }
    return template().render(
        report=report, run=report.run, settings=report.run.settings, columns=MARGINS, shown=shown,
        count=len(report.table),
        figures=drawn, extremes=extremes(report), book=book, missing=reasons(report), scale=scale(report),
        comparison=comparison, version=package_version(), listed=listed(report), guaranteed=guaranteed(report),
        use=use(report),
    )  # fmt: skip


def comparison_page(comparison: Any) -> str:
    """Return the page of a comparison of :mod:`vaerobust.measuring.compare` alone."""
    return template("comparison.html").render(comparison=comparison, shown=shown, version=package_version())


@cache
def template(name: str = "report.html") -> jinja2.Template:
    """Return a template, which stops at names that it does not get."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("vaerobust.measuring"), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template(name)


def package_version() -> str:
    """Return the version of the package."""
    try:
        return version("vaerobust")
    except PackageNotFoundError:  # a checkout that is not installed
        return "unknown"


def beside(book: list[BookModel]) -> figures.Figure | None:
    """Draw the model among those of the book."""
    if not book or not any(model.own for model in book):
        return None
    rows = [(model.name, model.values["certified"], model.values["attack"], model.own) for model in book]
    return figures.beside(rows)


def book_models(report: Record) -> list[BookModel]:
    """Return the medians of the book's models and of this one, by attack margin; none where r was chosen otherwise."""
    settings = report.run.settings
    own_r = settings["r"] is None and settings["level"] == BOOK_LEVEL
    if not (own_r or settings["r"] == BOOK_R):
        return []
    names = ("r", *(column.name for column in MARGINS))
    found = []
    for spec in GRID:
        both = summaries.load(spec, BothSidesSummary)
        stored = both.own if own_r else both.fixed
        values = {name: float(getattr(stored, name).median()) for name in names}
        found.append(BookModel(called(spec.name), values, own=False))
    own = {name: report.median(name).value for name in names}
    if math.isfinite(own["attack"]):
        found.append(BookModel(report.run.name, own, own=True))
    return sorted(found, key=lambda model: -model.values["attack"])


def called(name: str) -> str:
    """Return the name of a model of the book in words: 'mnist_beta1_tau0.5' is 'MNIST, β = 1, τ = 0.5'."""
    dataset, beta, tau = name.split("_")
    words = [{"mnist": "MNIST", "fashion-mnist": "fashion-MNIST"}[dataset], f"β = {beta.removeprefix('beta')}"]
    return ", ".join([*words, *([] if tau == "tau0" else [f"τ = {tau.removeprefix('tau')}"])])


def reasons(report: Record) -> list[tuple[str, str]]:
    """Return what could not be measured and why; what has the same reason is listed together."""
    words = {column.name: column.label for column in MARGINS} | {"curve": "The curves of r"}
    by_reason: dict[str, list[str]] = {}
    for name, label in words.items():
        if name in report.missing:
            by_reason.setdefault(report.missing[name], []).append(label)
    return [(", ".join(names), reason) for reason, names in by_reason.items()]


def scale(report: Record) -> dict[str, str]:
    """Return what the median attack means for single pixels."""
    attack, pixels = report.median("attack").value, report.images.pixels.shape[1]
    typical = float(report.images.pixels.norm(dim=1).median())
    return {
        "pixels": f"{pixels:,}",
        "per_pixel": shown(attack / math.sqrt(pixels)),
        "share": shown(100 * attack / typical) if typical else "-",
        "typical": shown(typical),
    }


def use(report: Record) -> dict[str, Any]:
    """Return how good the reconstructions are, and whether they depend on the image at all.

    A model that ignores its input is robust, so its margins alone would mislead.
    """
    found = {"error": shown(report.median("error").value), "apart": "", "ignores": False}
    if len(report.table) > 1:
        apart = torch.pdist(report.images.pixels).median()
        found["apart"] = shown(float(apart))
        if "reconstruction" in report.pictures:
            moved = float(torch.pdist(torch.as_tensor(report.pictures["reconstruction"])).median())
            found |= {"moved": shown(moved), "r": shown(report.median("r").value)}
            found["ignores"] = moved < report.median("r").value
    return found


def guaranteed(report: Record) -> int:
    """Return for how many images something is certified."""
    return int((report.table["certified"].to_numpy(dtype=float) > 0).sum())


def listed(report: Record) -> list[list[str]]:
    """Return the rows of the table of all images, as text."""
    names = ("image", "r", *(column.name for column in MARGINS))
    rows = []
    for row in report.table.to_dict("records"):
        cells = [str(row["image"])] + [shown(float(row[name])) for name in names[1:]]
        if row["attack_confirmed"] is False or row["attack_confirmed"] == 0:
            cells[names.index("attack")] += "?"
        if row["attack_censored"] is True or row["attack_censored"] == 1:
            cells[names.index("attack")] = "> " + cells[names.index("attack")].rstrip("?")
        rows.append(cells)
    return rows


def extremes(report: Record) -> list[tuple[str, list[Pictures]]]:
    """Return pictures of the images with the smallest and the largest margins; none where inputs are no pictures."""
    if not report.pictures or layout(report.images.shape) is None:
        return []
    by = "attack" if report.median("attack").measured else "certified"
    order = [int(i) for i in np.argsort(report.table[by].to_numpy(dtype=float))]
    if len(order) <= EXTREMES:
        return [("All images, the least robust first", [pictures(report, i) for i in order])]
    most = order[::-1][: min(EXTREMES, len(order) - EXTREMES)]
    return [
        ("The least robust images", [pictures(report, i) for i in order[:EXTREMES]]),
        ("The most robust images", [pictures(report, i) for i in most]),
    ]


def pictures(report: Record, image: int) -> Pictures:
    """Return the pictures of one image."""
    kept, shape = report.pictures, report.images.shape
    x, delta = report.images.pixels[image].numpy(), kept["delta"][image]
    largest = float(np.abs(delta).max()) or 1.0
    factor = f"{0.5 / largest:.0f}" if largest < 0.25 else shown(0.5 / largest)
    moved = float(np.linalg.norm(kept["attacked_reconstruction"][image] - kept["reconstruction"][image]))
    views = (
        ("image", x),
        ("its reconstruction", kept["reconstruction"][image]),
        (f"perturbation, {factor} times enlarged", 0.5 + 0.5 * delta / largest),
        ("attacked image", x + delta),
        ("reconstruction of the attacked image", kept["attacked_reconstruction"][image]),
    )
    row = report.table.iloc[image]
    return Pictures(
        image, shown(float(row["attack"])), shown(float(row["certified"])), shown(moved),
        shown(float(row["r"])), tuple((label, address(values, shape)) for label, values in views),
    )  # fmt: skip


def layout(shape: tuple[int, ...]) -> tuple[int, int, int] | None:
    """Return channels, height and width under which an image can be shown; None if it cannot."""
    sizes = (1, *shape) if len(shape) == 2 else shape
    return (sizes[0], sizes[1], sizes[2]) if len(sizes) == 3 and sizes[0] in (1, 3) else None


def address(values: np.ndarray, shape: tuple[int, ...]) -> str:
    """Return a picture as a PNG in an address."""
    from PIL import Image  # Matplotlib requires Pillow

    sizes = layout(shape)
    if sizes is None:
        raise ValueError(f"shape must be that of a picture, but is {shape}")
    array = (np.nan_to_num(values.reshape(sizes)).clip(0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0)
    buffer = io.BytesIO()
    Image.fromarray(array[..., 0] if sizes[0] == 1 else array).save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
