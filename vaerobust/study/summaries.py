"""What is kept of models whose weights do not ship, and of measurements that take too long for a page.

A summary is a small JSON file: the measured quantities of one model, by the same functions that the notebooks call,
with the spec and digests of what it was measured on. ``python -m vaerobust study`` trains and measures what is missing.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from vaerobust.attacks import AttackSettings, maximum_damage
from vaerobust.batches import ROWS, slices
from vaerobust.bounds import theorem_1_quotient
from vaerobust.certify.both_sides import curves, sandwich
from vaerobust.criterion import (
    distance_quantile,
    probability_of_robustness,
)
from vaerobust.distance import distances
from vaerobust.files import write_atomically
from vaerobust.jacobians import jacobian_norms
from vaerobust.likelihood import log_likelihood
from vaerobust.margins import MarginSearch, attack_margin
from vaerobust.model import VAE, kl_to_prior
from vaerobust.random_direction import RandomSearch, random_direction_radius
from vaerobust.zoo.data import Images
from vaerobust.zoo.protocol import Spec
from vaerobust.zoo.training import data_digests, hardware, versions
from vaerobust.zoo.weights import Trained

FOLDER = Path(__file__).parent / "stored"
LIMITS = (1.0, 4.0)
"""Norms L of the attacks on the likelihood of few images."""
ALL_LIMITS = (1.0, 2.0, 4.0, 10.0)
"""The same where every test image is attacked; they span Figs. 5 (c) and 7 (b)."""
STRONG = AttackSettings(steps=40, restarts=2, samples=8, choosing_samples=64)
QUICK = AttackSettings(steps=14, restarts=2, samples=4, choosing_samples=4)
"""Settings of the attack: a fifth of the time where every test image is attacked, for a somewhat smaller damage."""
AGAIN = 100
"""Of so many images a measurement over all is kept by itself, so that it can be had again in seconds."""
CURVE_RADII = (0.005, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1.0)
"""Norms of perturbations in the curves of r."""
ACTIVE_NATS = 0.01
Summary = dict[str, Any]


@dataclass(frozen=True)
class Choice:
    """What the paper leaves open about a margin, and how one measurement settles it.

    Attributes
    ----------
    level : float
        r is this quantile of D(x), unless ``r`` is given.
    r : float, optional
        The same r for every image.
    samples : int
        Draws behind r, and behind each test of r-robustness.
    perturb_sigma : bool
        Does the perturbation move sigma (Algorithm 2) or not (Eq. 3)?
    reference : {'mean', 'sample'}
        Distance from g(mu(x)) (Eq. 3) or from another sampled output (Definition 3.1).
    method, steps, restarts, draws : str, int, int, int
        Of the attack; ``draws`` of the encoder's noise is what its optimiser sees.
    box : bool
        Do attacked images stay in [0, 1]?
    """

    level: float = 0.9
    r: float | None = None
    samples: int = 1000
    perturb_sigma: bool = False
    reference: str = "mean"
    method: str = "projected_gradient"
    steps: int = 20
    restarts: int = 2
    draws: int = 8
    box: bool = False


CHOICES = {
    "as everywhere": Choice(),
    "r: 0.75-quantile": Choice(level=0.75),
    "r: 0.99-quantile": Choice(level=0.99),
    "r = 2": Choice(r=2.0),
    "r = 4": Choice(r=4.0),
    "r = 6": Choice(r=6.0),
    "sigma moves": Choice(perturb_sigma=True),
    "sampled reference": Choice(reference="sample"),
    "40 samples": Choice(samples=40),
    "4000 samples": Choice(samples=4000),
    "pixels in [0, 1]": Choice(box=True),
    "stronger attack": Choice(steps=80, restarts=4, draws=16),
    "L-BFGS-B": Choice(method="lbfgs"),
}
"""Each but the first changes one thing."""
DEAR = ("stronger attack", "L-BFGS-B")


def noise(stream: int) -> torch.Generator:
    """Return the generator of one purpose: r, judging and damage never share samples, all models do."""
    return torch.Generator().manual_seed(stream)


def encoder(vae: VAE, x: Tensor, level: float = 0.9) -> Summary:
    """Return mean and standard deviation over images of sigma, the norms of J and Theorem 1's bound at p = ``level``.

    Parameters
    ----------
    vae : VAE
    x : Tensor, shape (n, d_x)
    level : float
        P(D(x) <= r) when r is this quantile of D(x).

    Returns
    -------
    dict
        By quantity, a dict with 'mean' and 'std'; and 'active', the number of latents that carry information.
    """
    mu, sigma = vae.encode(x)
    active = kl_to_prior(mu[..., None], sigma[..., None]).mean(0) > ACTIVE_NATS
    norms = jacobian_norms(vae, x)
    least = sigma.min(1).values
    columns = {
        "sigma": sigma.mean(1),
        "active sigma": sigma[:, active].mean(1),
        "min sigma": least,
        "frobenius": norms.frobenius,
        "spectral": norms.spectral,
        "bound": theorem_1_quotient(sigma, norms.frobenius, level),
    }
    found: Summary = {name: {"mean": float(c.mean()), "std": float(c.std())} for name, c in columns.items()}
    return found | {"active": int(active.sum())}


def margins(vae: VAE, x: Tensor, choice: Choice, *, random: bool = False) -> Summary:
    """Return lists: r, p, Theorem 1's bound at the lower limit of p, attack margin, perhaps random-direction radius."""
    if choice.r is None:
        d = distances(vae, x, samples=choice.samples, reference=choice.reference, seed=noise(1))
        r = distance_quantile(d, choice.level).value
    else:
        r = torch.full((len(x),), choice.r)
    d = distances(vae, x, samples=choice.samples, reference=choice.reference, seed=noise(2))
    p = probability_of_robustness(d, r)
    # at the lower limit of p, since an estimate of 1 would make the bound infinite
    bound = theorem_1_quotient(vae.encode(x)[1], jacobian_norms(vae, x).frobenius, p.low)
    attack = attack_margin(
        vae, x, r,
        attack=AttackSettings(
            choice.method, choice.steps, choice.restarts, choice.draws, box=choice.box, perturb_sigma=choice.perturb_sigma
        ),
        search=MarginSearch(judging_samples=choice.samples, reference=choice.reference), seed=100,
    )  # fmt: skip
    found = {"r": r, "p": torch.as_tensor(p.probability), "bound": bound, "attack": attack.radius}
    found |= {"censored": attack.censored, "confirmed": torch.as_tensor(attack.confirmed)}
    if random:
        chance = random_direction_radius(
            vae, x, r, RandomSearch(samples=200, grid=10, tolerance=0.05, perturb_sigma=choice.perturb_sigma), seed=200
        )
        found |= {"random": chance.radius, "random censored": torch.as_tensor(chance.censored)}
    return {name: value.tolist() for name, value in found.items()}


def explained(vae: VAE, x: Tensor, delta: Tensor, *, draws: int = 8) -> Tensor:
    """Return the mean of log p(x | z*) over noise that every image has of its own, shape (n,).

    So an average over many images averages the noise as well, which common noise would not allow.
    """
    mu, sigma = vae.encode(x + delta)
    z = mu[:, None] + sigma[:, None] * torch.randn(len(x), draws, mu.shape[1], generator=noise(4), dtype=x.dtype)
    return torch.cat([vae.log_likelihood(x[i, None], z[i]).mean(1) for i in slices(len(x), ROWS // draws)])


def damage(
    vae: VAE, x: Tensor, limits: tuple[float, ...] = LIMITS, *, attack: AttackSettings = STRONG, own_noise: bool = False
) -> Summary:
    """Return log p(x | z*) under attacks of each norm, and what the embedding of another image costs, in nats.

    Parameters
    ----------
    vae : VAE
    x : Tensor, shape (n, d_x)
    limits : tuple of float
        Norms of the attacks.
    attack : dict
        Settings of :func:`vaerobust.attacks.maximum_damage`.
    own_noise : bool
        Does z* have noise of its own for every image (:func:`explained`), or 32 draws that all share?

    Returns
    -------
    dict
        'images'; 'wrong', the mean log-likelihood under the embedding of another test image; and for each limit, as
        text, with '0' for no attack: 'mean' and 'std' over images of log p(x | z*), and 'loss std', that of the change.
    """

    def score(delta: Tensor) -> Tensor:
        if own_noise:
            return explained(vae, x, delta)
        return log_likelihood(vae, x, delta, samples=32, seed=noise(4))

    clean = score(torch.zeros_like(x))
    wrong = vae.log_likelihood(x, vae.sample(x.roll(1, 0), noise(5))).mean()
    found: Summary = {
        "images": len(x),
        "wrong": float(wrong),
        "0": {"mean": float(clean.mean()), "std": float(clean.std())},
    }
    for limit in limits:
        hit = score(maximum_damage(vae, x, limit, attack, seed=noise(3)).delta)
        found[f"{limit:g}"] = {
            "mean": float(hit.mean()), "std": float(hit.std()), "loss std": float((clean - hit).std()),
        }  # fmt: skip
    return found


def summarise(trained: Trained, images: Images, *, margin_images: int = 50, damage_images: int = 200) -> Summary:
    """Return the headline quantities of one model: encoder on all images, margins and damage on the first ones.

    Parameters
    ----------
    trained : Trained
    images : Images
        Test images of the model's data set.
    margin_images, damage_images : int
        How many of them are attacked for margins, and for the likelihood.

    Returns
    -------
    dict
        'encoder', 'own' and 'fixed' (margins at the 0.9-quantile of D(x) and at r = 4), 'damage', and a manifest.
    """
    start, vae, x = time.perf_counter(), trained.vae, images.pixels
    measured = {
        "encoder": encoder(vae, x),
        "own": margins(vae, x[:margin_images], CHOICES["as everywhere"]),
        "fixed": margins(vae, x[:margin_images], CHOICES["r = 4"]),
        "damage": damage(vae, x[:damage_images]),
    }
    return measured | manifest(trained, images, start)


def compare_choices(trained: Trained, images: Images, *, most: int = 30) -> Summary:
    """Return the margins of the first images under every choice; what costs much gets a fifth of them."""
    start, x = time.perf_counter(), images.pixels[:most]
    measured = {
        name: margins(trained.vae, x[: most // 5] if name in DEAR else x, choice, random=True)
        for name, choice in CHOICES.items()
    }
    return {"choices": measured} | manifest(trained, images, start)


def attack_all(trained: Trained, images: Images) -> Summary:
    """Return the damage to all images, and again to the first of them alone, by an attack that costs little."""
    start, vae, x = time.perf_counter(), trained.vae, images.pixels
    measured = {
        part: damage(vae, some, ALL_LIMITS, attack=QUICK, own_noise=True)
        for part, some in (("all", x), ("first", x[:AGAIN]))
    }
    return (
        measured
        | {"attack": {"steps": 14, "restarts": 2, "samples": 4, "judging_samples": 4}}
        | manifest(trained, images, start)
    )


def both_sides(trained: Trained, images: Images, *, most: int = 100, kept: int = 10) -> Summary:
    """Return the bounds on the margin of the first images from both sides, and the attacks on the first few of them.

    Returns
    -------
    dict
        'own' and 'fixed' with the columns of :func:`vaerobust.certify.both_sides.sandwich`; 'deltas', the attacks'
        perturbations for both in half precision, shape (kept, d_x); and a manifest.
    """
    start = time.perf_counter()
    columns, deltas = sandwich(trained.vae, images.pixels[:most])
    measured: Summary = {
        which: {name: value.tolist() for name, value in found.items()} for which, found in columns.items()
    }
    measured["deltas"] = {which: delta[:kept].half() for which, delta in deltas.items()}
    return measured | manifest(trained, images, start)


def whole_curves(trained: Trained, images: Images, *, most: int = 100) -> Summary:
    """Return the two ends of the least r against the norm of the perturbation, for the first images.

    Returns
    -------
    dict
        'radii'; 'certified' and 'broken' as in :class:`vaerobust.certify.both_sides.Curves`, a list a radius, with null
        for what is infinite; and a manifest.
    """
    start = time.perf_counter()
    found = curves(trained.vae, images.pixels[:most], CURVE_RADII)
    certified = [[r if math.isfinite(r) else None for r in line] for line in found.certified.tolist()]
    measured: Summary = {"radii": list(CURVE_RADII), "certified": certified, "broken": found.broken.tolist()}
    return measured | manifest(trained, images, start)


def manifest(trained: Trained, images: Images, start: float) -> Summary:
    """Return what was measured on what, by what, and for how long since ``start``."""
    return {
        "spec": trained.manifest["spec"],
        "final": trained.manifest["final"],
        "weights_sha256": trained.manifest["weights_sha256"],
        "data": {"source": images.source, "images": len(images), "sha256": data_digests(images)[images.split]},
        "seconds": time.perf_counter() - start,
        "versions": versions("torch", "numpy", "scipy"),
        "hardware": hardware(),
    }


def rounded(value: Any, digits: int = 5) -> Any:
    """Return a summary with its floats to so many significant digits, which keeps the files small."""
    if isinstance(value, dict):
        return {key: rounded(inner, digits) for key, inner in value.items()}
    if isinstance(value, list):
        return [rounded(inner, digits) for inner in value]
    return float(f"{value:.{digits}g}") if isinstance(value, float) else value


def write(path: Path, summary: Summary) -> None:
    """Write a summary, whole or not at all; its 'deltas', if any, go first, to a file of tensors beside it."""
    summary = dict(summary)
    if deltas := summary.pop("deltas", None):
        write_atomically(deltas_path(path), save(deltas))
    write_atomically(path, (json.dumps(rounded(summary)) + "\n").encode())


def deltas_path(path: Path) -> Path:
    """Return where the perturbations that belong to a summary are kept."""
    return path.with_suffix(".safetensors")


def summary(spec: Spec, kind: str = "", *, folder: Path = FOLDER) -> Summary:
    """Return the summary of a model.

    Parameters
    ----------
    spec : Spec
    kind : str
        What was measured, one of :data:`vaerobust.commands.KINDS`; the headline quantities if left out.
    folder : path

    Raises
    ------
    FileNotFoundError
        If there is none.
    ValueError
        If its file is corrupt.
    """
    path = path_of(spec, kind, folder=folder)
    try:
        found: Summary = json.loads(path.read_text())
        Spec(**found["spec"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"summary {path} is corrupt ({type(error).__name__}: {error})") from error
    return found


def path_of(spec: Spec, kind: str = "", *, folder: Path = FOLDER) -> Path:
    """Return where the summary of a model is kept."""
    return folder / ".".join(filter(None, [spec.name, kind, "json"]))
