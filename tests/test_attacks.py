"""Attacks: they respect radius and box, and they find the exact worst case where that is known."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from conftest import (
    ALARM,
    DOUBLE,
    LinearGaussianVAE,
    SpreadingVAE,
    graded_model,
    random_vae,
    seeded,
    square_model,
    uniform,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from vaerobust import batches
from vaerobust.attacks import METHODS, AttackSettings, latent_attack, maximum_damage, output_attack, project

QUICK = AttackSettings(steps=3, restarts=2, samples=3, choosing_samples=3)
"""A quick attack, for properties that hold for every attack."""


def every_attack(model, options=QUICK):
    """Return all four attacks by name, each a function of points, targets, radius and seed."""

    def damage(method):
        own = replace(options, method=method)
        return lambda x, target, radius, seed: maximum_damage(model, x, radius, own, seed=seed)

    def targeted(attack):
        return lambda x, target, radius, seed: attack(model, x, target, radius, options, seed=seed)

    named = {"latent": targeted(latent_attack), "output": targeted(output_attack)}
    return {method: damage(method) for method in METHODS} | named


ATTACKS = (*METHODS, "latent", "output")
"""Names of all attacks."""


# feasibility

pixels_of = st.sampled_from(["anywhere", "at the walls", "next to the walls"])
"""Where pixels lie in [0, 1]."""


def some_pixels(kind, n, d, dtype, seed):
    """Return images whose pixels lie where ``kind`` says, shape (n, d)."""
    x = torch.rand(n, d, generator=seeded(seed), dtype=dtype)
    if kind == "anywhere":
        return x
    x = x.round()
    return x if kind == "at the walls" else (x - 1e-7).abs()


@settings(max_examples=300)
@given(
    st.integers(1, 3), st.integers(1, 40), st.sampled_from([(), (2,), (2, 3)]), st.integers(0, 10**6), pixels_of,
    st.sampled_from([torch.float32, torch.float64]), st.sampled_from([0.0, 1e-6, 0.3, 1.0, 50.0]),
    st.sampled_from([0.0, 1e-3, 1.0, 100.0]), st.booleans(),
)  # fmt: skip
def test_projection_is_feasible_exactly_and_leaves_what_is_feasible(n, d, lead, seed, kind, dtype, radius, length, box):
    x = some_pixels(kind, n, d, dtype, seed)
    delta = length * torch.randn(*lead, n, d, generator=seeded(seed + 1), dtype=dtype)
    radius = radius * torch.rand(n, generator=seeded(seed + 2), dtype=torch.float64)
    found = project(delta, radius, x if box else None)
    assert found.shape == delta.shape
    assert found.dtype == dtype
    assert (found.double().norm(dim=-1) <= radius).all()
    if box:
        assert ((x + found >= 0) & (x + found <= 1)).all()
    assert torch.equal(project(found, radius, x if box else None), found)


@settings(max_examples=100)
@given(st.integers(1, 3), st.integers(0, 10**6), pixels_of, st.floats(0.01, 2.0), st.booleans())
def test_projection_is_the_nearest_point(d, seed, kind, radius, box):
    """A point p of a convex set is nearest to delta iff (delta - p) . (y - p) <= 0 for every y in the set.

    The shrinkage is halved 30 times, so p may be off by ||delta|| / 2**30.
    """
    x = some_pixels(kind, 1, d, torch.float64, seed)
    delta = torch.randn(1, d, generator=seeded(seed + 1), dtype=torch.float64)
    found = project(delta, torch.tensor([radius], dtype=torch.float64), x if box else None)
    others = 2 * torch.randn(500, d, generator=seeded(seed + 2), dtype=torch.float64)
    if box:
        others = torch.maximum(torch.minimum(others, 1 - x), -x)
    others *= (radius / others.norm(dim=1, keepdim=True).clamp(min=1e-30)).clamp(max=1)
    length = float(delta.norm())
    error = length / 2**30 + radius * 1e-12
    assert float(((delta - found) * (others - found)).sum(1).max()) <= error * (length + 2 * radius)


@settings(max_examples=25)
@pytest.mark.parametrize("name", ATTACKS)
@given(
    n=st.integers(1, 3), d=st.integers(1, 6), seed=st.integers(0, 10**6), kind=pixels_of, box=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    radii=st.lists(st.sampled_from([0.0, 1e-6, 0.2, 1.7, 300.0]), min_size=3),
)  # fmt: skip
def test_attacks_respect_radius_and_box_exactly(name, n, d, seed, kind, box, dtype, radii):
    model = random_vae(d, 8, 2, seed=seed % 5).to(dtype)
    x = some_pixels(kind, n, d, dtype, seed)
    radius = torch.tensor(radii[:n], dtype=torch.float64)
    attack = every_attack(model, replace(QUICK, box=box))[name]
    found = attack(x, some_pixels("anywhere", n, d, dtype, seed + 1), radius, seed)
    assert (found.delta.double().norm(dim=1) <= radius).all()
    if box:
        assert ((x + found.delta >= 0) & (x + found.delta <= 1)).all()
    assert found.delta.shape == x.shape
    assert found.objective.shape == (n,)
    assert torch.isfinite(found.objective).all()


# strength


@pytest.mark.parametrize("method", METHODS)
def test_the_exact_worst_direction_of_a_linear_model_is_found(method):
    """The mean distance differs from the shift by the mean of s ||eta|| at most, so the shift is short by twice that.

    Projected gradient turns towards the worst direction: a step of length a R shrinks the tangent of the angle by
    (1 + a / 4) / (1 + a), as the second squared singular value is a quarter of the first. The 200 steps shrink it by
    exp(-30). L-BFGS-B stops at a relative change of 2e-9. Both are less than 1e-7 of the shift.
    """
    model, radius, s = graded_model(sigma=1e-6), 0.7, 1e-6
    attack = AttackSettings(method=method, steps=200, restarts=1, samples=16)
    delta = maximum_damage(model, uniform(1, 20), radius, attack, seed=0).delta
    found = float((delta @ model.weight.T).norm())
    noise = 2 * s * np.sqrt(16 * stats.chi2(4).isf(ALARM))  # no sum of 16 norms is larger
    assert radius * (1 - 1e-7) - noise <= found <= radius * (1 + DOUBLE)


@pytest.mark.parametrize("method", METHODS)
def test_the_exact_worst_case_within_the_box_is_found(method):
    """With one latent the distance is |a . delta|, whose largest value over ball and box is a root in one variable.

    On a linear function projected gradient is the proximal point method, whose gap is at most ||a|| times the squared
    distance to the optimum, (2 R)^2, over twice the sum of its step lengths, R (steps + 2) / 4.
    """
    model, radius, steps = LinearGaussianVAE(30, 1, sigma=1e-7), 1.2, 400
    a, x = model.weight[0], uniform(1, 30).round()

    def largest(sign):
        def clipped(scale):
            return torch.maximum(torch.minimum(sign * a * scale, 1 - x[0]), -x[0])

        scale = optimize.brentq(lambda scale: float(clipped(scale).norm()) - radius, 0.0, 1e4)
        return float((a * clipped(scale)).sum().abs())

    exact = max(largest(1), largest(-1))
    assert exact < 0.95 * radius * float(a.norm())  # so the box matters
    attack = AttackSettings(method=method, steps=steps, restarts=8, samples=2, box=True)
    found = maximum_damage(model, x, radius, attack, seed=0)
    gap = float(a.norm()) * (2 * radius) ** 2 / (radius * (steps + 2) / 2)
    value = float((found.delta @ a).abs())
    assert exact - gap <= value <= exact * (1 + DOUBLE)


@pytest.mark.parametrize("method", METHODS)
def test_the_objective_is_the_mean_distance_on_new_noise(method, square):
    """Where all directions are alike, E D at the radius is the mean of a noncentral chi law for every attack.

    D is a norm of a normal vector, so its variance is at most s^2 (Gaussian Poincare inequality).
    """
    radius, samples = 0.2, 4000
    attack = AttackSettings(method=method, choosing_samples=samples)
    found = maximum_damage(square, uniform(2, 4), radius, attack, seed=1)
    law = stats.ncx2(4, (2 * radius / 0.1) ** 2)
    exact = 0.1 * law.expect(np.sqrt, lb=0, ub=law.isf(1e-13))
    error = -stats.norm.ppf(ALARM / 4) * 0.1 / samples**0.5
    assert found.delta.norm(dim=1).tolist() == pytest.approx([radius] * 2, rel=1e-6)
    assert found.objective.tolist() == pytest.approx([exact] * 2, abs=error)


def quiet_vae(pixels, **options):
    """Return a random network with sigma of about 1e-11, so that the objective hardly depends on the noise."""
    model = random_vae(pixels, 16, 2, **options)
    model.encoder_sigma[-1].weight.mul_(0)
    model.encoder_sigma[-1].bias.fill_(-25.0)
    return model


@pytest.mark.parametrize("box", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_both_optimisers_find_the_global_optimum_in_two_dimensions(seed, box):
    """Compared with a grid over the disc. Between its points D rises by slope times spacing at most."""
    model, x, radius = quiet_vae(2, seed=seed), uniform(1, 2, seed=seed), 0.6
    length, angle = torch.linspace(0, radius, 201).double(), torch.linspace(0, 2 * torch.pi, 1601).double()[:-1]
    delta = torch.stack([length[:, None] * angle.cos(), length[:, None] * angle.sin()], -1)
    if box:
        delta = delta[((x + delta >= 0) & (x + delta <= 1)).all(-1)][None]
    value = (model.decode(model.encode(x + delta)[0]) - model.decode(model.encode(x)[0])).norm(dim=-1)
    spacing = max(radius / 200, radius * 2 * torch.pi / 1600)
    jacobian = torch.func.jacrev(lambda point: model.decode(model.encode(point)[0]))
    slope = float(torch.func.vmap(jacobian)((x + delta).flatten(0, 1)).norm(dim=(1, 2)).max())
    best = float(value.max())
    assert slope * spacing < 0.1 * best
    for method in METHODS:
        attack = AttackSettings(method=method, steps=60, restarts=8, samples=1, choosing_samples=1, box=box)
        found = maximum_damage(model, x, radius, attack, seed=0)
        assert best - slope * spacing <= float(found.objective) <= best + slope * spacing


@pytest.mark.parametrize("box", [False, True])
def test_both_optimisers_beat_random_search_on_a_relu_network(box):
    model, x, radius = quiet_vae(12), uniform(4, 12), 0.5
    generator = seeded(3)
    random = torch.randn(1000, 4, 12, generator=generator, dtype=torch.float64)
    random = project(100 * random, torch.full((4,), radius, dtype=torch.float64), x if box else None)
    centre = model.decode(model.encode(x)[0])
    best = (model.decode(model.encode(x + random)[0]) - centre).norm(dim=-1).max(0).values
    for method in METHODS:
        attack = AttackSettings(method=method, samples=1, choosing_samples=1, box=box)
        found = maximum_damage(model, x, radius, attack, seed=0)
        assert (found.objective > best).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("perturb_sigma", "growth"), [(False, 1.0), (True, float(np.exp(0.5)))])
def test_sigma_is_attacked_where_it_was_asked_for(method, perturb_sigma, growth):
    """With A = 0 only sigma = 0.1 exp(||x||) can be attacked. At x = 0 an attack multiplies it by exp(R) at most."""
    model, x = square_model(gain=0.0, kind=SpreadingVAE), torch.zeros(1, 4, dtype=torch.float64)
    attack = AttackSettings(method=method, perturb_sigma=perturb_sigma, choosing_samples=4000)
    found = maximum_damage(model, x, 0.5, attack, seed=1)
    error = -stats.norm.ppf(ALARM / 2) * stats.chi(4).std() / attack.choosing_samples**0.5
    assert float(found.objective) / (0.1 * growth) == pytest.approx(stats.chi(4).mean(), abs=error)
    if perturb_sigma:
        assert float(found.delta.norm()) == pytest.approx(0.5, rel=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_perturbing_sigma_changes_nothing_where_sigma_is_constant(method, square):
    both = (AttackSettings(method=method, steps=3, restarts=2, perturb_sigma=which) for which in (False, True))
    fixed, moved = (maximum_damage(square, uniform(2, 4), 0.2, attack, seed=0) for attack in both)
    assert torch.equal(fixed.delta, moved.delta)
    assert torch.equal(fixed.objective, moved.objective)


# targeted attacks


@pytest.mark.parametrize("attack", [latent_attack, output_attack])
@pytest.mark.parametrize("share", [0.5, 2.0], ids=["out of reach", "within reach"])
def test_targeted_attacks_go_straight_to_the_target_where_all_directions_are_alike(attack, share, square):
    """The best distance is 2 (||t - x|| - R), or 0.

    Out of reach, a step of length l turns the perturbation so that what is across shrinks by 1 - l / (distance + R);
    the steps add up to R (steps + 2) / 4. Within reach the steps oscillate around the target by less than their length,
    in the end R / 2 / (steps + 1).
    """
    x, target, steps = uniform(3, 4), uniform(3, 4, seed=1), 300
    distance = (target - x).norm(dim=1)
    radius = share * distance
    aim = target if attack is latent_attack else square.decode(square.encode(target)[0])
    found = attack(square, x, aim, radius, AttackSettings(steps=steps, restarts=2), seed=0)
    best = 2 * (distance - radius).clamp(min=0)
    error = radius * np.exp(-(steps + 2) / 4 * share / (1 + share)) if share < 1 else radius / 2 / (steps + 1)
    assert (found.objective >= best * (1 - DOUBLE)).all()
    assert (found.objective <= best + 2 * error).all()


@pytest.mark.parametrize("box", [False, True])
def test_targeted_attacks_reduce_their_distance_and_report_it(box, vae):
    x, target, radius = uniform(5, 12), uniform(5, 12, seed=1), 0.6
    embedding = {
        latent_attack: lambda inputs: vae.encode(inputs)[0],
        output_attack: lambda inputs: vae.decode(vae.encode(inputs)[0]),
    }
    for attack, place in embedding.items():
        aim = place(target) if attack is latent_attack else target
        before = (place(x) - aim).norm(dim=1)
        found = attack(vae, x, target, radius, AttackSettings(restarts=16, box=box), seed=0)
        torch.testing.assert_close(found.objective, (place(x + found.delta) - aim).norm(dim=1), rtol=DOUBLE, atol=0)
        random = torch.randn(200, 5, 12, generator=seeded(1), dtype=torch.float64)
        random = project(100 * random, torch.full((5,), radius, dtype=torch.float64), x if box else None)
        lucky = (place(x + random) - aim).norm(dim=-1).min(0).values
        assert (found.objective < torch.minimum(before, lucky)).all()


@pytest.mark.parametrize("attack", [latent_attack, output_attack])
def test_with_radius_zero_nothing_moves(attack, vae):
    x, target = uniform(2, 12), uniform(2, 12, seed=1)
    found = attack(vae, x, target, 0.0, seed=0)
    assert torch.equal(found.delta, torch.zeros_like(x))
    moved = maximum_damage(vae, x, 0.0, seed=0)
    assert torch.equal(moved.delta, torch.zeros_like(x))


# invariance


@pytest.mark.parametrize("box", [False, True])
@pytest.mark.parametrize("name", ATTACKS)
def test_a_point_is_attacked_alike_in_any_order_company_and_chunk(name, box, vae, monkeypatch):
    """All points have the same noise and starts, so only roundings of 1e-16 differ. Each of three steps may enlarge
    them by the network's gain over the length of its gradient, which is below 100 here."""
    x, target = uniform(5, 12), uniform(5, 12, seed=1)
    radius = torch.linspace(0.1, 0.6, 5, dtype=torch.float64)
    attack = every_attack(vae, replace(QUICK, box=box))[name]
    close = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-10)
    whole = attack(x, target, radius, 0)
    for points in (torch.tensor([2, 0, 4, 3, 1]), torch.tensor([3])):
        found = attack(x[points], target[points], radius[points], 0)
        close(found.delta, whole.delta[points])
        close(found.objective, whole.objective[points])
    for rows in (1, 15):
        monkeypatch.setattr(batches, "ROWS", rows)
        found = attack(x, target, radius, 0)
        close(found.delta, whole.delta)
        close(found.objective, whole.objective)


@pytest.mark.parametrize("name", ATTACKS)
def test_equal_seeds_give_equal_attacks_and_torchs_generator_is_left_alone(name, vae):
    x, target = uniform(2, 12), uniform(2, 12, seed=1)
    attack = every_attack(vae)[name]
    before = torch.get_rng_state()
    first, again, other = (attack(x, target, 0.3, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.delta, again.delta)
    assert not torch.equal(first.delta, other.delta)
    assert not first.delta.requires_grad
    assert not first.objective.requires_grad


def test_a_models_gradients_are_left_alone():
    vae = random_vae().requires_grad_(True)
    x = uniform(2, 12)
    for name, attack in every_attack(vae).items():
        found = attack(x, x.flip(0), 0.3, 0)
        assert not found.delta.requires_grad, name
    assert all(weight.grad is None for weight in vae.parameters())


def test_the_objective_is_unbiased_however_many_restarts_it_was_chosen_from(square):
    """The best of 30 restarts on one sample is far better than E D on that sample, but not on a new one.

    Directions are all alike, so E D is known; its variance is at most s^2, as above, in each of 200 repetitions.
    """
    attack = AttackSettings(steps=3, restarts=30, samples=1, choosing_samples=1)
    x, runs = uniform(1, 4), range(200)
    found = [float(maximum_damage(square, x, 0.2, attack, seed=seed).objective) for seed in runs]
    law = stats.ncx2(4, (2 * 0.2 / 0.1) ** 2)
    exact = 0.1 * law.expect(np.sqrt, lb=0, ub=law.isf(1e-13))
    assert np.mean(found) == pytest.approx(exact, abs=-stats.norm.ppf(ALARM / 2) * 0.1 / 200**0.5)


def test_given_starts_are_scaled_to_the_radius_and_tried():
    """The attack returns the best point on its way, so it falls short of a start by the noise of the objective at most.

    The noise is that of the exact worst direction's test. A random start is far from that direction after one step.
    """
    model, x, radius, s = graded_model(sigma=1e-6), uniform(2, 20), 0.5, 1e-6
    worst = torch.linalg.svd(model.weight).Vh[0].expand(1, 2, -1)
    brief = AttackSettings(steps=1, restarts=1)
    noise = 2 * s * np.sqrt(16 * stats.chi2(4).isf(ALARM))

    def shifts(starts):
        return (maximum_damage(model, x, radius, brief, starts=starts).delta @ model.weight.T).norm(dim=1)

    for length in (1e-3, 1.0, 1e3):
        assert (shifts(length * worst) >= radius * (1 - DOUBLE) - noise).all()
    assert (shifts(None) < 0.9 * radius).all()
