"""A few hundred cases of the fuzz: no bad argument and no lie of a model passes in silence, or ends in a foreign error.

``python tests/fuzz.py --cases 10000`` runs more of them.
"""

from __future__ import annotations

import fuzz
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

QUICK = [case for case in fuzz.cases() if case.function not in fuzz.SLOW and case.fault != "healthy"]


@settings(max_examples=400)
@given(st.sampled_from(QUICK))
def test_each_fault_ends_in_a_result_or_in_an_error_that_names_it(case):
    verdict = fuzz.judge(case)
    assert not verdict.kind, f"{verdict.kind}: {case} -> {verdict.detail}"


@pytest.mark.parametrize("dtype", fuzz.DTYPES)
def test_healthy_calls_of_every_function_give_results_in_every_type(dtype):
    for case in fuzz.cases():
        if case.fault == "healthy" and case.dtype == dtype and case.function not in fuzz.SLOW:
            verdict = fuzz.judge(case)
            assert not verdict.kind, f"{verdict.kind}: {case} -> {verdict.detail}"


def test_the_fuzz_finds_what_it_looks_for(monkeypatch):
    """A function without checks fails it, by a silent result, by a foreign error and by NaN."""
    found = {"distance_quantile": lambda distance, level=0.5, confidence=0.9: distance.mean() * level}
    monkeypatch.setattr(fuzz, "functions", lambda: found)
    kinds = {
        fuzz.judge(fuzz.Case("distance_quantile", "float64", argument, fault)).kind
        for argument, fault in (("confidence", "text"), ("distance", "None"), ("", "healthy"))
    }
    assert kinds == {"silent", "foreign error", ""}


def test_every_function_that_takes_a_model_is_fuzzed():
    names = set(fuzz.functions())
    assert {"distances", "theorem_1", "certified_margin", "strongest_attack", "both_sides", "minimum_r"} <= names
    assert len(names) >= 40
