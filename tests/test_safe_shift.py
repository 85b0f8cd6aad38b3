"""The safe shift, against sets whose probability after a shift is known, and against linear programming."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from conftest import DOUBLE
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, stats

from vaerobust.bounds import half_space_shift
from vaerobust.certify import safe_shift as module
from vaerobust.certify.safe_shift import safe_shift

PHI, DENSITY = stats.norm.cdf, stats.norm.pdf

MARCH = 0.01
"""Loss of the march, at most: it ends where a step is below 0.003, and multipliers that are not the best cost as much.
"""


def shift(mass, first, second):
    """Return one safe shift as a number."""
    return float(safe_shift(*torch.tensor([[mass], [first], [second]], dtype=torch.float64)))


@pytest.mark.parametrize("mass", [1e-6, 0.01, 0.1, 0.3, 0.49])
def test_a_half_space_survives_exactly_the_probit(mass):
    """The moments are those of a half-space. So a longer shift is not safe, and the half-space lemma gives this one."""
    edge = stats.norm.isf(mass)
    assert shift(mass, DENSITY(edge), mass + edge * DENSITY(edge)) == pytest.approx(edge, rel=DOUBLE)


@pytest.mark.parametrize("dimensions", [1, 2, 5, 20])
@pytest.mark.parametrize("mass", [1e-4, 0.02, 0.1, 0.3])
def test_a_ball_survives_more_than_a_half_space_and_no_more_than_it_does(dimensions, mass):
    """B is the outside of a ball: its first moment is 0, and E[1_B s^2] follows from the chi-square law of d + 2."""
    square = stats.chi2.isf(mass, dimensions)
    exact = optimize.brentq(lambda t: stats.ncx2.cdf(square, dimensions, t * t) - 0.5, 1e-9, square**0.5)
    found, half_space = shift(mass, 0.0, stats.chi2.sf(square, dimensions + 2)), stats.norm.isf(mass)
    assert found <= exact
    assert found >= half_space * (1 + (0.01 if dimensions > 1 else 0))
    if dimensions == 20 and mass == 0.1:
        assert found > 1.3 * half_space  # where the half-space lemma is furthest from the truth


SETS = st.lists(st.tuples(st.floats(0.02, 2.0), st.floats(0.0, 1.0)), min_size=1, max_size=12)
"""Intervals from -4 upwards: the length of each, and the share of it that fails."""


@given(SETS, st.booleans(), st.booleans(), st.floats(1.0, 1.2))
def test_no_set_with_these_moments_is_more_likely_than_half_up_to_the_safe_shift(pieces, left, right, loose):
    """Sets of intervals have known probabilities after any shift; 200 lengths up to the safe one are tried.

    Sets may be random: noise in an interval fails with the probability given for it. Below -4 and beyond the last
    interval, all or nothing fails.
    """
    lengths, share = zip(*pieces, strict=True)
    ends = np.concatenate([[-np.inf], -4 + np.concatenate([[0], np.cumsum(lengths)]), [np.inf]])
    share = np.array([left, *share, right], dtype=float)
    density, edges = DENSITY(ends), np.nan_to_num(ends, posinf=0, neginf=0)
    share *= min(1.0, 0.4 / max(share @ np.diff(PHI(ends)), 1e-300))  # so that the half-space shift is not 0
    mass = share @ np.diff(PHI(ends))
    first = -share @ np.diff(density)
    second = mass - share @ np.diff(edges * density)
    found = shift(loose * mass, loose * abs(first), loose * second)
    assert half_space_shift(1 - loose * mass) <= found
    for sign in (1, -1):
        for t in np.linspace(0, min(found, 30.0), 200):
            assert share @ np.diff(PHI(ends - sign * t)) <= 0.5 + DOUBLE


def most_likely(t, mass, first, second):
    """Return the largest P(s + t in B) over random sets B with moments up to these, by linear programming.

    The sets are constant on cells of width 0.05 between -7 and 10. Integrals over cells are exact, so the set that is
    found keeps the limits.
    """
    ends = np.linspace(-7, 10, 341)
    density = DENSITY(ends)
    moments = np.diff(PHI(ends)), -np.diff(density), np.diff(PHI(ends)) - np.diff(ends * density)
    gain = np.diff(PHI(ends - t))
    found = optimize.linprog(-gain, A_ub=np.stack(moments), b_ub=[mass, first, second], bounds=(0, 1), method="highs")
    assert found.status == 0
    return -found.fun


@pytest.mark.parametrize(
    ("mass", "first", "second"),
    [(0.1, 0.0, 0.2), (0.1, 0.05, 0.3), (0.1, 0.1, 0.12), (0.01, 0.0, 0.03), (0.001, 0.001, 0.01), (0.3, 0.0, 0.5)],
)
def test_the_safe_shift_is_that_of_the_worst_set(mass, first, second):
    """Up to the safe shift, no set found by linear programming has a probability above 1/2, to the solver's tolerance.

    At 1.04 times the safe shift some set has: the multipliers, the march and the cells together lose no more.
    """
    found = shift(mass, first, second)
    assert found > stats.norm.isf(mass) * 1.001 + MARCH  # so that the moments matter
    for part in (0.3, 0.7, 0.9, 0.97, 1.0):
        assert most_likely(part * found, mass, first, second) <= 0.5 + 1e-6
    assert most_likely(1.04 * found + MARCH, mass, first, second) > 0.5


def test_more_of_what_fails_is_never_safer():
    """The safe shift falls in each of the three numbers, up to the error MARCH of either shift."""
    grid = torch.cartesian_prod(*torch.tensor([[0.01, 0.1, 0.3], [0.0, 0.05, 0.2], [0.02, 0.2, 0.6]]).double())
    found = safe_shift(*grid.T).reshape(3, 3, 3)
    for dimension in range(3):
        assert (found.diff(dim=dimension) <= 2 * MARCH).all()
        assert found.diff(dim=dimension).min() < -0.1


def test_nothing_is_safe_where_half_may_fail_and_everything_where_nothing_does():
    for mass in (0.5, 0.7, 1.0):
        assert shift(mass, 0.0, 0.0) == 0
    assert shift(0.0, 0.0, 0.0) == math.inf
    assert 7 < shift(1e-14, 0.0, 0.0) < math.inf


def test_blocks_of_shifts_give_the_same_numbers(monkeypatch):
    """Up to the order of sums."""
    mass = torch.linspace(1e-4, 0.45, 23).double()
    first, second = 0.8 * mass, 1.5 * mass
    whole = safe_shift(mass, first, second)
    monkeypatch.setattr(module, "SHIFTS", 5)
    torch.testing.assert_close(safe_shift(mass, first, second), whole, rtol=1e-9, atol=0)
