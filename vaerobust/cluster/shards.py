"""Shards on disk: one sealed file for each that is done, one for each that failed, and a manifest of all.

Start reading at :class:`Shards`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from vaerobust.zoo.files import clean_temporaries, digest, write_atomically
from vaerobust.zoo.sealed import BROKEN, seal, unseal

MANIFEST = "manifest.json"
"""Name of the file that lists all shards of a folder."""


@dataclass(frozen=True)
class Shard:
    """What identifies a shard.

    Attributes
    ----------
    name : str
        Name of its files, without the ending.
    weights : str
        Digest of the weights.
    images : str
        Digest of the images of the whole measurement.
    start, stop : int
        Which of these images: from ``start`` to before ``stop``.
    settings : str
        Digest of the settings, which include the seed.
    """

    name: str
    weights: str
    images: str
    start: int
    stop: int
    settings: str


class Content(NamedTuple):
    """The result of a shard: tensors by name, and a record that ``json.dumps`` takes."""

    tensors: dict[str, Tensor]
    record: dict[str, Any]


class Shards:
    """Results of shards in a folder, or in memory alone.

    Parameters
    ----------
    folder : path, optional
        Where the files are. Temporary files that a killed writer has left there are removed.

    Attributes
    ----------
    damaged : set of str
        Names of the shards whose file was there and did not check out.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.damaged: set[str] = set()
        self.done: dict[str, Content] = {}
        self.errors: dict[str, str] = {}
        self._digests: dict[str, str] = {}
        if folder is not None:
            clean_temporaries(folder)

    def load(self, shard: Shard) -> Content | None:
        """Return the result of a shard; None if it is missing, damaged or of another shard."""
        if shard.name in self.done:
            return self.done[shard.name]
        path = self._path(shard)
        if path is None or not path.exists():
            return None
        try:
            raw = path.read_bytes()
            tensors, record = unseal(raw)
            if record["shard"] != asdict(shard):
                raise ValueError("it is of another shard")
        except (OSError, *BROKEN):
            self.damaged.add(shard.name)
            return None
        self._digests[shard.name] = digest(raw)
        self.done[shard.name] = Content(tensors, record["result"])
        return self.done[shard.name]

    def save(self, shard: Shard, content: Content) -> bool:
        """Save the result of a shard; return False, and keep the file, if another run has saved it meanwhile."""
        path = self._path(shard)
        if path is not None:
            tensors = {name: value.contiguous() for name, value in content.tensors.items()}
            raw = seal(tensors, {"shard": asdict(shard), "result": content.record})
            try:
                write_atomically(path, raw, new=True)
            except FileExistsError:
                if self.load(shard) is not None:
                    return False
                write_atomically(path, raw)  # what is there is damaged
            self._digests[shard.name] = digest(raw)
            self._error_path(path).unlink(missing_ok=True)
        self.done[shard.name] = content
        self.errors.pop(shard.name, None)
        return True

    def fail(self, shard: Shard, error: str) -> None:
        """Note why a shard failed. It stays missing."""
        self.errors[shard.name] = error
        path = self._path(shard)
        if path is not None:
            note = {"shard": asdict(shard), "error": error}
            write_atomically(self._error_path(path), (json.dumps(note, indent=1) + "\n").encode())

    def failure(self, shard: Shard) -> str | None:
        """Return why a shard failed, in this run or an earlier one; None if it did not, or the note is damaged."""
        path = self._path(shard)
        if shard.name not in self.errors and path is not None:
            try:
                note = json.loads(self._error_path(path).read_text())
                if note["shard"] == asdict(shard):
                    self.errors[shard.name] = str(note["error"])
            except (OSError, ValueError, KeyError, TypeError):
                pass
        return self.errors.get(shard.name)

    def write_manifest(self, shards: Sequence[Shard]) -> None:
        """Write which shards there are, which are done, with the digest of the file, and which failed, and why."""
        if self.folder is None:
            return
        rows = [
            asdict(shard)
            | {
                "state": "done" if shard.name in self.done else "failed" if self.failure(shard) else "missing",
                "sha256": self._digests.get(shard.name),
                "error": None if shard.name in self.done else self.failure(shard),
            }
            for shard in shards
        ]
        write_atomically(self.folder / MANIFEST, (json.dumps({"shards": rows}, indent=1) + "\n").encode())

    def clear(self) -> None:
        """Remove the files of all shards, whose results are kept elsewhere."""
        if self.folder is not None and self.folder.exists():
            for path in (*self.folder.glob("*.safetensors"), *self.folder.glob("*.json")):
                path.unlink(missing_ok=True)
            with suppress(OSError):  # another run may write there
                self.folder.rmdir()

    def _path(self, shard: Shard) -> Path | None:
        return None if self.folder is None else self.folder / f"{shard.name}.safetensors"

    @staticmethod
    def _error_path(path: Path) -> Path:
        return path.with_suffix(".failed.json")
