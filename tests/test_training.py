"""Training: the same weights with and without a kill, honest manifests, and no trust in damaged files."""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import seeded
from safetensors.torch import load_file
from torch import distributions

from vaerobust.model import LIKELIHOODS, elbo_terms
from vaerobust.zoo import training
from vaerobust.zoo.protocol import GRID, Spec
from vaerobust.zoo.training import Run, evaluate, train
from vaerobust.zoo.weights import load_model

TINY = Spec(hidden=16, latents=3, epochs=4, batch_size=64)
FLOAT = 1e-5
"""Relative error of sums of some thousand terms in single precision, 6e-8 each and mostly cancelling."""


@pytest.fixture
def splits(fake_images):
    return fake_images(300), fake_images(100, "test")


@pytest.fixture
def whole(tmp_path, splits):
    """The weights' file of an uninterrupted run."""
    return train(TINY, *splits, tmp_path / "whole")


def manifest(weights):
    return json.loads(weights.with_suffix(".json").read_text())


def without_times(record):
    """Leave out what differs between two equal runs."""
    record = {key: value for key, value in record.items() if key not in ("seconds", "sha256")}
    return record | {"history": [{k: v for k, v in row.items() if k != "seconds"} for row in record["history"]]}


def assert_same_result(weights, other):
    """Bit for bit the same weights, and the same manifest but for the wall times."""
    assert weights.read_bytes() == other.read_bytes()
    assert without_times(manifest(weights)) == without_times(manifest(other))


# going on after a stop


@pytest.mark.parametrize("where", ["after an epoch", "within an epoch", "while writing"])
def test_a_stopped_run_ends_as_an_uninterrupted_one(where, whole, splits, tmp_path, monkeypatch):
    folder = tmp_path / "stopped"
    calls = []

    def stop_at(call, function):
        def counted(*arguments, **options):
            calls.append(1)
            if len(calls) == call:
                raise KeyboardInterrupt
            return function(*arguments, **options)

        return counted

    def stop(done, epoch):
        if done == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if where == "within an epoch":  # five batches an epoch: the third of the third epoch
            patch.setattr(training, "objective", stop_at(13, training.objective))
        elif where == "while writing":
            patch.setattr(os, "fsync", stop_at(3, os.fsync))
        with pytest.raises(KeyboardInterrupt):
            train(TINY, *splits, folder, progress=stop if where == "after an epoch" else None)
    assert [path.name for path in folder.iterdir()] == [f"{TINY.name}.checkpoint"]
    epochs = []
    weights = train(TINY, *splits, folder, progress=lambda done, epoch: epochs.append(done))
    assert epochs == [3, 4]
    assert_same_result(weights, whole)
    assert not (folder / f"{TINY.name}.checkpoint").exists()


KILLED = """
import os, signal, sys
import torch
from vaerobust.zoo import training
from vaerobust.zoo.data import Images
torch.set_num_threads(1)
where, folder, saved = sys.argv[1:]
splits = [Images(*torch.load(f"{saved}/{split}.pt"), "mnist", split, "made for a test") for split in ("train", "test")]
calls = []
def dies_at(call, function):
    def counted(*arguments, **options):
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return counted
if where == "within an epoch":
    training.objective = dies_at(13, training.objective)
else:
    os.fsync = dies_at(3, os.fsync)
training.train(training.Spec(hidden=16, latents=3, epochs=4, batch_size=64), *splits, folder)
"""


@pytest.mark.parametrize("where", ["within an epoch", "while writing"])
def test_a_killed_run_ends_as_an_uninterrupted_one(where, whole, splits, tmp_path):
    """SIGKILL, in the third epoch: no clean-up of any kind runs."""
    folder = tmp_path / "killed"
    for images in splits:
        torch.save((images.pixels, images.labels), tmp_path / f"{images.split}.pt")
    package = Path(training.__file__).parents[1]
    child = subprocess.run(
        [sys.executable, "-c", KILLED, where, str(folder), str(tmp_path)],
        cwd=package, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert child.returncode == -signal.SIGKILL, child.stderr
    left = [path for path in folder.iterdir() if path.name.startswith(".")]
    assert len(left) == (where == "while writing")
    assert {path.suffix for path in folder.iterdir() if path not in left} == {".checkpoint"}
    epochs = []
    weights = train(TINY, *splits, folder, progress=lambda done, epoch: epochs.append(done))
    assert epochs == [3, 4]
    assert_same_result(weights, whole)
    assert sorted(path.suffix for path in folder.iterdir()) == [".json", ".safetensors"]


def test_a_run_killed_between_weights_and_manifest_is_completed(whole, splits, tmp_path):
    folder = tmp_path / "half"
    kept = tmp_path / "kept"
    checkpoint = folder / f"{TINY.name}.checkpoint"
    weights = train(
        TINY, *splits, folder, progress=lambda done, epoch: kept.write_bytes(checkpoint.read_bytes())
    )  # fmt: skip
    weights.with_suffix(".json").unlink()
    kept.rename(checkpoint)
    epochs = []
    train(TINY, *splits, folder, progress=lambda done, epoch: epochs.append(done))
    assert epochs == []
    assert_same_result(weights, whole)


# what is found in the folder


def damage(content, how):
    """Return a checkpoint's bytes, damaged."""
    end = 8 + int.from_bytes(content[:8], "little")
    return {
        "empty": b"",
        "truncated in the header": content[: end - 10],
        "truncated in the tensors": content[:-100],
        "no safetensors": b"nonsense" * 100,
        "a flipped bit in the tensors": content[:-50] + bytes([content[-50] ^ 1]) + content[-49:],
        "a flipped bit in the header": content[: end // 2] + bytes([content[end // 2] ^ 128]) + content[end // 2 + 1 :],
        "another number in the record": content.replace(b"seconds", b"Seconds", 1),
        "nothing known of it": content[:8] + content[8:end].replace(b"__metadata__", b"__metadatb__") + content[end:],
    }[how]


@pytest.mark.parametrize("how", [
    "empty", "truncated in the header", "truncated in the tensors", "no safetensors", "a flipped bit in the tensors",
    "a flipped bit in the header", "another number in the record", "nothing known of it",
])  # fmt: skip
def test_a_damaged_checkpoint_is_named_and_kept(how, splits, tmp_path):
    run = Run(TINY, *splits)
    run.epoch()
    checkpoint = tmp_path / f"{TINY.name}.checkpoint"
    damaged = damage(run.checkpoint(), how)
    checkpoint.write_bytes(damaged)
    with pytest.raises(ValueError, match=rf"checkpoint .*{checkpoint.name} is corrupt \(.+\); delete it"):
        train(TINY, *splits, tmp_path)
    assert checkpoint.read_bytes() == damaged
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.name]


@pytest.mark.parametrize("other", [{"epochs": 5}, {"learning_rate": 0.01}, {"hidden": 17}, {"batch_size": 10}])
def test_a_checkpoint_of_another_run_is_named_and_kept(other, splits, tmp_path):
    """All of these have the same file name."""
    foreign = replace(TINY, **other)
    assert foreign.name == TINY.name
    run = Run(foreign, *splits)
    run.epoch()
    checkpoint = tmp_path / f"{TINY.name}.checkpoint"
    checkpoint.write_bytes(run.checkpoint())
    before = checkpoint.read_bytes()
    with pytest.raises(ValueError, match=rf"checkpoint .*{checkpoint.name} is of another run, .*{list(other)[0]}"):
        train(TINY, *splits, tmp_path)
    assert checkpoint.read_bytes() == before


def test_a_checkpoint_of_other_images_is_named_and_kept(splits, fake_images, tmp_path):
    run = Run(TINY, fake_images(200), splits[1])
    run.epoch()
    checkpoint = tmp_path / f"{TINY.name}.checkpoint"
    checkpoint.write_bytes(run.checkpoint())
    with pytest.raises(ValueError, match=rf"checkpoint .*{checkpoint.name} is of a run on other images"):
        train(TINY, *splits, tmp_path)
    assert checkpoint.exists()


def test_a_finished_model_is_not_trained_again(whole, splits, monkeypatch):
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in whole.parent.iterdir()}
    monkeypatch.setattr(training, "Run", None)
    assert train(TINY, *splits, whole.parent) == whole
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in whole.parent.iterdir()} == before


def test_a_finished_model_of_another_run_is_not_overwritten(whole, splits, fake_images):
    before = whole.read_bytes()
    for spec, images in ((replace(TINY, epochs=5), splits), (TINY, (fake_images(200), splits[1]))):
        with pytest.raises(ValueError, match=rf"{TINY.name}.json is of another run"):
            train(spec, *images, whole.parent)
    assert whole.read_bytes() == before


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"spec": {}}', "{half"])
def test_a_damaged_manifest_is_named(content, whole, splits):
    whole.with_suffix(".json").write_text(content)
    with pytest.raises(ValueError, match=rf"model .*{whole.name} is corrupt"):
        train(TINY, *splits, whole.parent)


# determinism


def test_equal_seeds_give_equal_weights_and_others_others(whole, splits, tmp_path):
    assert_same_result(train(TINY, *splits, tmp_path / "again"), whole)
    other = train(replace(TINY, seed=1), *splits, tmp_path / "other")
    assert other.name != whole.name
    assert other.read_bytes() != whole.read_bytes()
    assert not torch.equal(replace(TINY, seed=1).build().decoder[0].weight, TINY.build().decoder[0].weight)
    assert torch.equal(TINY.build().decoder[0].weight, TINY.build().decoder[0].weight)


def test_no_global_generator_is_touched(splits, tmp_path):
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(12345)  # a state that no seeding with the run's own seed leaves
        state = torch.get_rng_state()
        train(TINY, *splits, tmp_path)
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.random.get_state()[1].tolist() == before[2]  # noqa: NPY002


# what an epoch does


def test_an_epoch_passes_once_over_all_images_in_a_new_order(splits, monkeypatch):
    run, seen = Run(TINY, *splits), []
    honest = training.objective
    monkeypatch.setattr(training, "objective", lambda vae, x, *rest: seen.append(x) or honest(vae, x, *rest))
    run.epoch()
    first, seen[:] = list(seen), []
    run.epoch()
    for batches in (first, seen):
        assert [len(x) for x in batches] == [64, 64, 64, 64, 44]
        passed = torch.cat(batches)
        assert torch.equal(passed.sort(dim=0).values, splits[0].pixels.sort(dim=0).values)
    assert not torch.equal(torch.cat(first), torch.cat(seen))
    assert not torch.equal(torch.cat(first), splits[0].pixels)


@pytest.mark.parametrize("beta", [0.5, 4.0])
def test_the_loss_weights_the_kl_by_beta(beta, splits):
    """Adam's first step is the learning rate times the sign of the gradient, up to its epsilon of 1e-8."""
    spec = replace(TINY, beta=beta, batch_size=300)
    run = Run(spec, *splits)
    generator = seeded(spec.seed)
    order = torch.randperm(300, generator=generator)
    eta = torch.randn(300, 3, generator=generator)
    model = spec.build()
    reconstruction, kl = elbo_terms(model, splits[0].pixels[order], eta)
    (beta * kl - reconstruction).mean().backward()
    epoch = run.epoch()
    for before, after in zip(model.parameters(), run.vae.parameters(), strict=True):
        gradient = before.grad
        clear = gradient.abs() > 1e-4  # there epsilon changes the step by less than one part in 10,000
        assert clear.any() or not gradient.any()
        step = (after - before).detach()
        torch.testing.assert_close(step[clear], -1e-3 * gradient.sign()[clear], rtol=1e-3, atol=1e-7)
    # the epoch holds the unweighted terms, before the step
    assert epoch.train_reconstruction == pytest.approx(float(reconstruction.detach().mean()), rel=FLOAT)
    assert epoch.train_kl == pytest.approx(float(kl.detach().mean()), rel=FLOAT)


def test_at_beta_1_the_two_objectives_are_one(splits):
    model, x = TINY.build(), splits[0].pixels
    eta = torch.randn(len(x), 3, generator=seeded(0))
    loss, _, _ = training.objective(model, x, eta, replace(TINY, beta=1.0))
    other, _, _ = training.objective(model, x, eta, replace(TINY, beta=1.0, objective="beta-tc"))
    assert torch.equal(loss, other)


def test_the_tc_objective_weights_the_total_correlation_alone(splits):
    """Against the mixture densities written out: log q(z) of all latents, and of each."""
    model, x = TINY.build(), splits[0].pixels[:40]
    eta = torch.randn(40, 3, generator=seeded(0))
    low, high = (training.objective(model, x, eta, replace(TINY, beta=b, objective="beta-tc"))[0] for b in (1.0, 5.0))
    mu, sigma = model.encode(x)
    log_q = torch.distributions.Normal(mu, sigma).log_prob((mu + sigma * eta)[:, None]).double()  # of z_i under q_j
    joint, marginals = log_q.sum(-1).exp().mean(1).log(), log_q.exp().mean(1).log().sum(1)
    constant = 2 * math.log(40)  # sums over the batch in place of means: of three latents, less one for all
    expected = float((joint - marginals).mean().detach()) - constant
    assert float((high - low).detach()) / 4 == pytest.approx(expected, rel=1e-3, abs=1e-3)  # single precision


def test_history_rows_are_complete_and_add_up(whole):
    history = manifest(whole)["history"]
    assert len(history) == TINY.epochs
    for row in history:
        assert set(row) == {"seconds"} | {
            f"{split}_{term}" for split in ("train", "test") for term in ("elbo", "reconstruction", "kl")
        }
        for split in ("train", "test"):
            # seven digits are kept of each
            assert row[f"{split}_elbo"] == pytest.approx(row[f"{split}_reconstruction"] - row[f"{split}_kl"], abs=2e-4)
        assert row["seconds"] > 0
        assert row["train_kl"] > 0


def test_training_raises_the_elbo(splits, tmp_path):
    """Above that of the best decoder that knows neither pixel nor latent: one grey, whose entropy is known."""
    history = manifest(train(replace(TINY, epochs=30), *splits, tmp_path))["history"]
    for images in splits:
        grey = images.pixels.double().mean()
        blind = 784 * float(grey * grey.log() + (1 - grey) * (1 - grey).log())
        assert history[0][f"{images.split}_elbo"] < blind < history[-1][f"{images.split}_elbo"]


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_every_likelihood_trains(likelihood, splits, tmp_path):
    spec = replace(TINY, likelihood=likelihood, epochs=2)
    path = train(spec, *splits, tmp_path)
    default = "mnist_beta1_tau0_latents3.safetensors"
    assert path.name == (default if likelihood == "bernoulli" else default.replace("tau0", f"tau0_{likelihood}"))
    assert all(math.isfinite(value) for row in manifest(path)["history"] for value in row.values())
    assert load_model(path).vae.likelihood == likelihood


def test_a_loss_that_is_not_finite_stops_the_run_and_names_it(splits, tmp_path):
    spec = replace(TINY, learning_rate=1e30, beta=2.0)
    with pytest.raises(FloatingPointError, match=r"mnist_beta2_tau0_latents3: the loss is (nan|inf) in epoch 1"):
        train(spec, *splits, tmp_path)
    assert list(tmp_path.iterdir()) == []  # no checkpoint of it
    # in a later epoch, that of the last good one stays
    with pytest.raises(FloatingPointError, match=r"mnist_beta1_tau0_latents3: the loss is nan in epoch 3"):
        train(
            TINY,
            *splits,
            tmp_path,
            progress=lambda done, epoch: splits[0].pixels.fill_(torch.nan) if done == 2 else None,
        )
    assert [path.name for path in tmp_path.iterdir()] == [f"{TINY.name}.checkpoint"]


def test_images_of_another_data_set_are_named(splits, fake_images):
    with pytest.raises(ValueError, match=r"test must be images of 'mnist', but are of 'fashion-mnist'"):
        Run(TINY, splits[0], fake_images(100, "test", "fashion-mnist"))


# the manifest


def test_the_manifest_tells_everything(whole, splits):
    record = manifest(whole)
    assert set(record) == {
        "spec",
        "final",
        "weights_sha256",
        "data",
        "seconds",
        "versions",
        "hardware",
        "history",
        "sha256",
    }
    assert Spec(**record["spec"]) == TINY
    assert record["weights_sha256"] == hashlib.sha256(whole.read_bytes()).hexdigest()
    for images in splits:
        assert record["data"][images.split] == {
            "source": images.source, "images": len(images),
            "sha256": hashlib.sha256(images.pixels.numpy().tobytes()).hexdigest(),
        }  # fmt: skip
    assert record["seconds"] == pytest.approx(sum(row["seconds"] for row in record["history"]), rel=1e-5)  # 7 digits
    assert set(record["versions"]) == {"python", "torch", "numpy", "safetensors"}
    assert record["versions"]["torch"] == torch.__version__.split("+")[0]
    assert record["hardware"]["device"] == "cpu"
    assert record["hardware"]["threads"] == torch.get_num_threads()
    assert record["hardware"]["processor"]
    assert {value.dtype for value in load_file(whole).values()} == {torch.float16}


def test_the_final_numbers_are_those_of_the_weights(whole, splits):
    """Before they were rounded to float16, by 5e-4 at most; here that moves the ELBO by less than 0.1 of 500 nats."""
    record, vae = manifest(whole), load_model(whole).vae
    final = record["final"]
    assert final["test_elbo"] == pytest.approx(record["history"][-1]["test_elbo"], rel=1e-6)  # seven digits
    for images in splits:
        for name, value in asdict(evaluate(vae, images.pixels)).items():
            assert final[f"{images.split}_{name}"] == pytest.approx(value, abs=0.1)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_evaluation_is_the_elbo_computed_directly(likelihood, splits):
    """With torch's own distributions, one image at a time, in double precision."""
    vae, pixels = replace(TINY, likelihood=likelihood, tau=0.2).build(), splits[1].pixels[:40]
    eta = torch.randn(40, 3, generator=seeded(training.EVALUATION_SEED)).double()
    found = asdict(evaluate(vae, pixels))
    vae = vae.double().requires_grad_(False)
    terms = []
    for x, noise in zip(pixels.double(), eta, strict=True):
        mu, sigma = vae.encode(x)
        q = distributions.Normal(mu, sigma)
        out = vae.decoder(mu + sigma * noise)
        if likelihood == "bernoulli":
            log_p = -torch.nn.functional.binary_cross_entropy_with_logits(out, x, reduction="sum")
        elif likelihood == "gaussian":
            log_p = distributions.Normal(out, 1.0).log_prob(x).sum()
        else:
            log_p = distributions.ContinuousBernoulli(logits=out).log_prob(x).sum()
        prior = distributions.Normal(torch.zeros_like(mu), torch.ones_like(mu))
        terms.append((float(log_p), float(distributions.kl_divergence(q, prior).sum())))
    reconstruction, kl = np.mean(terms, axis=0)
    direct = {"elbo": reconstruction - kl, "reconstruction": reconstruction, "kl": kl}
    assert found == pytest.approx(direct, rel=FLOAT)


def test_evaluation_meets_the_same_noise_whatever_the_chunk(splits):
    vae, pixels = TINY.build(), splits[0].pixels
    whole = evaluate(vae, pixels)
    assert evaluate(vae, pixels) == whole
    for chunk in (1, 7, 300, 5000):
        assert asdict(evaluate(vae, pixels, chunk=chunk)) == pytest.approx(asdict(whole), rel=FLOAT)


# names


def test_names_of_the_grid_are_distinct_and_say_what_it_is():
    assert len(GRID) == len({spec.name for spec in GRID}) == 15
    assert {spec.name for spec in GRID if spec.tau} == {f"mnist_beta1_tau{tau}" for tau in ("0.1", "0.5", "1")}
    for dataset in ("mnist", "fashion-mnist"):
        betas = {spec.beta for spec in GRID if spec.dataset == dataset and not spec.tau}
        assert betas == {0.1, 0.5, 1, 2, 5, 10}
    for spec in GRID:
        protocol = {"epochs": 100, "batch_size": 512, "learning_rate": 1e-3, "hidden": 400, "latents": 20, "seed": 0}
        assert asdict(spec) | protocol | {"likelihood": "bernoulli"} == asdict(spec)
    assert Spec("fashion-mnist", 0.5, likelihood="gaussian", seed=3).name == "fashion-mnist_beta0.5_tau0_gaussian_seed3"
