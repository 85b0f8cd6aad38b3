"""Certified lower bounds on the margin of Eq. 4: no higher-order term, and a stated probability of being wrong.

Two facts are joined (thm-certified of chapter 5). First, a perturbation of norm R shifts the whitened mean, which is
the encoder's mean divided by sigma(x), by some u with (a . u)^2 <= R^2 a' W a for every vector a, by
:mod:`vaerobust.certify.encoder_shift`; nothing is random in that. Second, the shift u leaves P(D <= r) above 1/2 as
long as u is short enough, by :mod:`vaerobust.certify.safe_shift`. How short, depends on what samples of the unperturbed
model say about the noise that fails (:mod:`vaerobust.certify.failures`): its probability, as in the half-space lemma,
and its first two moments along u, which the half-space lemma does not use.

Where failures are so rare that samples of the noise say little, wider draws say more; they are the subject of
:mod:`vaerobust.certify.far_draws`.

This module joins them to the certified margin for one r, and the other way round, to a certified r for one radius.
Start reading at :func:`certified_margin` and :func:`certify`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from vaerobust import checks
from vaerobust.batches import slices
from vaerobust.certify.encoder_shift import lipschitz_bound, shift_metric
from vaerobust.certify.failures import BANDS, Failures, confidence_limits, failures, mass_limit
from vaerobust.certify.far_draws import FarFailures, allowed_radius, far_failures
from vaerobust.certify.network import MEMORY, Network, compare_within, encoder_mean
from vaerobust.certify.safe_shift import half_space_length, safe_shift
from vaerobust.contract import check_model, encode_points
from vaerobust.distance import distances, rounding
from vaerobust.jacobians import largest_eigenvalue
from vaerobust.model import GaussianVAE, Layers
from vaerobust.numerics import double
from vaerobust.randomness import Seed, as_generator, as_number
from vaerobust.results import Result

TRADES = (0.0, 0.5, 0.8, 0.9, 1.0, 1.1, 1.3)
"""Values of c in thm-certified, relative to lambda_max(W). For any c, W <= c V + lambda_max(W - c V) I."""
LARGEST = 1e3
"""No larger radius is certified, even where the encoder is constant."""
ROUGH = (0, 0)
"""Steps of descent for the first radii of the search, which need no precise metric W."""
REFINED = 3
"""Number of radii with a refined W that are tried next; for the half-space lemma's own radius it is one."""
FAR_SHARE = 0.2
"""Share of the error that wider draws have in :func:`certify_with_far_draws`. Their radius depends on it only by the
logarithm of the number of draws that must not fail; the rest is left to the moments of failure."""
FIRST_BALL = 1.5
"""The wider draws are spread out by the metric of a ball that is this much larger than what is certified without them.
"""
KEPT = 2**23
"""Distances per block in :func:`certified_r`, 64 MB in double precision."""


@dataclass(frozen=True, eq=False)
class Certificate(Result):
    """Radii within which every perturbation leaves the VAE r-robust.

    Attributes
    ----------
    radius : Tensor, shape (n,)
        Certified lower bound on the margin, in input units; 0 where P(D(x) <= r) > 1/2 is not confirmed.
    half_space : Tensor, shape (n,)
        The radius that the half-space lemma alone gives; never above ``radius``.
    p_low : ndarray, shape (n,)
        Lower confidence limit of P(D(x) <= r): 1 - m_0.
    samples : int
        Number of draws of eta.
    confidence : float
        Probability, at least, that all three are right, at each point by itself.
    """

    radius: Tensor
    half_space: Tensor
    p_low: np.ndarray
    samples: int
    confidence: float


class _Encoder(NamedTuple):
    """The encoder's mean at the points that are certified: what :func:`shift_metric` needs."""

    layers: Layers | Network
    sigma: Tensor  # (n, d_z)
    x: Tensor  # (n, d_x)


class _Ball(NamedTuple):
    """A ball of perturbations of each point, and the metric W of that ball."""

    radius: Tensor  # (n,)
    metric: Tensor  # (n, d_z, d_z)


class _Search(NamedTuple):
    """State of the search for the largest radius that can be certified."""

    low: Tensor  # (n,), the largest radius certified so far
    radius: Tensor  # (n,), the radius whose metric W is tried next


def certified_margin(
    model: GaussianVAE,
    x: Tensor,
    r: float | Tensor,
    *,
    samples: int = 100_000,
    seed: Seed = 2,
    confidence: float = 0.999,
    refine: int = 6,
    memory: float = MEMORY,
) -> Certificate:
    """Return a radius within which every perturbation leaves each point r-robust: P(D(x, delta) <= r) > 1/2.

    This is the R-hat of thm-certified, or that of thm-far where it is larger: a lower bound on the margin of Eq. 4.

    Parameters
    ----------
    model : GaussianVAE
        Its encoder's mean must be made of operations that can be bounded: affine ones such as convolutions, BatchNorm
        in evaluation mode and sums, and elementwise activations; see :mod:`vaerobust.certify.tracing`. They are found
        by running the model, unless its method ``mean_layers`` returns the layers of a plain ReLU network.
    x : Tensor, shape (n, d_x)
    r : float or Tensor, shape (n,)
        Largest distance that counts as robust, >= 0, in input units; chosen with other samples.
    samples : int
        Number of draws of eta, the same for every point, and number of wider draws where those promise more.
    seed : int or torch.Generator
        See :mod:`vaerobust.randomness`.
    confidence : float
        1 - alpha, in (0, 1), at each point by itself. It is the probability over the draws of eta.
    refine : int
        Steps of descent that tighten the bound on the encoder; 0 is fastest.
    memory : float
        Memory budget of the bound on an encoder with convolutions, in bytes; > 0.

    Returns
    -------
    Certificate

    Raises
    ------
    TypeError
        If the encoder has an operation that cannot be bounded, or ``x`` is not a tensor of floating point numbers.
    ValueError
        If an argument has the wrong shape or range, or the layers are not those of the encoder.
    """
    checks.vectors("x", x)
    r = checks.per_point("r", r, len(x), x)
    checks.probability("confidence", confidence)
    checks.count("refine", refine, least=0)
    checks.positive("memory", memory)
    encoder_mean(model, x)  # an encoder that cannot be certified is an error before any sample is drawn
    check_model(model, x)
    generator = as_generator(seed, x)
    (found,) = failures(model, x, [r], samples=samples, seed=generator)
    return certify_with_far_draws(
        model, x, r, found, seed=generator, confidence=confidence, refine=refine, memory=memory
    )  # fmt: skip


@torch.no_grad()
def certify(
    model: GaussianVAE,
    x: Tensor,
    found: Failures,
    *,
    confidence: float = 0.999,
    refine: int = 6,
    memory: float = MEMORY,
) -> Certificate:
    """Return the certified margins that follow from the counts and moments of failures; see :func:`certified_margin`.

    Parameters
    ----------
    model, x
        The model and the points that ``found`` was sampled from.
    found : Failures
        Result of :func:`vaerobust.certify.failures.failures` for one r.
    confidence, refine, memory
        As in :func:`certified_margin`.

    Returns
    -------
    Certificate

    Raises
    ------
    TypeError, ValueError
        As :func:`certified_margin`.
    """
    checks.vectors("x", x)
    checks.probability("confidence", confidence)
    checks.count("refine", refine, least=0)
    checks.positive("memory", memory)
    if len(checks.instance("found", found, Failures).number) != len(x):
        raise ValueError(f"found must be of the {len(x)} points of x, but is of {len(found.number)}")
    check_model(model, x, decoder=False)
    encoder = _Encoder(encoder_mean(model, x, memory=memory), encode_points(model, x)[1], x)
    # lem-shift at radius 0: W_0 = S^-1 J J' S^-1, and V = W_0 / lambda_max(W_0) orders the directions into bands
    still = shift_metric(*encoder, 0.0)  # (n, d_z, d_z)
    scaled = _relative(still)
    # lem-moments: all limits on what fails hold at once with probability 1 - alpha
    limits = confidence_limits(found, scaled, 1 - confidence)
    # lem-safe-shift: T_j, how far noise may be shifted along the directions of each band
    mass = limits.mass[:, None].expand_as(limits.first)
    safe = safe_shift(mass.flatten(), limits.first.flatten(), limits.second.flatten()).reshape(mass.shape)  # (n, bands)
    # lem-half-space: how far it may be shifted by the mass alone
    half_space_safe = half_space_length(limits.mass)  # (n,)

    def by_bands(metric: Tensor) -> Tensor:
        return _radius_by_bands(metric, scaled, safe)

    def by_half_space(metric: Tensor) -> Tensor:
        return _radius_by_half_space(metric, half_space_safe)

    # thm-certified: the largest R whose metric W keeps every shift safe
    most = torch.full_like(limits.mass, LARGEST)
    rough = ROUGH if isinstance(encoder.layers, list) else ()  # one W of a traced network takes a second or more
    radius = _largest_radius(encoder, by_bands, still, most, (*rough, *[refine] * REFINED))
    half_space = _largest_radius(encoder, by_half_space, still, radius, (*rough, refine))
    compare_within(encoder.layers, model, x, torch.maximum(radius, half_space))
    return Certificate(
        _rounded_down(torch.maximum(radius, half_space), x),
        _rounded_down(half_space, x),
        1 - limits.mass.cpu().numpy(),
        found.samples,
        confidence,
    )


@torch.no_grad()
def certify_with_far_draws(
    model: GaussianVAE,
    x: Tensor,
    r: float | Tensor,
    found: Failures,
    *,
    seed: Seed = 3,
    confidence: float = 0.999,
    refine: int = 6,
    memory: float = MEMORY,
) -> Certificate:
    """Return the certified margins of :func:`certify`, or those of wider draws of the noise where they are larger.

    Wider draws certify more where failures are rare (thm-far); see :mod:`vaerobust.certify.far_draws`. They are made
    only where a few pilot draws promise a larger radius. They have a share :data:`FAR_SHARE` of the error.

    Parameters
    ----------
    model, x, found
        As in :func:`certify`, which is faster.
    r : float or Tensor, shape (n,)
        The r of ``found``.
    seed : int or torch.Generator
        Source of the wider draws, which must not be those of ``found``; see :mod:`vaerobust.randomness`.
    confidence, refine, memory
        As in :func:`certified_margin`.

    Returns
    -------
    Certificate

    Raises
    ------
    TypeError, ValueError
        As :func:`certified_margin`.
    """
    checks.vectors("x", x)
    r = checks.per_point("r", r, len(x), x)
    error = 1 - checks.probability("confidence", confidence)
    near = certify(model, x, found, confidence=1 - (1 - FAR_SHARE) * error, refine=refine, memory=memory)
    stream, radius = as_number(as_generator(seed, x), x), near.radius.clone()
    rows = torch.nonzero((near.radius > 0) & (near.radius < LARGEST))[:, 0]  # beyond 0, and below the largest
    if len(rows):
        encoder = _Encoder(encoder_mean(model, x, memory=memory), encode_points(model, x)[1][rows], x[rows])
        pilot = FIRST_BALL * double(near.radius[rows])
        metric = shift_metric(*encoder, pilot, refine=refine)
        far = far_failures(model, x[rows], r[rows], metric, near.radius[rows], samples=found.samples, seed=stream)
        further = _far_radius(encoder, far, _Ball(pilot, metric), FAR_SHARE * error, refine)
        radius[rows] = torch.maximum(near.radius[rows], _rounded_down(further, x))
        compare_within(encoder.layers, model, x, radius)
    return replace(near, radius=radius, confidence=confidence)


def _far_radius(encoder: _Encoder, far: FarFailures, ball: _Ball, alpha: float, refine: int) -> Tensor:
    """Return the radius that thm-far certifies, wrong with probability ``alpha`` at most: shape (n,)."""
    radius = torch.zeros_like(ball.radius)
    rows = torch.nonzero(far.number < far.samples)[:, 0]
    if not len(rows):
        return radius
    share = mass_limit(far, alpha).to(radius)[rows]  # F
    some = _Encoder(encoder.layers, encoder.sigma[rows], encoder.x[rows])

    def by_far_draws(metric: Tensor) -> Tensor:
        return allowed_radius(share, far.covariance[rows], metric)

    most = torch.full_like(share, LARGEST)
    # The metric of the ball that the draws were chosen for is known already; the search goes on from there
    search = _tried(_Search(torch.zeros_like(share), ball.radius[rows]), by_far_draws(ball.metric[rows]), most)
    for _ in range(REFINED if isinstance(encoder.layers, list) else 1):  # a traced network takes a second or more
        metric = shift_metric(*some, search.radius, refine=refine)
        search = _tried(search, by_far_draws(metric), most)
    radius[rows] = search.low
    return radius


def _largest_radius(
    encoder: _Encoder, allowed: Callable[[Tensor], Tensor], still: Tensor, most: Tensor, schedule: Sequence[int]
) -> Tensor:
    """Search for the largest radius that thm-certified allows, up to ``most``.

    The metric W of a ball holds for every smaller ball. So with R' the radius that the W of radius R allows,
    min(R, R') is certified. R' falls as R grows, so the best radius lies between R and R'.

    Parameters
    ----------
    encoder : _Encoder
    allowed : callable
        Maps metrics W, shape (n, d_z, d_z), to the radii that they allow, shape (n,).
    still : Tensor, shape (n, d_z, d_z)
        W of radius 0. The radius that it allows is the first one that is tried.
    most : Tensor, shape (n,)
    schedule : sequence of int
        For each radius that is tried, the steps of descent that refine its W.

    Returns
    -------
    Tensor, shape (n,)
        0 where nothing can be certified.
    """
    search = _Search(torch.zeros_like(most), torch.minimum(allowed(still), most))
    for refine in schedule:
        metric = shift_metric(*encoder, search.radius, refine=refine)
        search = _tried(search, allowed(metric), most)
    return search.low


def _tried(search: _Search, allowed: Tensor, most: Tensor) -> _Search:
    """Return the state after ``search.radius``, whose metric allows ``allowed``; their geometric mean is tried next."""
    certified = torch.minimum(search.radius, allowed)
    high = torch.maximum(search.radius, allowed)
    # A ball that is too large for any sound W allows nothing; a quarter of it may do
    low = torch.maximum(certified, search.radius / 4)
    return _Search(torch.maximum(search.low, certified), (low * high).sqrt().minimum(most))


def _relative(still: Tensor) -> Tensor:
    """Return V = W_0 / lambda_max(W_0), and the identity where W_0 is infinite: any fixed V will do.

    W_0 may be infinite where x lies on kinks of the encoder, such as x = 0 where no layer has a bias.
    """
    known = torch.isfinite(still).all((1, 2))[:, None, None]
    still = torch.where(known, still, torch.eye(still.shape[1]).to(still))
    return still / largest_eigenvalue(still).clamp(min=1e-300)[:, None, None]


def _radius_by_half_space(metric: Tensor, safe: Tensor) -> Tensor:
    """Return Phi^-1(1 - m_0) / sqrt(lambda_max(W)), the half-space lemma's own radius; 0 where W is infinite."""
    known = torch.isfinite(metric).all((1, 2))
    reach = largest_eigenvalue(torch.where(known[:, None, None], metric, 0.0))
    return torch.where(known, safe / reach.clamp(min=1e-300).sqrt(), 0.0)


def _radius_by_bands(metric: Tensor, scaled: Tensor, safe: Tensor) -> Tensor:
    """Return min_j T_j / sqrt(w_j) of thm-certified: the radius at which some band's shift reaches its safe length.

    Parameters
    ----------
    metric, scaled : Tensor, shape (n, d_z, d_z)
        W and V of the theorem; W may be infinite.
    safe : Tensor, shape (n, bands)
        T_j.

    Returns
    -------
    Tensor, shape (n,)
        0 where W is infinite.
    """
    known = torch.isfinite(metric).all((1, 2))
    metric = torch.where(known[:, None, None], metric, scaled)
    # In band j, a' W a <= lambda_max(W - c V) + c a' V a, and a' V a <= beta_{j+1}^2: the least over c is w_j
    trades = largest_eigenvalue(metric)[:, None] * torch.tensor(TRADES).to(metric)  # c, (n, trades)
    # This matrix may be negative definite, so its largest eigenvalue is taken with its sign
    rest = torch.linalg.eigvalsh(metric[:, None] - trades[:, :, None, None] * scaled[:, None])[..., -1]
    edges = torch.cat([BANDS[1:], BANDS[-1:]]).to(metric) ** 2
    furthest = (rest[:, :, None] + trades[:, :, None] * edges).amin(1)  # w_j, (n, bands)
    return torch.where(known, (safe / furthest.clamp(min=1e-300).sqrt()).amin(1), 0.0)


def _rounded_down(value: Tensor, like: Tensor) -> Tensor:
    """Return numbers >= 0 in the precision of another tensor, none of them larger than it was."""
    near = value.to(like)
    return torch.where(near.to(value) > value, torch.nextafter(near, torch.zeros_like(near)), near)


@torch.no_grad()
def certified_r(
    model: GaussianVAE,
    x: Tensor,
    radii: Sequence[float],
    *,
    samples: int = 50_000,
    seed: Seed = 0,
    confidence: float = 0.999,
    refine: int = 6,
) -> Tensor:
    """Return for each of some radii an r such that no perturbation shorter than the radius breaks r-robustness.

    This is the certificate of the half-space lemma, read the other way round (percentile smoothing). Within radius R
    the whitened mean moves by at most R L(R), with L of ``lipschitz_bound``. So the model is r-robust for every r above
    the Phi(R L(R))-quantile of D(x), and an order statistic of samples of D(x) bounds that quantile.

    Parameters
    ----------
    model : GaussianVAE
        As in :func:`certified_margin`.
    x : Tensor, shape (n, d_x)
    radii : sequence of float
        Norms R of perturbations, >= 0, in input units.
    samples : int
        Draws of eta, the same for every point and radius.
    seed : int or torch.Generator
        See :mod:`vaerobust.randomness`.
    confidence : float
        1 - alpha, in (0, 1), at each point and radius by itself. It is the probability over the draws of eta.
    refine : int
        As in :func:`certified_margin`.

    Returns
    -------
    Tensor, shape (len(radii), n)
        In input units; infinite where the samples are too few for the quantile, at this radius or a smaller one.

    Raises
    ------
    TypeError, ValueError
        As :func:`certified_margin`.
    """
    checks.vectors("x", x)
    checks.count("samples", samples)
    checks.probability("confidence", confidence)
    checks.count("refine", refine, least=0)
    radii = [float(checks.per_point("radii", one, 1, x, exact=True)) for one in checks.sequence("radii", radii)]
    mean = encoder_mean(model, x)  # an encoder that cannot be certified is an error before any sample is drawn
    check_model(model, x)
    encoder = _Encoder(mean, encode_points(model, x)[1], x)
    stream = as_number(as_generator(seed, x), x)  # one number, so that all blocks of points meet the same noise
    ranks = torch.as_tensor(_ranks(encoder, radii, samples, confidence, refine), device=x.device)  # (radii, n)
    found = []
    for some in slices(len(x), max(1, KEPT // samples)):
        ordered = distances(model, x[some], samples=samples, seed=stream).sort(dim=1).values  # (points, samples)
        beyond = torch.full_like(ordered[:, :1], torch.inf)
        found.append(torch.cat([ordered, beyond], 1).gather(1, ranks[:, some].T).T)
    return torch.cat(found, 1) * (1 + rounding(x.shape[1], x.dtype))  # rounding may have made D smaller than it is


def _ranks(
    encoder: _Encoder, radii: Sequence[float], samples: int, confidence: float, refine: int
) -> np.ndarray:  # fmt: skip
    """Return the most samples that lie below the quantile, with the given confidence: shape (len(radii), n).

    The sample after these, in ascending order, is then an upper limit of the quantile. Where the number is ``samples``,
    there is no such sample, and there is none at any larger radius.
    """
    ranks = np.full((len(radii), len(encoder.x)), samples)
    known = torch.arange(len(encoder.x), device=encoder.x.device)  # points whose samples are not too few so far
    for k in np.argsort(radii, kind="stable"):
        if not len(known):
            break
        sigma, x = encoder.sigma[known], encoder.x[known]
        radius = checks.per_point("radii", radii[k], len(known), x, exact=True)
        # lem-shift: the whitened mean moves by R L(R) at most. L may be infinite at kinks, but 0 moves nothing
        bound = lipschitz_bound(encoder.layers, sigma, x, radius, refine=refine)
        shift = torch.where(radius > 0, radius * bound, 0.0)
        # The number of samples below the Phi(R L(R))-quantile is binomial
        rank = stats.binom.ppf(confidence, samples, stats.norm.cdf(shift.cpu().numpy()))
        ranks[k, known.cpu().numpy()] = rank
        known = known[torch.as_tensor(rank < samples, device=known.device)]
    return ranks
