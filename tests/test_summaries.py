"""Summaries: complete, of the models they name, and equal to what is measured anew."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
from dataclasses import asdict, dataclass, fields, replace
from typing import ClassVar

import pytest
import torch
from click.testing import CliRunner
from conftest import DOUBLE, random_vae, seeded, uniform

from vaerobust import commands
from vaerobust.attacks import AttackSettings
from vaerobust.bounds import theorem_1
from vaerobust.certify.both_sides import both_sides
from vaerobust.certify.curves import curves
from vaerobust.cluster import engines
from vaerobust.likelihood import log_likelihood
from vaerobust.study import measurements, summaries
from vaerobust.study.choices import CHOICES, DEFAULT, FIXED_R, Choice
from vaerobust.study.encoder import ACTIVE_NATS, encoder_statistics
from vaerobust.study.measurements import ATTACKED_MODELS, CHOICES_MODELS, MEASUREMENTS, Measurement
from vaerobust.study.records import (
    AttackSummary,
    BothSidesSummary,
    ChoicesSummary,
    CurvesSummary,
    Margins,
    MarginsAndRandomDirections,
    ModelSummary,
    Summary,
)
from vaerobust.study.summaries import load
from vaerobust.zoo import data
from vaerobust.zoo.protocol import BETAS, COMPANIONS, GRID, HEADLINES, SEEDS, SUMMARISED, TAUS, VARIANTS, Spec
from vaerobust.zoo.training import train
from vaerobust.zoo.weights import SHIPPED, Trained, load_model, pretrained

TINY = Spec(hidden=16, latents=3, epochs=2, batch_size=64)


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
    assert {(s.beta, s.tau) for s in ATTACKED_MODELS if s.objective == "beta"} == {(b, 0) for b in BETAS} | {
        (1, tau) for tau in TAUS
    }
    assert [s.beta for s in ATTACKED_MODELS if s.objective == "beta-tc"] == [5.0]


def is_of(summary, spec):
    """Tell whether a summary is of a model as it ships; any model, if its weights do not ship."""
    weights = SHIPPED / f"{spec.name}.safetensors"
    shipped = not weights.exists() or summary.provenance.weights_sha256 == digest(weights)
    return summary.provenance.spec == spec and shipped


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def lengths(result):
    """Return the lengths of the columns of a result, wider fields left out."""
    columns = [getattr(result, field.name) for field in fields(result)]
    return {len(column) for column in columns if column.ndim == 1}


@pytest.mark.parametrize("spec", SUMMARISED, ids=lambda spec: spec.name)
def test_a_summary_is_there_and_of_the_full_protocol(spec):
    summary = load(spec, ModelSummary)
    assert is_of(summary, spec)
    assert spec.epochs == 100
    assert summary.provenance.data.images == 10_000
    assert lengths(summary.own) == lengths(summary.fixed) == {measurements.MARGIN_IMAGES} == {50}
    assert summary.damage.images == measurements.DAMAGE_IMAGES == 200
    for part in (summary.own, summary.fixed):
        assert torch.cat([part.r, part.theorem_1, part.attack]).isfinite().all()
        # the probability and the attack have samples of their own
        assert ((part.attack > 0) == (part.probability > 0.5)).double().mean() > 0.9


def test_nothing_else_is_kept():
    kept = {path.name for path in summaries.FOLDER.iterdir()}
    paths = [summaries.path_of(spec, one.kind) for one in MEASUREMENTS for spec in one.specs]
    beside = [summaries.perturbations_path(summaries.path_of(spec, BothSidesSummary)) for spec in GRID]
    assert kept == {path.name for path in [*paths, *beside]}


@pytest.mark.parametrize("measurement", MEASUREMENTS, ids=lambda one: one.kind.__name__)
def test_a_summary_is_written_as_it_was_read(measurement, tmp_path):
    """Every key of every file is a field, and every number survives."""
    for spec in measurement.specs:
        stored = summaries.path_of(spec, measurement.kind)
        summaries.save(tmp_path / stored.name, load(spec, measurement.kind))
        assert (tmp_path / stored.name).read_bytes() == stored.read_bytes()
        assert all(key.isidentifier() for key in keys(json.loads(stored.read_text())))


def keys(content):
    """Yield all keys of nested objects."""
    if isinstance(content, dict):
        yield from content
    for inner in content.values() if isinstance(content, dict) else content if isinstance(content, list) else ():
        yield from keys(inner)


@pytest.mark.parametrize("spec", GRID, ids=lambda spec: spec.name)
def test_margins_have_two_sides(spec):
    summary = load(spec, BothSidesSummary)
    assert is_of(summary, spec)
    assert summary.confidence == measurements.CONFIDENCE
    for part in (summary.own, summary.fixed):
        assert lengths(part) == {measurements.BOTH_SIDES_IMAGES} == {100}
        assert part.confirmed.all()
        assert (part.half_space <= part.certified).all()
        assert (part.certified <= part.attack).all()
        # a norm of numbers in half precision, each rounded by 2^-11 of itself at most
        norms = part.delta.double().norm(dim=1)
        assert len(norms) == measurements.KEPT_PERTURBATIONS
        assert torch.allclose(norms, part.attack[: len(norms)], rtol=2**-11 + 1e-5)


def test_two_sides_are_measured_again():
    """The first images alone, since the result of a point does not depend on the other points."""
    spec, n = GRID[2], 2
    x = data.load(spec.dataset).pixels[:n]
    again, stored = both_sides(pretrained(spec.dataset, spec.beta).vae, x), load(spec, BothSidesSummary)
    for now, then in ((again.own, stored.own), (again.fixed, stored.fixed)):
        for name in ("r", "p_low", "theorem_1", "whitened", "half_space", "certified", "second_moment", "attack"):
            # five digits are kept; a processor that rounds otherwise may move a bisection, of width 3 %, by a step
            error = 0.07 if name == "attack" else 0.01
            assert getattr(now, name).tolist() == pytest.approx(getattr(then, name)[:n].tolist(), rel=error)


@pytest.mark.parametrize("spec", GRID, ids=lambda spec: spec.name)
def test_curves_have_two_ends(spec):
    summary = load(spec, CurvesSummary)
    assert is_of(summary, spec)
    assert summary.curves.radii.tolist() == list(measurements.RADII_OF_CURVES)
    certified, broken = summary.curves.certified, summary.curves.broken
    assert summary.curves.confidence == measurements.CONFIDENCE
    assert certified.shape == broken.shape == (len(summary.curves.radii), 100)
    assert (certified >= broken).all()
    assert (broken > 0).all()
    assert (certified.nan_to_num(posinf=1e9).diff(dim=0) >= 0).all()
    assert certified[:2].isfinite().all()
    assert certified[-1].isinf().any()


def test_curves_are_measured_again():
    """The first images alone; what is stored has five digits, and an attack may end elsewhere on another processor."""
    spec, n = GRID[2], 2
    x = data.load(spec.dataset).pixels[:n]
    again = curves(pretrained(spec.dataset, spec.beta).vae, x, measurements.RADII_OF_CURVES)
    stored = load(spec, CurvesSummary).curves
    assert again.certified.numpy() == pytest.approx(stored.certified[:, :n].numpy(), rel=0.02)
    assert again.broken.numpy() == pytest.approx(stored.broken[:, :n].numpy(), rel=0.05)


@pytest.mark.parametrize("spec", ATTACKED_MODELS, ids=lambda spec: spec.name)
def test_all_images_were_attacked(spec):
    summary = load(spec, AttackSummary)
    assert is_of(summary, spec)
    assert summary.settings == measurements.ALL_IMAGES_ATTACK
    assert summary.all_images.images == summary.provenance.data.images == 10_000
    assert summary.first_images.images == measurements.FIRST_IMAGES
    for part in (summary.all_images, summary.first_images):
        assert tuple(one.norm for one in part.attacked) == (0.0, *measurements.ALL_IMAGES_NORMS)
        means = [one.mean for one in part.attacked]
        assert means == sorted(means, reverse=True)
        assert part.clean == part.attacked[0]
        assert part.clean.loss_std == 0.0
    for norm in measurements.ALL_IMAGES_NORMS:  # the first images are a sample of all; 5 standard errors for 10 models
        error = summary.all_images.at(norm).std / measurements.FIRST_IMAGES**0.5
        assert abs(summary.first_images.at(norm).mean - summary.all_images.at(norm).mean) < 5 * error


def test_a_norm_that_was_not_attacked_is_an_error():
    damage = load(ATTACKED_MODELS[0], AttackSummary).all_images
    with pytest.raises(ValueError, match=r"norm must be one of \[0.0, 1.0, 2.0, 4.0, 10.0\], but is 3.0"):
        damage.at(3.0)


@pytest.mark.parametrize("spec", [ATTACKED_MODELS[k] for k in (0, -1)], ids=lambda spec: spec.name)
def test_attacks_are_measured_again(spec):
    """On the first images alone, which the shipped sample has too."""
    stored, x = load(spec, AttackSummary).first_images, data.load("mnist").pixels[: measurements.FIRST_IMAGES]
    vae = pretrained("mnist", spec.beta, objective=spec.objective).vae
    again = measurements.damage(vae, x, (1.0,), measurements.ALL_IMAGES_ATTACK, own_noise=True)
    assert again.other_image == pytest.approx(stored.other_image, rel=1e-3)
    assert again.clean.mean == pytest.approx(stored.clean.mean, rel=1e-3)
    assert again.at(1.0).mean == pytest.approx(stored.at(1.0).mean, rel=0.03)  # another processor, another ascent


@pytest.mark.parametrize("spec", [HEADLINES[1], HEADLINES[5]], ids=lambda spec: spec.name)
def test_a_summary_is_measured_again(spec):
    """The encoder on all images; r, bound and probability on the first; margins within the width of their search."""
    images, stored = data.load(spec.dataset), load(spec, ModelSummary)
    vae = pretrained(spec.dataset, spec.beta, spec.tau).vae
    if images.complete:  # else only the first 1,000 are there
        found = asdict(measurements.encoder_summary(encoder_statistics(vae, images.pixels)))
        for name, value in asdict(stored.encoder).items():
            assert found[name] == pytest.approx(value, rel=1e-3)
    again, then = measurements.margins(vae, images.pixels[:3]), stored.own
    assert again.r.tolist() == pytest.approx(then.r[:3].tolist(), rel=1e-3)
    assert again.probability.tolist() == pytest.approx(then.probability[:3].tolist(), abs=0.003)  # a draw or two near r
    assert again.theorem_1.tolist() == pytest.approx(then.theorem_1[:3].tolist(), rel=0.02)  # what that does to it
    # another processor rounds otherwise, and the search may take another turn: its brackets are 5 % wide
    assert again.attack.tolist() == pytest.approx(then.attack[:3].tolist(), rel=0.2)
    damage = measurements.damage(vae, images.pixels[: stored.damage.images], ())
    assert damage.clean.mean == pytest.approx(stored.damage.clean.mean, rel=1e-3)
    assert damage.other_image == pytest.approx(stored.damage.other_image, rel=1e-3)


def test_every_choice_is_measured_and_changes_one_thing():
    def settings(choice):
        """Return all settings, those of the attack among them; an expensive attack has fewer images."""
        flat = asdict(choice) | {f"attack_{name}": value for name, value in asdict(choice.attack).items()}
        return {name: value for name, value in flat.items() if name not in {"name", "label", "attack", "images"}}

    assert CHOICES[0] == DEFAULT == Choice("default", "as everywhere")
    assert FIXED_R in CHOICES
    for choice in CHOICES[1:]:
        changed = {name for name, value in settings(choice).items() if value != settings(DEFAULT)[name]}
        assert len(changed) == (3 if choice.name == "stronger_attack" else 1)
    names = [choice.name for choice in CHOICES]
    assert len(set(names)) == len(names)
    assert {spec.beta for spec in CHOICES_MODELS} == {0.1, 1.0, 5.0}
    for spec in CHOICES_MODELS:
        assert spec in GRID
        stored = load(spec, ChoicesSummary).choices
        assert list(stored) == names
        for choice in CHOICES:
            assert lengths(stored[choice.name]) == {choice.images}
            assert choice.images == (6 if choice.name in {"stronger_attack", "lbfgs"} else 30)


def test_encoder_statistics_are_those_of_the_model():
    vae, x = random_vae(), uniform(40, 12)
    found = encoder_statistics(vae, x)
    mu, sigma = vae.encode(x)
    kl = 0.5 * (mu**2 + sigma**2 - 1 - 2 * sigma.log()).mean(0)
    assert found.sigma.tolist() == pytest.approx(sigma.mean(1).tolist(), rel=DOUBLE)
    assert found.min_sigma.tolist() == pytest.approx(sigma.min(1).values.tolist(), rel=DOUBLE)
    assert (found.spectral <= found.frobenius * (1 + DOUBLE)).all()
    assert found.active_latents == int((kl > ACTIVE_NATS).sum())
    assert found.active_sigma.tolist() == pytest.approx(sigma[:, kl > ACTIVE_NATS].mean(1).tolist(), rel=DOUBLE)
    assert encoder_statistics(vae, x, active_nats=1e9).active_latents == 0
    assert encoder_statistics(vae, x, active_nats=1e9).active_sigma.isnan().all()
    means = measurements.encoder_summary(found)
    assert means.sigma.mean == pytest.approx(float(sigma.mean()), rel=DOUBLE)
    assert means.min_sigma.std == pytest.approx(float(sigma.min(1).values.std()), rel=DOUBLE)
    table = found.to_frame()
    assert list(table) == [field.name for field in fields(found)]
    assert table["sigma"].mean() == pytest.approx(means.sigma.mean, rel=DOUBLE)


def test_margins_agree_with_the_functions_they_call():
    vae, x = random_vae(), uniform(4, 12)
    quick = Choice("quick", "quick", samples=300, attack=AttackSettings(steps=3, restarts=2, samples=8))
    found = measurements.margins_and_random_directions(vae, x, quick)
    bound = theorem_1(vae, x, found.r, samples=300, seed=measurements.TEST_SEED).low
    assert found.theorem_1.tolist() == pytest.approx(bound.tolist(), rel=1e-6)
    plain = measurements.margins(vae, x, quick)
    assert type(plain) is Margins
    assert type(found) is MarginsAndRandomDirections
    assert all(torch.equal(getattr(plain, field.name), getattr(found, field.name)) for field in fields(plain))
    fixed = measurements.margins(vae, x, replace(quick, r=0.5))
    assert fixed.r.tolist() == [0.5] * 4


def test_damage_is_none_without_a_perturbation_and_grows():
    vae, x = random_vae(784, 16, 3, gain=1.0), uniform(20, 784)
    found = measurements.damage(vae, x, (1e-9, 3.0))
    assert found.at(1e-9).mean == pytest.approx(found.clean.mean, rel=1e-6)
    assert found.at(3.0).mean < found.clean.mean
    assert found.images == 20


def test_with_noise_of_its_own_an_image_has_what_common_noise_says_in_the_mean():
    """Two estimates of one mean over eta: few draws an image over many images, many draws for each."""
    vae, x = random_vae(784, 16, 3, gain=1.0), uniform(60, 784)
    explained = measurements.log_likelihood_with_own_noise
    own = explained(vae, x, torch.zeros_like(x), draws=400)
    common = log_likelihood(vae, x, samples=4000, seed=1)
    mu, sigma = vae.encode(x)
    z = mu[:, None] + sigma[:, None] * torch.randn(60, 200, 3, generator=seeded(2), dtype=x.dtype)
    spread = vae.log_likelihood(x[:, None], z)
    error = spread.std(1) * (1 / 400 + 1 / 4000) ** 0.5
    assert ((own - common).abs() < 5 * error).all()
    alone = explained(vae, x[:16], torch.zeros_like(x[:16]), draws=400)
    assert alone.tolist() == pytest.approx(own[:16].tolist(), rel=1e-6)
    repeated = explained(vae, x[:1].repeat(50, 1), torch.zeros(50, 784, dtype=x.dtype), draws=1)
    assert len(repeated.unique()) == 50


def test_rounding_keeps_five_digits_and_everything_else():
    value = {"a": [1.23456789, 2], "b": {"c": True, "d": "x"}, "e": 123456.789, "f": None}
    assert summaries.rounded(value) == {"a": [1.2346, 2], "b": {"c": True, "d": "x"}, "e": 123460.0, "f": None}


@pytest.mark.parametrize("content", ["", "{half", "[]", "{}", '{"provenance": {"spec": {"beta": -1}}}'])
def test_a_corrupt_summary_is_named(content, tmp_path):
    for kind in (ModelSummary, BothSidesSummary):
        path = summaries.path_of(TINY, kind, folder=tmp_path)
        path.write_text(content)
        with pytest.raises(ValueError, match=rf"summary .*{path.name} is corrupt"):
            load(TINY, kind, folder=tmp_path)
        with pytest.raises(FileNotFoundError):
            load(replace(TINY, seed=7), kind, folder=tmp_path)


def put(content, place, value):
    """Set, or with None remove, the value at a path of keys."""
    *way, last = place
    for key in way:
        content = content[key]
    if value is None:
        del content[last]
    else:
        content[last] = value


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("own", "attack"), None, "own.attack is missing"),
        (("own", "p low"), [0.5], "own.p low is not a field of Margins"),
        (("colour",), "red", "colour is not a field of ModelSummary"),
        (("own", "attack"), "much", "own.attack must be a list, but is 'much'"),
        (("own", "attack"), ["much"], "own.attack must hold numbers, or true and false"),
        (("own", "attack"), [[1.0], [1.0, 2.0]], "own.attack must hold lists of equal length"),
        (("damage", "images"), 1.5, "damage.images must be a number, but is 1.5"),
        (("damage", "images"), True, "damage.images must be a number, but is True"),
        (("damage", "attacked", 1, "mean"), None, r"damage.attacked\[1\].mean is missing"),
        (("encoder", "sigma"), 0.5, "encoder.sigma must be an object, but is 0.5"),
        (("provenance", "spec", "beta"), -1.0, "beta must be"),
        (("provenance", "spec", "beta"), 7.0, "it is of the model mnist_beta7_tau0"),
        (("provenance", "versions"), {"torch": 2}, "provenance.versions.torch must be a text, but is 2"),
    ],
)
def test_what_does_not_fit_is_named(place, value, message, tmp_path):
    spec = HEADLINES[1]
    content = json.loads(summaries.path_of(spec, ModelSummary).read_text())
    put(content, place, value)
    path = summaries.path_of(spec, ModelSummary, folder=tmp_path)
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"summary .*{path.name} is corrupt \(ValueError: {message}"):
        load(spec, ModelSummary, folder=tmp_path)


def test_what_is_not_finite_survives():
    """Infinite r where samples are too few, and the mean sigma of active latents where none is active."""
    collapsed = load(Spec("mnist", 5.0, likelihood="gaussian", precision="bfloat16"), ModelSummary)
    assert collapsed.encoder.active_latents == 0
    assert torch.tensor(collapsed.encoder.active_sigma.mean).isnan()
    text = summaries.path_of(GRID[0], CurvesSummary).read_text()
    assert json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert '"inf"' in text


@dataclass(frozen=True)
class Brief(Summary):
    """A summary that is measured at once."""

    kind: ClassVar[str] = ""

    elbo: float


@dataclass(frozen=True)
class OtherBrief(Brief):
    kind: ClassVar[str] = "other"


def brief(kind):
    def measure(trained: Trained, images):
        return kind(measurements.provenance(trained, images, 0.0), trained.manifest.final.test_elbo)

    return measure


@pytest.fixture
def in_this_process(monkeypatch):
    """Let commands work here, without what they change for a process of their own."""
    monkeypatch.setattr(commands, "Pool", PoolHere)
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    monkeypatch.setattr(torch, "set_flush_denormal", lambda mode: None)
    level = logging.getLogger("vaerobust").level
    yield
    logging.getLogger("vaerobust").setLevel(level)


@pytest.mark.usefixtures("in_this_process")
def test_the_study_trains_what_is_missing_and_keeps_what_is_there(fake_images, tmp_path, monkeypatch):
    """With two models: the command's own work is the choice of what to do."""
    splits = fake_images(200, "train"), fake_images(60, "test")
    specs, trained = (TINY, replace(TINY, seed=1)), []
    measured = Measurement(Brief, specs, brief(Brief)), Measurement(OtherBrief, specs[:1], brief(OtherBrief))
    monkeypatch.setattr(commands, "MEASUREMENTS", measured)
    monkeypatch.setattr(commands.data, "load", lambda dataset, split="test": splits[split == "test"])

    def train_all(missing, trainer, where, threads):
        trained.extend(missing)
        for spec in missing:
            train(spec, *splits, trainer.folder)

    monkeypatch.setattr(commands, "train_all", train_all)
    train(TINY, *splits, tmp_path / "models")
    arguments = ["study", "--folder", str(tmp_path / "models"), "--summaries", str(tmp_path / "out"), "--jobs", "1"]
    flagged = ((["--trained-only", "--only", ".other"], 1), (["--trained-only"], 2), ([], 3), ([], 3))
    for flags, files in flagged:
        done = CliRunner().invoke(commands.main, [*arguments, *flags], catch_exceptions=False)
        assert done.exit_code == 0
        assert len(list((tmp_path / "out").iterdir())) == files
    assert trained == [specs[1]]
    assert load(TINY, OtherBrief, folder=tmp_path / "out").provenance.spec == TINY
    for spec in specs:
        manifest = load_model(tmp_path / f"models/{spec.name}.safetensors").manifest
        assert load(spec, Brief, folder=tmp_path / "out").provenance.weights_sha256 == manifest.weights_sha256


@pytest.mark.usefixtures("in_this_process")
def test_training_by_command_calls_the_protocol(fake_images, tmp_path, monkeypatch):
    """With tiny models in the list."""
    splits = {split: fake_images(60, split) for split in ("train", "test")}
    monkeypatch.setattr(commands, "MODELS", {"paper": (TINY, replace(TINY, seed=1))})
    monkeypatch.setattr(commands.data, "load", lambda dataset, split="test": splits[split])
    arguments = ["train", "--folder", str(tmp_path), "--only", "seed1", "--epochs", "1", "--images", "40"]
    assert CliRunner().invoke(commands.main, arguments, catch_exceptions=False).exit_code == 0
    (weights,) = tmp_path.glob("*.safetensors")
    manifest = load_model(weights).manifest
    assert (manifest.spec, manifest.data.train.images) == (replace(TINY, seed=1, epochs=1), 40)
    refused = CliRunner().invoke(commands.main, ["train", "--folder", str(tmp_path), "--only", "nothing"])
    assert refused.exit_code == 2
    assert "no model's name contains 'nothing'" in refused.output


class PoolHere(engines.Here):
    """A pool that computes in this process."""

    def __init__(self, jobs):
        assert jobs >= 1


@pytest.mark.parametrize("option", ["--jobs", "--epochs", "--images", "--workers"])
@pytest.mark.parametrize("value", ["0", "-5"])
def test_numbers_below_one_are_refused_by_the_commands(option, value, tmp_path):
    done = CliRunner().invoke(commands.main, ["train", "--folder", str(tmp_path), option, value])
    assert done.exit_code == 2
    assert f"Invalid value for '{option}'" in done.output
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("in_this_process")
def test_a_full_disk_is_one_line_and_the_other_models_are_trained(fake_images, tmp_path, monkeypatch):
    splits = {split: fake_images(60, split) for split in ("train", "test")}
    monkeypatch.setattr(commands, "MODELS", {"paper": (TINY, replace(TINY, seed=1))})
    monkeypatch.setattr(commands.data, "load", lambda dataset, split="test": splits[split])
    honest, calls = os.fsync, []

    def full_at_first(handle):
        calls.append(1)
        if len(calls) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        honest(handle)

    monkeypatch.setattr(os, "fsync", full_at_first)
    arguments = ["train", "--folder", str(tmp_path), "--epochs", "1", "--images", "40"]
    done = CliRunner().invoke(commands.main, arguments)
    assert done.exit_code == 1
    assert "No space left on device: " in done.output
    assert "Error: 1 models are missing" in done.output
    assert [path.stem for path in tmp_path.glob("*.safetensors")] == [replace(TINY, seed=1).name]
    assert CliRunner().invoke(commands.main, arguments, catch_exceptions=False).exit_code == 0
    assert len(list(tmp_path.iterdir())) == 4


@dataclass(frozen=True, eq=False)
class Pixels(Summary):
    """A summary that is measured in blocks."""

    kind: ClassVar[str] = "pixels"

    sums: torch.Tensor


@pytest.mark.usefixtures("in_this_process")
def test_a_summary_of_blocks_is_the_same_after_a_failure_and_waits_until_it_is_complete(
    fake_images, tmp_path, monkeypatch
):
    images, broken = fake_images(60, "test"), [True]

    def block(vae, x):
        if broken[0] and torch.equal(x[0], images.pixels[10]):
            raise ZeroDivisionError("in the second block")
        return {"sums": x.double().sum(1)}

    blocks = measurements.Blocks(
        35, block, lambda origin, parts: Pixels(origin, torch.cat([part["sums"] for part in parts])), size=10
    )
    monkeypatch.setattr(commands, "MEASUREMENTS", (Measurement(Pixels, (TINY,), blocks),))
    monkeypatch.setattr(commands.data, "load", lambda dataset, split="test": images)
    train(TINY, fake_images(200, "train"), images, tmp_path / "models")
    arguments = ["study", "--folder", str(tmp_path / "models"), "--summaries", str(tmp_path / "out"), "--jobs", "1"]
    missing = CliRunner().invoke(commands.main, arguments)
    assert missing.exit_code == 1
    assert "000010: ZeroDivisionError: in the second block" in missing.output
    assert "Error: 1 shards are missing" in missing.output
    assert not (tmp_path / "out").exists()
    broken[0] = False
    again = CliRunner().invoke(commands.main, arguments)
    assert again.exit_code == 1
    assert "not tried again" in again.output
    assert CliRunner().invoke(commands.main, [*arguments, "--retry"], catch_exceptions=False).exit_code == 0
    found = load(TINY, Pixels, folder=tmp_path / "out")
    assert found.sums.tolist() == pytest.approx(images.pixels[:35].double().sum(1).tolist(), rel=1e-4)
    assert not (tmp_path / "models/shards" / f"{TINY.name}.pixels").exists()
