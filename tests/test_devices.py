"""No function mixes tensors of two devices, shown without a second device: tensors carry the place where they are.

The points and the model are elsewhere, and so is what is made on ``x.device``; what is made without a device is on the
CPU, until it is moved. The tests cannot show that a device has an operation, only that nothing is left behind.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from conftest import random_vae, seeded, uniform
from torch import Tensor
from torch.overrides import TorchFunctionMode

from vaerobust import numerics
from vaerobust.algorithms import algorithm_1_as_printed, minimum_r
from vaerobust.attacks import METHODS, AttackSettings, maximum_damage, output_attack
from vaerobust.bounds import first_order_radii, proposition_1, theorem_1
from vaerobust.certify.certificates import certified_margin, certified_r
from vaerobust.certify.curves import curves
from vaerobust.certify.violations import ViolationSearch, violations
from vaerobust.distance import distances, distances_in_random_directions
from vaerobust.jacobians import decoder_jacobian, jacobian_norms
from vaerobust.likelihood import log_likelihood
from vaerobust.linearised import linearised_radii
from vaerobust.margins import MarginSearch, attack_margin, strongest_attack
from vaerobust.random_direction import RandomSearch, random_direction_radius

FEW = AttackSettings(steps=2, restarts=2, samples=2, choosing_samples=4, box=True)
QUICK = MarginSearch(tolerance=0.5, judging_samples=20)
FREE = {"__getitem__", "__setitem__", "__get__", "copy_"}
"""Operations that take tensors of two devices: indices may lie on the CPU."""


def tensors(value) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for one in value:
            yield from tensors(one)
    elif isinstance(value, dict):
        yield from tensors(list(value.values()))


def place_of(value: Tensor) -> str:
    return getattr(value, "_place", "elsewhere")


class Places(TorchFunctionMode):
    """Marks each tensor with its place, and notes each operation on tensors of two places."""

    def __init__(self) -> None:
        super().__init__()
        self.mixed: list[str] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        given = list(tensors([args, kwargs]))
        places = {place_of(one) for one in given if one.ndim}
        if name in ("cpu", "numpy", "tolist"):
            place = "CPU"
        elif name in ("to", "type_as") and len(given) > 1:
            place = place_of(given[1])
        elif kwargs.get("device") is not None or (name == "to" and any(isinstance(a, torch.device) for a in args)):
            place = "elsewhere"
        elif not given:
            place = "CPU"
        else:
            if len(places) > 1 and name not in FREE:
                self.mixed.append(name)
            place = "elsewhere" if "elsewhere" in {place_of(one) for one in given} else "CPU"
        if name in ("cpu", "to") and any(out is one for one in given):
            out = out.view_as(out)  # moved, so that it is another tensor
        for one in tensors(out):
            one._place = place
        return out


def linearised(vae, x):
    return linearised_radii(vae, x, 0.5, samples=5)


CALLS = {
    "distances": lambda vae, x: distances(vae, x, 0.1 * x, seed=seeded(1), reference="sample"),
    "distances_in_random_directions": lambda vae, x: distances_in_random_directions(vae, x, 0.3),
    "minimum_r": minimum_r,
    "algorithm_1_as_printed": lambda vae, x: algorithm_1_as_printed(vae, x[:1], step=0.5),
    "log_likelihood": lambda vae, x: log_likelihood(vae, x, samples=3),
    "random_direction_radius": lambda vae, x: random_direction_radius(vae, x, 1.0, RandomSearch(samples=50, grid=4)),
    "theorem_1": lambda vae, x: theorem_1(vae, x, 1.0),
    "first_order_radii": lambda vae, x: first_order_radii(vae, x, 0.9),
    "jacobian_norms": jacobian_norms,
    "decoder_jacobian": lambda vae, x: decoder_jacobian(vae, vae.encode(x)[0]),
    "proposition_1": proposition_1,
    "linearised_radii": linearised,
    **{
        f"maximum_damage, {method}": lambda vae, x, method=method: maximum_damage(
            vae, x, 0.3, AttackSettings(method, 2, 2, 2)
        )
        for method in METHODS
    },
    "output_attack": lambda vae, x: output_attack(vae, x, x.flip(0), 0.3, FEW),
    "attack_margin": lambda vae, x: attack_margin(vae, x, 1.0, attack=FEW, search=QUICK, guess=0.5),
    "strongest_attack": lambda vae, x: strongest_attack(vae, x, 1.0, attack=FEW, search=QUICK),
    "certified_margin": lambda vae, x: certified_margin(vae, x, 1.0, samples=200, refine=1),
    "certified_r": lambda vae, x: certified_r(vae, x, [0.0, 0.1], samples=200, refine=1),
    "curves": lambda vae, x: curves(vae, x, [0.1], samples=100, judging_samples=20, attack=FEW),
    "violations": lambda vae, x: violations(vae, x, 0.1, 1.0, ViolationSearch(4, 1, 8, 8)),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_no_tensor_is_left_behind(name):
    vae, x = random_vae(), uniform(2, 12)
    with Places() as places:
        CALLS[name](vae, x)
    assert places.mixed == []


def test_the_places_find_a_tensor_that_was_left_behind():
    x = uniform(2, 12)
    with Places() as places:
        _ = x + torch.zeros(12)
    assert places.mixed == ["add"]


def test_devices_without_doubles_get_single_precision_and_the_cpu_the_rest(monkeypatch):
    """As on Apple's: a projection stays on the device in single precision, and is as exact as that allows."""
    from vaerobust.attacks import project

    monkeypatch.setattr(numerics, "has_doubles", lambda device: False)
    x, radius = uniform(2, 12).float(), torch.tensor([0.3, 0.5])
    assert numerics.precise(x.device) == torch.float32
    assert numerics.double(x).device.type == "cpu"
    shorter = project(10 * x, radius)
    assert shorter.dtype == torch.float32
    assert (shorter.norm(dim=1) <= radius).all() and (shorter.norm(dim=1) > 0.999 * radius).all()
    found = maximum_damage(random_vae().float(), x, 0.3, AttackSettings(steps=2, restarts=1))
    assert (found.delta.norm(dim=1) <= 0.3).all()
