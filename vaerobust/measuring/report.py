"""The report of a measurement: its record, and the files that keep it.

:class:`Report` is what :func:`vaerobust.measuring.measure.measure` returns. ``report.table`` is a DataFrame,
``report.missing`` says what could not be measured and why, and ``report.save(folder)`` writes results.csv, results.json
and report.html. The page itself is made in :mod:`vaerobust.measuring.html`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vaerobust.measuring.record import DIGITS, Record
from vaerobust.zoo.files import write_atomically


@dataclass(frozen=True, eq=False)
class Report(Record):
    """What was measured of a model at some images; see :class:`vaerobust.measuring.record.Record` for its fields."""

    def to_html(self) -> str:
        """Return the page: one file that needs no other."""
        from vaerobust.measuring.html import page  # Matplotlib takes a second to import

        return page(self)

    def save(self, folder: str | Path) -> Path:
        """Write results.csv, results.json and report.html into a folder, and return the page's path.

        Parameters
        ----------
        folder : path
            It is made where it is missing. Files of the same names are replaced.
        """
        folder = Path(folder)
        table = self.table.to_csv(index=False, float_format=f"%.{DIGITS}g")
        write_atomically(folder / "results.csv", table.encode())
        write_atomically(folder / "results.json", self.to_json().encode())
        write_atomically(folder / "report.html", self.to_html().encode())
        return folder / "report.html"
