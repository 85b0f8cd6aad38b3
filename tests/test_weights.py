"""Models on disk, and the 15 that ship."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import pytest
import torch

from vaerobust.model import VAE, elbo_terms
from vaerobust.zoo import data
from vaerobust.zoo.machine import Hardware
from vaerobust.zoo.manifest import Epoch, FinalTerms, ImagesUsed, Manifest, SplitsUsed
from vaerobust.zoo.protocol import COMPANIONS, CONVOLUTIONAL, GRID, Spec
from vaerobust.zoo.training import evaluate
from vaerobust.zoo.weights import (
    SHIPPED,
    Trained,
    half_precision_bytes,
    load_model,
    manifest_bytes,
    pretrained,
    read_manifest,
    save_model,
)

SPEC = Spec(hidden=16, latents=3, tau=0.5, likelihood="gaussian")
TERMS = (-90.0, -70.0, 20.0, -92.0, -71.0, 21.0)
IMAGES = ImagesUsed("made for a test", 10, "0" * 64)
MANIFEST = Manifest(
    SPEC, FinalTerms(*TERMS), SplitsUsed(IMAGES, IMAGES), 1.5, {"python": "3.11.0"}, Hardware("none", 1),
    (Epoch(1.5, *TERMS),), "", "",
)  # fmt: skip
MEGABYTES = 2.5e6


@pytest.fixture
def saved(tmp_path):
    """A small model on disk, its path."""
    path = tmp_path / f"{SPEC.name}.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae = VAE(784, 16, 3, tau=0.5, likelihood="gaussian")
    save_model(path, vae, MANIFEST)
    return path, vae


def test_a_saved_model_comes_back_rounded_to_half_precision(saved):
    path, vae = saved
    trained = load_model(path)
    for (name, value), (again, loaded) in zip(vae.state_dict().items(), trained.vae.state_dict().items(), strict=True):
        assert name == again
        assert loaded.dtype == torch.float32
        assert torch.equal(loaded, value.half().float())
    assert (trained.vae.tau, trained.vae.likelihood, trained.vae.latents) == (0.5, "gaussian", 3)
    assert not any(weight.requires_grad for weight in trained.vae.parameters())
    digest = hashlib.sha256(half_precision_bytes(vae)).hexdigest()
    assert trained.manifest == replace(MANIFEST, weights_sha256=digest, sha256=trained.manifest.sha256)
    assert load_model(str(path)).manifest == trained.manifest
    named = pretrained("mnist", tau=0.5, likelihood="gaussian", latents=3, folder=path.parent)
    assert named.manifest == trained.manifest


def test_saving_again_gives_the_same_bytes(saved):
    path, _ = saved
    vae = load_model(path).vae
    assert half_precision_bytes(vae) == path.read_bytes()


def test_a_missing_file_is_named(saved):
    path, _ = saved
    path.with_suffix(".json").rename(path.with_suffix(".bak"))
    with pytest.raises(FileNotFoundError, match=r"mnist_beta1_tau0.5_gaussian_latents3\.json"):
        load_model(path)
    path.with_suffix(".bak").rename(path.with_suffix(".json"))
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"mnist_beta1_tau0.5_gaussian_latents3\.safetensors"):
        load_model(path)


@pytest.mark.parametrize(
    "how", [lambda b: b"", lambda b: b[:-1], lambda b: b[:-9] + b"x" + b[-8:], lambda b: b"x" * 99]
)
def test_damaged_weights_are_named(how, saved):
    path, _ = saved
    path.write_bytes(how(path.read_bytes()))
    with pytest.raises(ValueError, match=r"mnist_beta1_tau0.5_gaussian_latents3\.safetensors is corrupt .*SHA-256"):
        load_model(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: "", "JSON"),
        (lambda m: "{half", "JSON"),
        (lambda m: "[]", "must be an object"),
        (lambda m: "{}", "spec is missing"),
        (lambda m: {k: v for k, v in m.items() if k != "weights_sha256"}, "weights_sha256 is missing"),
        (lambda m: m | {"spec": None}, "spec must be an object, but is None"),
        (lambda m: m | {"spec": m["spec"] | {"hidden": 17}}, "the manifest's SHA-256 is not the one in it"),
        (lambda m: m | {"spec": m["spec"] | {"likelihood": "poisson"}}, "likelihood must be one of .*'poisson'"),
        (lambda m: m | {"colour": "red"}, "colour is not a field of Manifest"),
        (lambda m: m | {"spec": m["spec"] | {"gamma": 2.0}}, "spec.gamma is not a field of Spec"),
        (lambda m: m | {"final": m["final"] | {"test_kl": "much"}}, "final.test_kl must be a number, but is 'much'"),
        (lambda m: m | {"history": [{"seconds": 1.0}]}, r"history\[0\].train_elbo is missing"),
        (lambda m: m | {"weights_sha256": "0" * 64}, "the manifest's SHA-256 is not the one"),
        (lambda m: {k: v for k, v in m.items() if k != "sha256"}, "sha256 is missing"),
    ],
)  # fmt: skip
def test_a_damaged_or_foreign_manifest_is_named(change, message, saved):
    path, _ = saved
    content = change(json.loads(path.with_suffix(".json").read_text()))
    path.with_suffix(".json").write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(
        ValueError, match=rf"(?s)mnist_beta1_tau0.5_gaussian_latents3\.safetensors is corrupt .*{message}"
    ):
        load_model(path)


def test_files_that_are_no_safetensors_are_named_even_with_the_right_digest(saved):
    path, _ = saved
    path.write_bytes(b"x" * 99)
    manifest = json.loads(path.with_suffix(".json").read_text())
    manifest["weights_sha256"] = hashlib.sha256(b"x" * 99).hexdigest()
    path.with_suffix(".json").write_bytes(manifest_bytes(manifest))
    with pytest.raises(ValueError, match="is corrupt .*SafetensorError"):
        load_model(path)


def test_every_byte_of_a_manifest_is_checked(saved):
    """With one bit of any byte changed, and with it another byte, the model is not loaded."""
    path, _ = saved
    content = path.with_suffix(".json").read_bytes()
    for at in range(len(content)):
        for bit in (1, 2, 32):
            changed = content[:at] + bytes([content[at] ^ bit]) + content[at + 1 :]
            with pytest.raises(ValueError, match=r"."):
                read_manifest(changed)
    path.with_suffix(".json").write_bytes(content.replace(b'"tau": 0.5', b'"tau": 0.7'))
    with pytest.raises(ValueError, match="the manifest's SHA-256 is not the one in it"):
        load_model(path)


@pytest.mark.parametrize("change", [{"tau": 0.1}, {"likelihood": "bernoulli"}, {"scale": "exp"}])
def test_a_model_of_another_specification_is_never_taken_for_the_one_asked_for(change, saved):
    """Neither by its name nor by its specification, though both files are whole and belong together."""
    path, _ = saved
    manifest = json.loads(path.with_suffix(".json").read_text())
    manifest["spec"] |= change
    path.with_suffix(".json").write_bytes(manifest_bytes(manifest))
    with pytest.raises(ValueError, match=r"must be the model .*_tau0.5_gaussian_latents3, but its manifest says"):
        pretrained("mnist", tau=0.5, likelihood="gaussian", latents=3, folder=path.parent)
    with pytest.raises(ValueError, match="is of another run"):
        load_model(path, SPEC)


def test_an_unknown_model_lists_those_there_are(saved, tmp_path):
    folder = saved[0].parent
    with pytest.raises(ValueError, match=r"no model 'mnist_beta7_tau0' in .*; there are: mnist_beta1_tau0.5\w+$"):
        pretrained("mnist", 7.0, folder=folder)
    with pytest.raises(ValueError, match=r"no model 'mnist_beta1_tau0_latents2' in .*; there are: none$"):
        pretrained("mnist", latents=2, folder=tmp_path / "empty")
    with pytest.raises(ValueError, match="dataset must be one of .* but is 'cifar'"):
        pretrained("cifar", folder=tmp_path / "empty")


SHIPS = (*GRID, *COMPANIONS, *CONVOLUTIONAL)


def shipped(spec: Spec) -> Trained:
    fields = ("likelihood", "objective", "latents", "architecture")
    other = {field: getattr(spec, field) for field in fields if spec.varies(field)}
    return pretrained(spec.dataset, spec.beta, spec.tau, **other)


def test_an_unknown_shipped_model_lists_all_that_ship():
    with pytest.raises(ValueError, match="no model 'mnist_beta3_tau0'") as error:
        pretrained("mnist", 3.0)
    listed = str(error.value).split("there are: ")[1].split(", ")
    assert sorted(listed) == sorted(spec.name for spec in SHIPS)


@pytest.mark.parametrize("spec", SHIPS, ids=lambda spec: spec.name)
def test_a_shipped_model_was_trained_by_the_full_protocol(spec):
    trained = shipped(spec)
    record = trained.manifest
    assert record.spec == spec
    assert len(record.history) == record.spec.epochs == 100
    assert record.data.train.images == 60_000
    assert record.data.test.images == 10_000
    assert "sample" not in record.data.test.source
    assert trained.vae.tau == spec.tau
    assert (SHIPPED / f"{spec.name}.safetensors").stat().st_size < MEGABYTES
    for epoch in record.history:
        assert epoch.test_elbo == pytest.approx(epoch.test_reconstruction - epoch.test_kl, abs=1e-3)  # seven digits


def test_nothing_else_ships():
    """A checkpoint, or a model that no test looks at, would be dead weight."""
    names = {spec.name for spec in SHIPS}
    assert {path.name for path in SHIPPED.iterdir()} >= {
        f"{name}.{end}" for name in names for end in ("safetensors", "json")
    }
    assert {path.stem for path in SHIPPED.glob("*.safetensors")} == names
    assert not list(SHIPPED.glob("*.checkpoint"))


def test_models_of_one_data_set_saw_the_same_images():
    for dataset in data.DATASETS:
        records = [shipped(spec).manifest for spec in SHIPS if spec.dataset == dataset]
        assert len({record.data.train.sha256 for record in records}) == 1
        assert len({record.data.test.sha256 for record in records}) == 1


def test_shipped_weights_reach_the_elbo_of_their_manifests():
    """In float16, on the same images and noise, within 0.05 nats.

    Where no source of the data answers there are only the first 1,000 test images, whose mean is within five standard
    errors of that of all 10,000.
    """
    for dataset in data.DATASETS:
        images = data.load(dataset)
        for spec in (spec for spec in SHIPS if spec.dataset == dataset):
            vae, record = shipped(spec).vae, shipped(spec).manifest
            error = 0.05
            if images.complete:
                assert hashlib.sha256(images.pixels.numpy().tobytes()).hexdigest() == record.data.test.sha256
            else:
                reconstruction, kl = elbo_terms(vae, images.pixels, torch.zeros(len(images), vae.latents))
                error = 5 * float((reconstruction - kl).std()) / len(images) ** 0.5
            found = evaluate(vae, images.pixels).elbo
            assert found == pytest.approx(record.final.test_elbo, abs=error), spec.name
