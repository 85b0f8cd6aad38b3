"""VAEs in the styles that people write, trained for a few epochs on images that ship."""

from __future__ import annotations

import functools
from collections import namedtuple
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from vaerobust.zoo import data

IMAGES = 600
"""Images of the sample that the models are trained on; the others are measured."""

Pair = namedtuple("Pair", ["mu", "log_var"])


class Perceptron(nn.Module):
    """In the style of PyTorch's own example: flat images, a pair of mean and log-variance, a sigmoid at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.mu, self.logvar = nn.Linear(784, 64), nn.Linear(64, 8), nn.Linear(64, 8)
        self.back, self.out = nn.Linear(8, 64), nn.Linear(64, 784)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = F.relu(self.hidden(x))
        return self.mu(hidden), self.logvar(hidden)

    def decode(self, z: Tensor) -> Tensor:
        return torch.sigmoid(self.out(F.relu(self.back(z))))


class Convolutional(nn.Module):
    """Images of shape (1, 28, 28), BatchNorm, dropout, and a decoder that returns logits."""

    def __init__(self, *, pooling: bool = False) -> None:
        super().__init__()
        stride = 1 if pooling else 2
        self.features = nn.Sequential(
            nn.Conv2d(1, 6, 3, stride, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2) if pooling else nn.Identity(),
            nn.Conv2d(6, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.1), nn.Flatten(),
        )  # fmt: skip
        self.mu, self.logvar, self.up = nn.Linear(392, 6), nn.Linear(392, 6), nn.Linear(6, 392)
        self.back = nn.Sequential(
            nn.ReLU(),
            nn.ConvTranspose2d(8, 6, 4, 2, 1),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.ConvTranspose2d(6, 1, 4, 2, 1),
        )

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(x)
        return self.mu(features), self.logvar(features)

    def decode(self, z: Tensor) -> Tensor:
        return self.back(self.up(z).view(-1, 8, 7, 7))


class Distributional(Convolutional):
    """The same, with distributions for both halves."""

    def encode(self, x: Tensor) -> Independent:
        mu, log_variance = super().encode(x)
        return Independent(Normal(mu, torch.exp(0.5 * log_variance)), 1)

    def decode(self, z: Tensor) -> Independent:
        return Independent(torch.distributions.Bernoulli(logits=super().decode(z)), 3)


class Signed(nn.Module):
    """Inputs and outputs normalised to [-1, 1], a tanh at the end, and a single tensor with mean and log-variance."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(784, 48), nn.SiLU(), nn.Linear(48, 12))
        self.decoder = nn.Sequential(
            nn.Linear(6, 48), nn.SiLU(), nn.Linear(48, 784), nn.Tanh(), nn.Unflatten(1, (1, 28, 28))
        )


def sample() -> Tensor:
    """Return images that ship, shape (1000, 784)."""
    return data.read_sample("mnist")[0]


def held_out(n: int) -> Tensor:
    """Return images that no model was trained on, shape (n, 1, 28, 28)."""
    return sample()[IMAGES : IMAGES + n].unflatten(1, (1, 28, 28))


Gaussian = Callable[[nn.Module, Tensor], tuple[Tensor, Tensor]]
Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


def trained(model: nn.Module, gaussian: Gaussian, loss: Loss, *, epochs: int = 4) -> nn.Module:
    """Train a model in its own style, and return it in evaluation mode."""
    pixels = sample()[:IMAGES].unflatten(1, (1, 28, 28))
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(epochs):
        for batch in pixels.split(60):
            mu, log_variance = gaussian(model, batch)
            z = mu + torch.exp(0.5 * log_variance) * torch.randn_like(mu)
            kl = 0.5 * (mu**2 + log_variance.exp() - 1 - log_variance).sum()
            optimiser.zero_grad()
            ((loss(model, z, batch) + kl) / len(batch)).backward()
            optimiser.step()
    return model.eval().requires_grad_(False)


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    """Build and train with randomness of its own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build()


@functools.cache
def perceptron() -> nn.Module:
    return seeded(
        lambda: trained(
            Perceptron(),
            lambda model, batch: model.encode(batch.flatten(1)),
            lambda model, z, batch: F.binary_cross_entropy(model.decode(z), batch.flatten(1), reduction="sum"),
        )
    )


@functools.cache
def convolutional(*, pooling: bool = False) -> nn.Module:
    return seeded(
        lambda: trained(
            Convolutional(pooling=pooling),
            lambda model, batch: model.encode(batch),
            lambda model, z, batch: F.binary_cross_entropy_with_logits(model.decode(z), batch, reduction="sum"),
        )
    )


@functools.cache
def distributional() -> nn.Module:
    model = Distributional()
    model.load_state_dict(convolutional().state_dict())
    return model.eval().requires_grad_(False)


@functools.cache
def signed() -> nn.Module:
    return seeded(
        lambda: trained(
            Signed(),
            lambda model, batch: model.encoder(2 * batch - 1).chunk(2, dim=1),
            lambda model, z, batch: 2 * (model.decoder(z) - (2 * batch - 1)).pow(2).sum(),
        )
    )
