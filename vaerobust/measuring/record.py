"""What a measurement found: a table with one row per image, its medians, and the answer in words.

:class:`Record` holds the numbers; :class:`vaerobust.measuring.report.Report` is the same with the files that keep them.
Start reading at :class:`Record`.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
from scipy import stats
from torch import Tensor

from vaerobust.measuring.images import Rows

if TYPE_CHECKING:
    import pandas as pd

ENTRIES = ("delta", "reconstruction", "attacked_reconstruction")
"""Tensors that hold one image per row; they are not columns of the table."""
DIGITS = 6
"""Significant digits of the numbers in the files."""
SURE = 0.95
"""Confidence of the intervals of medians over images."""


class Column(NamedTuple):
    """A column of the table: its name there, its name in words, and what it is."""

    name: str
    label: str
    kind: str
    meaning: str


MARGINS = (
    Column(
        "theorem_1",
        "Theorem 1",
        "first-order bound",
        "Lower bound of Camuto et al. (2021), without its higher-order terms.",
    ),
    Column("certified", "Certified", "guarantee", "No shorter perturbation breaks the reconstruction."),
    Column(
        "second_moment",
        "Second moment",
        "estimate",
        "Where the mean squared movement reaches r² in a linearised model.",
    ),
    Column("attack", "Attack", "upper bound", "The shortest perturbation found that breaks the reconstruction."),
    Column("random_direction", "Random direction", "comparison", "Where perturbations in random directions break it."),
)
"""The margins that a report shows, from below to above."""
COLUMNS = (
    "image", "r", "p_low", *(column.name for column in MARGINS), "attack_confirmed", "attack_censored",
    "random_direction_censored", "spectral", "whitened", "half_space", "decoder_aware", "error",
)  # fmt: skip
"""All columns of the table, in order."""


@dataclass(frozen=True)
class Run:
    """What was measured, and how.

    Attributes
    ----------
    name : str
        Of the model.
    settings : dict
        Of :class:`vaerobust.measuring.parts.Settings`.
    weights_sha256, images_sha256 : str
    conventions : dict
        What was said of a wrapped model.
    versions : dict
        Version by name of package.
    suspicions : tuple of str
        What looked like a mistake, where it was measured nevertheless.
    """

    name: str
    settings: dict[str, Any]
    weights_sha256: str
    images_sha256: str
    conventions: dict[str, Any]
    versions: dict[str, str]
    suspicions: tuple[str, ...] = ()

    def identity(self) -> dict[str, Any]:
        """Return what must be the same for two measurements to be the same."""
        names = ("settings", "weights_sha256", "images_sha256", "conventions", "versions")
        return json.loads(json.dumps({name: getattr(self, name) for name in names}))


@dataclass(frozen=True)
class Curve:
    """The least r under which some images are robust to perturbations of each size, from both sides.

    Attributes
    ----------
    radii : ndarray, shape (radii,)
        Norms R of perturbations.
    certified, broken : ndarray, shape (radii, k)
        A certified r that is large enough, and one that an attack breaks; see :mod:`vaerobust.certify.curves`.
    images : ndarray, shape (k,)
        Which images.
    """

    radii: np.ndarray
    certified: np.ndarray
    broken: np.ndarray
    images: np.ndarray


class Median(NamedTuple):
    """Median over images of one column.

    Attributes
    ----------
    value, least, most : float
        Median, smallest and largest value; NaN where nothing was measured.
    low, high : float
        Interval of the median of the population that the images were drawn from; infinite ends where they are too few.
    measured : int
        Images with a value.
    """

    value: float
    low: float
    high: float
    least: float
    most: float
    measured: int


@dataclass(frozen=True, eq=False)
class Record:
    """What was measured of a model at some images.

    Attributes
    ----------
    table : DataFrame
        One row per image, with the columns of :data:`COLUMNS`. In it, ``r`` is the distance that counts as robust;
        ``p_low`` the lower limit of P(D(x) <= r); ``theorem_1``, ``spectral`` and ``whitened`` are first-order bounds;
        ``half_space`` and ``certified`` are certified lower bounds on the margin; ``second_moment`` and
        ``decoder_aware`` estimates; ``attack`` is an upper bound where ``attack_confirmed``; ``random_direction`` is
        where random directions break r-robustness; and ``error`` is the distance from the image to its reconstruction.
        All of them are in input units. NaN stands where something could not be measured.
    missing : dict
        By column, why it could not be measured.
    run : Run
    images : Rows
    pictures : dict of ndarray, shape (n, d_x)
        The attack's perturbation ``delta``, the ``reconstruction`` of each image, and its ``attacked_reconstruction``.
    curve : Curve, optional
        Of a few images.
    """

    table: pd.DataFrame
    missing: dict[str, str]
    run: Run
    images: Rows
    pictures: dict[str, np.ndarray]
    curve: Curve | None

    @classmethod
    def of(
        cls, run: Run, images: Rows, found: dict[str, Tensor], missing: dict[str, str], curve: Curve | None
    ) -> Self:  # fmt: skip
        """Make a record of the tensors that were measured."""
        import pandas as pd  # takes half a second to import

        n = len(images.pixels)
        values = {name: found[name].numpy() for name in COLUMNS if name in found}
        columns = {"image": np.arange(n)} | {name: values.get(name, np.full(n, np.nan)) for name in COLUMNS[1:]}
        pictures = {name: found[name].float().numpy() for name in ENTRIES if name in found}
        on_cpu = Rows(images.pixels.detach().cpu().float(), images.shape)
        return cls(pd.DataFrame(columns), missing, run, on_cpu, pictures, curve)

    def median(self, column: str) -> Median:
        """Return the median of a column over images, with the interval of its population's median."""
        values = self.table[column].to_numpy(dtype=float)
        values = np.sort(values[~np.isnan(values)])
        if not len(values):
            return Median(math.nan, math.nan, math.nan, math.nan, math.nan, 0)
        low, high = median_interval(values)
        return Median(float(np.median(values)), low, high, float(values[0]), float(values[-1]), len(values))

    @property
    def headline(self) -> str:
        """The answer in one sentence or two."""
        n = len(self.table)
        images = "the image" if n == 1 else f"{n} images"
        middle = "" if n == 1 else " (median)"
        confidence = f"with confidence {100 * self.run.settings['confidence']:g} %" + ("" if n == 1 else " per image")
        certified, attack = self.median("certified"), self.median("attack")
        broken = f"an attack of norm {shown(attack.value)}{middle} breaks it"
        if not attack.measured:
            broken = "no attack could be made"
        elif self.table["attack_censored"].astype(float).mean() > 0.5:
            broken = f"no attack up to norm {shown(attack.most)} breaks it for most of them"
        if not certified.measured:
            broken = broken.replace("breaks it", "breaks the reconstruction", 1)
            return f"For {images}, {broken}. Nothing could be certified, so a shorter perturbation may break it too."
        if certified.value == 0:
            return f"For {images}, no perturbation could be ruled out (median certified margin 0); {broken}."
        return (
            f"For {images}, every perturbation shorter than {shown(certified.value)}{middle} leaves the reconstruction "
            f"robust, {confidence}; {broken}."
        )

    def to_json(self) -> str:
        """Return everything but the pictures as JSON; what is missing is null."""
        medians = {name: self.median(name)._asdict() for name in ("r", *(column.name for column in MARGINS))}
        content = {
            "name": self.run.name,
            "headline": self.headline,
            "confidence": self.run.settings["confidence"],
            **self.run.identity(),
            "suspicions": list(self.run.suspicions),
            "images": len(self.table),
            "shape": list(self.images.shape),
            "missing": self.missing,
            "medians": medians,
            "curve": None if self.curve is None else {k: v.tolist() for k, v in vars(self.curve).items()},
            "table": self.table.to_dict("records"),
        }
        return json.dumps(plain(content), indent=1, allow_nan=False) + "\n"

    def _repr_html_(self) -> str:
        """Show the table in a notebook."""
        return f"<p>{self.headline}</p>" + self.table._repr_html_()

    def __str__(self) -> str:
        lines = [self.headline, ""]
        for column in MARGINS:
            found = self.median(column.name)
            value = (
                f"median {shown(found.value)}" if found.measured else f"not measured: {self.missing.get(column.name)}"
            )
            lines.append(f"{column.label:17} {column.kind:18} {value}")
        return "\n".join(lines)


def median_interval(values: np.ndarray) -> tuple[float, float]:
    """Return order statistics that enclose the population's median with probability :data:`SURE` at least.

    The number of values below the median is binomial with probability 1/2, whatever the distribution.

    Parameters
    ----------
    values : ndarray, shape (n,)
        Ascending.
    """
    rank = int(stats.binom.ppf((1 - SURE) / 2, len(values), 0.5))
    if rank < 1:
        return -math.inf, math.inf
    return float(values[rank - 1]), float(values[len(values) - rank])


def shown(value: float) -> str:
    """Return a number as a reader wants it: two or three significant digits, without an exponent where that fits."""
    if not math.isfinite(value):
        return "∞" if value > 0 else "-"
    if value == 0:
        return "0"
    digits = 3 if abs(value) >= 1 else 2
    if abs(value) < 1e-4 or abs(value) >= 1e5:
        return f"{value:.{digits - 1}e}"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:.{places}f}"


def plain(value: Any) -> Any:
    """Return a value as what JSON knows, with numbers rounded; NaN becomes null, infinite numbers texts."""
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        if math.isnan(value):
            return None
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else str(value)
    return value
