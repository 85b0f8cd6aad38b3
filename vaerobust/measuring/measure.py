"""Measure every bound on the margins of some images, in parts that are saved and resumed.

:func:`measure` takes a model and images and returns a :class:`vaerobust.measuring.report.Report`. It measures what
:func:`vaerobust.certify.both_sides.both_sides` measures, with the same random numbers, but goes on where one of the
quantities cannot be had, and says why. Start reading at :func:`measure`, then :func:`measured_part`.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as tensors_as_bytes
from torch import Tensor, nn
from tqdm import tqdm

from vaerobust import checks
from vaerobust.attacks import AttackSettings
from vaerobust.batches import slices
from vaerobust.bounds import first_order_radii
from vaerobust.certify.both_sides import RANDOM_SEARCH
from vaerobust.certify.certificates import certify
from vaerobust.certify.curves import curves
from vaerobust.certify.failures import failures, mass_limit
from vaerobust.criterion import distance_quantile, probability_of_robustness
from vaerobust.distance import distances
from vaerobust.linearised import LinearisedRadii, linearised_radii
from vaerobust.margins import STRONGEST_SEARCH, attack_margin, strongest_attack
from vaerobust.measuring.images import Rows, as_rows
from vaerobust.measuring.probe import SuspicionWarning, called, probe, weights
from vaerobust.measuring.report import Curve, Report, Run
from vaerobust.measuring.wrap import Wrapped, wrap
from vaerobust.model import GaussianVAE, mean_layers
from vaerobust.random_direction import random_direction_radius
from vaerobust.randomness import Seed, as_number
from vaerobust.zoo.files import write_atomically

PART = 5
"""Images that are measured, and saved, at a time."""
WIDEST = 512
"""Latents above which nothing is certified: the moments of failure are matrices of that width."""
CURVE_IMAGES = 3
"""Images whose curve of r over R is drawn: the least robust, the most robust and the one in the middle."""
CURVE_STEPS = 6
"""Norms R on each curve."""
CURVE_SHARE = 0.4
"""Share of the samples that the curves get."""
FAILS = (RuntimeError, ValueError, TypeError, NotImplementedError)
"""What a measurement may raise where a model is not made for it."""
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
    """

    level: float = 0.9
    r: float | None = None
    confidence: float = 0.999
    samples: int = 50_000
    seed: int = 0

    def __post_init__(self) -> None:
        checks.probability("level", self.level)
        checks.probability("confidence", self.confidence)
        checks.count("samples", self.samples)
        if self.r is not None:
            checks.positive("r", self.r, zero=True)


class Part(NamedTuple):
    """What was measured of a few images: tensors by name, and why others are missing, by name."""

    tensors: dict[str, Tensor]
    missing: dict[str, str]


def measure(  # noqa: PLR0913 - the one call that most readers make names its options itself
    model: Any,
    images: Any,
    *,
    level: float = 0.9,
    r: float | None = None,
    confidence: float = 0.999,
    samples: int = 50_000,
    seed: Seed = 0,
    first: int | None = None,
    device: str | torch.device | None = None,
    out: str | Path | None = None,
    name: str | None = None,
    suspicions: str = "raise",
    progress: bool = True,
) -> Report:
    """Measure every bound on the robustness of a VAE at some images.

    Parameters
    ----------
    model : GaussianVAE, Trained or Module
        A model on flat rows with ``encode(x) -> (mu, sigma)`` and ``decode(z)``; what :func:`vaerobust.wrap` or
        :func:`vaerobust.pretrained` returns; or a module on images that says itself what it returns, as modules with
        distributions and pythae's do.
    images : Tensor or ndarray, shape (n, ...)
        Pixels in [0, 1], or whole numbers of 8 bits.
    level : float
        r is this quantile of each image's own D(x), in (0, 1).
    r : float, optional
        One r for all images instead, >= 0, in input units.
    confidence : float
        Of each certificate and of each attack, for each image by itself, in (0, 1).
    samples : int
        Draws of the encoder's noise behind each certificate.
    seed : int or torch.Generator
        See :mod:`vaerobust.randomness`.
    first : int, optional
        Measure only that many first images.
    device : str, optional
        Where to measure; the model is moved there. Default: where the model is.
    out : path, optional
        Folder in which finished parts are saved, and from which an interrupted measurement is resumed.
    name : str, optional
        What the report calls the model.
    suspicions : {'raise', 'warn', 'ignore'}
        What happens where the model or the images look like a common mistake; see
        :func:`vaerobust.measuring.probe.probe`.
    progress : bool
        Whether to show a progress bar with the time that is left.

    Returns
    -------
    Report

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range, the model does not do what is assumed of it, or ``out`` holds parts of another
        measurement.

    Examples
    --------
    ::

        vae = vaerobust.pretrained("mnist", beta=1.0)
        report = vaerobust.measure(vae, vaerobust.load_images("mnist").pixels[:10], seed=0)
        report.save("out")
    """
    checks.one_of("suspicions", suspicions, ("raise", "warn", "ignore"))
    vae, called_so = unpacked(model)
    if device is not None and isinstance(vae, nn.Module):
        vae = vae.to(device)
    rows = as_rows(images, getattr(vae, "shape", None))
    if first is not None:
        rows = rows._replace(pixels=rows.pixels[: checks.count("first", first)])
    rows = rows._replace(pixels=like_weights(vae, rows.pixels))
    vae = on_rows(vae, rows)
    settings = Settings(level, r, confidence, samples, as_number(seed, rows.pixels))
    doubts = probed(vae, rows.pixels, suspicions)
    run = Run(name or called_so, asdict(settings), *digests(vae, rows), conventions(vae), versions(), doubts)
    store = Store(None if out is None else Path(out) / "parts", run)
    parts, curve = measured(vae, rows.pixels, settings, store, progress)
    return assembled(run, rows, vae, parts, curve)


def unpacked(model: Any) -> tuple[Any, str]:
    """Return the model itself and a name for it; a trained model of the zoo comes with its manifest."""
    vae = getattr(model, "vae", model)
    manifest = getattr(model, "manifest", None)
    spec = getattr(manifest, "spec", None) or (manifest.get("spec") if isinstance(manifest, dict) else None)
    if spec is not None:
        from vaerobust.zoo.protocol import Spec

        return vae, (Spec(**spec) if isinstance(spec, dict) else spec).name
    inner = vae.module if isinstance(vae, Wrapped) else vae
    return vae, type(inner).__name__


def like_weights(model: Any, pixels: Tensor) -> Tensor:
    """Return pixels in the type and on the device of the model's weights."""
    weight = next((one for one in weights(model) if one.is_floating_point()), None)
    return pixels if weight is None else pixels.to(weight)


def on_rows(model: Any, rows: Rows) -> GaussianVAE:
    """Return the model if it takes flat rows, else wrap it for the shape of the images.

    Raises
    ------
    TypeError, ValueError
        If what it returns cannot be told; the message says how :func:`vaerobust.wrap` is told.
    """
    few = rows.pixels[:2]
    try:
        with torch.no_grad():
            mu, _ = model.encode(few)
            flat = mu.ndim == 2 and model.decode(mu).shape == few.shape
    except Exception:
        flat = False
    if flat or isinstance(model, Wrapped):
        return model
    with_pictures = callable(getattr(model, "encode", getattr(model, "encoder", None)))
    if not with_pictures:
        called(model, "encode", few)
    return wrap(model, shape=rows.shape)


def probed(model: GaussianVAE, x: Tensor, suspicions: str) -> tuple[str, ...]:
    """Probe the model and return its suspicions in words; with 'warn' they are also warnings."""
    import warnings

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        probe(model, x, suspicions=suspicions)
    for one in caught:
        warnings.warn(one.message, one.category, stacklevel=3)
    return tuple(str(one.message) for one in caught if issubclass(one.category, SuspicionWarning))


def conventions(model: GaussianVAE) -> dict[str, Any]:
    """Return what was said of a wrapped model; nothing for others."""
    return model.conventions() if isinstance(model, Wrapped) else {}


def digests(model: GaussianVAE, rows: Rows) -> tuple[str, str]:
    """Return the SHA-256 of the weights and of the images.

    Of an object that is no module, whose weights cannot be listed, it is that of what it returns for the images.
    """
    if isinstance(model, nn.Module) and any(True for _ in weights(model)):
        tensors = model.module.state_dict() if isinstance(getattr(model, "module", None), nn.Module) else model.state_dict()
    else:
        with torch.no_grad():
            mu, sigma = model.encode(rows.pixels)
            tensors = {"mu": mu, "sigma": sigma, "out": model.decode(mu)}
    return digest(tensors), digest({"pixels": rows.pixels})


def digest(tensors: dict[str, Any]) -> str:
    """Return the SHA-256 of tensors and their names."""
    total = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        if isinstance(value, Tensor):
            total.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
            total.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def versions() -> dict[str, str]:
    """Return the versions that the numbers may depend on."""
    found = {"python": platform.python_version()}
    for package in ("vaerobust", "torch", "numpy", "scipy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # a checkout that is not installed
            found[package] = "unknown"
    return found


class Store:
    """Finished parts on disk, so that an interrupted measurement goes on where it stopped.

    Parameters
    ----------
    folder : Path, optional
        Where they are; nothing is kept if it is None.
    run : Run
        What they are parts of.

    Raises
    ------
    ValueError
        If the folder holds parts of another measurement.
    """

    def __init__(self, folder: Path | None, run: Run) -> None:
        self.folder = folder
        if folder is None:
            return
        record = folder / "run.json"
        want = run.identity()
        if record.exists():
            try:
                there = json.loads(record.read_text())
            except ValueError as error:
                raise ValueError(f"out must hold parts of this measurement, but {record} is corrupt") from error
            differ = [key for key in want if there.get(key) != want[key]]
            if differ:
                raise ValueError(
                    f"out must be empty or hold parts of this measurement, but {folder} was made with other "
                    f"{', '.join(differ)}: choose another folder, or delete this one"
                )
        else:
            write_atomically(record, (json.dumps(want, indent=1) + "\n").encode())

    def load(self, name: str) -> Part | None:
        """Return a part that is there; None if it is missing or damaged."""
        path = self._path(name)
        if path is None or not path.exists():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no dictionary
                return Part(tensors, json.loads((file.metadata() or {})["missing"]))
        except (SafetensorError, OSError, KeyError, ValueError):
            return None  # it is measured again

    def save(self, name: str, part: Part) -> Part:
        """Save a part as a whole or not at all, and return it."""
        path = self._path(name)
        if path is not None:
            tensors = {key: value.contiguous() for key, value in part.tensors.items()}
            write_atomically(path, tensors_as_bytes(tensors, {"missing": json.dumps(part.missing)}))
        return part

    def _path(self, name: str) -> Path | None:
        return None if self.folder is None else self.folder / f"{name}.safetensors"


def measured(
    model: GaussianVAE, x: Tensor, settings: Settings, store: Store, progress: bool
) -> tuple[list[Part], Part]:  # fmt: skip
    """Measure all parts that are not there yet, and then the curves."""
    parts: list[Part] = []
    total = sum(WEIGHT.values()) * len(x)
    with tqdm(total=total, desc="measuring", disable=not progress, bar_format=BAR) as bar:
        for at in slices(len(x), PART):
            size = len(x[at])
            name = f"{at.start:06d}"
            part = store.load(name)
            if part is None:

                def tick(what: str, size: int = size) -> None:
                    bar.update(WEIGHT[what] * size)

                part = store.save(name, measured_part(model, x[at], settings, tick))
            else:
                bar.update(sum(WEIGHT.values()) * size)
                bar.unpause()
            parts.append(part)
        bar.set_description("curves")
        curve = store.load("curve") or store.save("curve", measured_curve(model, x, joined(parts), settings))
    return parts, curve


BAR = "{desc}: {percentage:3.0f} %|{bar}| {elapsed} so far, about {remaining} left"


def measured_part(model: GaussianVAE, x: Tensor, settings: Settings, tick: Callable[[str], None]) -> Part:
    """Measure every bound at a few images.

    The random numbers are those of :func:`vaerobust.certify.both_sides.both_sides`, so the results agree with it.
    """
    seed = settings.seed
    found: dict[str, Tensor] = {}
    missing: dict[str, str] = {}

    @contextmanager
    def attempt(*columns: str) -> Iterator[None]:
        try:
            yield
        except FAILS as error:
            reason = " ".join(str(error).split())[:500] or type(error).__name__
            missing.update(dict.fromkeys(columns, reason))

    r = r_of(model, x, settings)
    found["r"] = r
    tick("r")
    with torch.no_grad():
        mu, sigma = model.encode(x)
        found["error"] = (model.decode(mu) - x).norm(dim=1)
    judged = None
    with attempt("certified", "half_space"):
        require_certifiable(model, x, mu)
        (judged,) = failures(model, x, [r], samples=settings.samples, seed=seed + 2)
        found["p_low"] = 1 - mass_limit(judged, (1 - settings.confidence) / 3)
    if judged is None:
        found["p_low"] = share_within(model, x, r, settings)
    tick("p_low")
    with attempt("theorem_1", "spectral", "whitened"):
        first_order = first_order_radii(model, x, found["p_low"].cpu().numpy())
        found["theorem_1"], found["spectral"] = first_order.frobenius, first_order.spectral
        found["whitened"] = first_order.whitened
    tick("theorem_1")
    if judged is not None:
        with attempt("certified", "half_space"):
            certificate = certify(model, x, judged, confidence=settings.confidence)
            found["certified"], found["half_space"] = certificate.radius, certificate.half_space
    tick("certified")
    linearised = None
    with attempt("second_moment", "decoder_aware"):
        linearised = linearised_radii(model, x, r, seed=seed + 3)
        found["second_moment"], found["decoder_aware"] = linearised.second_moment, linearised.decoder_aware
    tick("second_moment")
    with attempt("attack", "attack_confirmed", "attack_censored"):
        found |= attacked(model, x, r, linearised, settings)
    tick("attack")
    with attempt("random_direction", "random_direction_censored"):
        random = random_direction_radius(model, x, r, RANDOM_SEARCH, seed=seed + 200)
        found["random_direction"] = random.radius
        found["random_direction_censored"] = random.censored
    tick("random_direction")
    return Part({name: torch.as_tensor(value).detach().cpu() for name, value in found.items()}, missing)


def r_of(model: GaussianVAE, x: Tensor, settings: Settings) -> Tensor:
    """Return the r of each image, shape (n,)."""
    if settings.r is not None:
        return torch.full_like(x[:, 0], settings.r)
    d = distances(model, x, samples=4000, seed=settings.seed + 1)  # (n, 4000)
    return distance_quantile(d, settings.level).value


def require_certifiable(model: GaussianVAE, x: Tensor, mu: Tensor) -> None:
    """Refuse models of which no certificate can be had, before anything is sampled for one."""
    if mu.shape[1] > WIDEST:
        raise ValueError(f"the model has {mu.shape[1]} latents, and certificates are limited to {WIDEST}")
    mean_layers(model, x)


def share_within(model: GaussianVAE, x: Tensor, r: Tensor, settings: Settings) -> Tensor:
    """Return a lower limit of P(D(x) <= r) that needs no certificate, at the same confidence as one."""
    d = distances(model, x, samples=min(settings.samples, 10_000), seed=settings.seed + 2)
    confidence = 1 - 2 * (1 - settings.confidence) / 3
    return torch.as_tensor(probability_of_robustness(d, r, confidence=confidence).low)


def attacked(
    model: GaussianVAE, x: Tensor, r: Tensor, linearised: LinearisedRadii | None, settings: Settings
) -> dict[str, Tensor]:  # fmt: skip
    """Return the attack margin, and the reconstructions before and after it."""
    search, seed = replace(STRONGEST_SEARCH, confidence=settings.confidence), settings.seed + 100
    if linearised is not None:
        attack = strongest_attack(model, x, r, linearised=linearised, search=search, seed=seed)
    else:
        attack = attack_margin(model, x, r, attack=AttackSettings(restarts=2), search=search, seed=seed)
    with torch.no_grad():
        return {
            "attack": attack.radius,
            "attack_confirmed": torch.as_tensor(attack.confirmed),
            "attack_censored": attack.censored,
            "delta": attack.delta,
            "reconstruction": model.decode(model.encode(x)[0]),
            "attacked_reconstruction": model.decode(model.encode(x + attack.delta)[0]),
        }


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


def measured_curve(model: GaussianVAE, x: Tensor, found: dict[str, Tensor], settings: Settings) -> Part:
    """Measure the least r for perturbations of some sizes, for the least and the most robust image and a middle one."""
    if not {"attack", "certified"} <= set(found):
        return Part({}, {"curve": "it needs certificates, and there are none"})
    order = found["attack"].nan_to_num(nan=torch.inf).argsort()
    chosen = order[torch.linspace(0, len(order) - 1, min(CURVE_IMAGES, len(order))).round().long()]
    certified = found["certified"][found["certified"] > 0]
    if not len(certified):
        return Part({}, {"curve": "nothing is certified at these images"})
    low, high = float(certified.median()) / 2, 2 * float(found["attack"].nanmedian())
    radii = [float(f"{one:.3g}") for one in np.geomspace(low, max(high, 2 * low), CURVE_STEPS)]
    try:
        curve = curves(
            model, x[chosen], radii, samples=max(1, int(CURVE_SHARE * settings.samples)),
            confidence=settings.confidence, seed=settings.seed + 300,
        )  # fmt: skip
    except FAILS as error:
        return Part({}, {"curve": " ".join(str(error).split())})
    tensors = {"radii": torch.tensor(radii), "certified": curve.certified, "broken": curve.broken, "images": chosen}
    return Part({name: value.detach().cpu() for name, value in tensors.items()}, {})


def assembled(run: Run, rows: Rows, model: GaussianVAE, parts: list[Part], curve: Part) -> Report:
    """Return the report of all parts."""
    missing: dict[str, str] = {}
    for start, part in zip(range(0, len(rows.pixels), PART), parts, strict=True):
        for name, reason in part.missing.items():
            where = "" if len(parts) == 1 else f" (images {start} to {start + len(part.tensors['r']) - 1})"
            whole = all(name in other.missing for other in parts)
            missing.setdefault(name, reason if whole else reason + where)
    missing |= curve.missing
    drawn = Curve(**{name: value.numpy() for name, value in curve.tensors.items()}) if curve.tensors else None
    return Report.of(run, rows, joined(parts), missing, drawn)
