"""One cheap check of a model before it is measured: whether it does what is assumed, and what looks like a mistake.

What is certainly wrong is an error of :func:`vaerobust.contract.check_model`, which every public function begins with.
What is probably wrong is a suspicion of :mod:`vaerobust.suspicions`: a variance taken for sigma, logits taken for
means, pixels in another range than the decoder's. :func:`probe` makes a warning or an error of it, or ignores it.

Here is no conversion of models; that is :func:`vaerobust.measuring.wrap.wrap`. Start reading at :func:`probe`.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from vaerobust import checks
from vaerobust.contract import check_model, decoded, encoded, left_as_it_was
from vaerobust.model import GaussianVAE
from vaerobust.suspicions import SuspicionWarning, suspected

ROWS = 3
"""Rows in which suspicions are looked for."""
REACTIONS = ("raise", "warn", "ignore")


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
    with warnings.catch_warnings():  # the contract's own warnings would say the same
        warnings.simplefilter("ignore", SuspicionWarning)
        check_model(model, x, gradient=("encode", "decode"))
    if suspicions == "ignore":
        return
    with left_as_it_was(model, x), torch.no_grad():
        rows = x[:ROWS].detach()
        mu, sigma = encoded(model, rows)
        found = suspected(model, rows, sigma, decoded(model, mu, rows.shape[1]))
    for message in found:
        if suspicions == "raise":
            raise ValueError(message)
        warnings.warn(message, SuspicionWarning, stacklevel=3)
