"""Samples of D(x, delta): their exact laws on linear VAEs, and noise that is the same for all points."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import DOUBLE, SpreadingVAE, follows, seeded, shifted, square_model, uniform
from scipy import stats

from vaerobust import batches
from vaerobust.attacks import AttackSettings, maximum_damage
from vaerobust.certify.failures import failures
from vaerobust.contract import check_model
from vaerobust.distance import (
    REFERENCES,
    decode_rows,
    displacement,
    distance,
    distances,
    distances_in_random_directions,
    encode_rows,
    rounding,
)
from vaerobust.likelihood import log_likelihood
from vaerobust.linear import LinearGaussianVAE
from vaerobust.linearised import linearised_radii
from vaerobust.random_direction import RandomSearch, random_direction_radius

SAMPLES = 4000


def test_distance_has_its_chi_square_law(linear):
    d = distances(linear, uniform(2, linear.weight.shape[1]), samples=SAMPLES, seed=0)
    assert d.shape == (2, SAMPLES)
    for row in d:
        assert follows((row / linear.sigma) ** 2, stats.chi2(linear.latents).cdf)


@pytest.mark.parametrize("shifts", [0.5, 3.0])
def test_perturbed_distance_has_its_noncentral_law(linear, shifts):
    x = uniform(2, linear.weight.shape[1])
    delta = shifted(linear, x, shifts * linear.sigma)
    for row in distances(linear, x, delta, samples=SAMPLES, seed=1):
        assert follows((row / linear.sigma) ** 2, stats.ncx2(linear.latents, shifts**2).cdf)


@pytest.mark.parametrize("shifts", [0.0, 2.0])
def test_definition_3_1_compares_two_random_outputs(linear, shifts):
    """The difference of two independent reconstructions has twice the variance of one."""
    x = uniform(1, linear.weight.shape[1])
    delta = shifted(linear, x, shifts * linear.sigma) if shifts else None
    d = distances(linear, x, delta, samples=SAMPLES, seed=2, reference="sample")
    law = stats.ncx2(linear.latents, shifts**2 / 2) if shifts else stats.chi2(linear.latents)
    assert follows(d**2 / (2 * linear.sigma**2), law.cdf)


def test_random_directions_have_the_asked_radius():
    """Where A is a multiple of a rotation, the law of D depends on the radius alone."""
    model = square_model(gain=2.0, sigma=0.1)
    radius = torch.tensor([0.0, 0.05, 0.3], dtype=torch.float64)
    d = distances_in_random_directions(model, uniform(3, 4), radius, samples=SAMPLES, seed=3)
    for row, r in zip(d, radius, strict=True):
        assert follows((row / 0.1) ** 2, lambda value, r=r: stats.ncx2.cdf(value, 4, (2 * float(r) / 0.1) ** 2))


def test_random_directions_are_uniform_on_the_sphere():
    """The square of one coordinate of a uniform direction in d dimensions is Beta(1/2, (d - 1)/2)."""
    model = LinearGaussianVAE(6, 1, sigma=1e-9)
    d = distances_in_random_directions(model, uniform(1, 6), 0.7, samples=SAMPLES, seed=4)
    assert follows((d / (0.7 * model.weight.norm())) ** 2, stats.beta(0.5, 2.5).cdf)


@pytest.mark.parametrize(("perturb_sigma", "growth"), [(False, 1.0), (True, float(np.exp(0.4)))])
def test_sigma_is_taken_where_it_was_asked_for(perturb_sigma, growth):
    """At x = 0 every perturbation of length 0.4 multiplies sigma by exp(0.4). Since A = 0, it changes nothing else."""
    model = square_model(gain=0.0, kind=SpreadingVAE)
    x, delta = torch.zeros(1, 4, dtype=torch.float64), torch.tensor([[0.0, 0.4, 0.0, 0.0]], dtype=torch.float64)
    options = {"samples": SAMPLES, "seed": seeded(6), "perturb_sigma": perturb_sigma}
    for d in (distances(model, x, delta, **options), distances_in_random_directions(model, x, 0.4, **options)):
        assert follows((d / (0.1 * growth)) ** 2, stats.chi2(4).cdf)


def test_perturbing_sigma_changes_nothing_where_sigma_is_constant(square):
    x, delta = uniform(3, 4), 0.1 * uniform(3, 4, seed=1)
    for reference in REFERENCES:
        fixed, moved = (
            distances(square, x, delta, samples=9, seed=0, perturb_sigma=which, reference=reference)
            for which in (False, True)
        )
        assert torch.equal(fixed, moved)


def draws(model):
    """Return the functions that sample at given perturbations, by name; every call has the same seed."""
    return {
        "distances": lambda x, d: distances(model, x, d, samples=23, seed=1),
        "unperturbed": lambda x, d: distances(model, x, samples=23, seed=1),
        "perturbed sigma": lambda x, d: distances(model, x, d, samples=23, seed=1, perturb_sigma=True),
        "two samples": lambda x, d: distances(model, x, d, samples=23, seed=1, reference="sample"),
        "random directions": lambda x, d: distances_in_random_directions(model, x, d.norm(dim=1), samples=23, seed=1),
        "log-likelihood": lambda x, d: log_likelihood(model, x, d, samples=23, seed=1)[:, None],
    }


@pytest.mark.parametrize("name", draws(None))
def test_results_depend_neither_on_order_nor_on_company_nor_on_blocks(name, vae, monkeypatch):
    x, delta = uniform(7, 12), 0.2 * uniform(7, 12, seed=1)
    draw = draws(vae)[name]
    whole = draw(x, delta)
    order = torch.tensor([3, 0, 6, 5, 1, 4, 2])
    torch.testing.assert_close(draw(x[order], delta[order]), whole[order], rtol=DOUBLE, atol=0)
    torch.testing.assert_close(draw(x[2:3], delta[2:3]), whole[2:3], rtol=DOUBLE, atol=0)
    for rows in (1, 5, 23, 60):
        monkeypatch.setattr(batches, "ROWS", rows)
        torch.testing.assert_close(draw(x, delta), whole, rtol=DOUBLE, atol=0)


def test_no_block_is_larger_than_it_may_be(vae, monkeypatch):
    monkeypatch.setattr(batches, "ROWS", 10)
    sizes = []
    decode = vae.decode
    monkeypatch.setattr(vae, "decode", lambda z: sizes.append(len(z)) or decode(z))
    check_model(vae, uniform(3, 12))  # the probe decodes a few rows too
    sizes.clear()
    distances(vae, uniform(3, 12), samples=27)
    assert max(sizes) == 10
    assert sum(sizes) == 3 * 27 + 3  # and the three centres


def test_equal_seeds_give_equal_noise_whatever_the_perturbation(vae):
    x = uniform(3, 12)
    plain = distances(vae, x, samples=9, seed=1)
    assert torch.equal(distances(vae, x, torch.zeros_like(x), samples=9, seed=1), plain)
    at_rest = distances_in_random_directions(vae, x, 0.0, samples=9, seed=1)
    torch.testing.assert_close(at_rest, plain, rtol=DOUBLE, atol=0)
    assert not torch.equal(distances(vae, x, samples=9, seed=2), plain)


# the one kernel


def test_the_displacement_is_its_formula_and_its_norm_the_distance(vae):
    """The arguments broadcast over their leading dimensions, here (points, 1), (samples,) and (points, 1)."""
    x, eta = uniform(4, 12), torch.randn(5, 3, generator=seeded(1), dtype=torch.float64)
    mu, sigma = vae.encode(x)
    centre = vae.decode(mu)
    arguments = (vae, mu[:, None], sigma[:, None], eta, centre[:, None])
    moved, d = displacement(*arguments), distance(*arguments)
    assert (moved.shape, d.shape) == ((4, 5, 12), (4, 5))
    for i in range(4):
        direct = vae.decode(mu[i] + sigma[i] * eta) - centre[i]
        torch.testing.assert_close(moved[i], direct, rtol=DOUBLE, atol=DOUBLE)
        torch.testing.assert_close(d[i], direct.pow(2).sum(1).sqrt(), rtol=DOUBLE, atol=0)


@pytest.mark.parametrize("lead", [(3,), (2, 3), (2, 1, 3)])
def test_models_that_take_rows_encode_and_decode_any_leading_dimensions(lead, vae):
    class Rows:
        """A model that takes rows alone."""

        def encode(self, x):
            assert x.ndim == 2
            return vae.encode(x)

        def decode(self, z):
            assert z.ndim == 2
            return vae.decode(z)

    x = uniform(*lead, 12)
    mu, sigma = vae.encode(x)
    for found, expected in zip(encode_rows(Rows(), x), (mu, sigma), strict=True):
        torch.testing.assert_close(found, expected, rtol=DOUBLE, atol=DOUBLE)
    torch.testing.assert_close(decode_rows(Rows(), mu), vae.decode(mu), rtol=DOUBLE, atol=DOUBLE)


USERS = {
    "distances": lambda model, x: distances(model, x, samples=2),
    "random directions": lambda model, x: distances_in_random_directions(model, x, 0.1, samples=2),
    "random-direction radius": lambda model, x: random_direction_radius(model, x, 1.0, RandomSearch(samples=2)),
    "linearised radii": lambda model, x: linearised_radii(model, x, 1.0, samples=2),
    "attack": lambda model, x: maximum_damage(model, x, 0.1, AttackSettings(steps=1)),
    "failures": lambda model, x: failures(model, x, [1.0], samples=2),
}
"""Functions that compute D(x, delta) themselves, each as a function of a model and points."""


@pytest.mark.parametrize("name", USERS)
def test_the_distance_is_computed_in_one_place(name, vae, monkeypatch):
    """With the kernel taken away, each of the functions fails."""

    def gone(*arguments):
        raise NotImplementedError("displacement")

    monkeypatch.setattr("vaerobust.distance.displacement", gone)
    monkeypatch.setattr("vaerobust.linearised.displacement", gone)
    with pytest.raises(NotImplementedError, match="displacement"):
        USERS[name](vae, uniform(2, 12))


@pytest.mark.parametrize("width", [1, 7, 784, 20_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_rounding_bounds_what_it_says(width, dtype):
    """Against double precision, also for one large component and many tiny ones, where sums lose most."""
    first = torch.randn(40, width, generator=seeded(0), dtype=torch.float64)
    first[::2, 1:] *= 2e-4
    first, second = first.to(dtype), torch.randn(40, width, generator=seeded(1)).to(dtype)
    second[::2] = 0
    exact = (first.double() - second.double()).norm(dim=1)
    off = ((first - second).norm(dim=1).double() / exact - 1).abs()
    assert 0 < off.max() <= rounding(width, dtype) < 1


def test_nothing_is_known_of_a_norm_of_too_many_components():
    assert rounding(2**24, torch.float32) == 1
    assert rounding(784, torch.float32) == pytest.approx(2.4e-5, rel=0.02)
