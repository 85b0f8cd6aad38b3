"""The search for violations: none within certified balls, and all of those that there are."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import graded_model, most_misses, random_vae, square_model, uniform

from vaerobust.attacks import AttackSettings
from vaerobust.certify import violations as module
from vaerobust.certify.certificates import certified_margin
from vaerobust.certify.violations import Violations, ViolationSearch, violations
from vaerobust.distance import distances
from vaerobust.margins import STRONGEST_SEARCH, strongest_attack
from vaerobust.zoo.data import read_sample
from vaerobust.zoo.weights import pretrained


def test_certified_balls_of_a_linear_model_hold_and_balls_beyond_its_margin_do_not():
    """Every direction is a worst one, so at 1.2 times the margin every perturbation breaks r-robustness.

    P(D <= r) is then 0.4. The test of 10,000 samples rejects 1/2 almost surely; the screening by 100 misses one
    perturbation in 1,000 at most.
    """
    model = square_model()
    r, x = model.quantile(0.9), uniform(2, 4)
    radius = certified_margin(model, x, r, samples=5000, seed=0).radius
    found = violations(model, x, radius, r, ViolationSearch(directions=500))
    assert found == Violations(2 * 501, 0, 0, 0.999)
    found = violations(model, x, 1.2 * model.margin(r), r, ViolationSearch(directions=50))
    assert found.tried == 2 * 51
    assert found.tried * 0.95 < found.suspected == found.confirmed


def test_at_the_margin_itself_nothing_is_confirmed_though_much_is_suspected():
    """Just within it P exceeds 1/2 by 0.001, which the screening cannot see; the tests err in one run of 10 at most."""
    model = square_model()
    r, x = model.quantile(0.9), uniform(2, 4)
    confirmed = 0
    for seed in range(20):
        search = ViolationSearch(directions=20, attacks=0, judging_samples=500)
        found = violations(model, x, 0.999 * model.margin(r), r, search, confidence=0.9, seed=seed)
        assert found.suspected > 20
        confirmed += found.confirmed > 0
    assert confirmed <= most_misses(20, 0.1)


def test_random_directions_of_the_encoder_and_given_ones_find_the_one_bad_direction():
    """One of 200 directions is bad: uniform ones miss it; those that move the encoder, and attacks, find it."""
    model = graded_model(200, 4)
    r, x = model.quantile(0.9), uniform(2, 200)
    radius = 1.3 * model.margin(r)
    worst = torch.linalg.svd(model.weight).Vh[0].expand(1, 2, -1)
    one, attacked, many = (ViolationSearch(directions, attacks) for directions, attacks in ((1, 0), (1, 1), (20, 0)))
    assert violations(model, x, radius, r, one) == Violations(2, 0, 0, 0.999)
    assert violations(model, x, radius, r, one, further=5 * worst).confirmed == 2
    assert violations(model, x, radius, r, attacked).confirmed == 2
    assert violations(model, x, radius, r, many).confirmed >= 2


def test_where_nothing_is_certified_nothing_is_tried():
    model, x = square_model(), uniform(3, 4)
    r = model.quantile(0.2)  # r-robust nowhere
    assert violations(model, x, 0.0, r) == Violations(0, 0, 0, 0.999)
    some = torch.tensor([0.0, 0.1, 0.0])
    found = violations(model, x, some, r, ViolationSearch(directions=10), further=torch.ones(2, 3, 4).double())
    assert found.tried == 10 + 1 + 2
    assert found.confirmed == found.tried


def test_all_perturbations_are_as_long_as_the_radius_and_no_longer(monkeypatch):
    """In single precision too, where they are shorter by 5e-7 of it at most."""
    vae, x, seen = random_vae().float(), uniform(5, 12).float(), []

    def watched(model, x, delta, **options):
        seen.append(delta)
        return distances(model, x, delta, **options)

    monkeypatch.setattr(module, "distances", watched)
    monkeypatch.setattr(module, "PERTURBATIONS", 20)  # two points at a time
    radius = 0.1 + torch.arange(5)
    found = violations(vae, x, radius, 1e3, ViolationSearch(directions=9, screening_samples=10))
    assert [len(delta) for delta in seen] == [20, 20, 10]
    length = torch.cat([d.double().norm(dim=1).unflatten(0, (10, -1)) for d in seen], 1)
    assert (length <= radius.double()).all() and (length >= (1 - 1e-6) * radius).all()
    assert found == Violations(50, 0, 0, 0.999)


@pytest.fixture(scope="module")
def attacked():
    """A model, its points, radii a little beyond their attack margins, and r: some perturbations break r-robustness."""
    vae, x = random_vae(12, 16, 3), uniform(4, 12)
    r = distances(vae, x, samples=4000, seed=1).quantile(0.9, dim=1)
    return vae, x, 1.05 * strongest_attack(vae, x, r, seed=100).radius, r


def test_equal_seeds_find_the_same(attacked):
    search = ViolationSearch(directions=50, judging_samples=2000)
    first, again = (violations(*attacked, search, seed=5) for _ in range(2))
    assert first == again
    assert first.confirmed > 0


def test_a_batch_may_be_split_in_any_way(attacked, monkeypatch):
    """Points share all draws. Only the tests' share of the error depends on how many perturbations a call suspects."""
    vae, x, radius, r = attacked
    search = ViolationSearch(directions=50, judging_samples=2000)
    whole = violations(vae, x, radius, r, search, seed=5)
    monkeypatch.setattr(module, "PERTURBATIONS", 60)  # one point per block
    assert violations(vae, x, radius, r, search, seed=5) == whole
    parts = [violations(vae, x[i], radius[i], r[i], search, seed=5) for i in (slice(0, 1), slice(1, 4))]
    assert sum(part.tried for part in parts) == whole.tried
    assert sum(part.suspected for part in parts) == whole.suspected
    assert 0 < whole.confirmed <= sum(part.confirmed for part in parts)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.zeros(4)}, ValueError, r"x must have shape \(n, d\)"),
        ({"radius": -1.0}, ValueError, "radius must be finite and >= 0"),
        ({"r": torch.nan}, ValueError, "r must be finite and >= 0"),
        ({"further": torch.zeros(1, 3, 4)}, ValueError, r"further must have shape \(k, 1, 4\)"),
        ({"confidence": 1.0}, ValueError, "confidence must lie strictly between 0 and 1"),
    ],
)
def test_wrong_arguments_are_named(change, error, message):
    arguments = {"x": uniform(1, 4), "radius": 0.1, "r": 1.0} | change
    with pytest.raises(error, match=message):
        violations(square_model(), *(arguments.pop(name) for name in ("x", "radius", "r")), **arguments)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"directions": 0}, "directions must be a whole number of at least 1"),
        ({"attacks": -1}, "attacks must be a whole number of at least 0"),
        ({"screening_samples": 0}, "screening_samples must be a whole number of at least 1"),
        ({"judging_samples": 0}, "judging_samples must be a whole number of at least 1"),
    ],
)
def test_wrong_settings_are_named(setting, message):
    with pytest.raises(ValueError, match=message):
        ViolationSearch(**setting)


def test_certified_balls_of_a_shipped_model_hold_and_the_attacks_ball_does_not():
    """On three images; chapter 5 does the same for all models and more images."""
    vae, x = pretrained("mnist", 10.0).vae, read_sample("mnist")[0][:3]
    x = x.float() / (255 if x.max() > 1 else 1)
    r = distances(vae, x, samples=1000, seed=1).quantile(0.9, dim=1)
    certificate = certified_margin(vae, x, r, samples=3000, seed=2, refine=2)
    assert (certificate.radius > 0.05).all()
    found = violations(vae, x, certificate.radius, r, ViolationSearch(directions=300, screening_samples=50))
    assert found.tried == 3 * 301 and found.confirmed == 0
    attack = strongest_attack(
        vae,
        x,
        r,
        attack=AttackSettings(steps=5, restarts=1),
        search=replace(STRONGEST_SEARCH, judging_samples=500, final_samples=500, tolerance=0.2),
    )
    assert (attack.radius > certificate.radius).all()
    search = ViolationSearch(directions=2, attacks=0, screening_samples=50, judging_samples=1000)
    beyond = violations(vae, x, 1.1 * attack.radius, r, search, further=attack.delta[None])
    assert beyond.confirmed >= 3
