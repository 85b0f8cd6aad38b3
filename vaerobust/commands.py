"""The command ``vaerobust``, also ``python -m vaerobust``, with the sub-commands data, train and study.

``data`` fetches the images, ``train`` trains models of the protocol, and ``study`` measures the summaries that are
missing. Models are trained and measured in processes of their own, several at a time.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path

import click
import torch
from tqdm import tqdm

from vaerobust.study import summaries
from vaerobust.study.measurements import MEASUREMENTS, Measurement
from vaerobust.zoo import data
from vaerobust.zoo.manifest import Epoch
from vaerobust.zoo.protocol import COMPANIONS, GRID, SEEDS, VARIANTS, Spec
from vaerobust.zoo.training import train
from vaerobust.zoo.weights import SHIPPED, load_model

MODELS = {"paper": GRID, "companions": COMPANIONS, "seeds": SEEDS, "variants": VARIANTS}
"""The lists of models that ``train`` can train, by the value of ``--models``."""
PROCESSORS = os.cpu_count() or 1
"""Processors of this machine, and so how many models are trained or measured at a time by default."""


@click.group()
def main() -> None:
    """Real images, trained models and stored measurements of robustness."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)


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
        Where weights and manifests go.
    threads : int
        Threads that each training process may use.
    device : str
        'cpu', or 'cuda' where there is a GPU.
    images : int, optional
        Train on only the first so many images; on all if left out.
    """

    folder: Path
    threads: int = 1
    device: str = "cpu"
    images: int | None = None

    def train(self, spec: Spec, position: int) -> str:
        """Train one model in a process of its own, with a progress bar on line ``position``; return its name."""
        torch.set_num_threads(self.threads)
        # Adam's second moments of dead units become denormal numbers, which some processors handle 100 times slower.
        torch.set_flush_denormal(True)
        logging.getLogger("vaerobust").setLevel(logging.ERROR)
        with tqdm(total=spec.epochs, desc=spec.name, unit="epoch", position=position, leave=False) as bar:

            def show(done: int, epoch: Epoch) -> None:
                bar.set_postfix_str(f"test ELBO {epoch.test_elbo:.2f}", refresh=False)
                bar.update(done - bar.n)

            some = data.load(spec.dataset, "train").first(self.images)
            train(spec, some, data.load(spec.dataset), self.folder, device=self.device, progress=show)
        return spec.name


@main.command("train")
@click.option("--models", type=click.Choice(list(MODELS)), default="paper", show_default=True, help="Which models.")
@click.option(
    "--folder", type=click.Path(path_type=Path), default=Path("_build/models"), show_default=True,
    help="Where weights and manifests go.",
)  # fmt: skip
@click.option("--only", default="", help="Train only the models whose name contains this.")
@click.option("--jobs", default=PROCESSORS, show_default=True, help="Models at a time.")
@click.option("--device", default="cpu", show_default=True, help="cpu, or cuda where there is a GPU.")
@click.option("--epochs", default=Spec.epochs, show_default=True, help="Epochs; fewer for a trial.")
@click.option("--images", type=int, help="Train on only the first so many images, for a trial.")
def train_models(
    models: str, folder: Path, only: str, jobs: int, device: str, epochs: int, images: int | None
) -> None:  # fmt: skip
    """Train all models of a list. A run that was stopped is continued."""
    specs = [replace(spec, epochs=epochs) for spec in MODELS[models] if only in spec.name]
    if not specs:
        raise click.BadParameter(f"no model's name contains {only!r}", param_hint="--only")
    train_all(specs, Trainer(folder, threads_per_job(jobs), device, images), jobs)


def train_all(specs: list[Spec], trainer: Trainer, jobs: int) -> None:
    """Train some models, ``jobs`` at a time."""
    for dataset in sorted({spec.dataset for spec in specs}):
        data.load(dataset, "train")  # fills the cache once, before all processes ask for it at the same time
    calls = [Call(trainer.train, (spec, 1 + i % jobs)) for i, spec in enumerate(specs)]
    in_processes(calls, jobs, "models")


def threads_per_job(jobs: int) -> int:
    """Return how many threads each of some processes may use."""
    return max(1, PROCESSORS // jobs)


@dataclass(frozen=True)
class Call:
    """A function and its arguments; the function returns the name of what it has done."""

    function: Callable[..., str]
    arguments: tuple[object, ...]


def in_processes(calls: list[Call], jobs: int, what: str) -> None:
    """Make the calls, ``jobs`` at a time in processes of their own, and print the name of each that is done."""
    context = multiprocessing.get_context("spawn")  # a forked process would inherit locks of torch's threads
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        futures = [pool.submit(call.function, *call.arguments) for call in calls]
        for future in tqdm(as_completed(futures), total=len(futures), desc=what, position=0):
            tqdm.write(f"{future.result()}: done")


@main.command("study")
@click.option(
    "--folder", type=click.Path(path_type=Path), default=Path("_build/models"), show_default=True,
    help="Folder of the models that are not included; missing ones are trained into it.",
)  # fmt: skip
@click.option(
    "--summaries", "out", type=click.Path(path_type=Path), default=summaries.FOLDER, show_default=True,
    help="Where the summaries go.",
)  # fmt: skip
@click.option("--jobs", default=PROCESSORS, show_default=True, help="Models at a time.")
@click.option("--only", default="", help="Measure only the summaries whose file name contains this.")
@click.option("--trained-only", is_flag=True, help="Leave out the models that would have to be trained first.")
def study(folder: Path, out: Path, jobs: int, only: str, trained_only: bool) -> None:
    """Measure the summaries that are missing, and train the models that this needs.

    A summary that exists is kept; delete its file to measure it anew.
    """
    tasks = [Task(spec, measurement, folder, out) for measurement in MEASUREMENTS for spec in measurement.specs]
    tasks = [task for task in tasks if only in task.path.stem and not task.path.exists()]
    untrained = [task.spec for task in tasks if not weights_of(task.spec, folder)]
    if trained_only:
        tasks = [task for task in tasks if task.spec not in untrained]
    elif untrained:
        train_all(list(dict.fromkeys(untrained)), Trainer(folder, threads_per_job(jobs)), jobs)
    in_processes([Call(task.measure, (threads_per_job(jobs),)) for task in tasks], jobs, "summaries")


@dataclass(frozen=True)
class Task:
    """One summary of one model.

    Attributes
    ----------
    spec : Spec
    measurement : Measurement
    folder : Path
        Where models are that the package does not include.
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

    def measure(self, threads: int) -> str:
        """Write the summary, in a process of its own; return the name of its file."""
        torch.set_num_threads(threads)
        logging.getLogger("vaerobust").setLevel(logging.ERROR)
        weights = weights_of(self.spec, self.folder)
        if weights is None:
            raise FileNotFoundError(f"no trained model {self.spec.name} in {SHIPPED} or {self.folder}")
        summaries.save(self.path, self.measurement.measure(load_model(weights), data.load(self.spec.dataset)))
        return self.path.stem


def weights_of(spec: Spec, folder: Path) -> Path | None:
    """Return the file of a model's weights, from the package or from ``folder``; None if neither has it."""
    paths = (where / f"{spec.name}.safetensors" for where in (SHIPPED, folder))
    return next((path for path in paths if path.exists() and path.with_suffix(".json").exists()), None)
