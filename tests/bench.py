"""Time named alternatives side by side, in one process, and print their ratios: ``make bench``.

Each pair runs in turns on the same input and the fastest of its turns counts, since whatever else the machine does
only ever adds time. The ratios are what to quote; the seconds depend on the machine.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from torchvision import datasets, transforms

from vaerobust import data
from vaerobust.attacks import maximum_damage
from vaerobust.bounds import jacobian_norms
from vaerobust.model import VAE, elbo_terms
from vaerobust.protocol import Spec
from vaerobust.training import Run
from vaerobust.weights import pretrained

TURNS = 3


def fastest(*calls: Callable[[], object]) -> list[float]:
    """Run the calls in turns and return the least seconds of each; a first turn warms up."""
    seconds = [float("inf")] * len(calls)
    for turn in range(TURNS + 1):
        for i, call in enumerate(calls):
            start = time.perf_counter()
            call()
            if turn:
                seconds[i] = min(seconds[i], time.perf_counter() - start)
    return seconds


def matrix_products(vae: VAE, batch: int, batches: int) -> Callable[[], None]:
    """Return a call that does the matrix products of so many training steps, and nothing else."""
    layers = [layer for layer in vae.modules() if isinstance(layer, nn.Linear)]
    work = [
        (torch.randn(batch, layer.in_features), layer.weight.detach(), torch.randn(batch, layer.out_features))
        for layer in layers
    ]  # fmt: skip

    def run() -> None:
        for _ in range(batches):
            for i, (x, weight, gradient) in enumerate(work):
                x @ weight.T
                gradient.T @ x
                if i:  # no gradient is needed for the images
                    gradient @ weight

    return run


def data_loader_epoch(images: int, spec: Spec, folder: Path) -> Callable[[], None]:
    """Return an epoch as it is often written: a DataLoader over torchvision's data set, and Adam as it comes."""
    raw = folder / "MNIST/raw"
    raw.mkdir(parents=True)
    for name in data.MD5["mnist"]:
        shutil.copy(data.cache_folder() / "mnist" / name, raw)
    vae = spec.build()
    adam = torch.optim.Adam(vae.parameters(), lr=spec.learning_rate)
    whole = datasets.MNIST(str(folder), train=True, transform=transforms.ToTensor())
    loader = DataLoader(Subset(whole, range(images)), batch_size=spec.batch_size, shuffle=True)

    def run() -> None:
        for x, _ in loader:
            x = x.flatten(1)
            reconstruction, kl = elbo_terms(vae, x, torch.randn(len(x), spec.latents))
            loss = (kl - reconstruction).mean()
            adam.zero_grad()
            loss.backward()
            adam.step()

    return run


def rows() -> Iterator[dict[str, object]]:
    """Measure, a row a comparison."""
    spec = Spec()
    train, test = data.load("mnist", "train"), data.load("mnist", "test")
    some = train.first(20 * spec.batch_size)
    run = Run(spec, some, test.first(1))
    with tempfile.TemporaryDirectory() as folder:
        loop = data_loader_epoch(len(some), spec, Path(folder))
        ours, products, loader = fastest(run.epoch, matrix_products(run.vae, spec.batch_size, 20), loop)
    whole = len(train) / len(some)
    yield {
        "what": "training epoch, 60,000 images",
        "ours / s": ours * whole,
        "other": "its matrix products alone",
        "other / s": products * whole,
    }
    yield {
        "what": "training epoch, 60,000 images",
        "ours / s": ours * whole,
        "other": "DataLoader over torchvision's MNIST",
        "other / s": loader * whole,
    }

    vae, x = pretrained("mnist").vae, test.pixels[:64]

    def looped() -> list[Tensor]:
        jacobians = (torch.autograd.functional.jacobian(lambda p: vae.encode(p)[0], point) for point in x)
        return [torch.linalg.matrix_norm(jacobian, 2) for jacobian in jacobians]

    ours, other = fastest(lambda: jacobian_norms(vae, test.pixels[:1024]), looped)
    yield {
        "what": "encoder Jacobian norms, a point",
        "ours / s": ours / 1024,
        "other": "autograd.functional.jacobian in a loop",
        "other / s": other / len(x),
    }

    def attack(method: str, n: int) -> Callable[[], object]:
        return lambda: maximum_damage(vae, x[:n], 0.5, method=method, generator=torch.Generator().manual_seed(0))

    ours, other = fastest(attack("projected_gradient", 32), attack("lbfgs", 2))
    yield {
        "what": "maximum-damage attack, a point",
        "ours / s": ours / 32,
        "other": "L-BFGS-B, a problem a point",
        "other / s": other / 2,
    }


if __name__ == "__main__":
    table = pd.DataFrame(rows())
    table["other / ours"] = table["other / s"] / table["ours / s"]
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    print(table.to_string(index=False, float_format=lambda value: f"{value:.4g}"))
