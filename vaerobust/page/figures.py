"""Figures of the book: one look, grids of images, and pictures with alt text on the page.

:func:`show` puts a figure into a notebook's output as vector graphics (lines) or as a sharp bitmap (images), with the
alt text and the theme's class that the book's reader of notebooks turns into HTML.
"""

from __future__ import annotations

from base64 import b64encode
from io import BytesIO

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from IPython.display import display
from matplotlib.axis import Axis, XAxis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from torch import Tensor

from vaerobust import checks

PALETTE = sns.color_palette("colorblind")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<")
"""Markers in the order of the models: colour is never the only sign."""


def set_style() -> None:
    """Set matplotlib's defaults for the book: transparent ground, thin frame, colour-blind safe colours."""
    sns.set_theme(context="notebook", style="ticks", palette=PALETTE, font_scale=0.95)
    plt.rcParams.update(
        {
            "figure.facecolor": "none",
            "axes.facecolor": "none",
            "legend.frameon": False,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "figure.constrained_layout.use": True,
            "svg.hashsalt": "vaerobust",  # the same figure gives the same file
            "svg.fonttype": "path",
        }
    )


def log_scale(*axes: Axis) -> None:
    """Make axes logarithmic, labelled 1, 3, 10, 30 ... in plain numbers rather than powers that overlap."""
    for axis in axes:
        axis.axes.set(**{"xscale" if isinstance(axis, XAxis) else "yscale": "log"})
        axis.set_major_locator(LogLocator(subs=(1, 3)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(NullFormatter())


def show(figure: Figure, alt: str, *, bitmap: bool = False) -> None:
    """Put a figure on the page and close it.

    Parameters
    ----------
    figure : Figure
    alt : str
        One sentence for who cannot see it: kind, axes, direction, extremes; numbers taken from the plotted data.
    bitmap : bool
        For grids of images and heat maps: a PNG on white ground, which both themes leave as it is. Otherwise
        an SVG whose black turns white in the dark theme.

    Raises
    ------
    ValueError
        If the alt text is empty.
    """
    if not alt.strip():
        raise ValueError("alt must say what the figure shows, but is empty")
    content = BytesIO()
    if bitmap:
        figure.savefig(content, format="png", dpi=160, facecolor="white")
        kind, look, data = "image/png", "bitmap", b64encode(content.getvalue()).decode()
    else:
        figure.savefig(content, format="svg", metadata={"Date": None})
        kind, look, data = "image/svg+xml", "lineart", content.getvalue().decode()
    plt.close(figure)
    display({kind: data}, raw=True, metadata={kind: {"alt": alt, "classes": look}})


def image_grid(
    rows: list[Tensor] | dict[str, Tensor], *, titles: list[str] | None = None, scale: float = 1.0, side: int = 28
) -> Figure:
    """Draw images in a grid, one list element a row, labelled at the left where ``rows`` is a dict.

    Parameters
    ----------
    rows : list or dict of Tensor, each shape (columns, side * side)
        Images; shown with black 0 and white 1, clipped.
    titles : list of str, optional
        Over the columns.
    scale : float
        Inches of one image, times 0.9.
    side : int
        Pixels along a side.

    Returns
    -------
    Figure

    Raises
    ------
    ValueError
        If there are no rows, they differ in length or are not images, or the titles do not fit them.
    """
    if not rows:
        raise ValueError("rows must hold images, but is empty")
    labels = list(rows) if isinstance(rows, dict) else [""] * len(rows)
    images = list(rows.values()) if isinstance(rows, dict) else rows
    for label, row in zip(labels, images, strict=True):
        checks.vectors(label or "rows", row, side * side)
    columns = len(images[0])
    if any(len(row) != columns for row in images):
        raise ValueError(f"rows must be equally long, but have {[len(row) for row in images]} images")
    if titles is not None and len(titles) != columns:
        raise ValueError(f"titles must be one for each of the {columns} columns, but are {len(titles)}")
    figure, axes = plt.subplots(
        len(images),
        columns,
        squeeze=False,
        figsize=(0.9 * scale * columns + 1.1 * any(labels), 0.9 * scale * len(images)),
    )
    for i, row in enumerate(images):
        for j, image in enumerate(row):
            axes[i, j].imshow(np.asarray(image.cpu()).reshape(side, side), cmap="gray", vmin=0, vmax=1)
            axes[i, j].set(xticks=[], yticks=[])
            axes[i, j].spines[:].set_visible(False)
        axes[i, 0].set_ylabel(labels[i], rotation=0, ha="right", va="center", fontsize=9)
    for j, title in enumerate(titles or []):
        axes[0, j].set_title(title, fontsize=9)
    return figure
