"""Models that others wrote, and modules in well-known styles, are measured in a few lines."""

from __future__ import annotations

import logging
import math

import pytest
import torch
import torch.nn.functional as F
import usual_models
from pythae import models
from pythae.models.nn.benchmarks.mnist import Decoder_Conv_AE_MNIST, Encoder_Conv_VAE_MNIST
from torch import Tensor, nn
from usual_models import held_out

import vaerobust

SHAPE = (1, 28, 28)
STYLES = {
    "perceptron": lambda: vaerobust.wrap(usual_models.perceptron(), shape=(784,), scale="log_variance"),
    "convolutional": lambda: vaerobust.wrap(
        usual_models.convolutional(), shape=SHAPE, scale="log_variance", logits=True
    ),
    "distributional": usual_models.distributional,
    "signed": lambda: vaerobust.wrap(
        usual_models.signed(), shape=SHAPE, scale="log_variance", normalise=(0.5, 0.5), outputs="normalised",
        encode=lambda x: usual_models.signed().encoder(x).chunk(2, dim=1),
    ),
}  # fmt: skip


def order_holds(table) -> bool:
    """Tell whether no certified margin is above a confirmed attack, and all margins are positive."""
    columns = ["theorem_1", "second_moment", "attack", "random_direction"]
    positive = bool((table[columns] > 0).all(axis=None))
    return positive and bool((table["certified"] <= table["attack"])[table["attack_confirmed"]].all())


@pytest.mark.parametrize("style", STYLES)
def test_modules_in_well_known_styles_are_measured(style, tmp_path):
    found = vaerobust.measure(STYLES[style](), held_out(1), samples=1000, progress=False)
    assert found.missing == {}
    assert order_holds(found.table)
    assert (found.table["certified"] > 0).all()
    found.save(tmp_path)


def test_distributions_give_the_numbers_of_the_pair_that_they_are_made_of():
    """The wrapped pair of log-variance and logits is the same model, said in other words."""
    x = held_out(3).flatten(1)
    pair, distribution = STYLES["convolutional"](), vaerobust.wrap(usual_models.distributional(), shape=SHAPE)
    for one, other in zip(pair.encode(x), distribution.encode(x), strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(pair.decode(pair.encode(x)[0]), distribution.decode(pair.encode(x)[0]))


def test_max_pooling_has_no_certificate_and_all_else():
    module = usual_models.convolutional(pooling=True)
    model = vaerobust.wrap(module, shape=SHAPE, scale="log_variance", logits=True)
    found = vaerobust.measure(model, held_out(1), samples=500, progress=False)
    assert "pool" in found.missing["certified"]
    assert "features.3" in found.missing["certified"]
    assert found.table["certified"].isna().all()
    assert not found.table[["theorem_1", "second_moment", "attack", "random_direction"]].isna().any(axis=None)


def test_an_unwrapped_module_on_images_asks_for_what_is_ambiguous():
    with pytest.raises(ValueError, match=r"scale must be given, .*\"log_variance\""):
        vaerobust.measure(usual_models.convolutional(), held_out(1))
    model = usual_models.Convolutional()
    with pytest.raises(ValueError, match=r"evaluation mode, .* features.1 \(BatchNorm2d\)"):
        vaerobust.wrap(model, shape=SHAPE, scale="log_variance", logits=True)


def pythae_model(kind: str, images: int = 600) -> nn.Module:
    """Return a VAE of pythae, trained for one epoch by its own loss on few images."""
    logging.getLogger("pythae").setLevel(logging.ERROR)
    config = models.VAEConfig(input_dim=SHAPE, latent_dim=4, reconstruction_loss="bce")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if kind == "perceptron":
            model = models.VAE(config)
        else:
            model = models.VAE(config, encoder=Encoder_Conv_VAE_MNIST(config), decoder=Decoder_Conv_AE_MNIST(config))
        optimiser = torch.optim.Adam(model.parameters(), 1e-3)
        for batch in usual_models.sample()[:images].unflatten(1, SHAPE).split(60):
            optimiser.zero_grad()
            model({"data": batch}).loss.backward()
            optimiser.step()
    return model.eval().requires_grad_(False)


def test_a_perceptron_of_pythae_is_measured_as_it_is():
    model = pythae_model("perceptron")
    found = vaerobust.measure(model, held_out(1), samples=1000, progress=False)
    assert found.missing == {}
    assert order_holds(found.table)
    x = held_out(2)
    mu, sigma = vaerobust.wrap(model, shape=SHAPE).encode(x.flatten(1))
    output = model.encoder(x)
    assert torch.equal(mu, output.embedding)
    assert torch.equal(sigma, torch.exp(0.5 * output.log_covariance))


def test_a_convolutional_model_of_pythae_is_wrapped_and_keeps_its_memory():
    """Its activations take a hundred times the memory of the images, so many rows pass in parts."""
    model = vaerobust.wrap(pythae_model("convolutional", images=60), shape=SHAPE)
    x = held_out(2).flatten(1)
    sizes = []
    model.module.decoder.layers[0].register_forward_hook(lambda layer, given, out: sizes.append(len(given[0])))
    mu, sigma = model.encode(x)
    with torch.no_grad():
        z = mu[:1] + sigma[:1] * torch.randn(700, 4, generator=torch.Generator().manual_seed(0))
        out = model.decode(z)
    assert out.shape == (700, 784)
    assert max(sizes) * 784 <= 2**19
    assert sum(sizes) == 700


def test_the_three_lines_of_diffusers_style():
    """An object with latent_dist from encode, one with sample from decode, and latents of shape (c, h, w)."""

    class Output:
        def __init__(self, **fields: object) -> None:
            vars(self).update(fields)

    class Autoencoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down, self.up = nn.Conv2d(1, 4, 7, 7), nn.ConvTranspose2d(2, 1, 7, 7)

        def encode(self, x: Tensor) -> Output:
            mean, log_variance = self.down(x).chunk(2, dim=1)
            return Output(latent_dist=Output(mean=mean, std=torch.exp(0.5 * log_variance)))

        def decode(self, z: Tensor) -> Output:
            return Output(sample=torch.sigmoid(self.up(z)))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Autoencoder().eval()
    found = vaerobust.measure(model, held_out(1), samples=1000, progress=False)
    assert math.isfinite(found.table["attack"][0])
    assert F.mse_loss(torch.as_tensor(found.pictures["reconstruction"]), held_out(1).flatten(1)) < 1
