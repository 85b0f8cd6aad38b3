"""Commands: ``python -m vaerobust data``, ``train`` and ``study``."""

from __future__ import annotations

import logging
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch
from tqdm import tqdm

from vaerobust.study import summaries
from vaerobust.zoo import data
from vaerobust.zoo.protocol import COMPANIONS, GRID, SEEDS, SUMMARISED, VARIANTS, Spec
from vaerobust.zoo.training import Row, train
from vaerobust.zoo.weights import SHIPPED, Trained, load_model


@click.group()
def main() -> None:
    """Real data and trained models for the book."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)


@main.command("data")
def fetch_data() -> None:
    """Fetch both data sets into the cache and say where they came from."""
    for dataset in data.DATASETS:
        images = data.load(dataset)
        click.echo(f"{dataset}: {len(images):,} test images from {images.source}")


def train_one(spec: Spec, folder: Path, threads: int, device: str, position: int, images: int | None) -> str:
    """Train one model in a process of its own, with a progress bar on line ``position``."""
    torch.set_num_threads(threads)
    # Adam's second moments of dead units sink into denormal numbers, which some processors handle 100 times slower
    torch.set_flush_denormal(True)
    logging.getLogger("vaerobust").setLevel(logging.ERROR)
    with tqdm(total=spec.epochs, desc=spec.name, unit="epoch", position=position, leave=False) as bar:

        def show(done: int, row: Row) -> None:
            bar.set_postfix_str(f"test ELBO {row['test_elbo']:.2f}", refresh=False)
            bar.update(done - bar.n)

        some = data.load(spec.dataset, "train").first(images)
        train(spec, some, data.load(spec.dataset), folder, device=device, progress=show)
    return spec.name


MODELS = {"paper": GRID, "companions": COMPANIONS, "seeds": SEEDS, "variants": VARIANTS}
ATTACKED = tuple(
    spec
    for spec in (*GRID, *COMPANIONS)
    if (spec.dataset, spec.likelihood, spec.latents) == ("mnist", "bernoulli", Spec.latents)
)
"""The models of Figs. 5 (c) and 7 (b), the beta-TC-VAE among them."""
KINDS: dict[str, tuple[tuple[Spec, ...], Callable[[Trained, data.Images], summaries.Summary]]] = {
    "": (SUMMARISED, summaries.summarise),
    "choices": (tuple(Spec("mnist", beta) for beta in (0.1, 1.0, 5.0)), summaries.compare_choices),
    "attack": (ATTACKED, summaries.attack_all),
    "sandwich": (GRID, summaries.both_sides),
    "curves": (GRID, summaries.whole_curves),
}
"""By kind of summary, the models that have one, and what measures it."""


@main.command("train")
@click.option("--models", type=click.Choice(list(MODELS)), default="paper", show_default=True)
@click.option("--folder", type=click.Path(path_type=Path), default=Path("_build/models"), show_default=True)
@click.option("--only", default="", help="Train only the models whose name contains this.")
@click.option("--jobs", default=os.cpu_count() or 1, show_default=True, help="Models at a time.")
@click.option("--device", default="cpu", show_default=True, help="cpu, or cuda where there is one.")
@click.option("--epochs", default=Spec.epochs, show_default=True, help="Fewer for a trial.")
@click.option("--images", type=int, help="Train on the first so many images only, for a trial.")
def train_models(
    models: str, folder: Path, only: str, jobs: int, device: str, epochs: int, images: int | None
) -> None:  # fmt: skip
    """Train every model of a list; goes on where an earlier run was stopped."""
    specs = [replace(spec, epochs=epochs) for spec in MODELS[models] if only in spec.name]
    if not specs:
        raise click.BadParameter(f"no model's name contains {only!r}", param_hint="--only")
    train_all(specs, folder, jobs, device, images)


def train_all(specs: list[Spec], folder: Path, jobs: int, device: str = "cpu", images: int | None = None) -> None:
    """Train the given models, some at a time."""
    for dataset in sorted({spec.dataset for spec in specs}):
        data.load(dataset, "train")  # once, before the processes ask for it all at the same time
    threads = threads_of_each(jobs)
    runs = [(train_one, spec, folder, threads, device, 1 + i % jobs, images) for i, spec in enumerate(specs)]
    in_processes(runs, jobs, "models")


def threads_of_each(jobs: int) -> int:
    """Return how many threads each of some processes may use."""
    return max(1, (os.cpu_count() or 1) // jobs)


def in_processes(runs: list[tuple[Any, ...]], jobs: int, what: str) -> None:
    """Call functions, each with its arguments, some at a time in processes of their own, and say which are done."""
    context = multiprocessing.get_context("spawn")  # a forked process would inherit torch's locked thread pool
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        futures = [pool.submit(*run) for run in runs]
        for future in tqdm(as_completed(futures), total=len(futures), desc=what, position=0):
            tqdm.write(f"{future.result()}: done")


@main.command("study")
@click.option("--folder", type=click.Path(path_type=Path), default=Path("_build/models"), show_default=True)
@click.option("--summaries", "out", type=click.Path(path_type=Path), default=summaries.FOLDER, show_default=True)
@click.option("--jobs", default=os.cpu_count() or 1, show_default=True, help="Models at a time.")
@click.option("--only", default="", help="Only the summaries whose file name contains this.")
@click.option("--trained-only", is_flag=True, help="Leave out the models that would have to be trained first.")
def study(folder: Path, out: Path, jobs: int, only: str, trained_only: bool) -> None:
    """Measure models into summaries, for the chapters that read these; trains those whose weights do not ship.

    A summary that is there is kept; delete it to measure anew.
    """
    tasks = [(spec, kind) for kind, (specs, _) in KINDS.items() for spec in specs]
    paths = {task: summaries.path_of(*task, folder=out) for task in tasks}
    tasks = [task for task, path in paths.items() if only in path.stem and not path.exists()]
    missing = [spec for spec, _ in tasks if not weights_of(spec, folder)]
    if trained_only:
        tasks = [task for task in tasks if task[0] not in missing]
    elif missing:
        train_all(missing, folder, jobs)
    threads = threads_of_each(jobs)
    in_processes([(measure_one, *task, folder, out, threads) for task in tasks], jobs, "summaries")


def weights_of(spec: Spec, folder: Path) -> Path | None:
    """Return where the trained weights of a model are, shipped or in ``folder``."""
    paths = (where / f"{spec.name}.safetensors" for where in (SHIPPED, folder))
    return next((path for path in paths if path.exists() and path.with_suffix(".json").exists()), None)


def measure_one(spec: Spec, kind: str, folder: Path, out: Path, threads: int) -> str:
    """Write the summary of one model, in a process of its own."""
    torch.set_num_threads(threads)
    logging.getLogger("vaerobust").setLevel(logging.ERROR)
    weights = weights_of(spec, folder)
    assert weights is not None  # trained before
    path = summaries.path_of(spec, kind, folder=out)
    summaries.write(path, KINDS[kind][1](load_model(weights), data.load(spec.dataset)))
    return path.stem
