"""Attacks on a VAE's reconstruction: maximum damage (Eq. 6) and the targeted attacks of Section 2.2.

Every attack returns a perturbation whose 2-norm is at most the radius and, with ``box``, whose perturbed input has all
pixels in [0, 1]; both at once, in floating point too. The noise that the optimiser sees is drawn once, so that its
objective is a fixed function; how good the perturbation is, is measured on noise that it has not seen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from scipy import optimize
from torch import Tensor

from vaerobust import checks
from vaerobust.batches import ROWS, slices
from vaerobust.criterion import decode_all, distances, encode_all
from vaerobust.model import GaussianVAE
from vaerobust.randomness import Seed, as_generator, normal

METHODS = ("projected_gradient", "lbfgs")

Objective = Callable[[slice, Tensor], Tensor]
"""What to make large: maps some of the points, and candidates (k, n, d_x) for these, to values (k, n)."""


class Attack(NamedTuple):
    """Perturbations found by an attack.

    Attributes
    ----------
    delta : Tensor, shape (n, d_x)
        One a point.
    objective : Tensor, shape (n,)
        What the attack sought, at ``delta``: the mean distance of Eq. 6, to be large, or the distance to the target, to
        be small. Where it depends on noise, the noise is new.
    """

    delta: Tensor
    objective: Tensor


def project(delta: Tensor, radius: Tensor, x: Tensor | None = None) -> Tensor:
    """Return the nearest point of the ball ||delta||_2 <= radius, or with ``x`` of the ball within the pixel box.

    Parameters
    ----------
    delta : Tensor, shape (..., n, d_x)
    radius : Tensor, shape (n,)
        In double precision, so that it is the number that was asked for.
    x : Tensor, shape (n, d_x), optional
        Inputs in [0, 1]; the result leaves x + delta in [0, 1].

    Returns
    -------
    Tensor, shape (..., n, d_x)
        Feasible exactly, norms taken in double precision.
    """
    if x is not None:
        # the nearest point of both sets is clip(delta / (1 + t)) for the least t >= 0 that brings the norm down to the
        # radius; the norm falls with the shrinkage 1 / (1 + t), so halve an interval of it
        low, high = torch.zeros_like(delta[..., :1]), torch.ones_like(delta[..., :1])
        reach = radius[:, None].to(delta.dtype)
        for _ in range(30):
            middle = (low + high) / 2
            inside = _clip(delta * middle, x).norm(dim=-1, keepdim=True) <= reach
            low, high = torch.where(inside, middle, low), torch.where(inside, high, middle)
        full = _clip(delta, x)
        delta = torch.where(full.norm(dim=-1, keepdim=True) <= reach, full, _clip(delta * low, x))
    norm = delta.double().norm(dim=-1, keepdim=True)
    # a hair less than radius / norm, since each coordinate and, in double precision, the norm itself is rounded once
    # more: its sum of d squares errs by at most d / 2 roundings; shrinking cannot leave the box
    hair = 2 * torch.finfo(delta.dtype).eps + delta.shape[-1] * torch.finfo(torch.double).eps
    shrink = (radius[:, None] * (1 - hair) / norm.clamp(min=1e-300)).clamp(max=1)
    return torch.where(norm <= radius[:, None], delta, (delta.double() * shrink).to(delta.dtype))


def _clip(delta: Tensor, x: Tensor) -> Tensor:
    return torch.maximum(torch.minimum(delta, 1 - x), -x)


def maximum_damage(
    model: GaussianVAE,
    x: Tensor,
    radius: float | Tensor,
    *,
    method: str = "projected_gradient",
    steps: int = 40,
    restarts: int = 4,
    samples: int = 16,
    judging_samples: int = 256,
    box: bool = False,
    perturb_sigma: bool = False,
    directions: Tensor | None = None,
    seed: Seed = 0,
) -> Attack:
    """Seek the perturbation that moves the reconstruction furthest, Eq. 6 with the mean over eta that it leaves out.

    argmax over ||delta||_2 <= radius of E_eta || g(mu(x + delta) + eta * sigma(x)) - g(mu(x)) ||_2.

    Parameters
    ----------
    model : GaussianVAE
    x : Tensor, shape (n, d_x)
        Inputs; pixels in [0, 1] if ``box``.
    radius : float or Tensor, shape (n,)
        Largest ||delta||_2, >= 0 (L of Figs. 5 and 7).
    method : {'projected_gradient', 'lbfgs'}
        Normalised gradient ascent with a falling step, all points and restarts at once; or scipy's L-BFGS-B, the
        optimiser of the authors' later work, a problem a point and restart.
    steps : int
        Of either optimiser.
    restarts : int
        Starting points; the first is next to 0, the others anywhere in the ball.
    samples : int
        Draws of eta that the optimiser sees.
    judging_samples : int
        New draws that choose among the restarts, and again new ones for ``objective``.
    box : bool
        Keep x + delta in [0, 1].
    perturb_sigma : bool
        Let the perturbation reach sigma too; Eq. 6 does not.
    directions : Tensor, shape (k, n, d_x), optional
        Further starting points: these perturbations, scaled to the radius.
    seed : int or torch.Generator
        See :mod:`vaerobust.randomness`.

    Returns
    -------
    Attack
        ``objective`` is the mean distance, in input units.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong shape or range.
    """
    radius = _prepare(x, radius, box, steps, restarts)
    checks.one_of("method", method, METHODS)
    checks.count("samples", samples)
    checks.count("judging_samples", judging_samples)
    with torch.no_grad():
        mu, sigma = model.encode(x)
        centre = model.decode(mu)
    generator = as_generator(seed, x)
    eta = normal(samples, mu, generator)

    def mean_distance(points: slice, delta: Tensor) -> Tensor:
        moved_mu, moved_sigma = encode_all(model, x[points] + delta)
        spread = moved_sigma if perturb_sigma else sigma[points]
        z = moved_mu[..., None, :] + spread[..., None, :] * eta
        return (decode_all(model, z) - centre[points][:, None]).norm(dim=-1).mean(-1)

    choosing, judging = torch.randint(2**62, (2,), generator=generator, device=x.device).tolist()

    def judge(points: slice, delta: Tensor, seed: int) -> Tensor:
        fresh = torch.Generator(x.device).manual_seed(seed)
        return distances(
            model, x[points], delta, samples=judging_samples, seed=fresh, perturb_sigma=perturb_sigma
        ).mean(1)  # fmt: skip

    search = _ascend if method == "projected_gradient" else _lbfgs
    if directions is not None:
        for given in directions:
            checks.vectors("directions", given, like=x)
    found = _search(search, mean_distance, x, radius, steps, restarts, box, generator, samples, directions)
    value = torch.stack([judge(slice(None), candidate, choosing) for candidate in found])
    delta = _best(found, value)
    return Attack(delta, judge(slice(None), delta, judging))


def latent_attack(
    model: GaussianVAE,
    x: Tensor,
    target: Tensor,
    radius: float | Tensor,
    *,
    steps: int = 40,
    restarts: int = 2,
    box: bool = False,
    seed: Seed = 0,
) -> Attack:
    """Seek the perturbation whose embedding comes nearest to a target's (Section 2.2).

    argmin over ||delta||_2 <= radius of || mu(x + delta) - mu(target) ||_2.

    Parameters
    ----------
    model : GaussianVAE
    x, target : Tensor, shape (n, d_x)
    radius, steps, restarts, box, seed
        As in :func:`maximum_damage`.

    Returns
    -------
    Attack
        ``objective`` is the distance between the embeddings, in latent units.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong shape or range.
    """
    checks.vectors("target", target, like=checks.vectors("x", x))
    with torch.no_grad():
        aim = model.encode(target)[0]

    def distance(points: slice, delta: Tensor) -> Tensor:
        return (encode_all(model, x[points] + delta)[0] - aim[points]).norm(dim=-1)

    return _targeted(distance, x, radius, steps, restarts, box, as_generator(seed, x))


def output_attack(
    model: GaussianVAE,
    x: Tensor,
    target: Tensor,
    radius: float | Tensor,
    *,
    steps: int = 40,
    restarts: int = 2,
    box: bool = False,
    seed: Seed = 0,
) -> Attack:
    """Seek the perturbation whose reconstruction comes nearest to a target (Section 2.2).

    argmin over ||delta||_2 <= radius of || g(mu(x + delta)) - target ||_2.

    Parameters
    ----------
    model : GaussianVAE
    x, target : Tensor, shape (n, d_x)
    radius, steps, restarts, box, seed
        As in :func:`maximum_damage`.

    Returns
    -------
    Attack
        ``objective`` is the distance from reconstruction to target, in input units.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong shape or range.
    """
    checks.vectors("target", target, like=checks.vectors("x", x))

    def distance(points: slice, delta: Tensor) -> Tensor:
        return (decode_all(model, encode_all(model, x[points] + delta)[0]) - target[points]).norm(dim=-1)

    return _targeted(distance, x, radius, steps, restarts, box, as_generator(seed, x))


def _prepare(x: Tensor, radius: float | Tensor, box: bool, steps: int, restarts: int) -> Tensor:
    """Check what all attacks share and return the radius in double precision, shape (n,)."""
    (checks.pixels if box else checks.vectors)("x", x)
    checks.count("steps", steps)
    checks.count("restarts", restarts)
    return checks.per_point("radius", radius, len(x), x.double())


def _targeted(
    distance: Objective, x: Tensor, radius: float | Tensor,
    steps: int, restarts: int, box: bool, generator: torch.Generator,
) -> Attack:  # fmt: skip
    """Minimise a distance that depends on no noise."""
    radius = _prepare(x, radius, box, steps, restarts)
    found = _search(_ascend, lambda points, d: -distance(points, d), x, radius, steps, restarts, box, generator, 1)
    with torch.no_grad():
        parts = slices(len(x), max(1, ROWS // restarts))
        value = torch.cat([distance(points, found[:, points]) for points in parts], dim=1)
    return Attack(_best(found, -value), value.min(0).values)


def _search(
    search: Callable[[Objective, slice, Tensor, Tensor, Tensor | None, int], Tensor], objective: Objective,
    x: Tensor, radius: Tensor, steps: int, restarts: int, box: bool, generator: torch.Generator, samples: int,
    directions: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Run an optimiser from every start at every point, some points at a time; shape (starts, n, d_x)."""
    # the same starts for every point, so that a point's result does not depend on the company it is in
    direction = torch.randn(restarts, 1, x.shape[1], generator=generator, dtype=x.dtype, device=x.device)
    length = torch.rand(restarts, 1, 1, generator=generator, dtype=x.dtype, device=x.device)
    length[0] = 1e-4  # not 0: there the gradient of a distance can vanish
    start = (direction / direction.norm(dim=-1, keepdim=True) * length).expand(-1, len(x), -1)
    if directions is not None:
        unit = directions / directions.norm(dim=-1, keepdim=True).clamp(min=1e-30)
        start = torch.cat([start, unit.to(x)])
    found = []
    for points in slices(len(x), max(1, ROWS // (len(start) * samples))):
        inside = x[points] if box else None
        begin = project(start[:, points] * radius[points, None].to(x.dtype), radius[points], inside)
        found.append(search(objective, points, begin, radius[points], inside, steps))
    return torch.cat(found, dim=1)


def _best(candidates: Tensor, value: Tensor) -> Tensor:
    """Return for each point the candidate, of shape (restarts, n, d_x), with the largest value (restarts, n)."""
    return candidates[value.argmax(0), torch.arange(candidates.shape[1], device=candidates.device)]


def _gradient(objective: Objective, points: slice, delta: Tensor) -> tuple[Tensor, Tensor]:
    """Return objective (k, n) and its gradient in delta (k, n, d_x)."""
    delta = delta.detach().requires_grad_(True)
    with torch.enable_grad():
        value = objective(points, delta)
        (gradient,) = torch.autograd.grad(value.sum(), delta)
    return value.detach(), gradient


def _ascend(
    objective: Objective, points: slice, delta: Tensor, radius: Tensor, x: Tensor | None, steps: int
) -> Tensor:  # fmt: skip
    """Climb by normalised gradients with projection, and return the best point met on the way."""
    best, record = delta, torch.full(delta.shape[:-1], -torch.inf, dtype=delta.dtype, device=delta.device)
    for step in range(steps + 1):
        value, gradient = _gradient(objective, points, delta)
        better = value > record
        best, record = torch.where(better[..., None], delta, best), torch.where(better, value, record)
        # from half the ball's size down to nothing: long steps find the direction, short ones settle it
        length = radius[:, None].to(delta.dtype) * 0.5 * (1 - step / (steps + 1))
        direction = gradient / gradient.norm(dim=-1, keepdim=True).clamp(min=1e-30)
        delta = project(delta + length * direction, radius, x)
    return best


def _lbfgs(
    objective: Objective, points: slice, start: Tensor, radius: Tensor, x: Tensor | None, steps: int
) -> Tensor:  # fmt: skip
    """Climb with scipy's L-BFGS-B, one problem for each start and point: a joint one would share its line search.

    The variable u has the box as its bounds, and delta = u * min(1, radius / ||u||): shrinking towards 0 meets the
    ball's constraint and keeps the box's.
    """

    def ball(u: Tensor, i: int) -> Tensor:
        return u * (float(radius[i]) / u.norm().clamp(min=1e-30)).clamp(max=1)

    found = torch.empty_like(start)
    for k, i in np.ndindex(*start.shape[:2]):
        at = slice(points.start + i, points.start + i + 1)

        def loss(flat: np.ndarray, i: int = i, at: slice = at) -> tuple[float, np.ndarray]:
            u = torch.as_tensor(flat, dtype=start.dtype, device=start.device)[None, None]
            value, gradient = _gradient(lambda points, v: objective(points, ball(v, i)), at, u)
            return -float(value), -gradient.flatten().double().cpu().numpy()

        bounds = None if x is None else torch.stack([-x[i], 1 - x[i]], 1).double().cpu().numpy()
        options = {"maxiter": steps, "maxcor": 30}
        begin = start[k, i].double().cpu().numpy()
        result = optimize.minimize(loss, begin, jac=True, bounds=bounds, method="L-BFGS-B", options=options)
        found[k, i] = ball(torch.as_tensor(result.x, dtype=start.dtype, device=start.device), i)
    return project(found, radius, x)
