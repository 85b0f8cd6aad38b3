"""Results as tables and as JSON: every class of result, and results that functions really return."""

from __future__ import annotations

import dataclasses
import json
import math
import typing

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import modules, uniform
from test_randomness import CALLS, DELTA, EVERY, MODEL, ONE_POINT, POINTS, TOTALS, R, X, with_seed_7

from vaerobust.bounds import first_order_radii, theorem_1
from vaerobust.certify.curves import Curves
from vaerobust.jacobians import jacobian_norms
from vaerobust.results import Result

NUMBERS = [0.5, math.inf, -math.inf, math.nan, 2.0]
"""A number per point: finite, infinite or none at all."""


def result_classes():
    """Return every class of result that a module of the package defines."""
    modules()
    found, waiting = [], [Result]
    while waiting:
        classes = waiting.pop().__subclasses__()
        waiting += classes
        found += [one for one in classes if one.__module__.startswith("vaerobust.")]
    return sorted(set(found), key=lambda one: one.__qualname__)


CLASSES = result_classes()
OWN_TABLE = {Curves}
"""Classes whose points are not the rows of their table; tested below."""


def example(kind):
    """Return a result of a class, with :data:`NUMBERS` in each field that holds an array."""
    arrays = {"Tensor": torch.tensor(NUMBERS, dtype=torch.float64), "ndarray": np.array(NUMBERS)}
    values = arrays | {"int": 3, "float": math.inf, "bool": True, "str": "text"}
    fields = {}
    for name, hint in typing.get_type_hints(kind).items():
        nested = issubclass(hint, Result)
        fields[name] = example(hint) if nested else values[hint.__name__]
    return kind(**fields)


def columns_of(kind, prefix=""):
    """Return the names of the columns that a table of a class has: those of its fields, nested ones with a prefix."""
    names = []
    for name, hint in typing.get_type_hints(kind).items():
        nested = issubclass(hint, Result)
        names += columns_of(hint, f"{prefix}{name}_") if nested else [prefix + name]
    return names


def holds_arrays(kind):
    """Tell whether a class has a field, of its own or of a result within it, with one number per point."""
    hints = typing.get_type_hints(kind).values()
    return any(holds_arrays(hint) if issubclass(hint, Result) else hint in (torch.Tensor, np.ndarray) for hint in hints)


def strict(text):
    """Parse JSON as its standard has it, without infinite numbers and NaN."""

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_there_are_results():
    assert {"Attack", "AttackMargin", "Certificate", "FirstOrderBound", "Quantile", "Robustness"} <= {
        kind.__name__ for kind in CLASSES
    }


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_result_is_frozen_and_can_be_compared_and_hashed(kind):
    """Whether two tensors are equal has no single answer, so a comparison by fields would fail."""
    one, other = example(kind), example(kind)
    assert one == one and (one == other) in (True, False)
    assert one in {one, other}
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(one, dataclasses.fields(kind)[0].name, None)


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_json_has_every_field_and_infinite_numbers_as_text(kind):
    found = strict(example(kind).to_json())

    def agrees(value, hint):
        if issubclass(hint, Result):
            assert list(value) == [field.name for field in dataclasses.fields(hint)]
            for name, inner in typing.get_type_hints(hint).items():
                agrees(value[name], inner)
        else:
            expected = {"int": 3, "float": "inf", "bool": True, "str": "text"}
            assert value == expected.get(hint.__name__, [0.5, "inf", "-inf", "nan", 2.0])

    agrees(found, kind)


@pytest.mark.parametrize("kind", [kind for kind in CLASSES if kind not in OWN_TABLE], ids=lambda kind: kind.__name__)
def test_a_table_has_one_row_per_point_and_the_fields_as_columns(kind):
    found = example(kind).to_frame()
    numbers = [name for name, column in found.items() if column.dtype == float and column.nunique(dropna=False) > 1]
    for name in numbers:
        np.testing.assert_array_equal(found[name], NUMBERS, err_msg=name)
    for name in set(found.columns) - set(numbers):  # a number or a text, repeated in every row
        assert found[name].nunique(dropna=False) == 1, name
    assert list(found.columns) == columns_of(kind)
    assert len(found) == (len(NUMBERS) if numbers else 1)
    assert bool(numbers) == holds_arrays(kind)


# results that functions return

RESULTS = {name: lambda name=name: with_seed_7(name) for name in sorted(CALLS)} | {
    "jacobian_norms": lambda: jacobian_norms(MODEL, X),
    "first_order_radii": lambda: first_order_radii(MODEL, X, 0.9),
}
"""A call of every function, by name, at :data:`test_randomness.POINTS` points; some return no result of a class."""


def results(name):
    """Return the results in what a function returned."""
    found = RESULTS[name]()
    return [one for one in (found if isinstance(found, list) else [found]) if isinstance(one, Result)]


@pytest.mark.parametrize("name", RESULTS)
def test_what_functions_return_becomes_a_table_with_one_row_per_point(name):
    for found in results(name):
        frame = found.to_frame()
        assert isinstance(frame, pd.DataFrame)
        if not isinstance(found, Curves):
            assert len(frame) == (1 if name in ONE_POINT | TOTALS else POINTS)
            assert set(frame.columns) <= set(columns_of(type(found)))
        strict(found.to_json())


def test_a_table_and_json_hold_the_numbers_of_the_result():
    found = theorem_1(MODEL, X, R, samples=100)
    frame, parsed = found.to_frame(), strict(found.to_json())
    assert list(frame.columns) == columns_of(type(found))
    assert frame["low"].tolist() == found.low.tolist() == parsed["low"]
    assert frame["robustness_probability"].tolist() == found.robustness.probability.tolist()
    assert parsed["robustness"]["probability"] == found.robustness.probability.tolist()
    assert frame["robustness_samples"].tolist() == [100] * POINTS
    assert parsed["robustness"]["samples"] == 100


def test_infinite_bounds_survive():
    """With r so large that every sample is within it, the estimate is infinite and its lower limit is not."""
    found = theorem_1(MODEL, X[:2], 1e9, samples=100)
    parsed = strict(found.to_json())
    assert parsed["radius"] == parsed["high"] == ["inf", "inf"]
    assert found.to_frame()["radius"].tolist() == [math.inf] * 2
    assert [float(value) for value in parsed["radius"]] == found.radius.tolist()
    assert parsed["low"] == found.low.tolist()


def test_what_is_wider_than_a_column_is_in_json_alone():
    found = CALLS["maximum_damage"](EVERY, seed=7)
    assert list(found.to_frame().columns) == ["objective"]
    assert strict(found.to_json())["delta"] == found.delta.tolist()
    assert np.shape(strict(found.to_json())["delta"]) == tuple(DELTA.shape)


def test_truth_values_stay_truth_values():
    found = CALLS["attack_margin"](EVERY, seed=7)
    frame, parsed = found.to_frame(), strict(found.to_json())
    assert frame["confirmed"].dtype == frame["censored"].dtype == bool
    assert parsed["confirmed"] == found.confirmed.tolist()
    assert set(map(type, parsed["censored"])) == {bool}


@dataclasses.dataclass(frozen=True, eq=False)
class Own(Result):
    """A result with a number per point and a single one."""

    value: torch.Tensor
    single: object


@pytest.mark.parametrize("value", [uniform(3).requires_grad_(True), uniform(3).bfloat16()], ids=["graph", "bfloat16"])
def test_every_kind_of_tensor_becomes_a_column_and_a_list(value):
    found = Own(value, 1)
    assert found.to_frame()["value"].tolist() == value.tolist()
    assert strict(found.to_json())["value"] == value.tolist()


@pytest.mark.parametrize(
    "single", [np.int64(3), np.float32(0.5), np.float64(np.inf), np.bool_(True), torch.tensor(2.0)]
)
def test_single_numbers_may_be_numpys_or_torchs(single):
    found = Own(uniform(3), single)
    assert found.to_frame()["single"].tolist() == [single] * 3
    plain = strict(found.to_json())["single"]
    assert plain == (single.item() if math.isfinite(single) else "inf")


def test_curves_have_one_row_per_radius_and_point():
    found = with_seed_7("curves")
    frame = found.to_frame()
    assert list(frame.columns) == ["radius", "point", "certified", "broken", "confidence"]
    assert len(frame) == found.certified.numel() == 2 * POINTS
    for row in frame.itertuples():
        k = int((found.radii == row.radius).nonzero())
        assert (row.certified, row.broken) == (found.certified[k, row.point], found.broken[k, row.point])
    assert set(frame["confidence"]) == {found.confidence}
