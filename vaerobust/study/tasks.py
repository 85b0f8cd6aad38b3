"""One summary of one model as a task of shards: what is computed, on any engine, and when the summary is complete.

Start reading at :class:`Task`.
"""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vaerobust.batches import slices
from vaerobust.cluster.engines import Call
from vaerobust.cluster.shards import Content, Shard, Shards
from vaerobust.study import summaries
from vaerobust.study.measurements import Blocks, Measurement, provenance_of
from vaerobust.zoo import data
from vaerobust.zoo.data import Images
from vaerobust.zoo.files import digest
from vaerobust.zoo.machine import Hardware, hardware, versions
from vaerobust.zoo.protocol import Spec
from vaerobust.zoo.training import images_used
from vaerobust.zoo.typed_json import from_plain, to_plain
from vaerobust.zoo.weights import SHIPPED, Trained, load_model


@dataclass(frozen=True)
class Task:
    """One summary of one model.

    Attributes
    ----------
    spec : Spec
    measurement : Measurement
    folder : Path
        Where models are that the package does not include. Workers see it too.
    out : Path
        Where the summary goes.
    """

    spec: Spec
    measurement: Measurement
    folder: Path
    out: Path

    @property
    def path(self) -> Path:
        """The file of the summary."""
        return summaries.path_of(self.spec, self.measurement.kind, folder=self.out)

    @property
    def shards_folder(self) -> Path:
        """Where finished shards are until the summary is complete."""
        return self.folder / "shards" / self.path.stem

    def shards(self, trained: Trained, images: Images, threads: int) -> list[Shard]:
        """Return the shards of the summary; a measurement without blocks is one shard of all images."""
        how = self.measurement.measure
        used = images_used(images)
        settings = {
            "kind": self.measurement.kind.__name__, "versions": versions("torch", "numpy", "scipy"),
            "blocks": [how.images, how.size] if isinstance(how, Blocks) else None, "threads": threads,
        }  # fmt: skip
        total, size = (min(how.images, len(images)), how.size) if isinstance(how, Blocks) else (len(images),) * 2
        key = digest(json.dumps(settings, sort_keys=True).encode())
        return [
            Shard(f"{at.start:06d}", trained.manifest.weights_sha256, used.sha256, at.start, at.stop, key)
            for at in slices(total, size)
        ]

    def trained(self) -> Trained:
        """Load the model.

        Raises
        ------
        FileNotFoundError, ValueError
            If it is not there, or is another one.
        """
        weights = weights_of(self.spec, self.folder)
        if weights is None:
            raise FileNotFoundError(f"no trained model {self.spec.name} in {SHIPPED} or {self.folder}")
        return load_model(weights, self.spec)

    def finish(self, contents: list[Content]) -> None:
        """Write the summary of all shards, in order."""
        if isinstance(self.measurement.measure, Blocks):
            seconds = sum(one.record["seconds"] for one in contents)
            machine = from_plain(Hardware, contents[0].record["hardware"])
            origin = provenance_of(self.trained(), data.load(self.spec.dataset), seconds, machine)
            summary = self.measurement.measure.joined(origin, [one.tensors for one in contents])
        else:
            (content,) = contents
            summary = from_plain(self.measurement.kind, content.record["summary"])
        summaries.save(self.path, summary)


def measure_shard(shared: Any, task: Task, shard: Shard) -> Content:
    """Measure one shard, here or on a worker, which loads model and images itself.

    Raises
    ------
    RuntimeError
        If the worker has other images or another model.
    """
    logging.getLogger("vaerobust").setLevel(logging.ERROR)
    trained, images = task.trained(), data.load(task.spec.dataset)
    if (trained.manifest.weights_sha256, images_used(images).sha256) != (shard.weights, shard.images):
        raise RuntimeError(f"a worker must have the caller's model and images, but has others of {task.spec.name}")
    how, start = task.measurement.measure, time.perf_counter()
    if not isinstance(how, Blocks):
        return Content({}, {"summary": to_plain(how(trained, images))})
    tensors = how.measure(trained.vae, images.pixels[shard.start : shard.stop])
    record = {"seconds": time.perf_counter() - start, "hardware": to_plain(hardware())}
    return Content({name: torch.as_tensor(value).cpu() for name, value in tensors.items()}, record)


def weights_of(spec: Spec, folder: Path) -> Path | None:
    """Return the file of a model's weights, from the package or from ``folder``; None if neither has it."""
    paths = (where / f"{spec.name}.safetensors" for where in (SHIPPED, folder))
    return next((path for path in paths if path.exists() and path.with_suffix(".json").exists()), None)


class Queue:
    """The shards of some tasks: which are missing, where they are kept, and which summaries they complete.

    Parameters
    ----------
    tasks : list of Task
    threads : int
        Threads that each shard is computed on.
    retry : bool
        Whether shards that failed in an earlier run are tried again.

    Attributes
    ----------
    calls : list of Call
        The shards that are to be computed.
    found : int
        Shards that are there.
    failed : dict of str
        Why shards failed in an earlier run, where they are not tried again.
    """

    def __init__(self, tasks: list[Task], threads: int, retry: bool) -> None:
        self.calls: list[Call] = []
        self.found, self.failed = 0, dict[str, str]()
        self.stores = {task.path.stem: Shards(task.shards_folder) for task in tasks}
        self.tasks = {task.path.stem: task for task in tasks}
        self.shards: dict[str, list[Shard]] = {}
        for stem, task in self.tasks.items():
            self.shards[stem] = task.shards(task.trained(), data.load(task.spec.dataset), threads)
            for shard in self.shards[stem]:
                reason = None if retry else self.stores[stem].failure(shard)
                if self.stores[stem].load(shard) is not None:
                    self.found += 1
                elif reason is not None:
                    self.failed[f"{stem} {shard.name}"] = f"{reason} (in an earlier run; not tried again)"
                else:
                    self.calls.append(Call(f"{stem} {shard.name}", (task, shard)))
            self._finish(stem)

    def _place(self, name: str) -> tuple[str, Shard]:
        stem, _, number = name.rpartition(" ")
        return stem, next(shard for shard in self.shards[stem] if shard.name == number)

    def there(self, name: str) -> bool:
        """Return whether another run has computed a shard meanwhile."""
        stem, shard = self._place(name)
        return self.tasks[stem].path.exists() or self.stores[stem].load(shard) is not None

    def keep(self, name: str, content: Content) -> bool:
        """Keep the result of a shard, and write the summary if it was the last; return false if it was there."""
        stem, shard = self._place(name)
        if self.tasks[stem].path.exists():
            return False
        kept = self.stores[stem].save(shard, content)
        self._finish(stem)
        return kept

    def fail(self, name: str, error: str) -> None:
        """Note why a shard failed."""
        stem, shard = self._place(name)
        self.stores[stem].fail(shard, error)

    def _finish(self, stem: str) -> None:
        """Write a summary whose shards are all there, and remove them; else write the manifest of the shards."""
        store, shards = self.stores[stem], self.shards[stem]
        contents = [store.done.get(shard.name) for shard in shards]
        if all(contents):
            if not self.tasks[stem].path.exists():
                self.tasks[stem].finish([one for one in contents if one is not None])
            store.clear()
        else:
            store.write_manifest(shards)
