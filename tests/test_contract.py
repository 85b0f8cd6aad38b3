"""The probe of a model: what it refuses, what it leaves as it was, and what it costs."""

from __future__ import annotations

import math
import types
import warnings
from functools import partial

import pytest
import torch
from conftest import random_vae, seeded, uniform
from torch import Tensor, nn

from vaerobust import batches, contract
from vaerobust.algorithms import minimum_r
from vaerobust.attacks import AttackSettings, latent_attack, maximum_damage
from vaerobust.bounds import first_order_radii, theorem_1
from vaerobust.certify.certificates import certified_margin
from vaerobust.certify.failures import _powers, _sums, failures
from vaerobust.contract import check_decoder, check_model, encode_points, rows_at_once
from vaerobust.criterion import clopper_pearson
from vaerobust.distance import distances, distances_in_random_directions
from vaerobust.jacobians import decoder_jacobian, encoder_gram, encoder_jacobian
from vaerobust.linear import LinearGaussianVAE
from vaerobust.linearised import linearised_radii
from vaerobust.margins import MarginSearch, attack_margin, strongest_attack
from vaerobust.measuring.probe import probe
from vaerobust.model import VAE, mean_layers
from vaerobust.random_direction import RandomSearch, random_direction_radius
from vaerobust.suspicions import SuspicionWarning

FEW = AttackSettings(steps=2, restarts=1, samples=2, choosing_samples=4)


class Model(nn.Module):
    """A VAE of any modules: ``encoder`` returns mu and log sigma side by side."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def encode(self, x):
        mu, log_sigma = self.encoder(x).chunk(2, 1)
        return mu, log_sigma.exp()

    def decode(self, z):
        return self.decoder(z)


def linear(fan_in: int, fan_out: int, seed: int = 0) -> nn.Linear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Linear(fan_in, fan_out).double()


def _changed(own, change, given):
    return change(own(given))


def with_(vae: VAE, **methods) -> VAE:
    """Replace methods of a model; each is given what the method returned."""
    for name, change in methods.items():
        setattr(vae, name, partial(_changed, getattr(vae, name), change))
    return vae


# -- 1. NaN is never counted as robust, and failures are counted exactly ----------------------------------------------


def nan_for_some(out):
    return torch.where(torch.arange(len(out))[:, None] > 50, math.nan, out)


@pytest.mark.parametrize(
    "call",
    [
        lambda vae, x: distances(vae, x),
        lambda vae, x: failures(vae, x, [1.0], samples=200),
        lambda vae, x: certified_margin(vae, x, 1.0, samples=200),
        lambda vae, x: random_direction_radius(vae, x, 1.0, RandomSearch(samples=200)),
        lambda vae, x: distances_in_random_directions(vae, x, 1.0),
        lambda vae, x: linearised_radii(vae, x, 1.0),
        lambda vae, x: attack_margin(vae, x, 1.0),
    ],
)
def test_distances_that_are_nan_are_an_error(vae, call):
    """Few rows do not show it, so that the probe lets it pass."""
    with_(vae, decode=nan_for_some)
    check_model(vae, uniform(2, 12))
    with pytest.raises(
        ValueError, match=r"model.*(decode must return|have a) finite .*NaN or infinite|finite distances"
    ):
        call(vae, uniform(2, 12))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_failures_are_counted_exactly_in_every_type(dtype):
    model, x = LinearGaussianVAE(6, 2), uniform(1, 6).to(dtype)
    (found,) = failures(model, x, [0.01], samples=10_001, seed=3)
    d = distances(model, x, samples=10_001, seed=3)
    # in half precision the noise of one long draw is that of the short ones, but not in single precision
    assert float(found.number) == float((d > 0.01).sum()) or dtype not in (torch.float32, torch.float64)
    assert float(found.number) % 1 == 0
    fails = torch.rand(1, 1, 10_001, generator=seeded(1)) < 0.98
    eta = torch.zeros(10_001, 2, dtype=dtype)
    assert float(_sums(fails, _powers(eta.float() if dtype.itemsize == 2 else eta))[0, 0, 0]) == int(fails.sum())


# -- 2. and 4. sigma --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda sigma: 2 * (0.1 * sigma).log(), r"sigma > 0, but .* is -.*log-variance"),
        (lambda sigma: -sigma, "sigma > 0, but"),
        (lambda sigma: 0 * sigma, "sigma > 0, but its smallest value is 0"),
        (lambda sigma: sigma[:, :1], r"sigma in the shape of mu, \(3, 3\), but it has \(3, 1\).*expand_as"),
        (lambda sigma: sigma[:1], r"sigma in the shape of mu, \(3, 3\), but it has \(1, 3\).*expand_as"),
        (lambda sigma: sigma.mean(), r"sigma in the shape of mu, \(3, 3\), but it has \(\).*expand_as"),
        (lambda sigma: sigma * math.nan, "finite sigma, but 9 of 9 are NaN"),
    ],
)
@pytest.mark.parametrize("call", [distances, minimum_r, lambda vae, x: random_direction_radius(vae, x, 1.0)])
def test_a_sigma_that_is_none_is_an_error(vae, change, message, call):
    with_(vae, encode=lambda out: (out[0], change(out[1])))
    with pytest.raises(ValueError, match=f"model.encode must return {message}"):
        call(vae, uniform(2, 12))


def test_a_sigma_that_is_zero_at_one_of_many_points_is_an_error(vae):
    x = uniform(50, 12)
    with_(vae, encode=lambda out: (out[0], out[1] * torch.arange(len(out[1]), 0, -1)[:, None].sub(1).clamp(max=1)))
    with pytest.raises(ValueError, match="sigma > 0"):
        distances(vae, x)


# -- 3. gradients and modes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        lambda out: (out[0].detach(), out[1]),
        lambda out: ((4 * out[0]).round() / 4, out[1]),
        lambda out: (torch.from_numpy(out[0].detach().numpy()), out[1]),
        lambda out: (out[0].detach() + 1e-3 * (out[0] - out[0].detach()), out[1]),
    ],
    ids=["detached", "rounded", "by numpy", "mostly detached"],
)
@pytest.mark.parametrize(
    "call",
    [
        lambda vae, x: theorem_1(vae, x, 1.0),
        lambda vae, x: first_order_radii(vae, x, 0.9),
        encoder_jacobian,
        encoder_gram,
        lambda vae, x: maximum_damage(vae, x, 1.0, FEW),
        lambda vae, x: latent_attack(vae, x, x.flip(0), 1.0, FEW),
    ],
)
def test_an_encoder_without_its_gradient_is_an_error(vae, change, call):
    with_(vae, encode=change)
    assert distances(vae, uniform(2, 12)).isfinite().all()  # which needs no gradient
    with pytest.raises(ValueError, match=r"model.encode.*(differentiable|gradient must agree)"):
        call(vae, uniform(2, 12))


def test_inference_mode_is_named_where_gradients_are_needed(vae):
    with torch.inference_mode(), pytest.raises(ValueError, match="inference_mode"):
        maximum_damage(vae, uniform(2, 12), 1.0, FEW)


@pytest.mark.parametrize("layer", [nn.Dropout(0.5), nn.BatchNorm1d(3), nn.RReLU()])
def test_a_model_in_training_mode_is_an_error_and_left_as_it_was(layer):
    vae = random_vae()
    vae.encoder_mu.append(layer.double())
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    with pytest.raises(ValueError, match=r"evaluation mode, but its layer encoder_mu\.3 .* in training mode.*eval\(\)"):
        distances(vae, uniform(2, 12))
    for name, value in vae.state_dict().items():
        assert torch.equal(value, before[name])
    distances(vae.eval(), uniform(2, 12))


def test_a_random_encoder_and_one_that_looks_at_its_batch_are_told_apart(vae):
    own = vae.encode
    vae.encode = lambda x: (own(x)[0] + torch.randn(len(x), 3), own(x)[1])
    with pytest.raises(ValueError, match="encode's mu must be the same each time, but two calls differ"):
        distances(vae, uniform(2, 12))
    vae.encode = lambda x: (own(x)[0] - own(x)[0].mean(0), own(x)[1])
    with pytest.raises(ValueError, match="encode's mu must not depend on the other rows"):
        distances(vae, uniform(2, 12))


def test_the_probe_leaves_random_states_alone(vae):
    generator, state = seeded(1), torch.get_rng_state()
    check_model(vae, uniform(2, 12), gradient=("encode", "decode"))
    own = vae.encode
    vae.encode = lambda x: (own(x)[0] + 0 * torch.randn(len(x), 3), own(x)[1])
    distances(vae, uniform(2, 12), seed=generator, samples=7)
    expected = seeded(1)
    torch.randn(7, 3, generator=expected, dtype=torch.float64)
    assert torch.equal(generator.get_state(), expected.get_state())
    check_model(vae, uniform(3, 12))
    torch.set_rng_state(state)


# -- what is remembered -----------------------------------------------------------------------------------------------


def test_a_model_is_probed_once_until_its_weights_or_its_mode_change(vae, monkeypatch):
    x, probes = uniform(2, 12), []
    probe = contract._probe_encoder
    monkeypatch.setattr(contract, "_probe_encoder", lambda *given: probes.append(1) or probe(*given))
    for call in (distances, minimum_r, encoder_jacobian, lambda m, x: attack_margin(m, x, 1.0, attack=FEW)):
        call(vae, x)
    assert len(probes) == 1
    with torch.no_grad():
        vae.encoder_shared.weight.add_(0.1)
    distances(vae, x)
    assert len(probes) == 2
    distances(vae.eval(), x)
    distances(vae, x)
    assert len(probes) == 3
    distances(vae.float(), x.float())
    assert len(probes) == 4


def test_what_is_known_of_a_model_goes_with_it():
    vae = random_vae()
    check_model(vae, uniform(2, 12))
    key = id(vae)
    assert key in contract._MODELS
    del vae
    assert key not in contract._MODELS


def test_models_that_are_no_modules_or_cannot_be_referred_to_are_probed_too(vae):
    class Slots:
        __slots__ = ()

        def encode(self, x):
            return vae.encode(x)

        def decode(self, z):
            return vae.decode(z)

    for model in (Slots(), types.SimpleNamespace(encode=vae.encode, decode=vae.decode)):
        assert torch.equal(distances(model, uniform(2, 12)), distances(vae, uniform(2, 12)))


# -- 6. types and devices ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_agrees_with_double_to_its_digits(dtype):
    vae, x = random_vae(gain=1.0), uniform(2, 12)
    exact, rounded = first_order_radii(vae, x, 0.9), first_order_radii(random_vae(gain=1.0).to(dtype), x.to(dtype), 0.9)
    for name in ("frobenius", "spectral", "whitened"):
        torch.testing.assert_close(getattr(rounded, name).double(), getattr(exact, name), rtol=0.1, atol=0)
    assert mean_layers(random_vae().to(dtype), x.to(dtype))[0][0].dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_strongest_attack_ends_in_half_precision_at_its_default_settings(dtype):
    vae, x = random_vae(4, 4, 2, gain=2.0).to(dtype), uniform(1, 4).to(dtype)
    found = strongest_attack(vae, x, 0.2, attack=FEW)
    assert found.radius.isfinite().all() and found.delta.dtype == dtype


def test_x_of_another_type_is_named():
    with pytest.raises(ValueError, match=r"weights are torch.float32: convert x by x.to\(torch.float32\)"):
        distances(VAE(6, 4, 2), uniform(2, 6))


# -- 7. memory --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_shipped_network_gets_all_rows(dtype):
    vae, x = VAE().to(dtype), torch.rand(2, 784, dtype=dtype)
    check_model(vae, x)
    assert rows_at_once(vae, x) == batches.ROWS == 16_384


def convolutional() -> Model:
    """Return a network about as large as the convolutional ones for MNIST of well-known collections."""
    widths = (128, 256, 512, 1024)
    down: list[nn.Module] = [nn.Unflatten(1, (1, 28, 28))]
    for fan_in, fan_out in zip((1, *widths), widths, strict=False):
        down += [nn.Conv2d(fan_in, fan_out, 4, 2, padding=1), nn.BatchNorm2d(fan_out), nn.ReLU()]
    up = [nn.Linear(16, 512 * 16), nn.Unflatten(1, (512, 4, 4)), nn.ConvTranspose2d(512, 256, 3, 2, 1), nn.ReLU()]
    up += [nn.ConvTranspose2d(256, 128, 3, 2, 1, output_padding=1), nn.ReLU()]
    up += [nn.ConvTranspose2d(128, 1, 3, 2, 1, output_padding=1), nn.Flatten(), nn.Sigmoid()]
    return Model(nn.Sequential(*down, nn.Flatten(), nn.Linear(1024, 32)), nn.Sequential(*up)).eval()


def test_a_convolutional_network_gets_as_many_rows_as_fit():
    model, x = convolutional(), torch.rand(2, 784)
    check_model(model, x)
    size = sum(contract._known(model, x).size.values())
    assert 500_000 < size < 5_000_000
    assert rows_at_once(model, x) == batches.MEMORY // size


@pytest.mark.parametrize("memory", [1, 10_000, 40_000])
def test_results_do_not_depend_on_the_memory_but_by_rounding(memory, monkeypatch):
    vae, x = random_vae(), uniform(3, 12)
    calls = {
        "distances": lambda: distances(vae, x, samples=50),
        "failures": lambda: failures(vae, x, [1.0], samples=50)[0].second,
        "directions": lambda: distances_in_random_directions(vae, x, 1.0, samples=50),
        "attack": lambda: maximum_damage(vae, x, 1.0, FEW).delta,
        "jacobian": lambda: encoder_jacobian(vae, x),
        "decoder": lambda: decoder_jacobian(vae, vae.encode(x)[0]),
    }
    whole = {name: call() for name, call in calls.items()}
    monkeypatch.setattr(batches, "MEMORY", memory)
    for name, call in calls.items():
        torch.testing.assert_close(call(), whole[name], rtol=1e-9, atol=1e-9, msg=name)


# -- 8. layers that function transforms cannot take -------------------------------------------------------------------


class Custom(torch.autograd.Function):
    """The square, as a function of its own, in the old style that vmap cannot take."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return 2 * x * gradient


class Once(Custom):
    """The same, whose gradient cannot be differentiated again."""

    backward = staticmethod(torch.autograd.function.once_differentiable(Custom.backward))


class Squared(nn.Module):
    def __init__(self, function: type) -> None:
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function.apply(x)


class Recurrent(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.layer = nn.GRU(1, width, batch_first=True).double()

    def forward(self, x):
        return self.layer(x[:, :, None])[1][0]


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.layer = nn.MultiheadAttention(2, 1, batch_first=True).double()

    def forward(self, x):
        rows = x.unflatten(1, (-1, 2))
        return self.layer(rows, rows, rows)[0].flatten(1)


LAYERS = {
    "PReLU": lambda: nn.PReLU().double(),
    "custom": lambda: Squared(Custom),
    "once differentiable": lambda: Squared(Once),
    "GRU": lambda: Recurrent(6),
    "attention": Attention,
}


@pytest.mark.parametrize("name", LAYERS)
def test_jacobians_of_layers_that_vmap_cannot_take_agree_with_differences(name):
    encoder = nn.Sequential(linear(4, 6), LAYERS[name](), linear(6, 6, 1))
    decoder = nn.Sequential(linear(3, 6, 2), LAYERS[name](), linear(6, 4, 3))
    model, x = Model(encoder, decoder).eval(), uniform(2, 4)
    z, step = model.encode(x)[0].detach(), 1e-6
    for jacobian, function, at in (
        (encoder_jacobian, lambda x: model.encode(x)[0], x), (decoder_jacobian, model.decode, z)
    ):  # fmt: skip
        found = jacobian(model, at)
        for k in range(at.shape[1]):
            unit = step * torch.eye(at.shape[1], dtype=torch.float64)[k]
            change = (function(at + unit) - function(at - unit)).detach() / (2 * step)
            torch.testing.assert_close(found[:, :, k], change, rtol=1e-5, atol=1e-7)
    assert theorem_1(model, x, 1.0, samples=50).low.isfinite().all()
    assert linearised_radii(model, x, 1.0, samples=5).second_moment.isfinite().all()


# -- 9. names of arguments --------------------------------------------------------------------------------------------


def test_an_encoder_that_cannot_be_certified_is_an_error_before_any_sample(vae):
    """So many samples would take days."""
    model = types.SimpleNamespace(
        encode=lambda x: (vae.encode(x)[0].cumsum(1), vae.encode(x)[1]), decode=vae.decode
    )  # fmt: skip
    with pytest.raises(TypeError, match="uses cumsum, which is not supported"):
        certified_margin(model, uniform(1, 12), 1.0, samples=2**31 - 1)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: clopper_pearson(1.5, 4), ValueError, "successes must be whole numbers, but hold 1.5"),
        (lambda: clopper_pearson("one", 4), TypeError, "successes must be a number"),
        (lambda: AttackSettings(choosing_samples=0), ValueError, "AttackSettings.choosing_samples must be"),
        (lambda: AttackSettings(box="no"), TypeError, "AttackSettings.box must be True or False"),
        (lambda: MarginSearch(judging_samples=0), ValueError, "MarginSearch.judging_samples must be"),
        (lambda: RandomSearch(tolerance=0), ValueError, "RandomSearch.tolerance must be"),
        (lambda: failures(random_vae(), uniform(1, 12), 0.5), TypeError, "r_values must be a sequence"),
        (lambda: maximum_damage(random_vae(), uniform(1, 12), 1.0, {}), TypeError, "settings must be of the class"),
        (lambda: attack_margin(random_vae(), uniform(1, 12), 1.0, attack=3), TypeError, "attack must be of the class"),
        (lambda: distances(random_vae(), uniform(1, 12), seed=1.5), TypeError, "seed must be a whole number"),
        (lambda: distances(random_vae(), uniform(1, 12), samples=10**15), ValueError, "samples must be .* at most"),
    ],
)
def test_errors_name_what_was_passed(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_the_guess_that_nobody_passed_is_never_an_error():
    """A model that hardly moves has an infinite second-moment margin in half precision."""
    vae = random_vae(4, 4, 2, gain=1e-3).to(torch.float16)
    found = strongest_attack(vae, uniform(1, 4).half(), 1.0, attack=FEW, search=MarginSearch(judging_samples=20))
    assert found.censored.all() and float(found.radius) == 10.0


def test_a_decoder_is_probed_by_latents_alone(vae):
    check_decoder(vae, uniform(2, 3))
    with pytest.raises(ValueError, match=r"model.decode must accept z of shape \(3, 5\)"):
        check_decoder(vae, uniform(2, 5))


def test_points_are_encoded_in_parts_and_all_of_them_checked(vae, monkeypatch):
    x = uniform(50, 12)
    mu, sigma = encode_points(vae, x)
    monkeypatch.setattr(batches, "ROWS", 7)
    torch.testing.assert_close(encode_points(vae, x), (mu, sigma), rtol=1e-12, atol=1e-12)


# -- 10. what is probably a mistake ------------------------------------------------------------------------------------


class LogVariance(nn.Module):
    """A model that returns the output of its layer for log-variances as sigma, all of it positive here."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.log_var, self.back = nn.Linear(6, 2), nn.Linear(6, 2), nn.Linear(2, 6)
        nn.init.constant_(self.log_var.bias, 5.0)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.mean(x), self.log_var(x)

    def decode(self, z: Tensor) -> Tensor:
        return torch.sigmoid(self.back(z))


def test_a_core_function_warns_once_of_a_probable_mistake():
    model, x = LogVariance().requires_grad_(False), torch.rand(3, 6)
    with pytest.warns(SuspicionWarning, match=r"log-variance.*layer log_var.*scale=\"log_variance\""):
        distances(model, x, samples=10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        distances(model, x, samples=10)


def test_a_suspicion_is_overruled_by_name():
    model, x = LogVariance().requires_grad_(False), torch.rand(3, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        probe(model, x, suspicions="ignore")
        distances(model, x, samples=10)
