"""Numbers and claims on the page: what a notebook's cell hands to the text and to the ledger."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import RichOutput, capture_output

from vaerobust.page.numbers import CLAIM, claim, number


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


@pytest.mark.parametrize("value", [float("nan"), torch.tensor(float("nan")), None, [1.0]])
def test_number_refuses_what_no_text_can_report(value):
    with pytest.raises((ValueError, AttributeError), match="share"):
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
