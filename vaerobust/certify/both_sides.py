"""The margin from both sides, for many points of one model: lower bounds, estimates, and upper bounds from attacks.

One function measures all bounds of this package at the same points, with the same r. Its result has a field for each
bound, and each field names the function that computes it.

Start reading at :func:`both_sides`. The same question for a given size of perturbation is answered in
:mod:`vaerobust.certify.curves`; a search for counter-examples to the certified radii is in
:mod:`vaerobust.certify.violations`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vaerobust import checks
from vaerobust.bounds import first_order_radii
from vaerobust.certify.certificates import certify_with_far_draws
from vaerobust.certify.failures import Failures, failures
from vaerobust.certify.network import encoder_mean
from vaerobust.contract import check_model
from vaerobust.criterion import distance_quantile
from vaerobust.distance import distances
from vaerobust.linearised import linearised_radii
from vaerobust.margins import STRONGEST_SEARCH, strongest_attack
from vaerobust.model import GaussianVAE
from vaerobust.random_direction import RandomSearch, random_direction_radius
from vaerobust.randomness import Seed, as_number
from vaerobust.results import Result

RANDOM_SEARCH = RandomSearch(samples=200, grid=8, tolerance=0.1, limit=64.0)
"""Settings of the random-direction radius: rough, since it is no bound and lies far above the others."""


@dataclass(frozen=True, eq=False)
class BothSides(Result):
    """Every bound on the margin of each point, for one r per point; each field but ``delta`` has shape (n,).

    All radii are in input units.

    Attributes
    ----------
    r : Tensor
        Largest distance that counts as robust, in input units.
    p_low : Tensor
        Lower confidence limit of P(D(x) <= r); see :class:`vaerobust.certify.certificates.Certificate`.
    theorem_1, spectral, whitened : Tensor
        First-order bounds at ``p_low``, no guarantees; see :func:`vaerobust.bounds.first_order_radii`.
    half_space, certified : Tensor
        Certified lower bounds; see :func:`vaerobust.certify.certificates.certify_with_far_draws`.
    decoder_aware, second_moment : Tensor
        Estimates; see :func:`vaerobust.linearised.linearised_radii`.
    attack : Tensor
        Attack margin, an upper bound where ``confirmed``, as ``upper_bound`` has it; see
        :func:`vaerobust.margins.strongest_attack`.
    confirmed, censored : Tensor of bool
        As in the result of the attack; see :class:`vaerobust.margins.AttackMargin`.
    random_direction : Tensor
        Norm at which perturbations in random directions leave P(D <= r) at 1/2, which is no bound; see
        :func:`vaerobust.random_direction.random_direction_radius`.
    random_direction_censored : Tensor of bool
        True where the search for that radius ended at its limit.
    moment_at_attack : Tensor
        Mean of D(x, delta)^2 / r^2 under the attack's perturbation.
    delta : Tensor, shape (n, d_x)
        The attack's perturbation.
    """

    r: Tensor
    p_low: Tensor
    theorem_1: Tensor
    spectral: Tensor
    whitened: Tensor
    half_space: Tensor
    certified: Tensor
    decoder_aware: Tensor
    second_moment: Tensor
    attack: Tensor
    confirmed: Tensor
    censored: Tensor
    random_direction: Tensor
    random_direction_censored: Tensor
    moment_at_attack: Tensor
    delta: Tensor

    @property
    def upper_bound(self) -> Tensor:
        """Upper bound on the margin, shape (n,): ``attack`` where ``confirmed``, and infinity elsewhere."""
        return torch.where(self.confirmed, self.attack, torch.inf)


@dataclass(frozen=True, eq=False)
class Sandwich(Result):
    """The margin from both sides, for two choices of r.

    Attributes
    ----------
    own : BothSides
        With r a quantile of each point's own D(x).
    fixed : BothSides
        With one r for all points.
    """

    own: BothSides
    fixed: BothSides


def both_sides(
    model: GaussianVAE,
    x: Tensor,
    *,
    level: float = 0.9,
    fixed_r: float = 4.0,
    samples: int = 50_000,
    confidence: float = 0.999,
    seed: Seed = 0,
) -> Sandwich:
    """Measure every bound on the margin of each point, at a quantile of its own D(x) and at one r for all points.

    Parameters
    ----------
    model : GaussianVAE
        With a ReLU encoder; see :func:`vaerobust.certify.certificates.certified_margin`.
    x : Tensor, shape (n, d_x)
    level : float
        In (0, 1). Each point's own r is the quantile of D(x) at this level, from samples that nothing else uses.
    fixed_r : float
        The r that all points share, >= 0, in input units.
    samples : int
        Draws of eta behind each certificate, and wider draws where they promise more.
    confidence : float
        Confidence level of each certificate and of each attack, at each point by itself, in (0, 1).
    seed : int or torch.Generator
        See :mod:`vaerobust.randomness`.

    Returns
    -------
    Sandwich

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong shape or range.
    """
    checks.vectors("x", x)
    checks.probability("confidence", confidence)
    checks.probability("level", level)
    checks.positive("fixed_r", fixed_r, zero=True)
    checks.count("samples", samples)
    number = as_number(seed, x)
    check_model(model, x, gradient=("encode", "decode"))
    encoder_mean(model, x)  # an encoder that cannot be certified is an error before any sample is drawn
    own_r = distance_quantile(distances(model, x, samples=4000, seed=number + 1), level).value  # (n,)
    r_values = [own_r, torch.full_like(own_r, fixed_r)]
    found = failures(model, x, r_values, samples=samples, seed=number + 2)
    own, fixed = (
        _measured(model, x, r, at_r, confidence, number) for r, at_r in zip(r_values, found, strict=True)
    )  # fmt: skip
    return Sandwich(own, fixed)


def _measured(
    model: GaussianVAE, x: Tensor, r: Tensor, found: Failures, confidence: float, number: int
) -> BothSides:  # fmt: skip
    """Measure every bound at one r per point.

    Each measurement has a seed of its own, ``number`` plus an offset. The offsets lie far apart where a function uses
    the seeds that follow its own.
    """
    certificate = certify_with_far_draws(model, x, r, found, confidence=confidence, seed=number + 5)
    first_order = first_order_radii(model, x, certificate.p_low)
    linearised = linearised_radii(model, x, r, seed=number + 3)
    search = replace(STRONGEST_SEARCH, confidence=confidence)
    attack = strongest_attack(model, x, r, linearised=linearised, search=search, seed=number + 100)
    random = random_direction_radius(model, x, r, RANDOM_SEARCH, seed=number + 200)
    at_attack = distances(model, x, attack.delta, samples=2000, seed=number + 4)  # (n, 2000)
    return BothSides(
        r=r,
        p_low=torch.as_tensor(certificate.p_low, device=x.device),
        theorem_1=first_order.frobenius,
        spectral=first_order.spectral,
        whitened=first_order.whitened,
        half_space=certificate.half_space,
        certified=certificate.radius,
        decoder_aware=linearised.decoder_aware,
        second_moment=linearised.second_moment,
        attack=attack.radius,
        confirmed=torch.as_tensor(attack.confirmed, device=x.device),
        censored=attack.censored,
        random_direction=random.radius,
        random_direction_censored=torch.as_tensor(random.censored),
        moment_at_attack=at_attack.pow(2).mean(1) / r**2,
        delta=attack.delta,
    )
