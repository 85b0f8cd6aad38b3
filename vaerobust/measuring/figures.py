"""The figures of a report: vector graphics that stand in the page itself and follow its theme.

Each function returns a :class:`Figure`: the SVG, and a sentence made from the plotted data for those who do not see it.
Colours are drawn as marks that the page replaces by its own, so that one drawing serves light and dark. Start reading
at :func:`margins`.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure as Drawing
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from vaerobust.measuring.record import MARGINS, Record, shown

INK = "#010101"
"""Replaced by the colour of the text."""
TONES = {
    "theorem_1": "#020202", "certified": "#030303", "second_moment": "#040404", "attack": "#050505",
    "random_direction": "#060606", "own": "#070707", "faint": "#080808",
}  # fmt: skip
"""Replaced by the page's colour of that name."""
WIDTH = 7.2
STYLE: Any = {
    "svg.fonttype": "none", "svg.hashsalt": "vaerobust", "font.family": "sans-serif", "font.size": 10.5,
    "axes.edgecolor": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK, "text.color": INK,
    "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False, "figure.facecolor": "none",
    "axes.facecolor": "none", "savefig.facecolor": "none",
}  # fmt: skip


class Figure(NamedTuple):
    """A figure of the page."""

    svg: str
    alt: str


@contextmanager
def drawing(height: float, name: str, kept: list[str], panels: int = 0) -> Iterator[Any]:
    """Draw on axes, or on a row of panels with common axes; the SVG is added to ``kept``."""
    with mpl.rc_context(STYLE):
        figure = Drawing(figsize=(WIDTH, height), layout="constrained")
        if panels:
            yield figure.subplots(1, panels, sharex=True, sharey=True, squeeze=False)[0]
        else:
            yield figure.subplots()
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    kept.append(inline(buffer.getvalue(), name))


def inline(svg: str, name: str) -> str:
    """Return an SVG that may stand in a page with others: no prologue, ids of its own, the page's colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'(href="|url\()#', rf"\g<1>#{name}-", svg)
    svg = svg.replace(INK, "currentColor")
    for tone, mark in TONES.items():
        svg = svg.replace(mark, f"var(--{tone.replace('_', '-')})")
    # the figure scales with the page, and its words are in its label
    svg = re.sub(r'<svg ([^>]*?)height="[^"]*"([^>]*?)width="[^"]*"', r"<svg \1\2", svg, count=1)
    svg = re.sub(r'<svg ([^>]*?)width="[^"]*"([^>]*?)height="[^"]*"', r"<svg \1\2", svg, count=1)
    return svg.replace("<svg ", '<svg aria-hidden="true" focusable="false" ', 1)


def plain_log(axis: Any, at: tuple[int, ...] = (1, 2, 5)) -> None:
    """Label a logarithmic axis by plain numbers."""
    axis.set_major_locator(LogLocator(subs=at, numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def jitter(count: int) -> np.ndarray:
    """Return small offsets, the same at each run, so that dots lie beside each other."""
    return 0.22 * np.sin(2.399963 * np.arange(count) * 7)


def finite(report: Record, column: str) -> np.ndarray:
    """Return the values of a column that can be drawn on a logarithmic axis."""
    values = report.table[column].to_numpy(dtype=float)
    return values[np.isfinite(values) & (values > 0)]


def distribution_of_r(report: Record) -> Figure:
    """Draw r, one dot per image."""
    values = finite(report, "r")
    kept: list[str] = []
    with drawing(1.5, "r", kept) as axes:
        axes.plot(values, jitter(len(values)), "o", color=TONES["own"], alpha=0.75, markersize=6, markeredgewidth=0)
        if len(values):
            axes.axvline(np.median(values), color=INK, linewidth=1.5)
        axes.set(ylim=(-0.5, 0.5), yticks=[], xlabel="r, in units of the pixels (Euclidean norm)")
        axes.spines["left"].set_visible(False)
        axes.margins(x=0.05)
    alt = "Nothing to draw."
    if len(values):
        alt = (
            f"One dot per image: r ranges from {shown(values.min())} to {shown(values.max())}, "
            f"with median {shown(np.median(values))}."
        )
    return Figure(kept[0], alt)


def margins(report: Record) -> Figure:
    """Draw each margin, one dot per image, and its median."""
    measured = [column for column in MARGINS if len(finite(report, column.name))]
    kept: list[str] = []
    told = []
    with drawing(0.9 + 0.55 * max(1, len(measured)), "margins", kept) as axes:
        for height, column in enumerate(reversed(measured)):
            values = finite(report, column.name)
            middle = float(np.median(values))
            colour = TONES[column.name]
            axes.plot(
                values, height + jitter(len(values)), "o", color=colour, alpha=0.6, markersize=5, markeredgewidth=0
            )  # fmt: skip
            axes.plot([middle] * 2, [height - 0.33, height + 0.33], color=colour, linewidth=2.5)
            axes.annotate(
                shown(middle), (middle, height + 0.34), ha="center", va="bottom", fontsize=9.5, color=INK
            )  # fmt: skip
        for column in measured:
            values = finite(report, column.name)
            told.append(
                f"{column.label} {shown(np.median(values))} ({shown(values.min())} to {shown(values.max())})"
            )  # fmt: skip
        axes.set_xscale("log")
        plain_log(axes.xaxis)
        axes.set_yticks(range(len(measured)), [f"{column.label}\n{column.kind}" for column in reversed(measured)])
        axes.set(xlabel="norm of the perturbation", ylim=(-0.5, len(measured) - 0.2))
        axes.tick_params(axis="y", length=0)
        axes.margins(x=0.08)
    return Figure(kept[0], "Medians and ranges over images: " + ", ".join(told) + ".")


def enclosures(report: Record) -> Figure | None:
    """Draw for each image what is known of its margin: from the certified one to the attack's."""
    certified, attack = (report.table[name].to_numpy(dtype=float) for name in ("certified", "attack"))
    both = np.isfinite(certified) & np.isfinite(attack) & (certified > 0)
    if not both.any():
        return None
    order = np.argsort(attack[both])
    low, high, names = certified[both][order], attack[both][order], report.table["image"].to_numpy()[both][order]
    kept: list[str] = []
    with drawing(2.9, "enclosures", kept) as axes:
        at = np.arange(len(low))
        width = max(0.6, min(6.0, 200 / len(low)))
        axes.vlines(at, low, high, color=TONES["faint"], linewidth=width)
        axes.plot(at, high, "v", color=TONES["attack"], markersize=6, label="attack: breaks it", linestyle="none")
        axes.plot(at, low, "^", color=TONES["certified"], markersize=6, label="certified: safe below", linestyle="none")
        axes.set_yscale("log")
        plain_log(axes.yaxis)
        if len(low) <= 30:
            axes.set_xticks(at, names)
        axes.set(xlabel="image, in the order of its attack margin", ylabel="norm of the perturbation")
        axes.legend(loc="upper left", ncols=2, bbox_to_anchor=(0, 1.16))
    gap = float(np.median(high / low))
    alt = (
        f"For each of {len(low)} images a bar from its certified margin up to its attack margin; "
        f"the upper end is {gap:.1f} times the lower one (median)."
    )
    return Figure(kept[0], alt)


def curve(report: Record) -> Figure | None:
    """Draw the least r against the norm R of perturbations, enclosed from both sides; one panel per image."""
    found = report.curve
    if found is None:
        return None
    places = ["least robust", "in the middle", "most robust"] if len(found.images) == 3 else [""] * len(found.images)
    kept: list[str] = []
    with drawing(2.9, "curve", kept, panels=len(found.images)) as panels:
        for k, (axes, image, place) in enumerate(zip(panels, found.images, places, strict=True)):
            top = np.where(np.isfinite(found.certified[:, k]), found.certified[:, k], np.nan)
            axes.fill_between(found.radii, found.broken[:, k], top, color=TONES["faint"], alpha=0.35, linewidth=0)
            axes.plot(found.radii, top, "-^", color=TONES["certified"], markersize=5)
            axes.plot(found.radii, found.broken[:, k], "--v", color=TONES["attack"], markersize=5)
            axes.axhline(report.table["r"].iloc[image], color=INK, linewidth=1, linestyle=":")
            axes.set_xscale("log")
            plain_log(axes.xaxis, (1, 3))
            axes.set_title(f"image {image}" + (f", {place}" if place else ""), fontsize=10.5)
        panels[0].set_ylabel("least r")
        panels[len(panels) // 2].set_xlabel("norm R of the perturbation")
    ends = []
    for k, image in enumerate(found.images):
        known = np.flatnonzero(np.isfinite(found.certified[:, k]))
        if len(known):
            last = known[-1]
            ends.append(
                f"image {image}: at R = {shown(float(found.radii[last]))} the least r lies between "
                f"{shown(float(found.broken[last, k]))} and {shown(float(found.certified[last, k]))}"
            )
        else:
            ends.append(
                f"image {image}: at R = {shown(float(found.radii[-1]))} the least r is at least "
                f"{shown(float(found.broken[-1, k]))}, and nothing is certified at these R"
            )
    return Figure(kept[0], "; ".join(ends) + ".")


def beside(rows: Sequence[tuple[str, float, float, bool]]) -> Figure:
    """Draw for each model the range from its median certified margin to its median attack margin.

    Parameters
    ----------
    rows : sequence of (name, certified, attack, own)
        ``own`` marks the model of the report. A certified margin may be NaN.
    """
    kept: list[str] = []
    with drawing(0.9 + 0.27 * len(rows), "beside", kept) as axes:
        for height, (_, low, high, own) in enumerate(reversed(rows)):
            colour = TONES["own"] if own else INK
            if np.isfinite(low) and low > 0:
                axes.plot([low, high], [height] * 2, color=colour, linewidth=5 if own else 3, alpha=0.35)
                axes.plot(low, height, "^", color=TONES["certified"], markersize=6)
            axes.plot(high, height, "v", color=TONES["attack"], markersize=6)
        axes.set_yticks(range(len(rows)), [name for name, *_ in reversed(rows)])
        for label, (*_, own) in zip(axes.get_yticklabels(), reversed(rows), strict=True):
            label.set_fontweight("bold" if own else "normal")
        axes.set_xscale("log")
        plain_log(axes.xaxis)
        axes.set(xlabel="norm of the perturbation")
        axes.tick_params(axis="y", length=0)
    mine = next((one for one in rows if one[3]), rows[0])
    others = [one for one in rows if not one[3]]
    above = sum(one[2] < mine[2] for one in others)
    alt = f"{mine[0]} has a larger median attack margin than {above} of the book's {len(others)} models."
    return Figure(kept[0], alt)


def ratios(rows: Sequence[tuple[str, float, float, float]], names: tuple[str, str]) -> Figure:
    """Draw the median ratio of two models' margins on the same images, with its interval.

    Parameters
    ----------
    rows : sequence of (label, ratio, low, high)
    names : tuple of str
        The ratio is the second model's margin over the first one's.
    """
    kept: list[str] = []
    with drawing(0.9 + 0.45 * max(1, len(rows)), "ratios", kept) as axes:
        axes.axvline(1, color=INK, linewidth=1, linestyle=":")
        for height, (_, ratio, low, high) in enumerate(reversed(rows)):
            if np.isfinite(low) and np.isfinite(high):
                axes.plot([low, high], [height] * 2, color=TONES["own"], linewidth=2.5)
            axes.plot(ratio, height, "o", color=TONES["own"], markersize=7)
        axes.set_yticks(range(len(rows)), [label for label, *_ in reversed(rows)])
        axes.set_xscale("log")
        plain_log(axes.xaxis)
        axes.set(xlabel=f"{names[1]} / {names[0]}", ylim=(-0.6, len(rows) - 0.4))
    told = [f"{label} {shown(ratio)} ({shown(low)} to {shown(high)})" for label, ratio, low, high in rows]
    return Figure(kept[0], f"Median ratios of {names[1]} to {names[0]} and their intervals: " + ", ".join(told) + ".")
