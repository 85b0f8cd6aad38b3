"""The margin from both sides: fields that fit together, and bounds in their order."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from conftest import ALARM, DOUBLE, random_vae, uniform

from vaerobust.bounds import first_order_radii
from vaerobust.certify.both_sides import BothSides, both_sides
from vaerobust.distance import distances


@pytest.fixture(scope="module")
def measured():
    """A model, its points and the two results for them: at each point's own r, and at r = 1.5."""
    vae, x = random_vae(12, 16, 3), uniform(4, 12)
    found = both_sides(vae, x, fixed_r=1.5, samples=5000)
    return vae, x, (found.own, found.fixed)


def test_there_is_a_number_for_every_field_and_point(measured):
    _, x, (own, fixed) = measured
    for found in (own, fixed):
        assert isinstance(found, BothSides)
        for field in fields(found):
            values = getattr(found, field.name)
            kind = torch.bool if field.name.endswith(("confirmed", "censored")) else torch.float64
            assert values.dtype == kind and torch.isfinite(values.double()).all(), field.name
            if field.name == "delta":
                assert values.shape == x.shape
            else:
                assert values.shape == (4,) and (values >= 0).all(), field.name
    assert fixed.r.tolist() == [1.5] * 4


def test_a_result_becomes_a_table_with_one_row_per_point(measured):
    _, _, (own, _) = measured
    table = own.to_frame()
    assert list(table) == [field.name for field in fields(own) if field.name != "delta"]
    assert len(table) == 4 and table.certified.tolist() == own.certified.tolist()


def test_lower_bounds_lie_below_upper_bounds(measured):
    """Each certificate and each confirmed attack is wrong with probability 0.001 at most; the rest is algebra."""
    _, _, both = measured
    for found in both:
        assert (found.theorem_1 <= found.spectral * (1 + DOUBLE)).all()
        assert (found.spectral <= found.whitened * (1 + DOUBLE)).all()
        assert (found.half_space <= found.certified).all()
        assert (found.half_space <= found.whitened * (1 + DOUBLE)).all()  # no W is smaller than the Jacobian's at x
        assert (found.certified > 0).all()
        assert found.confirmed.all() and not found.censored.any()
        assert (found.certified < found.attack).all()
        # half of the mass lies beyond r, so the mean of D^2 / r^2 is at least 1/2; samples may err by a tenth of it
        assert (found.moment_at_attack > 0.45).all()
        assert (found.attack < found.random_direction).all()  # random directions are far from the worst one
        assert (found.decoder_aware > 0).all() and (found.second_moment > 0).all()


def test_an_attack_that_is_not_confirmed_is_no_upper_bound(measured):
    _, _, (own, _) = measured
    assert torch.equal(own.upper_bound, own.attack)
    none = replace(own, confirmed=torch.zeros_like(own.confirmed))
    assert torch.isinf(none.upper_bound).all()


def test_r_is_a_quantile_and_p_low_is_below_its_level(measured):
    """The quantile is 0.9 up to five standard errors: of the 4,000 samples that chose r, and of the 20,000 here."""
    vae, x, (own, _) = measured
    p = (distances(vae, x, samples=20_000, seed=11) <= own.r[:, None]).double().mean(1)
    assert (p - 0.9).abs().max() < 5 * (0.09 / 4000 + 0.09 / 20_000) ** 0.5
    assert (own.p_low < p).all() and (own.p_low > 0.85).all()


def test_deltas_are_as_long_as_the_attack_margin_and_break_robustness(measured):
    """Judged once more with new samples, with Hoeffding's error for each of the 8 perturbations."""
    vae, x, both = measured
    for found in both:
        torch.testing.assert_close(found.delta.norm(dim=1), found.attack, rtol=DOUBLE, atol=0)
        within = (distances(vae, x, found.delta, samples=2000, seed=7) <= found.r[:, None]).double()
        assert (within.mean(1) < 0.5 + np.sqrt(np.log(8 / ALARM) / 4000)).all()


def test_first_order_bounds_are_those_at_the_lower_limit(measured):
    vae, x, both = measured
    for found in both:
        expected = first_order_radii(vae, x, found.p_low.numpy())
        torch.testing.assert_close(found.theorem_1, expected.frobenius, rtol=DOUBLE, atol=0)
        torch.testing.assert_close(found.spectral, expected.spectral, rtol=DOUBLE, atol=0)
        torch.testing.assert_close(found.whitened, expected.whitened, rtol=DOUBLE, atol=0)


def test_a_model_in_single_precision_is_measured_too():
    vae = random_vae(12, 16, 3).float()
    own = both_sides(vae, uniform(2, 12).float(), samples=1000, level=0.8, confidence=0.9).own
    assert own.delta.dtype == torch.float32
    assert (own.certified <= own.attack).all()


def test_equal_seeds_give_equal_numbers_and_other_seeds_others():
    """A generator stands for a number that is drawn from it."""
    vae, x = random_vae(12, 16, 3), uniform(1, 12)

    def own(seed):
        return both_sides(vae, x, samples=500, level=0.8, confidence=0.9, seed=seed).own

    first, again, other = own(1), own(1), own(2)
    generator = torch.Generator().manual_seed(3)
    drawn = own(generator), own(generator)
    assert torch.equal(first.r, again.r) and torch.equal(first.attack, again.attack)
    assert len({float(found.r) for found in (first, other, *drawn)}) == 4


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.full((1, 12), torch.nan)}, ValueError, "x must be finite"),
        ({"level": 1.0}, ValueError, "level must lie strictly between 0 and 1"),
        ({"fixed_r": -1.0}, ValueError, "fixed_r must be a finite number >= 0"),
        ({"samples": 0}, ValueError, "samples must be a whole number of at least 1"),
        ({"confidence": 1.5}, ValueError, "confidence must lie strictly between 0 and 1"),
    ],
)
def test_wrong_arguments_are_named(change, error, message):
    arguments = {"x": uniform(1, 12), "samples": 10} | change
    with pytest.raises(error, match=message):
        both_sides(random_vae(), arguments.pop("x"), **arguments)
