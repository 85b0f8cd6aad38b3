"""Trained models on disk: weights as safetensors in float16, and beside them a manifest in JSON.

Start at :func:`pretrained`, which loads a model that ships with the package. :func:`load_model` loads any other one.
What a manifest says is in :mod:`vaerobust.zoo.manifest`, how models are trained in :mod:`vaerobust.zoo.training`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from vaerobust.model import VAE
from vaerobust.zoo.convolutional import ConvolutionalVAE
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
    vae : VAE or ConvolutionalVAE
        In float32 and in evaluation mode, with gradients off.
    manifest : Manifest
        How it was trained.
    """

    vae: VAE | ConvolutionalVAE
    manifest: Manifest


def half_precision_bytes(vae: nn.Module) -> bytes:
    """Return the weights as a safetensors file in float16, half the size of the float32 that they were trained in.

    The statistics of batch normalisation are among them. Whole numbers, its counts of batches, stay whole numbers.
    """
    state = {name: value.detach().cpu().contiguous() for name, value in vae.state_dict().items()}
    return save({name: value.half() if value.is_floating_point() else value for name, value in state.items()})


def save_model(path: Path, vae: nn.Module, manifest: Manifest) -> None:
    """Write the weights to ``path``, and beside it as .json the manifest with the digests of the weights and of itself.

    Each file is written as a whole or not at all.
    """
    content = half_precision_bytes(vae)
    write_atomically(path, content)
    record = to_plain(replace(manifest, weights_sha256=digest(content)))
    write_atomically(path.with_suffix(".json"), manifest_bytes(record))


def manifest_bytes(manifest: dict[str, Any]) -> bytes:
    """Return the file of a manifest's fields, with its digest, which covers everything but the digest itself."""
    blank = _text(manifest | {"sha256": ""})
    return _text(manifest | {"sha256": digest(blank)})


def _text(plain: dict[str, Any]) -> bytes:
    return (json.dumps(plain, indent=1) + "\n").encode()


def read_manifest(content: bytes) -> Manifest:
    """Return the manifest in a file.

    Raises
    ------
    ValueError
        If one byte is not as it was written.
    """
    plain = json.loads(content)
    manifest = from_plain(Manifest, plain)
    if manifest_bytes(plain) != content:  # of the file's own fields, since later versions may have more
        raise ValueError("the manifest's SHA-256 is not the one in it")
    return manifest


def load_model(path: str | Path, spec: Spec | None = None) -> Trained:
    """Load a model that :func:`vaerobust.zoo.training.train` wrote.

    Parameters
    ----------
    path : path
        The .safetensors file; its manifest lies beside it as .json.
    spec : Spec, optional
        What the model must be. A model of any other training run is an error.

    Returns
    -------
    Trained

    Raises
    ------
    FileNotFoundError
        If the weights or the manifest are missing.
    ValueError
        If either is corrupt, the manifest belongs to other weights, or the model is another one than ``spec``.
    """
    path = Path(path)
    try:
        manifest = read_manifest(path.with_suffix(".json").read_bytes())
        content = path.read_bytes()
        if digest(content) != manifest.weights_sha256:
            raise ValueError("its SHA-256 is not the one in its manifest")
        weights = load(content)
        vae = manifest.spec.build()
        vae.load_state_dict(weights)  # copies into float32
    except (ValueError, TypeError, SafetensorError, RuntimeError) as error:
        raise ValueError(f"model {path} is corrupt ({type(error).__name__}: {error})") from error
    if spec is not None and manifest.spec != spec:
        raise ValueError(f"{path.with_suffix('.json')} is of another run; choose another folder or delete it")
    return Trained(vae.eval().requires_grad_(False), manifest)


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
        ``likelihood="gaussian"`` or ``latents=2``. With these the models of its list ``COMPANIONS`` are found, and with
        ``architecture="convolutional"`` that of ``CONVOLUTIONAL``.

    Returns
    -------
    Trained

    Raises
    ------
    ValueError
        If there is no such model, and the message lists the models in the folder; or if the file of that name holds
        another one.
    """
    name = Spec(dataset, beta, tau, **other).name  # type: ignore[arg-type]
    path = Path(folder) / f"{name}.safetensors"
    if not path.exists():
        names = ", ".join(sorted(p.stem for p in Path(folder).glob("*.safetensors"))) or "none"
        raise ValueError(f"no model {path.stem!r} in {folder}; there are: {names}")
    trained = load_model(path)
    if trained.manifest.spec.name != name:
        raise ValueError(f"{path} must be the model {name}, but its manifest says {trained.manifest.spec.name}")
    return trained
