"""The command ``vaerobust``, also ``python -m vaerobust``, with the sub-commands data, train and study.

``data`` fetches the images, ``train`` trains models of the protocol, and ``study`` measures the summaries that are
missing. Models are trained and measured in processes of their own, several at a time, or on a Dask cluster.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import torch
from tqdm import tqdm

from vaerobust.cluster.connecting import RETRY, cluster_options, connected, engine_of
from vaerobust.cluster.engines import Call, Engine, Pool, Timed, Work
from vaerobust.cluster.running import Tally, described, run
from vaerobust.measuring.command import measure_model
from vaerobust.study import summaries
from vaerobust.study.measurements import MEASUREMENTS
from vaerobust.study.tasks import Queue, Task, measure_shard, weights_of
from vaerobust.zoo import data
from vaerobust.zoo.files import write_atomically
from vaerobust.zoo.manifest import Epoch
from vaerobust.zoo.protocol import COMPANIONS, CONVOLUTIONAL, GRID, SEEDS, VARIANTS, Spec
from vaerobust.zoo.training import train

MODELS = {
    "paper": GRID,
    "companions": COMPANIONS,
    "convolutional": CONVOLUTIONAL,
    "seeds": SEEDS,
    "variants": VARIANTS,
}
"""The lists of models that ``train`` can train, by the value of ``--models``."""
PROCESSORS = os.cpu_count() or 1
"""Processors of this machine, and so how many models are trained or measured at a time by default."""


@click.group()
def main() -> None:
    """Real images, trained models and stored measurements of robustness."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)


main.add_command(measure_model)


@main.command("data")
def fetch_data() -> None:
    """Fetch both data sets into the cache and say where they came from."""
    for dataset in data.DATASETS:
        images = data.load(dataset)
        click.echo(f"{dataset}: {len(images):,} test images from {images.source}")


@dataclass(frozen=True)
class Trainer:
    """How models are trained.

    Attributes
    ----------
    folder : Path
        Where weights, manifests and checkpoints go; on workers of other machines too.
    device : str
        'cpu', or 'cuda' where there is a GPU.
    images : int, optional
        Train on only the first so many images; on all if left out.
    bars : bool
        Whether each training run has a progress bar; not on a cluster.
    """

    folder: Path
    device: str = "cpu"
    images: int | None = None
    bars: bool = True


def train_one(trainer: Trainer, spec: Spec, position: int) -> dict[str, bytes]:
    """Train one model, with a progress bar on line ``position``; return its two files by their names."""
    # Adam's second moments of dead units become denormal numbers, which some processors handle 100 times slower.
    torch.set_flush_denormal(True)
    logging.getLogger("vaerobust").setLevel(logging.ERROR)
    with tqdm(
        total=spec.epochs, desc=spec.name, unit="epoch", position=position, leave=False, disable=not trainer.bars
    ) as bar:  # fmt: skip

        def show(done: int, epoch: Epoch) -> None:
            bar.set_postfix_str(f"test ELBO {epoch.test_elbo:.2f}", refresh=False)
            bar.update(done - bar.n)

        some = data.load(spec.dataset, "train").first(trainer.images)
        weights = train(spec, some, data.load(spec.dataset), trainer.folder, device=trainer.device, progress=show)
    return {path.name: path.read_bytes() for path in (weights, weights.with_suffix(".json"))}


JOBS = click.option(
    "--jobs", type=click.IntRange(1), default=PROCESSORS, show_default=True,
    help="Models at a time, each in a process of this machine; not used with a cluster.",
)  # fmt: skip


@main.command("train")
@click.option("--models", type=click.Choice(list(MODELS)), default="paper", show_default=True, help="Which models.")
@click.option(
    "--folder", type=click.Path(path_type=Path), default=Path("_build/models"), show_default=True,
    help="Where weights and manifests go.",
)  # fmt: skip
@click.option("--only", default="", help="Train only the models whose name contains this.")
@JOBS
@click.option("--device", default="cpu", show_default=True, help="cpu, or cuda where there is a GPU.")
@click.option(
    "--epochs", type=click.IntRange(1), default=Spec.epochs, show_default=True, help="Epochs; fewer for a trial."
)
@click.option(
    "--images", type=click.IntRange(1), help="Train on only the first so many images, for a trial."
)  # fmt: skip
@cluster_options
def train_models(models: str, only: str, epochs: int, **options: Any) -> None:
    """Train all models of a list. A run that was stopped is continued."""
    specs = [replace(spec, epochs=epochs) for spec in MODELS[models] if only in spec.name]
    if not specs:
        raise click.BadParameter(f"no model's name contains {only!r}", param_hint="--only")
    with engine(options) as (where, threads):
        trainer = Trainer(options["folder"], options["device"], options["images"], isinstance(where, Pool))
        finished(train_all(specs, trainer, where, threads))


@contextmanager
def engine(options: dict[str, Any]) -> Iterator[tuple[Engine, int]]:
    """Give the engine that a command asks for and the threads per call; an error that a user can mend is one line.

    On a cluster each call has one thread, and as many calls run as the workers have threads.
    """
    try:
        with connected(options["workers"], options["scheduler"]) as client:
            if client is None:
                yield Pool(options["jobs"]), threads_per_job(options["jobs"])
            else:
                yield engine_of(client), 1
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error


def finished(tally: Tally) -> None:
    """Print what became of all calls; end with an error where some have no result."""
    click.echo(str(tally))
    if tally.failed or tally.waiting:
        raise click.ClickException(f"{len(tally.failed) + tally.waiting} {tally.what} are missing")


def train_all(specs: list[Spec], trainer: Trainer, where: Engine, threads: int) -> Tally:
    """Train some models on an engine. Files that a worker wrote on a disk of its own are written here too."""
    for dataset in sorted({spec.dataset for spec in specs}):
        data.load(dataset, "train")  # fills the cache once, before all processes ask for it at the same time

    def keep(name: str, result: Timed) -> bool:
        for file, content in result.value.items():
            if not (trainer.folder / file).exists():
                write_atomically(trainer.folder / file, content)
        tqdm.write(f"{name}: done")
        return True

    calls = [Call(spec.name, (spec, 1 + i % where.width())) for i, spec in enumerate(specs)]
    work = Work(train_one, trainer, threads)
    with tqdm(total=len(calls), desc="models", position=0) as bar:
        return run(calls, work, where, keep, watch=lambda name: bar.update(), tally=Tally("models"))


def threads_per_job(jobs: int) -> int:
    """Return how many threads each of some processes may use."""
    return max(1, PROCESSORS // jobs)


@main.command("study")
@click.option(
    "--folder", type=click.Path(path_type=Path), default=Path("_build/models"), show_default=True,
    help="Folder of the models that are not included; missing ones are trained into it.",
)  # fmt: skip
@click.option(
    "--summaries", "out", type=click.Path(path_type=Path), default=summaries.FOLDER, show_default=True,
    help="Where the summaries go.",
)  # fmt: skip
@JOBS
@click.option("--only", default="", help="Measure only the summaries whose file name contains this.")
@click.option("--trained-only", is_flag=True, help="Leave out the models that would have to be trained first.")
@RETRY
@cluster_options
def study(folder: Path, out: Path, only: str, trained_only: bool, retry: bool, **options: Any) -> None:
    """Measure the summaries that are missing, and train the models that this needs.

    A summary that exists is kept; delete its file to measure it anew.
    """
    tasks = [Task(spec, measurement, folder, out) for measurement in MEASUREMENTS for spec in measurement.specs]
    tasks = [task for task in tasks if only in task.path.stem and not task.path.exists()]
    untrained = [task.spec for task in tasks if not weights_of(task.spec, folder)]
    with engine(options) as (where, threads):
        if trained_only:
            tasks = [task for task in tasks if task.spec not in untrained]
        elif untrained:
            trainer = Trainer(folder, bars=isinstance(where, Pool))
            train_all(list(dict.fromkeys(untrained)), trainer, where, threads)
            tasks = [task for task in tasks if weights_of(task.spec, folder)]
        finished(measure_all(tasks, where, threads, retry))


def measure_all(tasks: list[Task], where: Engine, threads: int, retry: bool) -> Tally:
    """Measure the shards of some summaries on an engine, and write each summary whose shards are all there."""
    queue = Queue(tasks, threads, retry)
    tally = Tally(found=queue.found, failed=queue.failed)
    if not queue.calls:
        return tally
    with tqdm(total=queue.found + len(queue.calls), initial=queue.found, desc="shards", position=0) as bar:
        return run(
            queue.calls, Work(measure_shard, None, threads), where, lambda name, done: queue.keep(name, done.value),
            fail=lambda name, error: queue.fail(name, described(error)), there=queue.there,
            watch=lambda name: bar.update(), tally=tally,
        )  # fmt: skip
