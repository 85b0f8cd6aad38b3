"""Named alternatives timed side by side, and how cost grows: for ``make bench`` and a chapter of the book.

Each pair runs in turns, in one process, on the same input, and the fastest of its turns counts, since whatever else the
machine does only ever adds time. Ratios are what to quote; seconds depend on the machine. Where an alternative is too
slow to be run whole, a part of it is timed and scaled, and ``note`` says so.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy import stats
from scipy.interpolate import PchipInterpolator
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from torchvision import datasets, transforms

from vaerobust.algorithms import algorithm_2_as_printed, minimum_r
from vaerobust.attacks import AttackSettings
from vaerobust.certify.certificates import certify, failures
from vaerobust.distance import distances, distances_in_random_directions
from vaerobust.jacobians import jacobian_norms
from vaerobust.linearised import linearised_radii
from vaerobust.margins import MarginSearch, attack_margin, strongest_attack
from vaerobust.model import VAE, elbo_terms
from vaerobust.random_direction import RandomDirectionRadius, RandomSearch, random_direction_radius
from vaerobust.zoo import data
from vaerobust.zoo.protocol import Spec
from vaerobust.zoo.training import Run
from vaerobust.zoo.weights import pretrained

Call = Callable[[], object]
Share = Callable[[np.ndarray | float], np.ndarray]
START = 10.0
"""Where Algorithm 2 begins, in pixels."""
LEAN = AttackSettings(steps=5, restarts=1, samples=8, choosing_samples=32)
"""Settings of our attack that find margins no larger than L-BFGS-B's; the defaults find smaller ones, for more time."""

LINEARISED = 32
"""Samples behind the worst direction of the linearised model, which our attack starts from."""


class Timed(NamedTuple):
    """One comparison.

    Attributes
    ----------
    task, ours, other : str
        What is done, and by which two ways.
    seconds, other_seconds : float
        Of each, for the whole task.
    note : str
        What was scaled, and what else makes the two comparable.
    """

    task: str
    ours: str
    other: str
    seconds: float
    other_seconds: float
    note: str = ""

    @property
    def ratio(self) -> float:
        """How many times as long the other takes."""
        return self.other_seconds / self.seconds


def fastest(*calls: Call, turns: int = 3) -> list[float]:
    """Run the calls in turns and return the least seconds of each; a turn before three or more of them warms up."""
    seconds = [float("inf")] * len(calls)
    for turn in range(turns + (turns > 2)):
        for i, call in enumerate(calls):
            start = time.perf_counter()
            call()
            if turn or turns <= 2:
                seconds[i] = min(seconds[i], time.perf_counter() - start)
    return seconds


def noise(seed: int) -> torch.Generator:
    """Return a seeded generator."""
    return torch.Generator().manual_seed(seed)


def test_points(points: int) -> tuple[VAE, Tensor, Tensor]:
    """Return a trained model, test images and the 0.9-quantile of D at each."""
    vae, x = pretrained("mnist").vae, data.load("mnist").pixels[:points]
    return vae, x, minimum_r(vae, x, level=0.9, samples=4000, seed=noise(0)).value


def training(batches: int = 20, turns: int = 3) -> list[Timed]:
    """Time an epoch of training: ours in both precisions, its matrix products alone, and a DataLoader's."""
    spec = Spec()
    train, test = data.load("mnist", "train"), data.load("mnist").first(1)
    some = train.first(batches * spec.batch_size)
    ours, fast = Run(spec, some, test), Run(replace(spec, precision="bfloat16"), some, test)
    products = matrix_products(ours.vae, spec.batch_size, batches)
    with tempfile.TemporaryDirectory() as folder:
        loader = data_loader_epoch(len(some), spec, Path(folder))
        # in this order, so that the precision that an epoch of ours sets is float32's for what follows
        seconds = fastest(fast.epoch, ours.epoch, products, loader, turns=turns)
    quick, plain, least, usual = (one * len(train) / len(some) for one in seconds)
    task, note = "training epoch", f"{len(some):,} of {len(train):,} images, scaled"
    loop = "DataLoader over torchvision's MNIST, default Adam"
    return [
        Timed(task, "one tensor, fused Adam", loop, plain, usual, note),
        Timed(task, "the same, products in bfloat16", loop, quick, usual, f"{note}; the loop in float32"),
        Timed(
            task, "one tensor, fused Adam", "its matrix products alone", plain, least, f"{note}; none could be faster"
        ),
    ]


def matrix_products(vae: VAE, batch: int, batches: int) -> Call:
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


def data_loader_epoch(images: int, spec: Spec, folder: Path) -> Call:
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


def jacobians(points: int = 10_000, looped: int = 64, turns: int = 3) -> Timed:
    """Time both norms of the encoder's Jacobian at test images, against a loop over torch's own function."""
    vae, x = pretrained("mnist").vae, data.load("mnist").pixels[:points]

    def loop() -> list[tuple[Tensor, Tensor]]:
        found = (torch.autograd.functional.jacobian(lambda p: vae.encode(p)[0], point) for point in x[:looped])
        return [(torch.linalg.matrix_norm(one), torch.linalg.matrix_norm(one, 2)) for one in found]

    ours, other = fastest(lambda: jacobian_norms(vae, x), loop, turns=turns)
    scale = len(x) / len(x[:looped])
    return Timed(
        f"Jacobian norms, {len(x):,} points", "jacobian_norms", "autograd.functional.jacobian, matrix_norm", ours,
        other * scale, f"the loop on {len(x[:looped])} points, scaled",
    )  # fmt: skip


class EqualError(NamedTuple):
    """Algorithm 2 as printed against :func:`random_direction_radius` at one point, at the same error.

    Attributes
    ----------
    timed : Timed
    target : float
        Root mean square error of the radius, as a share of it, for which both were set up.
    error, other_error : float
        What it was over repeats, ours and the printed one's, as a share of the radius.
    step : float
        Of the printed algorithm, in pixels.
    samples, other_samples : int
        At each radius.
    drawn, other_drawn : float
        Samples drawn in all.
    """

    timed: Timed
    target: float
    error: float
    other_error: float
    step: float
    samples: int
    other_samples: int
    drawn: float
    other_drawn: float


def random_directions(target: float = 0.01, repeats: int = 10, pool: int = 2000, reference: int = 32_000) -> EqualError:
    """Compare the two at equal root mean square error of the radius, each set up to reach it at the least cost.

    Ours errs by sqrt(1/4 / samples) over the slope of the share at the radius. The printed algorithm stops at its first
    success on the way down, so that the law of what it returns follows from the share at each radius; of many steps and
    samples we give it those that reach the target with the fewest draws. Both errors are then measured over repeats.
    Its repeats begin a little above the radius, since passes further out hardly ever succeed; its time counts them.

    Parameters
    ----------
    target : float
        Share of the radius.
    repeats : int
        Runs of each with new noise.
    pool, reference : int
        Samples behind the share at each radius, and behind the radius that errors are measured from.
    """
    vae, x, r = test_points(1)

    def search(samples: int, tolerance: float, seed: int) -> RandomDirectionRadius:  # sigma moves as in the printed one
        return random_direction_radius(
            vae, x, r, RandomSearch(START, samples, tolerance=tolerance, perturb_sigma=True), seed=seed
        )  # fmt: skip

    radius = float(search(reference, 1e-4, 1).radius)
    share = share_within(vae, x, r, radius, pool)
    allowed, near = target * radius, 0.1 * radius
    slope = float(share(radius - near) - share(radius + near)) / (2 * near)
    samples = int(np.ceil((0.5 / slope / allowed) ** 2))
    step, other_samples, passes = cheapest_walk(share, radius, allowed)
    tolerance = allowed / 4
    # where no more than one run in a thousand would have stopped before
    above = radius + step * np.arange(int((START - radius) / step))[::-1]
    early = 1 - np.cumprod(1 - success(share(above), other_samples))
    begin = float(above[max(0, int(np.searchsorted(early, 1e-3)) - 1)])
    ours, theirs, drawn, seconds, a_pass = [], [], [], [], []
    for k in range(repeats):  # in turns
        start = time.perf_counter()
        found = search(samples, tolerance, 100 + k)
        seconds.append(time.perf_counter() - start)
        ours.append(float(found.radius) + tolerance / 2)  # the middle of the last bracket, or nearly
        drawn.append(int(found.drawn))
        start = time.perf_counter()
        walk = algorithm_2_as_printed(
            vae, x, float(r), step=step, samples=other_samples, start=begin + step * k / repeats, seed=noise(k)
        )  # fmt: skip
        a_pass.append((time.perf_counter() - start) / walk.iterations)
        theirs.append(walk.value)
    error, other_error = (np.sqrt(np.mean((np.array(found) / radius - 1) ** 2)) for found in (ours, theirs))
    timed = Timed(
        f"random-direction radius within {100 * target:g} %", "random_direction_radius", "Algorithm 2 as printed",
        min(seconds), min(a_pass) * passes, "the walk's last passes, scaled to all of them",
    )  # fmt: skip
    return EqualError(
        timed, target, float(error), float(other_error), step, samples, other_samples, float(np.mean(drawn)),
        passes * other_samples,
    )  # fmt: skip


def share_within(vae: VAE, x: Tensor, r: Tensor, radius: float, pool: int) -> Share:
    """Return P(D <= r) as a smooth function of the norm of a random perturbation, from samples common to all norms."""
    radii = np.unique(np.r_[np.linspace(0, 2 * radius, 17), np.linspace(2 * radius, START, 5)])
    d = [
        distances_in_random_directions(vae, x, float(one), samples=pool, perturb_sigma=True, seed=noise(2))
        for one in radii
    ]
    smooth = PchipInterpolator(radii, [float((one <= r).double().mean()) for one in d])
    # moved a little, so that it crosses one half at the radius that is known better
    return lambda at: np.clip(smooth(np.clip(at, 0, START)) + 0.5 - smooth(radius), 0, 1)


def success(share: np.ndarray, samples: int) -> np.ndarray:
    """Return the chance that at least half of new samples are within r."""
    return np.asarray(stats.binom.sf(np.ceil(samples / 2) - 1, samples, share))


def cheapest_walk(share: Share, radius: float, allowed: float) -> tuple[float, int, float]:
    """Return step, samples and mean passes with which Algorithm 2 errs by no more than allowed at the fewest draws."""
    best, least = None, np.inf
    for step in allowed * np.array([0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0]):
        for samples in np.unique(np.geomspace(8, 4 / allowed**2 + 8, 40).astype(int)):
            errors, passes = [], []
            for offset in (0.25, 0.75):  # of the grid from the radius, on which the error depends
                at = START - step * (np.arange(int(START / step)) + offset)
                chance = success(share(at), int(samples))
                law = chance * np.cumprod(np.r_[1.0, 1 - chance[:-1]])
                errors.append(law @ (at - step - radius) ** 2)
                passes.append(law @ np.arange(1, len(at) + 1))
            if np.mean(errors) <= allowed**2 and np.mean(passes) * samples < least:
                best, least = (float(step), int(samples), float(np.mean(passes))), float(np.mean(passes) * samples)
    if best is None:
        raise ValueError(f"allowed = {allowed} is more exact than any of the walks that were tried")
    return best


class EqualMargin(NamedTuple):
    """The attack margin against the same search with L-BFGS-B, with the margins that both found at the same points."""

    timed: list[Timed]
    ours: Tensor
    other: Tensor


def attacks(points: int = 16, other_points: int = 6, tolerance: float = 0.03, turns: int = 2) -> EqualMargin:
    """Time the attack margin, and re-running L-BFGS-B at each radius: by bisection, and on a grid from 0 upwards."""
    vae, x, r = test_points(points)
    few = slice(other_points)
    found = {}

    def ours() -> None:
        linearised = linearised_radii(vae, x, r, samples=LINEARISED, seed=noise(3))
        found["ours"] = strongest_attack(
            vae, x, r, linearised=linearised, attack=LEAN,
            search=MarginSearch(tolerance=tolerance, judging_samples=400, final_samples=2000, confidence=0.999, warm_start=True),
        )  # fmt: skip

    def bisection() -> None:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # its problems are too small for more: torch's threads and scipy's hinder each other
        try:
            found["other"] = attack_margin(
                vae,
                x[few],
                r[few],
                attack=AttackSettings("lbfgs", restarts=1),
                search=MarginSearch(tolerance=tolerance, confidence=0.999),
            )
        finally:
            torch.set_num_threads(threads)

    ours_seconds, other_seconds = fastest(ours, bisection, turns=turns)
    a_point, other_a_point = ours_seconds / len(x), other_seconds / len(x[few])
    # the bisection's own attacks: one at the limit, and one for each halving of the logarithm of limit / 1e-4 limit
    attacks_made = 1 + np.ceil(np.log2(np.log(1e4) / np.log1p(tolerance)))
    task, way = "attack margin, a point", "strongest_attack, lean"
    note = f"ours on {len(x)} points, the other on {len(x[few])} and one thread, its fastest"
    return EqualMargin(
        [
            Timed(task, way, "L-BFGS-B, bisection of radii", a_point, other_a_point, note),
            Timed(
                task, way, "L-BFGS-B, grid of radii as fine", a_point, other_a_point / attacks_made / tolerance,
                f"{note}, scaled from the bisection's attacks to 1 / tolerance of them",
            ),
        ],
        found["ours"].radius[few],
        found["other"].radius,
    )  # fmt: skip


def certificates(points: int = 4, samples: int = 100_000, wanted: int = 100) -> float:
    """Return the seconds that certified margins of so many points would take, scaled from fewer."""
    vae, x, r = test_points(points)

    def run() -> None:
        (found,) = failures(vae, x, [r], samples=samples, seed=noise(1))
        certify(vae, x, found)

    return fastest(run, turns=1)[0] * wanted / points


class Growth(NamedTuple):
    """Seconds against a size: the sizes, the seconds, and the slope of a line through their logarithms, its upper half.

    A slope of 1 says that twice the size takes twice the time.
    """

    sizes: list[int]
    seconds: list[float]
    slope: float


def growth(call: Callable[[int], Call], sizes: Sequence[int], turns: int = 3) -> Growth:
    """Time a call at each of some sizes, all in turns; ``call`` prepares it, untimed."""
    seconds = fastest(*(call(size) for size in sizes), turns=turns)
    half = len(sizes) // 2
    slope = np.polyfit(np.log(sizes[half:]), np.log(seconds[half:]), 1)[0]
    return Growth(list(sizes), seconds, float(slope))


def by_points(samples: int) -> dict[str, Callable[[int], Call]]:
    """Return calls whose cost grows with the number of points."""
    vae, x = pretrained("mnist").vae, data.load("mnist").pixels
    r = torch.full((len(x),), 2.0)
    return {
        "Jacobian norms": lambda n: lambda: jacobian_norms(vae, x[:n]),
        "distances": lambda n: lambda: distances(vae, x[:n], samples=samples),
        "random-direction radius": lambda n: (
            lambda: random_direction_radius(vae, x[:n], r[:n], RandomSearch(samples=samples))
        ),
    }


def by_samples(points: int) -> dict[str, Callable[[int], Call]]:
    """Return calls whose cost grows with the number of samples."""
    vae, x, r = test_points(points)
    return {
        "distances": lambda n: lambda: distances(vae, x, samples=n),
        "random-direction radius": lambda n: lambda: random_direction_radius(vae, x, r, RandomSearch(samples=n)),
        "failures for a certificate": lambda n: lambda: failures(vae, x, [r], samples=n),
    }


def by_latents(points: int, samples: int) -> dict[str, Callable[[int], Call]]:
    """Return calls whose cost grows with the number of latents, on untrained models."""
    x = data.load("mnist").pixels[:points]

    def of(work: Callable[[VAE], object]) -> Callable[[int], Call]:
        def prepare(latents: int) -> Call:
            vae = Spec(latents=latents).build()
            return lambda: work(vae)

        return prepare

    return {
        "Jacobian norms": of(lambda vae: jacobian_norms(vae, x)),
        "distances": of(lambda vae: distances(vae, x, samples=samples)),
        "failures for a certificate": of(lambda vae: failures(vae, x, [2.0], samples=samples)),
    }
