"""How far a perturbation can move the mean of a ReLU encoder: a bound without a higher-order term.

The mathematics is the lemma "How far an encoder moves" of chapter 5 (lem-shift). Its idea is short. The output of a
ReLU changes by its slope at x times the change of its input, plus a deviation p >= 0 that appears once the unit has
crossed its kink. Then the change of the mean is linear in v = (delta, p_1, ..., p_{L-1}), where p_l collects the
deviations of hidden layer l. Over the ball ||delta||_2 <= R each deviation satisfies the quadratic inequality
p^2 <= t p g, where g is the change of the unit's input towards its kink, and p_i p_j >= 0 for any two units.
Multipliers combine these inequalities into one matrix G with v' G v <= ||delta||_2^2 (the S-procedure). The whitened
shift of the mean is u = F v. Where G is positive definite, W = F G^-1 F' bounds u along every direction, by the
Cauchy-Schwarz inequality. Every choice of multipliers gives a valid bound, and a good choice gives a tight one.

Here is the bound itself, in the two forms of :func:`shift_metric` and :func:`lipschitz_bound`. Nothing in this module
is random. What a shift does to the reconstruction is the subject of :mod:`vaerobust.certify.safe_shift`.

Start reading at :func:`shift_metric`: it builds the inequalities (``_relax``), computes W for some multipliers
(``_Relaxation.solve``) and improves the multipliers by gradient descent (``_descend``). The names in the code are those
of the lemma.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from vaerobust import checks
from vaerobust.batches import slices
from vaerobust.jacobians import largest_eigenvalue
from vaerobust.model import Layers

FACTORS = (0.4, 1.0, 2.5)
"""The starting multipliers are tried times each of these factors; the descent starts from the best of the three."""
SMALLER = (0.1, 0.02, 0.004)
"""Factors that are tried as well where no metric is sound with those."""
RATE = 0.3
"""Learning rate of the descent, in the logarithms of the multipliers."""
PAIRED_RATE = 0.15
"""The same where pairs have multipliers as well, which must keep up."""
PAIR_RATE = 0.3
"""Length of the first steps of the descent in the multipliers of pairs, where lambda has been scaled to 1."""
BACK = 0.7
"""Multipliers of pairs shrink by this factor where they were too large for G to be positive definite."""
START = 0.4
"""The first multipliers relative to the ratio that would be best, which leaves out how deviations meet each other."""
LEAST_PART = 0.05
"""The worst perturbation is assumed to have at least this part of its length along the row of each unit."""
TINY = 1e-12
"""Smallest multiplier to start from, and smallest number that is divided by to compute it."""
TOO_LARGE = 1e3
"""The descent ignores a metric whose diagonal exceeds that of the metric it starts from by this factor."""
POINTS = 16
"""Points per block: each needs the Jacobians of all layers and a few square matrices as large as the number of units
that may cross their kinks, about 10 MB."""


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
        """Multipliers to start from: of single constraints, (n, kept), then of pairs, (n, kept, kept)."""

    @property
    def change(self) -> Tensor:
        """F over the columns of deviations, whose precision is that of the search."""

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

    The change is C v, where C is the lemma's C_l and v = (delta, p_1, ..., p_{l-1}).

    Attributes
    ----------
    activation : Tensor, shape (n, units)
        a_l, the inputs of the units at x.
    linear : Tensor, shape (n, units, rank)
        The block of C_l that acts on delta, in coordinates of the row space of W_1: the Jacobian at x.
    paths : Tensor, shape (n, units, kept so far)
        The blocks of C_l that act on p_1, ..., p_{l-1}, side by side.
    """

    activation: Tensor
    linear: Tensor
    paths: Tensor


class _Kept(NamedTuple):
    """The units of all layers so far that may cross their kinks, one row for each.

    Attributes
    ----------
    linear : Tensor, shape (n, kept, rank)
        Rows over delta of g = Gamma v, the change of each unit's input towards its kink.
    paths : Tensor, shape (n, kept, kept)
        Rows of Gamma over the p of the kept units; only those of earlier layers are not 0.
    share : Tensor, shape (n, kept)
        t = max(0, 1 - |a| / rho): a unit's deviation p is at most t g. 0 for units that only fill up the rows.
    norm : Tensor, shape (n,)
        A bound of ||p||_2 / ||delta||_2.
    """

    linear: Tensor
    paths: Tensor
    share: Tensor
    norm: Tensor


class _Relaxation(NamedTuple):
    """The matrices of the lemma, which bound the shift for any multipliers.

    Attributes
    ----------
    still : Tensor, shape (n, d_z, d_z)
        F F' over the columns of delta, which is W_0.
    change : Tensor, shape (n, d_z, kept)
        F over the columns of p: the whitened shift of the mean is u = F v.
    gram : Tensor, shape (n, kept, kept)
        Gamma Gamma' over the columns of delta.
    cross : Tensor, shape (n, kept, d_z)
        Gamma F' over the columns of delta.
    paths, share : Tensor
        As in :class:`_Kept`.
    start : list of two Tensors, shapes (n, kept) and (n, kept, kept)
        Multipliers to start from: lambda, and N relative to the roots of lambda, which is 0.
    """

    still: Tensor
    change: Tensor
    gram: Tensor
    cross: Tensor
    paths: Tensor
    share: Tensor
    start: list[Tensor]

    def fallback(self) -> Tensor:
        """Return infinity on the diagonal, which is always true: shape (n, d_z, d_z)."""
        return torch.diag_embed(torch.full_like(self.still[:, :, 0], torch.inf))

    def single(self) -> _Relaxation:
        """Return the same; its matrices are small, and single precision would not pay."""
        return self

    def solve(self, multipliers: list[Tensor]) -> _Solution:
        """Compute W = F G^-1 F' of lem-shift, and whether G is positive definite, without which W means nothing."""
        root, failed, right = self.factorised(*multipliers)
        half = torch.linalg.solve_triangular(root, right, upper=False)
        metric = self.still + half.mT @ half
        return _Solution(metric, (failed == 0) & torch.isfinite(metric).all((1, 2)), root, half)

    def factorised(self, kept: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the Cholesky factor of G's Schur complement on p, 0 where there is one, and what W multiplies it by.

        Delta is eliminated, and p is measured in units of lambda^-1/2, so that the diagonal of Lambda becomes 1.
        """
        size = kept.sqrt()[:, :, None]  # lambda^1/2
        towards = size * self.share[:, :, None] / 2  # lambda^1/2 t / 2
        linked = towards * self.paths / size.mT
        matrix = -linked - linked.mT - towards * self.gram * towards.mT - _off_diagonal(pairs)
        matrix.diagonal(dim1=1, dim2=2).add_(1)
        root, failed = torch.linalg.cholesky_ex(matrix)
        return root, failed, self.change.mT / size + towards * self.cross

    def slopes(self, solution: _Solution, top: Tensor, multipliers: list[Tensor]) -> list[Tensor]:
        """Return the derivative of a' W a in lambda and in N (relative to the roots of lambda), for a vector a.

        With v = G^-1 F' a, the derivative of a' F G^-1 F' a is t p g - p^2 in each lambda, and p_i p_j in N_ij.
        """
        kept, pairs = multipliers
        p = torch.linalg.solve_triangular(solution.root.mT, solution.half @ top, upper=True)  # times lambda^1/2
        size = kept.sqrt()[:, :, None]
        towards = size * self.share[:, :, None] / 2
        g = self.cross @ top + self.gram @ (towards * p) + self.paths @ (p / size)
        slope = p * (2 * towards * g - p + _off_diagonal(pairs) @ p)
        return [slope[:, :, 0] / kept, _off_diagonal(p @ p.mT)]


class _Solution(NamedTuple):
    """W for some multipliers, and what it was computed from.

    Attributes
    ----------
    metric : Tensor, shape (n, d_z, d_z)
        W = F G^-1 F'.
    sound : Tensor of bool, shape (n,)
        Whether G is positive definite; where it is not, the metric means nothing.
    root : Tensor, shape (n, kept, kept)
        The Cholesky factor of G's Schur complement; see :meth:`_Relaxation.factorised`.
    half : Tensor, shape (n, kept, d_z)
        root^-1 times the right-hand side, with W = W_0 + half' half.
    """

    metric: Tensor
    sound: Tensor
    root: Tensor
    half: Tensor


class _Best(NamedTuple):
    """The sound metric that measures least so far, what it measures, and its multipliers."""

    metric: Tensor  # (n, d_z, d_z)
    value: Tensor  # (n,)
    multipliers: list[Tensor]  # (n, kept) or (n, kept, kept) each


class Measured(NamedTuple):
    """How large a metric is, and which direction makes it so.

    Attributes
    ----------
    value : Tensor, shape (n,)
        What the search for multipliers makes small: a function of W that rises with W.
    direction : Tensor, shape (n, d_z, 1)
        A vector a such that the value's derivative in W is a multiple of a a', or nearly.
    """

    value: Tensor
    direction: Tensor


Measure = Callable[[Tensor], Measured]
"""Maps finite metrics, shape (n, d_z, d_z), to their sizes."""


def top_eigenvalue(metric: Tensor) -> Measured:
    """Measure metrics by lambda_max(W)."""
    values, vectors = torch.linalg.eigh(metric)
    return Measured(values[:, -1], vectors[:, :, -1:])


@torch.no_grad()
def shift_metric(
    layers: Layers | Traced,
    scale: Tensor,
    x: Tensor,
    radius: float | Tensor,
    *,
    refine: int = 0,
    measure: Callable[[slice], Measure] | None = None,
) -> Tensor:
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
    measure : callable, optional
        What is to be small of W: maps a slice of the points to their :data:`Measure`. Without it, lambda_max(W).

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
        metrics.append(_tightened(relaxation, refine, measure(i) if measure else top_eigenvalue).metric)
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


def _tightened(relaxation: Relaxed, refine: int, measure: Measure) -> _Best:
    """Search for good multipliers: three common factors of the first ones, then steps of descent."""
    best = _nothing_found(relaxation, measure)
    for factor in (*FACTORS, *SMALLER):
        if factor in SMALLER and torch.isfinite(best.value).all():
            break
        multipliers = [factor * part for part in relaxation.start]
        best = _better(best, relaxation.solve(multipliers), multipliers, measure)
    if refine and relaxation.start:
        # a relaxation may descend in single precision; the result is evaluated in double precision
        multipliers = _descend(relaxation, best, refine, measure)
        best = _better(best, relaxation.solve(multipliers), multipliers, measure)
    return best


def _relax(layers: Layers, scale: Tensor, x: Tensor, radius: Tensor) -> _Relaxation:
    """Carry the reach of the units through all layers, and return the matrices of lem-shift."""
    first, bias = layers[0]
    # W_1 = R' Q' by a QR decomposition of W_1'. A delta acts only through Q' delta, whose norm is no larger
    linear = torch.linalg.qr(first.T).R.T.expand(len(x), -1, -1)  # (n, units, rank)
    layer = _Layer(x @ first.T + bias, linear, linear[:, :, :0])
    kept = _Kept(linear[:, :0], linear[:, :0, :0], linear[:, :0, 0], torch.zeros_like(radius))
    for weight, bias in layers[1:]:
        layer, kept = _next_layer(layer, kept, weight, bias, radius)
    linear, change = layer.linear / scale[:, :, None], layer.paths / scale[:, :, None]  # F = S^-1 C_L
    cross = kept.linear @ linear.mT
    gram = kept.linear @ kept.linear.mT
    start = _first_multipliers(kept, change, gram, cross, linear.square().sum((1, 2)))
    pairs = torch.zeros_like(kept.paths)
    return _Relaxation(linear @ linear.mT, change, gram, cross, kept.paths, kept.share, [start, pairs])


def _next_layer(
    layer: _Layer, kept: _Kept, weight: Tensor, bias: Tensor, radius: Tensor
) -> tuple[_Layer, _Kept]:  # fmt: skip
    """Return what is known of the next layer's inputs, C_{l+1} v = W_{l+1} (D_l C_l v + p_l), and the units kept."""
    a, on = layer.activation, layer.activation > 0
    reach = radius[:, None] * _reach(layer, kept)  # rho_l, (n, units)
    share = _share(a, reach)
    # A unit with t = 0 cannot deviate. Keep as many units as the point with the most uncertain ones needs
    share, units = share.topk(int((share > 0).sum(1).max()), dim=1)  # each (n, kept of this layer)
    towards = 1 - 2 * on.gather(1, units).to(a)  # the sign of a change towards the kink
    linear, paths = (_rows(part, units) * towards[:, :, None] for part in (layer.linear, layer.paths))
    columns = weight.expand(len(a), -1, -1).gather(2, units[:, None, :].expand(-1, len(weight), -1))
    still = weight * on[:, None, :]  # W_{l+1} D_l, (n, next units, units)
    norms = [spectral_norm(share[:, :, None] * part) if part.numel() else 0.0 for part in (linear, paths)]
    return (
        _Layer(
            torch.relu(a) @ weight.T + bias,
            still @ layer.linear,
            torch.cat([still @ layer.paths, columns * (share > 0)[:, None, :]], 2),
        ),
        _Kept(
            torch.cat([kept.linear, linear], 1),
            torch.cat([pad(kept.paths, (0, units.shape[1])), pad(paths, (0, units.shape[1]))], 1),
            torch.cat([kept.share, share], 1),
            kept.norm + norms[0] + norms[1] * kept.norm,
        ),
    )


def _share(a: Tensor, reach: Tensor) -> Tensor:
    """Return t of lem-shift: the largest part of a change of at most ``reach`` that lies beyond the kink, |a| away.

    A unit on its kink may go either way, however small the ball is.
    """
    return torch.where(a == 0, 1.0, (1 - a.abs() / reach.clamp(min=1e-300)).clamp(min=0))


def _reach(layer: _Layer, kept: _Kept) -> Tensor:
    """Bound |c_i v| / ||delta||_2 for the change c_i v of each unit's input: lem-shift with c_i in place of a' F."""
    own = layer.linear.norm(dim=2)  # (n, units)
    # by norms alone, which is always finite
    least = own + layer.paths.norm(dim=2) * kept.norm[:, None]
    if not kept.share.shape[1]:
        return own
    cross, gram = kept.linear @ layer.linear.mT, kept.linear @ kept.linear.mT
    start = _first_multipliers(kept, layer.paths, gram, cross, own.square().sum(1))
    pairs = torch.zeros_like(kept.paths)
    relaxation = _Relaxation(own, layer.paths, gram, cross, kept.paths, kept.share, [])
    for factor in FACTORS:
        root, failed, right = relaxation.factorised(factor * start, pairs)
        square = own.square() + torch.linalg.solve_triangular(root, right, upper=False).square().sum(1)
        sound = (failed == 0)[:, None] & torch.isfinite(square)
        least = torch.where(sound, torch.minimum(least, square.sqrt()), least)
    return least


def _first_multipliers(kept: _Kept, change: Tensor, gram: Tensor, cross: Tensor, square: Tensor) -> Tensor:
    """Return lambda to start from, shape (n, kept): nearly the best ones if deviations did not meet each other.

    Each deviation is taken to be t g / 2 plus an error of at most t |g| / 2. The best multiplier of a unit is the ratio
    of what its error moves to what moves the unit.

    Parameters
    ----------
    kept : _Kept
    change : Tensor, shape (n, outputs, kept)
        F over the columns of p.
    gram, cross : Tensor, shapes (n, kept, kept) and (n, kept, outputs)
        Gamma Gamma' and Gamma F' over the columns of delta.
    square : Tensor, shape (n,)
        Square of the Frobenius norm of F over delta.
    """
    middle = (kept.share[:, None] / 2 * change).mT  # (n, kept, outputs)
    moved = gram @ middle
    own = kept.linear.norm(dim=2)  # (n, kept)
    size = (square + (own * middle.norm(dim=2)).square().sum(1)).sqrt()
    least = LEAST_PART * size[:, None] * own
    ratio = START * change.norm(dim=1) / torch.maximum((cross + moved).norm(dim=2), least).clamp(min=TINY)
    return (2 * ratio / kept.share.clamp(min=TINY)).clamp(min=TINY)


def _rows(matrix: Tensor, units: Tensor) -> Tensor:
    """Return the rows of some units: shape (n, kept, columns)."""
    return matrix.gather(1, units[:, :, None].expand(-1, -1, matrix.shape[2]))


def _off_diagonal(matrix: Tensor) -> Tensor:
    """Return square matrices with 0 on the diagonal."""
    return matrix - torch.diag_embed(matrix.diagonal(dim1=1, dim2=2))


def spectral_norm(matrix: Tensor) -> Tensor:
    """Return the largest singular value of each matrix, from the smaller of its two Gram matrices."""
    tall = matrix.shape[-2] > matrix.shape[-1]
    gram = matrix.mT @ matrix if tall else matrix @ matrix.mT
    return largest_eigenvalue(gram).sqrt()


def _nothing_found(relaxation: Relaxed, measure: Measure) -> _Best:
    """Return the state of the search before any multipliers were tried."""
    metric = relaxation.fallback()
    known = torch.isfinite(metric).all((1, 2))
    return _Best(metric, torch.where(known, measure(_or_identity(metric, known)).value, torch.inf), relaxation.start)


def _better(best: _Best, solution: Solved, multipliers: list[Tensor], measure: Measure) -> _Best:
    """Return, for each point, the sound one of two metrics that measures less."""
    value = measure(_or_identity(solution.metric, solution.sound)).value
    better = solution.sound & (value < best.value)
    return _Best(
        torch.where(better[:, None, None], solution.metric, best.metric),
        torch.where(better, value, best.value),
        _chosen(better, multipliers, best.multipliers),
    )


def _descend(relaxation: Relaxed, best: _Best, refine: int, measure: Measure) -> list[Tensor]:
    """Minimise the measure of W over the multipliers, and return the best ones met on the way.

    The logarithms of multipliers of single constraints follow Adam. Multipliers of pairs, which may be 0, follow the
    gradient and are projected onto the numbers >= 0.
    """
    single = relaxation.single()
    logs = [part.to(single.change).log() for part in best.multipliers if part.ndim == 2]
    pairs = [part.to(single.change) for part in best.multipliers if part.ndim == 3]
    adam = torch.optim.Adam(logs, lr=PAIRED_RATE if pairs else RATE)
    least, chosen = best.value, best.multipliers
    limit = TOO_LARGE * best.metric.diagonal(dim1=1, dim2=2).amax(1)
    for _ in range(refine):
        multipliers = [*(part.exp() for part in logs), *pairs]
        solution = single.solve(multipliers)
        # Close to where G is singular the metric is huge, and single precision cannot find its eigenvalues
        sound = solution.sound & (solution.metric.diagonal(dim1=1, dim2=2).amax(1) < limit)
        measured = measure(_or_identity(solution.metric, sound))
        better = sound & (measured.value < least)
        least = torch.where(better, measured.value, least)
        chosen = _chosen(better, [part.double() for part in multipliers], chosen)
        a = measured.direction  # (n, d_z, 1)
        slopes = single.slopes(solution, a, multipliers)
        size = (a.mT @ solution.metric @ a)[:, 0]  # (n, 1)
        for log, part, slope in zip(logs, multipliers, slopes, strict=False):
            log.grad = torch.where(sound[:, None], part * slope / size, 0.0).nan_to_num()
        adam.step()
        pairs = [_stepped(part, slope, sound) for part, slope in zip(pairs, slopes[len(logs) :], strict=True)]
    return chosen


def _stepped(pairs: Tensor, slope: Tensor, sound: Tensor) -> Tensor:
    """Return the multipliers of pairs after a step against their slope, or smaller ones where W means nothing."""
    step = PAIR_RATE * slope / slope.norm(dim=(1, 2), keepdim=True).clamp(min=TINY)
    return torch.where(sound[:, None, None], (pairs - step).clamp(min=0), BACK * pairs).nan_to_num()


def _or_identity(metric: Tensor, sound: Tensor) -> Tensor:
    """Return the metric where it is sound, and the identity elsewhere, whose eigenvalues always exist."""
    return torch.where(sound[:, None, None], metric, torch.eye(metric.shape[1]).to(metric))


def _chosen(better: Tensor, new: list[Tensor], old: list[Tensor]) -> list[Tensor]:
    """Return the new multipliers of the points where they are better, and the old ones elsewhere."""
    return [
        torch.where(better.view(-1, *[1] * (one.ndim - 1)), one, other) for one, other in zip(new, old, strict=True)
    ]
