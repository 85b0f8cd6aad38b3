"""Margins of the model linearised in the perturbation: estimates that take the decoder into account, no guarantees.

Theorem 1 bounds how far a perturbation moves the latents, whatever the decoder makes of that. Here the decoder is
linearised too, at each sample mu + S eta of the latents, where S = diag(sigma). So a perturbation delta changes the
reconstruction by J_g(mu + S eta) J delta. Begin with :func:`linearised_radii`: it returns two margins of the linearised
model and the direction of the perturbation that is worst for it, from which attacks start.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vaerobust import checks
from vaerobust.batches import points_within, slices
from vaerobust.contract import check_model, decode_points, encode_points, require_distances, rows_at_once
from vaerobust.distance import displacement
from vaerobust.jacobians import POINTS, decoder_jacobian, encoder_jacobian, largest_eigenvalue
from vaerobust.model import GaussianVAE
from vaerobust.numerics import at_least_single, double, svd
from vaerobust.randomness import Seed, as_generator, normal
from vaerobust.results import Result

HALVINGS = 100
"""Bisection steps for the multiplier lambda; its logarithm is then exact in double precision."""


FURTHEST = 1e150
"""Longest coordinate of a perturbation; its square is still a finite number."""


@dataclass(frozen=True, eq=False)
class LinearisedRadii(Result):
    """Margins of the model linearised at x, in input units. Estimates, and no guarantees.

    Attributes
    ----------
    decoder_aware : Tensor, shape (n,)
        Median over eta of (r - D(x)) / ||J_g(mu + S eta) J||_2; 0 where that is negative. By the triangle inequality,
        no shorter perturbation takes the linearised D beyond r at that eta.
    second_moment : Tensor, shape (n,)
        The second-moment margin: the largest R with
        E_eta ||g(mu + S eta) - g(mu) + J_g(mu + S eta) J delta||^2 <= r^2 for all ||delta|| <= R. It is 0 where that
        fails at R = 0.
    direction : Tensor, shape (n, d_x)
        Unit vector along the perturbation of norm R that makes this expectation largest.
    """

    decoder_aware: Tensor
    second_moment: Tensor
    direction: Tensor


@torch.no_grad()
def linearised_radii(
    model: GaussianVAE,
    x: Tensor,
    r: float | Tensor,
    *,
    samples: int = 200,
    seed: Seed = 1,
) -> LinearisedRadii:
    """Return margins of the model that is linearised in the perturbation: its encoder at x, its decoder at each sample.

    Parameters
    ----------
    model : GaussianVAE
    x : Tensor, shape (n, d_x)
    r : float or Tensor, shape (n,)
        Largest distance that counts as robust, >= 0, in input units.
    samples : int
        Draws of eta, the same for every point.
    seed : int or torch.Generator
        Source of eta; see :mod:`vaerobust.randomness`.

    Returns
    -------
    LinearisedRadii

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong shape or range.
    """
    checks.vectors("x", x)
    checks.count("samples", samples)
    r = checks.per_point("r", r, len(x), x)
    generator = as_generator(seed, x)
    check_model(model, x, gradient=("encode", "decode"))
    mu, sigma = encode_points(model, x)
    eta = normal(samples, mu, generator)  # (samples, d_z)
    parts = slices(len(x), max(1, points_within(rows_at_once(model, x), mu.shape[1], POINTS) // samples))
    found = [_linearised(model, x[i], r[i], mu[i], sigma[i], eta) for i in parts]
    return LinearisedRadii(*(torch.cat(one) for one in zip(*found, strict=True)))


def _linearised(
    model: GaussianVAE, x: Tensor, r: Tensor, mu: Tensor, sigma: Tensor, eta: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the fields of :class:`LinearisedRadii` for a few points."""
    centre = decode_points(model, mu, x)
    # How the noise alone moves the reconstruction, (n, samples, d_x)
    moved = displacement(model, mu[:, None], sigma[:, None], eta, centre[:, None])
    moved = require_distances(at_least_single(moved))
    z = mu[:, None] + sigma[:, None] * eta  # (n, samples, d_z)
    slopes = at_least_single(decoder_jacobian(model, z.flatten(0, 1)))
    slopes = slopes.unflatten(0, z.shape[:2])  # (n, samples, d_x, d_z)
    # From here on ``slopes`` is J_g J in the basis of the right singular vectors of J: d_z columns in place of d_x
    left, singular, right = svd(encoder_jacobian(model, x))
    slopes = slopes @ (left * singular[:, None])[:, None]  # (n, samples, d_x, d_z)
    gram = slopes.mT @ slopes  # (n, samples, d_z, d_z)
    room = r[:, None] - moved.norm(dim=-1)  # (n, samples)
    decoder_aware = torch.where(room > 0, room / largest_eigenvalue(gram).sqrt(), 0.0).median(dim=1).values
    # With delta = right' v, the expectation is E ||moved + slopes v||^2 = constant + 2 linear.v + v' E[gram] v. It is
    # computed in double precision, since _largest_ball divides by small differences.
    constant = double(moved).pow(2).sum(-1).mean(1)
    linear = double(slopes.mT @ moved[..., None])[..., 0].mean(1)
    values, vectors = torch.linalg.eigh(double(gram).mean(1))
    rotated = (vectors.mT @ linear[..., None])[..., 0]  # ``linear`` in the basis of the eigenvectors
    radius, best = _largest_ball(double(r) ** 2 - constant, rotated, values.clamp(min=0))
    direction = (double(right.mT) @ (vectors @ best[..., None]))[..., 0]
    direction = direction / direction.norm(dim=1, keepdim=True).clamp(min=1e-300)
    return decoder_aware.to(x), radius.to(x), direction.to(x)


def _largest_ball(room: Tensor, linear: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest R with max over ||v|| <= R of 2 b'v + v' diag(values) v <= room, and the maximiser v.

    This is a trust-region problem. Its maximum lies on the sphere ||v|| = R, at v_i = b_i / (lambda - values_i), where
    lambda is the multiplier of the constraint and lies above the largest value. Both R = ||v|| and the maximum fall as
    lambda grows. So bisection finds the lambda at which the maximum equals the room.

    Parameters
    ----------
    room : Tensor, shape (n,)
        r^2 less the expectation at delta = 0.
    linear : Tensor, shape (n, d_z)
        b, in the eigenvectors' basis.
    values : Tensor, shape (n, d_z)
        Eigenvalues in ascending order, >= 0.

    Returns
    -------
    Tensor of shape (n,), Tensor of shape (n, d_z)
        R, which is 0 where the room is not positive, and v.
    """
    top = values[:, -1:]
    # If b is orthogonal to the top eigenvector (the "hard case" of trust regions), ||v|| stays bounded for all lambda.
    # So b gets a tiny component along that eigenvector. The last term keeps a decoder that does not move from 0 / 0.
    scale = linear.norm(dim=1, keepdim=True) + top * 1e-3 + 1e-200
    last = torch.where(linear[:, -1:].abs() < 1e-9 * scale, 1e-9 * scale, linear[:, -1:])
    linear = torch.cat([linear[:, :-1], last], 1)
    low, high = torch.full_like(top, -60.0), torch.full_like(top, 60.0)  # of log((lambda - top) / scale)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        v = linear / (top + middle.exp() * scale - values)
        over = (2 * linear * v + values * v**2).sum(1, keepdim=True) > room[:, None]
        low, high = torch.where(over, middle, low), torch.where(over, high, middle)
    v = linear / (top + high.exp() * scale - values)  # at ``high`` the maximum is within the room
    v = v.nan_to_num(nan=0.0, posinf=FURTHEST, neginf=-FURTHEST)  # where the room is so large that no lambda reaches it
    return torch.where(room > 0, v.norm(dim=1), 0.0), v
