"""How far noise may be shifted before it fails with probability 1/2, from the mass and two moments of failure.

The mathematics is the lemma "How far a mean may move" of chapter 5 (lem-safe-shift). Noise eta fails if it takes the
reconstruction further than r, and B is the set of noise that fails. The half-space lemma says how far eta may be
shifted when only P(B), the mass of B, is known. Here upper limits on the first two moments of B along the direction of
the shift are known as well, and so a longer shift is safe.

This module holds that function of three numbers, which are assumed to be true upper limits. How samples give them is in
:mod:`vaerobust.certify.failures`, and how far a perturbation shifts the noise in
:mod:`vaerobust.certify.encoder_shift`.

Start reading at :func:`safe_shift`. It marches outwards from 0 (``_march``). At each length it minimises the dual bound
b(t) on the probability of failure over three multipliers, approximately (``_good_multipliers``). Any multipliers give a
valid bound, so it evaluates b(t) for those exactly as the lemma states it (``_dual_bound``). Then it goes on as far as
the half-space lemma allows.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from vaerobust.batches import slices
from vaerobust.bounds import half_space_shift

STEP = 0.005
"""Distance between the nodes of the integral in lem-safe-shift."""
NODES = torch.arange(-8.0, 16.0, STEP, dtype=torch.float64)
"""The nodes of that integral."""
LONGEST = float(NODES[-1]) - 8
"""The march ends at this length: beyond it the nodes do not cover the shifted density."""
COARSE = 5
"""The multipliers are sought on every COARSE-th node; the bound is evaluated on all nodes."""
SHORTEST_STEP = 0.003
"""The march ends when it advances by less than this."""
MARCH_STEPS = 40
"""Largest number of steps of the march."""
NEWTON_STEPS = 25
"""Newton steps for the multipliers at each length."""
BARRIER = 1e-6
"""Weight of the logarithmic barrier that keeps the multipliers positive."""
SMALLEST = 1e-290
"""Smallest density that is divided by."""
SHIFTS = 256
"""Number of (m_0, m_1, m_2) per block: each needs several numbers at every node, about 40 MB for a block."""


class _Dual(NamedTuple):
    """What the dual bound b(t) sums over the nodes s, for k lengths t.

    Attributes
    ----------
    moments : Tensor, shape (k, 3)
        m_0, m_1 and m_2.
    shifted : Tensor, shape (k, nodes)
        phi(s - t), times the distance between nodes.
    powers : Tensor, shape (nodes, 3)
        phi(s), s phi(s) and s^2 phi(s), times the distance between nodes.
    """

    moments: Tensor
    shifted: Tensor
    powers: Tensor


def safe_shift(mass: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Return how far noise may be shifted along a direction before a set that fails can have probability 1/2.

    Of the set B it is known that P(B) <= m_0, and along the unit direction a that E[1_B a.eta] <= m_1 and
    E[1_B (a.eta)^2] <= m_2. By weak duality, for any multipliers l_k >= 0, P(eta + t a in B) is at most

        b(t) = l_0 m_0 + l_1 m_1 + l_2 m_2 + int (phi(s - t) - (l_0 + l_1 s + l_2 s^2) phi(s))_+ ds.

    This bounds the probability of failure at single lengths t. Beyond t, the half-space lemma says that it stays below
    1/2 for another Phi^-1(1 - b(t)). So the safe length is found by marching outwards by that much again and again. The
    first step, from 0 with b = m_0, is the half-space lemma itself.

    Parameters
    ----------
    mass, first, second : Tensor, shape (k,)
        m_0, m_1 and m_2, each >= 0, in double precision.

    Returns
    -------
    Tensor, shape (k,)
        T of lem-safe-shift, in standard deviations of the noise; 0 where m_0 >= 1/2.
    """
    moments = torch.stack([mass, first, second], 1)  # (k, 3)
    return torch.cat([_march(moments[some]) for some in slices(len(moments), SHIFTS)])


def half_space_length(mass: Tensor) -> Tensor:
    """Return Phi^-1(1 - mass): by lem-half-space a set of this probability stays below 1/2 over any shorter shift.

    Parameters
    ----------
    mass : Tensor
        Upper limit of the probability of the set, >= 0.

    Returns
    -------
    Tensor
        In standard deviations of the noise; 0 where the mass is 1/2 or more, infinite where it is 0.
    """
    return torch.as_tensor(half_space_shift(1 - mass.clamp(max=1).cpu().numpy())).to(mass)


def normal_density(t: Tensor) -> Tensor:
    """Return phi(t), the standard normal density, elementwise."""
    return torch.exp(-(t**2) / 2) / math.sqrt(2 * math.pi)


def _march(moments: Tensor) -> Tensor:
    """Return the last t_k of lem-safe-shift, t_{k+1} = t_k + Phi^-1(1 - b(t_k)), shape (k,)."""
    length = half_space_length(moments[:, 0])  # t_0 = Phi^-1(1 - m_0)
    # If B is the half-space s > t, the best multipliers are l_0 = phi(s - t) / phi(s) at s = t, which is exp(t^2 / 2),
    # and l_1 = l_2 = 0. The barrier needs positive ones, hence 0.05.
    multipliers = torch.stack([torch.exp(length * length / 2), *2 * [torch.full_like(length, 0.05)]], 1)  # (k, 3)
    going = (length > 0) & (length < LONGEST)
    for _ in range(MARCH_STEPS):
        if not going.any():
            break
        multipliers[going] = _good_multipliers(length[going], moments[going], multipliers[going])
        bound = _dual_bound(length[going], moments[going], multipliers[going])
        step = half_space_length(bound)
        length[going] += step
        # A copy of the mask chooses the elements, since the mask itself is being written
        going[going.clone()] = (step > SHORTEST_STEP) & (length[going] < LONGEST)
    return length


def _dual_bound(length: Tensor, moments: Tensor, multipliers: Tensor) -> Tensor:
    """Return b(t) of lem-safe-shift for the given multipliers, with the error of the sum over nodes added to it."""
    dual = _at_nodes(length, moments, 1)
    integral = (dual.shifted - multipliers @ dual.powers.T).clamp(min=0).sum(1)
    # The sum errs by at most STEP^2 / 8 times the total variation of the integrand's derivative. The total variations
    # of the derivatives of phi, s phi and s^2 phi are below 2, 2 and 4; the positive part does not increase them.
    constant, linear, square = multipliers.T
    slack = STEP**2 / 8 * (2 + 2 * constant + 2 * linear + 4 * square)
    return (multipliers * moments).sum(1) + integral + slack


def _good_multipliers(length: Tensor, moments: Tensor, multipliers: Tensor) -> Tensor:
    """Return multipliers, (k, 3), that make b(t) small; any multipliers >= 0 give a valid bound.

    This is Newton's method with damping, on a smooth version of b(t) with a logarithmic barrier. The smoothing becomes
    narrower from step to step. A step that does not lower the value is not taken, and the damping grows.
    """
    dual = _at_nodes(length, moments, COARSE)
    damping = torch.full_like(length, 1e-3)  # (k,)
    for step in range(NEWTON_STEPS):
        width = max(0.3 * 0.7**step, 0.02)
        value, excess = _smooth_bound(dual, multipliers, width)
        inside = torch.sigmoid(excess)  # (k, nodes): close to 1 where the integrand is positive
        gradient = moments - inside @ dual.powers - BARRIER / multipliers  # (k, 3)
        curvature = inside * (1 - inside) / (width * dual.shifted.clamp(min=SMALLEST))
        hessian = torch.einsum("kt,ti,tj->kij", curvature, dual.powers, dual.powers)
        hessian = hessian + torch.diag_embed(BARRIER / multipliers**2)
        # The integrand changes sign at one or two nodes only, so the Hessian may lack full rank: it is damped
        damped = hessian + damping[:, None, None] * torch.eye(3).to(multipliers)
        trial = torch.maximum(multipliers - torch.linalg.solve(damped, gradient), 0.1 * multipliers)
        better = _smooth_bound(dual, trial, width)[0] < value
        multipliers = torch.where(better[:, None], trial, multipliers)
        damping = torch.where(better, damping / 4, damping * 6).clamp(1e-9, 1e3)
    return multipliers


def _smooth_bound(dual: _Dual, multipliers: Tensor, width: float) -> tuple[Tensor, Tensor]:
    """Return b(t) with a softplus in place of the positive part, and with the barrier; and the softplus's argument.

    The argument, shape (k, nodes), is the integrand relative to the shifted density, in units of the width.
    """
    excess = (1 - multipliers @ dual.powers.T / dual.shifted.clamp(min=SMALLEST)) / width
    value = (dual.shifted * width * torch.nn.functional.softplus(excess)).sum(1)  # (k,)
    return (multipliers * dual.moments).sum(1) + value - BARRIER * multipliers.log().sum(1), excess


def _at_nodes(length: Tensor, moments: Tensor, every: int) -> _Dual:
    """Return what the dual bound sums over the nodes, taking only every ``every``-th node."""
    nodes = NODES[::every].to(length)
    powers = torch.stack([torch.ones_like(nodes), nodes, nodes**2], 1)
    return _Dual(
        moments,
        every * STEP * normal_density(nodes - length[:, None]),
        every * STEP * normal_density(nodes)[:, None] * powers,
    )
