"""Chord slopes of activations: between which numbers (f(a + h) - f(a)) / h lies for every |h| <= rho.

Each activation is written as a sum of simple shapes, f(x) = sum_k w_k f_k(c_k x + d_k) + constant. Its chord slope is
then the sum of w_k c_k times theirs, and intervals add. There are three kinds of shapes:

- the identity, whose chord slope is 1;
- relu, whose chord slope rises with h, so its ends are those of the interval (lem-shift of chapter 5);
- smooth functions with |f''| <= M. There c(h) = (f(a + h) - f(a)) / h is the mean of f' between a and a + h. Hence
  |c(h) - f'(a)| <= M |h| / 2, and c changes by at most M |h - h'| / 2 between h and h'. So values of c on a grid bound
  it everywhere. Where f is convex, c rises with h, and the two ends suffice.

The chord slope is a mean of f', so it also lies between the least and the largest f'.

Here are the shapes and the activations made of them. Which activation an encoder uses is found in
:mod:`vaerobust.certify.tracing`. Start reading at :class:`Activation`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

GRID = 16
"""Points of the grid on each side of 0."""
ROUNDING = 1e-13
"""Added to both sides of the interval of a smooth shape, far above the rounding errors of f'."""


class Smooth(NamedTuple):
    """A function with a Lipschitz derivative.

    Attributes
    ----------
    function : callable
        f, elementwise on tensors in double precision.
    curvature : float
        M >= sup |f''|.
    least, most : float
        Bounds of f'.
    convex : bool
    """

    function: Callable[[Tensor], Tensor]
    curvature: float
    least: float
    most: float
    convex: bool = False

    def chord_slopes(self, a: Tensor, reach: Tensor) -> tuple[Tensor, Tensor]:
        """Return the least and the largest chord slope over |h| <= reach; both may be a little too wide."""
        with torch.enable_grad():
            point = a.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.function(point).sum(), point)  # f'(a)
        steps = torch.tensor([-1.0, 1.0]) if self.convex else torch.arange(-GRID, GRID + 1) / GRID
        h = steps[steps != 0].to(a).reshape(-1, *[1] * a.ndim) * reach  # (grid, *a.shape)
        there, here = self.function(a + h), self.function(a)
        # Rounding of f(a + h), f(a) and of a + h, 8 units in the last place each
        noise = 8 * torch.finfo(a.dtype).eps * (there.abs() + here.abs() + a.abs() + h.abs())
        size = h.abs().clamp(min=1e-300)
        chord = torch.where(h == 0, slope, (there - here) / h)
        noise = torch.where(h == 0, 0.0, noise / size)
        # No point is further than half a step from the grid, to which h = 0 belongs with c(0) = f'(a)
        between = 0.0 if self.convex else self.curvature / 2 * reach / (2 * GRID)
        low = torch.minimum((chord - noise).amin(0), slope) - between
        high = torch.maximum((chord + noise).amax(0), slope) + between
        near = self.curvature / 2 * reach
        low = torch.maximum(low, slope - near) - ROUNDING
        high = torch.minimum(high, slope + near) + ROUNDING
        return low.clamp(self.least, self.most), high.clamp(self.least, self.most)


class Identity:
    """f(x) = x."""

    @staticmethod
    def function(a: Tensor) -> Tensor:
        """Return x itself."""
        return a

    @staticmethod
    def chord_slopes(a: Tensor, reach: Tensor) -> tuple[Tensor, Tensor]:
        """Return 1 and 1."""
        return torch.ones_like(a), torch.ones_like(a)


class Relu:
    """f(x) = max(x, 0)."""

    function = staticmethod(torch.relu)

    @staticmethod
    def chord_slopes(a: Tensor, reach: Tensor) -> tuple[Tensor, Tensor]:
        """Return [c, 1] where a > 0 and [0, 1 - c] elsewhere, with c = min(1, |a| / rho)."""
        certain = (a.abs() / reach.clamp(min=1e-300)).clamp(max=1)
        on = a > 0
        return torch.where(on, certain, torch.zeros_like(a)), torch.where(on, torch.ones_like(a), 1 - certain)


Shape = Smooth | Identity | Relu

# sup |f''| and the range of f' of each function; the tests check them on a fine grid
SIGMOID = Smooth(torch.sigmoid, 0.0963, 0.0, 0.25)
TANH = Smooth(torch.tanh, 0.7699, 0.0, 1.0)
SOFTPLUS = Smooth(lambda a: torch.logaddexp(a, torch.zeros_like(a)), 0.25, 0.0, 1.0, convex=True)
ELU = Smooth(F.elu, 1.0, 0.0, 1.0, convex=True)
SILU = Smooth(F.silu, 0.5, -0.09985, 1.09985)
GELU = Smooth(F.gelu, 0.7979, -0.12905, 1.12905)
GELU_TANH = Smooth(lambda a: F.gelu(a, approximate="tanh"), 0.7979, -0.1292, 1.1292)
IDENTITY, RELU = Identity(), Relu()


class Term(NamedTuple):
    """One summand w f(c x + d) of an activation."""

    weight: float | Tensor  # w
    shape: Shape  # f
    scale: float = 1.0  # c
    offset: float = 0.0  # d


class Activation(NamedTuple):
    """An elementwise function of which chord slopes are known: a sum of terms plus a constant.

    Attributes
    ----------
    terms : tuple of Term
    constant : float
    least, most : float or Tensor
        Bounds of the derivative; infinite where the terms say enough.
    """

    terms: tuple[Term, ...]
    constant: float = 0.0
    least: float | Tensor = -math.inf
    most: float | Tensor = math.inf

    def value(self, a: Tensor) -> Tensor:
        """Return f(a)."""
        return sum((w * shape.function(c * a + d) for w, shape, c, d in self.terms), torch.full_like(a, self.constant))

    def chord_slopes(self, a: Tensor, reach: Tensor) -> tuple[Tensor, Tensor]:
        """Return the least and the largest (f(a + h) - f(a)) / h over |h| <= reach, each of the shape of ``a``."""
        low, high = torch.zeros_like(a), torch.zeros_like(a)
        for weight, shape, scale, offset in self.terms:
            ends = shape.chord_slopes(scale * a + offset, abs(scale) * reach)
            one, other = (weight * scale * end for end in ends)
            low, high = low + torch.minimum(one, other), high + torch.maximum(one, other)
        least, most = (torch.as_tensor(end).to(a) for end in (self.least, self.most))
        return low.maximum(least), high.minimum(most)


def relu() -> Activation:
    """Return max(x, 0)."""
    return Activation((Term(1.0, RELU),))


def leaky_relu(slope: float | Tensor = 0.01) -> Activation:
    """Return x for x > 0, slope x elsewhere: slope x + (1 - slope) relu(x), whatever the slope."""
    return Activation((Term(slope, IDENTITY), Term(1 - slope, RELU)))


def elu(alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Activation:
    """Return scale x for x > 0, scale alpha (exp(input_scale x) - 1) elsewhere: ELU, SELU and CELU.

    With elu of alpha = 1, which is convex and smooth, this is scale alpha elu(input_scale x) plus a multiple of relu(x)
    that makes the slope for x > 0 right.
    """
    left = scale * alpha * input_scale  # the slope just left of 0
    terms = (Term(scale * alpha, ELU, input_scale), Term(scale - left, RELU))
    return Activation(terms, least=min(0.0, left, scale), most=max(0.0, left, scale))


def softplus(beta: float = 1.0) -> Activation:
    """Return log(1 + exp(beta x)) / beta."""
    return Activation((Term(1 / beta, SOFTPLUS, beta),))


def clamp(low: float, high: float) -> Activation:
    """Return x cut off below and above; either end may be infinite."""
    if low == -math.inf:  # min(x, high) = x - relu(x - high)
        return Activation((Term(1.0, IDENTITY), Term(-1.0, RELU, 1.0, -high)), least=0.0, most=1.0)
    terms = [Term(1.0, RELU, 1.0, -low)]
    if high < math.inf:
        terms.append(Term(-1.0, RELU, 1.0, -high))
    return Activation(tuple(terms), low, 0.0, 1.0)


def hard_sigmoid() -> Activation:
    """Return x / 6 + 1 / 2 cut off at 0 and 1."""
    return Activation((Term(1 / 6, RELU, 1.0, 3.0), Term(-1 / 6, RELU, 1.0, -3.0)), least=0.0, most=1 / 6)


def absolute() -> Activation:
    """Return |x| = 2 relu(x) - x."""
    return Activation((Term(-1.0, IDENTITY), Term(2.0, RELU)))


def smooth(shape: Smooth) -> Activation:
    """Return the activation that is one smooth function."""
    return Activation((Term(1.0, shape),))
