"""The convolutional model of the zoo: its network, its training, its files and its name."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import seeded
from torch import distributions

import vaerobust
from vaerobust.certify.encoder_shift import shift_metric
from vaerobust.certify.network import Network, encoder_mean
from vaerobust.certify.tracing import trace
from vaerobust.model import VAE
from vaerobust.zoo.convolutional import FEATURES, SIDE, ConvolutionalVAE
from vaerobust.zoo.manifest import Manifest
from vaerobust.zoo.protocol import CONVOLUTIONAL, Spec
from vaerobust.zoo.training import Run, evaluate, train
from vaerobust.zoo.typed_json import from_plain
from vaerobust.zoo.weights import SHIPPED, half_precision_bytes, load_model, pretrained, save_model

TINY = Spec(latents=3, epochs=3, batch_size=64, architecture="convolutional")
SINGLE = 1e-4
"""Relative and absolute error of a few layers in single precision."""


@pytest.fixture
def splits(fake_images):
    return fake_images(200), fake_images(50, "test")


@pytest.fixture
def vae():
    """An untrained model whose batch normalisation has seen some images, so that it is not the identity."""
    vae = replace(TINY, tau=0.1).build()
    vae.encode(torch.rand(64, SIDE**2, generator=seeded(0)))
    return vae.eval().requires_grad_(False)


# the network


def test_the_mean_is_two_convolutions_normalised_by_running_statistics(vae):
    """Against torch's functions, with batch normalisation written out."""
    x = torch.rand(5, SIDE**2, generator=seeded(1))
    hidden = x.reshape(5, 1, SIDE, SIDE)
    for number in (1, 4):
        convolution, norm = vae.encoder_shared[number], vae.encoder_shared[number + 1]
        hidden = F.conv2d(hidden, convolution.weight, convolution.bias, stride=2, padding=1)
        mean, variance, weight, bias = (
            part[:, None, None] for part in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
        )  # fmt: skip
        hidden = ((hidden - mean) / (variance + norm.eps).sqrt() * weight + bias).relu()
    flat = hidden.flatten(1)
    assert flat.shape == (5, FEATURES)
    mu, sigma = vae.encode(x)
    torch.testing.assert_close(mu, flat @ vae.encoder_mu.weight.T + vae.encoder_mu.bias, rtol=SINGLE, atol=SINGLE)
    out = flat @ vae.encoder_sigma.weight.T + vae.encoder_sigma.bias
    torch.testing.assert_close(sigma, F.softplus(out) + 0.1, rtol=SINGLE, atol=SINGLE)


def test_each_row_is_encoded_and_decoded_by_itself(vae):
    x = torch.rand(6, SIDE**2, generator=seeded(2))
    mu, sigma = vae.encode(x)
    assert mu.shape == sigma.shape == (6, 3)
    assert (sigma > 0.1).all()
    out = vae.decode(mu)
    assert out.shape == x.shape
    assert ((out > 0) & (out < 1)).all()
    for i in range(6):
        for whole, one in zip((mu, sigma, out), (*vae.encode(x[i : i + 1]), vae.decode(mu[i : i + 1])), strict=True):
            torch.testing.assert_close(one[0], whole[i], rtol=SINGLE, atol=SINGLE)


def test_the_likelihood_is_bernoulli_and_broadcasts(vae):
    x, z = torch.rand(4, SIDE**2, generator=seeded(3)).round(), torch.randn(4, 2, 3, generator=seeded(4))
    found = vae.log_likelihood(x[:, None], z)
    assert found.shape == (4, 2)
    means = vae.decode(z.reshape(-1, 3)).reshape(4, 2, -1)
    expected = distributions.Bernoulli(probs=means).log_prob(x[:, None].expand(4, 2, -1)).sum(-1)
    torch.testing.assert_close(found, expected, rtol=SINGLE, atol=SINGLE)


@pytest.mark.parametrize("shape", [(784,), (2, 783), (2, 1, 28, 28)])
def test_images_of_another_shape_are_named(shape, vae):
    with pytest.raises(ValueError, match=r"x must have shape \(n, 784\), but has"):
        vae.encode(torch.zeros(shape))


@pytest.mark.parametrize("arguments", [{"latents": 0}, {"tau": -1.0}])
def test_arguments_out_of_range_are_named(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        ConvolutionalVAE(**arguments)


def test_its_encoder_is_found_for_certificates(vae):
    """The mean has no ``mean_layers``: its operations are recorded, and compared with ``encode``."""
    x = torch.rand(3, SIDE**2, generator=seeded(5))
    mean = encoder_mean(vae, x)
    torch.testing.assert_close(mean.mean(x).float(), vae.encode(x)[0], rtol=SINGLE, atol=SINGLE)


# training


def test_training_ends_in_evaluation_mode_and_moves_the_statistics(splits):
    run = Run(TINY, *splits)
    before = {name: value.clone() for name, value in run.vae.named_buffers()}
    epoch = run.epoch()
    assert not run.vae.training
    for name, value in run.vae.named_buffers():
        assert not torch.equal(value, before[name]), name
    assert epoch.test_elbo == evaluate(run.vae, splits[1].pixels).elbo
    after = {name: value.clone() for name, value in run.vae.named_buffers()}
    evaluate(run.vae, splits[1].pixels)
    assert all(torch.equal(value, after[name]) for name, value in run.vae.named_buffers())


def test_a_stopped_run_ends_as_an_uninterrupted_one(splits, tmp_path):
    whole = train(TINY, *splits, tmp_path / "whole")

    def stop(done, epoch):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(TINY, *splits, tmp_path / "stopped", progress=stop)
    epochs = []
    weights = train(TINY, *splits, tmp_path / "stopped", progress=lambda done, epoch: epochs.append(done))
    assert epochs == [3]
    assert weights.read_bytes() == whole.read_bytes()


# files


def test_weights_and_statistics_come_back_rounded_to_half_precision(splits, tmp_path):
    path = train(TINY, *splits, tmp_path)
    trained = load_model(path)
    assert isinstance(trained.vae, ConvolutionalVAE)
    assert not trained.vae.training
    assert trained.manifest.spec == TINY
    state = trained.vae.state_dict()
    assert {value.dtype for name, value in state.items() if not name.endswith("batches_tracked")} == {torch.float32}
    assert int(state["encoder_shared.2.num_batches_tracked"]) == 3 * 4  # four batches in each epoch
    assert half_precision_bytes(trained.vae) == path.read_bytes()
    for images in splits:
        final = getattr(trained.manifest.final, f"{images.split}_elbo")
        assert evaluate(trained.vae, images.pixels).elbo == pytest.approx(final, abs=0.1)  # of 500 nats


def test_a_count_beyond_what_half_precision_holds_is_kept(vae, tmp_path):
    """100 epochs of MNIST are 11,800 batches; float16 is exact up to 2,048 and ends at 65,504."""
    vae.encoder_shared[2].num_batches_tracked.fill_(123_457)
    record = load_model(next(SHIPPED.glob("mnist_beta1_tau0.safetensors"))).manifest
    save_model(tmp_path / "model.safetensors", vae, replace(record, spec=replace(TINY, tau=0.1)))
    assert int(load_model(tmp_path / "model.safetensors").vae.encoder_shared[2].num_batches_tracked) == 123_457


# names and manifests


def test_the_name_says_that_it_is_convolutional():
    assert Spec(architecture="convolutional").name == "mnist_beta1_tau0_convolutional"
    assert replace(TINY, seed=2).name == "mnist_beta1_tau0_convolutional_latents3_seed2"
    assert Spec(architecture="dense").name == Spec().name == "mnist_beta1_tau0"


def test_manifests_from_before_there_were_architectures_are_dense():
    old = 0
    for path in sorted(SHIPPED.glob("*.json")):
        content = json.loads(path.read_text())
        spec = from_plain(Manifest, content).spec
        assert spec.name == path.stem
        if "architecture" not in content["spec"]:
            old += 1
            assert spec.architecture == "dense"
            assert isinstance(load_model(path.with_suffix(".safetensors")).vae, VAE)
    assert old == 22


@pytest.mark.parametrize("other", [{"likelihood": "gaussian"}, {"scale": "exp"}, {"architecture": "transformer"}])
def test_what_the_architecture_has_not_is_named(other):
    with pytest.raises(ValueError, match=rf"{next(iter(other))}.* must be one of"):
        replace(TINY, **other)


def test_the_shipped_model_is_found_by_its_architecture():
    (spec,) = CONVOLUTIONAL
    trained = pretrained("mnist", architecture="convolutional")
    assert trained.manifest.spec == spec
    assert vaerobust.pretrained("mnist").manifest.spec == replace(spec, architecture="dense")


# the bound on the shift of its mean


@pytest.mark.parametrize("radius", [0.05, 1.0])
def test_no_perturbation_moves_a_convolutional_mean_beyond_the_bound(radius, vae):
    """Random perturbations and gradient ascent, in random directions of the mean, with and without lumped units."""
    x = torch.rand(1, SIDE**2, generator=seeded(6))
    mu, sigma = vae.encode(x)
    noise = F.normalize(torch.randn(100, SIDE**2, generator=seeded(7))) * radius
    for _ in range(10):  # towards a larger shift, back onto the sphere
        noise.requires_grad_()
        shift = ((vae.encode(x + noise)[0] - mu) / sigma).square().sum()
        noise = F.normalize(noise.detach() + torch.autograd.grad(shift, noise)[0] * 1e6) * radius
    shift = ((vae.encode(x + noise)[0] - mu) / sigma).double()  # (100, d_z)
    vectors = torch.cat([shift, torch.randn(100, 3, generator=seeded(8)).double()])
    for kept in (0, 50, 5000):
        network = Network(trace(vae, x), kept=kept)
        metric = shift_metric(network, sigma, x, radius, refine=2)[0]
        assert torch.isfinite(metric).all()
        least = radius**2 * (vectors @ metric * vectors).sum(1)  # (200,)
        assert ((shift @ vectors.T).square() <= least * (1 + SINGLE)).all()


def test_units_are_uncertain_only_if_they_can_change_sign(vae):
    """All that do change sign are among them; within a tiny ball there are none."""
    x = torch.rand(1, SIDE**2, generator=seeded(9))
    network = Network(trace(vae, x))
    at = (vae.encode(x)[1].double(), x.double())
    assert not any(units.any() for units in network.uncertain(*at, torch.tensor([1e-9])).values())
    uncertain = network.uncertain(*at, torch.tensor([1.0]))
    assert [len(units) for units in uncertain.values()] == [8 * 14 * 14, FEATURES]
    noise = F.normalize(torch.randn(50, SIDE**2, generator=seeded(10)))
    before, after = (list(network.values(points).values())[:2] for points in (x, x + noise))
    for units, old, new in zip(uncertain.values(), before, after, strict=True):
        changed = ((old > 0) != (new > 0)).flatten(1).any(0)
        assert changed.any()
        assert (units | ~changed).all()
