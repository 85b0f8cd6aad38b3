"""What a summary of a model holds: one frozen dataclass for each kind of summary.

There are five kinds:

- :class:`ModelSummary`: the main quantities of a model;
- :class:`ChoicesSummary`: its margins under other choices of measurement;
- :class:`AttackSummary`: the damage to the likelihood of every test image;
- :class:`BothSidesSummary`: every bound on the margins of some images;
- :class:`CurvesSummary`: the least r with which a point is r-robust, for perturbations of each norm.

Each has a field ``provenance``: what was measured, and on what.

These classes only hold numbers. Summaries are read by :func:`vaerobust.study.summaries.load` and measured by
:mod:`vaerobust.study.measurements`. The names of the fields are also the keys of the stored files. Tensors of numbers
have double precision when they are read, so that they hold the numbers of the file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vaerobust.attacks import AttackSettings
from vaerobust.certify.both_sides import BothSides
from vaerobust.certify.curves import Curves
from vaerobust.results import Result
from vaerobust.zoo.machine import Hardware
from vaerobust.zoo.manifest import FinalTerms, ImagesUsed
from vaerobust.zoo.protocol import Spec


@dataclass(frozen=True)
class Provenance:
    """What was measured, on what, and for how long.

    Attributes
    ----------
    spec : Spec
        The model's training run.
    final : FinalTerms
        The model's ELBO at the end of training, from its manifest.
    weights_sha256 : str
        SHA-256 of the file of its weights.
    data : ImagesUsed
        The test images. Most measurements use only the first of them.
    seconds : float
        Wall time of the measurement.
    versions : dict
        Versions of Python and of packages, by name.
    hardware : Hardware
    """

    spec: Spec
    final: FinalTerms
    weights_sha256: str
    data: ImagesUsed
    seconds: float
    versions: dict[str, str]
    hardware: Hardware


@dataclass(frozen=True)
class Summary:
    """Base of all kinds of summary.

    Attributes
    ----------
    provenance : Provenance
    """

    kind: ClassVar[str]
    """Part of the file's name that tells the kinds of summary of a model apart."""

    provenance: Provenance


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation over images.

    Attributes
    ----------
    mean, std : float
    """

    mean: float
    std: float


@dataclass(frozen=True)
class EncoderSummary:
    """Mean and standard deviation over images of each of :class:`vaerobust.study.encoder.EncoderStatistics`.

    Attributes
    ----------
    sigma, active_sigma, min_sigma, frobenius, spectral, theorem_1 : Spread
    active_latents : int
        Number of active latents.
    """

    sigma: Spread
    active_sigma: Spread
    min_sigma: Spread
    frobenius: Spread
    spectral: Spread
    theorem_1: Spread
    active_latents: int


@dataclass(frozen=True, eq=False)
class Margins(Result):
    """Bound and attack margin of some images, one entry per image.

    Attributes
    ----------
    r : Tensor, shape (n,)
        The r of the criterion, in pixels.
    probability : Tensor, shape (n,)
        Estimate of P(D(x) <= r), from samples that had no part in the choice of r.
    theorem_1 : Tensor, shape (n,)
        Theorem 1's bound in pixels, at the lower confidence limit of that probability.
    attack : Tensor, shape (n,)
        Attack margin in pixels, an upper bound on the margin.
    censored : Tensor of bool, shape (n,)
        True where no attack up to the search's limit succeeded.
    confirmed : Tensor of bool, shape (n,)
        True where fresh samples confirm that the attack breaks r-robustness.
    """

    r: Tensor
    probability: Tensor
    theorem_1: Tensor
    attack: Tensor
    censored: Tensor
    confirmed: Tensor


@dataclass(frozen=True, eq=False)
class MarginsAndRandomDirections(Margins):
    """Bound, attack margin and random-direction radius of some images, one entry per image.

    Attributes
    ----------
    random_direction : Tensor, shape (n,)
        Random-direction radius in pixels.
    random_direction_censored : Tensor of bool, shape (n,)
        True where the search for this radius met its limit.
    """

    random_direction: Tensor
    random_direction_censored: Tensor


@dataclass(frozen=True)
class Likelihood:
    """The log-likelihood log p(x | z*) of images x, where z* is an embedding of the attacked image.

    Attributes
    ----------
    norm : float
        Largest norm L of the attack, in pixels; 0 for no attack.
    mean, std : float
        Mean and standard deviation over images, in nats.
    loss_std : float
        Standard deviation over images of the loss, log p(x | z*) without an attack minus log p(x | z*) under it.
    """

    norm: float
    mean: float
    std: float
    loss_std: float


@dataclass(frozen=True)
class Damage:
    """What attacks of several norms do to the log-likelihood of images.

    Attributes
    ----------
    images : int
        Number of images.
    other_image : float
        Mean log-likelihood of each image under the embedding of another test image, in nats, for comparison.
    attacked : tuple of Likelihood
        One per norm, beginning with 0.
    """

    images: int
    other_image: float
    attacked: tuple[Likelihood, ...]

    def at(self, norm: float) -> Likelihood:
        """Return the log-likelihood under attacks of a norm; 0 is no attack.

        Raises
        ------
        ValueError
            If no attacks of that norm were made; the message lists the norms.
        """
        for one in self.attacked:
            if one.norm == norm:
                return one
        raise ValueError(f"norm must be one of {[one.norm for one in self.attacked]}, but is {norm}")

    @property
    def clean(self) -> Likelihood:
        """The log-likelihood without an attack."""
        return self.at(0.0)


@dataclass(frozen=True)
class ModelSummary(Summary):
    """The main quantities of one model.

    Attributes
    ----------
    provenance : Provenance
    encoder : EncoderSummary
        Statistics of the encoder over all test images.
    own : Margins
        Margins of the first images, where r is the 0.9-quantile of each image's own D(x).
    fixed : Margins
        Margins of the same images, where r = 4.
    damage : Damage
        Damage to the likelihood of the first images.
    """

    kind: ClassVar[str] = ""

    encoder: EncoderSummary
    own: Margins
    fixed: Margins
    damage: Damage


@dataclass(frozen=True)
class ChoicesSummary(Summary):
    """Margins of the first images under each choice of :data:`vaerobust.study.choices.CHOICES`.

    Attributes
    ----------
    provenance : Provenance
    choices : dict of MarginsAndRandomDirections
        By the name of the choice.
    """

    kind: ClassVar[str] = "choices"

    choices: dict[str, MarginsAndRandomDirections]


@dataclass(frozen=True)
class AttackSummary(Summary):
    """Damage to the likelihood of every test image.

    Attributes
    ----------
    provenance : Provenance
    all_images : Damage
    first_images : Damage
        The same for the first images alone, which a reader can measure again in seconds.
    settings : AttackSettings
        Settings of the attack.
    """

    kind: ClassVar[str] = "attack"

    all_images: Damage
    first_images: Damage
    settings: AttackSettings


@dataclass(frozen=True)
class BothSidesSummary(Summary):
    """Every bound on the margins of the first images, from below and from above.

    Attributes
    ----------
    provenance : Provenance
    confidence : float
        Confidence of each certificate and of each attack's test, for each image by itself.
    own : BothSides
        Bounds where r is the 0.9-quantile of each image's own D(x). Only the first rows of ``delta`` are stored, in
        half precision.
    fixed : BothSides
        Bounds where r = 4, stored in the same way.
    """

    kind: ClassVar[str] = "both_sides"

    confidence: float
    own: BothSides
    fixed: BothSides


@dataclass(frozen=True)
class CurvesSummary(Summary):
    """The least r for perturbations of each norm, enclosed from both sides, for the first images.

    Attributes
    ----------
    provenance : Provenance
    curves : Curves
        The norms R of the perturbations in pixels, and both ends of the least r for each of them.
    """

    kind: ClassVar[str] = "curves"

    curves: Curves
