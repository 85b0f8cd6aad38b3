"""Finished parts of a measurement on disk, so that an interrupted one goes on where it stopped.

Each part is a shard: one sealed file, written as a whole or not at all, with a digest inside. Beside them lie a record
of what they are parts of, and a manifest that lists them; parts of another measurement are refused, and never mixed.
Start reading at :class:`Store`.
"""

from __future__ import annotations

import json
from pathlib import Path

from vaerobust.cluster.shards import Content, Shard, Shards
from vaerobust.measuring.parts import Part
from vaerobust.measuring.record import Run
from vaerobust.zoo.files import digest, write_atomically


class Store:
    """Finished parts on disk, so that an interrupted measurement goes on where it stopped.

    Parameters
    ----------
    folder : Path, optional
        Where they are; nothing is kept if it is None.
    run : Run
        What they are parts of.

    Attributes
    ----------
    shards : Shards
        The files.

    Raises
    ------
    ValueError
        If the folder holds parts of another measurement.
    """

    def __init__(self, folder: Path | None, run: Run) -> None:
        self.run = run
        self.shards = Shards(folder)
        self._settings = digest(json.dumps(run.identity(), sort_keys=True).encode())
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

    def shard(self, name: str, start: int, stop: int) -> Shard:
        """Return what identifies a part: its name and its range of images."""
        return Shard(name, self.run.weights_sha256, self.run.images_sha256, start, stop, self._settings)

    def load(self, shard: Shard) -> Part | None:
        """Return a part that is there; None if it is missing or damaged."""
        found = self.shards.load(shard)
        return None if found is None else Part(found.tensors, found.record["missing"])

    def save(self, shard: Shard, part: Part) -> bool:
        """Save a part as a whole or not at all; return whether no other run had saved it meanwhile."""
        return self.shards.save(shard, Content(part.tensors, {"missing": part.missing}))
