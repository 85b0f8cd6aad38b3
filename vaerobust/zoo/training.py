"""Training by the protocol of Appendix F: Adam at 1e-3, batches of 512, 100 epochs.

Start at :func:`train`, which trains one model and writes it; :class:`Run` is a training run that can be stopped after
any epoch and continued. Which models are trained is in :mod:`vaerobust.zoo.protocol`.

All images are held in memory as one tensor, and one indexing operation takes a batch from it. So an epoch costs little
more than its matrix products. A checkpoint after every epoch holds the weights, Adam's moments and the state of the
generator. A run that was killed continues from its last checkpoint and ends bit for bit with the weights of an
uninterrupted run.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from vaerobust.model import LikelihoodVAE, elbo_terms, kl_to_prior, total_correlation
from vaerobust.zoo.data import Images
from vaerobust.zoo.files import clean_temporaries, digest, write_atomically
from vaerobust.zoo.machine import hardware, versions
from vaerobust.zoo.manifest import Epoch, FinalTerms, ImagesUsed, Manifest, SplitsUsed
from vaerobust.zoo.protocol import Spec
from vaerobust.zoo.sealed import BROKEN, seal, unseal
from vaerobust.zoo.typed_json import from_plain, to_plain
from vaerobust.zoo.weights import load_model, save_model

EVALUATION_SEED = 1
"""Seed of the noise with which every model is evaluated."""
MATMUL_PRECISION = {"float32": "highest", "bfloat16": "medium"}
"""The argument of ``torch.set_float32_matmul_precision`` for each value of ``Spec.precision``."""


@dataclass(frozen=True)
class ElboTerms:
    """Mean ELBO per point in nats, not weighted by beta, with its two terms: elbo = reconstruction - kl.

    Attributes
    ----------
    elbo, reconstruction, kl : float
    """

    elbo: float
    reconstruction: float
    kl: float


class Run:
    """A training run that can be stopped and continued after any epoch.

    Parameters
    ----------
    spec : Spec
    train, test : Images
        The two splits of ``spec.dataset``.
    device : str or torch.device
        Where to train: 'cpu', or 'cuda' where there is a GPU.

    Attributes
    ----------
    vae : VAE or ConvolutionalVAE
    history : list of Epoch
        The epochs so far.

    Raises
    ------
    ValueError
        If the images are of another data set.
    """

    def __init__(self, spec: Spec, train: Images, test: Images, device: str | torch.device = "cpu") -> None:
        for images in (train, test):
            if images.dataset != spec.dataset:
                raise ValueError(f"{images.split} must be images of {spec.dataset!r}, but are of {images.dataset!r}")
        self.spec, self.train, self.test = spec, train, test
        self.data = data_digests(train, test)
        self.pixels, self.test_pixels = train.pixels.to(device), test.pixels.to(device)
        self.vae = spec.build().to(device).eval()
        # The fused step reads and writes each moment once; the default passes over them once per operation.
        self.adam = torch.optim.Adam(self.vae.parameters(), lr=spec.learning_rate, fused=True)
        self.generator = torch.Generator(device).manual_seed(spec.seed)
        self.history: list[Epoch] = []

    def epoch(self) -> Epoch:
        """Train for one pass over the images in a new random order; add the epoch to the history and return it.

        Raises
        ------
        FloatingPointError
            If the loss is NaN or infinite.
        """
        start = time.perf_counter()
        torch.set_float32_matmul_precision(MATMUL_PRECISION[self.spec.precision])
        n = len(self.pixels)
        sums = torch.zeros(2, device=self.pixels.device)  # of reconstruction term and KL term
        self.vae.train()  # batch normalisation, where there is any, takes the statistics of each batch
        order = torch.randperm(n, generator=self.generator, device=self.pixels.device)
        for rows in order.split(self.spec.batch_size):
            sums += self.step(self.pixels[rows])
        self.vae.eval()
        mean_reconstruction, mean_kl = (sums / n).tolist()
        seconds = time.perf_counter() - start
        train = elbo_of(mean_reconstruction, mean_kl)
        test = evaluate(self.vae, self.test_pixels)
        self.history.append(
            Epoch(seconds, train.elbo, train.reconstruction, train.kl, test.elbo, test.reconstruction, test.kl)
        )
        return self.history[-1]

    def step(self, x: Tensor) -> Tensor:
        """Make one step of Adam; return the sums of the batch's reconstruction and KL terms before it, shape (2,).

        Parameters
        ----------
        x : Tensor, shape (batch, 784)

        Raises
        ------
        FloatingPointError
            If the loss is NaN or infinite.
        """
        eta = torch.randn(len(x), self.spec.latents, generator=self.generator, device=x.device)
        loss, reconstruction, kl = objective(self.vae, x, eta, self.spec)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"{self.spec.name}: the loss is {loss.item()} in epoch {len(self.history) + 1}")
        self.adam.zero_grad()
        loss.backward()
        self.adam.step()
        return torch.stack([reconstruction.detach().sum(), kl.detach().sum()])

    def checkpoint(self) -> bytes:
        """Return the whole state as the bytes of a safetensors file, whose header has the history and a digest."""
        tensors = {f"weights.{name}": value for name, value in self.vae.state_dict().items()}
        for i, moments in self.adam.state_dict()["state"].items():
            tensors |= {f"adam.{i}.{name}": value for name, value in moments.items()}
        tensors["generator"] = self.generator.get_state()
        state = {"spec": asdict(self.spec), "data": self.data, "history": to_plain(self.history)}
        return seal(tensors, state)

    def resume(self, path: Path) -> None:
        """Continue from the state in a checkpoint file.

        Raises
        ------
        ValueError
            If the file is corrupt, or is of another run.
        """
        try:
            tensors, record = unseal(path.read_bytes())
            spec, data = record["spec"], record["data"]
            history = from_plain(tuple[Epoch, ...], record["history"], "history")
        except BROKEN as error:
            raise ValueError(f"checkpoint {path} is corrupt ({error}); delete it to train from the start") from error
        if spec != asdict(self.spec):
            raise ValueError(f"checkpoint {path} is of another run, {spec}; delete it to train {asdict(self.spec)}")
        if data != self.data:
            raise ValueError(f"checkpoint {path} is of a run on other images; delete it to train on these")
        prefix = "weights."
        self.vae.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("adam."):
                _, i, name = key.split(".")
                moments.setdefault(int(i), {})[name] = value
        self.adam.load_state_dict({"state": moments, "param_groups": self.adam.state_dict()["param_groups"]})
        self.generator.set_state(tensors["generator"])
        self.history = list(history)


def objective(vae: LikelihoodVAE, x: Tensor, eta: Tensor, spec: Spec) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss that training minimises, shape (), and both terms of the ELBO at each point, shape (n,).

    The objective of the beta-VAE weights the KL term by beta (Section 2.3). That of the beta-TC-VAE (Chen et al. 2018)
    splits the mean of the KL term over the data into parts and weights one of them, the total correlation of the
    latents. All parts add up to the KL term, so the objective is computed as the KL term plus beta - 1 times the total
    correlation.

    Parameters
    ----------
    vae : LikelihoodVAE
    x : Tensor, shape (n, 784)
    eta : Tensor, shape (n, d_z)
        Standard normal noise.
    spec : Spec
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
    progress: Callable[[int, Epoch], None] | None = None,
) -> Path:
    """Train one model, or continue training it, and write its weights and its manifest.

    Parameters
    ----------
    spec : Spec
    train_images, test_images : Images
        Both splits of ``spec.dataset``.
    folder : path
        Gets ``NAME.safetensors`` (weights in float16) and ``NAME.json`` (manifest). During training
        ``NAME.checkpoint`` holds the state after the last finished epoch.
    device : str or torch.device
        Where to train.
    progress : callable, optional
        Called after each epoch with the number of epochs done and the last epoch.

    Returns
    -------
    path
        The file of the weights. Nothing is trained if the file is there already, with a manifest of the same spec and
        the same images.

    Raises
    ------
    ValueError
        If the folder has a checkpoint or a model of this name that is corrupt or comes from another run.
    """
    folder = Path(folder)
    for end in ("safetensors", "json", "checkpoint"):
        clean_temporaries(folder, f"{spec.name}.{end}.*")
    weights, manifest, checkpoint = (folder / f"{spec.name}.{end}" for end in ("safetensors", "json", "checkpoint"))
    if weights.exists() and manifest.exists():
        found = load_model(weights, spec).manifest
        digests = {"train": found.data.train.sha256, "test": found.data.test.sha256}
        if (found.spec, digests) != (spec, data_digests(train_images, test_images)):
            raise ValueError(f"{manifest} is of another run; choose another folder or delete it")
        return weights
    run = Run(spec, train_images, test_images, device)
    if checkpoint.exists():
        run.resume(checkpoint)
    while len(run.history) < spec.epochs:
        epoch = run.epoch()
        write_atomically(checkpoint, run.checkpoint())
        if progress:
            progress(len(run.history), epoch)
    save_model(weights, run.vae, describe(run))
    checkpoint.unlink(missing_ok=True)
    return weights


def describe(run: Run) -> Manifest:
    """Return the manifest of a finished run; :func:`vaerobust.zoo.weights.save_model` adds the digests."""
    train, test = evaluate(run.vae, run.pixels), evaluate(run.vae, run.test_pixels)
    return Manifest(
        spec=run.spec,
        final=FinalTerms(train.elbo, train.reconstruction, train.kl, test.elbo, test.reconstruction, test.kl),
        data=SplitsUsed(images_used(run.train), images_used(run.test)),
        seconds=sum(epoch.seconds for epoch in run.history),
        versions=versions("torch", "numpy", "safetensors"),
        hardware=hardware(str(run.pixels.device)),
        history=tuple(with_seven_digits(epoch) for epoch in run.history),
        weights_sha256="",
        sha256="",
    )


def with_seven_digits(epoch: Epoch) -> Epoch:
    """Return an epoch with its numbers rounded to seven significant digits, about as many as float32 has."""
    return Epoch(**{name: float(f"{value:.7g}") for name, value in asdict(epoch).items()})


def images_used(images: Images) -> ImagesUsed:
    """Return what a manifest says of a split: source, number and digest of its images."""
    return ImagesUsed(images.source, len(images), data_digests(images)[images.split])


def data_digests(*splits: Images) -> dict[str, str]:
    """Return the SHA-256 of the pixels of each split, by the name of the split."""
    return {images.split: digest(images.pixels.numpy().tobytes()) for images in splits}


def elbo_of(reconstruction: float, kl: float) -> ElboTerms:
    """Return the ELBO with its terms, in nats per point."""
    return ElboTerms(reconstruction - kl, reconstruction, kl)


@torch.no_grad()
def evaluate(vae: LikelihoodVAE, pixels: Tensor, *, chunk: int = 4096) -> ElboTerms:
    """Return the mean ELBO and its terms in nats per point, not weighted by beta, with one sample of z per point.

    The noise has a fixed seed, so that two models, or one model before and after rounding, are compared with equal
    noise.

    Parameters
    ----------
    vae : LikelihoodVAE
    pixels : Tensor, shape (n, 784)
    chunk : int
        Points at a time. It bounds the memory and changes the result by rounding only.
    """
    generator = torch.Generator(pixels.device).manual_seed(EVALUATION_SEED)
    eta = torch.randn(len(pixels), vae.latents, generator=generator, device=pixels.device)
    sums = torch.zeros(2, dtype=torch.float64)
    for x, noise in zip(pixels.split(chunk), eta.split(chunk), strict=True):
        sums += torch.tensor([float(term.double().sum()) for term in elbo_terms(vae, x, noise)], dtype=torch.float64)
    return elbo_of(*(sums / len(pixels)).tolist())
