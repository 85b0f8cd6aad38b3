"""One cheap probe of a model, which tells whether it does what every function of this package assumes.

The assumptions are those of :class:`vaerobust.model.GaussianVAE`. :func:`check_model` stands in front of every public
function that takes a model. It sends three rows through ``encode`` and ``decode``, a few times, and checks types,
shapes, devices and values, that sigma is positive, that two calls agree, that a row does not depend on the rest of its
batch, and, where a function needs gradients, that there are any. On the way it measures the memory that a row takes,
from which :func:`rows_at_once` chooses how many rows pass at a time. What it finds is remembered for each model until
its weights change, so that only the first call pays for it.

The probe leaves the model as it was: it draws nothing from the caller's generator, restores torch's own, and refuses a
model whose layers would change their statistics before it calls it.

Three rows do not show everything. So :func:`encode_points` and :func:`decode_points`, which run a model on all points,
check each value again. Start reading at :func:`check_model`.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from vaerobust.batches import rows_within, slices
from vaerobust.numerics import HALF, at_least_single, double, tolerance
from vaerobust.suspicions import BRIGHT, SuspicionWarning, suspected

if TYPE_CHECKING:
    from vaerobust.model import GaussianVAE

ROWS = 3
"""Rows of the probe."""
STEPS = (1e-2, 1e-3)
"""Lengths of the steps by which gradients are compared with differences, relative to the length of a row."""
MISMATCH = 0.5
"""A gradient that differs from these differences by more than this share, for each step, is taken for wrong."""
CHANGING = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd, nn.RReLU)
"""Layers that compute something else in training mode, or change when they are called."""
NOISE = 0.1
"""Length of the noise on the rows at which gradients are compared with differences, relative to the length of a row."""
WRAP = "vaerobust.wrap(model, shape=...)"
"""What adapts a model of another shape or convention."""
REMEDY = "remove detach(), no_grad(), rounding, .data and conversions to numpy from it"


class Known(NamedTuple):
    """What the probe has found out about a model at one type, device and width of its input.

    Attributes
    ----------
    passed : set of str
        The parts of the probe that the model has passed: 'encode', 'decode', and the gradient of either; 'suspicions'
        once it was looked at for common mistakes.
    size : dict of str to float
        Bytes of all intermediate results per row, for 'encode' and 'decode'.
    """

    passed: set[str]
    size: dict[str, float]


_MODELS: dict[int, tuple[Any, dict[Hashable, Known]]] = {}
"""What is known of each model that is still alive, by its id: a weak reference, and what was found at each state."""


def check_model(
    model: GaussianVAE, x: Tensor, *, decoder: bool = True, gradient: tuple[str, ...] = ()
) -> None:  # fmt: skip
    """Check on a few rows that a model does what every function of this package assumes.

    Parameters
    ----------
    model : GaussianVAE
    x : Tensor, shape (n, d_x)
        Inputs, checked already; only the first two are used.
    decoder : bool
        Whether ``decode`` will be called.
    gradient : tuple of {'encode', 'decode'}
        Which gradients will be used.

    Raises
    ------
    TypeError
        If the model lacks a method, or one returns something else than tensors of the type of ``x``.
    ValueError
        If the model does anything else than what is assumed. The message says what was found and what to do.
    """
    rows = few_rows(x)
    require_methods(model, ("encode", "decode") if decoder else ("encode",))
    known = _known(model, x)
    if "encode" not in known.passed:
        require_evaluation_mode(model)
        with left_as_it_was(model, x):
            _probe_encoder(model, rows, known)
    missing = [f"gradient of {name}" for name in gradient]
    if (decoder and "decode" not in known.passed) or not known.passed.issuperset(missing):
        with left_as_it_was(model, x):
            z = _latents(model, rows) if decoder else rows
            if decoder and "decode" not in known.passed:
                _probe_decoder(model, z, known, width=x.shape[1])
            if "gradient of encode" in missing and "gradient of encode" not in known.passed:
                require_gradient("encode", lambda given: called(model, "encode", given)[0], rows)
            if "gradient of decode" in missing and "gradient of decode" not in known.passed:
                require_gradient("decode", lambda given: called(model, "decode", given), z)
        known.passed.update(missing)
    if decoder and "suspicions" not in known.passed:
        known.passed.add("suspicions")
        _warn_of_suspicions(model, rows)


def _warn_of_suspicions(model: GaussianVAE, rows: Tensor) -> None:
    """Warn of what is possible but looks like a common mistake, in a trained module; other objects are believed."""
    if not isinstance(model, nn.Module):
        return
    with left_as_it_was(model, rows), torch.no_grad():
        mu, sigma = encoded(model, rows)
        found = suspected(model, rows, sigma, decoded(model, mu, rows.shape[1]))
    for message in found:
        warnings.warn(message, SuspicionWarning, stacklevel=4)


def check_decoder(model: GaussianVAE, z: Tensor) -> None:
    """Check on a few latents, (n, d_z), that ``decode`` does what is assumed, and that it has a gradient.

    Raises
    ------
    TypeError, ValueError
        As :func:`check_model`.
    """
    require_methods(model, ("decode",))
    known = _known(model, z)
    if "gradient of decode" not in known.passed:
        require_evaluation_mode(model)
        with left_as_it_was(model, z):
            _probe_decoder(model, few_rows(z), known, width=None)
            require_gradient("decode", lambda given: called(model, "decode", given), few_rows(z))
        known.passed.add("gradient of decode")


def rows_at_once(model: GaussianVAE, like: Tensor) -> int:
    """Return how many rows may pass through a model at a time, for inputs (or latents) of the width of ``like``.

    It is as many as :data:`vaerobust.batches.MEMORY` has room for, by the bytes per row that the probe has measured.
    """
    return rows_within(sum(_known(model, like).size.values()))


@torch.no_grad()
def encode_points(model: GaussianVAE, x: Tensor, *, perturbed: bool = False) -> tuple[Tensor, Tensor]:
    """Return mu and sigma at all points, each (n, d_z), a part of them at a time.

    Parameters
    ----------
    model : GaussianVAE
    x : Tensor, shape (n, d_x)
    perturbed : bool
        True lets sigma be 0, as it may be far away from all data.

    Raises
    ------
    TypeError, ValueError
        If a value is not finite or some sigma is not above 0, or as :func:`check_model`.
    """
    parts = [called(model, "encode", x[i]) for i in slices(len(x), rows_at_once(model, x))]
    mu, sigma = (torch.cat(one) if len(parts) > 1 else one[0] for one in zip(*parts, strict=True))
    where = " at x + delta" if perturbed else ""
    require_finite(f"model.encode must return finite mu{where}", mu)
    require_finite(f"model.encode must return finite sigma{where}", sigma)
    if not perturbed:
        require_positive(sigma)
    return mu, sigma


@torch.no_grad()
def decode_points(model: GaussianVAE, z: Tensor, like: Tensor) -> Tensor:
    """Return the reconstructions of latents (n, d_z), (n, d_x), as many rows at a time as for inputs like ``like``.

    Raises
    ------
    ValueError
        If a value is not finite.
    """
    parts = [called(model, "decode", z[i]) for i in slices(len(z), rows_at_once(model, like))]
    out = torch.cat(parts) if len(parts) > 1 else parts[0]
    require_finite("model.decode must return finite numbers", out)
    return out


def require_distances(d: Tensor) -> Tensor:
    """Return samples of D if all of them are finite.

    Raises
    ------
    ValueError
        If some are not: NaN is neither within r nor beyond it, and must not be counted as either.
    """
    wrong = int((~torch.isfinite(d)).sum())
    if wrong:
        raise ValueError(
            f"model.decode must return finite numbers, but {wrong} of {d.numel()} sampled distances are NaN or infinite"
        )
    return d


# -- the parts of the probe --------------------------------------------------------------------------------------------


def _probe_encoder(model: GaussianVAE, rows: Tensor, known: Known) -> None:
    """Check ``encode``, and note what is known then."""
    with torch.no_grad():
        (mu, sigma), size = measured(lambda: encoded(model, rows))
        (mu_alone, sigma_alone), size_alone = measured(lambda: encoded(model, rows[:1]))
        scale = float(torch.maximum(mu.abs().max(), sigma.max()))
        for k, (one, alone) in enumerate(((mu, mu_alone), (sigma, sigma_alone))):
            require_same(f"encode's {('mu', 'sigma')[k]}", one, alone, scale, partial(_encoded_part, model, rows, k))
    known.size["encode"] = max(size - size_alone, 0) / (len(rows) - 1)
    known.passed.add("encode")


def _latents(model: GaussianVAE, rows: Tensor) -> Tensor:
    """Return one latent per row, at -1, 0 and 1 standard deviations from its mean."""
    with torch.no_grad():
        mu, sigma = encoded(model, rows)
    return mu + sigma * torch.arange(-1, len(mu) - 1, dtype=mu.dtype, device=mu.device)[:, None]


def _encoded_part(model: GaussianVAE, rows: Tensor, part: int) -> Tensor:
    """Return mu or sigma of some rows."""
    return encoded(model, rows)[part]


def _probe_decoder(model: GaussianVAE, z: Tensor, known: Known, *, width: int | None) -> None:
    """Check ``decode`` on some latents, and note what is known then."""
    with torch.no_grad():
        out, size = measured(lambda: decoded(model, z, width))
        alone, size_alone = measured(lambda: decoded(model, z[:1], width))
        require_same("decode's output", out, alone, float(out.abs().max()), lambda: decoded(model, z, width))
    known.size["decode"] = max(size - size_alone, 0) / (len(z) - 1)
    known.passed.add("decode")


def few_rows(x: Tensor) -> Tensor:
    """Return three different rows: the first two where there are two, and weaker copies of the first."""
    rows = x[: ROWS - 1].detach()
    weaker = [share * rows[:1] + (1 - share) / 2 for share in (0.9, 0.8)]
    return torch.cat([rows, *weaker])[:ROWS]


def require_methods(model: object, methods: tuple[str, ...]) -> None:
    """Refuse an object without the methods of a model.

    Raises
    ------
    TypeError
        If a method is missing, or the model is a class.
    """
    for method in methods:
        if isinstance(model, type) or not callable(getattr(model, method, None)):
            what = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
            raise TypeError(
                f"model must have the methods encode(x) -> (mu, sigma) and decode(z), but {what} has no {method}: make "
                f"one by {WRAP}"
            )


def require_evaluation_mode(model: object) -> None:
    """Refuse a model with dropout or normalisation over the batch in training mode, before it is called.

    Raises
    ------
    ValueError
        It names the first such layer.
    """
    for name, layer in layers_of(model):
        idle = isinstance(layer, nn.modules.dropout._DropoutNd) and layer.p == 0
        if isinstance(layer, CHANGING) and layer.training and not idle:
            raise ValueError(
                f"model must be in evaluation mode, but its layer {name} ({type(layer).__name__}) is in training mode: "
                "call model.eval() first"
            )


def layers_of(model: object) -> Iterator[tuple[str, nn.Module]]:
    """Yield all layers of a model by name; a model that is no module may hold modules as attributes."""
    if isinstance(model, nn.Module):
        yield from model.named_modules()
    else:
        for name, value in vars(model).items() if hasattr(model, "__dict__") else ():
            if isinstance(value, nn.Module):
                yield from value.named_modules(prefix=name)


@contextmanager
def left_as_it_was(model: object, like: Tensor) -> Iterator[None]:
    """Restore torch's random state and the model's buffers; a model that changes its buffers is an error.

    Raises
    ------
    ValueError
        If it does.
    """
    buffers = {
        f"{name}.{key}": one for name, layer in layers_of(model) for key, one in layer.named_buffers(recurse=False)
    }
    before = {name: one.clone() for name, one in buffers.items()}
    kind = like.device.type
    with torch.random.fork_rng(
        [like.device] if kind in ("cuda", "xpu") else [], device_type=kind if kind == "xpu" else "cuda"
    ):
        yield
    changed = [name for name, one in before.items() if not torch.equal(buffers[name], one)]
    with torch.no_grad():
        for name in changed:
            buffers[name].copy_(before[name])
    if changed:
        raise ValueError(
            "model must not change when it is called, but encode or decode changes its buffer "
            f"{changed[0].lstrip('.')}: is it in training mode? Call model.eval() first"
        )


def encoded(model: GaussianVAE, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return mu and sigma of some rows after checks of both.

    Raises
    ------
    TypeError, ValueError
        If one of them is not what it must be.
    """
    output = called(model, "encode", rows)
    if not (isinstance(output, tuple | list) and len(output) == 2 and all(isinstance(one, Tensor) for one in output)):
        raise TypeError(
            f"model.encode must return the two tensors (mu, sigma), but returns {described(output)}: convert it by "
            f"{WRAP}"
        )
    mu, sigma = output
    if mu.ndim != 2 or len(mu) != len(rows) or not mu.shape[1]:
        raise ValueError(
            f"model.encode must return mu of shape (n, d_z), here ({len(rows)}, d_z), but it has shape "
            f"{tuple(mu.shape)}: flatten it by {WRAP}"
        )
    if sigma.shape != mu.shape:
        raise ValueError(
            f"model.encode must return sigma in the shape of mu, {tuple(mu.shape)}, but it has {tuple(sigma.shape)}: "
            "where latents or points share a sigma, return sigma.expand_as(mu)"
        )
    for name, value in (("mu", mu), ("sigma", sigma)):
        require_like(f"model.encode's {name}", value, rows)
        require_finite(f"model.encode must return finite {name}", value)
    require_positive(sigma, rows)
    return mu, sigma


def decoded(model: GaussianVAE, z: Tensor, width: int | None) -> Tensor:
    """Return the reconstructions of some latents after checks; ``width`` is d_x where it is known.

    Raises
    ------
    TypeError, ValueError
        If they are not what they must be.
    """
    out = called(model, "decode", z)
    if not isinstance(out, Tensor):
        raise TypeError(f"model.decode must return one tensor, but returns {described(out)}: convert it by {WRAP}")
    if out.ndim != 2 or len(out) != len(z) or not out.shape[1] or (width is not None and out.shape[1] != width):
        want = f"({len(z)}, {'d_x' if width is None else width})"
        raise ValueError(
            f"model.decode must return rows as wide as the inputs, shape {want}, but returns {tuple(out.shape)}"
            + (f": flatten it by {WRAP}" if width is not None and out.numel() == len(z) * width else "")
        )
    require_like("model.decode's output", out, z)
    require_finite("model.decode must return finite numbers", out)
    return out


def called(model: Any, method: str, given: Tensor) -> Any:
    """Call a method of the model; an error of its own becomes one that says what the method was given.

    Raises
    ------
    ValueError
        If the method raises anything.
    """
    try:
        return getattr(model, method)(given)
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        raise ValueError(
            f"model.{method} must accept {'x' if method == 'encode' else 'z'} of shape {tuple(given.shape)}, "
            f"{given.dtype}, on {given.device}, but fails with {type(error).__name__}: {reason}. "
            + (difference_from_weights(model, given) or f"Where the module takes another shape, convert it by {WRAP}")
        ) from error


def difference_from_weights(model: object, x: Tensor) -> str:
    """Return in words how the type or the device of x differs from the weights'; nothing if they agree."""
    weight = next((one for one in weights(model) if one.is_floating_point()), None)
    if weight is None:
        return ""
    if weight.dtype != x.dtype:
        return f"x is {x.dtype} and the model's weights are {weight.dtype}: convert x by x.to({weight.dtype})"
    if weight.device != x.device:
        return f"x is on {x.device} and the model on {weight.device}: move x by x.to({str(weight.device)!r})"
    return ""


def weights(model: object) -> Iterator[Tensor]:
    """Yield the parameters and then the buffers of a model's layers."""
    for own in ("_parameters", "_buffers"):
        for _, layer in layers_of(model):
            yield from (one for one in getattr(layer, own).values() if one is not None)


def described(value: object) -> str:
    """Return in words what a method returned."""
    if isinstance(value, Tensor):
        return f"one tensor of shape {tuple(value.shape)}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}: " + ", ".join(described(one) for one in value)
    return f"an object of type {type(value).__name__}"


def require_like(name: str, value: Tensor, x: Tensor) -> None:
    """Refuse values that differ from x in type or device.

    Raises
    ------
    TypeError
        If the type differs.
    ValueError
        If the device differs.
    """
    if value.dtype != x.dtype:
        raise TypeError(f"{name} must have the type of its input, {x.dtype}, but is {value.dtype}: convert either")
    if value.device != x.device:
        raise ValueError(f"{name} must be on the device of its input, {x.device}, but is on {value.device}")


def require_finite(rule: str, value: Tensor) -> None:
    """Refuse values that are NaN or infinite; ``rule`` begins the message.

    Raises
    ------
    ValueError
        If there are some.
    """
    wrong = int((~torch.isfinite(value)).sum())
    if wrong:
        raise ValueError(f"{rule}, but {wrong} of {value.numel()} are NaN or infinite")


def require_positive(sigma: Tensor, x: Tensor | None = None) -> None:
    """Refuse standard deviations that are not above 0; ``x`` is what was encoded.

    Raises
    ------
    ValueError
        If there are some. Negative values suggest that sigma is a log-variance. Zeros suggest that x was not divided
        by 255, so that sigma underflowed.
    """
    least = float(sigma.min())
    if least > 0:
        return
    if least < 0:
        hint = (
            ". It looks like a log-variance, whose sigma is exp(0.5 * log_variance): use vaerobust.wrap(model, "
            'shape=..., scale="log_variance")'
        )
    elif x is not None and float(x.max()) > BRIGHT:
        hint = f". x goes up to {float(x.max()):.4g}: divide it by 255?"
    else:
        hint = ": add a small number to it"
    raise ValueError(f"model.encode must return sigma > 0, but its smallest value is {least:.4g}{hint}")


def apart(first: Tensor, second: Tensor, scale: float) -> float:
    """Return the largest difference of two tensors, relative to ``scale``."""
    difference = float((double(first) - double(second)).abs().max())
    return difference / scale if scale else difference


def require_same(name: str, together: Tensor, alone: Tensor, scale: float, again: Callable[[], Tensor]) -> None:
    """Refuse a model that is random, or whose result for the first row depends on the other rows of its batch.

    Parameters
    ----------
    name : str
        What the model returned.
    together, alone : Tensor
        The results for several rows, and for the first of them alone.
    scale : float
        Size of the values.
    again : callable
        Returns the results for several rows once more, to tell the two reasons apart.

    Raises
    ------
    ValueError
        If the results for the first row differ by more than rounding.
    """
    alike = apart(together[:1], alone, scale) <= tolerance(alone.dtype)
    if alike and alone.dtype not in HALF:
        return
    # in half precision the tolerance is wide, but two calls on the same rows agree far better
    off = apart(together, again(), scale)
    if off > (torch.finfo(alone.dtype).eps if alike else tolerance(alone.dtype)):
        raise ValueError(
            f"model.{name} must be the same each time, but two calls differ by {100 * off:.2g} % of the largest value: "
            "is dropout active (call model.eval()), or is a sample returned in place of the mean?"
        )
    if alike:
        return
    raise ValueError(
        f"model.{name} must not depend on the other rows of the batch, but the first row alone gives another result: "
        "is a normalisation over the batch in training mode? Call model.eval() first"
    )


def require_gradient(name: str, function: Callable[[Tensor], Tensor], rows: Tensor) -> None:
    """Refuse a function whose gradient is missing, or is not the one that differences of its values show.

    Both are taken at noisy rows: where pixels are equal, as in the background of digits, max pooling has a kink. The
    steps go along the gradient itself, where the predicted change is largest. A function with kinks may differ at one
    length of the step, so only one that differs at all lengths is refused.

    Raises
    ------
    ValueError
        If it is.
    """
    if torch.is_inference_mode_enabled():
        raise ValueError(
            f"model.{name} must be differentiable, but torch.inference_mode() is active: use torch.no_grad()"
        )
    rows = noisy(rows)
    given = rows.clone().requires_grad_(True)
    with torch.enable_grad():
        value = function(given)
        weight = torch.linspace(1, 2, value.shape[1], dtype=value.dtype, device=value.device)
        total = (value * weight).sum()
        (gradient,) = (
            torch.autograd.grad(total, given, allow_unused=True) if total.requires_grad else (None,)
        )  # fmt: skip
    if gradient is None:
        raise ValueError(f"model.{name} must be differentiable, but its output has no gradient: {REMEDY}")
    require_finite(f"model.{name} must have a finite gradient", gradient)
    value, length = value.detach(), at_least_single(gradient).norm(dim=1, keepdim=True)  # (rows, 1)
    if not length.max():
        scale = float(value.abs().max())
        if apart(value[:1], value[1:2], scale) > torch.finfo(value.dtype).eps:
            raise ValueError(
                f"model.{name} must be differentiable, but its gradient is 0 while its output varies: {REMEDY}"
            )
    elif rows.dtype not in HALF:  # differences of so few digits show nothing
        way = gradient / length.clamp(min=1e-30)
        if all(_difference(function, rows, way, length, weight, step) > MISMATCH for step in STEPS):
            raise ValueError(
                f"model.{name}'s gradient must agree with differences of its values, but differs from them by more "
                f"than {100 * MISMATCH:.0f} %: {REMEDY}"
            )


def noisy(rows: Tensor) -> Tensor:
    """Return rows with a little noise, always the same; rows too long for their type stay as they are."""
    noise = torch.randn(rows.shape, generator=torch.Generator().manual_seed(0)).to(rows)
    return rows + torch.nan_to_num(NOISE * rows.norm(dim=1, keepdim=True) * noise / rows.shape[1] ** 0.5, 0, 0, 0)


@torch.no_grad()
def _difference(
    function: Callable[[Tensor], Tensor], rows: Tensor, way: Tensor, length: Tensor, weight: Tensor, step: float
) -> float:  # fmt: skip
    """Return how far differences along the gradient are from what it predicts, relative to that; the median row's."""
    size = step * rows.norm(dim=1, keepdim=True).clamp(min=1e-3)  # (rows, 1)
    above, below = function(rows + size * way), function(rows - size * way)
    change, predicted = ((above - below) * weight).sum(1), (2 * size * length)[:, 0]
    noise = 1e3 * torch.finfo(rows.dtype).eps * (above.abs() * weight).sum(1)
    return float((((change - predicted).abs() - noise).clamp(min=0) / predicted.clamp(min=1e-30)).median())


# -- what is remembered ------------------------------------------------------------------------------------------------


class _Meter(TorchDispatchMode):
    """Adds up the bytes of all tensors that are made while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count its results, unless they share their memory with its arguments."""
        out = func(*args, **(kwargs or {}))
        old = {one.untyped_storage()._cdata for one in _tensors(args)}
        for one in _tensors(out):
            if one.untyped_storage()._cdata not in old:
                self.bytes += one.numel() * one.element_size()
        return out


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested tuples and lists."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for one in value:
            yield from _tensors(one)


def measured(call: Callable[[], Any]) -> tuple[Any, int]:
    """Return what a call returns, and the bytes of all tensors that it made."""
    meter = _Meter()
    with meter:
        out = call()
    return out, meter.bytes


def _known(model: object, like: Tensor) -> Known:
    """Return what is known of a model in its present state, for inputs like these; nothing at first."""
    state = (like.dtype, like.device, like.shape[-1], _state(model))
    found = _MODELS.get(id(model))
    if found is None or found[0]() is not model:
        try:
            reference: Any = weakref.ref(model, partial(_forget, id(model)))
        except TypeError:  # an object that cannot be referred to weakly is probed anew each time
            return Known(set(), {})
        found = _MODELS[id(model)] = (reference, {})
    states = found[1]
    if state not in states:
        for key in [key for key in states if key[3] != state[3]]:  # type: ignore[index]
            del states[key]
        states[state] = Known(set(), {})
    return states[state]


def _forget(key: int, _: Any) -> None:
    """Drop what is known of a model that is gone."""
    _MODELS.pop(key, None)


def _state(model: object) -> Hashable:
    """Return what changes when the weights of a model are replaced or written to, or its mode is."""
    tensors = [one for one in vars(model).values() if isinstance(one, Tensor)] if hasattr(model, "__dict__") else []
    training = []
    for _, layer in layers_of(model):
        training.append(layer.training)
        tensors += [one for one in (*layer._parameters.values(), *layer._buffers.values()) if one is not None]
    settings = tuple(
        (name, value if isinstance(value, float | bool | str) else id(value))
        for name, value in (vars(model).items() if hasattr(model, "__dict__") else ())
        if isinstance(value, float | bool | str) or name in ("encode", "decode")
    )
    versions = tuple((id(one), 0 if one.is_inference() else one._version) for one in tensors)
    return (versions, tuple(training), settings)
