"""The criterion of Section 3: how far a reconstruction moves, and how likely it stays within r.

The distance D(x, delta) of Eqs. 1 and 3, the probability of r-robustness of Definition 3.1 and Eqs. 2 and 4, and the
exact binomial statistics that go with samples of it.

All points of a call meet the same noise, and equal seeds give equal noise whatever the perturbation (common random
numbers). So a difference between two points, radii or attacks is a difference between them, and results depend
neither on the order of the points nor on how a batch is split. Each point's own estimate is as good as with noise
of its own; an average over points keeps the error of one point.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from vaerobust import checks
from vaerobust.batches import blockwise
from vaerobust.model import VAE, GaussianVAE
from vaerobust.randomness import Seed, as_generator, normal, unit_directions

REFERENCES = ("mean", "sample")


class Robustness(NamedTuple):
    """Probability that D(x, delta) <= r, one a point: an estimate with an exact binomial interval.

    Attributes
    ----------
    probability : ndarray, shape (n,)
        Share of samples with D <= r.
    low, high : ndarray, shape (n,)
        Clopper-Pearson limits, two-sided, at ``confidence`` for each point by itself.
    samples : int
    confidence : float
    """

    probability: np.ndarray
    low: np.ndarray
    high: np.ndarray
    samples: int
    confidence: float

    @property
    def robust(self) -> np.ndarray:
        """True where r-robustness (probability above 1/2) is confirmed at the confidence, shape (n,)."""
        return self.low > 0.5


class Quantile(NamedTuple):
    """A quantile of D with an interval that holds for every continuous distribution.

    Attributes
    ----------
    value, low, high : Tensor, shape (n,)
        Order statistics of the samples, in the units of D (pixels, 2-norm). ``low`` is 0 and ``high`` infinite
        where there are too few samples for the confidence.
    level : float
        Which quantile; 0.5 is the median.
    confidence : float
    """

    value: Tensor
    low: Tensor
    high: Tensor
    level: float
    confidence: float


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
    """Sample the distance D(x, delta) of Eq. 3, or of Eq. 1 where there is no perturbation.

    D(x, delta) = || g(mu(x + delta) + eta * sigma(x)) - g(mu(x)) ||_2,  eta ~ N(0, I).

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
        See :mod:`vaerobust.randomness`.
        Where eta comes from, on the device of ``x``; torch's default if left out.
    perturb_sigma : bool
        Take sigma at x + delta, as Algorithm 2 prints, and not at x, as Eq. 3 does.
    reference : {'mean', 'sample'}
        Measure from g(mu(x)), as Eqs. 1 to 4 do, or from a second random reconstruction of x, as Definition 3.1 does.

    Returns
    -------
    Tensor, shape (n, samples)
        Distances in input units.

    Raises
    ------
    TypeError, ValueError
        If ``x`` or ``delta`` is not a finite float tensor of the right shape, or another argument is out of range.
    """
    checks.vectors("x", x)
    checks.count("samples", samples)
    checks.one_of("reference", reference, REFERENCES)
    perturbed = x if delta is None else x + checks.vectors("delta", delta, like=x)
    mu_x, sigma_x = model.encode(x)
    mu, sigma = model.encode(perturbed) if delta is not None else (mu_x, sigma_x)
    sigma = sigma if perturb_sigma else sigma_x
    generator = as_generator(seed, x)
    eta = normal(samples, mu, generator)
    if reference == "mean":
        centre = model.decode(mu_x)
        return blockwise(lambda i, j: _moved(model, mu[i], sigma[i], eta[j], centre[i][:, None]), len(x), samples, x)
    other = normal(samples, mu, generator)
    return blockwise(
        lambda i, j: _moved(model, mu[i], sigma[i], eta[j], _decoded(model, mu_x[i], sigma_x[i], other[j])),
        len(x), samples, x,
    )  # fmt: skip


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
    """Sample D(x, delta) as Algorithm 2 does: each sample has a direction of its own.

    delta = radius * nu / ||nu||_2,  nu ~ N(0, I).

    Parameters
    ----------
    model : GaussianVAE
    x : Tensor, shape (n, d_x)
    radius : float or Tensor, shape (n,)
        ||delta||_2, >= 0.
    samples, seed, perturb_sigma
        As in :func:`distances`.

    Returns
    -------
    Tensor, shape (n, samples)

    Raises
    ------
    TypeError, ValueError
        As :func:`distances`; also if a radius is negative, NaN or infinite.
    """
    checks.vectors("x", x)
    checks.count("samples", samples)
    radius = checks.per_point("radius", radius, len(x), x)
    mu_x, sigma_x = model.encode(x)
    centre = model.decode(mu_x)
    generator = as_generator(seed, x)
    eta = normal(samples, mu_x, generator)
    out = torch.empty(len(x), samples, dtype=x.dtype, device=x.device)
    for drawn, direction in unit_directions(samples, x, generator):

        def block(i: slice, j: slice, drawn: slice = drawn, direction: Tensor = direction) -> Tensor:
            mu, sigma = encode_all(model, x[i, None] + radius[i, None, None] * direction[j])
            z = mu + eta[drawn][j] * (sigma if perturb_sigma else sigma_x[i, None])
            return _norms(decode_all(model, z) - centre[i, None])

        out[:, drawn] = blockwise(block, len(x), len(direction), x)
    return out


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
    """Return the mean over eta of log p(x | z*), z* the embedding of x + delta: the ordinate of Figs. 4, 5, 7, 10, 11.

    Parameters
    ----------
    vae : VAE
    x : Tensor, shape (n, d_x)
        Images in [0, 1].
    delta : Tensor, shape (n, d_x), optional
        Perturbation or noise; none if left out.
    samples, seed
        As in :func:`distances`.
    perturb_sigma : bool
        Take sigma at x + delta. The embedding of a noisy input is random with that input's own sigma.

    Returns
    -------
    Tensor, shape (n,)
        In nats, summed over pixels.

    Raises
    ------
    TypeError, ValueError
        As :func:`distances`.
    """
    checks.pixels("x", x)
    checks.count("samples", samples)
    mu, sigma = vae.encode(x if delta is None else x + checks.vectors("delta", delta, like=x))
    if not perturb_sigma:
        sigma = vae.encode(x)[1]
    generator = as_generator(seed, x)
    eta = normal(samples, mu, generator)

    def block(i: slice, j: slice) -> Tensor:
        return vae.log_likelihood(x[i, None], mu[i, None] + sigma[i, None] * eta[j])

    return blockwise(block, len(x), samples, x).mean(1)


def encode_all(model: GaussianVAE, x: Tensor) -> tuple[Tensor, Tensor]:
    """Encode inputs with any leading dimensions, (..., d_x), by a model that takes rows."""
    mu, sigma = model.encode(x.flatten(0, -2))
    return mu.unflatten(0, x.shape[:-1]), sigma.unflatten(0, x.shape[:-1])


def decode_all(model: GaussianVAE, z: Tensor) -> Tensor:
    """Decode latents with any leading dimensions, (..., d_z), by a model that takes rows."""
    return model.decode(z.flatten(0, -2)).unflatten(0, z.shape[:-1])


def _decoded(model: GaussianVAE, mu: Tensor, sigma: Tensor, eta: Tensor) -> Tensor:
    """Decode mu + sigma * eta for each point and each sample: shape (n, samples, d_x)."""
    return decode_all(model, mu[:, None] + sigma[:, None] * eta)


def _moved(model: GaussianVAE, mu: Tensor, sigma: Tensor, eta: Tensor, centre: Tensor) -> Tensor:
    return _norms(_decoded(model, mu, sigma, eta) - centre)


def _norms(rows: Tensor) -> Tensor:
    return torch.linalg.vector_norm(rows, dim=-1)


def probability_of_robustness(distance: Tensor, r: float | Tensor, *, confidence: float = 0.95) -> Robustness:
    """Estimate P(D <= r) from samples of D, with its exact interval (Definition 3.1, Eqs. 2 and 4).

    Parameters
    ----------
    distance : Tensor, shape (n, samples)
        From :func:`distances`.
    r : float or Tensor, shape (n,)
        Radius in the output space, >= 0; chosen without a look at these samples.
    confidence : float
        Of the two-sided Clopper-Pearson interval, in (0, 1).

    Returns
    -------
    Robustness

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong shape or range.
    """
    checks.vectors("distance", distance)
    r = checks.per_point("r", r, len(distance), distance)
    samples = distance.shape[1]
    within = (distance <= r[:, None]).sum(1).cpu().numpy()
    low, high = clopper_pearson(within, samples, confidence)
    return Robustness(within / samples, low, high, samples, confidence)


def clopper_pearson(
    successes: np.ndarray | int, trials: int, confidence: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """Return the exact two-sided interval of a binomial proportion.

    Parameters
    ----------
    successes : ndarray of int or int
        Each between 0 and ``trials``.
    trials : int
    confidence : float
        In (0, 1). Each side errs with probability at most (1 - confidence) / 2.

    Returns
    -------
    low, high : ndarray
        In the shape of ``successes``.

    Raises
    ------
    ValueError
        If an argument is out of range.
    """
    checks.count("trials", trials)
    checks.probability("confidence", confidence)
    k = np.asarray(successes)
    if (k < 0).any() or (k > trials).any():
        raise ValueError(f"successes must lie in 0 to trials = {trials}, but range over {k.min()} to {k.max()}")
    tail = (1 - confidence) / 2
    low = np.where(k == 0, 0.0, stats.beta.ppf(tail, np.maximum(k, 1), trials - k + 1))
    high = np.where(k == trials, 1.0, stats.beta.ppf(1 - tail, k + 1, np.maximum(trials - k, 1)))
    return low, high


def distance_quantile(distance: Tensor, level: float = 0.5, *, confidence: float = 0.95) -> Quantile:
    """Estimate a quantile of D by an order statistic; at 0.5 it is what Algorithm 1 converges to.

    The number of samples below the true quantile is binomial, so two order statistics enclose it with known
    probability, whatever the distribution.

    Parameters
    ----------
    distance : Tensor, shape (n, samples)
    level : float
        Which quantile, in (0, 1).
    confidence : float
        Of the interval, for each point by itself, in (0, 1).

    Returns
    -------
    Quantile

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong shape or range.
    """
    checks.vectors("distance", distance)
    checks.probability("level", level)
    checks.probability("confidence", confidence)
    samples = distance.shape[1]
    ordered = distance.sort(dim=1).values
    below = stats.binom(samples, level)
    tail = (1 - confidence) / 2
    # with B samples below the quantile q, D_(l) <= q iff B >= l and q <= D_(u) iff B < u (1-based order statistics)
    first = int(below.ppf(tail))
    last = int(below.ppf(1 - tail)) + 1
    low = ordered[:, first - 1] if first >= 1 else torch.zeros_like(ordered[:, 0])
    high = ordered[:, last - 1] if last <= samples else torch.full_like(ordered[:, 0], torch.inf)
    # rounded, since 0.55 * 100 is a hair above 55 in floating point
    at = min(samples - 1, max(0, int(np.ceil(round(level * samples, 6))) - 1))
    return Quantile(ordered[:, at], low, high, level, confidence)
