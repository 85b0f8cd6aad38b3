"""What an encoder's mean is made of: its affine steps and its activations, found by running the model itself.

:func:`trace` runs ``model.encode`` once and records every operation on the way from the input to the mean. What does
not lead to the mean, such as the branch of sigma, is left out. Each recorded operation becomes an :class:`Affine` step,
which knows its linear part and the same with all weights replaced by their absolute values, or an :class:`Elementwise`
step. Any other operation is an error that names the layer. So does one that mixes the rows of a batch.

What the steps are used for is the subject of :mod:`vaerobust.certify.network`. Start reading at :func:`trace`; the
operations that are known are the keys of ``_AFFINE`` and ``_ACTIVATIONS``.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import get_proxy_mode, make_fx

from vaerobust.certify import chord_slopes
from vaerobust.certify.chord_slopes import Activation
from vaerobust.model import GaussianVAE

ROWS = 3
"""Rows that are traced. A first dimension is the batch if it is a multiple of this number."""


class Affine(NamedTuple):
    """A step that is affine in the data, at each row by itself: the sum of a linear map and a constant.

    Attributes
    ----------
    name, layer, operation : str
        The step's own name, the layer of the model that it belongs to, and what it does there, such as ``"addmm"``.
    inputs : tuple of str
        Names of the steps that it takes; the input of the network is called ``"x"``.
    linear : callable
        The linear map.
    absolute : callable
        The same with absolute weights: |linear(x)| <= absolute(|x|).
    constant : Tensor or float
        What is added; of one row.
    """

    name: str
    layer: str
    operation: str
    inputs: tuple[str, ...]
    linear: Callable[..., Tensor]
    absolute: Callable[..., Tensor]
    constant: Tensor | float = 0.0


class Elementwise(NamedTuple):
    """A step that applies an activation to each element; see :class:`Affine`."""

    name: str
    layer: str
    operation: str
    inputs: tuple[str]
    activation: Activation


class Trace(NamedTuple):
    """The steps from the input to the mean.

    Attributes
    ----------
    steps : list of Affine or Elementwise
        In an order in which they can be run.
    output : str
        Name of the step whose value is the mean.
    shapes : dict
        Shape of each step's value for one row; the first dimension is 1, or more where rows are stacked.
    """

    steps: list[Affine | Elementwise]
    output: str
    shapes: dict[str, tuple[int, ...]]


class Unsupported(TypeError):
    """The encoder's mean has an operation for which no bound is known."""


class _Data(NamedTuple):
    """A value that depends on the input, while the graph is read."""

    name: str
    shape: tuple[int, ...]  # as traced, with all ROWS rows


class _Rule(NamedTuple):
    """What an operation does to its data: the last fields of :class:`Affine`."""

    data: tuple[_Data, ...]
    linear: Callable[..., Tensor]
    absolute: Callable[..., Tensor]
    constant: Tensor | float = 0.0


class _Refused(Exception):
    """Why one operation is not supported, in words that follow its name."""


def trace(model: GaussianVAE, x: Tensor) -> Trace:
    """Record the operations that lead from the input to the encoder's mean, in double precision.

    Parameters
    ----------
    model : GaussianVAE
        Any model whose ``encode`` is made of supported operations; see the module.
    x : Tensor, shape (n, d_x)
        The model is run on copies of its first row with a little noise.

    Returns
    -------
    Trace

    Raises
    ------
    TypeError
        If an operation is not supported, if the encoder's path depends on its data, or if a layer is in training mode.
    """
    _refuse_training_mode(model)
    entered: list[tuple[int, str]] = []  # number of operations recorded so far, and the layer that was entered then
    # The rows differ from x and from each other, so a constant that was computed from them cannot pass for one
    nudge = torch.randn(ROWS, x.shape[1], generator=torch.Generator().manual_seed(0))
    point = x[:1].detach() + 0.1 * nudge.to(x)
    mean = model.mean_network() if hasattr(model, "mean_network") else lambda rows: model.encode(rows)[0]
    with torch.no_grad(), _record_layers(model, entered):
        try:
            module = make_fx(torch.func.functionalize(mean))(point)
        except Unsupported:
            raise
        except Exception as error:
            where = entered[-1][1] if entered else "the encoder"
            raise Unsupported(
                f"model.encode cannot be certified: it cannot be traced, since at {where} its path depends on its data "
                f"or its code cannot be recorded: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
            ) from error
    return _Reader(module, entered).read()


def _refuse_training_mode(model: GaussianVAE) -> None:
    """Raise an error if a layer behaves differently while the model is trained, and is in that mode."""
    for name, module in _modules(model):
        depends = isinstance(module, nn.modules.batchnorm._BatchNorm | nn.modules.dropout._DropoutNd)
        if depends and module.training:
            raise Unsupported(
                f"model.encode cannot be certified: {_title(name, module)} is in training mode; call model.eval() first"
            )


def _modules(model: GaussianVAE) -> Iterator[tuple[str, nn.Module]]:
    """Yield the layers of a model with their names, also of a model that is no module but holds some."""
    if isinstance(model, nn.Module):
        yield from model.named_modules()
        return
    for attribute, value in vars(model).items() if hasattr(model, "__dict__") else ():
        if isinstance(value, nn.Module):
            for name, module in value.named_modules():
                yield f"{attribute}.{name}".rstrip("."), module


def _title(name: str, module: nn.Module) -> str:
    """Return how a message names a layer."""
    return f"layer {name!r} ({type(module).__name__})" if name else type(module).__name__


@contextmanager
def _record_layers(model: GaussianVAE, entered: list[tuple[int, str]]) -> Iterator[None]:
    """Note which layer the operations recorded inside this context belong to."""
    stack, handles = ["the encoder itself, outside its layers"], []

    def note() -> None:
        mode = get_proxy_mode()
        entered.append((len(mode.tracer.graph.nodes) if mode else 0, stack[-1]))

    def enter(title: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            stack.append(title)
            note()

        return hook

    def leave(*_: Any) -> None:
        stack.pop()
        note()

    for name, module in _modules(model):
        handles += [module.register_forward_pre_hook(enter(_title(name, module)))]
        handles += [module.register_forward_hook(leave)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Reader:
    """Turns a recorded graph into steps."""

    def __init__(self, module: fx.GraphModule, entered: list[tuple[int, str]]):
        self.module, self.entered = module, entered
        self.values: dict[fx.Node, Any] = {}  # a _Data, or a constant
        self.steps: list[Affine | Elementwise] = []
        self.shapes: dict[str, tuple[int, ...]] = {}

    def read(self) -> Trace:
        """Read the operations that the mean depends on, in their order."""
        nodes = list(self.module.graph.nodes)
        needed = _ancestors(nodes[-1])
        for index, node in enumerate(nodes):
            if node.op == "placeholder":
                self.values[node] = self._data(node, "x")
            elif node.op == "get_attr" and node in needed:
                self.values[node] = _double(getattr(self.module, str(node.target)).detach())
            elif node.op == "call_function" and node in needed:
                self._operation(node, self._layer(index))
        mean = self.values[nodes[-1].args[0]]
        if not isinstance(mean, _Data) or len(mean.shape) != 2:
            what = "does not depend on x" if not isinstance(mean, _Data) else f"has shape {mean.shape} per {ROWS} rows"
            raise Unsupported(f"model.encode cannot be certified: its mean {what}, but must have shape (n, d_z)")
        return Trace(self.steps, mean.name, self.shapes)

    def _data(self, node: fx.Node, name: str) -> _Data:
        """Register a value that depends on the input."""
        shape = tuple(node.meta["val"].shape)
        if not shape or shape[0] % ROWS or shape[0] == 0:
            raise _Refused("mixes the rows of a batch")
        self.shapes[name] = (shape[0] // ROWS, *shape[1:])
        return _Data(name, shape)

    def _layer(self, index: int) -> str:
        """Return the layer in which a node was recorded."""
        titles = [title for count, title in self.entered if count <= index]
        return titles[-1] if titles else "the encoder"

    def _operation(self, node: fx.Node, layer: str) -> None:
        """Read one operation: fold it if it is constant, else add a step or refuse it."""
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda one: self.values[one])
        name = _operation_name(node)
        try:
            if name == "getitem":
                self.values[node] = self._part(node, layer, *args)
            elif name in _PARTS:
                self.values[node] = (name, args)  # several values, of which the next operation takes one
            elif not _has_data((args, kwargs)):
                self.values[node] = _double(node.target(*args, **kwargs))  # type: ignore[operator]
            elif name in _CONSTANT:
                like = node.meta["val"]
                self.values[node] = _CONSTANT[name](tuple(like.shape), args).to(like.device)
            elif name in _ACTIVATIONS:
                self._add(node, layer, _activation(name, args, kwargs))
            elif name in _AFFINE:
                self._add(node, layer, _AFFINE[name](tuple(node.meta["val"].shape), *args, **kwargs))
            else:
                raise _Refused("is not supported")
        except _Refused as why:
            raise Unsupported(f"model.encode cannot be certified: {layer} uses {name}, which {why}") from None
        except (TypeError, ValueError, IndexError, AttributeError) as error:
            raise Unsupported(
                f"model.encode cannot be certified: {layer} uses {name} in a form that is not supported ({error})"
            ) from error

    def _part(self, node: fx.Node, layer: str, whole: Any, index: Any) -> Any:
        """Read one of the values that an operation returned."""
        if not (isinstance(whole, tuple) and len(whole) == 2 and whole[0] in _PARTS):
            return operator.getitem(whole, index)  # constants
        name, args = whole
        self._add(node, layer, _PARTS[name](tuple(node.meta["val"].shape), index, *args))
        return self.values[node]

    def _add(self, node: fx.Node, layer: str, rule: _Rule | tuple[_Data, Activation]) -> None:
        """Add a step."""
        self.values[node] = self._data(node, node.name)
        where = (node.name, layer, _operation_name(node))
        if isinstance(rule, _Rule):
            names = tuple(data.name for data in rule.data)
            self.steps.append(Affine(*where, names, rule.linear, rule.absolute, rule.constant))
        else:
            self.steps.append(Elementwise(*where, (rule[0].name,), rule[1]))


def _ancestors(last: fx.Node) -> set[fx.Node]:
    """Return a node and everything it depends on."""
    found, open_nodes = {last}, [last]
    while open_nodes:
        new = [node for node in open_nodes.pop().all_input_nodes if node not in found]
        found.update(new)
        open_nodes += new
    return found


def _operation_name(node: fx.Node) -> str:
    """Return an operation's name without namespace and overload, such as ``addmm``."""
    if node.target is operator.getitem:
        return "getitem"
    packet = getattr(node.target, "overloadpacket", node.target)
    return getattr(packet, "__name__", str(packet))


def _has_data(value: Any) -> bool:
    """Return whether a nested argument holds something that depends on the input."""
    if isinstance(value, _Data):
        return True
    if isinstance(value, dict):
        value = value.values()
    return isinstance(value, tuple | list) and any(map(_has_data, value)) if not isinstance(value, str) else False


def _double(value: Any) -> Any:
    """Return a constant in double precision where it is a floating point tensor."""
    if isinstance(value, tuple | list):
        return type(value)(map(_double, value))
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _only_constants(*values: Any) -> None:
    """Refuse an operation whose weights depend on the data."""
    if any(map(_has_data, values)):
        raise _Refused("multiplies or divides by something that depends on the input, so it is not affine")


def _not_rows(data: _Data, *dims: int) -> tuple[int, ...]:
    """Return dimensions counted from the first, and refuse the one over the rows."""
    found = tuple(dim % len(data.shape) for dim in dims)
    if 0 in found:
        raise _Refused("works along the rows of a batch, which must not depend on each other")
    return found


def _increasing(data: _Data, linear: Callable[..., Tensor]) -> _Rule:
    """Return the rule of a linear operation whose weights are all >= 0."""
    return _Rule((data,), linear, linear)


def _same(shape: tuple[int, ...], x: _Data, *args: Any, **kwargs: Any) -> _Rule:
    """Copy, or convert to another floating point type, which rounds, as all arithmetic does."""
    if any(not kind.is_floating_point for kind in (*args, *kwargs.values()) if isinstance(kind, torch.dtype)):
        raise _Refused("converts to a type that holds no fractions")
    return _increasing(x, lambda v: v)


def _reshape(shape: tuple[int, ...], x: _Data, *_: Any) -> _Rule:
    """View, flatten, squeeze, unsqueeze: the order of elements stays, so rows remain rows."""
    return _increasing(x, lambda v: v.reshape(-1, *shape[1:]))


def _permute(shape: tuple[int, ...], x: _Data, dims: list[int]) -> _Rule:
    order = (0, *_not_rows(x, *dims[1:])) if dims[0] % len(dims) == 0 else _not_rows(x, *dims)
    return _increasing(x, lambda v: v.permute(order))


def _transpose(shape: tuple[int, ...], x: _Data, one: int, other: int) -> _Rule:
    one, other = _not_rows(x, one, other)
    return _increasing(x, lambda v: v.transpose(one, other))


def _slice(shape: tuple[int, ...], x: _Data, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> _Rule:
    if dim % len(x.shape) == 0 and shape == x.shape:
        return _increasing(x, lambda v: v)
    (dim,) = _not_rows(x, dim)
    piece = (slice(None),) * dim + (slice(start, end, step),)
    return _increasing(x, lambda v: v[piece])


def _select(shape: tuple[int, ...], x: _Data, dim: int, index: int) -> _Rule:
    (dim,) = _not_rows(x, dim)
    return _increasing(x, lambda v: v.select(dim, index))


def _index(shape: tuple[int, ...], x: _Data, indices: list[Tensor | None]) -> _Rule:
    """x[:, i], with constant whole numbers i."""
    _only_constants(indices)
    if indices[0] is not None or sum(one is not None for one in indices) != 1:
        raise _Refused("picks elements in a form that is not supported")
    where = tuple(slice(None) if one is None else one for one in indices)
    return _increasing(x, lambda v: v[where])


def _index_select(shape: tuple[int, ...], x: _Data, dim: int, index: Tensor) -> _Rule:
    _only_constants(index)
    (dim,) = _not_rows(x, dim)
    return _increasing(x, lambda v: v.index_select(dim, index))


def _expand(shape: tuple[int, ...], x: _Data, *_: Any, **__: Any) -> _Rule:
    if len(shape) != len(x.shape) or shape[0] != x.shape[0]:
        raise _Refused("repeats the rows of a batch")
    return _increasing(x, lambda v: v.expand(-1, *shape[1:]))


def _flip(shape: tuple[int, ...], x: _Data, dims: list[int]) -> _Rule:
    dims_ = _not_rows(x, *dims)
    return _increasing(x, lambda v: v.flip(dims_))


def _joined(shape: tuple[int, ...], parts: list[Any], dim: int = 0) -> _Rule:
    """Concatenate data and constants; the constants are part of what is added."""
    data = tuple(part for part in parts if isinstance(part, _Data))
    (dim,) = _not_rows(data[0], dim)
    width = [tuple(part.shape) for part in parts]

    def fill(rows: int, values: tuple[Tensor, ...], others: bool) -> Tensor:
        rest, pieces = list(values), []
        for part, size in zip(parts, width, strict=True):
            if isinstance(part, _Data):
                pieces.append(rest.pop(0) if rest else torch.zeros(rows, *size[1:], dtype=torch.double))
            else:
                constant = part if others else torch.zeros_like(part)
                pieces.append(constant[:1].expand(rows, *size[1:]))
        return torch.cat([piece.to(pieces[0].device) for piece in pieces], dim)

    if any(isinstance(part, Tensor) and not (part == part[:1]).all() for part in parts):
        raise _Refused("joins the data with constants that differ from row to row")
    linear = lambda *values: fill(len(values[0]), values, others=False)
    constant = fill(1, (), others=True) if len(data) < len(parts) else 0.0
    return _Rule(data, linear, linear, constant)


def _stacked(shape: tuple[int, ...], parts: list[Any], dim: int = 0) -> _Rule:
    if not all(isinstance(part, _Data) for part in parts) or dim % len(shape) == 0:
        raise _Refused("stacks rows or constants")
    linear = lambda *values: torch.stack(values, dim)
    return _Rule(tuple(parts), linear, linear)


def _pad(shape: tuple[int, ...], x: _Data, pad: list[int], value: float = 0.0) -> _Rule:
    if len(pad) > 2 * (len(x.shape) - 1):
        raise _Refused("adds rows to a batch")
    linear = lambda v: torch.constant_pad_nd(v, pad, 0.0)
    constant: Tensor | float = 0.0
    if value:
        constant = torch.constant_pad_nd(torch.zeros(1, *x.shape[1:], dtype=torch.double), pad, value)
    return _Rule((x,), linear, linear, constant)


def _mean(shape: tuple[int, ...], x: _Data, dims: Any = None, keepdim: bool = False, **_: Any) -> _Rule:
    dims = _not_rows(x, *range(len(x.shape))) if not dims else _not_rows(x, *dims)
    return _increasing(x, lambda v: v.mean(dims, keepdim))


def _sum(shape: tuple[int, ...], x: _Data, dims: Any = None, keepdim: bool = False, **_: Any) -> _Rule:
    dims = _not_rows(x, *range(len(x.shape))) if not dims else _not_rows(x, *dims)
    return _increasing(x, lambda v: v.sum(dims, keepdim))


def _of_images(name: str) -> Callable[..., _Rule]:
    """Return the rule of an operation on images with weights >= 0, such as average pooling."""

    def rule(shape: tuple[int, ...], x: _Data, *args: Any, **kwargs: Any) -> _Rule:
        if len(shape) != len(x.shape) or shape[0] != x.shape[0] or _has_data((args, kwargs)):
            raise _Refused("takes the rows of a batch for channels")
        operation = getattr(torch.ops.aten, name)
        return _increasing(x, lambda v: operation(v.contiguous(), *args, **kwargs))

    return rule


def _sum_of(shape: tuple[int, ...], one: Any, other: Any, alpha: float = 1.0) -> _Rule:
    """Return one + alpha other, where either may be constant."""
    for part in (one, other):
        if isinstance(part, _Data) and (len(part.shape) != len(shape) or part.shape[0] != shape[0]):
            raise _Refused("adds values whose dimensions do not match")
    rest = shape[1:]
    if isinstance(one, _Data) and isinstance(other, _Data):
        return _Rule((one, other), lambda v, w: v + alpha * w, lambda v, w: v + abs(alpha) * w)
    if isinstance(one, _Data):
        grow = lambda v: v.expand(-1, *rest)
        return _Rule((one,), grow, grow, alpha * _of_one_row(other, shape))
    linear = lambda v: (alpha * v).expand(-1, *rest)
    return _Rule((other,), linear, lambda v: (abs(alpha) * v).expand(-1, *rest), _of_one_row(one, shape))


def _difference(shape: tuple[int, ...], one: Any, other: Any, alpha: float = 1.0) -> _Rule:
    return _sum_of(shape, one, other, -alpha)


def _reversed_difference(shape: tuple[int, ...], one: Any, other: Any, alpha: float = 1.0) -> _Rule:
    return _sum_of(shape, other, one, -alpha)


def _of_one_row(constant: Any, shape: tuple[int, ...]) -> Tensor | float:
    """Return a constant that is the same for every row, shaped for one row."""
    if not isinstance(constant, Tensor):
        return float(constant)
    if constant.ndim > len(shape):
        raise _Refused("combines values whose dimensions do not match")
    if constant.ndim == len(shape) and constant.shape[0] != 1:
        if not (constant == constant[:1]).all():
            raise _Refused("uses constants that differ from row to row")
        constant = constant[:1]
    return constant.double()


def _scaled(shape: tuple[int, ...], one: Any, other: Any) -> _Rule:
    """Return a product of data and constant."""
    data, constant = (one, other) if isinstance(one, _Data) else (other, one)
    _only_constants(constant)
    return _times(shape, data, _of_one_row(constant, shape))


def _divided(shape: tuple[int, ...], one: Any, other: Any, **kwargs: Any) -> _Rule:
    _only_constants(other)
    if kwargs.get("rounding_mode"):
        raise _Refused("rounds")
    return _times(shape, one, 1 / _of_one_row(other, shape))


def _times(shape: tuple[int, ...], x: _Data, factor: Tensor | float, constant: Tensor | float = 0.0) -> _Rule:
    """Return factor x + constant, elementwise."""
    if len(x.shape) != len(shape) or x.shape[0] != shape[0]:
        raise _Refused("multiplies values whose dimensions do not match")
    return _Rule((x,), lambda v: v * factor, lambda v: v * abs(factor), constant)


def _negated(shape: tuple[int, ...], x: _Data) -> _Rule:
    return _times(shape, x, -1.0)


def _product(shape: tuple[int, ...], x: Any, weight: Any) -> _Rule:
    """Return x @ weight."""
    _only_constants(weight)
    if weight.ndim != 2:
        raise _Refused("multiplies the data by more than one matrix")
    return _Rule((x,), lambda v: v @ weight, lambda v: v @ weight.abs())


def _product_plus(
    shape: tuple[int, ...], bias: Any, x: Any, weight: Any, beta: float = 1.0, alpha: float = 1.0
) -> _Rule:
    _only_constants(bias, weight)
    rule = _product(shape, x, alpha * weight)
    return rule._replace(constant=beta * _of_one_row(bias, shape))


def _linear(shape: tuple[int, ...], x: Any, weight: Any, bias: Any = None) -> _Rule:
    _only_constants(weight, bias)
    rule = _product(shape, x, weight.T)
    return rule if bias is None else rule._replace(constant=_of_one_row(bias, shape))


def _convolution(shape: tuple[int, ...], x: Any, weight: Any, bias: Any, *rest: Any) -> _Rule:
    """Convolve, also transposed, with any stride, padding, dilation and groups."""
    _only_constants(weight, bias)
    if len(x.shape) != weight.ndim:
        raise _Refused("takes the rows of a batch for channels")
    run = lambda v, kernel: torch.ops.aten.convolution(v, kernel, None, *rest)
    constant = 0.0 if bias is None else bias.reshape(1, -1, *[1] * (weight.ndim - 2))
    return _Rule((x,), lambda v: run(v, weight), lambda v: run(v, weight.abs()), constant)


def _batch_norm(
    shape: tuple[int, ...], index: int, x: Any, weight: Any, bias: Any, mean: Any, variance: Any, *rest: Any
) -> _Rule:
    """Normalise each channel with stored statistics, as in evaluation mode."""
    if index or mean is None or variance is None or any(one is True for one in rest[:1]):
        raise _Refused("normalises by statistics of the batch; call model.eval() first")
    _only_constants(weight, bias, mean, variance)
    factor = (variance + rest[-1]).rsqrt() * (1.0 if weight is None else weight)
    constant = (0.0 if bias is None else bias) - mean * factor
    channels = (1, -1, *[1] * (len(shape) - 2))
    return _times(shape, x, factor.reshape(channels), constant.reshape(channels))


def _split(shape: tuple[int, ...], index: int, x: _Data, size: int | list[int], dim: int = 0) -> _Rule:
    (dim,) = _not_rows(x, dim)
    return _increasing(x, lambda v: v.split(size, dim)[index])


def _unbind(shape: tuple[int, ...], index: int, x: _Data, dim: int = 0) -> _Rule:
    (dim,) = _not_rows(x, dim)
    return _increasing(x, lambda v: v.unbind(dim)[index])


_IMAGES = (
    "avg_pool2d",
    "avg_pool3d",
    "_adaptive_avg_pool2d",
    "_adaptive_avg_pool3d",
    "upsample_nearest2d",
    "upsample_bilinear2d",
    "pixel_shuffle",
    "pixel_unshuffle",
    "reflection_pad1d",
    "reflection_pad2d",
    "replication_pad1d",
    "replication_pad2d",
)

_NORMS = (
    "native_batch_norm",
    "_native_batch_norm_legit",
    "_native_batch_norm_legit_functional",
    "_native_batch_norm_legit_no_training",
    "cudnn_batch_norm",
    "miopen_batch_norm",
)

_AFFINE: dict[str, Callable[..., _Rule]] = {
    **dict.fromkeys(("clone", "alias", "detach", "contiguous", "lift_fresh_copy", "_to_copy"), _same),
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "squeeze", "unsqueeze"), _reshape),
    **{name: _of_images(name) for name in _IMAGES},
    "add": _sum_of, "sub": _difference, "rsub": _reversed_difference, "mul": _scaled, "div": _divided, "neg": _negated,
    "mm": _product, "addmm": _product_plus, "linear": _linear, "convolution": _convolution,
    "permute": _permute, "transpose": _transpose, "slice": _slice, "select": _select, "index": _index,
    "index_select": _index_select, "expand": _expand, "flip": _flip, "cat": _joined, "stack": _stacked,
    "constant_pad_nd": _pad, "mean": _mean, "sum": _sum,
}  # fmt: skip

_PARTS: dict[str, Callable[..., _Rule]] = {
    "split": _split, "split_with_sizes": _split, "unbind": _unbind,
    **dict.fromkeys(_NORMS, _batch_norm),
}  # fmt: skip

# Values that have the data's shape but do not depend on it
_CONSTANT: dict[str, Callable[[tuple[int, ...], tuple[Any, ...]], Tensor]] = {
    **dict.fromkeys(("zeros_like", "new_zeros"), lambda shape, args: torch.zeros(shape, dtype=torch.double)),
    **dict.fromkeys(("ones_like", "new_ones"), lambda shape, args: torch.ones(shape, dtype=torch.double)),
    **dict.fromkeys(("full_like",), lambda shape, args: torch.full(shape, args[1], dtype=torch.double)),
}

_ACTIVATIONS: dict[str, Callable[..., Activation]] = {
    "relu": chord_slopes.relu,
    "leaky_relu": chord_slopes.leaky_relu,
    "elu": chord_slopes.elu,
    "celu": lambda alpha=1.0: chord_slopes.elu(alpha, 1.0, 1 / alpha),
    "softplus": lambda beta=1.0, threshold=20.0: chord_slopes.softplus(beta),
    "sigmoid": lambda: chord_slopes.smooth(chord_slopes.SIGMOID),
    "tanh": lambda: chord_slopes.smooth(chord_slopes.TANH),
    "silu": lambda: chord_slopes.smooth(chord_slopes.SILU),
    "gelu": lambda approximate="none": chord_slopes.smooth(
        chord_slopes.GELU_TANH if approximate == "tanh" else chord_slopes.GELU
    ),
    "hardtanh": lambda low=-1.0, high=1.0: chord_slopes.clamp(low, high),
    "clamp": lambda low=None, high=None: chord_slopes.clamp(
        -math.inf if low is None else low, math.inf if high is None else high
    ),
    "clamp_min": lambda low: chord_slopes.clamp(low, math.inf),
    "clamp_max": lambda high: chord_slopes.clamp(-math.inf, high),
    "hardsigmoid": chord_slopes.hard_sigmoid,
    "abs": chord_slopes.absolute,
    "_prelu_kernel": chord_slopes.leaky_relu,
}


def _activation(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[_Data, Activation]:
    """Return the data and the activation of an elementwise operation."""
    x, *settings = args
    _only_constants(settings, kwargs)
    return x, _ACTIVATIONS[name](*settings, **kwargs)
