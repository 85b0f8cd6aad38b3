"""Trained models on disk: weights as safetensors in float16, and beside them a manifest in JSON.

Start at :func:`pretrained`, which loads a model that ships with the package. :func:`load_model` loads any other one.
What a manifest says is in :mod:`vaerobust.zoo.manifest`, how models are trained in :mod:`vaerobust.zoo.training`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save

from vaerobust.model import VAE
from vaerobust.zoo.files import digest, write_atomically
from vaerobust.zoo.manifest import Manifest
from vaerobust.zoo.protocol import Spec
from vaerobust.zoo.typed_json import from_plain, to_plain

SHIPPED = Path(__file__).parent / "pretrained"
"""The folder of the models that ship with the package."""


@dataclass(frozen=True)
class Trained:
    """A trained model.

    Attributes
    ----------
    vae : VAE
        In float32, with gradients off.
    manifest : Manifest
        How it was trained.
    """

    vae: VAE
    manifest: Manifest


def half_precision_bytes(vae: VAE) -> bytes:
    """Return the weights as a safetensors file in float16, half the size of the float32 that they were trained in."""
    return save({name: value.detach().cpu().half().contiguous() for name, value in vae.state_dict().items()})


def save_model(path: Path, vae: VAE, manifest: Manifest) -> None:
    """Write the weights to ``path`` and the manifest, with the digest of the weights, beside it as .json.

    Each file is written as a whole or not at all.
    """
    content = half_precision_bytes(vae)
    manifest = replace(manifest, weights_sha256=digest(content))
    write_atomically(path, content)
    write_atomically(path.with_suffix(".json"), (json.dumps(to_plain(manifest), indent=1) + "\n").encode())


def load_model(path: str | Path) -> Trained:
    """Load a model that :func:`vaerobust.zoo.training.train` wrote.

    Parameters
    ----------
    path : path
        The .safetensors file; its manifest lies beside it as .json.

    Returns
    -------
    Trained

    Raises
    ------
    FileNotFoundError
        If the weights or the manifest are missing.
    ValueError
        If either is corrupt, or the manifest belongs to other weights.
    """
    path = Path(path)
    try:
        manifest = from_plain(Manifest, json.loads(path.with_suffix(".json").read_text()))
        content = path.read_bytes()
        if digest(content) != manifest.weights_sha256:
            raise ValueError("its SHA-256 is not the one in its manifest")
        weights = load(content)
        vae = manifest.spec.build()
        vae.load_state_dict({name: value.float() for name, value in weights.items()})
    except (ValueError, TypeError, SafetensorError, RuntimeError) as error:
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
        Weight of the KL term: 0.1, 0.5, 1, 2, 5 or 10.
    tau : float
        Offset of the encoder's standard deviation: 0; on MNIST with beta = 1 also 0.1, 0.5 or 1.
    folder : path
        Another folder of models, for example one that ``vaerobust train`` has filled.
    **other : str or int
        Further fields of :class:`vaerobust.zoo.protocol.Spec`, such as ``objective="beta-tc"``,
        ``likelihood="gaussian"`` or ``latents=2``. With these the models of its list ``COMPANIONS`` are found.

    Returns
    -------
    Trained

    Raises
    ------
    ValueError
        If there is no such model; the message lists the models in the folder.
    """
    name = Spec(dataset, beta, tau, **other).name  # type: ignore[arg-type]
    path = Path(folder) / f"{name}.safetensors"
    if not path.exists():
        names = ", ".join(sorted(p.stem for p in Path(folder).glob("*.safetensors"))) or "none"
        raise ValueError(f"no model {path.stem!r} in {folder}; there are: {names}")
    return load_model(path)
