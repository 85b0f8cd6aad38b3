"""The files that the live explorer reads: models, images and bounds in a form for a browser, and a picture.

Start at :func:`write`, which fills a folder. ``index.json`` is an :class:`Index`: images, and the bounds on their
margins by model. ``NAME.bin`` has the weights of a model and its worst known perturbations. ``figure.png`` shows what
the page shows for one image and one model, to readers without JavaScript (:mod:`explorer_picture`).

A model is included if its margins have been measured from both sides (``vaerobust study``). The images are those whose
perturbations were stored by this measurement.

Weights stay in half precision, as they ship, so the browser computes with exactly the package's weights. Eight bits
with a scale for each row would halve a file's 2.3 MB. But they move the probability of r-robustness by up to 13
percentage points where it is 1/2, and no format of sixteen bits is smaller than the present one.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import explorer_picture
import matplotlib.pyplot as plt
import torch
from explorer_picture import BOUNDS, INTERVAL_CONFIDENCE, SIZES
from torch import Tensor

from vaerobust.certify.both_sides import BothSides
from vaerobust.page.words import DATASETS as TITLES
from vaerobust.study import summaries
from vaerobust.study.records import BothSidesSummary
from vaerobust.zoo import data
from vaerobust.zoo.protocol import GRID, Spec
from vaerobust.zoo.weights import Trained, pretrained

CHOICES_OF_R = ("own", "fixed")
"""The page offers r as the 0.9-quantile of the image's own D(x), or as 4: the two parts of a summary of both sides."""
CLASSES = {
    "mnist": [f"digit {digit}" for digit in range(10)],
    "fashion-mnist": [
        "T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
    ],
}  # fmt: skip
"""What the classes of a data set show."""
START_SPEC = Spec("mnist", 10.0)
"""The model with which the explorer starts, if it is included; the first model otherwise."""
START_IMAGE = 1
START_R = "fixed"


@dataclass(frozen=True)
class Start:
    """The state in which the explorer starts, and which the picture shows.

    Attributes
    ----------
    model : str
        Name of the model.
    image : int
        Index of the test image.
    r : {'own', 'fixed'}
        Choice of r.
    """

    model: str
    image: int
    r: str


@dataclass(frozen=True)
class BoundEntry:
    """A kind of bound that the page shows.

    Attributes
    ----------
    column : str
        The field of :class:`ImageBounds` that has its numbers.
    name, kind : str
        Where the number comes from, and what kind of number it is.
    symbol : str
        The character that marks it on the axis.
    censored : str
        The field of :class:`ImageBounds` that is true where the number is only the limit of the search. It is empty if
        the search for this bound has no limit.
    """

    column: str
    name: str
    kind: str
    symbol: str
    censored: str


@dataclass(frozen=True)
class ImageBounds:
    """The bounds of a model, one number per image: fields of :class:`vaerobust.certify.both_sides.BothSides`.

    Attributes
    ----------
    r, theorem_1, certified, attack, random_direction : list of float
    confirmed, censored, random_direction_censored : list of bool
    """

    r: list[float]
    theorem_1: list[float]
    certified: list[float]
    attack: list[float]
    random_direction: list[float]
    confirmed: list[bool]
    censored: list[bool]
    random_direction_censored: list[bool]


@dataclass(frozen=True)
class ModelEntry:
    """What the index says of a model.

    Attributes
    ----------
    name, dataset : str
    beta, tau : float
    bytes, crc32 : int
        Length and checksum of its file.
    confidence : float
        Confidence of each certificate and each confirmed attack, for each image by itself.
    own, fixed : ImageBounds
        The bounds at each choice of r.
    """

    name: str
    dataset: str
    beta: float
    tau: float
    bytes: int
    crc32: int
    confidence: float
    own: ImageBounds
    fixed: ImageBounds


@dataclass(frozen=True)
class DatasetEntry:
    """What the index says of a data set.

    Attributes
    ----------
    title : str
    classes : list of str
        What each image shows.
    grey : str
        The images as grey values 0 to 255, in base 64.
    """

    title: str
    classes: list[str]
    grey: str


@dataclass(frozen=True)
class Index:
    """The content of ``index.json``.

    Attributes
    ----------
    alt : str
        Alternative text of the picture.
    start : Start
    images : int
        Number of images of each data set.
    sizes : tuple of float
        The axis of sizes; see :data:`explorer_picture.SIZES`.
    interval_confidence : float
        Confidence of the interval of P(D <= r) that the page computes from its samples.
    bounds : list of BoundEntry
        In the order in which the page shows them.
    datasets : dict of DatasetEntry
        The data sets by name.
    tensors : list
        Name and shape of each tensor of a model's file, in order.
    models : list of ModelEntry
    """

    alt: str
    start: Start
    images: int
    sizes: tuple[float, float]
    interval_confidence: float
    bounds: list[BoundEntry]
    datasets: dict[str, DatasetEntry]
    tensors: list[list[str | int]]
    models: list[ModelEntry]


@dataclass(frozen=True)
class Exhibit:
    """A model of the explorer, with its summary of both sides.

    Attributes
    ----------
    spec : Spec
    summary : BothSidesSummary
    """

    spec: Spec
    summary: BothSidesSummary

    @property
    def images(self) -> int:
        """Number of images whose perturbations are stored."""
        return len(self.summary.own.delta)

    @cached_property
    def trained(self) -> Trained:
        """The model that ships."""
        return pretrained(self.spec.dataset, self.spec.beta, self.spec.tau)


def exhibits(folder: Path = summaries.FOLDER) -> list[Exhibit]:
    """Return the models of the paper whose margins have been measured from both sides, in the paper's order.

    Raises
    ------
    ValueError
        If a summary is corrupt, or was measured on other weights than those that ship.
    """
    found = []
    for spec in GRID:
        path = summaries.path_of(spec, BothSidesSummary, folder=folder)
        if path.exists():
            exhibit = Exhibit(spec, summaries.load(spec, BothSidesSummary, folder=folder))
            if exhibit.trained.manifest.weights_sha256 != exhibit.summary.provenance.weights_sha256:
                raise ValueError(f"{path} was measured on other weights than those that ship: measure it anew")
            found.append(exhibit)
    return found


def write(out: Path, folder: Path = summaries.FOLDER) -> None:
    """Write all files of the explorer into a folder, which is created if it is missing.

    Parameters
    ----------
    out : path
    folder : path
        Where the summaries are.

    Raises
    ------
    ValueError
        If there is no model to show, or a summary is corrupt.
    """
    shown = exhibits(folder)
    if not shown:
        raise ValueError(f"no margins from both sides in {folder}: run vaerobust study --only both_sides")
    out.mkdir(parents=True, exist_ok=True)
    images = min(exhibit.images for exhibit in shown)
    models = []
    for exhibit in shown:
        content = model_bytes(exhibit, images)
        (out / f"{exhibit.spec.name}.bin").write_bytes(content)
        models.append(model_entry(exhibit, images, content))
    datasets = {name: data.load(name).first(images) for name in data.DATASETS}
    example = next((exhibit for exhibit in shown if exhibit.spec == START_SPEC), shown[0])
    start = Start(example.spec.name, min(START_IMAGE, images - 1), START_R)
    index = Index(
        alt=write_picture(out / "figure.png", example, datasets[example.spec.dataset].pixels, start),
        start=start,
        images=images,
        sizes=SIZES,
        interval_confidence=INTERVAL_CONFIDENCE,
        bounds=[BoundEntry(one.column, one.name, one.kind, one.symbol, one.censored) for one in BOUNDS],
        datasets={name: dataset_entry(some) for name, some in datasets.items()},
        tensors=[[name, *tensor.shape] for name, tensor in tensors_of(shown[0], images)],
        models=models,
    )
    (out / "index.json").write_text(json.dumps(asdict(index), allow_nan=False) + "\n")


def write_picture(path: Path, exhibit: Exhibit, images: Tensor, start: Start) -> str:
    """Draw the state in which the explorer starts; return the picture's alternative text."""
    state = explorer_picture.state(exhibit.spec, exhibit.trained.vae, images, part(exhibit, start.r), start.image)
    figure = explorer_picture.draw(state)
    figure.savefig(path, dpi=160, facecolor="white")
    plt.close(figure)
    return explorer_picture.alternative_text(state)


def part(exhibit: Exhibit, r: str) -> BothSides:
    """Return the bounds at one choice of r."""
    return {"own": exhibit.summary.own, "fixed": exhibit.summary.fixed}[r]


def tensors_of(exhibit: Exhibit, images: int) -> Iterator[tuple[str, Tensor]]:
    """Yield names and tensors in the order of a model's file: weights, then the worst known perturbations."""
    yield from exhibit.trained.vae.state_dict().items()
    for r in CHOICES_OF_R:
        yield f"worst_{r}", part(exhibit, r).delta[:images]


def model_bytes(exhibit: Exhibit, images: int) -> bytes:
    """Return the file of a model: half-precision numbers, little-endian, one tensor after the other."""
    return b"".join(tensor.numpy().astype("<f2").tobytes() for _, tensor in tensors_of(exhibit, images))


def model_entry(exhibit: Exhibit, images: int, content: bytes) -> ModelEntry:
    """Return what the index says of a model whose file has the given content."""
    spec = exhibit.spec
    own, fixed = (image_bounds(part(exhibit, r), images) for r in CHOICES_OF_R)
    return ModelEntry(
        spec.name, spec.dataset, spec.beta, spec.tau, len(content), zlib.crc32(content), exhibit.summary.confidence,
        own, fixed,
    )  # fmt: skip


def image_bounds(bounds: BothSides, images: int) -> ImageBounds:
    """Return the bounds of the first images."""
    return ImageBounds(
        r=bounds.r[:images].tolist(),
        theorem_1=bounds.theorem_1[:images].tolist(),
        certified=bounds.certified[:images].tolist(),
        attack=bounds.attack[:images].tolist(),
        random_direction=bounds.random_direction[:images].tolist(),
        confirmed=bounds.confirmed[:images].tolist(),
        censored=bounds.censored[:images].tolist(),
        random_direction_censored=bounds.random_direction_censored[:images].tolist(),
    )


def dataset_entry(images: data.Images) -> DatasetEntry:
    """Return what the index says of a data set."""
    grey = (images.pixels * 255).round().to(torch.uint8).numpy().tobytes()
    classes = [CLASSES[images.dataset][label] for label in images.labels]
    return DatasetEntry(TITLES[images.dataset], classes, base64.b64encode(grey).decode())
