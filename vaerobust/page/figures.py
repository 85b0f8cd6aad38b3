"""Figures of the book: one look for all, grids of images, and pictures with alternative text.

A notebook calls :func:`set_style` once. It draws with matplotlib, or with :func:`image_grid`, and hands each finished
figure to :func:`show`. That function puts the figure into the cell's output, as vector graphics (lines) or as a bitmap
(images), together with its alternative text. ``book/_ext/executed_notebooks.py`` carries both to the page.

Captions and names of figures are not here: each stands in the header of the notebook cell that draws the figure.
"""

from __future__ import annotations

from base64 import b64encode
from io import BytesIO

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from IPython.display import display
from matplotlib.axes import Axes
from matplotlib.axis import Axis, XAxis
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import LogLocator, NullFormatter
from torch import Tensor

from vaerobust import checks

PALETTE = sns.color_palette("colorblind")
"""Colours that colour-blind readers can tell apart."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<")
"""One marker per model, in the order of the models, so that colour is never the only sign."""
PRINT_WIDTH = 6.5
"""Width of the text of a printed page, in inches; a wider figure is scaled down to it."""
SMALLEST_PRINT = 7.0
"""Least size of any text in a figure on that page, in points."""


def sequence(n: int) -> list[tuple[float, float, float]]:
    """Return colours for the values of an ordered quantity, such as beta: from dark blue to green.

    Parameters
    ----------
    n : int
        Number of values, at least 1.

    Returns
    -------
    list of tuple of float
        Red, green and blue, in [0, 1], one colour per value. The lightness grows from the first to the last, so that
        the order is seen without the hue too.

    Raises
    ------
    ValueError
        If ``n`` is not a whole number above 0.
    """
    checks.count("n", n)
    return [plt.get_cmap("viridis")(place)[:3] for place in np.linspace(0, 0.75, n)]


def set_style() -> None:
    """Set matplotlib's defaults for the book: transparent background, thin frame, colours of :data:`PALETTE`."""
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
    """Make axes logarithmic, with the labels 1, 3, 10, 30 and so on.

    Parameters
    ----------
    *axes : Axis
        Such as ``ax.xaxis``. The labels are plain numbers; matplotlib's powers of ten would overlap.
    """
    for axis in axes:
        axis.axes.set(**{"xscale" if isinstance(axis, XAxis) else "yscale": "log"})
        axis.set_major_locator(LogLocator(subs=(1, 3)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(NullFormatter())


def legend_beside(axes: Axes, title: str = "") -> None:
    """Give axes a legend to their right, where it hides nothing.

    Parameters
    ----------
    axes : Axes
        The axes whose lines or marks are named.
    title : str
        What the entries are values of.
    """
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), title=title)


def make_legible(figure: Figure) -> None:
    """Enlarge each text of a figure that would be smaller than :data:`SMALLEST_PRINT` at :data:`PRINT_WIDTH`."""
    least = SMALLEST_PRINT * max(1.0, figure.get_figwidth() / PRINT_WIDTH)
    for text in figure.findobj(Text):
        text.set_fontsize(max(text.get_fontsize(), least))


def show(figure: Figure, alt: str, *, bitmap: bool = False) -> None:
    """Put a figure on the page and close it.

    Parameters
    ----------
    figure : Figure
        Text that would be smaller than 7 points in print is enlarged.
    alt : str
        Alternative text: one sentence for readers who cannot see the figure. It names the kind of figure, the axes, the
        direction and the extremes, with numbers taken from the plotted data.
    bitmap : bool
        True for grids of images and heat maps: the figure becomes a PNG on a white background, which looks the same
        in both themes of the book. Otherwise it becomes an SVG whose black lines turn white in the dark theme.

    Raises
    ------
    ValueError
        If the alternative text is empty.
    """
    if not alt.strip():
        raise ValueError("alt must say what the figure shows, but is empty")
    make_legible(figure)
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
    """Draw images in a grid: one row of the grid per element of ``rows``.

    Parameters
    ----------
    rows : list or dict of Tensor, each shape (columns, side * side)
        Grey images. A pixel of 0 is drawn black and one of 1 white; values beyond are clipped. The keys of a dict are
        written to the left of its rows.
    titles : list of str, optional
        One title per column.
    scale : float
        Size of an image: 0.9 inches times this.
    side : int
        Pixels along each side of an image.

    Returns
    -------
    Figure

    Raises
    ------
    TypeError
        If a row is not a tensor.
    ValueError
        If there are no rows, if they differ in length or are not images, or if there is not one title per column.
    """
    labels = list(rows) if isinstance(rows, dict) else [""] * len(rows)
    images = list(rows.values()) if isinstance(rows, dict) else rows
    check_grid(labels, images, titles, side)
    columns = len(images[0])
    height, width = 0.9 * scale * len(images), 0.9 * scale * columns + 1.1 * any(labels)
    figure, axes = plt.subplots(len(images), columns, squeeze=False, figsize=(width, height))
    for label, row, row_axes in zip(labels, images, axes, strict=True):
        for image, ax in zip(row, row_axes, strict=True):
            ax.imshow(np.asarray(image.cpu()).reshape(side, side), cmap="gray", vmin=0, vmax=1)
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
        row_axes[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9)
    for ax, title in zip(axes[0], titles or [""] * columns, strict=True):
        ax.set_title(title, fontsize=9)
    return figure


def check_grid(labels: list[str], images: list[Tensor], titles: list[str] | None, side: int) -> None:
    """Raise the errors of :func:`image_grid`, before anything is drawn."""
    if not images:
        raise ValueError("rows must hold images, but is empty")
    for label, row in zip(labels, images, strict=True):
        checks.vectors(label or "rows", row, side * side)
    columns = len(images[0])
    if any(len(row) != columns for row in images):
        raise ValueError(f"rows must be equally long, but have {[len(row) for row in images]} images")
    if titles is not None and len(titles) != columns:
        raise ValueError(f"titles must be one for each of the {columns} columns, but are {len(titles)}")
