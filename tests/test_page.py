"""Numbers and claims on the page: what a notebook's cell hands to the text and to the ledger."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import RichOutput, capture_output

from vaerobust.page import numbers
from vaerobust.page.numbers import CLAIM, claim, number, trend


@pytest.fixture(autouse=True)
def shell():
    """Glue and display need a running IPython."""
    yield InteractiveShell.instance()
    InteractiveShell.clear_instance()


def shown(call) -> list[RichOutput]:
    with capture_output() as captured:
        call()
    assert not captured.stdout
    return captured.outputs


def glued(outputs: list[RichOutput]) -> dict[str, str]:
    """Return what MyST-NB finds under a name: the text of the value."""
    return {
        output.metadata["scrapbook"]["name"]: next(iter(output.data.values()))
        for output in outputs
        if "scrapbook" in output.metadata
    }


def recorded(outputs: list[RichOutput]) -> list[dict]:
    return [output.data[CLAIM] for output in outputs if CLAIM in output.data]


def test_number_glues_plain_numbers():
    values = {"a": 0.5, "b": np.float32(0.25), "c": torch.tensor(3), "d": np.int64(4), "e": "rises"}
    assert glued(shown(lambda: number(**values))) == {"a": "0.5", "b": "0.25", "c": "3", "d": "4", "e": "'rises'"}


def test_numbers_are_glued_as_pythons_own(monkeypatch):
    glued = {}
    monkeypatch.setattr(numbers, "glue", lambda name, value, display: glued.update({name: (value, display)}))
    number(a=np.float32(0.5), b=np.int64(3), c=torch.tensor(2.5), d=torch.tensor(4), e=7, f="many", g=1e300)
    assert glued == {k: (v, False) for k, v in dict(a=0.5, b=3, c=2.5, d=4, e=7, f="many", g=1e300).items()}
    assert {name: type(value) for name, (value, _) in glued.items()} == {
        "a": float, "b": int, "c": float, "d": int, "e": int, "f": str, "g": float
    }  # fmt: skip


@pytest.mark.parametrize("value", [float("nan"), np.float64("nan"), torch.tensor(torch.nan), None, [1.0]])
def test_number_refuses_by_name_what_no_text_can_report(value, monkeypatch):
    monkeypatch.setattr(numbers, "glue", None)
    with pytest.raises(ValueError, match="share must be a number that is not NaN, or a string, but is"):
        number(share=value)


def test_claim_without_parts():
    outputs = shown(lambda: claim("bound-loose", 2.5, 2.0, 3.0, n=10))
    assert glued(outputs) == {"bound-loose": "2.5", "bound-loose-low": "2.0", "bound-loose-high": "3.0"}
    assert recorded(outputs) == [{"claim": "bound-loose", "part": "", "value": 2.5, "low": 2.0, "high": 3.0, "n": 10}]


@pytest.mark.parametrize(
    ("part", "key"),
    [
        ("MNIST", "loose-mnist"),
        ("fashion-MNIST", "loose-fashion-mnist"),
        ("MNIST, random directions", "loose-mnist-random-directions"),
        ("r = 4", "loose-r-4"),
        ("(own r)", "loose-own-r"),
    ],
)
def test_claim_names_a_part_as_text_can(part, key):
    outputs = shown(lambda: claim("loose", 1, part=part))
    assert set(glued(outputs)) == {key, f"{key}-low", f"{key}-high"}
    assert recorded(outputs)[0]["part"] == part


def test_claim_without_interval_has_no_error():
    assert recorded(shown(lambda: claim("exact", 1.5)))[0] | {"n": None} == {
        "claim": "exact", "part": "", "value": 1.5, "low": 1.5, "high": 1.5, "n": None,
    }  # fmt: skip


def test_claim_takes_numbers_of_numpy_and_torch():
    record = recorded(shown(lambda: claim("x", torch.tensor(0.5), np.float32(0.25), np.float64(1), n=np.int64(7))))[0]
    assert json.loads(json.dumps(record)) == record
    assert [type(record[key]) for key in ("value", "low", "high", "n")] == [float, float, float, int]


@pytest.mark.parametrize(
    ("value", "low", "high"),
    [
        (0.5, 0.6, 0.7),
        (0.5, 0.3, 0.4),
        (0.5, 0.6, None),
        (float("nan"), 0, 1),
        (0.5, float("nan"), 1),
        (0.5, 0, float("inf")),
        (float("inf"), None, None),
    ],
)
def test_claim_refuses_what_is_no_interval_of_the_value(value, low, high):
    with pytest.raises(ValueError, match="loose"):
        claim("loose", value, low, high)


@pytest.mark.parametrize("name", ["", "Loose", "bound_loose", "bound loose", "-loose"])
def test_claim_refuses_names_that_a_registry_cannot_have(name):
    with pytest.raises(ValueError, match="name"):
        claim(name, 1.0)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([1.0, 2.0, 3.0], "rises at every step"),
        ([3.0, 2.0, -1.0], "falls at every step"),
        ([1.0, 2.0, 2.0, 3.0], "rises at 2 of 3 steps"),
        ([1.0, 1.0], "rises at 0 of 1 steps"),
        (np.array([0, 1]), "rises at every step"),
    ],
)
def test_trend_in_words(values, words):
    assert trend(values) == words


@given(st.lists(st.integers(-5, 5), min_size=2, max_size=8))
def test_trend_of_values_and_of_their_negatives_agree(values):
    opposite = {"rises at every step": "falls at every step", "falls at every step": "rises at every step"}
    mirrored = trend([-value for value in values])
    if trend(values) in opposite:
        assert mirrored == opposite[trend(values)]
    else:
        steps = [after - before for before, after in zip(values, values[1:], strict=False)]
        assert mirrored == f"rises at {sum(step < 0 for step in steps)} of {len(steps)} steps"


@pytest.mark.parametrize("values", [[], [1.0], [1.0, float("nan")]])
def test_trend_refuses_values_without_one(values):
    with pytest.raises(ValueError, match="values must be at least two numbers"):
        trend(values)
