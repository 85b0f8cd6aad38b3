"""Measure every bound on the margins of some images, in parts that are saved and resumed.

:func:`measure` takes a model and images and returns a :class:`vaerobust.measuring.report.Report`. What is measured at a
few images is in :mod:`vaerobust.measuring.parts`, and how parts are kept in :mod:`vaerobust.measuring.store`. Start
reading at :func:`measure`.
"""

from __future__ import annotations

import hashlib
import platform
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from vaerobust import checks
from vaerobust.batches import slices
from vaerobust.cluster.connecting import engine_of
from vaerobust.cluster.engines import Call, Engine, Here, Timed, Work
from vaerobust.cluster.running import Tally, described, run
from vaerobust.cluster.shards import Shard
from vaerobust.contract import called, weights
from vaerobust.measuring.images import Rows, as_rows
from vaerobust.measuring.parts import (
    SAMPLES,
    WEIGHT,
    CurvePlan,
    Part,
    Settings,
    curve_plan,
    failed_part,
    joined,
    measured_curve,
    measured_part,
)
from vaerobust.measuring.probe import REACTIONS, probe
from vaerobust.measuring.record import Curve, Run
from vaerobust.measuring.report import Report
from vaerobust.measuring.store import Store
from vaerobust.measuring.wrap import Wrapped, wrap
from vaerobust.model import GaussianVAE
from vaerobust.randomness import Seed, as_number
from vaerobust.suspicions import SuspicionWarning
from vaerobust.zoo.protocol import Spec
from vaerobust.zoo.weights import Trained

if TYPE_CHECKING:
    from distributed import Client

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
    client: Client | None = None,
    threads: int = 1,
    retry: bool = False,
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
        Whether to show a progress bar with the time that is left, and in the end what became of all parts.
    client : distributed.Client, optional
        A Dask cluster that computes the parts; default: this process. Not a digit depends on it. ``device`` is then
        that of the workers.
    threads : int
        Threads that each part is computed on, here and on the workers. With another number the last digits may differ.
    retry : bool
        Whether parts that failed in an earlier run are tried again. If not, they stay missing.

    Returns
    -------
    Report

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range, the model does not do what is assumed of it, or ``out`` holds parts of another
        measurement.
    OSError
        If a part cannot be saved, or the cluster is gone. Finished parts stay, and the same call goes on from them.

    Examples
    --------
    ::

        vae = vaerobust.pretrained("mnist", beta=1.0)
        report = vaerobust.measure(vae, vaerobust.load_images("mnist").pixels[:10], seed=0)
        report.save("out")
    """
    checks.one_of("suspicions", suspicions, REACTIONS)
    checks.flag("progress", progress)
    checks.flag("retry", retry)
    engine: Engine = Here() if client is None else engine_of(client)
    if device is not None and not isinstance(device, str | torch.device):
        raise TypeError(f"device must be a name such as 'cpu' or 'cuda', but is {type(device).__name__}")
    vae, called_so = unpacked(model)
    if device is not None and client is None and isinstance(vae, nn.Module):
        vae = moved(vae, device)
    rows = as_rows(images, getattr(vae, "shape", None))
    if first is not None:
        rows = rows._replace(pixels=rows.pixels[: checks.count("first", first)])
    rows = rows._replace(pixels=like_weights(vae, rows.pixels))
    vae = on_rows(vae, rows)
    doubts = probed(vae, rows.pixels, suspicions)
    samples = affordable(vae, rows.pixels) if samples is None else samples
    settings = Settings(level, r, confidence, samples, as_number(seed, rows.pixels), threads)
    what = Run(name or called_so, asdict(settings), *digests(vae, rows), conventions(vae), versions(), doubts)
    store = Store(None if out is None else Path(out) / "parts", what)
    subject = Subject(vae, settings, None if client is None or device is None else str(device))
    parts, curve = Measuring(subject, rows.pixels, store, engine, progress, retry).measured()
    return assembled(what, rows, parts, curve)


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


@dataclass
class Subject:
    """What all parts share; workers get it once.

    Attributes
    ----------
    model : GaussianVAE
    settings : Settings
    device : str, optional
        Where a worker moves the model.
    tick : callable, optional
        Told the name of each step that is done, for a progress bar; not on workers.
    """

    model: GaussianVAE
    settings: Settings
    device: str | None = None
    tick: Callable[[str], None] | None = None


def measured_shard(subject: Subject, x: Tensor, plan: CurvePlan | None = None) -> Part:
    """Measure one part, here or on a worker: every bound at some images or, with a plan, the curves at them."""
    model: Any = subject.model
    if subject.device is not None and isinstance(model, nn.Module):
        model = moved(model, subject.device)
    x = like_weights(model, x).clone()  # memory that begins at a round address, like that of what a worker receives
    if plan is not None:
        return measured_curve(model, x, plan, subject.settings)
    return measured_part(model, x, subject.settings, subject.tick or (lambda step: None))


class Measuring:
    """The measurement of all parts on an engine, with a progress bar.

    Parameters
    ----------
    subject : Subject
    x : Tensor, shape (n, d_x)
    store : Store
    engine : Engine
    progress : bool
    retry : bool
    """

    def __init__(
        self, subject: Subject, x: Tensor, store: Store, engine: Engine, progress: bool, retry: bool
    ) -> None:  # fmt: skip
        self.subject, self.x, self.store, self.engine = subject, x, store, engine
        self.progress, self.retry = progress, retry
        names = [store.shard(f"{at.start:06d}", at.start, at.stop) for at in slices(len(x), PART)]
        self.shards = {one.name: one for one in names}
        self.curve = store.shard("curve", 0, len(x))
        self.parts: dict[str, Part] = {}
        self.error: BaseException | None = None
        self.current = ""

    def measured(self) -> tuple[list[Part], Part]:
        """Measure all parts that are not there yet, and then the curves; return them.

        Raises
        ------
        Exception
            That of the first part that failed, if there is none that did not.
        """
        every = [*self.shards.values(), self.curve]
        try:
            tally = self._measure()
        finally:
            self.store.shards.write_manifest(every)
        if not self.parts:
            first = next(iter(tally.failed.values()))
            raise self.error or RuntimeError(f"every part failed, and only retry tries them again: {first}")
        if self.progress:
            tqdm.write(str(tally), file=sys.stderr)
        parts = [self.parts.get(name) or self._failed(shard, tally) for name, shard in self.shards.items()]
        curve = self.parts.get("curve") or Part({}, {"curve": "they need every part, and some are missing"})
        return parts, curve

    def _failed(self, shard: Shard, tally: Tally) -> Part:
        reason = tally.failed.get(shard.name, "it was not tried, since the others failed")
        return failed_part(shard.stop - shard.start, reason, self.x)

    def _measure(self) -> Tally:
        tally, calls = Tally(), []
        for name, shard in self.shards.items():
            if self._there(shard):
                tally.found += 1
            elif not self.retry and (reason := self.store.shards.failure(shard)) is not None:
                tally.failed[name] = f"{reason} (in an earlier run; not tried again)"
            else:
                calls.append(Call(name, (self.x[shard.start : shard.stop].cpu(),)))
        before = sum(self.shards[name].stop - self.shards[name].start for name in self.parts)
        steps = sum(WEIGHT.values())
        with tqdm(
            total=steps * len(self.x), initial=steps * before, disable=not self.progress, bar_format=BAR
        ) as bar:  # fmt: skip
            self._run(calls, bar, tally)
            if len(self.parts) == len(self.shards):
                bar.set_description_str("curves")
                self._measure_curve(tally)
        tally.damaged = len(self.store.shards.damaged)
        return tally

    def _run(self, calls: list[Call], bar: Any, tally: Tally) -> None:
        """Measure parts, and move the bar: in this process by each step of a part, else by each part."""
        here = isinstance(self.engine, Here)

        def size(name: str) -> int:
            return self.shards[name].stop - self.shards[name].start

        def watch(name: str = "") -> None:
            images = sum(map(size, self.parts))
            bar.set_description_str(f"{len(self.parts)} of {len(self.shards)} shards, {images} of {len(self.x)} images")
            if name and not here:
                bar.update(sum(WEIGHT.values()) * size(name))

        watch()
        if here:
            self.subject.tick = lambda step: bar.update(WEIGHT[step] * size(self.current))
        work = Work(measured_shard, self.subject, self.subject.settings.threads)
        run(calls, work, self.engine, self._keep, fail=self._fail, there=self._there_now, watch=watch, tally=tally)

    def _measure_curve(self, tally: Tally) -> None:
        """Measure the curves, once all parts are there."""
        plan = curve_plan(joined([self.parts[name] for name in self.shards]))
        if plan is None:
            self.parts["curve"] = Part({}, {"curve": "they need attacks, and there are none"})
        elif self._there(self.curve):
            tally.found += 1
        else:
            self.subject.tick = None
            work = Work(measured_shard, self.subject, self.subject.settings.threads)
            call = Call("curve", (self.x[plan.images.to(self.x.device)].cpu(), plan))
            run([call], work, self.engine, self._keep, fail=self._fail, tally=tally)

    def _shard(self, name: str) -> Shard:
        return self.shards.get(name, self.curve)

    def _there(self, shard: Shard) -> bool:
        part = self.store.load(shard)
        if part is not None:
            self.parts[shard.name] = part
        return part is not None

    def _there_now(self, name: str) -> bool:
        self.current = name
        return self._there(self._shard(name))

    def _keep(self, name: str, result: Timed) -> bool:
        kept = self.store.save(self._shard(name), result.value)
        self.parts[name] = result.value
        return kept

    def _fail(self, name: str, error: BaseException) -> None:
        self.error = self.error or error
        self.store.shards.fail(self._shard(name), described(error))


def assembled(run: Run, rows: Rows, parts: list[Part], curve: Part) -> Report:
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
