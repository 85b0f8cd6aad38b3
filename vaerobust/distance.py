"""The distance D(x, delta) of Eqs. 1 and 3: how far a perturbation and the encoder's noise move a reconstruction.

    D(x, delta) = || g(mu(x + delta) + eta * sigma(x)) - g(mu(x)) ||_2,    eta ~ N(0, I).

:func:`displacement` is the vector inside the norm, and the only place where it is computed: sampling, attacks,
linearised bounds, certificates and Algorithm 2 all call it. :func:`distances` samples D for given perturbations,
:func:`distances_in_random_directions` for random ones. What follows from samples of D is in
:mod:`vaerobust.criterion`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vaerobust import checks
from vaerobust.batches import blockwise
from vaerobust.contract import check_model, decode_points, encode_points, require_distances, rows_at_once
from vaerobust.model import GaussianVAE
from vaerobust.randomness import Seed, as_generator, normal, unit_directions

REFERENCES = ("mean", "sample")
"""What D may be measured from; see :func:`distances`."""


def encode_rows(model: GaussianVAE, x: Tensor) -> tuple[Tensor, Tensor]:
    """Encode inputs with one or more leading dimensions, (..., d_x); return mu and sigma, each (..., d_z)."""
    mu, sigma = model.encode(x.flatten(0, -2))
    return mu.unflatten(0, x.shape[:-1]), sigma.unflatten(0, x.shape[:-1])


def decode_rows(model: GaussianVAE, z: Tensor) -> Tensor:
    """Decode latents with one or more leading dimensions, (..., d_z); return reconstructions, (..., d_x)."""
    return model.decode(z.flatten(0, -2)).unflatten(0, z.shape[:-1])


def displacement(model: GaussianVAE, mu: Tensor, sigma: Tensor, eta: Tensor, centre: Tensor) -> Tensor:
    """Return g(mu + sigma * eta) - centre, the vector whose 2-norm is D.

    The arguments broadcast over their leading dimensions. Nothing is checked here, since attacks differentiate it and
    searches call it often.

    Parameters
    ----------
    model : GaussianVAE
    mu : Tensor, shape (..., d_z)
        mu(x + delta), the mean of the embedding of the perturbed input.
    sigma : Tensor, shape (..., d_z)
        sigma(x) in Eq. 3; sigma(x + delta) as Algorithm 2 is printed.
    eta : Tensor, shape (..., d_z)
        Standard normal noise.
    centre : Tensor, shape (..., d_x)
        The reconstruction that D is measured from, g(mu(x)) in Eqs. 1 to 4.

    Returns
    -------
    Tensor, shape (..., d_x)
        In input units.
    """
    return decode_rows(model, mu + sigma * eta) - centre


def distance(model: GaussianVAE, mu: Tensor, sigma: Tensor, eta: Tensor, centre: Tensor) -> Tensor:
    """Return D, the 2-norm of :func:`displacement`, shape (...)."""
    return displacement(model, mu, sigma, eta, centre).norm(dim=-1)


def rounding(width: int, dtype: torch.dtype) -> float:
    """Return by how much rounding may change D, relative to D: at most this, whatever the order of its sums.

    A comparison of D with r is on the safe side of rounding if it is made with r (1 - rounding) for a certificate and
    with r (1 + rounding) for an attack. The decoder counts as the function that the model computes in its own type.

    Parameters
    ----------
    width : int
        Number of components d_x, >= 1.
    dtype : torch.dtype
        Type of the model's numbers.

    Returns
    -------
    float
        In [0, 1]; 2.4e-5 for 784 pixels in single precision.
    """
    sums = torch.finfo(torch.promote_types(dtype, torch.float32)).eps  # norms are summed in single precision or better
    if width * sums >= 1:
        return 1.0
    # With u half of an epsilon, a sum of squares is wrong by a factor within 1 +- gamma = 1 +- width u / (1 - width u),
    # and sqrt(1 - gamma) >= 1 - gamma / 2 - gamma^2 / 2. One u each is for the subtraction, the root, r and r (1 +-
    # rounding); two more cover the products of all these factors
    gamma = width * sums / (2 - width * sums)
    return min(1.0, gamma * (1 + gamma) / 2 + 3 * torch.finfo(dtype).eps)


@torch.no_grad()
def distances(
    model: GaussianVAE,
    x: Tensor,
    delta: Tensor | None = None,
    *,
    samples: int = 1000,
    seed: Seed = 0,
    perturb_sigma: bool = False,
    reference: str = "mean",
) -> Tensor:
    """Sample D(x, delta) of Eq. 3, or D(x) of Eq. 1 where there is no perturbation.

    Parameters
    ----------
    model : GaussianVAE
    x : Tensor, shape (n, d_x)
        Inputs.
    delta : Tensor, shape (n, d_x), optional
        Perturbation of each input; none if left out.
    samples : int
        Draws of eta, the same for every point.
    seed : int or torch.Generator
        Source of eta; see :mod:`vaerobust.randomness`.
    perturb_sigma : bool
        True takes sigma at x + delta, as Algorithm 2 is printed. False takes it at x, as Eq. 3 does.
    reference : {'mean', 'sample'}
        'mean' measures from g(mu(x)), as Eqs. 1 to 4 do. 'sample' measures from a second random reconstruction of x,
        as Definition 3.1 does.

    Returns
    -------
    Tensor, shape (n, samples)
        Distances in input units, >= 0.

    Raises
    ------
    TypeError, ValueError
        If ``x`` or ``delta`` is not a finite float tensor of the right shape, another argument is out of range, or the
        model does not do what is assumed of it (:mod:`vaerobust.contract`), such as to decode to finite numbers.
    """
    checks.vectors("x", x)
    checks.count("samples", samples)
    checks.one_of("reference", reference, REFERENCES)
    checks.flag("perturb_sigma", perturb_sigma)
    perturbed = x if delta is None else x + checks.vectors("delta", delta, like=x)
    check_model(model, x)
    mu_x, sigma_x = encode_points(model, x)
    mu, sigma = encode_points(model, perturbed, perturbed=True) if delta is not None else (mu_x, sigma_x)
    sigma = sigma if perturb_sigma else sigma_x
    generator = as_generator(seed, x)
    eta = normal(samples, mu, generator)  # (samples, d_z)
    if reference == "mean":
        centre = decode_points(model, mu_x, x)

        def block(i: slice, j: slice) -> Tensor:
            return distance(model, mu[i, None], sigma[i, None], eta[j], centre[i, None])
    else:
        other = normal(samples, mu, generator)

        def block(i: slice, j: slice) -> Tensor:
            centre = decode_rows(model, mu_x[i, None] + sigma_x[i, None] * other[j])
            return distance(model, mu[i, None], sigma[i, None], eta[j], centre)

    return require_distances(blockwise(block, len(x), samples, x, rows_at_once(model, x)))


@torch.no_grad()
def distances_in_random_directions(
    model: GaussianVAE,
    x: Tensor,
    radius: float | Tensor,
    *,
    samples: int = 1000,
    seed: Seed = 0,
    perturb_sigma: bool = False,
) -> Tensor:
    """Sample D(x, delta) as Algorithm 2 does, where each sample has a random direction of its own.

    delta = radius * nu / ||nu||_2,  nu ~ N(0, I).

    Parameters
    ----------
    model : GaussianVAE
    x : Tensor, shape (n, d_x)
        Inputs.
    radius : float or Tensor, shape (n,)
        ||delta||_2, >= 0, in input units.
    samples, seed, perturb_sigma
        As in :func:`distances`. All points share the same directions.

    Returns
    -------
    Tensor, shape (n, samples)
        Distances in input units, >= 0.

    Raises
    ------
    TypeError, ValueError
        As :func:`distances`; also if a radius is negative, NaN or infinite.
    """
    checks.vectors("x", x)
    checks.count("samples", samples)
    checks.flag("perturb_sigma", perturb_sigma)
    radius = checks.per_point("radius", radius, len(x), x)
    check_model(model, x)
    mu_x, sigma_x = encode_points(model, x)
    centre = decode_points(model, mu_x, x)
    generator = as_generator(seed, x)
    eta = normal(samples, mu_x, generator)  # (samples, d_z)
    out = torch.empty(len(x), samples, dtype=x.dtype, device=x.device)
    for drawn, direction in unit_directions(samples, x, generator):
        # Default arguments hold the values of this pass of the loop
        def block(i: slice, j: slice, drawn: slice = drawn, direction: Tensor = direction) -> Tensor:
            perturbed = x[i, None] + radius[i, None, None] * direction[j]  # (points, samples, d_x)
            mu, sigma = encode_rows(model, perturbed)
            return distance(model, mu, sigma if perturb_sigma else sigma_x[i, None], eta[drawn][j], centre[i, None])

        out[:, drawn] = blockwise(block, len(x), len(direction), x, rows_at_once(model, x))
    return require_distances(out)
