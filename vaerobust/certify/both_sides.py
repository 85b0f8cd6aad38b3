"""The margin from both sides, for many images of one model: every lower bound, and what breaks above it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from scipy import stats
from torch import Tensor

from vaerobust import checks
from vaerobust.attacks import AttackSettings, maximum_damage, project
from vaerobust.bounds import first_order_radii
from vaerobust.certify.certificates import certified_r, certify, failures
from vaerobust.criterion import distance_quantile
from vaerobust.distance import distances
from vaerobust.jacobians import encoder_jacobian
from vaerobust.linearised import linearised_radii
from vaerobust.margins import STRONGEST_SEARCH, strongest_attack, worst_directions
from vaerobust.model import GaussianVAE
from vaerobust.random_direction import RandomSearch, random_direction_radius
from vaerobust.randomness import normal

Columns = dict[str, Tensor]

PERTURBATIONS = 4096
"""Perturbations that are made, and meet the same noise, at a time: a few times 25 MB of images."""


class Curves(NamedTuple):
    """Two ends of the least r, for each of some norms R of perturbations.

    Attributes
    ----------
    certified : Tensor, shape (k, n)
        No perturbation shorter than R breaks r-robustness with any r above this; infinite where samples are too few.
    broken : Tensor, shape (k, n)
        A perturbation of norm R at most breaks r-robustness with every r below this.
    confidence : float
        Of each number by itself.
    """

    certified: Tensor
    broken: Tensor
    confidence: float


class Violations(NamedTuple):
    """How many perturbations within some radii break r-robustness: P(D(x, delta) <= r) <= 1/2.

    Attributes
    ----------
    tried : int
        Perturbations, all as long as the radius of their point.
    suspected : int
        Those with few enough of their first samples within r to be tested.
    confirmed : int
        Those of which the test is sure: if the radii are right, this is 0 with probability ``confidence``.
    confidence : float
    """

    tried: int
    suspected: int
    confirmed: int
    confidence: float


def sandwich(
    model: GaussianVAE,
    x: Tensor,
    *,
    level: float = 0.9,
    fixed_r: float = 4.0,
    samples: int = 50_000,
    confidence: float = 0.999,
) -> tuple[dict[str, Columns], dict[str, Tensor]]:
    """Measure every bound on the margin of each point, at a quantile of its own D(x) and at one r for all.

    Parameters
    ----------
    model : GaussianVAE
        With a ReLU encoder; see :func:`vaerobust.certify.certificates.certified_margin`.
    x : Tensor, shape (n, d_x)
    level : float
        r is this quantile of D(x), by samples of its own.
    fixed_r : float
        The other r.
    samples : int
        Draws behind each certificate.
    confidence : float
        Of each certificate, and of each attack, at each point by itself.

    Returns
    -------
    columns : dict
        'own' and 'fixed', each a dict of columns, a number a point: 'r'; 'p low', the lower limit of P(D(x) <= r); the
        first-order bounds at that limit, 'theorem 1', 'spectral' and 'whitened'; 'half space' and 'certified', the
        certified ones; the estimates 'decoder aware' and 'second moment'; the upper bound 'attack', with 'confirmed'
        and 'censored', and the mean of D^2 / r^2 under it, 'moment at attack'; and 'random', where random directions
        break half of the samples, with 'random censored'.
    deltas : dict
        The attacks' perturbations for both, each shape (n, d_x).

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong shape or range.
    """

    def noise(stream: int) -> torch.Generator:
        return torch.Generator(x.device).manual_seed(stream)

    own = distance_quantile(distances(model, x, samples=4000, seed=noise(1)), level).value
    radii = {"own": own, "fixed": torch.full_like(own, fixed_r)}
    judged = failures(model, x, list(radii.values()), samples=samples, seed=noise(2))
    columns: dict[str, Columns] = {}
    deltas: dict[str, Tensor] = {}
    for (name, r), found in zip(radii.items(), judged, strict=True):
        certificate = certify(model, x, found, confidence=confidence)
        first_order = first_order_radii(model, x, certificate.p_low)
        linearised = linearised_radii(model, x, r, seed=noise(3))
        attack = strongest_attack(
            model, x, r, linearised=linearised, search=replace(STRONGEST_SEARCH, confidence=confidence), seed=100
        )
        chance = random_direction_radius(
            model, x, r, RandomSearch(samples=200, grid=8, tolerance=0.1, limit=64.0), seed=200
        )
        columns[name] = {
            "r": r,
            "p low": torch.as_tensor(certificate.p_low),
            "theorem 1": first_order.frobenius,
            "spectral": first_order.spectral,
            "whitened": first_order.whitened,
            "half space": certificate.half_space,
            "certified": certificate.radius,
            "decoder aware": linearised.decoder_aware,
            "second moment": linearised.second_moment,
            "attack": attack.radius,
            "confirmed": torch.as_tensor(attack.confirmed),
            "censored": attack.censored,
            "random": chance.radius,
            "random censored": torch.as_tensor(chance.censored),
        }
        at_attack = distances(model, x, attack.delta, samples=2000, seed=noise(4))
        columns[name]["moment at attack"] = at_attack.pow(2).mean(1) / r**2
        deltas[name] = attack.delta
    return columns, deltas


def curves(
    model: GaussianVAE,
    x: Tensor,
    radii: Sequence[float],
    *,
    samples: int = 50_000,
    steps: int = 10,
    judging_samples: int = 2000,
    confidence: float = 0.999,
    refine: int = 6,
    seed: int = 0,
) -> Curves:
    """Enclose, for perturbations of some sizes, the least r with which each point is r-robust under all of them.

    Parameters
    ----------
    model : GaussianVAE
        With a ReLU encoder; see :func:`vaerobust.certify.certificates.certified_margin`.
    x : Tensor, shape (n, d_x)
    radii : sequence of float
        Norms R of perturbations, >= 0, rising: each attack starts also from that of the last radius.
    samples : int
        Draws behind the certified end, the same for all radii.
    steps : int
        Of each attack.
    judging_samples : int
        Draws behind the other end, at each radius new to its attack.
    confidence : float
        Of each end, at each point and radius by itself.
    refine : int
        As in :func:`vaerobust.certify.certificates.certified_r`.
    seed : int

    Returns
    -------
    Curves

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong shape or range.
    """

    def noise(stream: int) -> torch.Generator:
        return torch.Generator(x.device).manual_seed(seed + stream)

    certified = certified_r(
        model, x, radii, samples=samples, seed=noise(1), confidence=confidence, refine=refine
    )  # fmt: skip
    checks.count("judging_samples", judging_samples)
    r = distance_quantile(distances(model, x, samples=1000, seed=noise(2)), 0.9).value
    worst = worst_directions(model, x, linearised_radii(model, x, r, seed=noise(3)))
    delta = torch.zeros_like(x)
    # of so many draws, as few as this or fewer lie below the median with probability alpha at most
    rank = int(stats.binom.ppf(1 - confidence, judging_samples, 0.5))
    broken = []
    for radius in radii:
        starts = torch.cat([worst, delta[None]])
        delta = maximum_damage(
            model, x, radius, AttackSettings(steps=steps, restarts=1), starts=starts, seed=noise(4)
        ).delta  # fmt: skip
        hit = distances(model, x, delta, samples=judging_samples, seed=noise(5)).sort(dim=1).values
        broken.append(hit[:, rank - 1] if rank else torch.zeros_like(hit[:, 0]))
    return Curves(certified, torch.stack(broken) if broken else certified.clone(), confidence)


@torch.no_grad()
def violations(
    model: GaussianVAE,
    x: Tensor,
    radius: float | Tensor,
    r: float | Tensor,
    *,
    directions: int = 100,
    attacks: int = 1,
    further: Tensor | None = None,
    samples: int = 100,
    judging_samples: int = 10_000,
    confidence: float = 0.999,
    seed: int = 0,
) -> Violations:
    """Look for perturbations that break r-robustness on the spheres within which it has been certified.

    Of the random directions half are uniform, and half are J' S^-1 nu with nu ~ N(0, I): those along which the encoder
    moves at all, to first order. Each perturbation is screened with few samples, more than two standard errors on the
    safe side, so that one that does break r-robustness escapes in 3 cases of 100 at most. Those that remain meet new
    samples in an exact binomial test each, which share the error that the confidence allows.

    Parameters
    ----------
    model : GaussianVAE
    x : Tensor, shape (n, d_x)
    radius : float or Tensor, shape (n,)
        Of the spheres, >= 0; nothing is claimed, so nothing is tried, where it is 0.
    r : float or Tensor, shape (n,)
        >= 0.
    directions : int
        Random ones, for each point, at least 1.
    attacks : int
        Maximum-damage attacks with different starts and noise, for each point; each gives one perturbation.
    further : Tensor, shape (k, n, d_x), optional
        More perturbations, scaled to the radius, such as those of :func:`strongest_attack`.
    samples, judging_samples : int
        Draws of eta in each screening and in each test.
    confidence : float
        Of all tests together.
    seed : int

    Returns
    -------
    Violations

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong shape or range.
    """
    checks.vectors("x", x)
    radius = checks.per_point("radius", radius, len(x), x.double())
    r = checks.per_point("r", r, len(x), x)
    checks.count("directions", directions)
    checks.count("attacks", attacks, least=0)
    checks.count("samples", samples)
    checks.count("judging_samples", judging_samples)
    checks.probability("confidence", confidence)
    for given in [] if further is None else further:
        checks.vectors("further", given, like=x)
    generator = torch.Generator(x.device).manual_seed(seed)

    def within(points: Tensor, delta: Tensor, samples: int) -> Tensor:
        d = distances(model, x[points], delta, samples=samples, seed=generator)
        return (d <= r[points, None]).sum(1)

    tried, suspects = 0, []
    claimed = torch.nonzero(radius)[:, 0]
    for some in claimed.split(max(1, PERTURBATIONS // directions)) if len(claimed) else ():
        given = None if further is None else further[:, some]
        delta = _on_spheres(model, x[some], radius[some], directions, attacks, given, generator)
        points = some.repeat(len(delta))
        delta = delta.flatten(0, 1)
        suspect = within(points, delta, samples) <= samples / 2 + samples**0.5
        suspects.append((points[suspect], delta[suspect]))
        tried += len(delta)
    suspected = sum(len(points) for points, _ in suspects)
    # P > 1/2 makes as few as this, or fewer, less likely than a test's share of the error
    few = stats.binom.ppf((1 - confidence) / max(suspected, 1), judging_samples, 0.5) - 1
    confirmed = sum(int((within(*of, judging_samples) <= few).sum()) for of in suspects if len(of[0]))
    return Violations(tried, suspected, confirmed, confidence)


def _on_spheres(
    model: GaussianVAE, x: Tensor, radius: Tensor, directions: int, attacks: int, further: Tensor | None,
    generator: torch.Generator,
) -> Tensor:  # fmt: skip
    """Return perturbations as long as the radii, shape (k, n, d_x)."""
    pull = encoder_jacobian(model, x) / model.encode(x)[1][:, :, None]
    half = directions // 2
    found = [
        normal(len(x) * (directions - half), x, generator).unflatten(0, (-1, len(x))),
        torch.einsum("kni,nij->knj", normal(len(x) * half, pull[0].mT, generator).unflatten(0, (half, len(x))), pull),
    ]
    for _ in range(attacks):
        found.append(maximum_damage(model, x, radius, AttackSettings(restarts=2), seed=generator).delta[None])
    if further is not None:
        found.append(further)
    way = torch.cat(found).double()
    # made a hair too long, for the projection to shorten exactly
    way = way / way.norm(dim=-1, keepdim=True).clamp(min=1e-300) * (1 + 1e-6) * radius[:, None]
    return project(way.to(x), radius)
