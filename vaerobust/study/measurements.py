"""How each kind of summary is measured, and of which models.

Start at :data:`MEASUREMENTS`: for each kind of summary it names the models that have one and the function that measures
it. Those functions are put together from :func:`margins` and :func:`damage`, which chapters call too, and from the
functions of :mod:`vaerobust.certify`. What a summary holds is in :mod:`vaerobust.study.records`.

All models are measured with the same noise. The choice of r, the tests of r-robustness, attacks and likelihoods each
have a seed of their own, so none of them uses the samples of another.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from vaerobust.attacks import AttackSettings, maximum_damage
from vaerobust.batches import slices
from vaerobust.bounds import theorem_1_quotient
from vaerobust.certify.both_sides import BothSides, both_sides
from vaerobust.certify.curves import Curves, curves
from vaerobust.contract import check_model, rows_at_once
from vaerobust.criterion import distance_quantile, probability_of_robustness
from vaerobust.distance import distances
from vaerobust.jacobians import jacobian_norms
from vaerobust.likelihood import log_likelihood
from vaerobust.margins import MarginSearch, attack_margin
from vaerobust.model import GaussianVAE, LikelihoodVAE
from vaerobust.random_direction import RandomSearch, random_direction_radius
from vaerobust.randomness import as_generator, normal
from vaerobust.study.choices import CHOICES, DEFAULT, FIXED_R, Choice
from vaerobust.study.encoder import EncoderStatistics, encoder_statistics
from vaerobust.study.records import (
    AttackSummary,
    BothSidesSummary,
    ChoicesSummary,
    CurvesSummary,
    Damage,
    EncoderSummary,
    Likelihood,
    Margins,
    MarginsAndRandomDirections,
    ModelSummary,
    Provenance,
    Spread,
    Summary,
)
from vaerobust.zoo.data import Images
from vaerobust.zoo.machine import Hardware, hardware, versions
from vaerobust.zoo.protocol import COMPANIONS, GRID, SUMMARISED, Spec
from vaerobust.zoo.training import images_used
from vaerobust.zoo.weights import Trained

R_SEED = 1
"""Seed of the samples from which r is chosen."""
TEST_SEED = 2
"""Seed of the samples from which P(D(x) <= r) is estimated."""
ATTACK_SEED = 3
"""Seed of the attacks on the likelihood."""
LIKELIHOOD_SEED = 4
"""Seed of the embeddings under which an image's likelihood is taken."""
OTHER_IMAGE_SEED = 5
"""Seed of the embeddings of other images."""
MARGIN_SEED = 100
"""Seed of the search for the attack margin."""
RANDOM_DIRECTION_SEED = 200
"""Seed of the search for the random-direction radius."""

FEW_IMAGES_NORMS = (1.0, 4.0)
"""Norms L of the attacks on the likelihood of the first images, in pixels."""
ALL_IMAGES_NORMS = (1.0, 2.0, 4.0, 10.0)
"""Norms L of the attacks on the likelihood of all test images, in pixels; they span Figs. 5 (c) and 7 (b)."""
FEW_IMAGES_ATTACK = AttackSettings(steps=40, restarts=2, samples=8, choosing_samples=64)
"""Attack settings where a few images are attacked."""
ALL_IMAGES_ATTACK = AttackSettings(steps=14, restarts=2, samples=4, choosing_samples=4)
"""Attack settings where all 10,000 test images are attacked: about five times faster, for somewhat less damage."""
RADII_OF_CURVES = (0.005, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1.0)
"""Norms R of perturbations, in pixels, for which the least r is enclosed."""

MARGIN_IMAGES = 50
"""Number of first test images whose margins are in a model's main summary."""
DAMAGE_IMAGES = 200
"""Number of first test images whose likelihood under attack is in a model's main summary."""
FIRST_IMAGES = 100
"""Number of first test images whose damage is also stored on its own, where all images are attacked."""
CONFIDENCE = 0.999
"""Confidence of each certificate, and of each attack's test where margins are enclosed from both sides."""
BOTH_SIDES_IMAGES = 100
"""Number of first test images whose margins, and whose least r, are enclosed from both sides."""
BLOCK = 100
"""Images that are measured together in these, and so lost together where a worker dies."""
KEPT_PERTURBATIONS = 10
"""Number of first test images for which the attacks' perturbations are stored."""


def spread(values: Tensor) -> Spread:
    """Return mean and standard deviation over images of ``values``, shape (n,)."""
    return Spread(float(values.mean()), float(values.std()))


def encoder_summary(statistics: EncoderStatistics) -> EncoderSummary:
    """Return mean and standard deviation over images of an encoder's statistics."""
    return EncoderSummary(
        sigma=spread(statistics.sigma),
        active_sigma=spread(statistics.active_sigma),
        min_sigma=spread(statistics.min_sigma),
        frobenius=spread(statistics.frobenius),
        spectral=spread(statistics.spectral),
        theorem_1=spread(statistics.theorem_1),
        active_latents=statistics.active_latents,
    )


def margins(vae: GaussianVAE, x: Tensor, choice: Choice = DEFAULT) -> Margins:
    """Return Theorem 1's bound and the attack margin of some images, under one choice of measurement.

    Parameters
    ----------
    vae : GaussianVAE
    x : Tensor, shape (n, d_x)
    choice : Choice

    Returns
    -------
    Margins
    """
    samples, reference = choice.samples, choice.reference
    if choice.r is None:
        unperturbed = distances(vae, x, samples=samples, reference=reference, seed=R_SEED)
        r = distance_quantile(unperturbed, choice.level).value
    else:
        r = torch.full((len(x),), choice.r)
    unperturbed = distances(vae, x, samples=samples, reference=reference, seed=TEST_SEED)
    p = probability_of_robustness(unperturbed, r)
    # Theorem 1 is taken at the lower limit of p: an estimate of 1 would make the bound infinite.
    bound = theorem_1_quotient(vae.encode(x)[1], jacobian_norms(vae, x).frobenius, p.low)
    search = MarginSearch(judging_samples=samples, reference=reference)
    attack = attack_margin(vae, x, r, attack=choice.attack, search=search, seed=MARGIN_SEED)
    return Margins(
        r=r,
        probability=torch.as_tensor(p.probability),
        theorem_1=bound,
        attack=attack.radius,
        censored=attack.censored,
        confirmed=torch.as_tensor(attack.confirmed),
    )


def margins_and_random_directions(vae: GaussianVAE, x: Tensor, choice: Choice) -> MarginsAndRandomDirections:
    """Return what :func:`margins` does, and the random-direction radius for the same r."""
    found = margins(vae, x, choice)
    search = RandomSearch(samples=200, grid=10, tolerance=0.05, perturb_sigma=choice.attack.perturb_sigma)
    random = random_direction_radius(vae, x, found.r, search, seed=RANDOM_DIRECTION_SEED)
    return MarginsAndRandomDirections(
        **{field.name: getattr(found, field.name) for field in fields(found)},
        random_direction=random.radius,
        random_direction_censored=torch.as_tensor(random.censored),
    )


def log_likelihood_with_own_noise(vae: LikelihoodVAE, x: Tensor, delta: Tensor, *, draws: int = 8) -> Tensor:
    """Estimate E_eta log p(x | z*) at each image, with noise of its own for each image.

    With common noise (:func:`vaerobust.likelihood.log_likelihood`) an average over images keeps the noise of one image.
    Here the noise averages out over images as well, so few draws per image suffice.

    Parameters
    ----------
    vae : LikelihoodVAE
    x, delta : Tensor, shape (n, d_x)
        Images, and their perturbations.
    draws : int
        Draws of eta per image.

    Returns
    -------
    Tensor, shape (n,)
        In nats, summed over pixels.
    """
    mu, sigma = vae.encode(x + delta)
    generator = torch.Generator().manual_seed(LIKELIHOOD_SEED)
    eta = torch.randn(len(x), draws, mu.shape[1], generator=generator, dtype=x.dtype)
    z = mu[:, None] + sigma[:, None] * eta  # (n, draws, d_z)
    check_model(vae, x)
    size = max(1, rows_at_once(vae, x) // draws)  # images at a time
    return torch.cat([vae.log_likelihood(x[i, None], z[i]).mean(1) for i in slices(len(x), size)])


def damage(
    vae: LikelihoodVAE,
    x: Tensor,
    norms: tuple[float, ...] = FEW_IMAGES_NORMS,
    settings: AttackSettings = FEW_IMAGES_ATTACK,
    *,
    own_noise: bool = False,
) -> Damage:
    """Measure the log-likelihood log p(x | z*) under maximum-damage attacks of several norms (Figs. 5 and 7).

    Parameters
    ----------
    vae : LikelihoodVAE
    x : Tensor, shape (n, d_x)
    norms : tuple of float
        Norms L of the attacks, in pixels.
    settings : AttackSettings
        Settings of each attack.
    own_noise : bool
        If true, each image has noise of its own, as in :func:`log_likelihood_with_own_noise`. If false, all images
        share 32 draws.

    Returns
    -------
    Damage
    """

    def score(delta: Tensor) -> Tensor:
        if own_noise:
            return log_likelihood_with_own_noise(vae, x, delta)
        return log_likelihood(vae, x, delta, samples=32, seed=LIKELIHOOD_SEED)

    def outcome(norm: float, scores: Tensor) -> Likelihood:
        return Likelihood(norm, float(scores.mean()), float(scores.std()), float((clean - scores).std()))

    clean = score(torch.zeros_like(x))
    # The yardstick: each image under a sample of the embedding of the image before it.
    mu, sigma = vae.encode(x.roll(1, 0))
    other_image = vae.log_likelihood(x, mu + sigma * normal(len(mu), mu, as_generator(OTHER_IMAGE_SEED, mu))).mean()
    attacked = [outcome(0.0, clean)]
    for norm in norms:
        delta = maximum_damage(vae, x, norm, settings, seed=ATTACK_SEED).delta
        attacked.append(outcome(norm, score(delta)))
    return Damage(len(x), float(other_image), tuple(attacked))


def measure_model(trained: Trained, images: Images) -> ModelSummary:
    """Measure the main quantities of a model: the encoder on all images, margins and damage on the first ones."""
    start, vae, x = time.perf_counter(), trained.vae, images.pixels
    encoder = encoder_summary(encoder_statistics(vae, x))
    own, fixed = (margins(vae, x[:MARGIN_IMAGES], choice) for choice in (DEFAULT, FIXED_R))
    damaged = damage(vae, x[:DAMAGE_IMAGES])
    return ModelSummary(provenance(trained, images, start), encoder, own, fixed, damaged)


def measure_choices(trained: Trained, images: Images) -> ChoicesSummary:
    """Measure margins and random-direction radii of the first images under every choice."""
    start, vae = time.perf_counter(), trained.vae
    measured = {
        choice.name: margins_and_random_directions(vae, images.pixels[: choice.images], choice) for choice in CHOICES
    }
    return ChoicesSummary(provenance(trained, images, start), measured)


def measure_attacks(trained: Trained, images: Images) -> AttackSummary:
    """Measure the damage of a fast attack on all images, and on the first images alone."""
    start, x = time.perf_counter(), images.pixels
    all_images, first_images = (
        damage(trained.vae, some, ALL_IMAGES_NORMS, ALL_IMAGES_ATTACK, own_noise=True) for some in (x, x[:FIRST_IMAGES])
    )
    return AttackSummary(provenance(trained, images, start), all_images, first_images, ALL_IMAGES_ATTACK)


def both_sides_block(vae: GaussianVAE, x: Tensor) -> dict[str, Tensor]:
    """Enclose the margins of some images from both sides; keep the perturbations of a few of them.

    The perturbations are in half precision, to keep the files small.
    """
    found = both_sides(vae, x, confidence=CONFIDENCE)
    blocks: dict[str, Tensor] = {}
    for part, bounds in (("own", found.own), ("fixed", found.fixed)):
        few = replace(bounds, delta=bounds.delta[:KEPT_PERTURBATIONS].half())
        blocks |= {f"{part}.{field.name}": getattr(few, field.name) for field in fields(few)}
    return blocks


def both_sides_summary(provenance: Provenance, blocks: list[dict[str, Tensor]]) -> BothSidesSummary:
    """Return the summary of blocks in order."""
    parts = {}
    for part in ("own", "fixed"):
        names = [field.name for field in fields(BothSides)]
        joined = {name: torch.cat([block[f"{part}.{name}"] for block in blocks]) for name in names}
        parts[part] = BothSides(**joined | {"delta": joined["delta"][:KEPT_PERTURBATIONS]})
    return BothSidesSummary(provenance, CONFIDENCE, **parts)


def curves_block(vae: GaussianVAE, x: Tensor) -> dict[str, Tensor]:
    """Enclose the least r of some images for perturbations of each norm."""
    found = curves(vae, x, RADII_OF_CURVES, confidence=CONFIDENCE)
    return {"radii": found.radii, "certified": found.certified, "broken": found.broken}


def curves_summary(provenance: Provenance, blocks: list[dict[str, Tensor]]) -> CurvesSummary:
    """Return the summary of blocks in order."""
    certified, broken = (torch.cat([block[name] for block in blocks], dim=1) for name in ("certified", "broken"))
    return CurvesSummary(provenance, Curves(blocks[0]["radii"], certified, broken, CONFIDENCE))


def provenance(trained: Trained, images: Images, start: float) -> Provenance:
    """Return what was measured and on what machine. ``start`` is the ``time.perf_counter`` when it began."""
    return provenance_of(trained, images, time.perf_counter() - start, hardware())


def provenance_of(trained: Trained, images: Images, seconds: float, machine: Hardware) -> Provenance:
    """Return what was measured, how long it took, and on what machine."""
    return Provenance(
        spec=trained.manifest.spec,
        final=trained.manifest.final,
        weights_sha256=trained.manifest.weights_sha256,
        data=images_used(images),
        seconds=seconds,
        versions=versions("torch", "numpy", "scipy"),
        hardware=machine,
    )


@dataclass(frozen=True)
class Blocks:
    """How a measurement is cut into blocks of images, and put together again.

    Attributes
    ----------
    images : int
        Number of first test images that are measured.
    measure : callable
        Maps a model and the images of a block, shape (n, d_x), to tensors by name.
    joined : callable
        Maps the provenance and the tensors of all blocks, in order, to the summary.
    size : int
        Images that are measured together. The attack's last digits depend on it.
    """

    images: int
    measure: Callable[[GaussianVAE, Tensor], dict[str, Tensor]]
    joined: Callable[[Provenance, list[dict[str, Tensor]]], Summary]
    size: int = BLOCK


@dataclass(frozen=True)
class Measurement:
    """One kind of summary, how it is measured, and of which models.

    Attributes
    ----------
    kind : type
        A subclass of :class:`vaerobust.study.records.Summary`.
    specs : tuple of Spec
        The models that have such a summary.
    measure : callable or Blocks
        Maps a model and test images to the summary; or how its blocks are measured, each of them a shard.
    """

    kind: type[Summary]
    specs: tuple[Spec, ...]
    measure: Callable[[Trained, Images], Any] | Blocks


CHOICES_MODELS = tuple(Spec("mnist", beta) for beta in (0.1, 1.0, 5.0))
"""The models whose margins are measured under every choice."""
ATTACKED_MODELS = tuple(
    spec
    for spec in (*GRID, *COMPANIONS)
    if (spec.dataset, spec.likelihood, spec.latents) == ("mnist", "bernoulli", Spec.latents)
)
"""The models of Figs. 5 (c) and 7 (b), and the beta-TC-VAE on MNIST."""
MEASUREMENTS = (
    Measurement(ModelSummary, SUMMARISED, measure_model),
    Measurement(ChoicesSummary, CHOICES_MODELS, measure_choices),
    Measurement(AttackSummary, ATTACKED_MODELS, measure_attacks),
    Measurement(BothSidesSummary, GRID, Blocks(BOTH_SIDES_IMAGES, both_sides_block, both_sides_summary)),
    Measurement(CurvesSummary, GRID, Blocks(BOTH_SIDES_IMAGES, curves_block, curves_summary)),
)
"""All measurements, in the order in which they are made."""
