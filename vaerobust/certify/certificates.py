"""Certified lower bounds on the margin of Eq. 4: no higher-order term, and a stated probability of being wrong.

Two facts are joined. A perturbation of norm R shifts the whitened mean by some u with (a . u)^2 <= R^2 a' W a, by
:mod:`vaerobust.certify.encoder_shift`; nothing is random in that. And a shift by u leaves P(D <= r) above 1/2 as long
as u is short enough, by what samples of the unperturbed model say about the set of noise that fails: its probability,
as in the
half-space lemma, and its first two moments along u, which the half-space lemma leaves unused.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from vaerobust import checks
from vaerobust.batches import ROWS, slices
from vaerobust.bounds import half_space_shift
from vaerobust.certify.encoder_shift import lipschitz_bound, shift_metric
from vaerobust.distance import distance, distances
from vaerobust.model import GaussianVAE, mean_layers
from vaerobust.randomness import Seed, as_generator, normal

TILTS = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Weights of the encoder's metric, scaled to 1, against a moment of failure, in the joint bounds on both; the first
moment enters squared and is an order of magnitude smaller."""
SHARES = (0.03, 0.1, 0.3, 1.0, 3.0)
BANDS = torch.cat([torch.zeros(1), torch.linspace(0.6, 1.0, 11)]).double()
"""Edges between bands of directions, each with a safe shift of its own: how far the encoder moves along a direction at
x, by how far it moves along the one where it moves furthest."""
STEP, COARSE = 0.005, 5
NODES = torch.arange(-8.0, 16.0, STEP, dtype=torch.float64)
"""Of the integral in the moment lemma; every so many of them will do to find good multipliers."""
LARGEST = 1e3
"""No larger radius is certified, even of an encoder that is constant."""
NEWTON, MARCH = 25, 40
SHIFTS = 256
"""Shifts that are sought at a time: each needs some numbers at every node, about 40 MB."""
KEPT = 2**23
"""Distances kept at a time."""
BARRIER = 1e-6
"""Keeps the multipliers positive."""


class Failures(NamedTuple):
    """What samples say about the noise that fails, D(x) > r.

    Attributes
    ----------
    number : Tensor, shape (n,)
        How many of the samples fail.
    first : Tensor, shape (n, d_z)
        Mean over all samples of eta where it fails, and 0 where not.
    second : Tensor, shape (n, d_z, d_z)
        The same of eta eta'.
    samples : int
    """

    number: Tensor
    first: Tensor
    second: Tensor
    samples: int


class Certificate(NamedTuple):
    """Radii within which every perturbation leaves the VAE r-robust.

    Attributes
    ----------
    radius : Tensor, shape (n,)
        In input units; 0 where P(D(x) <= r) > 1/2 is not confirmed.
    half_space : Tensor, shape (n,)
        What the half-space lemma alone gives; never above ``radius``.
    p_low : ndarray, shape (n,)
        Lower confidence limit of P(D(x) <= r).
    samples : int
    confidence : float
        That all of these are right, at each point by itself.
    """

    radius: Tensor
    half_space: Tensor
    p_low: np.ndarray
    samples: int
    confidence: float


@torch.no_grad()
def failures(
    model: GaussianVAE,
    x: Tensor,
    radii: Sequence[float | Tensor],
    *,
    samples: int = 100_000,
    seed: Seed = 0,
) -> list[Failures]:
    """Count the noise that takes D(x) beyond each of some r, and its first two moments.

    Parameters
    ----------
    model : GaussianVAE
    x : Tensor, shape (n, d_x)
    radii : sequence of float or Tensor of shape (n,)
        Values of r, >= 0, chosen with other samples; all are judged by the same samples.
    samples : int
        Draws of eta, the same for every point; any number, since only sums are kept.
    seed : int or torch.Generator
        See :mod:`vaerobust.randomness`.

    Returns
    -------
    list of Failures
        One for each r.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong shape or range.
    """
    checks.vectors("x", x)
    checks.count("samples", samples)
    r = torch.stack([checks.per_point("r", one, len(x), x) for one in radii], 1)
    generator = as_generator(seed, x)
    mu, sigma = model.encode(x)
    centre = model.decode(mu)
    width = mu.shape[1]
    # one product makes all three sums: of 1, eta and eta eta'
    total = torch.zeros(len(x), r.shape[1], 1 + width + width**2, dtype=torch.float64, device=x.device)
    for draws in slices(samples, ROWS // 8):
        eta = normal(draws.stop - draws.start, mu, generator)
        powers = torch.cat([torch.ones_like(eta[:, :1]), eta, (eta[:, :, None] * eta[:, None]).flatten(1)], 1)
        for i in slices(len(x), max(1, ROWS // len(eta))):
            d = distance(model, mu[i, None], sigma[i, None], eta, centre[i, None])
            total[i] += ((d[:, None] > r[i, :, None]).to(x.dtype) @ powers).double()
    count, first, second = total.split([1, width, width**2], dim=2)
    return [
        Failures(count[:, k, 0], first[:, k] / samples, second[:, k].unflatten(1, (width, width)) / samples, samples)
        for k in range(r.shape[1])
    ]


def certified_margin(
    model: GaussianVAE,
    x: Tensor,
    r: float | Tensor,
    *,
    samples: int = 100_000,
    seed: Seed = 0,
    confidence: float = 0.999,
    refine: int = 6,
) -> Certificate:
    """Return a radius within which every perturbation leaves each point r-robust: P(D(x, delta) <= r) > 1/2.

    Parameters
    ----------
    model : GaussianVAE
        Its mean must be a ReLU network that ``mean_layers`` gives, of any number of layers.
    x : Tensor, shape (n, d_x)
    r : float or Tensor, shape (n,)
        >= 0; chosen with other samples.
    samples : int
        Draws of eta that are judged.
    seed : int or torch.Generator
        See :mod:`vaerobust.randomness`.
        Where they come from.
    confidence : float
        1 - alpha, in (0, 1), at each point by itself. Only the samples are random.
    refine : int
        Steps that tighten the bound on the encoder; 0 is fastest.

    Returns
    -------
    Certificate

    Raises
    ------
    TypeError
        If the encoder offers no ``mean_layers``, or ``x`` is no tensor of floating point numbers.
    ValueError
        If an argument has the wrong shape or range, or the layers are not those of the encoder.
    """
    checks.vectors("x", x)
    mean_layers(model, x)  # an encoder that cannot be certified is an error before the samples are drawn
    (found,) = failures(model, x, [r], samples=samples, seed=seed)
    return certify(model, x, found, confidence=confidence, refine=refine)


def certify(
    model: GaussianVAE, x: Tensor, found: Failures, *, confidence: float = 0.999, refine: int = 6
) -> Certificate:
    """Return the certified margins that follow from samples already judged; see :func:`certified_margin`.

    Parameters
    ----------
    model, x
        Those that ``found`` was sampled from.
    found : Failures
        Of :func:`failures`.
    confidence, refine
        As in :func:`certified_margin`.

    Returns
    -------
    Certificate

    Raises
    ------
    TypeError, ValueError
        As :func:`certified_margin`.
    """
    checks.probability("confidence", confidence)
    layers = mean_layers(model, x)
    with torch.no_grad():
        sigma = model.encode(x)[1]
    still = shift_metric(layers, sigma, x, 0.0)
    limits = _Limits(found, still, 1 - confidence)

    def largest(safe: Tensor, most: Tensor, refined: int) -> Tensor:
        """Return the largest radius up to ``most`` that is found; W is refined at the last ``refined`` ones tried.

        W of a ball holds for smaller ones, so with R' the radius that W of radius R allows, min(R, R') is certified. R'
        falls as R grows, so the best lies between the two.
        """
        high = torch.minimum(_allowed(still, still, safe), most)
        low, at = torch.zeros_like(high), high
        for steps in [0, 0] + [refine] * refined:
            got = _allowed(still, shift_metric(layers, sigma, x, at, refine=steps), safe)
            low = torch.maximum(low, torch.minimum(at, got))
            high = torch.maximum(at, got)
            # a ball too large for any sound W allows nothing; a quarter of it may do
            at = (torch.maximum(torch.minimum(at, got), at / 4) * high).sqrt().minimum(most)
        return low

    radius = largest(limits.safe_shifts(), torch.full_like(limits.mass, LARGEST), 3)
    half_space = largest(limits.half_space[:, None], radius, 1)
    p_low = 1 - limits.mass.cpu().numpy()
    return Certificate(
        _rounded_down(torch.maximum(radius, half_space), x),
        _rounded_down(half_space, x),
        p_low,
        found.samples,
        confidence,
    )


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
    """Return for each of some radii an r with which no perturbation shorter than that breaks r-robustness.

    The certificate of the half-space lemma, read the other way round (percentile smoothing): within R the whitened mean
    moves by R L(R) at most, so every r above the Phi(R L(R))-quantile of D(x) will do, which an order statistic bounds.

    Parameters
    ----------
    model : GaussianVAE
        With a ReLU encoder, as in :func:`certified_margin`.
    x : Tensor, shape (n, d_x)
    radii : sequence of float
        Norms R of perturbations, >= 0.
    samples : int
        Draws of eta, the same for every point and radius.
    seed : int or torch.Generator
        See :mod:`vaerobust.randomness`.
    confidence : float
        1 - alpha, in (0, 1), at each point and radius by itself. Only the samples are random.
    refine : int
        As in :func:`certified_margin`.

    Returns
    -------
    Tensor, shape (len(radii), n)
        In the units of D; infinite where the samples are too few for the quantile, at this radius or a smaller one.

    Raises
    ------
    TypeError, ValueError
        As :func:`certified_margin`.
    """
    checks.vectors("x", x)
    checks.count("samples", samples)
    checks.probability("confidence", confidence)
    layers = mean_layers(model, x)
    sigma = model.encode(x)[1]
    stream = int(torch.randint(2**62, (), generator=as_generator(seed, x), device=x.device))
    # of so many samples, as many as this or fewer lie below the quantile, so the next one is above it
    below = np.full((len(radii), len(x)), samples)
    known = torch.arange(len(x), device=x.device)
    for k in np.argsort(radii, kind="stable"):  # where they are too few for a radius they are for every larger one
        if not len(known):
            break
        radius = checks.per_point("radii", radii[k], len(known), x.double())
        shift = radius * lipschitz_bound(layers, sigma[known], x[known], radius, refine=refine)
        enough = stats.binom.ppf(confidence, samples, stats.norm.cdf(shift.cpu().numpy()))
        below[k, known.cpu().numpy()] = enough
        known = known[torch.as_tensor(enough < samples, device=x.device)]
    index = torch.as_tensor(below, device=x.device)
    found = []
    for some in slices(len(x), max(1, KEPT // samples)):
        d = distances(model, x[some], samples=samples, seed=stream).sort(dim=1).values
        found.append(torch.cat([d, torch.full_like(d[:, :1], torch.inf)], 1).gather(1, index[:, some].T).T)
    return torch.cat(found, 1)


def _rounded_down(value: Tensor, like: Tensor) -> Tensor:
    """Return numbers >= 0 in the precision of another tensor, none of them larger than it was."""
    near = value.to(like)
    return torch.where(near.to(value) > value, torch.nextafter(near, torch.zeros_like(near)), near)


def _allowed(still: Tensor, moving: Tensor, shifts: Tensor) -> Tensor:
    """Return the radius at which some band's shift would reach its safe length."""
    known = torch.isfinite(moving).all((1, 2))
    moving = torch.where(known[:, None, None], moving, still)
    top = torch.linalg.eigvalsh(still)[:, -1]
    reach = torch.linalg.eigvalsh(moving)[:, -1]
    if shifts.shape[1] == 1:
        furthest = reach[:, None]
    else:
        # by a'Wa <= lambda_max(W - c W0) + c a'W0a, for any c
        scaled = still / top.clamp(min=1e-300)[:, None, None]
        weights = reach[:, None] * torch.tensor([0.0, 0.5, 0.8, 0.9, 1.0, 1.1, 1.3]).to(reach)
        rest = torch.linalg.eigvalsh(moving[:, None] - weights[:, :, None, None] * scaled[:, None])[..., -1]
        edges = torch.cat([BANDS[1:], BANDS[-1:]]).to(reach) ** 2
        furthest = (rest[:, :, None] + weights[:, :, None] * edges).amin(1)
    radius = shifts / furthest.clamp(min=1e-300).sqrt()
    return torch.where(known, radius.amin(1), 0.0)


class _Limits:
    """Confidence limits on what fails, all of them at once with probability 1 - alpha.

    The largest of a moment over directions is reached in one fixed direction, and the sample's largest is at least the
    sample's value there: so one scalar inequality does, whatever the number of latents. The errors are functions of
    the mass alone, and what the limit of the mass makes of them is no less than what the mass itself, which is not
    random, allows: see ``first_error``.
    """

    def __init__(self, found: Failures, still: Tensor, alpha: float) -> None:
        self.found = found
        share = alpha / 3
        count = found.number.cpu().numpy()
        high = stats.beta.isf(share, count + 1, np.maximum(found.samples - count, 1))
        self.mass = torch.as_tensor(np.where(count == found.samples, 1.0, high)).to(still)
        self.half_space = torch.as_tensor(half_space_shift(1 - self.mass.cpu().numpy())).to(still)
        top = torch.linalg.eigvalsh(still)[:, -1]
        self.metric = still / top.clamp(min=1e-300)[:, None, None]
        nats = math.log(len(TILTS) / share)
        edge = torch.as_tensor(stats.norm.isf(self.mass.cpu().numpy() / 2)).to(still)
        # the lower tail of a mean of numbers >= 0, by their second moment: E 1_B t^4 <= E[t^4; |t| > edge]
        density, tail = _density(edge), self.mass / 2
        fourth = 2 * ((edge**3 + 3 * edge) * density + 3 * tail)
        self.second_error = (2 * fourth * nats / found.samples).sqrt()
        # and of signed ones, by their exponential moment; the second factor is E[t^2 exp(tilt |t|); |t| > edge]. A tilt
        # must not depend on the samples: take the one that is best for any mass from the true one upwards. It does no
        # worse than the tilt that belongs to the limit, which is one of these masses
        square = 2 * (edge * density + tail)
        tilt = (2 * nats / (found.samples * square)).sqrt()
        lower = edge - tilt
        moved = torch.special.ndtr(-lower)
        tilted = (
            2 * torch.exp(tilt**2 / 2)
            * ((1 + tilt**2) * moved + (lower + 2 * tilt) * _density(lower))
        )  # fmt: skip
        self.first_error = nats / (found.samples * tilt) + tilt * tilted / 2

    def safe_shifts(self) -> Tensor:
        """Return the safe length of a shift along the directions of each band, shape (n, bands)."""
        first, second = self.moments()
        mass = self.mass[:, None].expand_as(first)
        return safe_shift(mass.flatten(), first.flatten(), second.flatten()).reshape(first.shape)

    def moments(self) -> tuple[Tensor, Tensor]:
        """Return limits of |E 1_B a.eta| and E 1_B (a.eta)^2 along the directions of each band, shape (n, bands)."""
        edges = BANDS.to(self.metric) ** 2
        tilts = torch.tensor(TILTS).to(self.metric)
        weighed = tilts[:, None, None] * self.metric[:, None]
        second = torch.linalg.eigvalsh(self.found.second[:, None] + weighed)[..., -1] + self.second_error[:, None]
        second = (second[:, :, None] - tilts[:, None] * edges).amin(1)
        outer = self.found.first[:, :, None] * self.found.first[:, None, :]
        options = []
        for share in SHARES:  # (m + e)^2 <= (1 + share) m^2 + (1 + 1 / share) e^2
            largest = torch.linalg.eigvalsh((1 + share) * outer[:, None] + 0.1 * weighed)[..., -1]
            largest = largest + (1 + 1 / share) * self.first_error[:, None] ** 2
            options.append(largest[:, :, None] - 0.1 * tilts[:, None] * edges)
        return torch.cat(options, 1).amin(1).clamp(min=0).sqrt(), second.clamp(min=0)


def _density(t: Tensor) -> Tensor:
    return torch.exp(-(t**2) / 2) / math.sqrt(2 * math.pi)


def safe_shift(mass: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Return how far noise may be shifted along a direction before a set that fails can have probability 1/2.

    Of the set B it is known that P(B) <= mass, and along the direction a that E[1_B a.eta] <= first and
    E[1_B (a.eta)^2] <= second. By weak duality, for any multipliers l_k >= 0,

        P(eta + t a in B) <= l_0 mass + l_1 first + l_2 second + int (phi(s - t) - (l_0 + l_1 s + l_2 s^2) phi(s))_+ ds.

    Along the ray the half-space lemma bounds what happens between two lengths, so the length is found by marching:
    from t one may go on by Phi^-1(1 - the bound at t). The first step, from 0, is the half-space lemma itself.

    Parameters
    ----------
    mass, first, second : Tensor, shape (k,)
        >= 0.

    Returns
    -------
    Tensor, shape (k,)
        0 where mass >= 1/2.
    """
    return torch.cat([_marched(mass[some], first[some], second[some]) for some in slices(len(mass), SHIFTS)])


def _marched(mass: Tensor, first: Tensor, second: Tensor) -> Tensor:
    length = torch.as_tensor(half_space_shift(1 - mass.clamp(max=1).cpu().numpy())).to(mass)
    moments = torch.stack([mass, first, second], 1)
    multipliers = torch.stack([torch.exp(length * length / 2), *2 * [torch.full_like(length, 0.05)]], 1)
    going = (length > 0) & (length < float(NODES[-1]) - 8)
    for _ in range(MARCH):
        if not going.any():
            break
        multipliers[going], bound = _fails_at_most(length[going], moments[going], multipliers[going])
        step = torch.as_tensor(half_space_shift(1 - bound.clamp(max=1).cpu().numpy())).to(mass)
        length[going] += step
        going[going.clone()] = (step > 0.003) & (length[going] < float(NODES[-1]) - 8)
    return length


def _fails_at_most(length: Tensor, moments: Tensor, multipliers: Tensor) -> tuple[Tensor, Tensor]:
    """Minimise the dual bound over the multipliers by Newton's method, smoothed; evaluate it as it stands."""
    gain, base = _integrands(length, COARSE)
    floor = gain.clamp(min=1e-290)

    def smoothed(at: Tensor, width: float) -> tuple[Tensor, Tensor]:
        margin = (1 - at @ base.T / floor) / width
        value = (gain * width * torch.nn.functional.softplus(margin)).sum(1)
        return (at * moments).sum(1) + value - BARRIER * at.log().sum(1), margin

    at, damping = multipliers, torch.full_like(length, 1e-3)
    for step in range(NEWTON):
        width = max(0.3 * 0.7**step, 0.02)
        value, margin = smoothed(at, width)
        inside = torch.sigmoid(margin)
        gradient = moments - inside @ base - BARRIER / at
        curvature = inside * (1 - inside) / (width * floor)
        hessian = torch.einsum("kt,ti,tj->kij", curvature, base, base) + torch.diag_embed(BARRIER / at**2)
        # one or two roots of the integrand leave the curvature without full rank, so it is damped
        move = -torch.linalg.solve(hessian + damping[:, None, None] * torch.eye(3).to(at), gradient)
        trial = torch.maximum(at + move, 0.1 * at)
        better = smoothed(trial, width)[0] < value
        at = torch.where(better[:, None], trial, at)
        damping = torch.where(better, damping / 4, damping * 6).clamp(1e-9, 1e3)
    gain, base = _integrands(length, 1)
    integral = (gain - at @ base.T).clamp(min=0).sum(1)
    # the rule of the nodes errs by at most STEP^2 / 8 of the total variation of the integrand's slope
    slack = STEP**2 / 8 * (2 + 2 * at[:, 0] + 2 * at[:, 1] + 4 * at[:, 2])
    return at, (at * moments).sum(1) + integral + slack


def _integrands(length: Tensor, every: int) -> tuple[Tensor, Tensor]:
    """Return the shifted density (k, nodes) and the density times each power (nodes, 3), times the nodes' distance."""
    nodes = NODES[::every].to(length)
    powers = torch.stack([torch.ones_like(nodes), nodes, nodes**2], 1)
    return every * STEP * _density(nodes - length[:, None]), every * STEP * _density(nodes)[:, None] * powers
