"""The picture of the live explorer: what the page shows for one image, for readers without JavaScript.

:func:`state` computes what is shown, :func:`draw` draws it, and :func:`alternative_text` says it in words, from the
same numbers. The page itself is drawn by ``book/_static/explorer/charts.js``, with the same axis of sizes.
"""

from __future__ import annotations

from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from vaerobust.certify.both_sides import BothSides
from vaerobust.criterion import probability_of_robustness
from vaerobust.distance import distances
from vaerobust.model import VAE
from vaerobust.page import figures
from vaerobust.page.words import DATASETS as TITLES
from vaerobust.zoo.protocol import Spec

SIZES = (1e-3, 64.0)
"""The axis of sizes runs from 0 to the second number. It is linear far below the first and logarithmic far above it."""
INTERVAL_CONFIDENCE = 0.95
"""Confidence of the intervals of P(D <= r)."""
SAMPLES = 400
"""Number of sampled distances with the perturbation, and also without it."""
SEED = 7
TITLES_OF_IMAGES = {
    "x": "input $x$",
    "x + delta": r"perturbed, $x + \delta$",
    "before": r"reconstruction, $g(\mu(x))$",
    "after": r"perturbed, $g(\mu(x + \delta))$",
}


@dataclass(frozen=True)
class Bound:
    """A kind of bound on the size of perturbations.

    Attributes
    ----------
    column : str
        Its field in :class:`vaerobust.certify.both_sides.BothSides`.
    name, kind : str
        Where the number comes from, and what kind of number it is.
    symbol, marker : str
        Its mark on the page's axis, and matplotlib's name of the same mark.
    censored : str
        The field that is true where the number is only the limit of the search; empty if the search has no limit.
    """

    column: str
    name: str
    kind: str
    symbol: str
    marker: str
    censored: str = ""


BOUNDS = (
    Bound("theorem_1", "Theorem 1", "first-order bound", "▲", "^"),
    Bound("certified", "certified", "lower bound", "■", "s"),
    Bound("attack", "attack", "upper bound", "◆", "D", "censored"),
    Bound("random_direction", "random-direction radius", "no bound", "●", "o", "random_direction_censored"),
)
"""The bounds that explorer and picture show, in order."""


@dataclass(frozen=True)
class State:
    """What the picture shows: one image under the worst known perturbation.

    Attributes
    ----------
    spec : Spec
        The model.
    number : int
        Index of the test image.
    r : float
        The r of r-robustness, in pixel values (2-norm).
    size : float
        Norm of the perturbation, in pixel values (2-norm).
    sizes : list of float
        The number of each bound of :data:`BOUNDS`.
    images : dict of Tensor, each shape (d_x,)
        By the keys of :data:`TITLES_OF_IMAGES`.
    clean, moved : ndarray, shape (samples,)
        Distances without the perturbation and with it.
    probability, low, high : float
        Estimate of P(D <= r) with the perturbation, and its interval.
    """

    spec: Spec
    number: int
    r: float
    size: float
    sizes: list[float]
    images: dict[str, Tensor]
    clean: np.ndarray
    moved: np.ndarray
    probability: float
    low: float
    high: float


def state(spec: Spec, vae: VAE, images: Tensor, bounds: BothSides, number: int) -> State:
    """Return what the picture shows for one image.

    Parameters
    ----------
    spec : Spec
    vae : VAE
        The model of that spec.
    images : Tensor, shape (n, d_x)
    bounds : BothSides
        At the choice of r that is shown.
    number : int
        Which of the images.
    """
    x = images[number : number + 1]
    r, size = float(bounds.r[number]), float(bounds.attack[number])
    direction = bounds.delta[number : number + 1].float()
    delta = size * direction / direction.norm().clamp(min=1e-12)
    # One seed for both, so that the perturbation is all that differs.
    clean, moved = (distances(vae, x, one, samples=SAMPLES, seed=SEED) for one in (None, delta))
    judged = probability_of_robustness(moved, r, confidence=INTERVAL_CONFIDENCE)
    with torch.no_grad():
        before, after = (vae.decode(vae.encode(one)[0]) for one in (x, x + delta))
    shown = {"x": x[0], "x + delta": (x + delta)[0], "before": before[0], "after": after[0]}
    return State(
        spec=spec,
        number=number,
        r=r,
        size=size,
        sizes=[float(getattr(bounds, bound.column)[number]) for bound in BOUNDS],
        images=shown,
        clean=clean[0].numpy(),
        moved=moved[0].numpy(),
        probability=float(judged.probability[0]),
        low=float(judged.low[0]),
        high=float(judged.high[0]),
    )


def draw(state: State) -> Figure:
    """Draw four images, the distribution of D, and the bounds on the axis of sizes."""
    figures.set_style()
    figure, axes = plt.subplot_mosaic(
        [list(state.images), ["D"] * 4, ["size"] * 4], figsize=(7, 6.4), height_ratios=[3, 4, 3]
    )
    for name, image in state.images.items():
        draw_image(axes[name], image, TITLES_OF_IMAGES[name])
    draw_distances(axes["D"], state.clean, state.moved, state.r)
    interval = f"{INTERVAL_CONFIDENCE:.0%} interval [{state.low:.2f}, {state.high:.2f}]"
    axes["D"].set_title(f"P(D ≤ r) = {state.probability:.2f}, {interval}", fontsize=10, loc="left")
    draw_bounds(axes["size"], state.sizes, state.size)
    return figure


def alternative_text(state: State) -> str:
    """Return what the picture shows, in words."""
    listed = "; ".join(
        f"{bound.name} ({bound.kind}), {size:.2g}" for bound, size in zip(BOUNDS, state.sizes, strict=True)
    )
    return (
        f"Four images, a histogram and an axis. Test image {state.number + 1} of {TITLES[state.spec.dataset]} and the"
        f" same perturbed by the attack with size {state.size:.2g}; the reconstructions of both by the VAE with beta"
        f" {state.spec.beta:g} and tau {state.spec.tau:g}. {SAMPLES} sampled distances D, from"
        f" {state.moved.min():.2f} to {state.moved.max():.2f} with the perturbation and from {state.clean.min():.2f}"
        f" to {state.clean.max():.2f} without; r is {state.r:.3g}, and {state.probability:.0%} lie within it, where"
        f" there were {np.mean(state.clean <= state.r):.0%} without. Below, on an axis of sizes: {listed}."
    )


def position(size: np.ndarray | float) -> np.ndarray:
    """Return the place of a size on the axis, from 0 to 1."""
    linear_below, last = SIZES
    return np.log1p(np.asarray(size) / linear_below) / np.log1p(last / linear_below)


def size_at(position: np.ndarray | float) -> np.ndarray:
    """Return the size at a place on the axis: the inverse of :func:`position`."""
    linear_below, last = SIZES
    return linear_below * np.expm1(np.asarray(position) * np.log1p(last / linear_below))


def draw_image(axes: Axes, image: Tensor, title: str) -> None:
    """Draw one image with its title."""
    axes.imshow(image.reshape(28, 28), cmap="gray", vmin=0, vmax=1)
    axes.set_axis_off()
    axes.set_title(title, fontsize=9)


def draw_distances(axes: Axes, clean: np.ndarray, moved: np.ndarray, r: float) -> None:
    """Draw the distribution of D with and without the perturbation; r is an edge between two bins."""
    edges = np.linspace(0, 3 * r, 46).tolist()
    last = (edges[-1] + edges[-2]) / 2  # larger distances are counted in the last bin
    shown = np.minimum(moved, last)
    weights = np.full(len(moved), 1 / len(moved))
    parts = ((shown <= r, "C0", "", "$D \\leq r$"), (shown > r, "C3", "////", "$D > r$"))
    for part, colour, hatch, label in parts:
        axes.hist(
            shown[part], edges, weights=weights[part], color=colour, alpha=0.75, hatch=hatch, edgecolor="white",
            label=label,
        )  # fmt: skip
    axes.hist(
        np.minimum(clean, last), edges, weights=weights, histtype="step", color="0.3", label="no perturbation"
    )  # fmt: skip
    axes.margins(y=0.15)  # room for the label of the line
    axes.axvline(r, color="black", linestyle="--")
    axes.annotate(
        f"r = {r:.3g}", (r, 1), xycoords=("data", "axes fraction"), xytext=(4, -10), textcoords="offset points"
    )
    axes.set(xlabel="distance $D(x, \\delta)$ (pixel values, 2-norm)", ylabel="share of samples", xlim=(0, 3 * r))
    axes.legend(loc="upper right", fontsize=9)


def draw_bounds(axes: Axes, sizes: list[float], size: float) -> None:
    """Draw the bounds on the axis of sizes, one per row, and the size that is shown."""
    for row, (bound, value) in enumerate(zip(BOUNDS, sizes, strict=True)):
        axes.plot(value, -row, bound.marker, color="0.2", markersize=8, clip_on=False)
        left = position(value) > 0.5
        axes.annotate(
            f"{bound.name}: {value:.2g} ({bound.kind})", (value, -row), xytext=(-8 if left else 8, 0),
            textcoords="offset points", va="center", ha="right" if left else "left", fontsize=9,
            bbox={"color": "white", "pad": 1},
        )  # fmt: skip
    axes.axvline(size, color="black", linestyle="--", linewidth=1, zorder=0)
    axes.set_xscale("function", functions=(position, size_at))
    ticks = [0, 0.01, 0.1, 1, 10]
    axes.set(
        xlim=(0, SIZES[1]), ylim=(-len(BOUNDS) + 0.4, 0.6), yticks=[], xticks=ticks,
        xlabel="size of the perturbation, $\\|\\delta\\|_2$ (dashed: shown above)",
    )  # fmt: skip
    axes.set_xticklabels([f"{tick:g}" for tick in ticks])
    axes.spines["left"].set_visible(False)
