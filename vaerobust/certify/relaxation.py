"""The matrices of lem-network for one point, and the metric W that multipliers make of them.

:mod:`vaerobust.certify.network` states and proves the lemma and fills these matrices.
:mod:`vaerobust.certify.encoder_shift` searches for multipliers. Here is what lies between: W for given multipliers, and
its derivative. Start reading at :meth:`Relaxation.solve`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

SMALLEST = 1e-12
"""Smallest multiplier, and smallest number that one is divided by."""
START = 0.4
"""The first multipliers relative to the ratio that would be best, which leaves out how errors meet each other."""
LEAST_PART = 0.05
"""The worst perturbation is assumed to have at least this part of its length along the row of each unit."""


class Solution(NamedTuple):
    """W for some multipliers, and what it was computed from; see :meth:`Relaxation.solve`."""

    metric: Tensor  # (1, d_z, d_z)
    sound: Tensor  # (1,), whether G is positive definite; where it is not, the metric means nothing
    root: Tensor  # (1, kept, kept), the Cholesky factor of M
    half: Tensor  # (1, kept, d_z), root^-1 A D^-1 F'
    factor: Tensor  # (), 1 + sum_i lambda_i t_i^2


class Relaxation(NamedTuple):
    """The matrices of the lemma, reduced to the kept units.

    By Woodbury's identity G is positive definite exactly if M = Lambda^-1 - A D^-1 A' is, with D = diag(I, Lambda), and
    F G^-1 F' = F D^-1 F' + F D^-1 A' M^-1 A D^-1 F'. So the coordinates of delta enter by inner products alone.

    Attributes
    ----------
    gram : Tensor, shape (1, kept, kept)
        A A' over the columns of delta.
    cross : Tensor, shape (1, kept, d_z)
        A F' over the columns of delta.
    outer : Tensor, shape (1, d_z, d_z)
        F F' over the columns of delta.
    paths : Tensor, shape (1, kept - first, kept - last)
        A over the columns of the kept units, without its rows for the ``first`` units of the first activation and its
        columns for the ``last`` units of the last one, which are all 0.
    change : Tensor, shape (1, d_z, kept)
        F over the columns of the kept units.
    spread : Tensor, shape (1, kept)
        t_i^2 of the kept units.
    lumped : Tensor, shape (1, d_z, d_z)
        H = sum over lumped units of F_i F_i' t_i / ||F_i||.
    lumps : Tensor, shape (1, 1)
        c = sum over lumped units of t_i ||F_i||. With lambda_i = tau ||F_i|| / t_i they contribute tau c to the factor
        of the lemma, and H / tau to the bracket.
    bound : Tensor, shape (1, 1)
        A bound of ||u||_2 / ||delta||_2 by norms alone, which is always finite.
    start : list of one Tensor, shape (1, kept)
        Multipliers to start from.
    """

    gram: Tensor
    cross: Tensor
    outer: Tensor
    paths: Tensor
    change: Tensor
    spread: Tensor
    lumped: Tensor
    lumps: Tensor
    bound: Tensor
    start: list[Tensor]

    def fallback(self) -> Tensor:
        """Return a metric that needs no multipliers, shape (1, d_z, d_z).

        It is a little larger than it must be, so that a metric that tells directions apart wins a tie.
        """
        return 1.01 * self.bound[:, :, None] ** 2 * torch.eye(self.change.shape[1]).to(self.outer)

    def single(self) -> Relaxation:
        """Return the same in single precision."""
        floats = {name: part.float() for name, part in self._asdict().items() if name != "start"}
        return Relaxation(**floats, start=[])

    def solve(self, multipliers: list[Tensor]) -> Solution:
        """Compute W of the lemma for the multipliers of the kept units; those of the lumped units follow."""
        (kept,) = multipliers
        inverse = 1 / kept
        root, failed = self.factorised(kept)
        half = torch.linalg.solve_triangular(root, self.coupled(kept, self.cross, self.change.mT), upper=False)
        bracket = self.outer + (self.change * inverse[:, None, :]) @ self.change.mT + half.mT @ half
        factor = 1 + (kept * self.spread).sum(1)[:, None, None]
        bracket, factor = self._with_lumped(bracket, factor)
        metric = factor * bracket
        sound = (failed == 0) & torch.isfinite(metric).all((1, 2))
        return Solution(metric, sound, root, half, factor)

    def factorised(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        """Return the Cholesky factor of M for some multipliers, and a number that is 0 where there is one."""
        inverse = 1 / kept
        matrix = torch.diag_embed(inverse) - self.gram
        first, width = kept.shape[1] - self.paths.shape[1], self.paths.shape[2]
        matrix[:, first:, first:] -= (self.paths * inverse[:, None, :width]) @ self.paths.mT
        return torch.linalg.cholesky_ex(matrix)

    def coupled(self, kept: Tensor, cross: Tensor, change: Tensor) -> Tensor:
        """Return A D^-1 C' of some rows C, from A C' over delta and C' over the kept units; each (1, kept, rows)."""
        first, width = kept.shape[1] - self.paths.shape[1], self.paths.shape[2]
        right = cross.clone()
        right[:, first:] += self.paths @ (change[:, :width] / kept[:, :width, None])
        return right

    def _with_lumped(self, bracket: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
        """Add what lumped units contribute, with tau chosen for the traces of the two parts of the bracket."""
        lumps = self.lumps[:, :, None]
        if not (lumps > 0).any():
            return bracket, factor
        w, h = (part.diagonal(dim1=1, dim2=2).sum(1)[:, None, None] for part in (bracket, self.lumped))
        # (factor + tau c) (w + h / tau) is least here; any tau > 0 is sound
        tau = (factor * h / (lumps * w).clamp(min=SMALLEST)).sqrt().nan_to_num(1.0).clamp(SMALLEST, 1 / SMALLEST)
        return bracket + self.lumped / tau, factor + tau * lumps

    def slopes(self, solution: Solution, top: Tensor, multipliers: list[Tensor]) -> list[Tensor]:
        """Return the derivative of a' W a in the multipliers, with a the top eigenvector, shape (1, d_z, 1).

        With y = G^-1 F' a, the bracket's derivative is (A y)_i^2 - z_i^2, where z_i is the component of y that belongs
        to the unit. In terms of w = M^-1 A D^-1 F' a these are w_i / lambda_i and (F' a + A' w)_i / lambda_i.
        """
        (kept,) = multipliers
        w = torch.linalg.solve_triangular(solution.root.mT, solution.half @ top, upper=True)  # (1, kept, 1)
        own = self.change.mT @ top
        own[:, : self.paths.shape[2]] += self.paths.mT @ w[:, kept.shape[1] - self.paths.shape[1] :]
        bracket = (top.mT @ solution.metric @ top / solution.factor)[:, :, 0]
        slope = ((w.square() - own.square()) / kept[:, :, None].square())[:, :, 0]
        return [solution.factor[:, :, 0] * slope + self.spread * bracket]


def joined(blocks: list[list[Tensor]], free: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Join the rows of A, activation by activation.

    Parameters
    ----------
    blocks : list of list of Tensor
        For each activation its rows over the units of each earlier one, (kept, earlier kept).
    free : list of Tensor
        For each activation its rows over delta, (kept, d_x).

    Returns
    -------
    free, paths : Tensor
        Of shape (kept, d_x), and as in :class:`Relaxation` but without the first dimension.
    """
    rows = torch.cat(free)
    counts = [len(part) for part in free]
    first, last = counts[0], counts[-1]
    paths = rows.new_zeros(len(rows) - first, len(rows) - last)
    at = 0
    for count, parts in zip(counts[1:], blocks[1:], strict=True):
        row = torch.cat(parts, 1)
        paths[at : at + count, : row.shape[1]] = row
        at += count
    return rows, paths


def first_multipliers(cross: Tensor, change: Tensor, size: Tensor, top: Tensor) -> Tensor:
    """Return multipliers to start from, close to the best ones: shape (kept,).

    Where W is least in the direction a, z_i^2 = (A y)_i^2 for y = G^-1 F' a, so lambda_i is the ratio of
    |F' a|_i to |A y|_i. To first order y = F' a over delta.

    Parameters
    ----------
    cross : Tensor, shape (kept,)
        Norm of each row of A F' over delta.
    change : Tensor, shape (kept,)
        Norm of each column of F.
    size : Tensor, shape (kept,)
        Norm of each row of A over delta.
    top : Tensor, shape ()
        The spectral norm of F over delta, or an estimate.
    """
    return (START * change / torch.maximum(cross, LEAST_PART * top * size).clamp(min=SMALLEST)).clamp(min=SMALLEST)
