"""What a model or its inputs look like, where that is possible but probably a mistake.

A log-variance or a variance taken for sigma, logits taken for means, pixels in another range than the decoder's: each
suspicion is a sentence that says what was found, what must be, and the way out. :mod:`vaerobust.contract` makes a
:class:`SuspicionWarning` of it, once per model, and :func:`vaerobust.measuring.probe.probe` an error. To overrule a
suspicion, call that function first, with ``suspicions="ignore"``.

Start reading at :func:`suspected`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vaerobust.numerics import tolerance

if TYPE_CHECKING:
    from vaerobust.model import GaussianVAE

OUTSIDE = 0.25
"""How far outputs must leave the range [0, 1] of the pixels before they are suspected to be no pixels."""
BRIGHT = 2.0
"""Above it, inputs look like pixels in [0, 255]."""


class SuspicionWarning(UserWarning):
    """What was passed is possible, but looks like a common mistake."""


def suspected(model: GaussianVAE, rows: Tensor, sigma: Tensor, out: Tensor) -> list[str]:
    """Return in words what is probably a mistake.

    Parameters
    ----------
    model : GaussianVAE
    rows : Tensor, shape (n, d_x)
        A few inputs.
    sigma : Tensor, shape (n, d_z)
        What ``encode`` returns for them.
    out : Tensor, shape (n, d_x)
        The reconstructions of their means.

    Returns
    -------
    list of str
    """
    return [*suspicious_scale(model, rows, sigma), *suspicious_range(model, rows, out)]


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


def suspicious_scale(model: GaussianVAE, rows: Tensor, sigma: Tensor) -> Iterator[str]:
    """Yield whether sigma is the bare output of a layer for log-variances, or the exponential of one."""
    for name, output in outputs_of_layers(model, rows).items():
        if output.numel() != sigma.numel() or not re.search("log.?(var|cov)", name, re.IGNORECASE):
            continue
        output = output.reshape(sigma.shape)
        for scale, value in (("log_variance", output), ("variance", output.exp())):
            if torch.allclose(value, sigma, rtol=tolerance(rows.dtype)):
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
    elif least >= 0 and most <= 1 and high > BRIGHT and low >= 0:
        yield f"x ranges over [{low:.3g}, {high:.4g}], while decode's outputs lie in [0, 1]: divide x by 255?"
    elif least >= 0 and most <= 1 and -1 <= low < -OUTSIDE and high <= 1:
        yield (
            f"x ranges over [{low:.3g}, {high:.3g}], while decode's outputs lie in [0, 1]: pass x in [0, 1], and where "
            "encode takes normalised inputs, "
            'use vaerobust.wrap(model, shape=..., normalise=(0.5, 0.5), outputs="pixels")'
        )
