"""How far a perturbation can move the mean of a ReLU encoder: a bound without a higher-order term.

The mathematics is the lemma "How far an encoder moves" of chapter 5 (lem-shift). Its idea is short. Over the ball
||delta||_2 <= R the output of a ReLU changes by its chord slope, (relu(a + h) - relu(a)) / h, times the change h of its
input. That slope lies in an interval, which is a single point for a unit that cannot change sign within the ball.
Write each slope as the centre of its interval plus an error of at most half the width. Then the change of the mean is
linear in v = (delta, z_1, ..., z_{L-1}), where z_l collects the errors of hidden layer l, and each error satisfies a
quadratic inequality. Multipliers > 0 combine these inequalities into one matrix G with v' G v <= ||delta||_2^2 (the
S-procedure). The whitened shift of the mean is u = F v. Where G is positive definite, W = F G^-1 F' bounds u along
every direction, by the Cauchy-Schwarz inequality. Every choice of multipliers gives a valid bound, and a good
choice gives a tight one.

Here is the bound itself, in the two forms of :func:`shift_metric` and :func:`lipschitz_bound`. Nothing in this module
is random. What a shift does to the reconstruction is the subject of :mod:`vaerobust.certify.safe_shift`.

Start reading at :func:`shift_metric`: it builds the inequalities (``_relax``), computes W for some multipliers
(``_solve``) and improves the multipliers by gradient descent (``_descend``). The names in the code are those of the
lemma.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from vaerobust import checks
from vaerobust.batches import slices
from vaerobust.jacobians import largest_eigenvalue
from vaerobust.model import Layers

FACTORS = (0.4, 1.0, 2.5)
"""The starting multipliers are tried times each of these factors; the descent starts from the best of the three."""
RATE = 0.3
"""Learning rate of the descent, in the logarithms of the multipliers."""
TINY = 1e-12
"""Smallest multiplier to start from, and smallest number that is divided by to compute it."""
TOO_LARGE = 1e3
"""The descent ignores a metric whose diagonal exceeds the smallest lambda_max found so far by this factor."""
POINTS = 16
"""Points per block: each needs a square matrix as large as all hidden layers together, about 10 MB."""


class Solved(Protocol):
    """W for some multipliers."""

    @property
    def metric(self) -> Tensor:
        """W, shape (n, d_z, d_z)."""

    @property
    def sound(self) -> Tensor:
        """Whether G is positive definite, shape (n,); where it is not, the metric means nothing."""


class Relaxed(Protocol):
    """Matrices that bound the shift for any multipliers: what the search for multipliers asks of them."""

    @property
    def start(self) -> list[Tensor]:
        """Multipliers to start from."""

    def fallback(self) -> Tensor:
        """Return a metric that needs no multipliers, perhaps infinite."""

    def single(self) -> Relaxed:
        """Return the same in single precision."""

    def solve(self, multipliers: list[Tensor]) -> Any:
        """Return W for some multipliers, as :class:`Solved`."""

    def slopes(self, solution: Any, top: Tensor, multipliers: list[Tensor]) -> list[Tensor]:
        """Return the derivative of a' W a in the multipliers, for the top eigenvector a, shape (n, d_z, 1)."""


class Traced(Protocol):
    """An encoder's mean that is no list of layers; see :class:`vaerobust.certify.network.Network`."""

    def relax(self, scale: Tensor, x: Tensor, radius: Tensor) -> Relaxed:
        """Return the matrices of the lemma at one point."""


class _Layer(NamedTuple):
    """What is known of the inputs of one layer's units: their values at x, and how they change within the ball.

    The change is C v, where C is the lemma's C_l and v = (delta, z_1, ..., z_{l-1}).

    Attributes
    ----------
    activation : Tensor, shape (n, units)
        a_l, the inputs of the units at x.
    linear : Tensor, shape (n, units, rank)
        The block of C_l that acts on delta, in coordinates of the row space of W_1.
    paths : list of Tensor, each of shape (n, units, kept)
        The blocks of C_l that act on z_1, ..., z_{l-1}.
    norms : list of Tensor, each of shape (n,)
        n_1, ..., n_{l-1}, with ||z_j||_2 <= n_j ||delta||_2.
    constraints : list of Tensor, each of shape (n, kept, columns)
        A_1, ..., A_{l-1}, with z_j^2 <= (A_j v)^2 for each component. A_j acts on delta and z_1, ..., z_{j-1}; its
        other columns are 0 and left out.
    """

    activation: Tensor
    linear: Tensor
    paths: list[Tensor]
    norms: list[Tensor]
    constraints: list[Tensor]


class _Relaxation(NamedTuple):
    """The matrices of the lemma, which bound the shift for any multipliers.

    Attributes
    ----------
    constraints : list of Tensor
        A_1, ..., A_{L-1}; see :class:`_Layer`.
    change : Tensor, shape (n, d_z, columns)
        F: the whitened shift of the mean is u = F v.
    start : list of Tensor, each of shape (n, kept)
        Multipliers to start from, one per kept unit of each hidden layer.
    """

    constraints: list[Tensor]
    change: Tensor
    start: list[Tensor]

    def fallback(self) -> Tensor:
        """Return infinity on the diagonal, which is always true: shape (n, d_z, d_z)."""
        return torch.diag_embed(torch.full_like(self.change[:, :, 0], torch.inf))

    def single(self) -> _Relaxation:
        """Return the same in single precision."""
        return _Relaxation([rows.float() for rows in self.constraints], self.change.float(), [])

    def solve(self, multipliers: list[Tensor]) -> _Solution:
        """Compute W for some multipliers."""
        return _solve(self, multipliers)

    def slopes(self, solution: _Solution, top: Tensor, multipliers: list[Tensor]) -> list[Tensor]:
        """Return the derivative of lambda_max(W) in the multipliers."""
        return _slopes(self, solution, top, [part.shape[1] for part in multipliers])


class _Solution(NamedTuple):
    """W for some multipliers, and what it was computed from.

    Attributes
    ----------
    metric : Tensor, shape (n, d_z, d_z)
        W = F G^-1 F'.
    sound : Tensor of bool, shape (n,)
        Whether G is positive definite; where it is not, the metric means nothing.
    root : Tensor, shape (n, columns, columns)
        The Cholesky factor of G.
    half : Tensor, shape (n, columns, d_z)
        root^-1 F'.
    """

    metric: Tensor
    sound: Tensor
    root: Tensor
    half: Tensor


class _Best(NamedTuple):
    """The sound metric with the smallest lambda_max so far, that eigenvalue, and its multipliers."""

    metric: Tensor  # (n, d_z, d_z)
    top: Tensor  # (n,)
    multipliers: list[Tensor]  # (n, kept) for each hidden layer


@torch.no_grad()
def shift_metric(
    layers: Layers | Traced, scale: Tensor, x: Tensor, radius: float | Tensor, *, refine: int = 0
) -> Tensor:  # fmt: skip
    """Return W such that no perturbation within a ball moves the scaled mean further than W says.

    For every ||delta||_2 <= radius and every vector a, with u = (mu(x + delta) - mu(x)) / scale:

        (a . u)^2 <= ||delta||_2^2 a' W a,    hence    ||u||_2 <= ||delta||_2 sqrt(lambda_max(W)).

    Parameters
    ----------
    layers : list of (weight, bias), or Network
        Layers of the encoder's mean, in double precision; see :func:`vaerobust.model.mean_layers`. Of an encoder that
        is no plain ReLU network, what :func:`vaerobust.certify.network.encoder_mean` returns.
    scale : Tensor, shape (n, d_z)
        sigma(x), > 0.
    x : Tensor, shape (n, d_x)
    radius : float or Tensor, shape (n,)
        Radius R of the ball, >= 0, in input units. At 0, W is S^-1 J J' S^-1 with S = diag(scale).
    refine : int
        Steps of gradient descent on the multipliers, >= 0. The result is never looser than with 0 steps.

    Returns
    -------
    Tensor, shape (n, d_z, d_z)
        In double precision; infinite on the diagonal where no finite W was found.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong shape or range.
    """
    checks.vectors("x", x)
    checks.vectors("scale", scale)
    checks.count("refine", refine, least=0)
    if len(scale) != len(x):
        raise ValueError(f"scale must have one row for each of the {len(x)} points of x, but has {len(scale)}")
    if not hasattr(layers, "relax"):
        _require_layers(layers, scale, x)
    radius = checks.per_point("radius", radius, len(x), x, exact=True)
    metrics = []
    for i in slices(len(x), POINTS if isinstance(layers, list) else 1):
        at = (scale[i].double(), x[i].double(), radius[i])
        relaxation: Relaxed = _relax(layers, *at) if isinstance(layers, list) else layers.relax(*at)
        metrics.append(_tightened(relaxation, refine).metric)
    return torch.cat(metrics)


def _require_layers(layers: Layers, scale: Tensor, x: Tensor) -> None:
    """Refuse layers that are no list of pairs, or do not lead from inputs to latents.

    Raises
    ------
    TypeError, ValueError
        If they are not what they must be.
    """
    pairs = [pair if isinstance(pair, tuple | list) else () for pair in checks.sequence("layers", layers)]
    if not pairs or not all(len(pair) == 2 and all(isinstance(one, Tensor) for one in pair) for pair in pairs):
        raise TypeError("layers must be a list of pairs of tensors, weight and bias, but hold something else")
    widths = [x.shape[1], *(len(weight) for weight, _ in pairs)]
    fit = all(weight.shape == (out, into) for (weight, _), into, out in zip(pairs, widths, widths[1:], strict=False))
    if not fit or widths[-1] != scale.shape[1]:
        shapes = [tuple(weight.shape) for weight, _ in pairs]
        raise ValueError(
            f"layers must lead from {x.shape[1]} pixels to {scale.shape[1]} latents, the columns of x and of scale, "
            f"but their weights have the shapes {shapes}"
        )


def lipschitz_bound(
    layers: Layers | Traced, scale: Tensor, x: Tensor, radius: float | Tensor, *, refine: int = 0
) -> Tensor:  # fmt: skip
    """Return L with ||u||_2 <= L ||delta||_2 for every perturbation within a ball; u as in :func:`shift_metric`.

    Parameters
    ----------
    layers, scale, x, radius, refine
        As in :func:`shift_metric`.

    Returns
    -------
    Tensor, shape (n,)
        L(R) = sqrt(lambda_max(W)), in double precision; infinite where no finite W was found.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong shape or range.
    """
    metric = shift_metric(layers, scale, x, radius, refine=refine)
    known = torch.isfinite(metric).all((1, 2))
    top = largest_eigenvalue(torch.where(known[:, None, None], metric, 0.0))
    return torch.where(known, top.sqrt(), torch.inf)


def _tightened(relaxation: Relaxed, refine: int) -> _Best:
    """Search for good multipliers: three common factors of the first ones, then steps of descent."""
    best = _nothing_found(relaxation)
    for factor in FACTORS:
        multipliers = [factor * part for part in relaxation.start]
        best = _better(best, relaxation.solve(multipliers), multipliers)
    if refine and relaxation.start:
        # the descent is in single precision, twice as fast; its result is evaluated in double precision
        multipliers = _descend(relaxation, best, refine)
        best = _better(best, relaxation.solve(multipliers), multipliers)
    return best


def _relax(layers: Layers, scale: Tensor, x: Tensor, radius: Tensor) -> _Relaxation:
    """Carry the intervals of the chord slopes through all layers, and return the matrices of lem-shift."""
    first, bias = layers[0]
    # W_1 = R' Q' by a QR decomposition of W_1'. A delta acts only through Q' delta, whose norm is no larger
    linear = torch.linalg.qr(first.T).R.T.expand(len(x), -1, -1)  # (n, units, rank)
    layer = _Layer(x @ first.T + bias, linear, [], [], [])
    for weight, bias in layers[1:]:
        layer = _next_layer(layer, weight, bias, radius)
    blocks = [block / scale[:, :, None] for block in (layer.linear, *layer.paths)]  # of F = S^-1 C_L
    size = norm_bound(blocks, layer.norms)  # of u, per unit of ||delta||_2
    # The multiplier that would be best for a unit by itself, were its error aligned with everything else
    start = [
        (block.norm(dim=1) / (size[:, None] * rows.norm(dim=2).clamp(min=TINY)).clamp(min=TINY)).clamp(min=TINY)
        for block, rows in zip(blocks[1:], layer.constraints, strict=True)
    ]
    return _Relaxation(layer.constraints, torch.cat(blocks, 2), start)


def _next_layer(layer: _Layer, weight: Tensor, bias: Tensor, radius: Tensor) -> _Layer:
    """Return what is known of the next layer's inputs: C_{l+1} v = W_{l+1} (m_l C_l v + e_l^{1/2} z_l) of lem-shift."""
    reach = layer.linear.norm(dim=2)  # (n, units): rho_l / R, the sum over the blocks of each row of C_l
    for path, norm in zip(layer.paths, layer.norms, strict=True):
        reach = reach + path.norm(dim=2) * norm[:, None]
    low, high = _chord_slopes(layer.activation, radius[:, None] * reach)  # each (n, units)
    error = (high - low) / 2  # e_l
    # A unit with e = 0 needs no error term. Keep as many units as the point with the most uncertain ones needs
    kept = error.topk(max(1, int((error > 0).sum(1).max())), dim=1).indices  # (n, kept)
    root = error.gather(1, kept).sqrt()  # e_l^{1/2}
    rows = [_scaled_rows(block, kept, root) for block in (layer.linear, *layer.paths)]  # blocks of A_l = e_l^{1/2} C_l
    columns = weight.expand(len(kept), -1, -1).gather(2, kept[:, None, :].expand(-1, len(weight), -1))
    centred = weight * ((low + high) / 2)[:, None, :]  # W_{l+1} m_l, (n, next units, units)
    return _Layer(
        torch.relu(layer.activation) @ weight.T + bias,
        centred @ layer.linear,
        [*(centred @ path for path in layer.paths), columns * root[:, None, :]],
        [*layer.norms, norm_bound(rows, layer.norms)],
        [*layer.constraints, torch.cat(rows, 2)],
    )


def _chord_slopes(a: Tensor, reach: Tensor) -> tuple[Tensor, Tensor]:
    """Return the least and the largest (relu(a + h) - relu(a)) / h over |h| <= reach: the interval of lem-shift."""
    certain = (a.abs() / reach.clamp(min=1e-300)).clamp(max=1)  # c = min(1, |a| / rho)
    on = a > 0
    return torch.where(on, certain, torch.zeros_like(a)), torch.where(on, torch.ones_like(a), 1 - certain)


def _scaled_rows(matrix: Tensor, kept: Tensor, root: Tensor) -> Tensor:
    """Return the rows of some units, each times its factor: shape (n, kept, columns)."""
    return matrix.gather(1, kept[:, :, None].expand(-1, -1, matrix.shape[2])) * root[:, :, None]


def norm_bound(blocks: list[Tensor], norms: list[Tensor]) -> Tensor:
    """Bound ||M v||_2 / ||delta||_2 by the spectral norms of the blocks of M, given ||z_j||_2 <= n_j ||delta||_2."""
    bound = spectral_norm(blocks[0])
    for block, norm in zip(blocks[1:], norms, strict=True):
        bound = bound + spectral_norm(block) * norm
    return bound


def spectral_norm(matrix: Tensor) -> Tensor:
    """Return the largest singular value of each matrix, from the smaller of its two Gram matrices."""
    tall = matrix.shape[-2] > matrix.shape[-1]
    gram = matrix.mT @ matrix if tall else matrix @ matrix.mT
    return largest_eigenvalue(gram).sqrt()


def _solve(relaxation: _Relaxation, multipliers: list[Tensor]) -> _Solution:
    """Compute W = F G^-1 F' of lem-shift, and whether G is positive definite, without which W means nothing."""
    change = relaxation.change
    free = change.shape[2] - sum(part.shape[1] for part in multipliers)  # the coordinates of delta
    # G = diag(I, Lambda_1, ...) - sum_l A_l' Lambda_l A_l, shape (n, columns, columns)
    matrix = torch.diag_embed(torch.cat([torch.ones_like(change[:, 0, :free]), *multipliers], 1))
    for rows, part in zip(relaxation.constraints, multipliers, strict=True):
        width = rows.shape[2]  # later columns of A_l are 0
        matrix[:, :width, :width] -= rows.mT @ (part[:, :, None] * rows)
    root, failed = torch.linalg.cholesky_ex(matrix)
    half = torch.linalg.solve_triangular(root, change.mT, upper=False)
    metric = half.mT @ half
    return _Solution(metric, (failed == 0) & torch.isfinite(metric).all((1, 2)), root, half)


def _nothing_found(relaxation: Relaxed) -> _Best:
    """Return the state of the search before any multipliers were tried."""
    metric = relaxation.fallback()
    return _Best(metric, metric.diagonal(dim1=1, dim2=2).amax(1), relaxation.start)  # a multiple of the identity


def _better(best: _Best, solution: Solved, multipliers: list[Tensor]) -> _Best:
    """Return, for each point, the sound one of two metrics with the smaller lambda_max."""
    top = largest_eigenvalue(_or_identity(solution.metric, solution.sound))
    better = solution.sound & (top < best.top)
    return _Best(
        torch.where(better[:, None, None], solution.metric, best.metric),
        torch.where(better, top, best.top),
        _chosen(better, multipliers, best.multipliers),
    )


def _descend(relaxation: Relaxed, best: _Best, refine: int) -> list[Tensor]:
    """Minimise lambda_max(W) over the logarithms of the multipliers, and return the best ones met on the way."""
    single = relaxation.single()
    logs = [part.float().log() for part in best.multipliers]
    adam = torch.optim.Adam(logs, lr=RATE)
    least, chosen = best.top.float(), best.multipliers
    for _ in range(refine):
        multipliers = [part.exp() for part in logs]
        solution = single.solve(multipliers)
        # Close to where G is singular the metric is huge, and single precision cannot find its eigenvalues
        sound = solution.sound & (solution.metric.diagonal(dim1=1, dim2=2).amax(1) < TOO_LARGE * least)
        values, vectors = torch.linalg.eigh(_or_identity(solution.metric, sound))
        top = values[:, -1]
        better = sound & (top < least)
        least = torch.where(better, top, least)
        chosen = _chosen(better, [part.double() for part in multipliers], chosen)
        slopes = single.slopes(solution, vectors[:, :, -1:], multipliers)
        for log, part, slope in zip(logs, multipliers, slopes, strict=True):
            slope = part * slope / top[:, None]  # of log lambda_max in the logarithms
            log.grad = torch.where(sound[:, None], slope, 0.0).nan_to_num()
        adam.step()
    return chosen


def _slopes(relaxation: _Relaxation, solution: _Solution, top: Tensor, kept: list[int]) -> list[Tensor]:
    """Return the derivative of lambda_max(W) in the multipliers, each of shape (n, kept).

    With a the top eigenvector and y = G^-1 F' a, the derivative of a' F G^-1 F' a in a multiplier is (A y)^2 - z^2,
    where z is the component of y that belongs to the same unit.
    """
    y = torch.linalg.solve_triangular(solution.root.mT, solution.half @ top, upper=True)  # (n, columns, 1)
    at = y.shape[1] - sum(kept)
    slopes = []
    for rows, units in zip(relaxation.constraints, kept, strict=True):
        slope = (rows @ y[:, : rows.shape[2]]).square() - y[:, at : at + units].square()
        slopes.append(slope[..., 0])
        at += units
    return slopes


def _or_identity(metric: Tensor, sound: Tensor) -> Tensor:
    """Return the metric where it is sound, and the identity elsewhere, whose eigenvalues always exist."""
    return torch.where(sound[:, None, None], metric, torch.eye(metric.shape[1]).to(metric))


def _chosen(better: Tensor, new: list[Tensor], old: list[Tensor]) -> list[Tensor]:
    """Return the new multipliers of the points where they are better, and the old ones elsewhere."""
    return [torch.where(better[:, None], one, other) for one, other in zip(new, old, strict=True)]
