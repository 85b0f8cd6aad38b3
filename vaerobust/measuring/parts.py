"""What is measured at a few images: every bound that can be had, and why the others cannot.

The measurements and their random numbers are those of :func:`vaerobust.certify.both_sides.both_sides`. Unlike there, a
bound that cannot be computed for a model does not stop the others. Start reading at :func:`measured_part`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from vaerobust import checks
from vaerobust.attacks import AttackSettings
from vaerobust.bounds import first_order_radii
from vaerobust.certify.both_sides import RANDOM_SEARCH
from vaerobust.certify.certificates import certify
from vaerobust.certify.curves import broken_r, curves
from vaerobust.certify.failures import Failures, failures, mass_limit
from vaerobust.certify.network import encoder_mean
from vaerobust.criterion import distance_quantile, probability_of_robustness
from vaerobust.distance import distances
from vaerobust.linearised import LinearisedRadii, linearised_radii
from vaerobust.margins import STRONGEST_SEARCH, MarginSearch, attack_margin, strongest_attack
from vaerobust.model import GaussianVAE
from vaerobust.random_direction import random_direction_radius

SAMPLES = 50_000
"""Draws behind each certificate of a model whose decoder is cheap."""
WIDEST = 512
"""Latents above which nothing is certified: the moments of failure are matrices of that width."""
CURVE_IMAGES = 3
"""Images whose curve of r over R is drawn: the least robust, the most robust and the one in the middle."""
CURVE_CERTIFIED, CURVE_ATTACKED = (0.25, 0.5, 0.75, 1.0), (0.5, 1.0, 1.5)
"""Norms R on each curve, in median certified margins and in median attack margins."""
CURVE_SHARE = 0.4
"""Share of the samples that the curves get."""
FAILS = (RuntimeError, ValueError, TypeError, NotImplementedError)
"""Errors that a measurement may raise if it cannot be made of a model."""
FAILED = "the shard failed: "
"""How the reason begins where a whole part failed."""
WEIGHT = {"r": 1, "p_low": 10, "theorem_1": 1, "certified": 6, "second_moment": 2, "attack": 8, "random_direction": 1}
"""Rough shares of the time, for the progress bar."""


@dataclass(frozen=True)
class Settings:
    """What the numbers of a report depend on, beside model and images.

    Attributes
    ----------
    level : float
        r is this quantile of each image's own D(x), in (0, 1); not used where ``r`` is given.
    r : float, optional
        One r for all images, >= 0, in input units.
    confidence : float
        Of each certificate and of each attack, for each image by itself, in (0, 1).
    samples : int
        Draws behind each certificate.
    seed : int
    threads : int
        Threads that each part is computed on: with another number, sums are rounded in another order.
    """

    level: float = 0.9
    r: float | None = None
    confidence: float = 0.999
    samples: int = 50_000
    seed: int = 0
    threads: int = 1

    def __post_init__(self) -> None:
        checks.probability("level", self.level)
        checks.probability("confidence", self.confidence)
        checks.count("samples", self.samples)
        checks.count("threads", self.threads)
        if self.r is not None:
            checks.positive("r", self.r, zero=True)

    @property
    def r_samples(self) -> int:
        """Draws from which each image's own r is estimated."""
        return self._share(4000)

    @property
    def search(self) -> MarginSearch:
        """Settings of the search for the attack margin."""
        return replace(
            STRONGEST_SEARCH, confidence=self.confidence, judging_samples=self._share(2000),
            final_samples=self._share(10_000),
        )  # fmt: skip

    def _share(self, most: int) -> int:
        """Return a number of draws that falls with ``samples``."""
        return max(10, min(most, most * self.samples // SAMPLES))


class Part(NamedTuple):
    """What was measured of a few images: tensors by name, and why others are missing, by name."""

    tensors: dict[str, Tensor]
    missing: dict[str, str]


def measured_part(model: GaussianVAE, x: Tensor, settings: Settings, tick: Callable[[str], None]) -> Part:
    """Measure every bound at a few images; ``tick`` is told the name of each step that is done."""
    one = Steps(model, x, settings)
    steps = (
        ("p_low", one.mass), ("theorem_1", one.first_order), ("certified", one.certificate),
        ("second_moment", one.linear_estimates), ("attack", one.attack), ("random_direction", one.random_directions),
    )  # fmt: skip
    tick("r")
    for name, step in steps:
        step()
        tick(name)
    return Part({name: torch.as_tensor(value).detach().cpu() for name, value in one.found.items()}, one.missing)


class Steps:
    """The steps of a measurement of a few images. Each method is one step and adds to ``found`` or to ``missing``.

    Attributes
    ----------
    found : dict of Tensor
        By the name of the column.
    missing : dict of str
        By the name of the column, why it could not be measured.
    """

    def __init__(self, model: GaussianVAE, x: Tensor, settings: Settings) -> None:
        self.model, self.x, self.settings = model, x, settings
        self.missing: dict[str, str] = {}
        self.failures: Failures | None = None
        self.linearised: LinearisedRadii | None = None
        self.r = self._r()
        with torch.no_grad():
            self.mu, _ = model.encode(x)
            error = (model.decode(self.mu) - x).norm(dim=1)
        self.found: dict[str, Tensor] = {"r": self.r, "error": error}

    def _r(self) -> Tensor:
        """Return the r of each image, shape (n,)."""
        if self.settings.r is not None:
            return torch.full_like(self.x[:, 0], self.settings.r)
        samples = self.settings.r_samples
        d = distances(self.model, self.x, samples=samples, seed=self.settings.seed + 1)  # (n, samples)
        return distance_quantile(d, self.settings.level).value

    @contextmanager
    def attempt(self, *columns: str) -> Iterator[None]:
        """Note why columns are missing if their measurement fails."""
        try:
            yield
        except FAILS as error:
            reason = " ".join(str(error).split())[:500] or type(error).__name__
            self.missing.update(dict.fromkeys(columns, reason))

    def mass(self) -> None:
        """Judge the samples of the certificate, and find the lower limit of P(D(x) <= r).

        Models that cannot be certified are found before anything is sampled; for them fewer samples are enough.
        """
        settings, error = self.settings, (1 - self.settings.confidence) / 3
        with self.attempt("certified", "half_space"):
            if self.mu.shape[1] > WIDEST:
                raise ValueError(f"the model has {self.mu.shape[1]} latents, and certificates are limited to {WIDEST}")
            encoder_mean(self.model, self.x)
            (self.failures,) = failures(
                self.model, self.x, [self.r], samples=settings.samples, seed=settings.seed + 2
            )  # fmt: skip
            self.found["p_low"] = 1 - mass_limit(self.failures, error)
        if self.failures is None:
            d = distances(self.model, self.x, samples=settings.search.deciding_samples, seed=settings.seed + 2)
            low = probability_of_robustness(d, self.r, confidence=1 - 2 * error).low
            self.found["p_low"] = torch.as_tensor(low)

    def first_order(self) -> None:
        """Evaluate Theorem 1's bound and its relatives at that limit."""
        with self.attempt("theorem_1", "spectral", "whitened"):
            found = first_order_radii(self.model, self.x, self.found["p_low"].cpu().numpy())
            self.found |= {"theorem_1": found.frobenius, "spectral": found.spectral, "whitened": found.whitened}

    def certificate(self) -> None:
        """Certify a margin from the samples that were judged."""
        if self.failures is None:
            return
        with self.attempt("certified", "half_space"):
            found = certify(self.model, self.x, self.failures, confidence=self.settings.confidence)
            self.found |= {"certified": found.radius, "half_space": found.half_space}

    def linear_estimates(self) -> None:
        """Estimate the margin by linearised models."""
        with self.attempt("second_moment", "decoder_aware"):
            found = linearised_radii(self.model, self.x, self.r, seed=self.settings.seed + 3)
            self.linearised = found
            self.found |= {"second_moment": found.second_moment, "decoder_aware": found.decoder_aware}

    def attack(self) -> None:
        """Find the attack margin, and the reconstructions before and after it."""
        search, seed = self.settings.search, self.settings.seed + 100
        with self.attempt("attack", "attack_confirmed", "attack_censored"):
            if self.linearised is not None:
                attack = strongest_attack(
                    self.model, self.x, self.r, linearised=self.linearised, search=search, seed=seed
                )  # fmt: skip
            else:
                restarts = AttackSettings(restarts=2)
                attack = attack_margin(self.model, self.x, self.r, attack=restarts, search=search, seed=seed)
            with torch.no_grad():
                hit = self.model.decode(self.model.encode(self.x + attack.delta)[0])
                self.found |= {"reconstruction": self.model.decode(self.mu), "attacked_reconstruction": hit}
            self.found |= {"attack": attack.radius, "attack_censored": attack.censored, "delta": attack.delta}
            self.found["attack_confirmed"] = torch.as_tensor(attack.confirmed)

    def random_directions(self) -> None:
        """Estimate the radius at which random directions break r-robustness."""
        with self.attempt("random_direction", "random_direction_censored"):
            found = random_direction_radius(
                self.model, self.x, self.r, RANDOM_SEARCH, seed=self.settings.seed + 200
            )  # fmt: skip
            self.found |= {"random_direction": found.radius, "random_direction_censored": found.censored}


def joined(parts: list[Part]) -> dict[str, Tensor]:
    """Return the tensors of all parts joined; NaN, or False, where a part lacks one."""
    names = dict.fromkeys(name for part in parts for name in part.tensors)
    whole = {}
    for name in names:
        like = next(part.tensors[name] for part in parts if name in part.tensors)
        blank = False if like.dtype == torch.bool else torch.nan
        whole[name] = torch.cat([
            part.tensors.get(name, torch.full((len(part.tensors["r"]), *like.shape[1:]), blank, dtype=like.dtype))
            for part in parts
        ])  # fmt: skip
    return whole


def failed_part(size: int, reason: str, like: Tensor) -> Part:
    """Return what stands for a part that failed: no number at any of its images, and the reason for each column."""
    columns = ("r", "p_low", "theorem_1", "spectral", "whitened", "certified", "half_space", "second_moment",
               "decoder_aware", "attack", "random_direction", "error")  # fmt: skip
    r = torch.full((size,), torch.nan, dtype=like.dtype)
    return Part({"r": r}, dict.fromkeys(columns, f"{FAILED}{reason}"))


class CurvePlan(NamedTuple):
    """Which curves are drawn: of which images, at which norms R, and whether anything was certified."""

    images: Tensor
    radii: list[float]
    certified: bool


def curve_plan(found: dict[str, Tensor]) -> CurvePlan | None:
    """Choose the least and the most robust image, one in the middle, and norms; None where nothing was attacked."""
    attack = found.get("attack", torch.zeros(0))
    order = attack.nan_to_num(nan=torch.inf).argsort()
    order = order[: int((~attack.isnan()).sum())] if attack.isnan().any() else order
    if not len(order):
        return None
    chosen = order[torch.linspace(0, len(order) - 1, min(CURVE_IMAGES, len(order))).round().long()]
    certified = found.get("certified", attack.new_zeros(0))
    certified = certified[certified > 0]
    radii = [share * float(certified.median()) for share in CURVE_CERTIFIED if len(certified)]
    radii += [share * float(attack.nanmedian()) for share in CURVE_ATTACKED]
    radii = sorted({float(f"{one:.3g}") for one in radii if math.isfinite(one)})
    return CurvePlan(chosen, radii, bool(len(certified)))


def measured_curve(model: GaussianVAE, x: Tensor, plan: CurvePlan, settings: Settings) -> Part:
    """Measure the least r for perturbations of some sizes, at the images ``x`` that were chosen.

    Where nothing is certified, only the r that attacks break are measured, and the certified ones are infinite.
    """
    radii = plan.radii
    judging, confidence, seed = settings.search.judging_samples, settings.confidence, settings.seed + 300
    try:
        if plan.certified:
            both = curves(
                model, x, radii, samples=max(1, int(CURVE_SHARE * settings.samples)),
                judging_samples=judging, confidence=confidence, seed=seed,
            )  # fmt: skip
            safe, broken = both.certified, both.broken
        else:
            broken = broken_r(model, x, radii, judging_samples=judging, confidence=confidence, seed=seed)
            safe = torch.full_like(broken, torch.inf)
    except FAILS as error:
        return Part({}, {"curve": " ".join(str(error).split())})
    tensors = {"radii": torch.tensor(radii), "certified": safe, "broken": broken, "images": plan.images}
    return Part({name: value.detach().cpu() for name, value in tensors.items()}, {})
