"""Randomness: every function that takes a seed keeps what :mod:`vaerobust.randomness` promises.

The functions are found by their signatures, so a new one fails these tests until :data:`CALLS` has a call of it.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re

import numpy as np
import pytest
import torch
from conftest import ALARM, DOUBLE, follows, modules, random_vae, seeded, uniform
from scipy import stats

from vaerobust import randomness
from vaerobust.algorithms import algorithm_1_as_printed, algorithm_2_as_printed, minimum_r
from vaerobust.attacks import AttackSettings, latent_attack, maximum_damage, output_attack
from vaerobust.bounds import theorem_1
from vaerobust.certify.both_sides import both_sides
from vaerobust.certify.certificates import certified_margin, certified_r, certify_with_far_draws
from vaerobust.certify.curves import broken_r, curves
from vaerobust.certify.failures import failures
from vaerobust.certify.far_draws import far_failures
from vaerobust.certify.violations import ViolationSearch, violations
from vaerobust.distance import distances, distances_in_random_directions
from vaerobust.likelihood import log_likelihood
from vaerobust.linearised import linearised_radii
from vaerobust.margins import MarginSearch, attack_margin, strongest_attack
from vaerobust.random_direction import RandomSearch, random_direction_radius
from vaerobust.randomness import as_generator, as_number, normal, unit_directions
from vaerobust.results import Result

POINTS = 6
"""Number of points. No other dimension of a result has this size, so it marks the dimension of the points."""
MODEL = random_vae(12, 16, 3)
X, TARGET = uniform(POINTS, 12), uniform(POINTS, 12, seed=1)
R = minimum_r(MODEL, X, level=0.9, seed=99).value
DELTA = 0.1 * (TARGET - X)
QUICK = AttackSettings(steps=3, restarts=2, samples=4, choosing_samples=50)
SEARCH = MarginSearch(judging_samples=200, tolerance=0.2)
RADII = [0.01, 0.05]

CALLS = {
    "algorithm_1_as_printed": lambda i, **s: algorithm_1_as_printed(MODEL, X[i][:1], step=0.1, samples=50, **s),
    "algorithm_2_as_printed": lambda i, **s: algorithm_2_as_printed(
        MODEL, X[i][:1], float(R[i][0]), step=0.1, start=2.0, samples=50, **s
    ),
    "attack_margin": lambda i, **s: attack_margin(MODEL, X[i], R[i], attack=QUICK, search=SEARCH, **s),
    "both_sides": lambda i, **s: both_sides(MODEL, X[i], samples=2000, confidence=0.9, **s),
    "certified_margin": lambda i, **s: certified_margin(MODEL, X[i], R[i], samples=5000, refine=2, **s),
    "certify_with_far_draws": lambda i, **s: certify_with_far_draws(
        MODEL, X[i], 1.1 * R[i], failures(MODEL, X[i], [1.1 * R[i]], samples=2000)[0], refine=1, **s
    ),
    "far_failures": lambda i, **s: far_failures(
        MODEL, X[i], 1.1 * R[i], torch.eye(3).double().repeat(len(i), 1, 1), torch.zeros(len(i)), samples=500, **s
    ),
    "broken_r": lambda i, **s: broken_r(MODEL, X[i], RADII, judging_samples=200, attack=QUICK, **s),
    "certified_r": lambda i, **s: certified_r(MODEL, X[i], RADII, samples=5000, refine=2, **s),
    "curves": lambda i, **s: curves(MODEL, X[i], RADII, samples=5000, judging_samples=200, attack=QUICK, **s),
    "distances": lambda i, **s: distances(MODEL, X[i], DELTA[i], **s),
    "distances_in_random_directions": lambda i, **s: distances_in_random_directions(MODEL, X[i], 0.1, **s),
    "failures": lambda i, **s: failures(MODEL, X[i], [R[i], 0.5 * R[i]], samples=5000, **s),
    "latent_attack": lambda i, **s: latent_attack(MODEL, X[i], TARGET[i], 0.1, QUICK, **s),
    "linearised_radii": lambda i, **s: linearised_radii(MODEL, X[i], R[i], **s),
    "log_likelihood": lambda i, **s: log_likelihood(MODEL, X[i], DELTA[i], samples=1000, **s),
    "maximum_damage": lambda i, **s: maximum_damage(MODEL, X[i], 0.1, QUICK, **s),
    "minimum_r": lambda i, **s: minimum_r(MODEL, X[i], **s),
    "output_attack": lambda i, **s: output_attack(MODEL, X[i], TARGET[i], 0.1, QUICK, **s),
    "random_direction_radius": lambda i, **s: random_direction_radius(MODEL, X[i], R[i], RandomSearch(grid=4), **s),
    "sample": lambda i, **s: MODEL.sample(X[i], **s),
    "strongest_attack": lambda i, **s: strongest_attack(MODEL, X[i], R[i], attack=QUICK, search=SEARCH, **s),
    "theorem_1": lambda i, **s: theorem_1(MODEL, X[i], R[i], **s),
    "violations": lambda i, **s: violations(
        MODEL, X[i], 0.3, 0.7 * R[i], ViolationSearch(directions=10, judging_samples=200), **s
    ),
}
"""A call of each function at some of the points, given by their indices; its seed, if any, is passed on."""

WHOLE_NUMBERS = {"LinearGaussianVAE", "Settings", "Spec", "search"}
"""Seeds that are part of what something is: a model's weights, the settings of a measurement, the name of a training
run, a run of a benchmark."""
OWN_TESTS = {"as_generator", "as_number", "measure"}
"""What turns a seed into something else, tested below; and a whole measurement, tested in test_measuring.py."""
ONE_POINT = {"algorithm_1_as_printed", "algorithm_2_as_printed"}
"""Functions of a single point, which no batch can be split into."""
OWN_NOISE = {"sample"}
"""Functions whose points have noise of their own each, so that a part of a batch meets other noise."""
TOTALS = {"violations"}
"""Functions that return sums over the points."""
ATTACKS = {
    "broken_r",
    "attack_margin",
    "latent_attack",
    "maximum_damage",
    "output_attack",
    "strongest_attack",
    "violations",
}
"""Functions that attack: steps of an optimiser enlarge roundings, as the attacks' own tests say."""
CERTIFIES = {"both_sides", "certified_margin", "certified_r", "certify_with_far_draws", "curves"}
"""Functions that bound the encoder by a descent in single precision, whose roundings are 6e-8 each."""


JUDGES: set[str] = set()
"""Names of the functions that take an r, which other samples must have chosen; :func:`takers` fills it."""


def takers():
    """Return the parameter ``seed`` of every public function, class and method of the package that has one, by name."""
    found = {}
    for module in modules():
        for name, value in vars(module).items():
            if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
                continue
            functions = {name: value}
            if inspect.isclass(value):
                functions = {key: one for key, one in vars(value).items() if not key.startswith("_")}
                functions[name] = vars(value).get("__init__")
            for key, one in functions.items():
                if inspect.isfunction(one) and "seed" in inspect.signature(one).parameters:
                    found[key] = inspect.signature(one).parameters["seed"]
                    if {"r", "r_values"} & set(inspect.signature(one).parameters):
                        JUDGES.add(key)
    return found


def leaves(result):
    """Return the numbers of a result as tensors, by name."""
    if isinstance(result, Result):
        named = {field.name: getattr(result, field.name) for field in dataclasses.fields(result)}
    elif isinstance(result, list | tuple):
        named = dict(enumerate(result))
    else:
        return {"": torch.as_tensor(result)}
    return {f"{name} {inner}": one for name, value in named.items() for inner, one in leaves(value).items()}


def close(name, found, expected):
    """Compare results up to rounding, and up to what the steps of an attack or a descent make of it."""
    found, expected = leaves(found), leaves(expected)
    assert list(found) == list(expected)
    error = 1e-6 if name in CERTIFIES else 1e-9 if name in ATTACKS else DOUBLE
    for leaf, value in expected.items():
        size = float(value.double().nan_to_num(0, 0, 0).abs().max())
        assert found[leaf].dtype == value.dtype, leaf
        torch.testing.assert_close(found[leaf], value, rtol=error, atol=error * size, equal_nan=True)


def equal(found, expected):
    """Tell whether all numbers of two results are the same."""
    found, expected = leaves(found), leaves(expected)
    return list(found) == list(expected) and all(
        np.array_equal(found[leaf].numpy(), value.numpy(), equal_nan=value.is_floating_point())
        for leaf, value in expected.items()
    )


def part_of(value, points):
    """Return the entries of some points, if a tensor has a dimension of points; else the tensor itself."""
    return value.index_select(value.shape.index(POINTS), points) if POINTS in value.shape else value


EVERY = torch.arange(POINTS)


@functools.cache
def with_seed_7(name):
    """Return the result of a call at all points, which several tests compare with others."""
    return CALLS[name](EVERY, seed=7)


def test_every_function_that_takes_a_seed_is_tested():
    found = takers()
    assert {name for name, parameter in found.items() if parameter.annotation != "Seed"} <= WHOLE_NUMBERS
    seeds = {name: parameter.default for name, parameter in found.items() if parameter.annotation == "Seed"}
    assert set(seeds) == set(CALLS) | OWN_TESTS
    # what judges an r must not meet the samples that chose it
    assert {name: seed for name, seed in seeds.items() if name in CALLS and (seed == 0) == (name in JUDGES)} == {}


@pytest.mark.parametrize("name", CALLS)
def test_the_same_whole_number_gives_the_same_numbers(name):
    assert equal(CALLS[name](EVERY, seed=7), with_seed_7(name))


@pytest.mark.parametrize("name", sorted(set(CALLS) - ONE_POINT - TOTALS))
def test_another_whole_number_gives_other_numbers(name):
    """Those of the functions left out are so coarse that they may coincide."""
    assert not equal(CALLS[name](EVERY, seed=8), with_seed_7(name))


@pytest.mark.parametrize("name", CALLS)
def test_without_a_seed_it_is_the_default(name):
    assert equal(CALLS[name](EVERY), CALLS[name](EVERY, seed=takers()[name].default))


@pytest.mark.parametrize("name", CALLS)
def test_a_generator_moves_on(name):
    """The next call meets other noise; from the same state, it meets the same."""
    generator = seeded(7)
    first = CALLS[name](EVERY, seed=generator)
    assert not torch.equal(generator.get_state(), seeded(7).get_state())
    second = CALLS[name](EVERY, seed=generator)
    assert equal(CALLS[name](EVERY, seed=seeded(7)), first)
    if name not in ONE_POINT | TOTALS:
        assert not equal(second, first)


@pytest.mark.parametrize("name", CALLS)
def test_torchs_own_generator_is_left_alone(name):
    before = torch.get_rng_state()
    CALLS[name](EVERY, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(123)
        assert equal(CALLS[name](EVERY, seed=7), with_seed_7(name))


@pytest.mark.parametrize("name", CALLS)
def test_one_thread_and_two_give_the_same_numbers(name):
    alone = with_seed_7(name)
    assert torch.get_num_threads() == 1
    torch.set_num_threads(2)
    try:
        assert torch.get_num_threads() == 2
        close(name, CALLS[name](EVERY, seed=7), alone)
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("name", sorted(set(CALLS) - ONE_POINT - OWN_NOISE - TOTALS))
@pytest.mark.parametrize("parts", [[[0, 1], [2, 3, 4, 5]], [[0], [1, 2, 3], [4, 5]], [[5, 1, 3], [0, 2, 4]]])
def test_a_batch_may_be_split_in_any_way(name, parts):
    """Each point's numbers are the same in any company, and those of the call are the same in each part."""
    whole = with_seed_7(name)
    for part in parts:
        points = torch.tensor(part)
        found = leaves(CALLS[name](points, seed=7))
        expected = {leaf: part_of(value, points) for leaf, value in leaves(whole).items()}
        assert any(POINTS in value.shape for value in leaves(whole).values())
        close(name, list(found.values()), list(expected.values()))


@pytest.mark.parametrize("name", sorted(TOTALS))
def test_the_totals_of_a_split_batch_add_up(name):
    """The tests of a call share its error, so the number confirmed depends on how many there are; it is left out."""
    whole = CALLS[name](EVERY, seed=7)
    parts = [CALLS[name](torch.tensor(part), seed=7) for part in ([0, 1], [2, 3, 4, 5])]
    assert 0 < whole.suspected < whole.tried
    assert whole.tried == sum(part.tried for part in parts)
    assert whole.suspected == sum(part.suspected for part in parts)


WRONG = [
    ("many", TypeError, "seed must be a whole number or a torch.Generator, but is 'many'"),
    (1.0, TypeError, "seed must be a whole number or a torch.Generator, but is 1.0"),
    (True, TypeError, "seed must be a whole number or a torch.Generator, but is True"),
    (None, TypeError, "seed must be a whole number or a torch.Generator, but is None"),
    (-1, ValueError, "seed must be at least 0 and below 2**63, but is -1"),
    (2**63, ValueError, "seed must be at least 0 and below 2**63, but is 9223372036854775808"),
]


@pytest.mark.parametrize(("seed", "error", "message"), WRONG, ids=[repr(seed) for seed, _, _ in WRONG])
@pytest.mark.parametrize("name", CALLS)
def test_a_wrong_seed_is_named(name, seed, error, message):
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        CALLS[name](EVERY, seed=seed)


# what a seed becomes


@pytest.mark.parametrize("turn", [as_generator, as_number])
@pytest.mark.parametrize(("seed", "error", "message"), WRONG, ids=[repr(seed) for seed, _, _ in WRONG])
def test_no_wrong_seed_becomes_a_generator_or_a_number(turn, seed, error, message):
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        turn(seed, X)


@pytest.mark.parametrize("seed", [0, 7, np.int64(7), 2**63 - 1])
def test_a_whole_number_becomes_a_new_generator(seed):
    found = as_generator(seed, X)
    assert torch.equal(found.get_state(), seeded(int(seed)).get_state())
    assert as_generator(seed, X) is not found
    assert found.device == X.device


def test_a_generator_stays_itself():
    generator = seeded(3)
    assert as_generator(generator, X) is generator
    assert torch.equal(generator.get_state(), seeded(3).get_state())


def test_a_number_is_the_seed_itself_or_drawn_from_the_generator():
    assert [as_number(seed, X) for seed in (0, 7, np.int64(7))] == [0, 7, 7]
    generator = seeded(1)
    numbers = [as_number(generator, X) for _ in range(1000)]
    assert len(set(numbers)) == 1000
    # room for the streams that functions count from it: the largest seed is below 2**63
    assert min(numbers) >= 0 and max(numbers) < 2**62
    assert numbers[0] == as_number(seeded(1), X)


def test_noise_is_normal_and_as_wide_and_precise_as_what_it_is_for():
    for dtype in (torch.float32, torch.float64):
        found = normal(4000, torch.zeros(2, 3, dtype=dtype), seeded(1))
        assert (found.shape, found.dtype) == ((4000, 3), dtype)
        assert follows(found, stats.norm.cdf)


def test_directions_are_unit_vectors_in_parts(monkeypatch):
    monkeypatch.setattr(randomness, "DIRECTIONS", 1000)
    parts = list(unit_directions(2500, torch.zeros(1, 5, dtype=torch.float64), seeded(1)))
    assert [part for part, _ in parts] == [slice(0, 1000), slice(1000, 2000), slice(2000, 2500)]
    directions = torch.cat([direction for _, direction in parts])
    torch.testing.assert_close(directions.norm(dim=1), torch.ones(2500, dtype=torch.float64), rtol=DOUBLE, atol=0)
    # the square of a coordinate of a uniform direction in 5 dimensions; the coordinates of one depend on each other
    for coordinate in directions.T:
        assert stats.kstest(coordinate.numpy() ** 2, stats.beta(0.5, 2).cdf).pvalue > ALARM / 5
