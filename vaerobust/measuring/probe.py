"""One cheap check of a model before it is measured: that it does what the package assumes of every model.

:func:`probe` sends three rows through ``encode`` and ``decode``. What is certainly wrong is an error: wrong types,
shapes or devices, values that are not finite, sigma <= 0, an encoder that is random by itself, rows that depend on the
rest of their batch, and outputs that do not depend on the input by a gradient. What is probably wrong is a suspicion,
which becomes a warning or an error: a variance taken for sigma, logits taken for means, pixels in another range than
the decoder's. Each message says what was found, what must be, and the way out.

Here is no conversion of models; that is :func:`vaerobust.measuring.wrap.wrap`. Start reading at :func:`probe`.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vaerobust import checks
from vaerobust.model import GaussianVAE

ROWS = 3
"""Rows that pass through the model at a time."""
WRAP = "vaerobust.wrap(model, shape=...)"
REACTIONS = ("raise", "warn", "ignore")
MODAL = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd, nn.RReLU)
"""Layers that compute something else in training mode."""
STEPS = (1e-2, 1e-3)
"""Lengths of the steps by which gradients are compared with differences, relative to the length of x."""
NOISE = 0.1
"""Length of the noise on the rows there, relative to the length of x."""
OUTSIDE = 0.25
"""How far outputs must leave the range [0, 1] of the pixels before they are suspected to be no pixels."""


class SuspicionWarning(UserWarning):
    """What was passed is possible, but looks like a common mistake."""


def probe(model: GaussianVAE, x: Tensor, *, suspicions: str = "warn") -> None:
    """Check on a few rows that a model does what every function of this package assumes.

    The model is left as it was: its buffers and torch's global random state are restored.

    Parameters
    ----------
    model : GaussianVAE
    x : Tensor, shape (n, d_x)
        Inputs; only the first ones are used.
    suspicions : {'warn', 'raise', 'ignore'}
        What happens where something is probably, but not certainly, a mistake: a :class:`SuspicionWarning`, a
        ValueError, or nothing.

    Raises
    ------
    TypeError
        If ``model`` lacks ``encode`` or ``decode``, or these return something else than tensors, or ``x`` is not a
        tensor of floating point numbers.
    ValueError
        If the model does not do what is assumed, or with ``suspicions="raise"`` probably does not.

    Examples
    --------
    >>> import torch, vaerobust
    >>> from vaerobust.measuring.probe import probe
    >>> probe(vaerobust.VAE(pixels=784), torch.rand(10, 784))
    """
    checks.one_of("suspicions", suspicions, REACTIONS)
    checks.vectors("x", x)
    for method in ("encode", "decode"):
        if not callable(getattr(model, method, None)):
            raise TypeError(
                f"model must have the methods encode(x) -> (mu, sigma) and decode(z), but {type(model).__name__} has "
                f"no {method}: make one by {WRAP}"
            )
    require_evaluation_mode(model)
    rows = few_rows(x)
    with left_as_it_was(model):
        mu, sigma = encoded(model, rows)
        out = decoded(model, mu, rows)
        require_repeatable(model, rows, mu, sigma, out)
        require_row_by_row(model, rows, mu, sigma, out)
        require_gradient("encode", lambda given: model.encode(given)[0], rows)
        require_gradient("decode", model.decode, mu)
        found = [] if suspicions == "ignore" else suspected(model, rows, out)
    for message in found:
        if suspicions == "raise":
            raise ValueError(message)
        warnings.warn(message, SuspicionWarning, stacklevel=3)


def few_rows(x: Tensor) -> Tensor:
    """Return the first rows, at least two different ones where that can be had."""
    rows = x[:ROWS].detach().clone()
    return torch.cat([rows, 0.9 * rows + 0.05]) if len(rows) == 1 else rows


def require_evaluation_mode(model: object) -> None:
    """Refuse a model with BatchNorm or dropout layers in training mode.

    Raises
    ------
    ValueError
        It names the first such layer.
    """
    if not isinstance(model, nn.Module):
        return
    for name, layer in model.named_modules():
        dropout = isinstance(layer, nn.modules.dropout._DropoutNd)
        if isinstance(layer, MODAL) and layer.training and not (dropout and layer.p == 0):
            raise ValueError(
                f"model must be in evaluation mode, but its layer {name} ({type(layer).__name__}) is in training "
                "mode: call model.eval() first"
            )


@contextmanager
def left_as_it_was(model: object) -> Iterator[None]:
    """Restore torch's random state and the model's buffers; a model that changes its buffers is an error."""
    buffers = dict(model.named_buffers()) if isinstance(model, nn.Module) else {}
    before = {name: buffer.clone() for name, buffer in buffers.items()}
    with torch.random.fork_rng():
        yield
    changed = [name for name, buffer in buffers.items() if not torch.equal(buffer, before[name])]
    with torch.no_grad():
        for name in changed:
            buffers[name].copy_(before[name])
    if changed:
        raise ValueError(
            f"model must not change when it is called, but encode or decode changes its buffer {changed[0]}: is it in "
            "training mode? Call model.eval() first"
        )


@torch.no_grad()
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
    if mu.ndim != 2 or len(mu) != len(rows):
        raise ValueError(
            f"model.encode must return mu of shape (n, d_z), here ({len(rows)}, d_z), but it has shape "
            f"{tuple(mu.shape)}: flatten it by {WRAP}"
        )
    if sigma.shape != mu.shape:
        raise ValueError(
            f"model.encode must return sigma in the shape of mu, {tuple(mu.shape)}, but it has {tuple(sigma.shape)}: "
            "return sigma.expand_as(mu)"
        )
    for name, value in (("mu", mu), ("sigma", sigma)):
        require_like(f"model.encode's {name}", value, rows)
    least = float(sigma.min())
    if least <= 0:
        raise ValueError(
            f"model.encode must return sigma > 0, but its least value is {least:.4g}. It looks like a log-variance, "
            'whose sigma is exp(0.5 * log_variance): use vaerobust.wrap(model, shape=..., scale="log_variance")'
            if least < 0
            else "model.encode must return sigma > 0, but some of it is 0: "
            + (
                f"x goes up to {float(rows.max()):.4g}; divide it by 255?"
                if rows.max() > 2
                else "add a small number to it"
            )
        )
    return mu.detach(), sigma.detach()


@torch.no_grad()
def decoded(model: GaussianVAE, z: Tensor, rows: Tensor) -> Tensor:
    """Return the reconstructions of some latents after checks.

    Raises
    ------
    TypeError, ValueError
        If they are not what they must be.
    """
    out = called(model, "decode", z)
    if not isinstance(out, Tensor):
        raise TypeError(f"model.decode must return one tensor, but returns {described(out)}: convert it by {WRAP}")
    if out.shape != rows.shape:
        raise ValueError(
            f"model.decode must return the shape of the input, {tuple(rows.shape)}, but returns {tuple(out.shape)}"
            + (f": flatten it by {WRAP}" if out.numel() == rows.numel() else "")
        )
    require_like("model.decode's output", out, rows)
    return out.detach()


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
        hint = difference_from_weights(model, given)
        reason = (str(error).splitlines() or [""])[0]
        raise ValueError(
            f"model.{method} must accept rows of shape {tuple(given.shape)}, but fails with {type(error).__name__}: "
            f"{reason}. {hint or f'Where the module takes another shape, convert it by {WRAP}'}"
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
    """Yield the parameters and buffers of a module; nothing for other objects."""
    if isinstance(model, nn.Module):
        yield from model.parameters()
        yield from model.buffers()


def described(value: object) -> str:
    """Return in words what a method returned."""
    if isinstance(value, Tensor):
        return f"one tensor of shape {tuple(value.shape)}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}: " + ", ".join(described(one) for one in value)
    return f"an object of type {type(value).__name__}"


def require_like(name: str, value: Tensor, x: Tensor) -> None:
    """Refuse values that are not finite, or differ from x in type or device."""
    if value.dtype != x.dtype:
        raise TypeError(f"{name} must have the type of x, {x.dtype}, but is {value.dtype}: convert x or the model")
    if value.device != x.device:
        raise ValueError(f"{name} must be on the device of x, {x.device}, but is on {value.device}")
    wrong = int((~torch.isfinite(value)).sum())
    if wrong:
        raise ValueError(f"{name} must be finite, but holds {wrong} NaN or infinite numbers of {value.numel()}")


def tolerance(x: Tensor) -> float:
    """Return the relative difference that rounding may cause."""
    return 30 * torch.finfo(x.dtype).eps ** 0.75


def apart(first: Tensor, second: Tensor) -> float:
    """Return the largest difference, relative to the largest value."""
    scale = float(torch.maximum(first.abs().max(), second.abs().max()))
    return float((first - second).abs().max()) / scale if scale else 0.0


@torch.no_grad()
def require_repeatable(model: GaussianVAE, rows: Tensor, mu: Tensor, sigma: Tensor, out: Tensor) -> None:
    """Refuse a model that returns something else at a second call."""
    again, sigma_again = model.encode(rows)
    for name, first, second in (("mu", mu, again), ("sigma", sigma, sigma_again)):
        if apart(first, second) > tolerance(rows):
            raise ValueError(
                f"model.encode must return the same {name} each time, but two calls differ by "
                f"{100 * apart(first, second):.2g} % of its largest value: is dropout active (call model.eval()), or "
                "does encode return a sample in place of the mean?"
            )
    if apart(out, model.decode(mu)) > tolerance(rows):
        raise ValueError(
            "model.decode must return the same each time, but two calls differ: is dropout active (call "
            "model.eval()), or does decode return a sample in place of the mean?"
        )


@torch.no_grad()
def require_row_by_row(model: GaussianVAE, rows: Tensor, mu: Tensor, sigma: Tensor, out: Tensor) -> None:
    """Refuse a model whose result for a row depends on the other rows, as BatchNorm's does in training mode."""
    mu_alone, sigma_alone = called(model, "encode", rows[:1])
    alone = called(model, "decode", mu[:1])
    for name, together, single in (
        ("encode's mu", mu[:1], mu_alone), ("encode's sigma", sigma[:1], sigma_alone),
        ("decode's output", out[:1], alone),
    ):  # fmt: skip
        if single.shape != together.shape or apart(together, single) > tolerance(rows):
            raise ValueError(
                f"model.{name} must not depend on the other rows of the batch, but the first row alone gives another "
                "result: is a normalisation over the batch in training mode? Call model.eval() first"
            )


def require_gradient(name: str, function: Any, rows: Tensor) -> None:
    """Refuse a function whose gradient is missing, or is not the one that differences of its values show.

    Both are taken at noisy rows: where pixels are equal, as in the background of digits, max pooling has a kink. The
    steps go along the gradient itself, where the predicted change is largest. A function with kinks may differ at one
    length of the step, so only one that differs at both is refused.
    """
    noise = torch.randn(rows.shape, generator=torch.Generator().manual_seed(0)).to(rows)
    rows = rows + NOISE * rows.norm(dim=1, keepdim=True) * noise / rows.shape[1] ** 0.5
    given = rows.clone().requires_grad_(True)
    with torch.enable_grad():
        value = function(given)
        weight = torch.linspace(1, 2, value[0].numel(), dtype=value.dtype, device=value.device)
        total = (value.flatten(1) @ weight).sum()
    remedy = "remove detach(), no_grad(), .data and conversions to numpy from it"
    if not total.requires_grad:
        raise ValueError(f"model.{name} must be differentiable, but its output has no gradient: {remedy}")
    (gradient,) = torch.autograd.grad(total, given, allow_unused=True)
    if gradient is None or not torch.isfinite(gradient).all():
        raise ValueError(f"model.{name} must have a finite gradient in its input, but has none: {remedy}")
    length = gradient.norm(dim=1, keepdim=True)
    if not length.max():
        if apart(*value[:2].detach()) > tolerance(rows):
            raise ValueError(
                f"model.{name} must be differentiable, but its gradient is 0 while its output varies: remove rounding, "
                "thresholds and detach() from it"
            )
        return
    if rows.dtype in (torch.float16, torch.bfloat16):
        return  # differences of so few digits show nothing
    way = gradient / length.clamp(min=1e-30)
    ratios = [difference_ratio(function, rows, way, length, weight, step) for step in STEPS]
    if min(ratios) > 0.5:
        raise ValueError(
            f"model.{name}'s gradient must agree with differences of its values, but differs from them by "
            f"{100 * min(ratios):.0f} %: is a part of it detached or rounded?"
        )


@torch.no_grad()
def difference_ratio(
    function: Any, rows: Tensor, way: Tensor, length: Tensor, weight: Tensor, step: float
) -> float:  # fmt: skip
    """Return how far differences along the gradient are from what it predicts, relative to that; the median row's."""
    size = step * rows.norm(dim=1, keepdim=True).clamp(min=1e-3)
    change = (function(rows + size * way) - function(rows - size * way)).flatten(1) @ weight
    predicted = (2 * size * length)[:, 0]
    noise = 1e3 * torch.finfo(rows.dtype).eps * (function(rows).abs().flatten(1) @ weight)
    off = ((change - predicted).abs() - noise).clamp(min=0) / predicted.clamp(min=1e-30)
    return float(off.median())


@torch.no_grad()
def suspected(model: GaussianVAE, rows: Tensor, out: Tensor) -> list[str]:
    """Return in words what is probably a mistake."""
    return [*suspicious_scale(model, rows), *suspicious_range(model, rows, out)]


def outputs_of_layers(model: GaussianVAE, rows: Tensor) -> dict[str, Tensor]:
    """Return what each layer of a module returns while it encodes, by its name; nothing for other objects."""
    if not isinstance(model, nn.Module):
        return {}
    outputs: dict[str, Tensor] = {}

    def note(name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                outputs[name] = output

        return hook

    handles = [layer.register_forward_hook(note(name)) for name, layer in model.named_modules() if name]
    try:
        model.encode(rows)
    finally:
        for handle in handles:
            handle.remove()
    return outputs


def suspicious_scale(model: GaussianVAE, rows: Tensor) -> Iterator[str]:
    """Yield whether sigma is the bare output of a layer for log-variances, or the exponential of one."""
    sigma = model.encode(rows)[1]
    for name, output in outputs_of_layers(model, rows).items():
        if output.numel() != sigma.numel() or not re.search("log.?(var|cov)", name, re.IGNORECASE):
            continue
        output = output.reshape(sigma.shape)
        for scale, value in (("log_variance", output), ("variance", output.exp())):
            if torch.allclose(value, sigma, rtol=tolerance(rows)):
                yield (
                    f"sigma looks like a {scale.replace('_', '-')}: it is "
                    f"{'the exponential of ' if scale == 'variance' else ''}the output of layer {name}. If so, use "
                    f'vaerobust.wrap(model, shape=..., scale="{scale}")'
                )
    stated = getattr(model, "scale", None)
    if stated in ("log_variance", "log_sigma") and float(sigma.min()) > 1:
        yield (
            f'every sigma is above 1 with scale="{stated}", as if the exponential was taken twice: if encode '
            'returns sigma itself, use scale="sigma"'
        )


def suspicious_range(model: GaussianVAE, rows: Tensor, out: Tensor) -> Iterator[str]:
    """Yield whether outputs and inputs seem to be in different units."""
    if getattr(model, "logits", None) is not None:
        return  # whoever wrapped it has said what the outputs are
    low, high = float(rows.min()), float(rows.max())
    least, most = float(out.min()), float(out.max())
    if low >= 0 and high <= 1 and (least < -OUTSIDE or most > 1 + OUTSIDE):
        error = {"as they are": (out - rows).norm(), "logits": (torch.sigmoid(out) - rows).norm()}
        error["signed"] = ((out + 1) / 2 - rows).norm()
        best = min(error, key=lambda name: float(error[name]))
        found = f"decode's outputs range over [{least:.3g}, {most:.3g}], while x lies in [0, 1]"
        if best == "logits":
            yield f"{found}: they look like logits. If so, use vaerobust.wrap(model, shape=..., logits=True)"
        elif best == "signed" and least >= -1.05 and most <= 1.05:
            yield (
                f"{found}: they look like pixels in [-1, 1]. If so, use "
                'vaerobust.wrap(model, shape=..., normalise=(0.5, 0.5), outputs="normalised")'
            )
    elif least >= 0 and most <= 1 and high > 2 and low >= 0:
        yield f"x ranges over [{low:.3g}, {high:.4g}], while decode's outputs lie in [0, 1]: divide x by 255?"
    elif least >= 0 and most <= 1 and -1 <= low < -OUTSIDE and high <= 1:
        yield (
            f"x ranges over [{low:.3g}, {high:.3g}], while decode's outputs lie in [0, 1]: pass x in [0, 1], and where "
            "encode takes normalised inputs, "
            'use vaerobust.wrap(model, shape=..., normalise=(0.5, 0.5), outputs="pixels")'
        )
