"""Two models side by side on the same images: the ratios of their margins, with exact intervals.

Start reading at :func:`compare`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from vaerobust.measuring.record import MARGINS, median_interval, plain, shown
from vaerobust.measuring.report import Report
from vaerobust.zoo.files import write_atomically

if TYPE_CHECKING:
    import pandas as pd

    from vaerobust.measuring.figures import Figure


@dataclass(frozen=True)
class Pair:
    """One quantity of two models at the same images.

    Attributes
    ----------
    name, label : str
        Of the column.
    first, second : float
        Medians over the images at which both were measured.
    ratio : float
        Median of second / first, image by image.
    low, high : float
        Interval of the population's median ratio at 95 %; 0 and infinity where the images are too few.
    larger, count : int
        Images at which the second is larger, and images at which both were measured and differ.
    p_value : float
        Of the two-sided sign test that neither is larger more often.
    """

    name: str
    label: str
    first: float
    second: float
    ratio: float
    low: float
    high: float
    larger: int
    count: int
    p_value: float


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two reports on the same images.

    Attributes
    ----------
    first, second : Report
    rows : tuple of Pair
        One per quantity that both have.
    """

    first: Report
    second: Report
    rows: tuple[Pair, ...]

    @property
    def count(self) -> int:
        """Number of images."""
        return len(self.first.table)

    @property
    def table(self) -> pd.DataFrame:
        """The rows as a DataFrame, one row per quantity."""
        import pandas as pd  # takes half a second to import

        return pd.DataFrame([asdict(row) for row in self.rows])

    @property
    def headline(self) -> str:
        """The answer in one sentence."""
        known = {row.name: row for row in self.rows}
        row = known.get("attack") or known.get("certified")
        if row is None:
            return "The two models have no margin in common."
        one, other = self.first.run.name, self.second.run.name
        words = f"The {row.label.lower()} margin of {other} is {shown(row.ratio)} times that of {one} (median ratio"
        if row.low <= 0:
            return f"{words}); {row.count} images are too few to say more."
        ends = f"95 % interval {shown(row.low)} to {shown(row.high)})"
        sure = "." if row.low > 1 or row.high < 1 else ", so neither is shown to be more robust."
        return f"{words}, {ends}{sure}"

    @property
    def figure(self) -> Figure:
        """The ratios as a picture."""
        from vaerobust.measuring.figures import ratios  # Matplotlib takes a second to import

        rows = [(row.label, row.ratio, row.low, row.high) for row in self.rows if np.isfinite(row.ratio)]
        return ratios(rows, (self.first.run.name, self.second.run.name))

    def to_json(self) -> str:
        """Return the comparison as JSON."""
        sides = {side: getattr(self, side).run for side in ("first", "second")}
        content = {side: {"name": run.name, **run.identity()} for side, run in sides.items()}
        rows = [asdict(row) for row in self.rows]
        return json.dumps(plain({"headline": self.headline, **content, "rows": rows}), indent=1, allow_nan=False) + "\n"

    def save(self, folder: str | Path) -> Path:
        """Write comparison.csv, comparison.json and comparison.html into a folder, and return the page's path."""
        from vaerobust.measuring.html import comparison_page  # Matplotlib takes a second to import

        folder = Path(folder)
        write_atomically(folder / "comparison.csv", self.table.to_csv(index=False, float_format="%.6g").encode())
        write_atomically(folder / "comparison.json", self.to_json().encode())
        write_atomically(folder / "comparison.html", comparison_page(self).encode())
        return folder / "comparison.html"


def compare(first: Report, second: Report) -> Comparison:
    """Compare two models that were measured on the same images with the same settings.

    Parameters
    ----------
    first, second : Report
        What :func:`vaerobust.measuring.measure.measure` returned. Ratios are those of the second to the first.

    Returns
    -------
    Comparison

    Raises
    ------
    TypeError
        If one of them is no report.
    ValueError
        If images or settings differ.
    """
    for name, one in (("first", first), ("second", second)):
        if not isinstance(one, Report):
            raise TypeError(f"{name} must be a report of vaerobust.measure, but is {type(one).__name__}")
    if first.run.images_sha256 != second.run.images_sha256:
        raise ValueError("second must be measured on the images of first, but their digests differ")
    for name, value in first.run.settings.items():
        if second.run.settings[name] != value:
            raise ValueError(
                f"second must be measured with the settings of first, but its {name} is "
                f"{second.run.settings[name]} in place of {value}"
            )
    names = {"r": "r", **{column.name: column.label for column in MARGINS}}
    pairs = (pair(name, label, first, second) for name, label in names.items())
    return Comparison(first, second, tuple(one for one in pairs if one is not None))


def pair(name: str, label: str, first: Report, second: Report) -> Pair | None:
    """Compare one column; None where no image has it in both reports."""
    one, other = (report.table[name].to_numpy(dtype=float) for report in (first, second))
    both = np.isfinite(one) & np.isfinite(other)
    if not both.any():
        return None
    one, other = one[both], other[both]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where((one == 0) & (other == 0), 1.0, other / one)
    ratio = np.sort(ratio)
    low, high = median_interval(ratio)
    larger, differ = int((other > one).sum()), int((other != one).sum())
    p_value = float(stats.binomtest(larger, differ).pvalue) if differ else 1.0
    return Pair(
        name, label, float(np.median(one)), float(np.median(other)), float(np.median(ratio)), max(low, 0.0), high,
        larger, differ, p_value,
    )  # fmt: skip
