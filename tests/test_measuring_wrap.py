"""What people's modules return becomes mean and standard deviation on flat rows, or an error that asks by name."""

from __future__ import annotations

import math
from collections import namedtuple
from types import SimpleNamespace

import pytest
import torch
from conftest import seeded, uniform
from hypothesis import given
from hypothesis import strategies as some
from torch import Tensor, nn
from torch.distributions import Bernoulli, Beta, Independent, MultivariateNormal, Normal

from vaerobust.jacobians import encoder_jacobian
from vaerobust.measuring.wrap import wrap

SHAPE = (2, 3, 4)
Named = namedtuple("Named", ["mu", "logvar", "features"])


class Reference(nn.Module):
    """A module on images of shape (2, 3, 4); ``mu`` and ``sigma`` are what any convention must come to."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.mean, self.scale_of, self.back = nn.Linear(24, 5), nn.Linear(24, 5), nn.Linear(5, 24)
        self.double()

    def mu(self, x: Tensor) -> Tensor:
        return self.mean(x.flatten(1))

    def sigma(self, x: Tensor) -> Tensor:
        return 0.1 + torch.sigmoid(self.scale_of(x.flatten(1)))

    def means(self, z: Tensor) -> Tensor:
        return torch.sigmoid(self.back(z)).unflatten(1, SHAPE)


CONVENTIONS = {
    "sigma": (lambda m, s: (m, s), {"scale": "sigma"}),
    "variance": (lambda m, s: (m, s**2), {"scale": "variance"}),
    "log-variance": (lambda m, s: (m, 2 * s.log()), {"scale": "log_variance"}),
    "log-sigma": (lambda m, s: [m, s.log()], {"scale": "log_sigma"}),
    "normal": (lambda m, s: Normal(m, s), {}),
    "independent": (lambda m, s: Independent(Normal(m, s), 1), {}),
    "diffusers": (lambda m, s: SimpleNamespace(latent_dist=SimpleNamespace(mean=m, std=s)), {}),
    "own distribution": (lambda m, s: SimpleNamespace(mean=m, std=s), {}),
    "pythae": (lambda m, s: {"embedding": m, "log_covariance": 2 * s.log()}, {}),
    "mapping": (lambda m, s: {"mu": m, "std": s, "features": m}, {}),
    "named tuple": (lambda m, s: Named(m, 2 * s.log(), m), {}),
    "named tuple and scale": (lambda m, s: Named(m, 2 * s.log(), m), {"scale": "log_variance"}),
}


@pytest.mark.parametrize("name", CONVENTIONS)
def test_every_convention_of_an_encoder_comes_to_the_same(name):
    returned, options = CONVENTIONS[name]
    module = Reference()
    module.encode = lambda x: returned(module.mu(x), module.sigma(x))
    module.decode = module.means
    model = wrap(module, shape=SHAPE, **options)
    x = uniform(6, 24)
    images = x.unflatten(1, SHAPE)
    mu, sigma = model.encode(x)
    assert torch.equal(mu, module.mu(images))
    torch.testing.assert_close(sigma, module.sigma(images), rtol=1e-12, atol=0)


OUTPUTS = {
    "images": lambda module, z: module.means(z),
    "rows": lambda module, z: module.means(z).flatten(1),
    "bernoulli": lambda module, z: Bernoulli(module.means(z)),
    "independent": lambda module, z: Independent(Normal(module.means(z), 1.0), 3),
    "pythae": lambda module, z: {"reconstruction": module.means(z), "features": z},
    "diffusers": lambda module, z: SimpleNamespace(sample=module.means(z)),
    "tuple": lambda module, z: (z, module.means(z)),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_every_convention_of_a_decoder_comes_to_the_same(name):
    module = Reference()
    model = wrap(
        module, shape=SHAPE, scale="sigma", encode=lambda x: (module.mu(x), module.sigma(x)),
        decode=lambda z: OUTPUTS[name](module, z),
    )  # fmt: skip
    z = uniform(4, 5)
    assert torch.equal(model.decode(z), module.means(z).flatten(1))


def test_logits_become_means():
    module = Reference()
    module.encode = lambda x: (module.mu(x), module.sigma(x))
    module.decode = lambda z: module.back(z)
    model = wrap(module, shape=SHAPE, scale="sigma", logits=True)
    z = uniform(4, 5)
    assert torch.equal(model.decode(z), module.means(z).flatten(1))


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("outputs", ["pixels", "normalised"])
def test_normalised_inputs_are_pixels_to_the_outside(outputs, per_channel):
    mean, std = ([0.2, 0.6], [0.5, 2.0]) if per_channel else (0.3, 0.5)
    at = [torch.tensor(one, dtype=torch.float64).reshape(-1, 1, 1) for one in (mean, std)]
    module = Reference()
    module.encode = lambda x: (module.mu(x), module.sigma(x))
    module.decode = module.means
    model = wrap(module, shape=SHAPE, scale="sigma", normalise=(mean, std), outputs=outputs)
    x = uniform(3, 24)
    normal = (x.unflatten(1, SHAPE) - at[0]) / at[1]
    torch.testing.assert_close(model.encode(x)[0], module.mu(normal), rtol=1e-12, atol=1e-12)
    out = module.means(module.mu(normal))
    out = out * at[1] + at[0] if outputs == "normalised" else out
    torch.testing.assert_close(model.decode(module.mu(normal)), out.flatten(1), rtol=1e-12, atol=1e-12)


def test_latents_of_any_shape_are_flat_rows_to_the_outside():
    module = nn.Module()
    module.down, module.up = nn.Conv2d(1, 2, 3, 2, 1), nn.ConvTranspose2d(2, 1, 4, 2, 1)
    module.encode = lambda x: Normal(module.down(x), 0.5)
    module.decode = lambda z: torch.sigmoid(module.up(z))
    model = wrap(module, shape=(1, 8, 8))
    x = torch.rand(3, 64, generator=seeded(1))
    mu, sigma = model.encode(x)
    assert model.latent_shape == (2, 4, 4)
    assert mu.shape == sigma.shape == (3, 32)
    assert torch.equal(model.decode(mu), module.decode(module.down(x.view(3, 1, 8, 8))).flatten(1))


@pytest.mark.parametrize("shape", [(6, 1), (1, 5), ()])
def test_a_shared_sigma_belongs_to_every_latent(shape):
    module = Reference()
    shared = lambda x: torch.full(shape if shape[:1] != (6,) else (len(x), 1), 0.3, dtype=x.dtype)
    model = wrap(module, shape=SHAPE, scale="sigma", encode=lambda x: (module.mu(x), shared(x)), decode=module.means)
    assert torch.equal(model.encode(uniform(6, 24))[1], torch.full((6, 5), 0.3, dtype=torch.float64))


def test_many_rows_pass_in_parts_and_give_the_same():
    module = Reference()
    model = wrap(
        module, shape=SHAPE, scale="sigma", encode=lambda x: (module.mu(x), module.sigma(x)), decode=module.means
    )
    seen = []
    model._encode = lambda x: (seen.append(len(x)), (module.mu(x), module.sigma(x)))[1]
    x = uniform(50_000, 24)
    whole = model.encode(x)
    with torch.no_grad():
        parts = model.encode(x)
    assert seen[0] == 50_000
    assert max(seen[1:]) < 50_000
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_gradients_are_those_of_the_module():
    module = Reference()
    model = wrap(
        module, shape=SHAPE, scale="sigma", encode=lambda x: (module.mu(x), module.sigma(x)), decode=module.means
    )
    x = uniform(2, 24)
    torch.testing.assert_close(encoder_jacobian(model, x), module.mean.weight.expand(2, -1, -1), rtol=1e-12, atol=1e-12)
    assert torch.equal(model.mean_network()(x), model.encode(x)[0])


@given(some.lists(some.integers(1, 4), min_size=1, max_size=4))
def test_images_of_any_shape_are_rows_to_the_outside(shape):
    size = math.prod(shape)
    model = wrap(
        nn.Identity(), shape=shape, encode=lambda x: Normal(x.flatten(1), 1.0), decode=lambda z: z.reshape(-1, *shape)
    )
    x = torch.rand(3, size, generator=seeded(0))
    mu, sigma = model.encode(x)
    assert torch.equal(mu, x)
    assert torch.equal(sigma, torch.ones_like(x))
    assert torch.equal(model.decode(x), x)


def pair(module, x):
    return module.mu(x), 2 * module.sigma(x).log()


FAULTS = {
    "a pair without a scale": ({"encode": pair}, ValueError, ["scale", '"log_variance"', '"sigma"']),
    "a log-variance taken for sigma": ({"encode": pair, "scale": "sigma"}, ValueError, ["scale", "log_var", "> 0"]),
    "an unknown scale": ({"encode": pair, "scale": "std"}, ValueError, ["scale", "'std'"]),
    "three tensors": (
        {"encode": lambda m, x: (*pair(m, x), x), "scale": "log_variance"}, TypeError, ["encode", "tuple of 3"]
    ),
    "one tensor": ({"encode": lambda m, x: m.mu(x)}, TypeError, ["encode", "one tensor of shape (2, 5)", "chunk"]),
    "a distribution and a scale": (
        {"encode": lambda m, x: Normal(m.mu(x), 1.0), "scale": "log_variance"}, ValueError, ["scale", "left out"]
    ),
    "names and another scale": (
        {"encode": lambda m, x: Named(m.mu(x), m.mu(x), x), "scale": "sigma"}, ValueError, ["scale", "logvar"]
    ),
    "names without a scale": ({"encode": lambda m, x: {"mu": m.mu(x)}}, ValueError, ["encode", "mu"]),
    "no normal distribution": ({"encode": lambda m, x: Beta(m.sigma(x), m.sigma(x))}, TypeError, ["encode", "Beta"]),
    "a full covariance": (
        {"encode": lambda m, x: MultivariateNormal(m.mu(x), torch.eye(5).double())}, TypeError, ["MultivariateNormal"]
    ),
    "logits that are not named": ({"decode": lambda m, z: m.back(z)}, ValueError, ["logits", "True", "False"]),
    "outputs of another size": ({"decode": lambda m, z: m.back(z)[:, :20]}, ValueError, ["decode", "(2, 3, 4)"]),
    "two outputs": ({"decode": lambda m, z: (m.means(z), m.means(z))}, ValueError, ["decode", "tuple of 2", "lambda"]),
    "a text": ({"decode": lambda m, z: "image"}, TypeError, ["decode", "str"]),
    "another shape": ({"shape": (2, 3, 5)}, ValueError, ["encode", "(2, 2, 3, 5)"]),
    "an empty shape": ({"shape": ()}, ValueError, ["shape", "empty"]),
    "a shape with 0": ({"shape": (0, 4)}, ValueError, ["shape", "0"]),
    "no function": ({"encode": 3}, TypeError, ["encode", "int"]),
    "normalised without units": ({"normalise": (0.5, 0.5)}, ValueError, ["outputs", '"pixels"', '"normalised"']),
    "units without normalising": ({"outputs": "pixels"}, ValueError, ["outputs", "normalise"]),
    "no deviation": ({"normalise": (0.5, 0.0), "outputs": "pixels"}, ValueError, ["normalise", "> 0"]),
    "three channels": ({"normalise": ([0.1] * 3, 0.5), "outputs": "pixels"}, ValueError, ["normalise", "(3,)"]),
    "no pair": ({"normalise": 0.5, "outputs": "pixels"}, TypeError, ["normalise", "pair"]),
    "logits in other units": (
        {"normalise": (0.5, 0.5), "outputs": "normalised", "logits": True}, ValueError, ["outputs", "logits"]
    ),
    "logits that are no truth value": ({"logits": "yes"}, TypeError, ["logits", "'yes'"]),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_what_cannot_be_told_is_an_error_that_names_the_argument(name):
    given, kind, words = FAULTS[name]
    module = Reference()
    options = {"shape": SHAPE, "encode": lambda m, x: (m.mu(x), m.sigma(x)), "decode": Reference.means} | given
    if "encode" not in given:
        options.setdefault("scale", "sigma")
    for method in ("encode", "decode"):
        if callable(function := options[method]):
            options[method] = lambda value, function=function: function(module, value)
    with pytest.raises(kind) as caught:
        wrap(module, **options)
    assert [word for word in words if word not in str(caught.value)] == []


def test_a_module_without_methods_is_an_error_that_says_what_to_pass():
    with pytest.raises(TypeError, match="encode must be given, since Linear has neither"):
        wrap(nn.Linear(3, 3), shape=(3,))


def test_a_module_in_training_mode_is_refused():
    module = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
    with pytest.raises(ValueError, match=r"its layer 1 \(Dropout\) is in training mode: call model.eval\(\) first"):
        wrap(module, shape=(4,), encode=module, decode=module)
