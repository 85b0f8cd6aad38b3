"""Finished parts of a measurement on disk, so that an interrupted one goes on where it stopped.

Each part is one file, written as a whole or not at all. Beside them lies a record of what they are parts of; parts of
another measurement are refused, and never mixed. Start reading at :class:`Store`.
"""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as tensors_as_bytes

from vaerobust.measuring.parts import Part
from vaerobust.measuring.record import Run
from vaerobust.zoo.files import write_atomically


class Store:
    """Finished parts on disk, so that an interrupted measurement goes on where it stopped.

    Parameters
    ----------
    folder : Path, optional
        Where they are; nothing is kept if it is None.
    run : Run
        What they are parts of.

    Raises
    ------
    ValueError
        If the folder holds parts of another measurement.
    """

    def __init__(self, folder: Path | None, run: Run) -> None:
        self.folder = folder
        if folder is None:
            return
        record = folder / "run.json"
        want = run.identity()
        if record.exists():
            try:
                there = json.loads(record.read_text())
            except ValueError as error:
                raise ValueError(f"out must hold parts of this measurement, but {record} is corrupt") from error
            if not isinstance(there, dict):
                raise ValueError(f"out must hold parts of this measurement, but {record} is corrupt")
            differ = [key for key in want if there.get(key) != want[key]]
            if differ:
                raise ValueError(
                    f"out must be empty or hold parts of this measurement, but {folder} was made with other "
                    f"{', '.join(differ)}: choose another folder, or delete this one"
                )
        else:
            write_atomically(record, (json.dumps(want, indent=1) + "\n").encode())

    def load(self, name: str) -> Part | None:
        """Return a part that is there; None if it is missing or damaged."""
        path = self._path(name)
        if path is None or not path.exists():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no dictionary
                return Part(tensors, json.loads((file.metadata() or {})["missing"]))
        except (SafetensorError, OSError, KeyError, ValueError):
            return None  # it is measured again

    def save(self, name: str, part: Part) -> Part:
        """Save a part as a whole or not at all, and return it."""
        path = self._path(name)
        if path is not None:
            tensors = {key: value.contiguous() for key, value in part.tensors.items()}
            write_atomically(path, tensors_as_bytes(tensors, {"missing": json.dumps(part.missing)}))
        return part

    def _path(self, name: str) -> Path | None:
        return None if self.folder is None else self.folder / f"{name}.safetensors"
