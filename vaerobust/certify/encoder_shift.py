"""How far a perturbation within a ball can move a ReLU encoder's mean: a bound without a higher-order term.

Over ||delta||_2 <= R the chord slope of each ReLU, (relu(a + da) - relu(a)) / da, lies in an interval, which is a point
for units that cannot change sign. Write it as centre + E with |E| <= e. Then the change of the mean is linear in v =
(delta, z), where z holds the contributions of E, each of which is at most e times the change of its own unit. Weighing
these quadratic inequalities by multipliers B > 0 (the S-procedure) leaves one positive definite matrix G with
v' G v <= ||delta||^2, so that (a . change)^2 <= ||delta||^2 a' F G^-1 F' a for every direction a. Any B is sound; a
good one is tight. With no unit that can change sign the bound is the Jacobian itself.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vaerobust import checks
from vaerobust.model import Layers

FACTORS = (0.4, 1.0, 2.5)
"""Common factors of the multipliers that are tried before any refinement."""
TINY = 1e-12
HOPELESS = 1e3
"""A metric larger than the best one by this factor is of no use."""
POINTS = 16
"""Points at a time: each needs a square matrix of up to the encoder's width times its depth, about 10 MB."""


class _Relaxation(NamedTuple):
    """Quadratic inequalities z_k^2 <= (A_k v)^2, and the whitened change of the mean, F v."""

    constraints: list[Tensor]
    change: Tensor
    start: list[Tensor]


class _Solution(NamedTuple):
    """F G^-1 F', whether it is sound, and what it was made from: the root of G, and root^-1 F'."""

    metric: Tensor
    sound: Tensor
    root: Tensor
    half: Tensor


@torch.no_grad()
def shift_metric(
    layers: Layers, scale: Tensor, x: Tensor, radius: float | Tensor, *, refine: int = 0
) -> Tensor:  # fmt: skip
    """Return W such that no perturbation within a radius moves the scaled mean further than W says.

    For every ||delta||_2 <= radius and every vector a: (a . u)^2 <= ||delta||_2^2 a' W a, where
    u = (mu(x + delta) - mu(x)) / scale. So ||u||_2 <= ||delta||_2 sqrt(lambda_max(W)).

    Parameters
    ----------
    layers : list of (weight, bias)
        Of the encoder's mean, in double precision; see :func:`vaerobust.model.mean_layers`.
    scale : Tensor, shape (n, d_z)
        sigma(x), > 0.
    x : Tensor, shape (n, d_x)
    radius : float or Tensor, shape (n,)
        >= 0. At 0, W is S^-1 J J' S^-1.
    refine : int
        Steps of gradient descent on the multipliers; each makes the bound tighter or leaves it.

    Returns
    -------
    Tensor, shape (n, d_z, d_z)
        In double precision; infinite on the diagonal where nothing finite was found.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong shape or range.
    """
    checks.vectors("x", x)
    checks.vectors("scale", scale)
    checks.count("refine", refine, least=0)
    radius = checks.per_point("radius", radius, len(x), x.double())
    parts = [
        _metric(_relax(layers, scale[i].double(), x[i].double(), radius[i]), refine)
        for i in torch.arange(len(x), device=x.device).split(POINTS)
    ]
    return torch.cat(parts)


def lipschitz_bound(
    layers: Layers, scale: Tensor, x: Tensor, radius: float | Tensor, *, refine: int = 0
) -> Tensor:  # fmt: skip
    """Return L with ||u||_2 <= L ||delta||_2 for every perturbation within a radius; u as in :func:`shift_metric`.

    Parameters
    ----------
    layers, scale, x, radius, refine
        As in :func:`shift_metric`.

    Returns
    -------
    Tensor, shape (n,)
        sqrt(lambda_max(W)), in double precision; infinite where no finite W was found.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong shape or range.
    """
    metric = shift_metric(layers, scale, x, radius, refine=refine)
    known = torch.isfinite(metric).all((1, 2))
    top = torch.linalg.eigvalsh(torch.where(known[:, None, None], metric, 0.0))[:, -1]
    return torch.where(known, top.clamp(min=0).sqrt(), torch.inf)


def _relax(layers: Layers, scale: Tensor, x: Tensor, radius: Tensor) -> _Relaxation:
    """Propagate chord slopes through the layers; see the head of this module for what the blocks are."""
    n = len(x)
    # only the part of delta in the row space of the first layer matters
    linear = torch.linalg.qr(layers[0][0].T).R.T.expand(n, -1, -1)
    paths: list[Tensor] = []  # from each layer's z to this layer's input
    norms: list[Tensor] = []  # of z, a unit of radius
    constraints = []
    activation = x @ layers[0][0].T + layers[0][1]
    for weight, bias in layers[1:]:
        reach = linear.norm(dim=2)
        for path, norm in zip(paths, norms, strict=True):
            reach = reach + path.norm(dim=2) * norm[:, None]
        low, high = _chord_slopes(activation, radius[:, None] * reach)
        half = (high - low) / 2
        # keep the units whose slope is not certain, as many as the point with most has
        units = half.topk(max(1, int((half > 0).sum(1).max())), dim=1).indices
        root = half.gather(1, units).sqrt()
        own, crossed = _rows(linear, units, root), [_rows(path, units, root) for path in paths]
        bound = _spectral(own)
        for path, norm in zip(crossed, norms, strict=True):
            bound = bound + _spectral(path) * norm
        constraints.append(torch.cat([own, *crossed], 2))
        norms.append(bound)
        centred = weight * ((low + high) / 2)[:, None, :]
        fresh = weight.expand(n, -1, -1).gather(2, units[:, None, :].expand(-1, len(weight), -1)) * root[:, None, :]
        linear, paths = centred @ linear, [*(centred @ path for path in paths), fresh]
        activation = torch.relu(activation) @ weight.T + bias
    blocks = [block / scale[:, :, None] for block in (linear, *paths)]
    size = _spectral(blocks[0])
    for block, norm in zip(blocks[1:], norms, strict=True):
        size = size + _spectral(block) * norm
    # what would be best for one unit by itself, aligned with everything else
    start = [
        (block.norm(dim=1) / (size[:, None] * rows.norm(dim=2).clamp(min=TINY)).clamp(min=TINY)).clamp(min=TINY)
        for block, rows in zip(blocks[1:], constraints, strict=True)
    ]
    return _Relaxation(constraints, torch.cat(blocks, 2), start)


def _chord_slopes(a: Tensor, reach: Tensor) -> tuple[Tensor, Tensor]:
    """Return least and largest (relu(a + d) - relu(a)) / d over |d| <= reach."""
    certain = (a.abs() / reach.clamp(min=1e-300)).clamp(max=1)
    on = a > 0
    return torch.where(on, certain, torch.zeros_like(a)), torch.where(on, torch.ones_like(a), 1 - certain)


def _rows(matrix: Tensor, units: Tensor, root: Tensor) -> Tensor:
    return matrix.gather(1, units[:, :, None].expand(-1, -1, matrix.shape[2])) * root[:, :, None]


def _spectral(matrix: Tensor) -> Tensor:
    """Return the largest singular value of each matrix, by the smaller of its two Gram matrices."""
    tall = matrix.shape[-2] > matrix.shape[-1]
    gram = matrix.mT @ matrix if tall else matrix @ matrix.mT
    return torch.linalg.eigvalsh(gram)[..., -1].clamp(min=0).sqrt()


def _metric(relaxation: _Relaxation, refine: int) -> Tensor:
    """Return the best F G^-1 F' over the multipliers tried."""
    start = relaxation.start
    width = relaxation.change.shape[1]
    best = torch.diag_embed(torch.full_like(relaxation.change[:, :, 0], torch.inf))
    least = torch.full_like(best[:, 0, 0], torch.inf)
    chosen = start

    def keep(solution: _Solution, multipliers: list[Tensor]) -> None:
        nonlocal best, least, chosen
        metric, sound = solution.metric, solution.sound
        top = torch.linalg.eigvalsh(torch.where(sound[:, None, None], metric, torch.eye(width).to(metric)))[:, -1]
        better = sound & (top < least)
        best = torch.where(better[:, None, None], metric, best)
        least = torch.where(better, top, least)
        chosen = [torch.where(better[:, None], new, old) for new, old in zip(multipliers, chosen, strict=True)]

    for factor in FACTORS if start else (1.0,):
        multipliers = [factor * part for part in start]
        keep(_solve(relaxation, multipliers), multipliers)
    if not refine or not start:
        return best
    # the descent is in single precision, twice as fast; what it finds is judged in double precision
    single = _Relaxation([rows.float() for rows in relaxation.constraints], relaxation.change.float(), [])
    logs = [part.float().log() for part in chosen]
    adam = torch.optim.Adam(logs, lr=0.3)
    record = least.float()
    for _ in range(refine):
        metric, sound, root, half = _solve(single, [part.exp() for part in logs])
        # close to where G is singular the metric is huge, and single precision cannot find its eigenvalues
        sound &= metric.diagonal(dim1=1, dim2=2).amax(1) < HOPELESS * record
        values, vectors = torch.linalg.eigh(torch.where(sound[:, None, None], metric, torch.eye(width).to(metric)))
        top = values[:, -1]
        better = sound & (top < record)
        record = torch.where(better, top, record)
        chosen = [
            torch.where(better[:, None], part.exp().double(), old) for part, old in zip(logs, chosen, strict=True)
        ]  # fmt: skip
        # y = G^-1 F' a with a the top eigenvector: the slope of a' F G^-1 F' a in B is (A y)^2 - z^2, z that part of y
        y = torch.linalg.solve_triangular(root.mT, half @ vectors[:, :, -1:], upper=True)
        at = y.shape[1] - sum(part.shape[1] for part in logs)
        for part, rows in zip(logs, single.constraints, strict=True):
            slope = (rows @ y[:, : rows.shape[2]]).square() - y[:, at : at + part.shape[1]].square()
            slope = part.exp() * slope[..., 0] / top[:, None]
            part.grad = torch.where(sound[:, None], slope, 0.0).nan_to_num()
            at += part.shape[1]
        adam.step()
    keep(_solve(relaxation, chosen), chosen)
    return best


def _solve(relaxation: _Relaxation, multipliers: list[Tensor]) -> _Solution:
    """Return F G^-1 F', and where G is positive definite, without which it means nothing."""
    change = relaxation.change
    free = change.shape[2] - sum(part.shape[1] for part in multipliers)
    matrix = torch.diag_embed(torch.cat([torch.ones_like(change[:, 0, :free]), *multipliers], 1))
    for rows, part in zip(relaxation.constraints, multipliers, strict=True):
        width = rows.shape[2]
        matrix[:, :width, :width] -= rows.mT @ (part[:, :, None] * rows)
    root, failed = torch.linalg.cholesky_ex(matrix)
    half = torch.linalg.solve_triangular(root, change.mT, upper=False)
    metric = half.mT @ half
    return _Solution(metric, (failed == 0) & torch.isfinite(metric).all((1, 2)), root, half)
