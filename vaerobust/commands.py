"""Commands: ``python -m vaerobust data`` and ``python -m vaerobust train``."""

from __future__ import annotations

import logging
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path

import click
import torch
from tqdm import tqdm

from vaerobust import data
from vaerobust.training import GRID, Row, Spec, train


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


@main.command("train")
@click.option("--folder", type=click.Path(path_type=Path), default=Path("_build/models"), show_default=True)
@click.option("--only", default="", help="Train only the models whose name contains this.")
@click.option("--jobs", default=os.cpu_count() or 1, show_default=True, help="Models at a time.")
@click.option("--device", default="cpu", show_default=True, help="cpu, or cuda where there is one.")
@click.option("--epochs", default=Spec.epochs, show_default=True, help="Fewer for a trial.")
@click.option("--images", type=int, help="Train on the first so many images only, for a trial.")
def train_grid(folder: Path, only: str, jobs: int, device: str, epochs: int, images: int | None) -> None:
    """Train every model of the grid; goes on where an earlier run was stopped."""
    specs = [replace(spec, epochs=epochs) for spec in GRID if only in spec.name]
    if not specs:
        raise click.BadParameter(f"no model's name contains {only!r}", param_hint="--only")
    for dataset in sorted({spec.dataset for spec in specs}):
        data.load(dataset, "train")  # once, before the processes ask for it all at the same time
    threads = max(1, (os.cpu_count() or 1) // jobs)
    context = multiprocessing.get_context("spawn")  # a forked process would inherit torch's locked thread pool
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        runs = [
            pool.submit(train_one, spec, folder, threads, device, 1 + i % jobs, images) for i, spec in enumerate(specs)
        ]
        for run in tqdm(as_completed(runs), total=len(runs), desc="models", position=0):
            tqdm.write(f"{run.result()}: done")
