"""One cheap probe finds models that do not do what is assumed, and says what, where and how to mend it."""

from __future__ import annotations

import time

import pytest
import torch
from conftest import random_vae, seeded, uniform
from torch import Tensor, nn
from usual_models import convolutional, held_out, perceptron

import vaerobust
from vaerobust.linear import LinearGaussianVAE
from vaerobust.measuring.probe import probe
from vaerobust.suspicions import SuspicionWarning


class Faulty:
    """A sound model, of which single methods are replaced."""

    def __init__(self, encode=None, decode=None) -> None:
        self.vae = random_vae(gain=1.0)
        self._encode, self._decode = encode, decode

    def encode(self, x: Tensor):
        mu, sigma = self.vae.encode(x)
        return (mu, sigma) if self._encode is None else self._encode(mu, sigma, x)

    def decode(self, z: Tensor):
        out = self.vae.decode(z)
        return out if self._decode is None else self._decode(out, z)


def broken(value: Tensor, number: float) -> Tensor:
    value = value.clone()
    value[0, 0] = number
    return value


ENCODERS = {
    "one tensor": (lambda m, s, x: m, TypeError, ["encode", "(mu, sigma)", "one tensor"]),
    "three tensors": (lambda m, s, x: (m, s, s), TypeError, ["encode", "tuple of 3"]),
    "an array": (lambda m, s, x: (m.numpy(), s.numpy()), TypeError, ["encode", "ndarray"]),
    "images of latents": (lambda m, s, x: (m[:, :, None], s[:, :, None]), ValueError, ["mu", "(3, 3, 1)", "wrap"]),
    "too few rows": (lambda m, s, x: (m[:1], s[:1]), ValueError, ["mu", "(1, 3)"]),
    "one sigma": (lambda m, s, x: (m, s[:, :1]), ValueError, ["sigma", "(3, 1)", "expand_as"]),
    "half precision": (lambda m, s, x: (m.half(), s.half()), TypeError, ["mu", "float16", "float64"]),
    "NaN in mu": (lambda m, s, x: (broken(m, torch.nan), s), ValueError, ["mu", "finite", "1 of 9"]),
    "infinite sigma": (lambda m, s, x: (m, broken(s, torch.inf)), ValueError, ["sigma", "finite"]),
    "NaN in sigma": (lambda m, s, x: (m, broken(s, torch.nan)), ValueError, ["sigma", "finite"]),
    "sigma of 0": (lambda m, s, x: (m, 0 * s), ValueError, ["sigma", "> 0", "is 0"]),
    "a log-variance": (lambda m, s, x: (m, 2 * s.log() - 1), ValueError, ["sigma", "log-variance", "scale"]),
    "a sample": (
        lambda m, s, x: (m + s * torch.randn_like(m), s),
        ValueError,
        ["mu must be the same", "sample", "dropout"],
    ),
    "random sigma": (lambda m, s, x: (m, s * (1 + torch.rand_like(m))), ValueError, ["sigma must be the same"]),
    "centred batch": (lambda m, s, x: (m - m.mean(0), s), ValueError, ["encode's mu", "other rows", "eval"]),
    "scaled batch": (lambda m, s, x: (m, s / s.mean()), ValueError, ["encode's sigma", "other rows"]),
    "detached": (lambda m, s, x: (m.detach(), s), ValueError, ["encode", "differentiable", "detach"]),
    "rounded": (
        lambda m, s, x: (m + (3000 * m.detach()).round() / 3000, s),
        ValueError,
        ["encode", "gradient", "differences"],
    ),
    "only rounded": (
        lambda m, s, x: ((3000 * m).round() / 3000, s),
        ValueError,
        ["encode", "gradient is 0", "rounding"],
    ),
    "an error of its own": (lambda m, s, x: {}["key"], ValueError, ["model.encode", "(3, 12)", "KeyError"]),
}
DECODERS = {
    "a tuple": (lambda g, z: (g, g), TypeError, ["decode", "one tensor", "tuple of 2"]),
    "too few pixels": (lambda g, z: g[:, :5], ValueError, ["decode", "(3, 12)", "(3, 5)"]),
    "images": (lambda g, z: g.unflatten(1, (3, 4)), ValueError, ["decode", "(3, 12)", "(3, 3, 4)", "flatten"]),
    "NaN": (lambda g, z: g * torch.nan, ValueError, ["decode", "finite"]),
    "noise": (lambda g, z: g + torch.rand_like(g), ValueError, ["decode", "same each time"]),
    "centred batch": (lambda g, z: g - g.mean(0), ValueError, ["decode's output", "other rows"]),
    "detached": (lambda g, z: g.detach(), ValueError, ["decode", "differentiable"]),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_a_faulty_encoder_is_an_error_that_says_what_is_wrong(name):
    encode, kind, words = ENCODERS[name]
    with pytest.raises(kind) as caught:
        probe(Faulty(encode=encode), uniform(2, 12))
    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize("name", DECODERS)
def test_a_faulty_decoder_is_an_error_that_says_what_is_wrong(name):
    decode, kind, words = DECODERS[name]
    with pytest.raises(kind) as caught:
        probe(Faulty(decode=decode), uniform(2, 12))
    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize("rows", [1, 2, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_sound_models_pass_without_a_word(rows, dtype, recwarn):
    x = uniform(rows, 12)
    linear = LinearGaussianVAE(12, 3, sigma=0.1)
    linear.weight, linear.bias = linear.weight, getattr(linear, "bias", None)
    probe(random_vae(gain=1.0).to(dtype), x.to(dtype), suspicions="raise")
    probe(vaerobust.VAE(12, 8, 3).to(dtype), x.to(dtype), suspicions="raise")
    probe(linear, x, suspicions="warn")
    assert not [one for one in recwarn if not issubclass(one.category, SuspicionWarning)]


def test_every_shipped_model_passes_on_images():
    x = held_out(3).flatten(1)
    for beta in (0.1, 1.0, 10.0):
        probe(vaerobust.pretrained("mnist", beta).vae, x, suspicions="raise")
    probe(vaerobust.pretrained("mnist", 5.0, likelihood="gaussian").vae, x, suspicions="raise")


def test_it_costs_little():
    model, x = vaerobust.pretrained("mnist", 1.0).vae, held_out(200).flatten(1)
    begin = time.process_time()
    for _ in range(10):
        probe(model, x)
    assert time.process_time() - begin < 10  # a second for each, of which a hundredth is needed


def test_a_model_without_methods_is_an_error():
    with pytest.raises(TypeError, match=r"model must have the methods .* Linear has no encode: .* vaerobust.wrap"):
        probe(nn.Linear(3, 3), torch.rand(2, 3))


def test_batchnorm_in_training_mode_is_refused_and_left_alone():
    model = vaerobust.wrap(convolutional(), shape=(1, 28, 28), scale="log_variance", logits=True)
    x = held_out(4).flatten(1)
    probe(model, x)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    try:
        with pytest.raises(ValueError, match=r"its layer module.features.1 \(BatchNorm2d\) is in training mode"):
            probe(model, x)
    finally:
        model.eval()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_model_that_changes_its_buffers_is_refused_and_restored():
    model = random_vae()
    model.register_buffer("calls", torch.zeros(1))
    encode = model.encode
    model.encode = lambda x: (model.calls.add_(1), encode(x))[1]
    with pytest.raises(ValueError, match="changes its buffer calls"):
        probe(model, uniform(3, 12))
    assert float(model.calls) == 0


def test_the_global_random_state_is_left_alone():
    before = torch.get_rng_state()
    probe(Faulty(encode=lambda m, s, x: (m, s + 0 * torch.randn_like(s))), uniform(2, 12))
    assert torch.equal(torch.get_rng_state(), before)


def test_types_that_differ_are_named_with_the_way_out():
    with pytest.raises(ValueError, match=r"x is torch.float32 and the model's weights are torch.float64: convert x by"):
        probe(random_vae(), uniform(2, 12).float())


def test_kinks_are_no_faults():
    for seed in range(20):
        probe(random_vae(gain=5.0, seed=seed), uniform(3, 12, seed=seed), suspicions="ignore")


def suspicion(model, x) -> str:
    with pytest.raises(ValueError, match=".") as caught:
        probe(model, x, suspicions="raise")
    with pytest.warns(SuspicionWarning) as warned:
        probe(model, x)
    assert str(warned[0].message) == str(caught.value)
    probe(model, x, suspicions="ignore")
    return str(caught.value)


class Scaled(nn.Module):
    """The trained perceptron with a wrong scale."""

    def __init__(self, wrong) -> None:
        super().__init__()
        self.inner, self.wrong = perceptron(), wrong

    def encode(self, x: Tensor):
        mu, log_variance = self.inner.encode(x)
        return mu, self.wrong(log_variance)

    def decode(self, z: Tensor) -> Tensor:
        return self.inner.decode(z)


def test_a_variance_taken_for_sigma_is_suspected():
    x = held_out(5).flatten(1)
    message = suspicion(Scaled(torch.exp), x)
    assert "sigma looks like a variance" in message
    assert 'scale="variance"' in message
    probe(Scaled(lambda value: torch.exp(0.5 * value)), x, suspicions="raise")


def test_an_exponential_taken_twice_is_suspected():
    model = vaerobust.wrap(Scaled(lambda v: torch.exp(0.5 * v)), shape=(784,), scale="log_variance")
    assert "above 1" in suspicion(model, held_out(5).flatten(1))


def test_logits_taken_for_means_are_suspected():
    vae = vaerobust.pretrained("mnist", 1.0).vae
    model = Faulty()
    model.encode, model.decode = vae.encode, vae.decoder
    message = suspicion(model, held_out(5).flatten(1))
    assert "look like logits" in message
    assert "logits=True" in message


def test_pixels_in_other_ranges_are_suspected():
    vae = vaerobust.VAE(20, 8, 3)
    x = torch.rand(3, 20, generator=seeded(0))
    assert "divide x by 255" in suspicion(vae, 255 * x)
    assert "normalise=(0.5, 0.5)" in suspicion(vae, 2 * x - 1)
    model = Faulty()
    model.encode, model.decode = vae.encode, lambda z: 0 * vae.decode(z) + 2 * x[: len(z)].round() - 1
    assert "pixels in [-1, 1]" in suspicion(Signed(vae, x), x)


class Signed:
    """A decoder that returns the inputs in [-1, 1]."""

    def __init__(self, vae: nn.Module, x: Tensor) -> None:
        self.vae, self.x = vae, x

    def encode(self, x: Tensor):
        return x[:, :3], torch.ones_like(x[:, :3])

    def decode(self, z: Tensor) -> Tensor:
        match = (self.x[:, :3] - z[:, None]).abs().sum(2).argmin(1)
        return 2 * self.x[match] - 1 + 1e-3 * z.sum(1, keepdim=True)
