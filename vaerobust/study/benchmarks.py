"""Our ways to train, to take Jacobians and to attack, timed against the usual ways.

For ``make bench`` and a chapter of the book. Each function ``compare_...`` returns comparisons; how they are timed is
in :mod:`vaerobust.study.timing`. The two estimators of the random-direction radius are compared at equal error, in
:mod:`vaerobust.study.equal_error`.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from vaerobust.attacks import AttackSettings
from vaerobust.certify.certificates import certify
from vaerobust.certify.failures import failures
from vaerobust.jacobians import jacobian_norms
from vaerobust.linearised import linearised_radii
from vaerobust.margins import AttackMargin, MarginSearch, attack_margin, strongest_attack
from vaerobust.model import VAE, elbo_terms
from vaerobust.study.timing import Call, Comparison, example, fastest
from vaerobust.zoo import data
from vaerobust.zoo.protocol import Spec
from vaerobust.zoo.training import Run
from vaerobust.zoo.weights import pretrained

LEAN_ATTACK = AttackSettings(steps=5, restarts=1, samples=8, choosing_samples=32)
"""The cheapest settings with which our margins are no larger than L-BFGS-B's. The defaults give smaller margins."""
LEAN_SEARCH = MarginSearch(judging_samples=400, final_samples=2000, confidence=0.999, warm_start=True)
"""The settings of the margin search that go with :data:`LEAN_ATTACK`."""
LINEARISED_SAMPLES = 32
"""Samples behind the worst direction of the linearised model, from which our attack starts."""


def compare_training(batches: int = 20, turns: int = 3) -> list[Comparison]:
    """Time an epoch of training: ours in both precisions, a DataLoader's, and the matrix products alone.

    Parameters
    ----------
    batches : int
        Number of batches that are timed. The time is scaled to a whole epoch.
    turns : int
        Number of timed turns; see :func:`vaerobust.study.timing.fastest`.
    """
    spec = Spec()
    train, test = data.load("mnist", "train"), data.load("mnist").first(1)
    timed = train.first(batches * spec.batch_size)
    ours, fast = Run(spec, timed, test), Run(replace(spec, precision="bfloat16"), timed, test)
    products = matrix_products(ours.vae, spec.batch_size, batches)
    with tempfile.TemporaryDirectory() as folder:
        loader = data_loader_epoch(len(timed), spec, Path(folder))
        # Run.epoch sets torch's precision of matrix products. Since `ours` is second, all after it run in float32.
        seconds = fastest(fast.epoch, ours.epoch, products, loader, turns=turns)
    bfloat16, float32, products_alone, usual = (one * len(train) / len(timed) for one in seconds)
    task, note = "training epoch", f"{len(timed):,} of {len(train):,} images, scaled"
    way, loop = "one tensor, fused Adam", "DataLoader over torchvision's MNIST, default Adam"
    return [
        Comparison(task, way, loop, float32, usual, note),
        Comparison(task, "the same, products in bfloat16", loop, bfloat16, usual, f"{note}; the loop in float32"),
        Comparison(
            task, way, "its matrix products alone", float32, products_alone, f"{note}; none could be faster"
        ),
    ]  # fmt: skip


def matrix_products(vae: VAE, batch: int, batches: int) -> Call:
    """Return a call that computes the matrix products of some training steps, and nothing else."""
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
                if i:  # the first layer's inputs are images, which need no gradient
                    gradient @ weight

    return run


def data_loader_epoch(images: int, spec: Spec, folder: Path) -> Call:
    """Return a training epoch as it is often written: a DataLoader over torchvision's MNIST, and torch's default Adam.

    Parameters
    ----------
    images : int
        How many training images one epoch has.
    spec : Spec
    folder : path
        Gets a copy of the raw files, as torchvision expects them.

    Raises
    ------
    ImportError
        If torchvision is not installed.
    """
    try:
        from torchvision import datasets, transforms
    except ImportError as error:
        raise ImportError("this comparison needs torchvision: pip install 'vaerobust[book]'") from error
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


def compare_jacobians(points: int = 10_000, looped: int = 64, turns: int = 3) -> Comparison:
    """Time the Frobenius and spectral norms of the encoder's Jacobian, against a loop over torch's own function.

    Parameters
    ----------
    points : int
        Number of test images.
    looped : int
        How many of them the loop takes. Its time is scaled to all of them.
    turns : int
        Number of timed turns; see :func:`vaerobust.study.timing.fastest`.
    """
    vae, x = pretrained("mnist").vae, data.load("mnist").pixels[:points]

    def loop() -> list[tuple[Tensor, Tensor]]:
        found = (torch.autograd.functional.jacobian(lambda p: vae.encode(p)[0], point) for point in x[:looped])
        return [(torch.linalg.matrix_norm(one), torch.linalg.matrix_norm(one, 2)) for one in found]

    ours, other = fastest(lambda: jacobian_norms(vae, x), loop, turns=turns)
    scale = len(x) / len(x[:looped])
    return Comparison(
        f"Jacobian norms, {len(x):,} points", "jacobian_norms", "autograd.functional.jacobian, matrix_norm", ours,
        other * scale, f"the loop on {len(x[:looped])} points, scaled",
    )  # fmt: skip


@dataclass(frozen=True)
class AttackComparison:
    """Our search for the attack margin against two searches with L-BFGS-B.

    Attributes
    ----------
    by_bisection, on_grid : Comparison
        Our time against that of L-BFGS-B at each radius of a bisection, and at each radius of a grid from 0 upwards.
    ours, other : Tensor, shape (points,)
        The margins at the same points in pixels, by our search and by the bisection with L-BFGS-B.
    """

    by_bisection: Comparison
    on_grid: Comparison
    ours: Tensor
    other: Tensor


def compare_attacks(
    points: int = 16, other_points: int = 6, tolerance: float = 0.03, turns: int = 2
) -> AttackComparison:  # fmt: skip
    """Time the attack margin against L-BFGS-B run anew at each radius.

    Parameters
    ----------
    points : int
        Number of test images that our attack is timed on.
    other_points : int
        How many of them L-BFGS-B is timed on.
    tolerance : float
        Relative width of the bracket at which the searches end.
    turns : int
        Number of timed turns; see :func:`vaerobust.study.timing.fastest`.
    """
    vae, x, r = example(points)
    few = slice(other_points)
    found: dict[str, AttackMargin] = {}

    def ours() -> None:
        linearised = linearised_radii(vae, x, r, samples=LINEARISED_SAMPLES, seed=3)
        search = replace(LEAN_SEARCH, tolerance=tolerance)
        found["ours"] = strongest_attack(vae, x, r, attack=LEAN_ATTACK, search=search, linearised=linearised, seed=0)

    def bisection() -> None:
        search = MarginSearch(tolerance=tolerance, confidence=0.999)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # L-BFGS-B's problems are small, and several threads only slow it down
        try:
            found["other"] = attack_margin(
                vae, x[few], r[few], attack=AttackSettings("lbfgs", restarts=1), search=search, seed=0
            )  # fmt: skip
        finally:
            torch.set_num_threads(threads)

    seconds, other_seconds = fastest(ours, bisection, turns=turns)
    per_point, other_per_point = seconds / len(x), other_seconds / len(x[few])
    # The bisection attacks once at the limit, then halves a bracket of log(radius): log(1e4) wide at first, at the end
    # log(1 + tolerance). Each halving takes one attack.
    attacks_made = 1 + np.ceil(np.log2(np.log(1e4) / np.log1p(tolerance)))
    task, way = "attack margin, per point", "strongest_attack, lean"
    note = f"ours on {len(x)} points, the other on {len(x[few])} and one thread, its fastest"
    scaled = f"{note}, scaled from the bisection's attacks to 1 / tolerance of them"
    return AttackComparison(
        Comparison(task, way, "L-BFGS-B, bisection of radii", per_point, other_per_point, note),
        Comparison(
            task, way, "L-BFGS-B, grid of radii as fine", per_point, other_per_point / attacks_made / tolerance, scaled
        ),
        found["ours"].radius[few],
        found["other"].radius,
    )  # fmt: skip


def certificate_seconds(points: int = 4, samples: int = 100_000, wanted: int = 100) -> float:
    """Return the seconds that certified margins of ``wanted`` points take, scaled from fewer points.

    Parameters
    ----------
    points : int
        Number of points that are timed.
    samples : int
        Samples per point behind a certificate.
    wanted : int
        Number of points to which the time is scaled.
    """
    vae, x, r = example(points)

    def run() -> None:
        (found,) = failures(vae, x, [r], samples=samples, seed=1)
        certify(vae, x, found)

    return fastest(run, turns=1)[0] * wanted / points
