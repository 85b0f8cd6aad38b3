"""Summaries: complete, of what they say, and had again by measuring anew."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import DOUBLE, random_vae, seeded, uniform
from safetensors.torch import load_file

from vaerobust import commands
from vaerobust.bounds import theorem_1
from vaerobust.certify.both_sides import curves, sandwich
from vaerobust.criterion import log_likelihood
from vaerobust.study import summaries
from vaerobust.study.summaries import CHOICES, Choice, summary
from vaerobust.zoo import data
from vaerobust.zoo.protocol import BETAS, COMPANIONS, GRID, HEADLINES, SEEDS, SUMMARISED, TAUS, VARIANTS, Spec
from vaerobust.zoo.training import train
from vaerobust.zoo.weights import SHIPPED, Trained, load_model, pretrained

TINY = Spec(hidden=16, latents=3, epochs=2, batch_size=64)
ROUNDED = 1e-4
"""Five digits are kept."""


def test_the_models_are_those_that_the_trends_need():
    for beta in (0.1, 1.0, 5.0, 10.0):
        seeds = {
            spec.seed for spec in (*HEADLINES, *SEEDS) if (spec.dataset, spec.beta, spec.tau) == ("mnist", beta, 0)
        }
        assert len(seeds) >= 5
    assert len({spec.seed for spec in (*HEADLINES, *SEEDS) if spec.tau == 0.5}) >= 5
    for beta in (0.1, 1.0, 10.0):
        fashion = [spec.seed for spec in (*HEADLINES, *SEEDS) if (spec.dataset, spec.beta) == ("fashion-mnist", beta)]
        assert len(set(fashion)) >= 3
    assert set(HEADLINES) <= set(GRID)
    names = [spec.name for spec in (*GRID, *COMPANIONS, *SEEDS, *VARIANTS)]
    assert len(set(names)) == len(names)
    for other in ({"likelihood": "gaussian"}, {"likelihood": "continuous_bernoulli"}, {"scale": "exp"}):
        betas = {s.beta for s in (*COMPANIONS, *VARIANTS) if other.items() <= asdict(s).items()}
        assert {0.1, 5.0} <= betas
    attacked, _ = commands.KINDS["attack"]
    assert {(s.beta, s.tau) for s in attacked if s.objective == "beta"} == {(b, 0) for b in BETAS} | {
        (1, tau) for tau in TAUS
    }
    assert [s.beta for s in attacked if s.objective == "beta-tc"] == [5.0]


@pytest.mark.parametrize("spec", SUMMARISED, ids=lambda spec: spec.name)
def test_a_summary_is_there_and_of_the_full_protocol(spec):
    one = summary(spec)
    assert Spec(**one["spec"]) == spec
    assert spec.epochs == 100
    assert one["data"]["images"] == 10_000
    assert len(one["own"]["attack"]) == len(one["fixed"]["attack"]) == 50
    assert one["damage"]["images"] == 200
    weights = SHIPPED / f"{spec.name}.safetensors"
    if weights.exists():
        assert one["weights_sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    for part in ("own", "fixed"):
        of = {name: np.array(values) for name, values in one[part].items()}
        assert np.isfinite(np.concatenate([of["r"], of["bound"], of["attack"]])).all()
        assert ((of["attack"] > 0) == (of["p"] > 0.5)).mean() > 0.9  # p and the attack have samples of their own


def test_nothing_else_is_kept():
    kept = {path.name for path in summaries.FOLDER.iterdir()}
    paths = {kind: [summaries.path_of(spec, kind) for spec in specs] for kind, (specs, _) in commands.KINDS.items()}
    beside = [summaries.deltas_path(path) for path in paths["sandwich"]]
    assert kept == {path.name for path in [*sum(paths.values(), []), *beside]}


@pytest.mark.parametrize("spec", GRID, ids=lambda spec: spec.name)
def test_margins_have_two_sides(spec):
    one = summary(spec, "sandwich")
    assert Spec(**one["spec"]) == spec
    assert one["weights_sha256"] == hashlib.sha256((SHIPPED / f"{spec.name}.safetensors").read_bytes()).hexdigest()
    deltas = load_file(summaries.deltas_path(summaries.path_of(spec, "sandwich")))
    for which in ("own", "fixed"):
        columns = {name: torch.tensor(values) for name, values in one[which].items()}
        assert all(len(values) == 100 for values in columns.values())
        assert columns["confirmed"].all()
        assert (columns["half space"] <= columns["certified"]).all()
        assert (columns["certified"] <= columns["attack"]).all()
        # a norm of numbers in half precision, each rounded by 2^-11 of itself at most
        norms = deltas[which].double().norm(dim=1)
        assert torch.allclose(norms, columns["attack"][: len(norms)].double(), rtol=2**-11 + 1e-5)


def test_two_sides_are_had_again():
    """The first images alone, since a point's result does not depend on its company."""
    spec, n = GRID[2], 2
    x = data.load(spec.dataset).pixels[:n]
    again, _ = sandwich(pretrained(spec.dataset, spec.beta).vae, x)
    for which, columns in again.items():
        stored = summary(spec, "sandwich")[which]
        for name in ("r", "p low", "theorem 1", "whitened", "half space", "certified", "second moment", "attack"):
            # five digits are kept; a processor that rounds otherwise may move a bisection, of width 3 %, by a step
            assert columns[name].tolist() == pytest.approx(stored[name][:n], rel=0.07 if name == "attack" else 0.01)


def ends_of_curves(spec):
    """Return radii, and certified and broken r with infinity for what is not certified, as arrays."""
    one = summary(spec, "curves")
    certified = [[np.inf if r is None else r for r in line] for line in one["certified"]]
    return np.array(one["radii"]), np.array(certified), np.array(one["broken"])


@pytest.mark.parametrize("spec", GRID, ids=lambda spec: spec.name)
def test_curves_have_two_ends(spec):
    one = summary(spec, "curves")
    assert Spec(**one["spec"]) == spec
    assert one["weights_sha256"] == hashlib.sha256((SHIPPED / f"{spec.name}.safetensors").read_bytes()).hexdigest()
    radii, certified, broken = ends_of_curves(spec)
    assert radii.tolist() == list(summaries.CURVE_RADII)
    assert certified.shape == broken.shape == (len(radii), 100)
    assert (certified >= broken).all() and (broken > 0).all()
    assert (np.diff(np.nan_to_num(certified, posinf=1e9), axis=0) >= 0).all()
    assert np.isfinite(certified[:2]).all() and np.isinf(certified[-1]).any()


def test_curves_are_had_again():
    """The first images alone; what is stored has five digits, and an attack may end elsewhere on another processor."""
    spec, n = GRID[2], 2
    x = data.load(spec.dataset).pixels[:n]
    again = curves(pretrained(spec.dataset, spec.beta).vae, x, summaries.CURVE_RADII)
    _, certified, broken = ends_of_curves(spec)
    assert again.certified.numpy() == pytest.approx(certified[:, :n], rel=0.02)
    assert again.broken.numpy() == pytest.approx(broken[:, :n], rel=0.05)


@pytest.mark.parametrize("spec", commands.KINDS["attack"][0], ids=lambda spec: spec.name)
def test_all_images_were_attacked(spec):
    one = summary(spec, "attack")
    assert Spec(**one["spec"]) == spec
    assert one["weights_sha256"] == hashlib.sha256((SHIPPED / f"{spec.name}.safetensors").read_bytes()).hexdigest()
    assert one["attack"] == summaries.QUICK
    assert one["all"]["images"] == one["data"]["images"] == 10_000
    assert one["first"]["images"] == summaries.AGAIN
    for part in (one["all"], one["first"]):
        means = [part[f"{limit:g}"]["mean"] for limit in (0.0, *summaries.ALL_LIMITS)]
        assert means == sorted(means, reverse=True)
        for limit in summaries.ALL_LIMITS:  # the first images are a sample of all; 5 standard errors for 10 models
            error = one["all"][f"{limit:g}"]["std"] / summaries.AGAIN**0.5
            assert abs(one["first"][f"{limit:g}"]["mean"] - one["all"][f"{limit:g}"]["mean"]) < 5 * error


@pytest.mark.parametrize("spec", [commands.KINDS["attack"][0][k] for k in (0, -1)], ids=lambda spec: spec.name)
def test_attacks_are_had_again(spec):
    """On the first images alone, which the shipped sample has too."""
    stored, x = summary(spec, "attack")["first"], data.load("mnist").pixels[: summaries.AGAIN]
    again = summaries.damage(
        pretrained("mnist", spec.beta, objective=spec.objective).vae, x, (1.0,), attack=summaries.QUICK, own_noise=True
    )
    assert again["wrong"] == pytest.approx(stored["wrong"], rel=1e-3)
    assert again["0"]["mean"] == pytest.approx(stored["0"]["mean"], rel=1e-3)
    assert again["1"]["mean"] == pytest.approx(stored["1"]["mean"], rel=0.03)  # another processor, another ascent


@pytest.mark.parametrize("spec", [HEADLINES[1], HEADLINES[5]], ids=lambda spec: spec.name)
def test_a_summary_is_had_again(spec):
    """The encoder on all images; r, bound and p on the first; margins within the width of their search."""
    images, stored = data.load(spec.dataset), summary(spec)
    vae = pretrained(spec.dataset, spec.beta, spec.tau).vae
    if images.complete:  # else only the first 1,000 are there
        for name, value in summaries.encoder(vae, images.pixels).items():
            assert value == pytest.approx(stored["encoder"][name], rel=1e-3)
    again = summaries.margins(vae, images.pixels[:3], CHOICES["as everywhere"])
    assert again["r"] == pytest.approx(stored["own"]["r"][:3], rel=1e-3)
    assert again["p"] == pytest.approx(stored["own"]["p"][:3], abs=0.003)  # a draw or two at the edge of r
    assert again["bound"] == pytest.approx(stored["own"]["bound"][:3], rel=0.02)  # what that does to the probit
    # another processor rounds otherwise, and the search may take another turn: its brackets are 5 % wide
    assert again["attack"] == pytest.approx(stored["own"]["attack"][:3], rel=0.2)
    damage = summaries.damage(vae, images.pixels[: stored["damage"]["images"]], ())
    assert damage["0"]["mean"] == pytest.approx(stored["damage"]["0"]["mean"], rel=1e-3)
    assert damage["wrong"] == pytest.approx(stored["damage"]["wrong"], rel=1e-3)


def test_every_choice_is_measured_and_changes_one_thing():
    base = asdict(Choice())
    for name, choice in CHOICES.items():
        changed = {field for field, value in asdict(choice).items() if value != base[field]}
        assert len(changed) == (0 if name == "as everywhere" else 3 if name == "stronger attack" else 1)
    specs, _ = commands.KINDS["choices"]
    assert {spec.beta for spec in specs} == {0.1, 1.0, 5.0}
    for spec in specs:
        assert spec in GRID
        measured = summary(spec, "choices")["choices"]
        assert set(measured) == set(CHOICES)
        for name, lists in measured.items():
            assert len({len(values) for values in lists.values()}) == 1
            assert len(lists["attack"]) == (6 if name in summaries.DEAR else 30)


def test_encoder_statistics_are_those_of_the_model():
    vae, x = random_vae(), uniform(40, 12)
    found = summaries.encoder(vae, x)
    mu, sigma = vae.encode(x)
    assert found["sigma"]["mean"] == pytest.approx(float(sigma.mean()), rel=DOUBLE)
    assert found["min sigma"]["mean"] == pytest.approx(float(sigma.min(1).values.mean()), rel=DOUBLE)
    assert found["spectral"]["mean"] <= found["frobenius"]["mean"]
    kl = 0.5 * (mu**2 + sigma**2 - 1 - 2 * sigma.log()).mean(0)
    assert found["active"] == int((kl > summaries.ACTIVE_NATS).sum())
    assert found["active sigma"]["mean"] == pytest.approx(
        float(sigma[:, kl > summaries.ACTIVE_NATS].mean()), rel=DOUBLE
    )


def test_margins_agree_with_the_functions_they_call():
    vae, x = random_vae(), uniform(4, 12)
    found = summaries.margins(vae, x, Choice(samples=300, steps=3), random=True)
    bound = theorem_1(vae, x, torch.tensor(found["r"], dtype=x.dtype), samples=300, seed=2).low
    assert found["bound"] == pytest.approx(bound.tolist(), rel=1e-6)
    assert set(found) == {"r", "p", "bound", "attack", "censored", "confirmed", "random", "random censored"}
    fixed = summaries.margins(vae, x, Choice(r=0.5, samples=300, steps=3))
    assert fixed["r"] == [0.5] * 4


def test_damage_is_none_without_a_perturbation_and_grows():
    vae, x = random_vae(784, 16, 3, gain=1.0), uniform(20, 784)
    found = summaries.damage(vae, x, (1e-9, 3.0))
    assert found["1e-09"]["mean"] == pytest.approx(found["0"]["mean"], rel=1e-6)
    assert found["3"]["mean"] < found["0"]["mean"]
    assert found["images"] == 20


def test_with_noise_of_its_own_an_image_has_what_common_noise_says_in_the_mean():
    """Two estimates of one mean over eta: few draws an image over many images, many draws for each."""
    vae, x = random_vae(784, 16, 3, gain=1.0), uniform(60, 784)
    own = summaries.explained(vae, x, torch.zeros_like(x), draws=400)
    common = log_likelihood(vae, x, samples=4000, seed=1)
    mu, sigma = vae.encode(x)
    z = mu[:, None] + sigma[:, None] * torch.randn(60, 200, 3, generator=seeded(2), dtype=x.dtype)
    spread = vae.log_likelihood(x[:, None], z)
    error = spread.std(1) * (1 / 400 + 1 / 4000) ** 0.5
    assert ((own - common).abs() < 5 * error).all()
    alone = summaries.explained(vae, x[:16], torch.zeros_like(x[:16]), draws=400)
    assert alone.tolist() == pytest.approx(own[:16].tolist(), rel=1e-6)
    repeated = summaries.explained(vae, x[:1].repeat(50, 1), torch.zeros(50, 784, dtype=x.dtype), draws=1)
    assert len(repeated.unique()) == 50


def test_rounding_keeps_five_digits_and_everything_else():
    value = {"a": [1.23456789, 2], "b": {"c": True, "d": "x"}, "e": 123456.789, "f": None}
    assert summaries.rounded(value) == {"a": [1.2346, 2], "b": {"c": True, "d": "x"}, "e": 123460.0, "f": None}


@pytest.mark.parametrize("content", ["", "{half", "[]", "{}", '{"spec": {"beta": -1}}', '{"spec": {"colour": 1}}'])
def test_a_corrupt_summary_is_named(content, tmp_path):
    path = summaries.path_of(TINY, folder=tmp_path)
    path.write_text(content)
    with pytest.raises(ValueError, match=rf"summary .*{path.name} is corrupt"):
        summary(TINY, folder=tmp_path)
    with pytest.raises(FileNotFoundError):
        summary(replace(TINY, seed=7), folder=tmp_path)


def test_the_study_trains_what_is_missing_and_keeps_what_is_there(fake_images, tmp_path, monkeypatch):
    """In this process and with one model: the command's own work is the choice of what to do."""
    splits = fake_images(200, "train"), fake_images(60, "test")
    specs, trained = (TINY, replace(TINY, seed=1)), []
    monkeypatch.setattr(commands, "KINDS", {"": (specs, brief), "other": (specs[:1], brief)})
    monkeypatch.setattr(commands.data, "load", lambda dataset, split="test": splits[split == "test"])
    monkeypatch.setattr(commands, "ProcessPoolExecutor", Here)
    monkeypatch.setattr(commands, "as_completed", list)

    def train_all(missing, folder, jobs):
        trained.extend(missing)
        for spec in missing:
            train(spec, *splits, folder)

    monkeypatch.setattr(commands, "train_all", train_all)
    train(TINY, *splits, tmp_path / "models")
    arguments = ["study", "--folder", str(tmp_path / "models"), "--summaries", str(tmp_path / "out"), "--jobs", "1"]
    flagged = ((["--trained-only", "--only", ".other"], 1), (["--trained-only"], 2), ([], 3), ([], 3))
    for flags, files in flagged:
        done = CliRunner().invoke(commands.main, [*arguments, *flags], catch_exceptions=False)
        assert done.exit_code == 0
        assert len(list((tmp_path / "out").iterdir())) == files
    assert trained == [specs[1]]
    assert summary(TINY, "other", folder=tmp_path / "out")["spec"] == asdict(TINY)
    for spec in specs:
        one = summary(spec, folder=tmp_path / "out")
        assert (
            one["weights_sha256"] == load_model(tmp_path / f"models/{spec.name}.safetensors").manifest["weights_sha256"]
        )
        json.dumps(one)


def brief(trained: Trained, images):
    return {"elbo": trained.manifest["final"]["test_elbo"]} | summaries.manifest(trained, images, 0.0)


class Here:
    """A pool that runs what it is given at once."""

    def __init__(self, *_, **__):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return False

    def submit(self, function, *arguments):
        result = function(*arguments)
        return type("Done", (), {"result": lambda self: result})()
