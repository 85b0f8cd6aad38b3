"""The matrices of lem-network for one point, and the metric W that multipliers make of them.

:mod:`vaerobust.certify.network` states and proves the lemma and fills these matrices.
:mod:`vaerobust.certify.encoder_shift` searches for multipliers. Here is what lies between: W for given multipliers, and
its derivative. Start reading at :meth:`Relaxation.solve`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vaerobust.jacobians import largest_eigenvalue

SMALLEST = 1e-12
"""Smallest number that one is divided by."""


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
    paths : Tensor, shape (1, kept, kept)
        A over the columns of the kept units.
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
        """Return a metric that needs no multipliers: shape (1, d_z, d_z)."""
        return self.bound[:, :, None] ** 2 * torch.eye(self.change.shape[1]).to(self.outer)

    def single(self) -> Relaxation:
        """Return the same in single precision."""
        return Relaxation(*(part.float() for part in self[:-1]), [])  # type: ignore[misc, arg-type]

    def solve(self, multipliers: list[Tensor]) -> Solution:
        """Compute W of the lemma for the multipliers of the kept units; those of the lumped units follow."""
        (kept,) = multipliers
        inverse = 1 / kept
        weighted = self.paths * inverse[:, None, :]  # A Lambda^-1
        matrix = torch.diag_embed(inverse) - self.gram - weighted @ self.paths.mT  # M
        right = self.cross + weighted @ self.change.mT  # A D^-1 F'
        root, failed = torch.linalg.cholesky_ex(matrix)
        half = torch.linalg.solve_triangular(root, right, upper=False)
        bracket = self.outer + (self.change * inverse[:, None, :]) @ self.change.mT + half.mT @ half
        factor = 1 + (kept * self.spread).sum(1)[:, None, None]
        bracket, factor = self._with_lumped(bracket, factor)
        metric = factor * bracket
        sound = (failed == 0) & torch.isfinite(metric).all((1, 2))
        return Solution(metric, sound, root, half, factor)

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
        own = self.change.mT @ top + self.paths.mT @ w
        bracket = (top.mT @ solution.metric @ top / solution.factor)[:, :, 0]
        slope = ((w.square() - own.square()) / kept[:, :, None].square())[:, :, 0]
        return [solution.factor[:, :, 0] * slope + self.spread * bracket]
