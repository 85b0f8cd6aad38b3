"""Turn a VAE of any shape and convention into the two functions on flat rows that this package measures.

Everything else here takes a model with ``encode(x) -> (mu, sigma)`` and ``decode(z) -> mean`` on rows of pixels
(:class:`vaerobust.model.GaussianVAE`). :func:`wrap` makes one from a module that takes images, returns log-variances,
distributions or containers, or works in normalised units. The type and the names of a module's outputs say what they
are. What these do not say must be passed as an argument; nothing is guessed.

Start reading at :func:`wrap`, then :func:`gaussian_of` and :func:`mean_of`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

from vaerobust import checks
from vaerobust.batches import slices
from vaerobust.contract import called, described, require_evaluation_mode, weights
from vaerobust.measuring.images import shape_of_image

SCALES: dict[str, Callable[[Tensor], Tensor]] = {
    "sigma": lambda value: value,
    "variance": torch.sqrt,
    "log_variance": lambda value: torch.exp(0.5 * value),
    "log_sigma": torch.exp,
}
"""How each scale becomes the standard deviation."""

MEANS = ("mu", "mean", "loc", "z_mean", "z_mu", "embedding")
"""Names under which containers hold the mean of q(z|x)."""
SCALE_NAMES = {
    "log_variance": ("log_variance", "log_var", "logvar", "z_log_var", "z_logvar", "log_covariance"),
    "log_sigma": ("log_sigma", "log_std", "logstd"),
    "variance": ("variance", "var", "z_var"),
    "sigma": ("sigma", "std", "stddev", "z_std"),
}
"""Names under which containers hold its scale, by what they say that it is."""
RECONSTRUCTIONS = ("reconstruction", "recon_x", "recon", "x_hat", "x_recon", "sample", "mean")
"""Names under which containers hold a reconstruction."""

OUTPUTS = ("pixels", "normalised")
PASSED = 2**19
"""Pixels that pass through the module at a time where no gradient is needed. A convolution's activations take about a
hundred times the memory of its input."""


class Convention(Protocol):
    """A function of a tensor of images or latents."""

    def __call__(self, given: Tensor, /) -> Any:
        """Return what the module returns."""


class Wrapped(nn.Module):
    """A VAE on flat rows, made by :func:`wrap`; it is a :class:`vaerobust.model.GaussianVAE`.

    Attributes
    ----------
    module : object
        What was wrapped.
    shape : tuple of int
        Of one image.
    latent_shape : tuple of int
        Of one image's mean, as the module returns it.
    scale, logits, outputs : str, bool, str, or None
        As given to :func:`wrap`.
    """

    module: Any
    mean: Tensor
    std: Tensor

    def __init__(self, module: Any, shape: tuple[int, ...], encode: Convention, decode: Convention) -> None:
        super().__init__()
        self.module = module
        self.shape = shape
        self.latent_shape: tuple[int, ...] = ()
        self.scale: str | None = None
        self.logits: bool | None = None
        self.outputs: str | None = None
        self._encode, self._decode = encode, decode
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("std", torch.ones(()))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of q(z|x), each of shape (n, d_z), of rows of pixels (n, d_x)."""
        parts = self._parts(x)
        if len(parts) == 1:
            return self._encoded(x)
        found = [self._encoded(part) for part in parts]
        return torch.cat([mu for mu, _ in found]), torch.cat([sigma for _, sigma in found])

    def decode(self, z: Tensor) -> Tensor:
        """Return the mean reconstruction of latents (n, d_z), rows of pixels (n, d_x)."""
        parts = self._parts(z)
        return self._decoded(z) if len(parts) == 1 else torch.cat([self._decoded(part) for part in parts])

    def mean_network(self) -> nn.Module:
        """Return a module that maps rows of pixels to the mean of q(z|x); its layers are found by tracing it."""
        return MeanNetwork(self)

    def conventions(self) -> dict[str, Any]:
        """Return what was said of the module, for records of a measurement."""
        return {
            "module": type(self.module).__name__, "shape": list(self.shape), "scale": self.scale,
            "logits": self.logits, "outputs": self.outputs,
            "normalise": [self.mean.flatten().tolist(), self.std.flatten().tolist()] if self.outputs else None,
        }  # fmt: skip

    def _parts(self, rows: Tensor) -> Sequence[Tensor]:
        """Cut rows into parts that the module takes at a time; gradients need all rows in one."""
        size = max(16, PASSED // math.prod(self.shape))
        if torch.is_grad_enabled() or len(rows) <= size:
            return [rows]
        return [rows[part] for part in slices(len(rows), size)]

    def _encoded(self, x: Tensor) -> tuple[Tensor, Tensor]:
        images = (x.reshape(-1, *self.shape) - self.mean.to(x)) / self.std.to(x) if self.outputs else x
        with unvalidated():
            mu, value, kind = gaussian_of(self._encode(images.reshape(-1, *self.shape)), self.scale)
        sigma = SCALES[kind](value)
        if sigma.shape != mu.shape:
            sigma = sigma.expand_as(mu)  # one sigma for all latents, or for all images
        self.latent_shape = tuple(mu.shape[1:])
        return mu.flatten(1), sigma.flatten(1)

    def _decoded(self, z: Tensor) -> Tensor:
        with unvalidated():
            out = mean_of(self._decode(z.reshape(-1, *self.latent_shape)), self.shape)
        out = torch.sigmoid(out) if self.logits else out.reshape(-1, *self.shape)
        if self.outputs == "normalised":
            out = out.reshape(-1, *self.shape) * self.std.to(out) + self.mean.to(out)
        return out.flatten(1)


@contextmanager
def unvalidated() -> Iterator[None]:
    """Let distributions be made without a look at their values.

    Their own checks branch on data, which neither a Jacobian by ``vmap`` nor a trace for a certificate can follow. The
    probe checks the values.
    """
    before = Distribution._validate_args
    Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        Distribution.set_default_validate_args(before)


class MeanNetwork(nn.Module):
    """The mean of a wrapped model's encoder, as a module on flat rows."""

    def __init__(self, model: Wrapped) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Return mu, shape (n, d_z)."""
        return self.model.encode(x)[0]


def wrap(
    module: Any,
    *,
    shape: Sequence[int],
    encode: Convention | None = None,
    decode: Convention | None = None,
    scale: str | None = None,
    logits: bool | None = None,
    normalise: tuple[float | Sequence[float], float | Sequence[float]] | None = None,
    outputs: str | None = None,
) -> Wrapped:
    """Make a model on flat rows of pixels from a VAE of any shape and convention.

    The module may return what is common: a pair of tensors; ``torch.distributions.Normal``, also within
    ``Independent``; an object with ``latent_dist`` as in diffusers; a mapping or a named tuple whose names say what its
    tensors are, such as pythae's ``ModelOutput``. Everything else fits with ``encode`` and ``decode`` as functions.

    Parameters
    ----------
    module : Module or object
        In evaluation mode.
    shape : sequence of int
        Shape of one image as the module takes it, such as (1, 28, 28), or (784,).
    encode, decode : callable, optional
        Functions of a batch of images and of latents. Default: the module's methods ``encode`` and ``decode``, else
        its parts ``encoder`` and ``decoder``.
    scale : {'sigma', 'variance', 'log_variance', 'log_sigma'}, optional
        What the second tensor of a pair is. Leave it out where a distribution or a name says it.
    logits : bool, optional
        True if ``decode`` returns logits, whose sigmoid is the mean reconstruction; False if it returns the mean
        itself. It must be given if ``decode`` returns plain tensors with values outside [0, 1].
    normalise : pair of float or of sequences with one float per channel, optional
        Mean and standard deviation by which the module's inputs are normalised. The wrapped model takes pixels in
        [0, 1] and normalises them itself.
    outputs : {'pixels', 'normalised'}, optional
        Units of what ``decode`` returns. It must be given together with ``normalise``.

    Returns
    -------
    Wrapped

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range, the module fails on two images of noise, or the meaning of its outputs is
        ambiguous. The message then names the argument that settles it.

    Examples
    --------
    A pair of mean and log-variance, with images as rows:

    >>> import torch, vaerobust
    >>> from torch import nn
    >>> class Usual(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.mu, self.logvar, self.out = nn.Linear(6, 2), nn.Linear(6, 2), nn.Linear(2, 6)
    ...     def encode(self, x):
    ...         return self.mu(x), self.logvar(x)
    ...     def decode(self, z):
    ...         return torch.sigmoid(self.out(z))
    >>> model = vaerobust.wrap(Usual(), shape=(6,), scale="log_variance")
    >>> [tuple(one.shape) for one in model.encode(torch.rand(4, 6))]
    [(4, 2), (4, 2)]

    A tuple with extras, of which a function picks two, and a decoder that returns logits::

        wrap(module, shape=(1, 28, 28), encode=lambda x: module.encode(x)[1:3], scale="log_variance", logits=True)

    One tensor with mean and log-variance in its two halves::

        wrap(module, shape=(3, 32, 32), encode=lambda x: module.encode(x).chunk(2, dim=1), scale="log_variance")

    A distribution, which needs no further argument::

        wrap(module, shape=(1, 28, 28))  # module.encode(x) returns torch.distributions.Normal(mu, sigma)

    A model of pythae, whose outputs have names::

        wrap(pythae_model, shape=(1, 28, 28))

    Inputs normalised to [-1, 1], and a decoder with a tanh at its end::

        wrap(module, shape=(3, 64, 64), scale="log_variance", normalise=(0.5, 0.5), outputs="normalised")
    """
    shape = shape_of_image(shape)
    if scale is not None:
        checks.one_of("scale", scale, SCALES)
    if outputs is not None:
        checks.one_of("outputs", outputs, OUTPUTS)
    if logits is not None:
        checks.flag("logits", logits)
    require_evaluation_mode(module)
    model = Wrapped(module, shape, found(module, "encode", encode), found(module, "decode", decode))
    model.scale, model.logits = scale, logits
    if normalise is not None:
        set_normalisation(model, normalise, outputs)
    elif outputs is not None:
        raise ValueError(f"outputs must be left out where normalise is, but is {outputs!r}")
    weight = next((one for one in weights(module) if one.is_floating_point()), torch.zeros(()))
    try_on_noise(model.train(getattr(module, "training", False)).to(weight.device), weight)
    return model


def found(module: Any, name: str, given: Convention | None) -> Convention:
    """Return the function that encodes or decodes: the one given, else the module's method or its part."""
    if given is not None:
        if not callable(given):
            raise TypeError(f"{name} must be a function, but is {type(given).__name__}")
        return given
    for attribute in (name, f"{name}r"):
        one = getattr(module, attribute, None)
        if callable(one):
            return one
    raise TypeError(
        f"{name} must be given, since {type(module).__name__} has neither a method {name} nor a part {name}r: pass a "
        f"function, {name}=lambda batch: ..."
    )


def set_normalisation(model: Wrapped, normalise: Any, outputs: str | None) -> None:
    """Set the mean and the standard deviation by which the module's inputs are normalised."""
    if outputs is None:
        raise ValueError(
            'outputs must be given with normalise: "pixels" where decode returns pixels in [0, 1], "normalised" where '
            "it returns them normalised like the inputs"
        )
    if model.logits and outputs == "normalised":
        raise ValueError('outputs must be "pixels" where logits is True, since a sigmoid gives pixels in [0, 1]')
    try:
        mean, std = (torch.as_tensor(one, dtype=torch.float64) for one in normalise)
    except (TypeError, ValueError) as error:
        raise TypeError(f"normalise must be a pair (mean, std), but is {normalise!r}") from error
    for one in (mean, std):
        if one.ndim > 1 or (one.ndim == 1 and len(one) != model.shape[0]):
            raise ValueError(
                f"normalise must hold single numbers, or one per channel of shape {model.shape}, but holds "
                f"{tuple(one.shape)}"
            )
    if not (torch.isfinite(mean).all() and torch.isfinite(std).all() and (std > 0).all()):
        raise ValueError(f"normalise must be finite with a standard deviation > 0, but is {normalise!r}")
    per_channel = (-1,) + (1,) * (len(model.shape) - 1)
    model.mean = mean.reshape(per_channel) if mean.ndim else mean
    model.std = std.reshape(per_channel) if std.ndim else std
    model.outputs = outputs


@torch.no_grad()
def try_on_noise(model: Wrapped, weight: Tensor) -> None:
    """Send two images of noise through a wrapped model, so that what is wrong with it is an error at once.

    Raises
    ------
    TypeError, ValueError
        If it fails, or what it returns cannot be told.
    """
    generator = torch.Generator().manual_seed(0)
    rows = torch.rand(2, math.prod(model.shape), generator=generator).to(weight.dtype).to(weight.device)
    images = rows.reshape(-1, *model.shape)
    # the module's own errors come first, those of reading what it returns after them
    called(Named(encode=model._encode), "encode", images)
    mu, sigma = model.encode(rows)
    if len(mu) != 2 or not torch.isfinite(sigma).all() or float(sigma.min()) <= 0:
        raise ValueError(
            f"scale must say what encode returns beside the mean, but with {model.scale!r} sigma ranges over "
            f"[{float(sigma.min()):.4g}, {float(sigma.max()):.4g}]; it must be finite and > 0. A log-variance needs "
            'scale="log_variance"'
        )
    called(Named(decode=model._decode), "decode", mu.reshape(-1, *model.latent_shape))
    out = model.decode(mu)
    low, high = float(out.min()), float(out.max())
    if model.logits is None and model.outputs is None and (low < -1e-3 or high > 1 + 1e-3):
        raise ValueError(
            f"logits must be given, since decode returns values in [{low:.3g}, {high:.3g}]: True if they are logits, "
            "False if they are means that leave [0, 1], as those of a Gaussian likelihood may"
        )


class Named:
    """Functions under the names of a model's methods."""

    def __init__(self, **functions: Convention) -> None:
        vars(self).update(functions)


def gaussian_of(output: Any, scale: str | None) -> tuple[Tensor, Tensor, str]:
    """Read mean and scale of q(z|x) from what an encoder returns.

    Parameters
    ----------
    output : object
    scale : str, optional
        What the second tensor of a pair is.

    Returns
    -------
    mean, value : Tensor
    kind : str
        What the value is, one of :data:`SCALES`.

    Raises
    ------
    TypeError, ValueError
        If it cannot be told.
    """
    output = getattr(output, "latent_dist", output)
    if isinstance(output, Distribution):
        return *normal_of(output), said("sigma", scale, f"encode returns a {type(output).__name__}")
    if (names := named(output)) is not None:
        return gaussian_of_names(names, scale)
    if isinstance(output, tuple | list):
        tensors = len(output) == 2 and all(isinstance(one, Tensor) for one in output)
        if not tensors:
            raise TypeError(
                f"encode must return the mean and its scale, but returns {described(output)}: say which they are by a "
                "function, such as encode=lambda x: module.encode(x)[:2]"
            )
        if scale is None:
            raise ValueError(
                "scale must be given, since encode returns two plain tensors: is the second one the "
                + " or the ".join(f'"{name}"' for name in SCALES)
                + '? Most modules return the "log_variance"'
            )
        return output[0], output[1], scale
    mean, std = getattr(output, "mean", None), getattr(output, "std", None)
    if not isinstance(output, Tensor) and isinstance(mean, Tensor) and isinstance(std, Tensor):
        return mean, std, said("sigma", scale, f"encode returns a {type(output).__name__} with mean and std")
    raise TypeError(
        f"encode must return the mean and its scale, but returns {described(output)}. Where mean and scale are its two "
        "halves, use encode=lambda x: module.encode(x).chunk(2, dim=1)"
    )


def normal_of(output: Distribution) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of a diagonal normal distribution."""
    inner = output
    while isinstance(inner, Independent):
        inner = inner.base_dist
    if not isinstance(inner, Normal):
        raise TypeError(
            f"encode must return a torch.distributions.Normal, also within Independent, but returns a "
            f"{type(inner).__name__}: what is measured here is a Gaussian encoder with a diagonal covariance"
        )
    return inner.mean, inner.stddev


def named(output: Any) -> dict[str, Tensor] | None:
    """Return the tensors of a mapping or named tuple by their names; None for anything else."""
    if isinstance(output, Mapping):
        items = dict(output)
    elif isinstance(output, tuple) and hasattr(output, "_asdict"):
        items = output._asdict()
    else:
        return None
    return {str(name): value for name, value in items.items() if isinstance(value, Tensor)}


def gaussian_of_names(names: dict[str, Tensor], scale: str | None) -> tuple[Tensor, Tensor, str]:
    """Read mean and scale from tensors by their names."""
    means = [name for name in MEANS if name in names]
    scales = [(name, kind) for kind, known in SCALE_NAMES.items() for name in known if name in names]
    if len(means) != 1 or len(scales) != 1:
        raise ValueError(
            f"encode must return one mean and one scale, but has the names {', '.join(names)}: say which they are, "
            'such as encode=lambda x: (module.encode(x)["..."], module.encode(x)["..."]) with scale="log_variance"'
        )
    ((name, kind),) = scales
    return names[means[0]], names[name], said(kind, scale, f"encode returns the name {name}")


def said(kind: str, scale: str | None, why: str) -> str:
    """Return what the scale is; an error if the argument says something else."""
    if scale not in (None, kind):
        raise ValueError(f'scale must be "{kind}" or left out, since {why}, but is {scale!r}')
    return kind


def mean_of(output: Any, shape: tuple[int, ...]) -> Tensor:
    """Read the mean reconstruction from what a decoder returns.

    Raises
    ------
    TypeError, ValueError
        If it cannot be told.
    """
    if isinstance(output, Distribution):
        return right_size(output.mean, shape)
    if (names := named(output)) is not None:
        known = [name for name in RECONSTRUCTIONS if name in names]
        if len(known) == 1:
            return right_size(names[known[0]], shape)
        output = tuple(names.values())
    if isinstance(output, tuple | list):
        fit = [one for one in output if isinstance(one, Tensor) and one[0].numel() == math.prod(shape)]
        if len(fit) != 1:
            raise ValueError(
                f"decode must return one tensor of the images' size, but returns {described(output)}: say which it is, "
                "such as decode=lambda z: module.decode(z)[0]"
            )
        return fit[0]
    if not isinstance(output, Tensor) and isinstance(getattr(output, "sample", None), Tensor):
        output = output.sample
    if not isinstance(output, Tensor):
        raise TypeError(f"decode must return a tensor or a distribution, but returns {described(output)}")
    return right_size(output, shape)


def right_size(out: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return reconstructions whose images have as many pixels as the inputs.

    Raises
    ------
    ValueError
        If they have not.
    """
    if out.ndim < 1 or not len(out) or out[0].numel() != math.prod(shape):
        raise ValueError(
            f"decode must return images of shape {tuple(shape)}, as shape says, but they have {tuple(out.shape[1:])}"
        )
    return out
