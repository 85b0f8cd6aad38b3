"""How measurements scale: over workers, with the overhead of a shard, and on another device.

For ``make bench`` and a chapter of the book. Start at :func:`strong_scaling` and :func:`performance`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vaerobust.certify.certificates import certify
from vaerobust.certify.failures import failures
from vaerobust.cluster.connecting import engine_of, local_cluster
from vaerobust.cluster.engines import Call, Engine, Here, Work
from vaerobust.cluster.running import Tally, run
from vaerobust.cluster.shards import Content, Shard, Shards
from vaerobust.margins import strongest_attack
from vaerobust.model import GaussianVAE
from vaerobust.study.timing import example, fastest
from vaerobust.zoo import data
from vaerobust.zoo.protocol import GRID, Spec
from vaerobust.zoo.training import Run

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Scaling:
    """The same shards on one worker and on more.

    Attributes
    ----------
    workers : tuple of int
    seconds : tuple of float
        Wall time on so many workers.
    core_seconds : tuple of float
        Processor time of all shards.
    """

    workers: tuple[int, ...]
    seconds: tuple[float, ...]
    core_seconds: tuple[float, ...]

    @property
    def speed_up(self) -> tuple[float, ...]:
        """Wall time on the fewest workers, over that on so many."""
        return tuple(self.seconds[0] / one for one in self.seconds)


@dataclass(frozen=True)
class Overhead:
    """What a shard costs beside its computation, in seconds and bytes.

    Attributes
    ----------
    here, cluster : float
        Seconds per shard that computes nothing: in this process, and on one worker. Writing its file is included.
    size : int
        Bytes of its file.
    """

    here: float
    cluster: float
    size: int


@dataclass(frozen=True)
class Plan:
    """What a large measurement would take, from what one shard takes.

    Attributes
    ----------
    shards : int
    core_hours : float
        Of all computation.
    hours : float
        Wall time, if nothing but computation took time.
    caller : float
        Share of that time in which the caller is busy: handing out shards and writing files, one after the other. At
        1 more workers are of no use.
    results, images, weights : float
        Bytes that travel: results to the caller, images to the workers, and the model to each worker once.
    """

    shards: int
    core_hours: float
    hours: float
    caller: float
    results: float
    images: float
    weights: float

    @property
    def most_workers(self) -> float:
        """Workers beyond which the caller is the limit, as a multiple of those planned for."""
        return 1 / self.caller


def planned(images: int, workers: int, seconds: float, extra: Overhead, model_bytes: int, per_shard: int = 5) -> Plan:
    """Plan a measurement of many images.

    Parameters
    ----------
    images, workers : int
    seconds : float
        Core-seconds per image.
    extra : Overhead
        With results as large as those of the measurement.
    model_bytes : int
    per_shard : int
        Images per shard.
    """
    shards = -(-images // per_shard)
    work = images * seconds
    wall = work / workers
    pixels = 784 * 4  # bytes per image, in single precision
    return Plan(
        shards, work / 3600, wall / 3600, shards * extra.cluster / wall, float(shards * extra.size),
        float(images * pixels), float(workers * model_bytes),
    )  # fmt: skip


def certified_block(model: GaussianVAE, x: Tensor, r: Tensor, samples: int) -> Content:
    """Certify some points, as the shard that is timed."""
    (found,) = failures(model, x, [r], samples=samples, seed=1)
    return Content({"radius": certify(model, x, found).radius}, {})


def nothing(shared: None, x: Tensor) -> Content:
    """Return three images for each one, as large as the pictures of a report; the computation takes no time."""
    return Content({"x": x.repeat(3, 1)}, {})


def strong_scaling(workers: Sequence[int] = (1, 2), shards: int = 8, samples: int = 50_000) -> Scaling:
    """Time the same shards, each a certificate of one point, on clusters of different size on this machine.

    Parameters
    ----------
    workers : sequence of int
        Numbers of workers, from few to many.
    shards : int
        Number of shards.
    samples : int
        Draws behind each certificate.

    Raises
    ------
    ValueError
        If Dask is not installed.
    """
    model, x, r = example(shards)
    calls = [Call(f"{i:06d}", (x[i : i + 1], r[i : i + 1], samples)) for i in range(shards)]
    tallies = []
    for count in workers:
        with local_cluster(count) as client:
            client.wait_for_workers(count)
            warm = [Call(f"warm {i}", (x[:1], r[:1], 100)) for i in range(4 * count)]  # each worker imports torch
            _run(warm, Work(certified_block, model), engine_of(client))
            tallies.append(_run(calls, Work(certified_block, model), engine_of(client)))
    return Scaling(
        tuple(workers), tuple(one.seconds for one in tallies), tuple(one.core_seconds for one in tallies)
    )  # fmt: skip


def overhead(shards: int = 100, rows: int = 5) -> Overhead:
    """Time shards that compute nothing and return their images, written to files, here and on one worker.

    Parameters
    ----------
    shards : int
        Number of shards.
    rows : int
        Images per shard.
    """
    x = data.load("mnist").pixels[:rows]
    with tempfile.TemporaryDirectory() as folder, local_cluster(1) as client:
        _written(2, x, engine_of(client), Path(folder) / "warm")
        cluster = _written(shards, x, engine_of(client), Path(folder) / "cluster")
        here = _written(shards, x, Here(), Path(folder) / "here")
        size = (Path(folder) / "here/000000.safetensors").stat().st_size
    return Overhead(here.seconds / shards, cluster.seconds / shards, size)


def _run(calls: list[Call], work: Work, engine: Engine) -> Tally:
    """Compute calls; an error in one of them is raised."""

    def fail(name: str, error: BaseException) -> None:
        raise error

    return run(calls, work, engine, lambda name, result: True, fail=fail)


def _written(count: int, x: Tensor, engine: Engine, folder: Path) -> Tally:
    """Compute and write shards that compute nothing."""
    store = Shards(folder)
    shards = {f"{i:06d}": Shard(f"{i:06d}", "", "", i, i + 1, "") for i in range(count)}
    calls = [Call(name, (x,)) for name in shards]
    return run(calls, Work(nothing, None), engine, lambda name, done: store.save(shards[name], done.value))


def performance(
    device: str = "cpu",
    draws: Sequence[int] = (100_000, 10_000_000),
    most: int = 10_000_000,
    batches: int | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Time what the performance table has: certificates, attack margins, and training, on a device.

    Parameters
    ----------
    device : str
        'cpu', or 'cuda' where there is a GPU.
    draws : sequence of int
        Draws behind each certificate.
    most : int
        Certificates with more draws than this are scaled from it.
    batches : int, optional
        Time so many batches of an epoch and scale them; the whole epoch if left out.

    Returns
    -------
    DataFrame
        With columns task, seconds and note.
    """
    import pandas as pd  # takes half a second to import

    model, x, r = example(1)
    model, x, r = model.to(device), x.to(device), r.to(device)  # type: ignore[attr-defined]
    rows = []
    for samples in draws:
        timed = min(samples, most)
        call = lambda timed=timed: certified_block(model, x, r, timed).tensors["radius"].tolist()
        note = "" if timed == samples else f"scaled from {timed:,} draws"
        rows.append((f"certificate, {samples:,} draws", fastest(call, turns=1)[0] * samples / timed, note))
    attack = lambda: strongest_attack(model, x, r, seed=0).radius.tolist()
    rows.append(("attack margin", fastest(attack, turns=1)[0], ""))
    spec, train = Spec(), data.load("mnist", "train")
    timed_images = train.first(None if batches is None else batches * spec.batch_size)
    one = Run(spec, timed_images, data.load("mnist").first(1), device)
    torch.set_flush_denormal(True)
    epoch = fastest(one.epoch, turns=2)[0] * len(train) / len(timed_images)
    note = "" if batches is None else f"scaled from {batches} batches"
    rows.append(("training epoch", epoch, note))
    rows.append((f"{len(GRID)} models from scratch", epoch * spec.epochs * len(GRID), "scaled from one epoch"))
    return pd.DataFrame(rows, columns=["task", "seconds", "note"]).assign(device=device)
