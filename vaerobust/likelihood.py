"""The likelihood of an image given the embedding of a perturbed copy of it: the y-axis of Figs. 4, 5, 7, 10 and 11."""

from __future__ import annotations

import torch
from torch import Tensor

from vaerobust import checks
from vaerobust.batches import blockwise
from vaerobust.contract import check_model, encode_points, require_finite, rows_at_once
from vaerobust.model import VAE
from vaerobust.randomness import Seed, as_generator, normal


@torch.no_grad()
def log_likelihood(
    vae: VAE,
    x: Tensor,
    delta: Tensor | None = None,
    *,
    samples: int = 1,
    seed: Seed = 0,
    perturb_sigma: bool = True,
) -> Tensor:
    """Estimate E_eta log p(x | z*) at each point, where z* is a sample of the embedding of x + delta.

    Parameters
    ----------
    vae : VAE
    x : Tensor, shape (n, d_x)
        Images in [0, 1].
    delta : Tensor, shape (n, d_x), optional
        An attack's perturbation, or noise; none if left out.
    samples : int
        Draws of eta, the same for every point.
    seed : int or torch.Generator
        Source of eta; see :mod:`vaerobust.randomness`.
    perturb_sigma : bool
        True takes sigma at x + delta: the embedding of a noisy input has that input's own sigma. This is the default
        here, while :func:`vaerobust.distance.distances` follows Eq. 3 by default and takes sigma at x.

    Returns
    -------
    Tensor, shape (n,)
        In nats, summed over pixels.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type, shape or range.
    """
    checks.pixels("x", x)
    checks.count("samples", samples)
    checks.flag("perturb_sigma", perturb_sigma)
    perturbed = x if delta is None else x + checks.vectors("delta", delta, like=x)
    if not callable(getattr(vae, "log_likelihood", None)):
        raise TypeError(f"vae must have the method log_likelihood(x, z), but {type(vae).__name__} has none")
    check_model(vae, x)
    mu, sigma = encode_points(vae, perturbed, perturbed=delta is not None)
    if not perturb_sigma:
        sigma = encode_points(vae, x)[1]
    eta = normal(samples, mu, as_generator(seed, x))  # (samples, d_z)

    def block(i: slice, j: slice) -> Tensor:
        return vae.log_likelihood(x[i, None], mu[i, None] + sigma[i, None] * eta[j])

    found = blockwise(block, len(x), samples, x, rows_at_once(vae, x))
    require_finite("vae.log_likelihood must return finite numbers", found)
    return found.mean(1)
