"""Figures on the page: how they are shown, their alternative text, and grids of images."""

from __future__ import annotations

import base64
import io

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from conftest import uniform

from vaerobust.page import figures
from vaerobust.page.figures import image_grid, set_style, show

matplotlib.use("Agg")


@pytest.fixture
def shown(monkeypatch):
    """What was put on the page: (data, metadata) of each display."""
    found = []

    def display(data, *, raw, metadata):
        assert raw
        found.append((data, metadata))

    monkeypatch.setattr(figures, "display", display)
    return found


@pytest.fixture
def figure():
    with matplotlib.rc_context():
        set_style()
        figure, axes = plt.subplots(figsize=(2, 1))
        axes.plot([0, 1], [1, 0])
        yield figure
        plt.close(figure)


def test_lines_are_shown_as_vector_graphics_with_alt_text(shown, figure):
    show(figure, "A line falls from 1 to 0.")
    ((data, metadata),) = shown
    assert list(data) == list(metadata) == ["image/svg+xml"]
    assert "<svg" in data["image/svg+xml"]
    assert metadata["image/svg+xml"] == {"alt": "A line falls from 1 to 0.", "classes": "lineart"}
    assert not plt.fignum_exists(figure.number)


def test_images_are_shown_as_bitmaps_on_white_with_alt_text(shown, figure):
    show(figure, "A line falls.", bitmap=True)
    ((data, metadata),) = shown
    assert list(data) == list(metadata) == ["image/png"]
    assert metadata["image/png"] == {"alt": "A line falls.", "classes": "bitmap"}
    picture = plt.imread(io.BytesIO(base64.b64decode(data["image/png"])))
    assert picture[0, 0].tolist() == [1.0, 1.0, 1.0, 1.0]
    assert not plt.fignum_exists(figure.number)


@pytest.mark.parametrize("width", [3.0, 6.5, 10.0])
def test_no_text_is_below_seven_points_in_print(shown, width):
    with matplotlib.rc_context():
        set_style()
        figure, axes = plt.subplots(figsize=(width, 3))
        axes.plot([0, 1], [1, 0], label="falls")
        axes.legend(fontsize=4)
        axes.set_title("small", fontsize=5)
        axes.tick_params(labelsize=3)
        figure.canvas.draw()
        show(figure, "A line falls.")
    scale = min(1, figures.PRINT_WIDTH / width)
    sizes = [text.get_fontsize() for text in figure.findobj(matplotlib.text.Text)]
    assert scale * min(sizes) >= figures.SMALLEST_PRINT - 1e-9


def test_colours_of_an_ordered_quantity_grow_lighter():
    colours = figures.sequence(6)
    lightness = [sum(share * part for share, part in zip((0.2, 0.7, 0.1), colour, strict=True)) for colour in colours]
    assert (np.diff(lightness) > 0).all()
    with pytest.raises(ValueError, match="n must be"):
        figures.sequence(0)


def test_a_legend_beside_hides_nothing(figure):
    (axes,) = figure.axes
    axes.lines[0].set_label("falls")
    figures.legend_beside(axes, "line")
    figure.canvas.draw()
    legend = axes.get_legend().get_window_extent()
    assert legend.x0 >= axes.get_window_extent().x1


def test_an_equal_figure_gives_equal_bytes(shown):
    with matplotlib.rc_context():
        set_style()
        for _ in range(2):
            figure, axes = plt.subplots()
            axes.plot([0, 1], [1, 0])
            show(figure, "A line falls.")
    assert shown[0] == shown[1]
    assert "<dc:date>" not in shown[0][0]["image/svg+xml"]


@pytest.mark.parametrize("alt", ["", "  \n"])
def test_an_empty_alt_text_is_refused(alt, shown, figure):
    with pytest.raises(ValueError, match="alt must say what the figure shows"):
        show(figure, alt)
    assert shown == []


def test_a_grid_shows_each_image_as_it_is():
    rows = {"original": uniform(3, 784), "": uniform(3, 784, seed=1)}
    figure = image_grid(rows, titles=["a", "b", "c"])
    axes = np.array(figure.axes).reshape(2, 3)
    for i, row in enumerate(rows.values()):
        for j in range(3):
            (picture,) = axes[i, j].images
            assert np.array_equal(picture.get_array(), row[j].reshape(28, 28).numpy())
            assert picture.get_clim() == (0, 1)
    assert [axis.get_ylabel() for axis in axes[:, 0]] == ["original", ""]
    assert [axis.get_title() for axis in axes[0]] == ["a", "b", "c"]
    plt.close(figure)


def test_a_grid_of_other_sizes():
    figure = image_grid([uniform(2, 9)], side=3, scale=0.5)
    assert len(figure.axes) == 2
    assert figure.get_size_inches().tolist() == pytest.approx([0.9, 0.45])
    plt.close(figure)


@pytest.mark.parametrize(
    ("rows", "options", "error", "message"),
    [
        ([], {}, ValueError, "rows must hold images, but is empty"),
        ({}, {}, ValueError, "rows must hold images, but is empty"),
        ([uniform(2, 784), uniform(3, 784)], {}, ValueError, r"rows must be equally long, but have \[2, 3\] images"),
        ([uniform(2, 783)], {}, ValueError, r"rows must have shape \(n, 784\).*\(2, 783\)"),
        ({"noisy": uniform(784)}, {}, ValueError, r"noisy must have shape \(n, 784\).*\(784,\)"),
        ([uniform(2, 784) * torch.nan], {}, ValueError, "rows must be finite, but holds 1568 NaN"),
        ([np.zeros((2, 784))], {}, TypeError, "rows must be a tensor .* but is ndarray"),
        ([uniform(2, 784)], {"titles": ["a"]}, ValueError, "titles must be one for each of the 2 columns, but are 1"),
    ],
)  # fmt: skip
def test_what_is_no_grid_is_named_and_leaves_no_figure(rows, options, error, message):
    before = plt.get_fignums()
    with pytest.raises(error, match=message):
        image_grid(rows, **options)
    assert plt.get_fignums() == before
