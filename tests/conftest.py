"""What the tests share: models with known answers, a small random network, small fake images.

A statistical test compares with an exact law, and its limit is the quantile of that law beyond which chance goes with
probability ALARM. Seeds are set once; a test that fails has found something, or one of a million unlucky seeds.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import settings
from scipy import stats
from torch import Tensor

from vaerobust.data import Images
from vaerobust.linear import LinearGaussianVAE
from vaerobust.model import VAE

ALARM = 1e-6
"""Probability with which a statistical test may fail by chance."""

DOUBLE = 1e-11
"""Relative error that a few thousand roundings in double precision may add up to, in the norms of these small models:
each is 1.1e-16, and sums of up to 1,000 terms in another order differ by less than 1,000 of them, a hundredfold."""

# several threads cost these small tensors more than they give, and results should not depend on the machine
torch.set_num_threads(1)
# fixed examples and no clock: a test gives the same answer on every run and machine
settings.register_profile("fixed", derandomize=True, deadline=None, database=None, max_examples=50)
settings.load_profile("fixed")


def seeded(seed: int) -> torch.Generator:
    """Return a generator of its own for a test."""
    return torch.Generator().manual_seed(seed)


def uniform(*shape: int, seed: int = 0) -> Tensor:
    """Return numbers in [0, 1) in double precision: pixels."""
    return torch.rand(*shape, generator=seeded(seed), dtype=torch.float64)


def most_misses(trials: int, probability: float) -> int:
    """Return the number of misses that chance exceeds with probability ALARM, when each has the given one at most."""
    return int(stats.binom.ppf(1 - ALARM, trials, probability))


def follows(samples: Tensor, cdf: Callable) -> bool:
    """Tell whether a Kolmogorov-Smirnov test accepts the distribution, at the level ALARM."""
    return bool(stats.kstest(samples.flatten().double().numpy(), cdf).pvalue > ALARM)


class SpreadingVAE(LinearGaussianVAE):
    """A linear VAE whose sigma depends on the input alone through its length: sigma(x) = s exp(||x||_2)."""

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mu, sigma = super().encode(x)
        return mu, sigma * torch.exp(x.norm(dim=-1, keepdim=True))


def square_model(latents: int = 4, *, gain: float = 2.0, sigma: float = 0.1, kind: type = LinearGaussianVAE):
    """Return a linear VAE whose A is ``gain`` times a rotation: every direction is a worst one."""
    model = kind(latents, latents, sigma=sigma)
    model.weight = gain * torch.linalg.qr(model.weight).Q
    return model


def graded_model(pixels: int = 20, latents: int = 4, *, sigma: float = 0.1):
    """Return a linear VAE whose A has the singular values 1, 1/2, 1/4, ...: one direction is far the worst."""
    model = LinearGaussianVAE(pixels, latents, sigma=sigma)
    left, _, right = torch.linalg.svd(model.weight, full_matrices=False)
    model.weight = left @ torch.diag(0.5 ** torch.arange(latents, dtype=torch.float64)) @ right
    return model


def random_vae(
    pixels: int = 12, hidden: int = 16, latents: int = 3, *, gain: float = 3.0, seed: int = 0, **options: object
) -> VAE:
    """Return a ReLU network with random weights in double precision, ``gain`` times torch's default ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = VAE(pixels, hidden, latents, **options).double()
    for weight in vae.parameters():
        weight.data.mul_(gain)
    return vae.requires_grad_(False)


@pytest.fixture(params=[(50, 5, 0.1), (7, 7, 2.0), (3, 1, 0.5)], ids=["50-5", "7-7", "3-1"])
def linear(request: pytest.FixtureRequest) -> LinearGaussianVAE:
    """Linear VAEs of several shapes."""
    pixels, latents, sigma = request.param
    return LinearGaussianVAE(pixels, latents, sigma=sigma)


@pytest.fixture
def square() -> LinearGaussianVAE:
    return square_model()


@pytest.fixture
def graded() -> LinearGaussianVAE:
    return graded_model()


@pytest.fixture
def vae() -> VAE:
    return random_vae()


@pytest.fixture
def fake_images() -> Callable[..., Images]:
    """Make images that an autoencoder can learn: a bright square whose place and brightness vary."""

    def make(n: int = 300, split: str = "train", dataset: str = "mnist") -> Images:
        generator = seeded({"train": 1, "test": 2}[split])
        pixels = 0.1 * torch.rand(n, 28, 28, generator=generator)
        labels = torch.randint(10, (n,), generator=generator)
        for image, label in zip(pixels, labels, strict=True):
            image[2 * label : 2 * label + 8, 10:18] += 0.9 * torch.rand(1, generator=generator)
        return Images(pixels.flatten(1), labels, dataset, split, "made for a test")

    return make
