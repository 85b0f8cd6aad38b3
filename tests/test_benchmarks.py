"""Benchmarks: that the fastest turn counts, and that the printed algorithm follows the law it is set up by."""

from __future__ import annotations

import sys
import time

import numpy as np
import pytest
from conftest import ALARM
from scipy import stats

from vaerobust.study import benchmarks, equal_error, growth, scaling, timing
from vaerobust.zoo.protocol import Spec


class Clock:
    """A clock that only moves when told."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def taking(self, *seconds):
        """Return a call that takes these times, one after the other."""
        left = list(seconds)

        def call():
            self.now += left.pop(0)

        return call


def test_the_fastest_turn_counts_and_the_first_of_several_only_warms_up(monkeypatch):
    clock = Clock(monkeypatch)
    assert timing.fastest(clock.taking(1, 5, 4, 6), clock.taking(9, 7, 8, 7), turns=3) == [4, 7]
    assert timing.fastest(clock.taking(3, 5), turns=2) == [3]
    assert timing.fastest(clock.taking(3), turns=1) == [3]


def test_a_table_has_the_ratio_of_each_comparison():
    fast, slow = timing.Comparison("sort", "quick", "bubble", 2.0, 8.0), timing.Comparison("a", "b", "c", 1.0, 3.0)
    table = timing.as_table([fast, slow])
    assert table["ratio"].tolist() == [4.0, 3.0]
    assert list(table) == ["task", "ours", "other", "seconds", "other_seconds", "note", "ratio"]


@pytest.mark.parametrize("power", [0, 1, 2])
def test_growth_has_the_slope_of_its_larger_half(power, monkeypatch):
    clock = Clock(monkeypatch)
    found = growth.measure_growth(lambda n: clock.taking(n**power + 100 * (n < 4)), [1, 2, 4, 8], turns=1)
    assert found.slope == pytest.approx(power)
    assert found.sizes == [1, 2, 4, 8]


def test_a_walk_errs_as_its_law_says():
    """Against walks that are made: draws of Bin(n, F(R)) on the way down, up to the first success."""
    radius, step, samples, walks = 3.0, 0.2, 12, 40_000

    def share(at):
        return 1 / (1 + np.exp(4 * (np.asarray(at) - radius)))

    error, passes = equal_error.walk_error(share, radius, step, samples)
    rng = np.random.default_rng(0)
    errors, made = [], []
    for offset in (0.25, 0.75):
        at = equal_error.START - step * (np.arange(int(equal_error.START / step)) + offset)
        stops = rng.binomial(samples, share(at), (walks, len(at))) >= samples / 2
        first = stops.argmax(axis=1)
        errors.append((at[first] - step - radius) ** 2)
        made.append(first + 1)
    for expected, sample in ((error, np.array(errors)), (passes, np.array(made))):
        # the mean of 80,000 walks; its error by the normal law
        spread = np.sqrt(sample.var(axis=1).mean() / sample.size)
        assert abs(sample.mean() - expected) < stats.norm.isf(ALARM / 4) * spread


def test_the_cheapest_walk_reaches_the_error_and_an_impossible_one_is_an_error():
    def share(at):
        return 1 / (1 + np.exp(4 * (np.asarray(at) - 3.0)))

    walk = equal_error.cheapest_walk(share, 3.0, 0.1)
    error, passes = equal_error.walk_error(share, 3.0, walk.step, walk.samples)
    assert error <= 0.1**2
    assert walk.drawn == pytest.approx(passes * walk.samples)
    begin = equal_error.likely_start(share, 3.0, walk)
    assert 3.0 < begin <= equal_error.START
    with pytest.raises(ValueError, match="allowed = 0.1 is more exact"):
        equal_error.cheapest_walk(np.ones_like, 3.0, 0.1)  # every walk stops at its start


def test_both_searches_err_as_they_were_set_up():
    found = equal_error.compare_random_directions(0.1, repeats=3, pool=200, reference=2000)
    assert found.timed.seconds > 0
    assert found.timed.other_seconds > 0
    # with 3 repeats, 3 (error / target)^2 is about chi-squared with 3 degrees of freedom; the bias adds little
    most = np.sqrt(stats.chi2.isf(ALARM, 3) / 3)
    assert max(found.error, found.other_error) < 2 * most * found.target


def test_comparisons_time_both_ways_on_small_inputs():
    norms = benchmarks.compare_jacobians(points=4, looped=2, turns=1)
    attacks = benchmarks.compare_attacks(points=2, other_points=1, tolerance=0.5, turns=1)
    for one in (norms, attacks.by_bisection, attacks.on_grid):
        assert min(one.seconds, one.other_seconds) > 0
    assert len(attacks.ours) == len(attacks.other) == 1
    assert benchmarks.certificate_seconds(points=1, samples=500, wanted=2) > 0


def test_without_torchvision_the_comparison_says_what_it_needs(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)  # which makes the import fail
    with pytest.raises(ImportError, match=r"this comparison needs torchvision: pip install 'vaerobust\[book\]'"):
        benchmarks.data_loader_epoch(10, Spec(), tmp_path)


def test_scaling_times_shards_and_plans_for_many():
    """On one worker, with next to no work; the plan is arithmetic."""
    one = scaling.strong_scaling([1], shards=2, samples=200)
    assert one.workers == (1,)
    assert one.speed_up == (1.0,)
    assert min(one.seconds + one.core_seconds) > 0
    extra = scaling.overhead(shards=3)
    assert extra.size > 15 * 784 * 4
    assert min(extra.here, extra.cluster) > 0
    plan = scaling.planned(1001, 10, 2.0, scaling.Overhead(0.001, 0.5, 100), 50)
    assert (plan.shards, plan.results, plan.weights, plan.images) == (201, 20_100, 500, 1001 * 3136)
    assert plan.core_hours == pytest.approx(2002 / 3600)
    assert plan.caller == pytest.approx(201 * 0.5 / 200.2)
    assert plan.most_workers == pytest.approx(1 / plan.caller)


def test_the_performance_table_has_everything_on_one_device():
    table = scaling.performance("cpu", draws=(500, 2000), most=1000, batches=2)
    assert table["task"].tolist() == [
        "certificate, 500 draws", "certificate, 2,000 draws", "attack margin", "training epoch",
        "15 models from scratch",
    ]  # fmt: skip
    assert (table["seconds"] > 0).all()
    assert table["note"].tolist()[:2] == ["", "scaled from 1,000 draws"]
    assert set(table["device"]) == {"cpu"}
