"""Trained models on disk: weights as safetensors in float16, and beside them a manifest in JSON.

Start at :func:`pretrained`, which loads a model that ships with the package. :func:`load_model` loads any other one.
How models are trained is in :mod:`vaerobust.zoo.training`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save

from vaerobust.model import VAE
from vaerobust.zoo.files import digest, write_atomically
from vaerobust.zoo.machine import Hardware
from vaerobust.zoo.protocol import Spec
from vaerobust.zoo.typed_json import from_plain, to_plain

SHIPPED = Path(__file__).parent / "pretrained"
"""The folder of the models that ship with the package."""


@dataclass(frozen=True)
class FinalTerms:
    """The terms of the ELBO at the end of training, in nats per point, not weighted by beta.

    Attributes
    ----------
    train_elbo, train_reconstruction, train_kl : float
        ELBO, its reconstruction term and its KL term: means over the training images, with one sample of z per image.
    test_elbo, test_reconstruction, test_kl : float
        The same over the test images.
    """

    train_elbo: float
    train_reconstruction: float
    train_kl: float
    test_elbo: float
    test_reconstruction: float
    test_kl: float


@dataclass(frozen=True)
class Epoch:
    """One epoch of a training run.

    Attributes
    ----------
    seconds : float
        Wall time of the training steps.
    train_elbo, train_reconstruction, train_kl : float
        In nats per point: means over the epoch's batches, each taken before the batch's step.
    test_elbo, test_reconstruction, test_kl : float
        In nats per point, after the epoch, with one sample of z per image.
    """

    seconds: float
    train_elbo: float
    train_reconstruction: float
    train_kl: float
    test_elbo: float
    test_reconstruction: float
    test_kl: float


@dataclass(frozen=True)
class ImagesUsed:
    """Which images were used.

    Attributes
    ----------
    source : str
        Where the raw files came from, in words.
    images : int
        Number of images.
    sha256 : str
        SHA-256 of their pixels.
    """

    source: str
    images: int
    sha256: str


@dataclass(frozen=True)
class SplitsUsed:
    """The images of a training run: those it was trained on and those it was evaluated on."""

    train: ImagesUsed
    test: ImagesUsed


@dataclass(frozen=True)
class Manifest:
    """How a model was trained, and what came out.

    Attributes
    ----------
    spec : Spec
        Everything that the run depended on, beside the images.
    final : FinalTerms
        ELBO and its terms, of the weights before they were rounded to float16.
    data : SplitsUsed
        Images of both splits.
    seconds : float
        Wall time of all training epochs.
    versions : dict
        Version by name of package, Python among them.
    hardware : Hardware
    history : tuple of Epoch
        One per epoch, with seven significant digits.
    weights_sha256 : str
        SHA-256 of the file of the weights.
    """

    spec: Spec
    final: FinalTerms
    data: SplitsUsed
    seconds: float
    versions: dict[str, str]
    hardware: Hardware
    history: tuple[Epoch, ...]
    weights_sha256: str


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
        If there is no such model; the message lists the models of the folder.
    """
    name = Spec(dataset, beta, tau, **other).name  # type: ignore[arg-type]
    path = Path(folder) / f"{name}.safetensors"
    if not path.exists():
        there = ", ".join(sorted(p.stem for p in Path(folder).glob("*.safetensors"))) or "none"
        raise ValueError(f"no model {path.stem!r} in {folder}; there are: {there}")
    return load_model(path)
