"""Jacobians of encoder and decoder, J and J_g, and the norms of J that Theorem 1 and its relatives need.

J(x) has shape (d_z, d_x) and is the derivative of the encoder's mean; J_g(z), shape (d_x, d_z), that of the decoder's.
J' is the transpose of J. Begin with :func:`jacobian_norms`, or with :func:`encoder_jacobian` for J itself. The norms
come from the small matrix J J' (:func:`encoder_gram`), for which J itself need not be computed in most cases.

Jacobians are computed by torch's function transforms, for all points and latents at once. Some layers do not work under
these, among them PReLU, recurrent layers and custom autograd functions. There, one backward pass per latent does it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import jacfwd, jacrev, vmap

from vaerobust import checks
from vaerobust.batches import points_within, slices
from vaerobust.contract import check_decoder, check_model, encode_points, require_finite, rows_at_once
from vaerobust.model import GaussianVAE, Layers, mean_layers
from vaerobust.numerics import at_least_single, eigvalsh
from vaerobust.results import Result

ENCODER_GRADIENT = ("encode",)
"""What :func:`vaerobust.contract.check_model` is asked for where J is computed."""
POINTS = 512
"""Points per block where only norms of Jacobians are returned: about 32 MB for 20 latents and 784 pixels."""


@dataclass(frozen=True, eq=False)
class JacobianNorms(Result):
    """Norms of the encoder's Jacobian per point, in latent units per input unit.

    Attributes
    ----------
    frobenius : Tensor, shape (n,)
        ||J||_F, which Theorem 1 uses.
    spectral : Tensor, shape (n,)
        ||J||_2, the largest singular value.
    """

    frobenius: Tensor
    spectral: Tensor


def largest_eigenvalue(symmetric: Tensor) -> Tensor:
    """Return the largest eigenvalue of positive semidefinite matrices (..., k, k), shape (...); it is never < 0."""
    return eigvalsh(symmetric)[..., -1].clamp(min=0)


def encoder_jacobian(model: GaussianVAE, x: Tensor) -> Tensor:
    """Return J = d mu / d x at each point.

    Parameters
    ----------
    model : GaussianVAE
    x : Tensor, shape (n, d_x)

    Returns
    -------
    Tensor, shape (n, d_z, d_x)
        Element (i, j) is d mu_i / d x_j, as below Eq. 5.

    Raises
    ------
    TypeError, ValueError
        If ``x`` is not a finite float tensor of shape (n, d_x).
    """
    checks.vectors("x", x)
    check_model(model, x, decoder=False, gradient=ENCODER_GRADIENT)
    latents = encode_points(model, x[:1])[0].shape[1]
    parts = slices(len(x), points_within(rows_at_once(model, x), latents, len(x)))
    found = [_encoder_jacobian(model, x[i].detach()) for i in parts]
    jacobian = torch.cat(found) if len(found) > 1 else found[0]
    require_finite("model.encode must have a finite Jacobian", jacobian)
    return jacobian


def _encoder_jacobian(model: GaussianVAE, x: Tensor) -> Tensor:
    """Return J at a few points."""
    try:
        # reverse mode takes one pass per latent, forward mode one per pixel, and latents are fewer
        return vmap(jacrev(lambda point: model.encode(point[None])[0][0]))(x).detach()
    except Exception:  # each layer that vmap cannot take has an error of its own
        return _by_backward_passes(lambda given: model.encode(given)[0], x)


def _by_backward_passes(function: Callable[[Tensor], Tensor], points: Tensor) -> Tensor:
    """Return the Jacobian of a function of rows by one backward pass per output, shape (n, outputs, inputs).

    A row's result does not depend on the other rows, so the gradient of a sum over rows holds the gradients of all.
    """
    given = points.detach().requires_grad_(True)
    with torch.enable_grad():
        value = function(given)  # (n, outputs)
        rows = [torch.autograd.grad(value[:, i].sum(), given, retain_graph=True)[0] for i in range(value.shape[1])]
    return torch.stack(rows, 1)


def _by_double_backward(function: Callable[[Tensor], Tensor], points: Tensor) -> Tensor:
    """Return the Jacobian of a function of rows by one backward pass per input, shape (n, outputs, inputs).

    The backward pass maps u to J' u. That is linear in u, and its own gradient along an input is a column of J.
    """
    given = points.detach().requires_grad_(True)
    with torch.enable_grad():
        value = function(given)
        u = torch.zeros_like(value, requires_grad=True)
        (back,) = torch.autograd.grad(value, given, u, create_graph=True)  # (n, inputs)
        columns = [torch.autograd.grad(back[:, i].sum(), u, retain_graph=True)[0] for i in range(back.shape[1])]
    return torch.stack(columns, 2)


def decoder_jacobian(model: GaussianVAE, z: Tensor) -> Tensor:
    """Return J_g = d g / d z at each latent point.

    Parameters
    ----------
    model : GaussianVAE
    z : Tensor, shape (n, d_z)

    Returns
    -------
    Tensor, shape (n, d_x, d_z)

    Raises
    ------
    TypeError, ValueError
        If ``z`` is not a finite float tensor of shape (n, d_z).
    """
    checks.vectors("z", z)
    check_decoder(model, z)
    parts = slices(len(z), points_within(rows_at_once(model, z), z.shape[1], len(z)))
    found = [_decoder_jacobian(model, z[i].detach()) for i in parts]
    jacobian = torch.cat(found) if len(found) > 1 else found[0]
    require_finite("model.decode must have a finite Jacobian", jacobian)
    return jacobian


def _decoder_jacobian(model: GaussianVAE, z: Tensor) -> Tensor:
    """Return J_g at a few latent points: by forward mode, or if a layer lacks that, by one backward pass per latent.

    A layer that cannot be differentiated twice leaves one backward pass per pixel.
    """
    try:
        with warnings.catch_warnings():
            # the first use of torch's forward mode warns that torch's own code is deprecated
            warnings.simplefilter("ignore", FutureWarning)
            return vmap(jacfwd(lambda point: model.decode(point[None])[0]))(z).detach()
    except Exception:  # each layer that forward mode or vmap cannot take has an error of its own
        try:
            return _by_double_backward(model.decode, z)
        except Exception:
            return _by_backward_passes(model.decode, z)


def jacobian_norms(model: GaussianVAE, x: Tensor) -> JacobianNorms:
    """Return ||J||_F and ||J||_2 of the encoder's Jacobian at each point, block by block.

    Parameters
    ----------
    model : GaussianVAE
    x : Tensor, shape (n, d_x)

    Returns
    -------
    JacobianNorms

    Raises
    ------
    TypeError, ValueError
        If ``x`` is not a finite float tensor of shape (n, d_x).
    """
    gram = encoder_gram(model, x)
    return JacobianNorms(frobenius_norm(gram), largest_eigenvalue(gram).sqrt())


def frobenius_norm(gram: Tensor) -> Tensor:
    """Return ||J||_F, shape (n,), which is the root of the trace of J J', shape (n, d_z, d_z)."""
    return gram.diagonal(dim1=1, dim2=2).sum(1).sqrt()


@torch.no_grad()
def encoder_gram(model: GaussianVAE, x: Tensor) -> Tensor:
    """Return J J' of the encoder's Jacobian at each point, block by block.

    Its eigenvalues are the squared singular values of J. Where the model has a method ``mean_layers`` (see
    :func:`vaerobust.model.mean_layers`), J itself is not computed. At a point, J = P W_1, where P is the product of the
    other weights without the units whose ReLU is off. So J J' = P (W_1 W_1') P'. The factor in brackets is the same at
    all points, and the others have no side as long as d_x.

    Parameters
    ----------
    model : GaussianVAE
    x : Tensor, shape (n, d_x)

    Returns
    -------
    Tensor, shape (n, d_z, d_z)
        In single precision where ``x`` has half precision.

    Raises
    ------
    TypeError, ValueError
        If ``x`` is not a finite float tensor of shape (n, d_x), ``mean_layers`` are not the encoder's layers, or the
        model does not do what is assumed of it (:mod:`vaerobust.contract`).
    """
    checks.vectors("x", x)
    check_model(model, x, decoder=False, gradient=ENCODER_GRADIENT)
    if not hasattr(model, "mean_layers"):
        jacobians = (at_least_single(encoder_jacobian(model, x[i])) for i in slices(len(x), POINTS))
        gram = torch.cat([jacobian @ jacobian.mT for jacobian in jacobians])
    else:
        layers, precise = mean_layers(model, x), at_least_single(x.detach())
        gram = _gram_of_layers([(weight.to(precise), bias.to(precise)) for weight, bias in layers], precise)
    require_finite("model.encode must have a Jacobian J with a finite J J'", gram)
    return gram


def _gram_of_layers(layers: Layers, x: Tensor) -> Tensor:
    """Return J J' = P (W_1 W_1') P' of a ReLU network, shape (n, d_z, d_z)."""
    (first, bias), *rest = layers
    inner = first @ first.T  # (width, width)
    if not rest:
        return inner.expand(len(x), -1, -1)
    last = rest[-1][0].T.contiguous()
    grams = []
    for i in slices(len(x), POINTS):
        activations = [x[i] @ first.T + bias]  # of each hidden layer before its ReLU, (points, width)
        for weight, offset in rest[:-1]:
            activations.append(torch.relu(activations[-1]) @ weight.T + offset)
        # One point at a time: about a third of the units are on at a point, and products over these alone take half
        # as long as a batched product over all units.
        for active in zip(*(activation > 0 for activation in activations), strict=True):
            on = [units.nonzero()[:, 0] for units in active]  # indices of the units that are on, for each layer
            product = last.index_select(0, on[-1]).T  # (d_z, units on in the last hidden layer)
            # From the last hidden layer back to the first: P with one more factor at each pass
            for (weight, _), units, before in zip(rest[-2::-1], on[:0:-1], on[-2::-1], strict=True):
                product = (product @ weight.index_select(0, units)).index_select(1, before)
            grams.append(product @ inner.index_select(0, on[0]).index_select(1, on[0]) @ product.T)
    return torch.stack(grams)
