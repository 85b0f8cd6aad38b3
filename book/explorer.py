"""What the live explorer shows: models, images and bounds in a form that a browser reads, and a picture for the rest.

``write`` fills a folder: ``index.json`` has the images and the bounds on their margins, ``NAME.bin`` a model, and
``figure.png`` the same as the page for one image and one model. A model is in if its margins have been measured from
both sides (``python -m vaerobust study``), and so are the images whose perturbations were kept.

Weights stay in half precision, as they ship: the browser's model is then the package's own. Eight bits with a scale
for each row would halve a file's 2.3 MB, but moves the probability of r-robustness by up to 13 percentage points at
sizes where it is 1/2; sixteen bits of any other kind are no smaller than these.
"""

from __future__ import annotations

import base64
import inspect
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vaerobust.certify.both_sides import sandwich
from vaerobust.distance import distances, probability_of_robustness
from vaerobust.page import figures
from vaerobust.study import summaries
from vaerobust.zoo import data
from vaerobust.zoo.protocol import GRID, Spec
from vaerobust.zoo.weights import Trained, pretrained

SIZES = (1e-3, 64.0)
"""The axis of sizes: linear far below the first, logarithmic far above it, up to the last, where searches end."""
CONFIDENCE = 0.95
"""Of the intervals of P(D <= r)."""
BOUNDS = {
    "theorem 1": ("Theorem 1", "first-order bound", "^"),
    "certified": ("certified", "lower bound", "s"),
    "attack": ("attack", "upper bound", "D"),
    "random": ("random-direction radius", "no bound", "o"),
}
"""By column of a summary: where the number comes from, what kind of number it is, and its marker."""
RADII = ("own", "fixed")
CLASSES = {
    "mnist": [f"digit {digit}" for digit in range(10)],
    "fashion-mnist": [
        "T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
    ],
}  # fmt: skip
TITLES = {"mnist": "MNIST", "fashion-mnist": "fashion-MNIST"}
START = Spec("mnist", 10.0)
"""The model of the picture, with which the explorer starts; the first if it is not there."""
START_IMAGE = 1
START_RADIUS = "fixed"
PICTURE_SAMPLES = 400


@dataclass(frozen=True)
class Exhibit:
    """A model of the explorer.

    Attributes
    ----------
    spec : Spec
    bounds : dict
        By 'own' and 'fixed', columns with a number an image; see :func:`vaerobust.certify.both_sides.sandwich`.
    deltas : dict of Tensor, each shape (kept, d_x)
        The attacks' perturbations.
    """

    spec: Spec
    bounds: dict[str, dict[str, list[float]]]
    deltas: dict[str, Tensor]

    @property
    def kept(self) -> int:
        """How many images there are perturbations of."""
        return len(self.deltas["own"])

    @cached_property
    def trained(self) -> Trained:
        """The model and its manifest."""
        return pretrained(self.spec.dataset, self.spec.beta, self.spec.tau)


def exhibits(folder: Path = summaries.FOLDER) -> list[Exhibit]:
    """Return the models of the paper whose margins have been measured from both sides, in the paper's order.

    Raises
    ------
    ValueError
        If a summary is corrupt, or was measured on other weights than those that ship.
    """
    paths = {spec: summaries.path_of(spec, "sandwich", folder=folder) for spec in GRID}
    return [exhibit(spec, path) for spec, path in paths.items() if path.exists()]


def exhibit(spec: Spec, path: Path) -> Exhibit:
    """Read one summary and the perturbations beside it."""
    measured = summaries.summary(spec, "sandwich", folder=path.parent)
    try:
        deltas = load_file(summaries.deltas_path(path))
        found = Exhibit(spec, {which: measured[which] for which in RADII}, {which: deltas[which] for which in RADII})
    except (OSError, SafetensorError, KeyError) as error:
        raise ValueError(f"perturbations or columns of {path} are missing or corrupt: {error}") from error
    if found.trained.manifest["weights_sha256"] != measured["weights_sha256"]:
        raise ValueError(f"{path} was measured on other weights than those that ship: measure it anew")
    return found


def write(out: Path, folder: Path = summaries.FOLDER) -> None:
    """Write everything into a folder, which is made.

    Parameters
    ----------
    out : path
    folder : path
        Of the summaries.

    Raises
    ------
    ValueError
        If there is no model to show, or a summary is corrupt.
    """
    shown = exhibits(folder)
    if not shown:
        raise ValueError(f"no margins from both sides in {folder}: run python -m vaerobust study --only sandwich")
    out.mkdir(parents=True, exist_ok=True)
    kept = min(exhibit.kept for exhibit in shown)
    models = []
    for exhibit in shown:
        content = model_bytes(exhibit, kept)
        (out / f"{exhibit.spec.name}.bin").write_bytes(content)
        models.append(model_entry(exhibit, kept, content))
    datasets = {name: data.load(name).first(kept) for name in data.DATASETS}
    example = next((exhibit for exhibit in shown if exhibit.spec == START), shown[0])
    number = min(START_IMAGE, kept - 1)
    figure, alt = picture(example, datasets[example.spec.dataset].pixels, number)
    figure.savefig(out / "figure.png", dpi=160, facecolor="white")
    plt.close(figure)
    index = {
        "alt": alt,
        "start": {"model": example.spec.name, "image": number, "radius": START_RADIUS},
        "kept": kept,
        "sizes": SIZES,
        "confidence": CONFIDENCE,
        "certified with confidence": inspect.signature(sandwich).parameters["confidence"].default,
        "bounds": {column: {"name": name, "kind": kind} for column, (name, kind, _) in BOUNDS.items()},
        "datasets": {name: dataset_entry(images) for name, images in datasets.items()},
        "tensors": tensors(shown[0], kept),
        "models": models,
    }
    (out / "index.json").write_text(json.dumps(index, allow_nan=False) + "\n")


def parts(exhibit: Exhibit, kept: int) -> Iterator[tuple[str, Tensor]]:
    """Yield names and tensors in the order of a model's file: weights, then the worst directions."""
    yield from exhibit.trained.vae.state_dict().items()
    for which in RADII:
        yield f"worst {which}", exhibit.deltas[which][:kept]


def tensors(exhibit: Exhibit, kept: int) -> list[list[str | int]]:
    """Return name and shape of each tensor of a model's file."""
    return [[name, *tensor.shape] for name, tensor in parts(exhibit, kept)]


def model_bytes(exhibit: Exhibit, kept: int) -> bytes:
    """Return the file of a model: half-precision numbers, little-endian, and nothing else."""
    return b"".join(tensor.numpy().astype("<f2").tobytes() for _, tensor in parts(exhibit, kept))


def model_entry(exhibit: Exhibit, kept: int, content: bytes) -> dict[str, Any]:
    """Return what the index says of a model: how to verify its file, and the bounds of each image."""
    spec = exhibit.spec
    columns = ("r", *BOUNDS, "confirmed", "censored", "random censored")
    return {
        "name": spec.name,
        "dataset": spec.dataset,
        "beta": spec.beta,
        "tau": spec.tau,
        "bytes": len(content),
        "crc32": zlib.crc32(content),
        "bounds": {which: {name: exhibit.bounds[which][name][:kept] for name in columns} for which in RADII},
    }


def dataset_entry(images: data.Images) -> dict[str, Any]:
    """Return what the index says of a data set: the images as grey values, in base 64, and what they show."""
    grey = (images.pixels * 255).round().to(torch.uint8).numpy().tobytes()
    return {
        "title": TITLES[images.dataset],
        "classes": [CLASSES[images.dataset][label] for label in images.labels],
        "grey": base64.b64encode(grey).decode(),
    }


def position(size: np.ndarray | float) -> np.ndarray:
    """Return where a size stands on the axis, from 0 to 1."""
    least, most = SIZES
    return np.log1p(np.asarray(size) / least) / np.log1p(most / least)


def size_at(position: np.ndarray | float) -> np.ndarray:
    """Return the size at a place on the axis: the inverse of :func:`position`."""
    least, most = SIZES
    return least * np.expm1(np.asarray(position) * np.log1p(most / least))


def picture(exhibit: Exhibit, images: Tensor, number: int) -> tuple[Figure, str]:
    """Draw what the explorer shows for one image under the worst perturbation known.

    Parameters
    ----------
    exhibit : Exhibit
    images : Tensor, shape (n, d_x)
        Those that there are perturbations of.
    number : int
        Which of them to show.

    Returns
    -------
    figure : Figure
    alt : str
        What it shows, from the same numbers.
    """
    vae, x = exhibit.trained.vae, images[number : number + 1]
    bounds = {name: column[number] for name, column in exhibit.bounds[START_RADIUS].items()}
    r, size = bounds["r"], bounds["attack"]
    direction = exhibit.deltas[START_RADIUS][number : number + 1].float()
    delta = size * direction / direction.norm().clamp(min=1e-12)
    generators = [torch.Generator().manual_seed(7) for _ in range(2)]  # one noise for both
    clean = distances(vae, x, samples=PICTURE_SAMPLES, seed=generators[0])
    moved = distances(vae, x, delta, samples=PICTURE_SAMPLES, seed=generators[1])
    judged = probability_of_robustness(moved, r, confidence=CONFIDENCE)
    probability, low, high = (float(value[0]) for value in (judged.probability, judged.low, judged.high))
    with torch.no_grad():
        drawn = {
            "x": x, "x + delta": x + delta,
            "before": vae.decode(vae.encode(x)[0]), "after": vae.decode(vae.encode(x + delta)[0]),
        }  # fmt: skip
    figures.set_style()
    figure, axes = plt.subplot_mosaic([list(drawn), ["D"] * 4, ["size"] * 4], figsize=(7, 6.4), height_ratios=[3, 4, 3])
    for name, image in drawn.items():
        draw_image(axes[name], image[0], name)
    draw_distances(axes["D"], clean[0].numpy(), moved[0].numpy(), r)
    axes["D"].set_title(
        f"P(D ≤ r) = {probability:.2f}, {CONFIDENCE:.0%} interval [{low:.2f}, {high:.2f}]", fontsize=10, loc="left"
    )
    draw_bounds(axes["size"], bounds, size)
    listed = "; ".join(f"{name} ({kind}), {bounds[column]:.2g}" for column, (name, kind, _) in BOUNDS.items())
    alt = (
        f"Four images, a histogram and an axis. Test image {number + 1} of {TITLES[exhibit.spec.dataset]} and the same"
        f" perturbed by the attack with size {size:.2g}; the reconstructions of both by the VAE with beta"
        f" {exhibit.spec.beta:g} and tau {exhibit.spec.tau:g}. {PICTURE_SAMPLES} sampled distances D, from"
        f" {float(moved.min()):.2f} to {float(moved.max()):.2f} with the perturbation and from {float(clean.min()):.2f}"
        f" to {float(clean.max()):.2f} without; r is {r:.3g}, and {probability:.0%} lie within it, where there were"
        f" {float((clean <= r).float().mean()):.0%} without. Below, on an axis of sizes: {listed}."
    )
    return figure, alt


TITLES_OF_IMAGES = {
    "x": "input $x$",
    "x + delta": r"perturbed, $x + \delta$",
    "before": r"reconstruction, $g(\mu(x))$",
    "after": r"perturbed, $g(\mu(x + \delta))$",
}


def draw_image(axes: Axes, image: Tensor, name: str) -> None:
    """Draw one image with its title."""
    axes.imshow(image.reshape(28, 28), cmap="gray", vmin=0, vmax=1)
    axes.set_axis_off()
    axes.set_title(TITLES_OF_IMAGES[name], fontsize=9)


def draw_distances(axes: Axes, clean: np.ndarray, moved: np.ndarray, r: float) -> None:
    """Draw the distribution of D with and without the perturbation; r lies between two bins."""
    edges = np.linspace(0, 3 * r, 46).tolist()
    last = (edges[-1] + edges[-2]) / 2
    shown = np.minimum(moved, last)  # what lies beyond is in the last bin
    weights = np.full(len(moved), 1 / len(moved))
    (inside, outside), styles = (shown <= r, shown > r), (("C0", ""), ("C3", "////"))
    for part, (colour, hatch), label in zip((inside, outside), styles, ("$D \\leq r$", "$D > r$"), strict=True):
        axes.hist(
            shown[part], edges, weights=weights[part], color=colour, alpha=0.75, hatch=hatch, edgecolor="white",
            label=label,
        )  # fmt: skip
    axes.hist(
        np.minimum(clean, last),
        edges,
        weights=weights,
        histtype="step",
        color="0.3",
        label="no perturbation",
    )
    axes.margins(y=0.15)  # room for the name of the line
    axes.axvline(r, color="black", linestyle="--")
    axes.annotate(
        f"r = {r:.3g}", (r, 1), xycoords=("data", "axes fraction"), xytext=(4, -10), textcoords="offset points"
    )
    axes.set(xlabel="distance $D(x, \\delta)$ (pixel values, 2-norm)", ylabel="share of samples", xlim=(0, 3 * r))
    axes.legend(loc="upper right", fontsize=9)


def draw_bounds(axes: Axes, bounds: dict[str, float], size: float) -> None:
    """Draw the bounds on the axis of sizes, one a row, and the size that is shown."""
    for row, (column, (name, kind, marker)) in enumerate(BOUNDS.items()):
        value = bounds[column]
        axes.plot(value, -row, marker, color="0.2", markersize=8, clip_on=False)
        label = f"{name}: {value:.2g} ({kind})"
        left = position(value) > 0.5
        axes.annotate(
            label, (value, -row), xytext=(-8 if left else 8, 0), textcoords="offset points", va="center",
            ha="right" if left else "left", fontsize=9, bbox={"color": "white", "pad": 1},
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
