"""How far a perturbation can move the mean of an encoder with convolutions, skips and smooth activations.

The lemma (lem-shift-network, which generalises lem-shift of chapter 5 to affine maps and elementwise activations). Let
||delta||_2 <= R. Number the units of all activations in an order in which they can be evaluated. Unit i has the input
a_i at x, its input changes by h_i, and |h_i| <= q_i ||delta||_2. For |h| <= q_i R its chord slope lies in
[m_i - e_i, m_i + e_i]. So its output changes by m_i h_i + e_i^{1/2} z_i with z_i^2 <= e_i h_i^2. All else is affine.
Hence the changes are linear in v = (delta, z): h_i = c_i v, where c_i involves only earlier units, and u = F v.

The units are split in two. A *kept* unit has h_i = c_i v, of which one part comes from delta and kept units, a_i v, and
the rest, from lumped units, is at most s_i ||delta||_2. With any g_i > 0

    z_i^2 <= e_i (1 + g_i) (a_i v)^2 + t_i^2 ||delta||_2^2,    t_i^2 = e_i (1 + 1 / g_i) s_i^2.

For a *lumped* unit only z_i^2 <= t_i^2 ||delta||_2^2 is used, with t_i = e_i^{1/2} q_i. Let A have the rows
(e_i (1 + g_i))^{1/2} a_i of the kept units, let F_K and F_L be the columns of F for (delta, kept z) and for lumped z,
let all multipliers be > 0, and G = diag(I, Lambda_K) - A' Lambda_K A. If G is positive definite, then

    W = (1 + sum_i lambda_i t_i^2) (F_K G^-1 F_K' + F_L Lambda_L^-1 F_L')

satisfies (b . u)^2 <= ||delta||_2^2 b' W b for every b.

Proof. Let Q be the block diagonal matrix of G and Lambda_L. By the inequalities, v' Q v is at most
||delta||_2^2 + sum_i lambda_i t_i^2 ||delta||_2^2. By Cauchy-Schwarz in the inner product of Q, (b' F v)^2 is at most
v' Q v times b' F Q^-1 F' b.

Convolutions stay operators: rows and columns of these matrices are made by running the steps on batches, whose size a
memory budget chooses. Dense matrices exist over kept units only.

Start reading at :func:`encoder_mean`, which decides how an encoder is bounded, and :meth:`Network.relax`, which follows
the lemma. Chord slopes come from :mod:`vaerobust.certify.chord_slopes`, the steps from
:mod:`vaerobust.certify.tracing`, W from :mod:`vaerobust.certify.relaxation`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from vaerobust.batches import slices
from vaerobust.certify.chord_slopes import relu
from vaerobust.certify.encoder_shift import spectral_norm
from vaerobust.certify.relaxation import Relaxation, first_multipliers, joined
from vaerobust.certify.tracing import Affine, Elementwise, Trace, trace
from vaerobust.jacobians import largest_eigenvalue
from vaerobust.model import GaussianVAE, Layers, mean_layers

MEMORY = 2**30
"""Default memory budget of the bound in bytes, 1 GB."""
KEPT = 2500
"""At most so many units are kept over all activations. The time grows with the cube of their number."""
SHARE = 0.001
"""Units are lumped as long as their errors together move the mean by at most this share of what delta does."""
REACH_FACTORS = (2.0, 1.0, 0.4)
"""Common factors of the multipliers that bound the reach of hidden units; the first sound one is used."""
WIDEST = 2**24
"""A trace of matrix products becomes a list of layers if no weight has more elements than this."""
CLOSE = 1e-3
"""What the bound sees may differ from ``encode`` by so many sigma, plus rounding."""
ULPS = 8
"""Rounding errors allowed to ``encode``, in units of the largest mean's last place."""
PROBES = 4
"""Random perturbations of each certified ball at which the mean is compared with ``encode``."""


class _Unit(NamedTuple):
    """What is known of the units of one activation; the first four have shape (units,)."""

    middle: Tensor  # m
    error: Tensor  # e
    reach: Tensor  # q, with |h| <= q ||delta||_2
    spread: Tensor  # s, the part of q that comes from lumped units
    kept: Tensor  # (kept,), indices of the kept units

    @property
    def growth(self) -> Tensor:
        """(1 + g)^{1/2} of the kept units, with g = s / (q - s): both parts of h are then weighed alike."""
        reach, own = self.reach[self.kept], (self.reach - self.spread)[self.kept]
        return torch.where(own > 0, reach / own.clamp(min=1e-300), 1.0).sqrt()

    @property
    def square(self) -> Tensor:
        """t^2 = e (1 + 1 / g) s^2 of the kept units."""
        return (self.error * self.spread * self.reach)[self.kept]


class _Columns:
    """Some columns of the lemma's matrices: how each activation's input changes with one component of v each.

    They are carried along the steps as a batch with one row per column. Each starts as a single element of one step's
    value, ``source``: of the input for a component of delta, of an activation for the z of a kept unit.
    """

    def __init__(self, network: Network, source: str, units: Tensor, size: Tensor, each: Tensor):
        self.network, self.source, self.units = network, source, units
        self.size = size  # (k,), what the component is multiplied by: 1 for delta, e^{1/2} for z
        self.each = each  # (k,), a bound of the component, relative to ||delta||_2
        self.live: dict[str, Tensor] | None = None  # the values from which to go on; None means from the source
        self.done = 0

    def before(self, step: Elementwise, slopes: Mapping[str, Tensor], *, hold: bool) -> Tensor:
        """Return the columns at an activation's input, shape (k, units); ``hold`` keeps them to go on from there."""
        live, done = self.live, self.done
        if live is None:
            live, done = {self.source: self._first()}, self.network.after[self.source]
        end = self.network.after[step.name] - 1
        live = self.network.run(live, done, end, len(self.units), slopes)
        self.live, self.done = (live, end) if hold else (None, 0)
        found = live.get(step.inputs[0])
        shape = (len(self.units), self.network.width(step.inputs[0]))
        return torch.zeros(shape).to(self.size) if found is None else found.reshape(shape)

    def _first(self) -> Tensor:
        """Return the columns at their source: one element each."""
        first = torch.zeros(len(self.units), self.network.width(self.source)).to(self.size)
        first.scatter_(1, self.units[:, None], self.size[:, None])
        return self.network.shaped(self.source, first)


class Network:
    """The mean of an encoder as a network of affine steps and activations; see the module for the bound.

    Parameters
    ----------
    trace : Trace
        See :func:`vaerobust.certify.tracing.trace`.
    memory : float
        Memory budget in bytes.
    kept : int
        At most so many units are kept.
    """

    def __init__(self, trace: Trace, *, memory: float = MEMORY, kept: int = KEPT):
        self.steps, self.output, self.shapes = trace
        self.memory, self.most_kept = memory, kept
        self.after = {"x": 0} | {step.name: i + 1 for i, step in enumerate(self.steps)}  # steps run once it is known
        self.activations = [step for step in self.steps if isinstance(step, Elementwise)]
        self.last_use = {name: i for i, step in enumerate(self.steps) for name in step.inputs}
        self.last_use[self.output] = len(self.steps)
        self.widest = self._most_alive()

    def width(self, name: str) -> int:
        """Return how many elements a step's value has per row."""
        return int(torch.Size(self.shapes[name]).numel())

    def shaped(self, name: str, value: Tensor) -> Tensor:
        """Return flat values (k, units) in the shape of a step's value."""
        return value.reshape(-1, *self.shapes[name][1:])

    def batch(self, share: float) -> int:
        """Return how many rows the steps can be run on within a share of the memory budget, in double precision."""
        return max(1, int(share * self.memory / (8 * self.widest)))

    def _most_alive(self) -> int:
        """Return how many elements per row are alive at a time, at most."""
        alive, most = {"x"}, 0
        for i, step in enumerate(self.steps):
            alive.add(step.name)
            most = max(most, sum(map(self.width, alive)) + self.width(step.name))
            alive -= {name for name in alive if self.last_use.get(name, -1) <= i}
        return max(most, self.width("x"))

    @torch.no_grad()
    def mean(self, x: Tensor) -> Tensor:
        """Return the mean at some points in double precision, shape (n, d_z)."""
        return torch.cat([self.values(x[i])[self.output] for i in slices(len(x), self.batch(0.5))])

    def values(self, x: Tensor) -> dict[str, Tensor]:
        """Return the inputs of all activations at some points, and the mean."""
        wanted = {self.output, *(step.inputs[0] for step in self.activations)}
        values = {"x": x.double()}
        for i, step in enumerate(self.steps):
            inputs = [values[name] for name in step.inputs]
            if isinstance(step, Elementwise):
                values[step.name] = step.activation.value(inputs[0])
            else:
                values[step.name] = step.linear(*inputs) + step.constant
            for name in set(step.inputs) - wanted:
                if self.last_use[name] == i:
                    del values[name]
        return values

    def run(
        self, live: Mapping[str, Tensor], start: int, end: int, rows: int, slopes: Mapping[str, Tensor],
        *, added: Mapping[str, Tensor] | None = None, absolute: bool = False,
    ) -> dict[str, Tensor]:  # fmt: skip
        """Carry changes through some steps: affine steps without their constants, activations as products with a slope.

        Parameters
        ----------
        live : mapping
            Values by name; a value that is missing is 0.
        start, end : int
            Which steps to run.
        rows : int
        slopes : mapping
            For each activation the slope of each unit, shape (units,).
        added : mapping, optional
            What is added to an activation's value, shape (rows, units).
        absolute : bool
            Whether to use absolute weights and slopes.

        Returns
        -------
        dict
            The values that later steps use.
        """
        live, added = dict(live), added or {}
        for i, step in enumerate(self.steps[start:end], start):
            known = any(name in live for name in step.inputs)
            if isinstance(step, Elementwise):
                if known:
                    slope = slopes[step.name].abs() if absolute else slopes[step.name]
                    live[step.name] = self.shaped(step.name, live[step.inputs[0]].reshape(rows, -1) * slope)
                if step.name in added:
                    more = self.shaped(step.name, added[step.name])
                    live[step.name] = live[step.name] + more if known else more
            elif known:
                inputs = [live[name] if name in live else self._zeros(name, rows, live) for name in step.inputs]
                live[step.name] = (step.absolute if absolute else step.linear)(*inputs)
            for name in step.inputs:
                if self.last_use[name] == i:
                    live.pop(name, None)
        return live

    def _zeros(self, name: str, rows: int, live: Mapping[str, Tensor]) -> Tensor:
        """Return a value that is 0."""
        like = next(iter(live.values()))
        return self.shaped(name, torch.zeros(rows, self.width(name), dtype=like.dtype, device=like.device))

    def gradients(self, scale: Tensor, slopes: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return F by blocks: how u changes with the input, and with what each activation adds to its value.

        Parameters
        ----------
        scale : Tensor, shape (1, d_z)
        slopes : mapping
            As in :meth:`run`.

        Returns
        -------
        dict
            By the names of ``"x"`` and of all activations, each of shape (d_z, units).
        """
        names = ["x", *(step.name for step in self.activations)]
        parts: list[list[Tensor]] = []
        rows = torch.diag_embed(1 / scale[0])  # (d_z, d_z)
        for some in slices(len(rows), self.batch(0.1)):
            k = len(rows[some])
            zeros = {name: torch.zeros(k, self.width(name)).to(rows).requires_grad_() for name in names}
            with torch.enable_grad():
                live = {"x": self.shaped("x", zeros["x"])}
                out = self.run(live, 0, len(self.steps), k, slopes, added=zeros)[self.output]
            found = torch.autograd.grad(out, list(zeros.values()), rows[some], allow_unused=True)
            parts.append([torch.zeros_like(z) if f is None else f for f, z in zip(found, zeros.values(), strict=True)])
        return {name: torch.cat(blocks) for name, blocks in zip(names, zip(*parts, strict=True), strict=True)}

    @torch.no_grad()
    def relax(self, scale: Tensor, x: Tensor, radius: Tensor) -> Relaxation:
        """Return the matrices of the lemma at one point.

        Parameters
        ----------
        scale : Tensor, shape (1, d_z)
            sigma(x), in double precision.
        x : Tensor, shape (1, d_x)
        radius : Tensor, shape (1,)
            R.
        """
        walk = self._walked(scale, x, radius)
        return walk.relaxation(self.gradients(scale, walk.slopes))

    @torch.no_grad()
    def uncertain(self, scale: Tensor, x: Tensor, radius: Tensor) -> dict[str, Tensor]:
        """Return which units of each activation may have more than one chord slope within the ball around one point.

        Parameters
        ----------
        scale, x, radius
            As in :meth:`relax`.

        Returns
        -------
        dict of Tensor of bool, each of shape (units,)
            By activation, in their order: where the lemma's e is not 0.
        """
        walk = self._walked(scale, x, radius)
        return {name: unit.error > 0 for name, unit in walk.units.items()}

    def _walked(self, scale: Tensor, x: Tensor, radius: Tensor) -> _Walk:
        """Carry the lemma's quantities through all activations."""
        values = self.values(x)
        walk = _Walk(self, float(radius), self._effects(scale, values))
        for step in self.activations:
            walk.visit(step, values[step.inputs[0]])
        return walk

    def _effects(self, scale: Tensor, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the norm of F's column for each unit and each input, by the Jacobian at x; it ranks the units."""
        slopes = {}
        for step in self.activations:
            a = values[step.inputs[0]]
            low, high = step.activation.chord_slopes(a, torch.zeros_like(a))
            slopes[step.name] = ((low + high) / 2).flatten()
        return {name: block.norm(dim=0) for name, block in self.gradients(scale, slopes).items()}


class _Walk:
    """The lemma's quantities at one point, activation by activation."""

    def __init__(self, network: Network, radius: float, effects: Mapping[str, Tensor]):
        self.network, self.radius, self.effects = network, radius, effects
        self.units: dict[str, _Unit] = {}
        self.slopes: dict[str, Tensor] = {}  # m
        self.norms: dict[str, Tensor] = {"x": torch.ones(()).to(effects["x"])}  # n, with ||z||_2 <= n ||delta||_2
        self.free: list[Tensor] = []  # the rows of A by activation, over delta: (kept, d_x)
        self.paths: list[list[Tensor]] = []  # and over the kept units of earlier activations: (kept, earlier kept)
        self.columns: list[_Columns] = []
        self.lumps: dict[str, Tensor] = {}  # e q of the lumped units, (1, units)
        self.live: dict[str, Tensor] = {}  # s, along the steps
        self.done = 0
        inputs = torch.arange(network.width("x"), device=effects["x"].device)
        self._start("x", inputs, torch.ones_like(effects["x"]), torch.ones_like(effects["x"]))

    def visit(self, step: Elementwise, a: Tensor) -> None:
        """Bound the chord slopes of one activation's units, and choose which of them to keep."""
        spread = self._spread(step)  # s
        # where no slope is uncertain, as at radius 0 away from kinks, nothing is multiplied by the reach
        exact = self.radius == 0 and _certain(step, a)
        reach = spread if exact else self._reach(step) + spread  # q
        ends = step.activation.chord_slopes(a, self.radius * reach.reshape(a.shape))
        low, high = (end.flatten() for end in ends)
        middle, error = (low + high) / 2, (high - low) / 2
        kept = self._chosen(step, error * reach)
        unit = _Unit(middle, error, reach, spread, kept)
        lump = error * reach
        lump[kept] = 0.0
        root = error.sqrt()[kept]
        free, *paths = self._rows(step, kept, root)
        self.norms[step.name] = self._norm(unit, [free, *paths])
        grown = unit.growth[:, None]
        self.free.append(grown * free)
        self.paths.append([grown * block for block in paths])
        self.slopes[step.name], self.units[step.name], self.lumps[step.name] = middle, unit, lump[None]
        self._start(step.name, kept, root, root * reach[kept])

    def _spread(self, step: Elementwise) -> Tensor:
        """Return s: how lumped units change an activation's inputs, by absolute weights."""
        network, end = self.network, self.network.after[step.name] - 1
        self.live = network.run(self.live, self.done, end, 1, self.slopes, added=self.lumps, absolute=True)
        self.done = end
        found = self.live.get(step.inputs[0])
        return torch.zeros(network.width(step.inputs[0])).to(self.effects["x"]) if found is None else found.flatten()

    def _reach(self, step: Elementwise) -> Tensor:
        """Return the part of q that comes from delta and from kept units."""
        squares: dict[str, Tensor] = {}
        sums: dict[str, Tensor] = {}
        kept: list[Tensor] = []
        for columns, block in self._at(step):
            squares[columns.source] = squares.get(columns.source, 0) + block.square().sum(0)
            sums[columns.source] = sums.get(columns.source, 0) + columns.each @ block.abs()
            if self.free and self._fits(step):
                kept.append(block)
        reach = squares.pop("x").sqrt()
        for source, square in squares.items():
            # |sum_k c_k z_k| is at most ||c||_2 ||z||_2, and at most sum_k |c_k| |z_k|
            reach = reach + torch.minimum(square.sqrt() * self.norms[source], sums[source])
        return torch.minimum(reach, self._reach_by_lemma(torch.cat(kept))) if kept else reach

    def _fits(self, step: Elementwise) -> bool:
        """Return whether all columns at an activation's input fit into a quarter of the memory budget."""
        count = sum(len(columns.units) for columns in self.columns)
        return count * self.network.width(step.inputs[0]) * 8 <= self.network.memory / 4

    def _reach_by_lemma(self, columns: Tensor) -> Tensor:
        """Return the part of q from delta and kept units by the lemma itself, with c_i for F and one unit at a time."""
        rows, paths = joined(self.paths, self.free)
        if not len(rows):
            return columns.norm(dim=0)
        inputs = rows.shape[1]
        delta, change = columns[:inputs], columns[inputs:]  # C' over delta and over kept units, (., units)
        cross = rows @ delta
        spread = torch.cat([unit.square for unit in self.units.values()])
        blocks = {"gram": rows @ rows.T, "paths": paths, "spread": spread}
        others = dict.fromkeys(("cross", "outer", "change", "lumped", "lumps", "bound"), rows.new_zeros(0))
        hidden = Relaxation(**{name: block[None] for name, block in (blocks | others).items()}, start=[])
        size = delta.square().sum(0).max().sqrt()
        start = first_multipliers(cross.norm(dim=1), change.norm(dim=1), rows.norm(dim=1), size)
        for factor in REACH_FACTORS:
            kept = (factor * start)[None]
            root, failed = hidden.factorised(kept)
            half = torch.linalg.solve_triangular(root, hidden.coupled(kept, cross[None], change[None]), upper=False)[0]
            bracket = delta.square().sum(0) + (change.square() / kept.mT).sum(0) + half.square().sum(0)
            if not failed.any() and torch.isfinite(bracket).all():
                return ((1 + (kept[0] * spread).sum()) * bracket).sqrt()
        return torch.full_like(cross[0], torch.inf)

    def _at(self, step: Elementwise) -> Iterator[tuple[_Columns, Tensor]]:
        """Yield all columns at an activation's input; they are held in memory if half of the budget suffices."""
        count = sum(len(columns.units) for columns in self.columns)
        hold = count <= self.network.batch(0.5)
        for columns in self.columns:
            yield columns, columns.before(step, self.slopes, hold=hold)

    def _chosen(self, step: Elementwise, errors: Tensor) -> Tensor:
        """Return the units to keep: those whose errors move the mean most."""
        network = self.network
        left = network.most_kept - sum(len(unit.kept) for unit in self.units.values())
        ahead = sum(network.width(other.name) for other in network.activations[len(self.units) :])
        most = left * network.width(step.name) // ahead
        score, order = (errors * self.effects[step.name]).sort(descending=True)
        rest = score.flip(0).cumsum(0).flip(0)  # what is lumped if this unit is the first that is not kept
        allowed = SHARE / len(network.activations) * self.effects["x"].norm()
        count = min(most, int((rest > allowed).sum()))
        return order[:count]

    def _rows(self, step: Elementwise, kept: Tensor, root: Tensor) -> list[Tensor]:
        """Return the rows e^{1/2} a of the kept units: over delta, then over the kept units of each activation."""
        blocks: dict[str, list[Tensor]] = {source: [root.new_zeros(len(kept), 0)] for source in self.norms}
        if not len(kept):
            for columns in self.columns:
                blocks[columns.source].append(root.new_zeros(0, len(columns.units)))
            return [torch.cat(parts, 1) for parts in blocks.values()]
        for columns, block in self._at(step):
            blocks[columns.source].append(block[:, kept].T * root[:, None])
        return [torch.cat(parts, 1) for parts in blocks.values()]

    def _norm(self, unit: _Unit, rows: list[Tensor]) -> Tensor:
        """Return n: the smaller of two bounds of ||z||_2 / ||delta||_2 over the kept units."""
        error, reach, spread = (part[unit.kept] for part in (unit.error, unit.reach, unit.spread))
        by_rows = self._norm_bound(rows) + (error * spread.square()).sum().sqrt()
        return torch.minimum(by_rows, (error * reach.square()).sum().sqrt())

    def _norm_bound(self, blocks: list[Tensor]) -> Tensor:
        """Bound ||M v||_2 / ||delta||_2 by the spectral norms of the blocks of M: over delta, then over kept units."""
        bound = torch.zeros_like(self.norms["x"])
        for norm, block in zip(self.norms.values(), blocks, strict=True):
            if block.numel():
                bound = bound + spectral_norm(block) * norm
        return bound

    def _start(self, source: str, units: Tensor, size: Tensor, each: Tensor) -> None:
        """Start the columns of a new source, in parts that the memory budget allows."""
        for some in slices(len(units), self.network.batch(0.1)):
            self.columns.append(_Columns(self.network, source, units[some], size[some], each[some]))

    def relaxation(self, gradients: Mapping[str, Tensor]) -> Relaxation:
        """Join the blocks to the matrices of the lemma."""
        self.columns.clear()
        delta = gradients["x"]  # F over delta, (d_z, d_x)
        change = [gradients[name][:, u.kept] * u.error[u.kept].sqrt() for name, u in self.units.items()]
        free, paths = joined(self.paths, self.free) if self.free else (delta[:0], delta[:0, :0])
        lumped, lumps = self._lumped(gradients)
        bound = self._norm_bound([delta, *change]) + (lumps * largest_eigenvalue(lumped)).sqrt()
        kept = torch.cat([delta[:, :0], *change], 1)  # F over z, (d_z, kept)
        spread = torch.cat([delta.new_zeros(0), *(unit.square for unit in self.units.values())])
        cross, outer = free @ delta.T, delta @ delta.T
        size = largest_eigenvalue(outer).sqrt()
        start = first_multipliers(cross.norm(dim=1), kept.norm(dim=0), free.norm(dim=1), size)
        parts = {"gram": free @ free.T, "cross": cross, "outer": outer, "paths": paths, "change": kept}
        parts |= {"spread": spread, "lumped": lumped, "lumps": lumps[None], "bound": bound[None]}
        return Relaxation(**{name: part[None] for name, part in parts.items()}, start=[start[None]])

    def _lumped(self, gradients: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return H and c of the lumped units; see :class:`vaerobust.certify.relaxation.Relaxation`."""
        latents = len(gradients["x"])
        lumped, lumps = gradients["x"].new_zeros(latents, latents), gradients["x"].new_zeros(())
        for name, lump in self.lumps.items():
            # F_i z_i = (column of the gradient) (e^{1/2} z_i), and |e^{1/2} z_i| <= e_i q_i ||delta||_2
            size = gradients[name].norm(dim=0)
            weight = torch.where(size > 0, lump[0] / size.clamp(min=1e-300), 0.0)
            lumped = lumped + (gradients[name] * weight) @ gradients[name].T
            lumps = lumps + (lump[0] * size).sum()
        return lumped, lumps


def _certain(step: Elementwise, a: Tensor) -> bool:
    """Return whether each unit of an activation has a single slope at its input, so that none is at a kink."""
    low, high = step.activation.chord_slopes(a, torch.zeros_like(a))
    return bool((low == high).all())


def encoder_mean(model: GaussianVAE, x: Tensor, *, memory: float = MEMORY) -> Layers | Network:
    """Return an encoder's mean in a form that :func:`vaerobust.certify.encoder_shift.shift_metric` can bound.

    A model's own ``mean_layers`` are used where it has them. Otherwise its operations are recorded; a plain ReLU
    network found in this way becomes a list of layers too. Either is compared with ``encode`` at every point.

    Parameters
    ----------
    model : GaussianVAE
    x : Tensor, shape (n, d_x)
    memory : float
        Memory budget of the bound in bytes.

    Returns
    -------
    Layers or Network

    Raises
    ------
    TypeError
        If an operation of the encoder has no bound; see :func:`vaerobust.certify.tracing.trace`.
    ValueError
        If the layers are not those of the encoder.
    """
    if hasattr(model, "mean_layers"):
        mean: Layers | Network = mean_layers(model, x)
    else:
        network = Network(trace(model, x), memory=memory)
        mean = _as_layers(network) or network
    compare(mean, model, x)
    return mean


@torch.no_grad()
def compare(mean: Layers | Network, model: GaussianVAE, x: Tensor) -> None:
    """Compare what the bound sees with ``model.encode`` at some points.

    Raises
    ------
    ValueError
        If they differ by more than 0.001 sigma plus rounding at any of the points, or are NaN.
    """
    found = mean.mean(x) if isinstance(mean, Network) else _forward(mean, x.double())
    mu, sigma = model.encode(x)
    rounding = ULPS * torch.finfo(mu.dtype).eps * mu.double().abs().amax(1, keepdim=True)
    off = (found - mu.double()).abs() - rounding
    wrong = ~(off <= CLOSE * sigma.double()).all(1)
    if wrong.any():
        point = int(wrong.nonzero()[0])
        most = float((off[point] / sigma[point].double()).max())
        raise ValueError(
            f"the layers that were found must compute the mean of model.encode, but they differ from it by {most:.3g} "
            f"sigma at point {point}; where the model has a method mean_layers, it must return the layers of encode"
        )


@torch.no_grad()
def compare_within(mean: Layers | Network, model: GaussianVAE, x: Tensor, radius: Tensor) -> None:
    """Compare what the bound sees with ``model.encode`` at random points of the balls around some points.

    Raises
    ------
    ValueError
        As :func:`compare`.
    """
    generator = torch.Generator().manual_seed(0)
    for _ in range(PROBES):
        direction = torch.nn.functional.normalize(torch.randn(x.shape, generator=generator, dtype=torch.double))
        compare(mean, model, x + (radius.double()[:, None] * direction.to(x.device)).to(x))


def _forward(layers: Layers, x: Tensor) -> Tensor:
    """Evaluate a ReLU network given by its layers."""
    for i, (weight, bias) in enumerate(layers):
        x = (torch.relu(x) if i else x) @ weight.T + bias
    return x


def _as_layers(network: Network) -> Layers | None:
    """Return the layers of a network if it is a plain ReLU network made of matrix products, else None."""
    layers: Layers = []
    source, at = "x", 0
    for step in network.activations:
        if step.activation.terms != relu().terms:
            return None
        layer = _as_layer(network, source, step.inputs[0], at, network.after[step.name] - 1)
        if layer is None:
            return None
        layers.append(layer)
        source, at = step.name, network.after[step.name]
    last = _as_layer(network, source, network.output, at, len(network.steps))
    return None if last is None else [*layers, last]


def _as_layer(network: Network, source: str, target: str, start: int, end: int) -> tuple[Tensor, Tensor] | None:
    """Return weight and bias of some steps that depend on one value only and hold no convolution, else None."""
    known = {source}
    for step in network.steps[start:end]:
        if not isinstance(step, Affine) or step.operation == "convolution" or not known.issuperset(step.inputs):
            return None
        known.add(step.name)
    width = network.width(source)
    if target not in known or width * network.width(target) > WIDEST:
        return None
    values = {source: network.shaped(source, torch.zeros(1, width, dtype=torch.double))}
    for step in network.steps[start:end]:
        if isinstance(step, Affine):
            values[step.name] = step.linear(*(values[name] for name in step.inputs)) + step.constant
    one = {source: network.shaped(source, torch.eye(width, dtype=torch.double))}
    weight = network.run(one, start, end, width, {}).get(target, one[source])
    return weight.reshape(width, -1).T.contiguous(), values[target].flatten()
