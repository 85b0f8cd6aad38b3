"""Attacks on a VAE's reconstruction: maximum damage (Eq. 6) and the targeted attacks of Section 2.2.

Begin with :func:`maximum_damage`. Every attack returns one perturbation per point whose 2-norm is at most the radius
and, with ``box``, whose perturbed input has all pixels in [0, 1]. Both hold exactly in floating point.

Stochastic objectives are evaluated on noise that is drawn once, so that the optimiser sees a fixed function. Fresh
noise then measures the damage of what it found. The smallest radius at which an attack succeeds is found in
:mod:`vaerobust.margins`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import optimize
from torch import Tensor

from vaerobust import checks
from vaerobust.batches import slices
from vaerobust.contract import check_model, decode_points, encode_points, require_finite, rows_at_once
from vaerobust.distance import decode_rows, distance, distances, encode_rows
from vaerobust.model import GaussianVAE
from vaerobust.numerics import at_least_single, double, precise
from vaerobust.randomness import Seed, as_generator, normal
from vaerobust.results import Result

METHODS = ("projected_gradient", "lbfgs")
HALVINGS = 30
"""Bisection steps of the projection onto the ball within the pixel box: enough for single precision."""
NEAR = 1e-4
"""Norm of the first starting point, as a share of the radius. It is not 0, where the gradient can vanish."""

Objective = Callable[[slice, Tensor], Tensor]
"""What an attack maximises: maps a slice of the points and perturbations of these n points, shape (k, n, d_x), with k
candidates for each point, to values of shape (k, n)."""


@dataclass(frozen=True)
class AttackSettings:
    """How hard an attack searches, and what it may change.

    Attributes
    ----------
    method : {'projected_gradient', 'lbfgs'}
        Normalised gradient ascent with a falling step, for all points and starts at once; or scipy's L-BFGS-B, the
        optimiser of the authors' later work, for one point and start at a time.
    steps : int
        Iterations of the optimiser.
    restarts : int
        Number of random starting points. The first lies next to 0, the others anywhere in the ball.
    samples : int
        Draws of eta that the optimiser sees.
    choosing_samples : int
        Fresh draws that choose the best of the perturbations from all starts. As many further draws measure its damage.
    box : bool
        True keeps all pixels of x + delta in [0, 1].
    perturb_sigma : bool
        True takes sigma at x + delta. False takes it at x, as Eq. 6 does.

    Raises
    ------
    ValueError
        If a value is out of its range.
    """

    method: str = "projected_gradient"
    steps: int = 40
    restarts: int = 4
    samples: int = 16
    choosing_samples: int = 256
    box: bool = False
    perturb_sigma: bool = False

    def __post_init__(self) -> None:
        checks.one_of("AttackSettings.method", self.method, METHODS)
        for name in ("steps", "restarts", "samples", "choosing_samples"):
            checks.count(f"AttackSettings.{name}", getattr(self, name))
        for name in ("box", "perturb_sigma"):
            checks.flag(f"AttackSettings.{name}", getattr(self, name))


@dataclass(frozen=True, eq=False)
class Attack(Result):
    """Perturbations found by an attack.

    Attributes
    ----------
    delta : Tensor, shape (n, d_x)
        One perturbation per point.
    objective : Tensor, shape (n,)
        What the attack sought, evaluated at ``delta``: the mean distance of Eq. 6, which it makes large, or the
        distance to the target, which it makes small. Stochastic objectives are evaluated on fresh noise.
    """

    delta: Tensor
    objective: Tensor


def maximum_damage(
    model: GaussianVAE,
    x: Tensor,
    radius: float | Tensor,
    settings: AttackSettings | None = None,
    *,
    starts: Tensor | None = None,
    seed: Seed = 0,
) -> Attack:
    """Seek the perturbation that moves the reconstruction furthest: Eq. 6, with a mean over eta, which Eq. 6 omits.

    argmax over ||delta||_2 <= radius of E_eta || g(mu(x + delta) + eta * sigma(x)) - g(mu(x)) ||_2.

    Parameters
    ----------
    model : GaussianVAE
    x : Tensor, shape (n, d_x)
        Inputs; pixels in [0, 1] if ``settings.box``.
    radius : float or Tensor, shape (n,)
        Largest ||delta||_2, >= 0, in input units; L of Figs. 5 and 7.
    settings : AttackSettings, optional
        The defaults of :class:`AttackSettings` if left out.
    starts : Tensor, shape (k, n, d_x), optional
        Further starting points. Each perturbation is scaled to the radius.
    seed : int or torch.Generator
        Source of noise and starts; see :mod:`vaerobust.randomness`.

    Returns
    -------
    Attack
        ``objective`` is the mean distance, in input units.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong shape or range.
    """
    settings = AttackSettings() if settings is None else checks.instance("settings", settings, AttackSettings)
    radius = _checked_radius(x, radius, settings)
    if starts is not None:
        checks.stack("starts", starts, x)
    generator = as_generator(seed, x)
    check_model(model, x, gradient=("encode", "decode"))
    mu, sigma = encode_points(model, x)
    centre = decode_points(model, mu, x)
    eta = normal(settings.samples, mu, generator)  # (samples, d_z)

    def mean_distance(points: slice, delta: Tensor) -> Tensor:
        """Mean of D over the noise, for candidates of shape (k, n, d_x)."""
        moved_mu, moved_sigma = encode_rows(model, x[points] + delta)  # (k, n, d_z)
        noise_sigma = moved_sigma if settings.perturb_sigma else sigma[points]
        d = distance(model, moved_mu[..., None, :], noise_sigma[..., None, :], eta, centre[points, None])
        return d.mean(-1)

    # Seeds of two new streams of noise: one chooses among the perturbations found, the other measures the choice
    choosing, measuring = torch.randint(2**62, (2,), generator=generator, device=generator.device).tolist()

    def fresh_distance(delta: Tensor, stream: int) -> Tensor:
        """Mean of D over fresh noise, for one perturbation per point."""
        samples, perturb_sigma = settings.choosing_samples, settings.perturb_sigma
        return distances(model, x, delta, samples=samples, seed=stream, perturb_sigma=perturb_sigma).mean(1)

    problem = _Problem(mean_distance, x, radius, settings.box, max(1, rows_at_once(model, x) // settings.samples))
    found = _optimise(problem, settings, generator, starts)  # (starts, n, d_x)
    delta = _best(found, torch.stack([fresh_distance(candidate, choosing) for candidate in found]))
    return Attack(delta, fresh_distance(delta, measuring))


def latent_attack(
    model: GaussianVAE,
    x: Tensor,
    target: Tensor,
    radius: float | Tensor,
    settings: AttackSettings | None = None,
    *,
    seed: Seed = 0,
) -> Attack:
    """Seek the perturbation whose embedding comes nearest to a target's (Section 2.2).

    argmin over ||delta||_2 <= radius of || mu(x + delta) - mu(target) ||_2.

    Parameters
    ----------
    model : GaussianVAE
    x, target : Tensor, shape (n, d_x)
    radius : float or Tensor, shape (n,)
        Largest ||delta||_2, >= 0, in input units.
    settings : AttackSettings, optional
        Method, steps, restarts and box; ``AttackSettings(restarts=2)`` if left out. The other settings have no effect,
        since the objective has no noise.
    seed : int or torch.Generator
        Source of the starts; see :mod:`vaerobust.randomness`.

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
    check_model(model, x, decoder=False, gradient=("encode",))
    aim = encode_points(model, target)[0]

    def to_target(points: slice, delta: Tensor) -> Tensor:
        return (encode_rows(model, x[points] + delta)[0] - aim[points]).norm(dim=-1)

    return _targeted(model, to_target, x, radius, settings, seed)


def output_attack(
    model: GaussianVAE,
    x: Tensor,
    target: Tensor,
    radius: float | Tensor,
    settings: AttackSettings | None = None,
    *,
    seed: Seed = 0,
) -> Attack:
    """Seek the perturbation whose reconstruction comes nearest to a target (Section 2.2).

    argmin over ||delta||_2 <= radius of || g(mu(x + delta)) - target ||_2.

    Parameters
    ----------
    model, x, target, radius, settings, seed
        As in :func:`latent_attack`.

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
    check_model(model, x, gradient=("encode", "decode"))

    def to_target(points: slice, delta: Tensor) -> Tensor:
        return (decode_rows(model, encode_rows(model, x[points] + delta)[0]) - target[points]).norm(dim=-1)

    return _targeted(model, to_target, x, radius, settings, seed)


def project(delta: Tensor, radius: Tensor, x: Tensor | None = None) -> Tensor:
    """Return the nearest perturbation in the ball ||delta||_2 <= radius, or with ``x`` in both ball and pixel box.

    Parameters
    ----------
    delta : Tensor, shape (..., n, d_x)
    radius : Tensor, shape (n,)
        In double precision where the device has it, so that the caller's number is not rounded to that of ``delta``.
    x : Tensor, shape (n, d_x), optional
        Inputs in [0, 1]. With them, x + delta stays in [0, 1] too.

    Returns
    -------
    Tensor, shape (..., n, d_x)
        The constraints hold exactly in floating point, with norms in double precision.
    """
    if x is not None:
        delta = _into_ball_and_box(delta, radius[:, None].to(delta.dtype), x)
    fine = delta.to(precise(delta.device))
    norm = fine.norm(dim=-1, keepdim=True)
    # The factor is slightly less than radius / norm, for two reasons: each coordinate is rounded once more, and the
    # norm is a sum of d squares, which errs by at most d / 2 roundings. Shrinking cannot leave the box, which contains
    # 0.
    slack = 2 * torch.finfo(delta.dtype).eps + delta.shape[-1] * torch.finfo(fine.dtype).eps
    shrink = (radius[:, None] * (1 - slack) / norm.clamp(min=torch.finfo(fine.dtype).tiny)).clamp(max=1)
    return torch.where(norm <= radius[:, None], delta, (fine * shrink).to(delta.dtype))


def _into_ball_and_box(delta: Tensor, radius: Tensor, x: Tensor) -> Tensor:
    """Return the nearest perturbation in ball and box, up to rounding.

    Given the Lagrange multiplier t / 2 of ||.||_2^2 <= radius^2, each pixel can be solved for by itself, which gives
    clip(delta / (1 + t)). The solution has the least t >= 0 that brings the norm down to the radius. The norm rises
    with the factor 1 / (1 + t), so bisection finds the largest factor that fits.
    """

    def fits(candidate: Tensor) -> Tensor:
        return candidate.norm(dim=-1, keepdim=True) <= radius

    low, high = torch.zeros_like(delta[..., :1]), torch.ones_like(delta[..., :1])  # factors; ``low`` fits
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        inside = fits(_clip(delta * middle, x))
        low, high = torch.where(inside, middle, low), torch.where(inside, high, middle)
    whole = _clip(delta, x)
    return torch.where(fits(whole), whole, _clip(delta * low, x))


def _clip(delta: Tensor, x: Tensor) -> Tensor:
    """Return the nearest perturbation that leaves x + delta in [0, 1]."""
    return torch.maximum(torch.minimum(delta, 1 - x), -x)


def _checked_radius(x: Tensor, radius: float | Tensor, settings: AttackSettings) -> Tensor:
    """Check the inputs of an attack and return the radius in double precision, shape (n,)."""
    (checks.pixels if settings.box else checks.vectors)("x", x)
    return checks.per_point("radius", radius, len(x), x, exact=True)


def _targeted(
    model: GaussianVAE,
    to_target: Objective,
    x: Tensor,
    radius: float | Tensor,
    settings: AttackSettings | None,
    seed: Seed,
) -> Attack:
    """Seek the perturbations that minimise a distance to a target, which depends on no noise."""
    settings = (
        AttackSettings(restarts=2) if settings is None else checks.instance("settings", settings, AttackSettings)
    )  # fmt: skip
    radius = _checked_radius(x, radius, settings)
    rows = rows_at_once(model, x)
    problem = _Problem(lambda points, delta: -to_target(points, delta), x, radius, settings.box, rows)
    found = _optimise(problem, settings, as_generator(seed, x), None)
    with torch.no_grad():
        parts = slices(len(x), max(1, rows // settings.restarts))
        value = torch.cat([to_target(points, found[:, points]) for points in parts], dim=1)  # (starts, n)
    return Attack(_best(found, -value), value.min(0).values)


class _Problem(NamedTuple):
    """What an optimiser maximises, and under which constraints.

    ``candidates`` is how many candidates, of all points together, may pass through the model at a time.
    """

    objective: Objective
    x: Tensor  # (n, d_x)
    radius: Tensor  # (n,), in double precision
    box: bool
    candidates: int

    def part(self, points: slice) -> _Part:
        """Return the problem for a slice of the points."""
        x_if_box = self.x[points] if self.box else None
        return _Part(lambda delta: self.objective(points, delta), self.radius[points], x_if_box)


class _Part(NamedTuple):
    """The problem for a slice of the points."""

    objective: Callable[[Tensor], Tensor]  # maps perturbations (k, n, d_x) to values (k, n)
    radius: Tensor  # (n,)
    x: Tensor | None  # (n, d_x); None where there is no box


def _optimise(
    problem: _Problem, settings: AttackSettings, generator: torch.Generator, given: Tensor | None
) -> Tensor:  # fmt: skip
    """Run the optimiser from every start at every point, block by block; return perturbations (starts, n, d_x)."""
    starts = _starts(problem.x, settings.restarts, generator, given)
    found = []
    for points in slices(len(problem.x), max(1, problem.candidates // len(starts))):
        part = problem.part(points)
        begin = project(starts[:, points] * part.radius[:, None].to(problem.x.dtype), part.radius, part.x)
        if settings.method == "lbfgs":
            found.append(_lbfgs(problem, points, begin, settings.steps))
        else:
            found.append(_ascend(part, begin, settings.steps))
    return torch.cat(found, dim=1)


def _starts(x: Tensor, restarts: int, generator: torch.Generator, given: Tensor | None) -> Tensor:
    """Return starting points of norm <= 1, shape (starts, n, d_x).

    The random ones are the same for every point, so that a point's result does not depend on the others. Those that are
    ``given``, (k, n, d_x), are scaled to norm 1.
    """
    options: dict[str, Any] = {"generator": generator, "dtype": x.dtype, "device": generator.device}
    direction = torch.randn(restarts, 1, x.shape[1], **options).to(x.device)
    length = torch.rand(restarts, 1, 1, **options).to(x.device)
    length[0] = NEAR
    starts = (direction / direction.norm(dim=-1, keepdim=True) * length).expand(-1, len(x), -1)
    if given is None:
        return starts
    return torch.cat([starts, _unit(given).to(x)])


def _unit(vectors: Tensor) -> Tensor:
    """Return vectors scaled to norm 1, and 0 where they are 0."""
    # half precision has no number as small as the least norm
    norm = at_least_single(vectors.norm(dim=-1, keepdim=True)).clamp(min=1e-30)
    return (vectors / norm).to(vectors.dtype)


def _best(candidates: Tensor, value: Tensor) -> Tensor:
    """Return the candidate with the largest value for each point: (starts, n, d_x) and (starts, n) to (n, d_x)."""
    return candidates[value.argmax(0), torch.arange(candidates.shape[1], device=candidates.device)]


def _gradient(objective: Callable[[Tensor], Tensor], delta: Tensor) -> tuple[Tensor, Tensor]:
    """Return the objective, shape (k, n), and its gradient with respect to delta, shape (k, n, d_x)."""
    delta = delta.detach().requires_grad_(True)
    with torch.enable_grad():
        value = objective(delta)
        (gradient,) = torch.autograd.grad(value.sum(), delta)
    require_finite("model must give finite distances for all perturbations within the radius", value)
    require_finite("model must have finite gradients for all perturbations within the radius", gradient)
    return value.detach(), gradient


def _ascend(part: _Part, delta: Tensor, steps: int) -> Tensor:
    """Do projected gradient ascent with normalised gradients, and return the best perturbations met, (k, n, d_x)."""
    best, highest = delta, torch.full(delta.shape[:-1], -torch.inf, dtype=delta.dtype, device=delta.device)
    for step in range(steps + 1):
        value, gradient = _gradient(part.objective, delta)
        better = value > highest
        best, highest = torch.where(better[..., None], delta, best), torch.where(better, value, highest)
        # The step falls from half the ball's radius to 0: long steps find the direction, short ones refine it
        length = part.radius[:, None].to(delta.dtype) * 0.5 * (1 - step / (steps + 1))
        delta = project(delta + length * _unit(gradient), part.radius, part.x)
    return best


def _lbfgs(problem: _Problem, points: slice, start: Tensor, steps: int) -> Tensor:
    """Maximise with scipy's L-BFGS-B from each start, (k, n, d_x); return perturbations of the same shape.

    Each point has a call of its own, since all variables of a call share one line search. The optimiser's variable u
    has the box as its bounds, and delta = u * min(1, radius / ||u||). Shrinking u towards 0 brings it into the ball and
    keeps it in the box.
    """
    found = torch.empty_like(start)
    for k, i in np.ndindex(*start.shape[:2]):
        one = problem.part(slice(points.start + i, points.start + i + 1))
        found[k, i] = _lbfgs_from(one, start[k, i], steps)
    part = problem.part(points)
    return project(found, part.radius, part.x)


def _lbfgs_from(part: _Part, start: Tensor, steps: int) -> Tensor:
    """Maximise with L-BFGS-B at one point, from one start of shape (d_x,); return a perturbation, (d_x,)."""

    def tensor(flat: np.ndarray) -> Tensor:
        return torch.as_tensor(flat, dtype=start.dtype, device=start.device)

    def into_ball(u: Tensor) -> Tensor:
        return u * (float(part.radius[0]) / at_least_single(u.norm()).clamp(min=1e-30)).clamp(max=1).to(u.dtype)

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = _gradient(lambda u: part.objective(into_ball(u)), tensor(flat)[None, None])
        return -float(value), -double(gradient.flatten()).cpu().numpy()

    bounds = None if part.x is None else double(torch.stack([-part.x[0], 1 - part.x[0]], 1)).cpu().numpy()
    options = {"maxiter": steps, "maxcor": 30}
    begin = double(start).cpu().numpy()
    result = optimize.minimize(loss, begin, jac=True, bounds=bounds, method="L-BFGS-B", options=options)
    return into_ball(tensor(result.x))
