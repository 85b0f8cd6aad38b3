"""Curves of the least r: two ends that enclose exact values, and their errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import ALARM, graded_model, square_model, uniform
from scipy import optimize

from vaerobust.certify.curves import broken_r, curves
from vaerobust.linear import LinearGaussianVAE
from vaerobust.zoo.data import read_sample
from vaerobust.zoo.weights import pretrained


def least_r(model, shift, level):
    """Return the quantile of D at a shift of the latents."""
    return optimize.brentq(lambda r: model.probability(r, shift) - level, 1e-9, 10.0)


def test_curves_enclose_the_exact_least_r():
    """On two linear models; each end is wrong with probability 1e-6. The attack finds the one bad direction."""
    for model in (graded_model(), LinearGaussianVAE(30, 6, sigma=0.05, seed=4)):
        norm = float(torch.linalg.matrix_norm(model.weight, 2))
        radii = [shift * model.sigma / norm for shift in (0.0, 0.5, 1.0, 2.0, 8.0)]
        x = uniform(3, model.weight.shape[1])
        found = curves(model, x, radii, judging_samples=4000, confidence=1 - ALARM)
        assert found.certified.shape == found.broken.shape == (5, 3) and found.confidence == 1 - ALARM
        assert found.radii.tolist() == radii
        for radius, certified, broken in zip(radii, found.certified, found.broken, strict=True):
            exact = least_r(model, radius * norm, 0.5)
            assert (certified >= exact).all() and (broken <= exact).all()
            # the lower limit of the median is above the quantile at 1/2 minus two of Hoeffding's errors, for 4,000
            # samples; the attack loses a tenth of the shift at most
            assert (broken >= least_r(model, 0.9 * radius * norm, 0.5 - 2 * np.sqrt(np.log(1 / ALARM) / 8000))).all()
        assert torch.isfinite(found.certified[:4]).all() and torch.isinf(found.certified[4]).all()


def test_curves_of_a_trained_model_have_two_ends_and_rise():
    vae, x = pretrained("mnist", 5.0).vae, read_sample("mnist")[0][:2].float() / 255
    radii = (0.002, 0.005, 0.01, 0.02)
    found = curves(vae, x, radii, samples=5000, judging_samples=1000)
    assert (found.broken > 0).all() and (found.certified > found.broken).all()
    # they rise since all radii share the noise, and each attack starts from the one before
    assert (found.broken.diff(dim=0) > 0).all() and (found.certified.diff(dim=0) > 0).all()
    assert torch.isfinite(found.certified).all()


def test_too_few_judging_samples_give_the_lower_end_0():
    """Two samples have no lower limit of the median at confidence 0.999 but 0."""
    found = curves(square_model(), uniform(1, 4), [0.05], samples=1000, judging_samples=2)
    assert found.broken.tolist() == [[0.0]]


def test_the_broken_end_alone_is_that_of_the_curves():
    model, x, radii = square_model(), uniform(2, 4), [0.0, 0.05, 0.1]
    both = curves(model, x, radii, samples=100, judging_samples=200, seed=3)
    assert torch.equal(broken_r(model, x, radii, judging_samples=200, seed=3), both.broken)
    assert broken_r(model, x, []).shape == (0, 2)


def test_curves_become_a_table_with_one_row_per_radius_and_point():
    found = curves(square_model(), uniform(2, 4), [0.05, 0.1, 0.2], samples=500, judging_samples=100)
    table = found.to_frame()
    assert list(table) == ["radius", "point", "certified", "broken", "confidence"]
    assert table.radius.tolist() == [0.05, 0.05, 0.1, 0.1, 0.2, 0.2] and table.point.tolist() == [0, 1] * 3
    assert table.certified.tolist() == found.certified.flatten().tolist()
    assert table.broken.tolist() == found.broken.flatten().tolist()


def test_curves_without_radii_are_empty():
    found = curves(square_model(), uniform(2, 4), [], samples=500, judging_samples=100)
    assert found.certified.shape == found.broken.shape == (0, 2) and len(found.to_frame()) == 0


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.zeros(4)}, ValueError, r"x must have shape \(n, d\)"),
        ({"radii": [-0.1]}, ValueError, "radii must be finite and >= 0"),
        ({"samples": 0}, ValueError, "samples must be a whole number of at least 1"),
        ({"judging_samples": 0}, ValueError, "judging_samples must be a whole number of at least 1"),
        ({"confidence": 0.0}, ValueError, "confidence must lie strictly between 0 and 1"),
    ],
)
def test_wrong_arguments_are_named(change, error, message):
    arguments = {"x": uniform(1, 4), "radii": [0.1], "samples": 1000, "judging_samples": 100} | change
    with pytest.raises(error, match=message):
        curves(square_model(), arguments.pop("x"), arguments.pop("radii"), **arguments)
