"""A search for perturbations that break r-robustness within the radii that have been certified.

A certificate says that no such perturbation exists. So one that is found here, and confirmed by an exact test, is
evidence against the certificate. Finding none proves nothing. The certificates themselves are in
:mod:`vaerobust.certify.certificates`.

Start reading at :func:`violations`. The perturbations lie on the spheres of the given radii (``_on_spheres``). Few
samples screen them (``_suspects``), and exact binomial tests with new samples judge those that remain.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from scipy import stats
from torch import Tensor

from vaerobust import checks
from vaerobust.attacks import AttackSettings, maximum_damage, project
from vaerobust.contract import check_model, encode_points
from vaerobust.distance import distances
from vaerobust.jacobians import encoder_jacobian
from vaerobust.model import GaussianVAE
from vaerobust.randomness import Seed, as_generator, as_number, normal
from vaerobust.results import Result

ATTACK = AttackSettings(restarts=2)
"""Settings of each maximum-damage attack."""
PERTURBATIONS = 4096
"""Perturbations per block: about 12 MB of images in single precision, and several copies of them."""


@dataclass(frozen=True)
class ViolationSearch:
    """How many perturbations are tried at each point, and with how many samples.

    Attributes
    ----------
    directions : int
        Random directions, at least 1.
    attacks : int
        Maximum-damage attacks with different starts and noise; each gives one perturbation.
    screening_samples : int
        Draws of eta that screen each perturbation.
    judging_samples : int
        New draws in the test of each perturbation that the screening does not clear.

    Raises
    ------
    ValueError
        If a value is out of its range.
    """

    directions: int = 100
    attacks: int = 1
    screening_samples: int = 100
    judging_samples: int = 10_000

    def __post_init__(self) -> None:
        checks.count("ViolationSearch.directions", self.directions)
        checks.count("ViolationSearch.attacks", self.attacks, least=0)
        checks.count("ViolationSearch.screening_samples", self.screening_samples)
        checks.count("ViolationSearch.judging_samples", self.judging_samples)


SEARCH = ViolationSearch()
"""Default settings of :func:`violations`."""


@dataclass(frozen=True)
class Violations(Result):
    """How many perturbations within some radii break r-robustness: P(D(x, delta) <= r) <= 1/2.

    Attributes
    ----------
    tried : int
        Number of perturbations, each as long as the radius of its point.
    suspected : int
        Number of those that the screening does not clear.
    confirmed : int
        Number of those under which an exact test rejects r-robustness. If the radii are right, it is 0 with probability
        at least ``confidence``.
    confidence : float
        Confidence level of all tests together.
    """

    tried: int
    suspected: int
    confirmed: int
    confidence: float


class _Draws(NamedTuple):
    """What is random in a search. All points share it, so that it does not matter how a batch is split."""

    uniform: Tensor  # (directions, d_x), standard normal: uniform directions once they are scaled
    latent: Tensor  # (directions, d_z), standard normal
    attacks: list[int]  # seed of each attack
    screening: int  # seed of the screening
    judging: int  # seed of the tests


@torch.no_grad()
def violations(
    model: GaussianVAE,
    x: Tensor,
    radius: float | Tensor,
    r: float | Tensor,
    search: ViolationSearch = SEARCH,
    *,
    further: Tensor | None = None,
    confidence: float = 0.999,
    seed: Seed = 10,
) -> Violations:
    """Look for perturbations that break r-robustness on the spheres within which it has been certified.

    One half of the random directions are uniform. The other half are J' S^-1 nu with nu ~ N(0, I), along which the
    encoder moves, to first order. All points share the draws. The screening clears a perturbation if the samples with
    D <= r exceed half of all by more than two standard errors. It clears one that does break r-robustness with
    probability 0.03 at most. Each of the others is tested with new samples, by an exact binomial test. The tests of a
    call share the error 1 - ``confidence``.

    Parameters
    ----------
    model : GaussianVAE
    x : Tensor, shape (n, d_x)
    radius : float or Tensor, shape (n,)
        Radii of the spheres, >= 0, in input units. A radius of 0 claims nothing, so nothing is tried there.
    r : float or Tensor, shape (n,)
        The r of the certificates, >= 0, in input units.
    search : ViolationSearch
        How many perturbations and samples.
    further : Tensor, shape (k, n, d_x), optional
        More perturbations, scaled to the radius, such as those of :func:`vaerobust.margins.strongest_attack`.
    confidence : float
        Confidence level of all tests together, in (0, 1).
    seed : int or torch.Generator
        See :mod:`vaerobust.randomness`. All points share the draws, so a batch may be split in any way. Only the error
        that each test is allowed depends on how many perturbations one call tests.

    Returns
    -------
    Violations

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong shape or range.
    """
    checks.vectors("x", x)
    radius = checks.per_point("radius", radius, len(x), x, exact=True)
    r = checks.per_point("r", r, len(x), x)
    checks.probability("confidence", confidence)
    checks.instance("search", search, ViolationSearch)
    if further is not None:
        checks.stack("further", further, x)
    check_model(model, x, gradient=("encode", "decode"))
    draws = _drawn(model, x, search, seed)
    tried, suspects = 0, []
    claimed = torch.nonzero(radius)[:, 0]
    for points in claimed.split(max(1, PERTURBATIONS // search.directions)) if len(claimed) else ():
        given = None if further is None else further[:, points]
        delta = _on_spheres(model, x[points], radius[points], draws, given)  # (k, points, d_x)
        tried += delta.shape[0] * delta.shape[1]
        suspects.append(_suspects(model, x, r, points.repeat(len(delta)), delta.flatten(0, 1), search, draws))
    suspected = sum(len(points) for points, _ in suspects)
    # If P > 1/2, the chance that at most this many samples are within r is below one test's share of the error
    few = stats.binom.ppf((1 - confidence) / max(suspected, 1), search.judging_samples, 0.5) - 1
    confirmed = 0
    for points, delta in suspects:
        within = _within(model, x[points], delta, r[points], search.judging_samples, draws.judging)
        confirmed += int((within <= few).sum())
    return Violations(tried, suspected, confirmed, confidence)


def _drawn(model: GaussianVAE, x: Tensor, search: ViolationSearch, seed: Seed) -> _Draws:
    """Draw everything that is random in a search."""
    generator = as_generator(seed, x)
    half = search.directions // 2
    uniform = normal(search.directions - half, x, generator)
    latent = normal(half, encode_points(model, x[:1])[0], generator)
    screening, judging, *attacks = (as_number(generator, x) for _ in range(2 + search.attacks))
    return _Draws(uniform, latent, attacks, screening, judging)


def _on_spheres(model: GaussianVAE, x: Tensor, radius: Tensor, draws: _Draws, further: Tensor | None) -> Tensor:
    """Return k perturbations of each point whose norm is the point's radius, shape (k, n, d_x)."""
    whitened = encoder_jacobian(model, x) / encode_points(model, x)[1][:, :, None]  # S^-1 J, (n, d_z, d_x)
    found = [
        draws.uniform[:, None].expand(-1, len(x), -1),
        torch.einsum("ki,nij->knj", draws.latent, whitened),  # J' S^-1 nu
        *(maximum_damage(model, x, radius, ATTACK, seed=seed).delta[None] for seed in draws.attacks),
    ]
    if further is not None:
        found.append(further)
    delta = torch.cat(found).to(radius.dtype)  # (k, n, d_x)
    # First make them slightly too long; the projection then shortens them to the radius
    tiny = torch.finfo(delta.dtype).tiny
    delta = delta / delta.norm(dim=-1, keepdim=True).clamp(min=tiny) * (1 + 1e-6) * radius[:, None]
    return project(delta.to(x), radius)


def _suspects(
    model: GaussianVAE, x: Tensor, r: Tensor, points: Tensor, delta: Tensor, search: ViolationSearch, draws: _Draws
) -> tuple[Tensor, Tensor]:
    """Return the points and the perturbations, (suspects, d_x), that the screening does not clear.

    ``points`` holds the index into ``x`` of each perturbation's point.
    """
    within = _within(model, x[points], delta, r[points], search.screening_samples, draws.screening)
    # The standard error of the number within r is sqrt(samples) / 2 at most
    suspect = within <= search.screening_samples / 2 + search.screening_samples**0.5
    return points[suspect], delta[suspect]


def _within(model: GaussianVAE, x: Tensor, delta: Tensor, r: Tensor, samples: int, seed: int) -> Tensor:
    """Return the number of samples with D(x, delta) <= r, shape (n,), for one perturbation of each row of ``x``."""
    if not len(x):
        return torch.zeros(0, dtype=torch.int64, device=x.device)
    return (distances(model, x, delta, samples=samples, seed=seed) <= r[:, None]).sum(1)
