"""Trained models on disk: safetensors in float16, with a JSON manifest beside each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load, save

from vaerobust.files import digest, write_atomically
from vaerobust.model import VAE
from vaerobust.zoo.protocol import Spec

SHIPPED = Path(__file__).parent / "pretrained"
Manifest = dict[str, Any]


class Trained(NamedTuple):
    """A trained model and what is known of how it came about."""

    vae: VAE
    manifest: Manifest


def half_precision_bytes(vae: VAE) -> bytes:
    """Return the weights as safetensors in float16, half the size of what they were trained in."""
    return save({name: value.detach().cpu().half().contiguous() for name, value in vae.state_dict().items()})


def save_model(path: Path, vae: VAE, manifest: Manifest) -> None:
    """Write ``path`` (weights) and its .json (manifest, with their digest), each whole or not at all."""
    content = half_precision_bytes(vae)
    manifest = manifest | {"weights_sha256": digest(content)}
    write_atomically(path, content)
    write_atomically(path.with_suffix(".json"), (json.dumps(manifest, indent=1) + "\n").encode())


def load_model(path: str | Path) -> Trained:
    """Load a model that :func:`vaerobust.zoo.training.train` wrote.

    Parameters
    ----------
    path : path
        The .safetensors file; its manifest lies beside it.

    Returns
    -------
    Trained
        The model, in float32 and with gradients off, and its manifest.

    Raises
    ------
    FileNotFoundError
        If weights or manifest are missing.
    ValueError
        If either is corrupt, or the weights are not those of the manifest.
    """
    path = Path(path)
    try:
        manifest = json.loads(path.with_suffix(".json").read_text())
        spec = manifest["spec"]  # fields that came later have their defaults
        content = path.read_bytes()
        if digest(content) != manifest["weights_sha256"]:
            raise ValueError("its SHA-256 is not the one in its manifest")
        weights = load(content)
        vae = Spec(**spec).build()
        vae.load_state_dict({name: value.float() for name, value in weights.items()})
    except (ValueError, KeyError, TypeError, SafetensorError, RuntimeError) as error:
        raise ValueError(f"model {path} is corrupt ({type(error).__name__}: {error})") from error
    return Trained(vae.requires_grad_(False), manifest)


def pretrained(
    dataset: str, beta: float = 1.0, tau: float = 0.0, *, folder: str | Path = SHIPPED, **other: str | int
) -> Trained:
    """Load one of the models that ship with the package.

    Parameters
    ----------
    dataset : {'mnist', 'fashion-mnist'}
    beta : float
        0.1, 0.5, 1, 2, 5 or 10.
    tau : float
        0; or 0.1, 0.5 or 1 on MNIST with beta = 1.
    folder : path
        Another folder of models, such as your own from ``make train``.
    **other : str or int
        Further fields of :class:`vaerobust.zoo.protocol.Spec`, such as ``objective="beta-tc"``,
        ``likelihood="gaussian"`` or ``latents=2``, for those of its ``COMPANIONS``.

    Returns
    -------
    Trained

    Raises
    ------
    ValueError
        If there is no such model; the message lists those there are.
    """
    name = Spec(dataset, beta, tau, **other).name  # type: ignore[arg-type]
    path = Path(folder) / f"{name}.safetensors"
    if not path.exists():
        there = ", ".join(sorted(p.stem for p in Path(folder).glob("*.safetensors"))) or "none"
        raise ValueError(f"no model {path.stem!r} in {folder}; there are: {there}")
    return load_model(path)
