"""Wrong arguments: every public function names the argument and says what it was."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from conftest import LinearGaussianVAE, random_vae, seeded, uniform
from hypothesis import assume, given
from hypothesis import strategies as st

from vaerobust import checks
from vaerobust.algorithms import algorithm_1_as_printed, algorithm_2_as_printed, minimum_r
from vaerobust.attacks import AttackSettings, latent_attack, maximum_damage, output_attack
from vaerobust.bounds import first_order_radii, proposition_1, theorem_1
from vaerobust.criterion import clopper_pearson, distance_quantile, probability_of_robustness
from vaerobust.distance import distances, distances_in_random_directions
from vaerobust.jacobians import decoder_jacobian, encoder_gram, encoder_jacobian, jacobian_norms
from vaerobust.likelihood import log_likelihood
from vaerobust.linearised import linearised_radii
from vaerobust.margins import MarginSearch, attack_margin, strongest_attack
from vaerobust.model import VAE
from vaerobust.random_direction import RandomSearch, random_direction_radius
from vaerobust.zoo.data import load
from vaerobust.zoo.protocol import Spec

MODEL = random_vae(6, 8, 2)
X = uniform(1, 6)
PAIR = uniform(2, 6)
D = uniform(2, 30)
PIXELS = r"x must hold pixels in \[0, 1\], but ranges over"

OF_X = {
    "distances": lambda x: distances(MODEL, x),
    "distances_in_random_directions": lambda x: distances_in_random_directions(MODEL, x, 1.0),
    "log_likelihood": lambda x: log_likelihood(MODEL, x),
    "algorithm_1_as_printed": lambda x: algorithm_1_as_printed(MODEL, x),
    "minimum_r": lambda x: minimum_r(MODEL, x),
    "algorithm_2_as_printed": lambda x: algorithm_2_as_printed(MODEL, x, 1.0),
    "random_direction_radius": lambda x: random_direction_radius(MODEL, x, 1.0),
    "encoder_jacobian": lambda x: encoder_jacobian(MODEL, x),
    "encoder_gram": lambda x: encoder_gram(MODEL, x),
    "jacobian_norms": lambda x: jacobian_norms(MODEL, x),
    "theorem_1": lambda x: theorem_1(MODEL, x, 1.0),
    "first_order_radii": lambda x: first_order_radii(MODEL, x, 0.9),
    "proposition_1": lambda x: proposition_1(MODEL, x),
    "linearised_radii": lambda x: linearised_radii(MODEL, x, 1.0),
    "maximum_damage": lambda x: maximum_damage(MODEL, x, 1.0),
    "latent_attack": lambda x: latent_attack(MODEL, x, X, 1.0),
    "output_attack": lambda x: output_attack(MODEL, x, X, 1.0),
    "attack_margin": lambda x: attack_margin(MODEL, x, 1.0),
    "strongest_attack": lambda x: strongest_attack(MODEL, x, 1.0),
}
"""Every function of the paper's modules that takes a model and points."""


@pytest.mark.parametrize("name", OF_X)
@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (uniform(6), ValueError, r"x must have shape \(n, d\).*\(6,\)"),
        (uniform(1, 2, 6), ValueError, r"x must have shape \(n, d\).*\(1, 2, 6\)"),
        (torch.zeros(0, 6), ValueError, r"x must have shape \(n, d\).*\(0, 6\)"),
        (torch.zeros(3, 0), ValueError, r"x must have shape \(n, d\).*\(3, 0\)"),
        (torch.tensor(1.0), ValueError, r"x must have shape \(n, d\).*\(\)"),
        (torch.full((1, 6), torch.nan), ValueError, "x must be finite, but holds 6 NaN or infinite"),
        (torch.tensor([[0.0, 1, 0, 1, 0, torch.inf]]), ValueError, "x must be finite, but holds 1 NaN or infinite"),
        (torch.zeros(1, 6, dtype=torch.int64), TypeError, "x must be a tensor of floating point .* but is torch.int64"),
        (torch.zeros(1, 6, dtype=torch.bool), TypeError, "x must be a tensor of floating point .* but is torch.bool"),
        (np.zeros((1, 6)), TypeError, "x must be a tensor of floating point numbers, but is ndarray"),
        ([[0.0] * 6], TypeError, "x must be a tensor of floating point numbers, but is list"),
        (None, TypeError, "x must be a tensor of floating point numbers, but is NoneType"),
        (uniform(1, 7), ValueError, r"(x must have shape .* but has \(\d+, 7\)|target must have shape \(1, 7\))"),
    ],
)  # fmt: skip
def test_every_function_names_bad_points(name, x, error, message):
    with pytest.raises(error, match=message):
        OF_X[name](x)


@given(st.sampled_from(sorted(OF_X)), st.lists(st.integers(0, 4), max_size=4))
def test_every_function_refuses_every_wrong_shape(name, shape):
    assume(len(shape) != 2 or 0 in shape)
    with pytest.raises(ValueError, match=rf"x must have shape .*{re.escape(str(tuple(shape)))}"):
        OF_X[name](torch.zeros(shape))


@given(st.lists(st.integers(0, 3), max_size=3), st.integers(1, 4), st.integers(1, 4), st.integers(0, 99))
def test_every_right_shape_passes_and_every_other_does_not(shape, n, d, seed):
    value = torch.randn(shape, generator=seeded(seed))
    fine = len(shape) == 2 and 0 not in shape
    for options, ok in (
        ({}, fine),
        ({"width": d}, fine and shape[1] == d),
        ({"like": torch.zeros(n, d)}, fine and shape == [n, d]),
    ):
        if ok:
            assert checks.vectors("value", value, **options) is value
        else:
            with pytest.raises(ValueError, match=rf"value must have shape .*{re.escape(str(tuple(shape)))}$"):
                checks.vectors("value", value, **options)


@given(st.integers(1, 3), st.integers(1, 5), st.data())
def test_any_element_that_is_not_finite_is_found(n, d, draw):
    value = uniform(n, d)
    places = draw.draw(st.sets(st.integers(0, n * d - 1)))
    for place in places:
        value.view(-1)[place] = draw.draw(st.sampled_from([math.nan, math.inf, -math.inf]))
    if places:
        with pytest.raises(ValueError, match=f"value must be finite, but holds {len(places)} NaN or infinite"):
            checks.vectors("value", value)
    else:
        assert checks.vectors("value", value) is value


@given(st.floats(allow_nan=True, allow_infinity=True, width=32))
def test_a_pixel_passes_iff_it_is_in_the_unit_interval(value):
    image = torch.tensor([[0.5, value]])
    if 0 <= value <= 1:
        assert checks.pixels("x", image) is image
    else:
        with pytest.raises(ValueError, match=r"x must (hold pixels in \[0, 1\], but ranges over|be finite)"):
            checks.pixels("x", image)


@given(st.one_of(st.floats(), st.integers(-5, 5), st.booleans(), st.none(), st.text(max_size=3)))
def test_numbers_pass_iff_they_are_in_range(value):
    number = value if isinstance(value, (int, float)) else math.nan
    for check, options, ok in (
        (checks.positive, {}, math.isfinite(number) and number > 0),
        (checks.positive, {"zero": True}, math.isfinite(number) and number >= 0),
        (checks.probability, {}, 0 < number < 1),
        (checks.count, {}, isinstance(value, int) and not isinstance(value, bool) and value >= 1),
        (checks.count, {"least": -3}, isinstance(value, int) and not isinstance(value, bool) and value >= -3),
    ):
        if ok:
            assert check("value", value, **options) == value
        else:
            with pytest.raises(ValueError, match=rf"^value must .* but is {re.escape(repr(value))}"):
                check("value", value, **options)


@given(st.integers(1, 4), st.lists(st.floats(width=32), max_size=5))
def test_a_number_for_each_point_passes_iff_there_are_as_many_and_all_in_range(n, values):
    value = torch.tensor(values)
    fine = all(math.isfinite(v) and v >= 0 for v in values)
    if len(values) == n and fine:
        assert torch.equal(checks.per_point("r", value, n, torch.zeros(1)), value)
    else:
        wrong = re.escape(str((len(values),))) if len(values) != n else r"(nan|-?inf|-\d.*)"
        with pytest.raises(ValueError, match=rf"r must .*{wrong}$"):
            checks.per_point("r", value, n, torch.zeros(1))
    assert torch.equal(checks.per_point("r", 2, n, torch.zeros(1)), torch.full((n,), 2.0))


def test_choices_are_listed():
    assert checks.one_of("split", "test", ("test", "train")) == "test"
    with pytest.raises(ValueError, match="split must be one of 'test', 'train', but is 'valid'"):
        checks.one_of("split", "valid", ("test", "train"))


BOX = AttackSettings(box=True)


def searched(**options):
    """Search for a random-direction radius with these settings."""
    return random_direction_radius(MODEL, X, 1.0, RandomSearch(**options))


def attacked(**options):
    """Attack with these settings."""
    return maximum_damage(MODEL, X, 1.0, AttackSettings(**options))


def bracketed(**options):
    """Search for an attack margin with these settings."""
    return attack_margin(MODEL, X, 1.0, search=MarginSearch(**options))


CALLS = [
    # (call, what the message must say)
    (lambda: distances(MODEL, X, uniform(2, 6)), r"delta must have shape \(1, 6\), but has \(2, 6\)"),
    (lambda: distances(MODEL, X, X * math.nan), "delta must be finite"),
    (lambda: distances(MODEL, X, samples=0), "^samples must be a whole number of at least 1, but is 0"),
    (lambda: distances(MODEL, X, samples=10.0), r"^samples must be a whole number of at least 1, but is 10\.0"),
    (lambda: distances(MODEL, X, samples=True), "^samples must be a whole number of at least 1, but is True"),
    (lambda: distances(MODEL, X, reference="median"), "reference must be one of 'mean', 'sample', but is 'median'"),
    (lambda: distances_in_random_directions(MODEL, X, -1.0), r"radius must be finite and >= 0, but holds -1\.0"),
    (lambda: distances_in_random_directions(MODEL, X, math.nan), "radius must be finite and >= 0, but holds nan"),
    (lambda: distances_in_random_directions(MODEL, X, torch.ones(2)), r"radius must .* has shape \(2,\)"),
    (lambda: distances_in_random_directions(MODEL, X, 1.0, samples=-1), "^samples must be .* but is -1"),
    (lambda: log_likelihood(MODEL, X + 1), r"x must hold pixels in \[0, 1\], but ranges over \[1\."),
    (lambda: log_likelihood(MODEL, -X), r"x must hold pixels in \[0, 1\], but ranges over \[-0\.\d+, -"),
    (lambda: log_likelihood(MODEL, X, uniform(1, 5)), r"delta must have shape \(1, 6\), but has \(1, 5\)"),
    (lambda: log_likelihood(MODEL, X, samples=0), "^samples must be .* but is 0"),
    (lambda: probability_of_robustness(D, -1.0), r"^r must be finite and >= 0, but holds -1\.0"),
    (lambda: probability_of_robustness(D, torch.tensor([1.0, math.inf])), "^r must be finite and >= 0, but holds inf"),
    (lambda: probability_of_robustness(D, torch.ones(3)), r"^r must be .* shape \(2,\), but has shape \(3,\)"),
    (lambda: probability_of_robustness(D[0], 1.0), r"distance must have shape \(n, d\).*\(30,\)"),
    (lambda: probability_of_robustness(D, 1.0, confidence=1.0), r"confidence must lie .* but is 1\.0"),
    (lambda: distance_quantile(D, 0.0), r"level must lie .* but is 0\.0"),
    (lambda: distance_quantile(D, confidence=95), "confidence must lie .* but is 95"),
    (lambda: distance_quantile(D * math.nan), "distance must be finite, but holds 60 NaN"),
    (lambda: clopper_pearson(5, 4), "successes must lie in 0 to trials = 4, but range over 5 to 5"),
    (lambda: clopper_pearson(np.array([-1, 2]), 4), "successes must lie in 0 to trials = 4, but range over -1 to 2"),
    (lambda: clopper_pearson(0, 0), "trials must be a whole number of at least 1, but is 0"),
    (lambda: clopper_pearson(0, 4, 0.0), r"confidence must lie .* but is 0\.0"),
    (lambda: algorithm_1_as_printed(MODEL, X, step=0.0), r"step must be a finite number > 0, but is 0\.0"),
    (lambda: algorithm_1_as_printed(MODEL, X, samples=0), "^samples must be .* but is 0"),
    (lambda: algorithm_1_as_printed(MODEL, X, most=0), "most must be a whole number of at least 1, but is 0"),
    (lambda: algorithm_1_as_printed(MODEL, PAIR), r"x must be one point.*\(2, 6\)"),
    (lambda: algorithm_2_as_printed(MODEL, PAIR, 1.0), r"x must be one point.*\(2, 6\)"),
    (lambda: algorithm_2_as_printed(MODEL, X, -1.0), r"^r must be a finite number >= 0, but is -1\.0"),
    (lambda: algorithm_2_as_printed(MODEL, X, 1.0, step=-0.1), r"step must be a finite number > 0, but is -0\.1"),
    (lambda: algorithm_2_as_printed(MODEL, X, 1.0, start=math.inf), "start must be a finite number > 0, but is inf"),
    (lambda: algorithm_2_as_printed(MODEL, X, 1.0, samples=0), "^samples must be .* but is 0"),
    (lambda: algorithm_2_as_printed(MODEL, X, 1.0, start=1e30), r"step must be .* start = 1e\+30, but is 0\.1"),
    (lambda: minimum_r(MODEL, X, level=1.0), r"level must lie .* but is 1\.0"),
    (lambda: minimum_r(MODEL, X, samples="many"), "^samples must be .* but is 'many'"),
    (lambda: random_direction_radius(MODEL, X, -1.0), r"^r must be finite and >= 0, but holds -1\.0"),
    (lambda: random_direction_radius(MODEL, PAIR, torch.ones(3)), r"^r must be .* shape \(2,\), but has shape \(3,\)"),
    (lambda: searched(limit=0), "limit must be a finite number > 0, but is 0"),
    (lambda: searched(tolerance=0.0), r"tolerance must be .* > 0, but is 0\.0"),
    (lambda: searched(grid=1), "grid must be a whole number of at least 2, but is 1"),
    (lambda: searched(samples=0), r"^RandomSearch\.samples must be .* but is 0"),
    (lambda: searched(confidence=2), "confidence must lie .* but is 2"),
    (lambda: decoder_jacobian(MODEL, uniform(2)), r"z must have shape \(n, d\).*\(2,\)"),
    (lambda: theorem_1(MODEL, X, -0.5), r"^r must be finite and >= 0, but holds -0\.5"),
    (lambda: theorem_1(MODEL, X, 1.0, samples=0), "^samples must be .* but is 0"),
    (lambda: theorem_1(MODEL, X, 1.0, confidence=0), "confidence must lie .* but is 0"),
    (lambda: theorem_1(MODEL, X, 1.0, seed=-1), "^seed must be at least 0 and below 2\\*\\*63, but is -1"),
    (lambda: first_order_radii(MODEL, X, 1.5), r"probability must lie in \[0, 1\], but ranges over \[1\.5, 1\.5\]"),
    (lambda: first_order_radii(MODEL, X, np.full(3, 0.9)), r"probability must be .* \(1,\), but has shape \(3,\)"),
    (lambda: linearised_radii(MODEL, X, -1.0), r"^r must be finite and >= 0, but holds -1\.0"),
    (lambda: linearised_radii(MODEL, X, 1.0, samples=0), "^samples must be .* but is 0"),
    (lambda: maximum_damage(MODEL, X, 1.0, starts=torch.zeros(1, 2, 6)), r"starts must have shape \(k, 1, 6\)"),
    (lambda: maximum_damage(MODEL, X, -1.0), r"radius must be finite and >= 0, but holds -1\.0"),
    (lambda: maximum_damage(MODEL, X, math.inf), "radius must be finite and >= 0, but holds inf"),
    (lambda: attacked(method="adam"), "method must be one of .*'lbfgs', but is 'adam'"),
    (lambda: attacked(steps=0), "steps must be .* but is 0"),
    (lambda: attacked(restarts=0), "restarts must be .* but is 0"),
    (lambda: attacked(samples=0), r"^AttackSettings\.samples must be .* but is 0"),
    (lambda: attacked(choosing_samples=0), "choosing_samples must be .* but is 0"),
    (lambda: maximum_damage(MODEL, 2 * X, 1.0, BOX), PIXELS),
    (lambda: latent_attack(MODEL, X, PAIR, 1.0), r"target must have shape \(1, 6\), but has \(2, 6\)"),
    (lambda: output_attack(MODEL, X, X * math.nan, 1.0), "target must be finite"),
    (lambda: latent_attack(MODEL, X, X, -1.0), r"radius must be finite and >= 0, but holds -1\.0"),
    (lambda: output_attack(MODEL, X, X, 1.0, AttackSettings(steps=0)), "steps must be .* but is 0"),
    (lambda: latent_attack(MODEL, X - 1, X, 1.0, BOX), PIXELS),
    (lambda: attack_margin(MODEL, X, -1.0), r"^r must be finite and >= 0, but holds -1\.0"),
    (lambda: bracketed(limit=-2.0), r"limit must be a finite number > 0, but is -2\.0"),
    (lambda: attack_margin(MODEL, X, 1.0, guess=-1.0), r"^guess must be finite and >= 0, but holds -1\.0"),
    (lambda: bracketed(tolerance=1.0), r"tolerance must lie .* but is 1\.0"),
    (lambda: bracketed(judging_samples=0), "judging_samples must be .* but is 0"),
    (lambda: bracketed(final_samples=0), "final_samples must be .* but is 0"),
    (lambda: bracketed(reference="median"), "reference must be one of 'mean', 'sample', but is 'median'"),
    (lambda: bracketed(tolerance=1e-17), r"search\.tolerance must be at least 9e-16 for torch.float64, but is 1e-17"),
    (lambda: bracketed(confidence=1.5), r"confidence must lie .* but is 1\.5"),
    (lambda: attack_margin(MODEL, 2 * X, 1.0, attack=BOX), PIXELS),
    (lambda: LinearGaussianVAE(sigma=0.0), r"sigma must be a finite number > 0, but is 0\.0"),
    (lambda: LinearGaussianVAE(sigma=-1), "sigma must be a finite number > 0, but is -1"),
    (lambda: LinearGaussianVAE(3, 4), "pixels must be a whole number of at least 4, but is 3"),
    (lambda: LinearGaussianVAE(3, 0), "latents must be a whole number of at least 1, but is 0"),
    (lambda: VAE(0), "pixels must be a whole number of at least 1, but is 0"),
    (lambda: VAE(hidden=-1), "hidden must be a whole number of at least 1, but is -1"),
    (lambda: VAE(latents=2.5), r"latents must be a whole number of at least 1, but is 2\.5"),
    (lambda: VAE(tau=-0.1), r"tau must be a finite number >= 0, but is -0\.1"),
    (lambda: VAE(likelihood="poisson"), "likelihood must be one of 'bernoulli', .* but is 'poisson'"),
    (lambda: Spec("cifar"), "dataset must be one of 'mnist', 'fashion-mnist', but is 'cifar'"),
    (lambda: Spec(beta=0.0), r"beta must be a finite number > 0, but is 0\.0"),
    (lambda: Spec(beta=math.nan), "beta must be a finite number > 0, but is nan"),
    (lambda: Spec(tau=-1.0), r"tau must be a finite number >= 0, but is -1\.0"),
    (lambda: Spec(likelihood="laplace"), "likelihood must be one of .* but is 'laplace'"),
    (lambda: Spec(learning_rate=0.0), r"learning_rate must be a finite number > 0, but is 0\.0"),
    (lambda: Spec(epochs=0), "epochs must be a whole number of at least 1, but is 0"),
    (lambda: Spec(batch_size=512.0), r"batch_size must be a whole number of at least 1, but is 512\.0"),
    (lambda: Spec(hidden=0), "hidden must be a whole number of at least 1, but is 0"),
    (lambda: Spec(latents=None), "latents must be a whole number of at least 1, but is None"),
    (lambda: Spec(seed=-1), "seed must be a whole number of at least 0, but is -1"),
    (lambda: load("cifar"), "dataset must be one of 'mnist', 'fashion-mnist', but is 'cifar'"),
    (lambda: load("mnist", "valid"), "split must be one of 'train', 'test', but is 'valid'"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "message"), CALLS, ids=[message for _, message in CALLS])
def test_every_bad_argument_is_named_with_its_value(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("value", ["wide", [1.0, "wide"], None])
def test_what_holds_no_numbers_is_named(value):
    with pytest.raises(TypeError, match=r"^r must be one number or a tensor of shape \(2,\), but is"):
        probability_of_robustness(D, value)


@given(st.integers(1, 3), st.integers(1, 6), st.integers(1, 4), st.integers(1, 7), st.integers(0, 99))
def test_results_have_the_shapes_that_are_documented(n, pixels, latents, samples, seed):
    model, x = random_vae(pixels, 4, latents, seed=seed % 5), uniform(n, pixels, seed=seed)
    d = distances(model, x, 0.1 * x, samples=samples, seed=seed)
    assert d.shape == (n, samples)
    assert torch.isfinite(d).all()
    assert (d >= 0).all()
    assert distances_in_random_directions(model, x, 0.5, samples=samples, seed=seed).shape == (n, samples)
    assert log_likelihood(model, x, samples=samples, seed=seed).shape == (n,)
    found = probability_of_robustness(d, 0.1)
    assert found.probability.shape == found.low.shape == found.high.shape == found.robust.shape == (n,)
    assert ((found.low >= 0) & (found.low <= found.probability)).all()
    assert ((found.probability <= found.high) & (found.high <= 1)).all()
    quantile = distance_quantile(d)
    assert quantile.value.shape == quantile.low.shape == quantile.high.shape == (n,)
    assert encoder_jacobian(model, x).shape == (n, latents, pixels)
    assert decoder_jacobian(model, model.encode(x)[0]).shape == (n, pixels, latents)
    assert proposition_1(model, x).shape == theorem_1(model, x, 0.1, samples=samples).radius.shape == (n,)
    found = random_direction_radius(model, x, 0.1, RandomSearch(samples=samples, grid=2, tolerance=1.0))
    assert found.radius.shape == found.low.shape == found.high.shape == found.censored.shape == (n,)
