"""The margin from both sides, for many images of one model: every lower bound, and what breaks above it."""

from __future__ import annotations

import torch
from torch import Tensor

from vaerobust.algorithms import random_direction_radius
from vaerobust.bounds import encoder_jacobian, first_order_radii, linearised_radii
from vaerobust.certificates import certify, failures
from vaerobust.criterion import distance_quantile, distances
from vaerobust.margins import AttackMargin, attack_margin
from vaerobust.model import GaussianVAE

Columns = dict[str, Tensor]


def strongest_attack(
    model: GaussianVAE,
    x: Tensor,
    r: Tensor,
    *,
    direction: Tensor | None = None,
    steps: int = 10,
    samples: int = 16,
    judging_samples: int = 2000,
    final_samples: int = 10_000,
    tolerance: float = 0.03,
    confidence: float = 0.999,
    box: bool = False,
    seed: int = 0,
) -> AttackMargin:
    """Return the attack margin from starts along the directions that the linearised model says are worst.

    Each attack starts next to 0, along +- ``direction``, along the top right singular vector of S^-1 J, and from the
    smallest success so far.

    Parameters
    ----------
    model, x, r
        As in :func:`vaerobust.margins.attack_margin`.
    direction : Tensor, shape (n, d_x), optional
        That of :func:`vaerobust.bounds.linearised_radii`; the singular vector's alone if left out.
    steps, samples, judging_samples, final_samples, tolerance, confidence, box, seed
        As in :func:`vaerobust.margins.attack_margin`.

    Returns
    -------
    AttackMargin

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong shape or range.
    """
    with torch.no_grad():
        sigma = model.encode(x)[1]
    vectors = torch.linalg.svd(encoder_jacobian(model, x) / sigma[:, :, None], full_matrices=False).Vh[:, 0]
    starts = [vectors] if direction is None else [direction, -direction, vectors]
    return attack_margin(
        model, x, r, steps=steps, restarts=1, samples=samples, judging_samples=judging_samples,
        final_samples=final_samples, tolerance=tolerance, directions=torch.stack(starts),
        warm_start=True, confidence=confidence, box=box, seed=seed,
    )  # fmt: skip


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
        With a ReLU encoder; see :func:`vaerobust.certificates.certified_margin`.
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

    own = distance_quantile(distances(model, x, samples=4000, generator=noise(1)), level).value
    radii = {"own": own, "fixed": torch.full_like(own, fixed_r)}
    judged = failures(model, x, list(radii.values()), samples=samples, generator=noise(2))
    columns: dict[str, Columns] = {}
    deltas: dict[str, Tensor] = {}
    for (name, r), found in zip(radii.items(), judged, strict=True):
        certificate = certify(model, x, found, confidence=confidence)
        first_order = first_order_radii(model, x, certificate.p_low)
        linearised = linearised_radii(model, x, r, generator=noise(3))
        attack = strongest_attack(model, x, r, direction=linearised.direction, confidence=confidence, seed=100)
        chance = random_direction_radius(model, x, r, samples=200, grid=8, tolerance=0.1, limit=64.0, seed=200)
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
        at_attack = distances(model, x, attack.delta, samples=2000, generator=noise(4))
        columns[name]["moment at attack"] = at_attack.pow(2).mean(1) / r**2
        deltas[name] = attack.delta
    return columns, deltas
