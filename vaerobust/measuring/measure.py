"""Measure every bound on the margins of some images, in parts that are saved and resumed.

:func:`measure` takes a model and images and returns a :class:`vaerobust.measuring.report.Report`. What is measured at a
few images is in :mod:`vaerobust.measuring.parts`, and how parts are kept in :mod:`vaerobust.measuring.store`. Start
reading at :func:`measure`.
"""

from __future__ import annotations

import hashlib
import platform
import warnings
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from vaerobust import checks
from vaerobust.batches import slices
from vaerobust.contract import called, weights
from vaerobust.measuring.images import Rows, as_rows
from vaerobust.measuring.parts import SAMPLES, WEIGHT, Part, Settings, joined, measured_curve, measured_part
from vaerobust.measuring.probe import REACTIONS, SuspicionWarning, probe
from vaerobust.measuring.record import Curve, Run
from vaerobust.measuring.report import Report
from vaerobust.measuring.store import Store
from vaerobust.measuring.wrap import Wrapped, wrap
from vaerobust.model import GaussianVAE
from vaerobust.randomness import Seed, as_number
from vaerobust.zoo.protocol import Spec
from vaerobust.zoo.weights import Trained

FEWEST = 2_000
"""Draws behind each certificate of a model whose decoder is expensive."""
CHEAP = 5e6
"""Floating point operations of a decoder that is cheap; the paper's takes 1e6 per image."""
PART = 5
"""Images that are measured, and saved, at a time."""
BAR = "{desc}: {percentage:3.0f} %|{bar}| {elapsed} so far, about {remaining} left"
"""Format of the progress bar."""


def measure(  # noqa: PLR0913 - the one call that most readers make names its options itself
    model: Any,
    images: Any,
    *,
    level: float = 0.9,
    r: float | None = None,
    confidence: float = 0.999,
    samples: int | None = None,
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
        A model on flat rows with ``encode(x) -> (mu, sigma)`` and ``decode(z)``; what
        :func:`vaerobust.measuring.wrap.wrap` or :func:`vaerobust.zoo.weights.pretrained` returns; or a module on images
        that says itself what it returns, as modules with distributions and pythae's do.
    images : Tensor or ndarray, shape (n, ...)
        Pixels in [0, 1], or whole numbers of 8 bits.
    level : float
        r is this quantile of each image's own D(x), in (0, 1).
    r : float, optional
        One r for all images instead, >= 0, in input units.
    confidence : float
        Of each certificate and of each attack, for each image by itself, in (0, 1).
    samples : int, optional
        Draws of the encoder's noise behind each certificate; other steps draw shares of it. Default: 50,000, and fewer
        the more operations the decoder takes, down to 2,000. The confidence is the same with fewer draws, the
        certified margins are smaller, and the attack margins larger.
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
    checks.one_of("suspicions", suspicions, REACTIONS)
    checks.flag("progress", progress)
    if device is not None and not isinstance(device, str | torch.device):
        raise TypeError(f"device must be a name such as 'cpu' or 'cuda', but is {type(device).__name__}")
    vae, called_so = unpacked(model)
    if device is not None and isinstance(vae, nn.Module):
        vae = moved(vae, device)
    rows = as_rows(images, getattr(vae, "shape", None))
    if first is not None:
        rows = rows._replace(pixels=rows.pixels[: checks.count("first", first)])
    rows = rows._replace(pixels=like_weights(vae, rows.pixels))
    vae = on_rows(vae, rows)
    doubts = probed(vae, rows.pixels, suspicions)
    samples = affordable(vae, rows.pixels) if samples is None else samples
    settings = Settings(level, r, confidence, samples, as_number(seed, rows.pixels))
    run = Run(name or called_so, asdict(settings), *digests(vae, rows), conventions(vae), versions(), doubts)
    store = Store(None if out is None else Path(out) / "parts", run)
    parts, curve = measured(vae, rows.pixels, settings, store, progress)
    return assembled(run, rows, vae, parts, curve)


def unpacked(model: Any) -> tuple[Any, str]:
    """Return the model itself and a name for it; a trained model of the zoo comes with its manifest."""
    if isinstance(model, Trained):
        spec = model.manifest["spec"] if isinstance(model.manifest, dict) else model.manifest.spec
        return model.vae, (Spec(**spec) if isinstance(spec, dict) else spec).name
    inner = model.module if isinstance(model, Wrapped) else model
    return model, type(inner).__name__


def moved(model: nn.Module, device: str | torch.device) -> nn.Module:
    """Return the model on a device.

    Raises
    ------
    ValueError
        If there is no such device.
    """
    try:
        return model.to(device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device must be one that torch can use here, but is {str(device)!r}: {reason}") from error


def like_weights(model: Any, pixels: Tensor) -> Tensor:
    """Return pixels in the type and on the device of the model's weights."""
    weight = next((one for one in weights(model) if one.is_floating_point()), None)
    return pixels if weight is None else pixels.to(weight)


def on_rows(model: Any, rows: Rows) -> GaussianVAE:
    """Return the model if it takes flat rows, else wrap it for the shape of the images.

    Raises
    ------
    TypeError, ValueError
        If what it returns cannot be told; the message says how :func:`vaerobust.measuring.wrap.wrap` is told.
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
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        probe(model, x, suspicions=suspicions)
    for one in caught:
        warnings.warn(one.message, one.category, stacklevel=3)
    return tuple(str(one.message) for one in caught if issubclass(one.category, SuspicionWarning))


def affordable(model: GaussianVAE, x: Tensor) -> int:
    """Return how many draws are made by default: the more operations the decoder takes, the fewer."""
    with torch.no_grad():
        mu, _ = model.encode(x[:1])
        with FlopCounterMode(display=False) as counter:
            model.decode(mu)
    operations = max(counter.get_total_flops(), CHEAP)
    return max(FEWEST, round(SAMPLES * CHEAP / operations / 1000) * 1000)


def conventions(model: GaussianVAE) -> dict[str, Any]:
    """Return what was said of a wrapped model; nothing for others."""
    return model.conventions() if isinstance(model, Wrapped) else {}


def digests(model: GaussianVAE, rows: Rows) -> tuple[str, str]:
    """Return the SHA-256 of the weights and of the images.

    Of an object that is no module, whose weights cannot be listed, it is that of what it returns for the images.
    """
    inner = model.module if isinstance(model, Wrapped) else model
    if isinstance(inner, nn.Module) and any(True for _ in weights(inner)):
        tensors = inner.state_dict()
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
