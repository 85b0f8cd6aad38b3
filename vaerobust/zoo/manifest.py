"""What the manifest beside a trained model says: how the model was trained, and with which results.

Start at :class:`Manifest`, of which the other classes are parts. All of them only hold values.
:mod:`vaerobust.zoo.training` fills them in, and :mod:`vaerobust.zoo.weights` reads and writes them.
"""

from __future__ import annotations

from dataclasses import dataclass

from vaerobust.zoo.machine import Hardware
from vaerobust.zoo.protocol import Spec


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
    """How a model was trained, and with which results.

    Attributes
    ----------
    spec : Spec
        Everything that the run depended on, beside the images.
    final : FinalTerms
        ELBO and its terms, with the weights before they were rounded to float16.
    data : SplitsUsed
        Images of both splits.
    seconds : float
        Wall time of all training epochs.
    versions : dict
        Versions of Python and of packages, by name.
    hardware : Hardware
    history : tuple of Epoch
        One per epoch, with seven significant digits.
    weights_sha256 : str
        SHA-256 of the file of the weights.
    sha256 : str
        SHA-256 of this manifest, as :mod:`vaerobust.zoo.weights` writes it without this field.
    """

    spec: Spec
    final: FinalTerms
    data: SplitsUsed
    seconds: float
    versions: dict[str, str]
    hardware: Hardware
    history: tuple[Epoch, ...]
    weights_sha256: str
    sha256: str
