"""Training by the protocol of Appendix F: Adam 1e-3, batches of 512, 100 epochs.

The images stay in memory as one tensor and each batch is one gather from it, so that an epoch costs little more
than its matrix products. A checkpoint after every epoch holds weights, Adam's moments and the generator's state:
a killed run goes on where it was and ends bit for bit where an uninterrupted one would.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from vaerobust.files import digest, write_atomically
from vaerobust.model import VAE, elbo_terms, kl_to_prior, total_correlation
from vaerobust.zoo.data import Images
from vaerobust.zoo.protocol import Spec
from vaerobust.zoo.weights import load_model, save_model

EVALUATION_SEED = 1
MATMUL = {"float32": "highest", "bfloat16": "medium"}  # torch's names for the precisions
Row = dict[str, float]


class Run:
    """A training run that can stop and go on after any epoch.

    Parameters
    ----------
    spec : Spec
    train, test : Images
        The two splits of ``spec.dataset``.
    device : str or torch.device
        Where to train; 'cpu' needs nothing.

    Attributes
    ----------
    vae : VAE
    history : list of dict
        One row an epoch: ``seconds``, and ELBO, reconstruction term and KL in nats a point on train (mean over
        the epoch's batches, each before its step) and test (after the epoch, one sample of z a point).
    """

    def __init__(self, spec: Spec, train: Images, test: Images, device: str | torch.device = "cpu") -> None:
        for images in (train, test):
            if images.dataset != spec.dataset:
                raise ValueError(f"{images.split} must be images of {spec.dataset!r}, but are of {images.dataset!r}")
        self.spec, self.train, self.test = spec, train, test
        self.data = data_digests(train, test)
        self.pixels, self.test_pixels = train.pixels.to(device), test.pixels.to(device)
        self.vae = spec.build().to(device)
        # the fused step reads and writes each moment once; the default makes a pass per operation
        self.adam = torch.optim.Adam(self.vae.parameters(), lr=spec.learning_rate, fused=True)
        self.generator = torch.Generator(device).manual_seed(spec.seed)
        self.history: list[Row] = []

    def epoch(self) -> Row:
        """Pass once over the training images in a new random order; append to and return the history's row."""
        start = time.perf_counter()
        torch.set_float32_matmul_precision(MATMUL[self.spec.precision])
        spec, n = self.spec, len(self.pixels)
        sums = torch.zeros(2, device=self.pixels.device)
        order = torch.randperm(n, generator=self.generator, device=self.pixels.device)
        for rows in order.split(spec.batch_size):
            x = self.pixels[rows]
            eta = torch.randn(len(x), spec.latents, generator=self.generator, device=x.device)
            loss, reconstruction, kl = objective(self.vae, x, eta, spec)
            if not torch.isfinite(loss):
                raise FloatingPointError(f"{spec.name}: the loss is {loss.item()} in epoch {len(self.history) + 1}")
            self.adam.zero_grad()
            loss.backward()
            self.adam.step()
            sums += torch.stack([reconstruction.detach().sum(), kl.detach().sum()])
        mean_reconstruction, mean_kl = (sums / n).tolist()
        row = {"seconds": time.perf_counter() - start} | terms_row("train", mean_reconstruction, mean_kl)
        self.history.append(row | evaluate(self.vae, self.test_pixels, prefix="test"))
        return self.history[-1]

    def checkpoint(self) -> bytes:
        """Return the whole state as safetensors."""
        tensors = {f"weights.{name}": value for name, value in self.vae.state_dict().items()}
        for i, moments in self.adam.state_dict()["state"].items():
            tensors |= {f"adam.{i}.{name}": value for name, value in moments.items()}
        tensors["generator"] = self.generator.get_state()
        record = {"record": json.dumps({"spec": asdict(self.spec), "data": self.data, "history": self.history})}
        return save(tensors, record | {"sha256": digest(save(tensors, record))})

    def resume(self, path: Path) -> None:
        """Take over the state of a checkpoint file.

        Raises
        ------
        ValueError
            If the file is corrupt or of another run.
        """
        try:
            content = path.read_bytes()
            tensors = load(content)
            header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
            record = json.loads(header["record"])
            spec, data, history = record["spec"], record["data"], record["history"]
            if digest(save(tensors, {"record": header["record"]})) != header["sha256"]:
                raise ValueError("its content is not what was written")
        except (SafetensorError, ValueError, KeyError) as error:
            raise ValueError(f"checkpoint {path} is corrupt ({error}); delete it to train from the start") from error
        if spec != asdict(self.spec):
            raise ValueError(f"checkpoint {path} is of another run, {spec}; delete it to train {asdict(self.spec)}")
        if data != self.data:
            raise ValueError(f"checkpoint {path} is of a run on other images; delete it to train on these")
        self.vae.load_state_dict(
            {k.removeprefix("weights."): v for k, v in tensors.items() if k.startswith("weights.")}
        )
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("adam."):
                _, i, name = key.split(".")
                state.setdefault(int(i), {})[name] = value
        self.adam.load_state_dict({"state": state, "param_groups": self.adam.state_dict()["param_groups"]})
        self.generator.set_state(tensors["generator"])
        self.history = history


def objective(vae: VAE, x: Tensor, eta: Tensor, spec: Spec) -> tuple[Tensor, Tensor, Tensor]:
    """Return what training minimises, shape (), and the two terms of the ELBO at each point, shape (n,).

    The beta-VAE's objective weights the KL term (Section 2.3). The beta-TC-VAE's (Chen et al. 2018) weights one part of
    its mean over the data, the total correlation of the latents; as all parts add up to the KL term, it is written here
    as that term plus beta - 1 times the total correlation.
    """
    mu, sigma = vae.encode(x)
    z = mu + sigma * eta
    reconstruction, kl = vae.log_likelihood(x, z), kl_to_prior(mu, sigma)
    if spec.objective == "beta":
        return (spec.beta * kl - reconstruction).mean(), reconstruction, kl
    return (kl - reconstruction).mean() + (spec.beta - 1) * total_correlation(z, mu, sigma), reconstruction, kl


def train(
    spec: Spec,
    train_images: Images,
    test_images: Images,
    folder: str | Path,
    *,
    device: str | torch.device = "cpu",
    progress: Callable[[int, Row], None] | None = None,
) -> Path:
    """Train one model, or finish training it, and write its weights and manifest.

    Parameters
    ----------
    spec : Spec
    train_images, test_images : Images
    folder : path
        Gets ``NAME.safetensors`` (float16) and ``NAME.json`` (manifest). While training,
        ``NAME.checkpoint`` holds the last finished epoch.
    device : str or torch.device
    progress : callable, optional
        Called after each epoch with the number of epochs done and the history's last row.

    Returns
    -------
    path
        The weights' file. If it is there already, with a manifest of the same spec and images, nothing is trained.

    Raises
    ------
    ValueError
        If the folder holds a corrupt checkpoint or model, or one of another run of this name.
    """
    folder = Path(folder)
    weights, manifest, unfinished = (folder / f"{spec.name}.{end}" for end in ("safetensors", "json", "checkpoint"))
    if weights.exists() and manifest.exists():
        record = load_model(weights).manifest
        data = {split: images["sha256"] for split, images in record["data"].items()}
        if (Spec(**record["spec"]), data) != (spec, data_digests(train_images, test_images)):
            raise ValueError(f"{manifest} is of another run; choose another folder or delete it")
        return weights
    run = Run(spec, train_images, test_images, device)
    if unfinished.exists():
        run.resume(unfinished)
    while len(run.history) < spec.epochs:
        row = run.epoch()
        write_atomically(unfinished, run.checkpoint())
        if progress:
            progress(len(run.history), row)
    save_model(weights, run.vae, describe(run))
    unfinished.unlink(missing_ok=True)
    return weights


def describe(run: Run) -> dict[str, object]:
    """Return the manifest of a finished run, less the digest of its weights; see ``book/rerun.md`` for its fields."""
    return {
        "spec": asdict(run.spec),
        "final": evaluate(run.vae, run.pixels, prefix="train") | evaluate(run.vae, run.test_pixels, prefix="test"),
        "data": {
            images.split: {"source": images.source, "images": len(images), "sha256": run.data[images.split]}
            for images in (run.train, run.test)
        },
        "seconds": sum(row["seconds"] for row in run.history),
        "versions": versions("torch", "numpy", "safetensors"),
        "hardware": hardware() | {"device": str(run.pixels.device)},
        "history": [{name: float(f"{value:.7g}") for name, value in row.items()} for row in run.history],
    }


def data_digests(*splits: Images) -> dict[str, str]:
    """Return the SHA-256 of each split's pixels, by the split's name."""
    return {images.split: digest(images.pixels.numpy().tobytes()) for images in splits}


def versions(*packages: str) -> dict[str, str]:
    """Return the versions of Python and of some packages, for a manifest."""
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def hardware() -> dict[str, object]:
    """Return the processor and the number of threads in use, for a manifest."""
    return {"processor": processor(), "threads": torch.get_num_threads()}


def processor() -> str:
    """Return the processor's name, or its architecture where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def terms_row(prefix: str, reconstruction: float, kl: float) -> Row:
    """Name the terms of an ELBO, in nats a point, for a history or manifest."""
    return {f"{prefix}_elbo": reconstruction - kl, f"{prefix}_reconstruction": reconstruction, f"{prefix}_kl": kl}


@torch.no_grad()
def evaluate(vae: VAE, pixels: Tensor, *, prefix: str = "test", chunk: int = 4096) -> Row:
    """Return mean ELBO, reconstruction term and KL in nats a point, unweighted by beta.

    Parameters
    ----------
    vae : VAE
    pixels : Tensor, shape (n, 784)
    prefix : str
        What the keys begin with.
    chunk : int
        Points at a time; bounds the memory, and leaves the result as it is but for rounding.

    Returns
    -------
    dict
        Keys ``{prefix}_elbo``, ``{prefix}_reconstruction``, ``{prefix}_kl``. One sample of z a point, from a
        fixed seed: two models, or one model before and after rounding, meet the same noise.
    """
    generator = torch.Generator(pixels.device).manual_seed(EVALUATION_SEED)
    eta = torch.randn(len(pixels), vae.latents, generator=generator, device=pixels.device)
    sums = torch.zeros(2, dtype=torch.float64)
    for x, noise in zip(pixels.split(chunk), eta.split(chunk), strict=True):
        sums += torch.tensor([float(term.double().sum()) for term in elbo_terms(vae, x, noise)], dtype=torch.float64)
    return terms_row(prefix, *(sums / len(pixels)).tolist())
