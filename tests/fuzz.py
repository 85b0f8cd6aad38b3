"""Bad input, by the thousand: every public function meets faults of its arguments and of its model.

A case is one call. It is healthy but for one argument, or for one lie that its model tells. It may end in two ways: in
a result without NaN, or in a TypeError or ValueError that this package raises and whose message names what is wrong.
A result from an argument that should be refused, another error, a message that names something else, and a call that
takes longer than :data:`SECONDS` are failures.

Functions are found by their modules, so new ones are covered. Run ``python tests/fuzz.py --cases 10000`` to see how
many cases fail, by kind; ``tests/test_fuzz.py`` runs some of the same cases.
"""

from __future__ import annotations

import argparse
import collections
import importlib
import inspect
import io
import math
import pkgutil
import random
import re
import signal
import sys
import tempfile
import time
import traceback
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import vaerobust
from vaerobust.attacks import AttackSettings
from vaerobust.certify.failures import failures
from vaerobust.certify.violations import ViolationSearch
from vaerobust.linearised import LinearisedRadii
from vaerobust.margins import MarginSearch
from vaerobust.model import VAE
from vaerobust.random_direction import RandomSearch

SECONDS = 20
"""A call that takes longer counts as one that does not end; on an idle machine none takes a tenth of that."""
PIXELS, LATENTS, POINTS = 6, 2, 2
DTYPES = {"float64": torch.float64, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
PACKAGE = Path(vaerobust.__file__).parent
ROOMS = ("vaerobust", "vaerobust.certify", "vaerobust.measuring")
"""Packages whose modules are searched for functions; what is in vaerobust.__all__ is added."""
HELPERS = {"checks", "batches", "randomness", "results", "files", "commands", "contract", "numerics", "__main__"}
"""Modules of helpers, whose arguments come from this package."""
SLOW = {"both_sides", "measure"}
"""Functions that take seconds: only what they must refuse is tried, in double precision."""
UNTAUGHT = {"encoder_mean", "trace", "network.compare", "compare_within", "theorem_1_quotient", "far_failures"}
"""Functions that are not called from outside: what they take is made by other functions of the package."""
MEASURING = {"measure", "wrap", "compare", "probe", "load", "as_rows"}
"""What of the room that measures is called from outside; its other functions are steps of these."""


class Hang(BaseException):
    """The call took too long."""


# -- what is called ----------------------------------------------------------------------------------------------------


@cache
def functions() -> dict[str, Callable]:
    """Return what is fuzzed by name: functions and classes that promise errors, under "Raises" of their docstring."""
    found: dict[str, Callable] = {}
    for room in ROOMS:
        for info in pkgutil.iter_modules(importlib.import_module(room).__path__):
            if info.ispkg or info.name in HELPERS:
                continue
            module = importlib.import_module(f"{room}.{info.name}")
            for name, value in vars(module).items():
                own = getattr(value, "__module__", "") == module.__name__ and not name.startswith("_")
                step = {name, f"{info.name}.{name}"} & UNTAUGHT or (room == ROOMS[-1] and name not in MEASURING)
                if own and callable(value) and "Raises\n" in (inspect.getdoc(value) or "") and not step:
                    found[name] = value
    for name in vaerobust.__all__:
        value = getattr(vaerobust, name)
        if callable(value) and "Raises\n" in (inspect.getdoc(value) or ""):
            found.setdefault(name, value)
    return dict(sorted(found.items()))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def healthy_model(dtype: torch.dtype) -> VAE:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae = VAE(PIXELS, 8, LATENTS).requires_grad_(False)
    for weight in vae.parameters():
        weight.mul_(3)  # so that the rows of a batch differ visibly
    return vae.to(dtype)


def tensor(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=seeded(seed), dtype=torch.float64).to(dtype)


def _linearised(dtype: torch.dtype) -> LinearisedRadii:
    one = tensor(POINTS, dtype=dtype)
    return LinearisedRadii(one, one, tensor(POINTS, PIXELS, dtype=dtype))


@cache
def _images() -> Path:
    path = Path(tempfile.mkdtemp()) / "images.npy"
    np.save(path, tensor(POINTS, PIXELS, dtype=torch.float64).numpy())
    return path


@cache
def _report() -> Any:
    x = tensor(POINTS, PIXELS, dtype=torch.float64)
    return vaerobust.measure(healthy_model(torch.float64), x, samples=20, progress=False, suspicions="ignore")


ATTACK = AttackSettings(steps=1, restarts=1, samples=2, choosing_samples=4)
HEALTHY: dict[str, Callable[[torch.dtype], Any]] = {
    "model": healthy_model,
    "vae": healthy_model,
    "x": lambda dtype: tensor(POINTS, PIXELS, dtype=dtype),
    "target": lambda dtype: tensor(POINTS, PIXELS, dtype=dtype, seed=1),
    "delta": lambda dtype: 0.1 * tensor(POINTS, PIXELS, dtype=dtype, seed=2),
    "starts": lambda dtype: tensor(2, POINTS, PIXELS, dtype=dtype, seed=3),
    "further": lambda dtype: tensor(2, POINTS, PIXELS, dtype=dtype, seed=3),
    "z": lambda dtype: tensor(POINTS, LATENTS, dtype=dtype, seed=4),
    "distance": lambda dtype: tensor(POINTS, 30, dtype=dtype, seed=5),
    "scale": lambda dtype: 0.5 + tensor(POINTS, LATENTS, dtype=dtype, seed=6),
    "layers": lambda dtype: [(w.double(), b.double()) for w, b in healthy_model(torch.float64).mean_layers()],
    "found": lambda dtype: failures(healthy_model(dtype), tensor(POINTS, PIXELS, dtype=dtype), [0.5], samples=50)[0],
    "r": lambda dtype: 0.5,
    "r_values": lambda dtype: [0.5, 0.6],
    "radius": lambda dtype: 0.3,
    "radii": lambda dtype: [0.1, 0.2],
    "guess": lambda dtype: 0.5,
    "probability": lambda dtype: 0.8,
    "level": lambda dtype: 0.5,
    "confidence": lambda dtype: 0.9,
    "fixed_r": lambda dtype: 0.5,
    "step": lambda dtype: 0.2,
    "start": lambda dtype: 1.0,
    "memory": lambda dtype: 1e8,
    "tau": lambda dtype: 0.1,
    "sigma": lambda dtype: 0.1,
    "tolerance": lambda dtype: 0.1,
    "limit": lambda dtype: 2.0,
    "beta": lambda dtype: 1.0,
    "samples": lambda dtype: 8,
    "judging_samples": lambda dtype: 8,
    "final_samples": lambda dtype: 8,
    "choosing_samples": lambda dtype: 8,
    "screening_samples": lambda dtype: 8,
    "directions": lambda dtype: 2,
    "attacks": lambda dtype: 1,
    "steps": lambda dtype: 1,
    "restarts": lambda dtype: 1,
    "grid": lambda dtype: 2,
    "refine": lambda dtype: 1,
    "most": lambda dtype: 20,
    "trials": lambda dtype: 10,
    "successes": lambda dtype: 5,
    "pixels": lambda dtype: PIXELS,
    "hidden": lambda dtype: 4,
    "latents": lambda dtype: LATENTS,
    "seed": lambda dtype: 1,
    "perturb_sigma": lambda dtype: True,
    "warm_start": lambda dtype: True,
    "box": lambda dtype: False,
    "reference": lambda dtype: "mean",
    "likelihood": lambda dtype: "bernoulli",
    "method": lambda dtype: "projected_gradient",
    "dataset": lambda dtype: "mnist",
    "split": lambda dtype: "test",
    "linearised": _linearised,
    "settings": lambda dtype: ATTACK,
    "attack": lambda dtype: ATTACK,
    "search": lambda dtype: None,
    "module": healthy_model,
    "images": lambda dtype: tensor(POINTS, PIXELS, dtype=dtype),
    "shape": lambda dtype: (PIXELS,),
    "encode": lambda dtype: None,
    "decode": lambda dtype: None,
    "logits": lambda dtype: False,
    "normalise": lambda dtype: None,
    "outputs": lambda dtype: None,
    "first": lambda dtype: 1,
    "suspicions": lambda dtype: "ignore",
    "progress": lambda dtype: False,
    "device": lambda dtype: "cpu",
    "path": lambda dtype: _images(),
    "second": lambda dtype: _report(),
}
"""A healthy value of each argument, by its name."""
SEARCHES = {
    "random_direction_radius": RandomSearch(samples=8, grid=2, tolerance=0.5, limit=2.0),
    "attack_margin": MarginSearch(tolerance=0.5, judging_samples=8, limit=2.0),
    "strongest_attack": MarginSearch(tolerance=0.5, judging_samples=8, limit=2.0),
    "violations": ViolationSearch(directions=2, screening_samples=8, judging_samples=8),
}
KINDS = {
    "tensor": {"images", "x", "target", "delta", "starts", "further", "z", "distance", "scale"},
    "numbers": {"r", "radius", "guess"},  # one number, or one per point
    "list": {"radii", "r_values"},
    "sizes": {"shape"},
    "place": {"path"},
    "number": {
        "level", "confidence", "fixed_r", "step", "start", "memory", "tau", "sigma", "tolerance", "limit", "beta",
        "probability",
    },
    "count": {
        "samples", "judging_samples", "final_samples", "choosing_samples", "screening_samples", "directions", "attacks",
        "steps", "restarts", "grid", "refine", "most", "first", "trials", "successes", "pixels", "hidden", "latents",
    },
    "flag": {"perturb_sigma", "warm_start", "box", "logits", "progress"},
    "choice": {"reference", "likelihood", "method", "dataset", "split", "outputs", "suspicions", "device"},
    "seed": {"seed"},
    "object": {
        "module", "second", "encode", "decode", "normalise", "linearised", "settings", "attack", "search", "layers",
        "found",
    },
    "model": {"model", "vae"},
}  # fmt: skip
"""What kind of value each argument takes."""


def healthy(name: str, argument: str, dtype: torch.dtype) -> Any:
    """Return a healthy value of an argument of a function."""
    if argument == "scale" and name in ("VAE", "wrap"):
        return "softplus" if name == "VAE" else "sigma"
    if name == "compare":
        return _report()
    if name == "measure" and argument in ("samples", "r"):
        return 20 if argument == "samples" else None
    if argument == "search":
        return SEARCHES.get(name)
    if argument in ("x",) and name.startswith("algorithm_"):
        return tensor(1, PIXELS, dtype=dtype)
    return HEALTHY[argument](dtype)


def arguments(name: str) -> list[str]:
    """Return the arguments of a function that the fuzz knows; an unknown one without a default is an error."""
    known = []
    for argument in inspect.signature(functions()[name]).parameters.values():
        if argument.name in HEALTHY:
            known.append(argument.name)
        elif argument.default is argument.empty and argument.kind not in (
            argument.VAR_KEYWORD,
            argument.VAR_POSITIONAL,
        ):
            raise LookupError(f"teach the fuzz a healthy value of {argument.name}, which {name} takes")
    return known


def kind_of(name: str, argument: str) -> str:
    if argument == "scale" and name in ("VAE", "wrap"):
        return "choice"
    if name == "compare":
        return "object"
    if name == "measure" and argument == "r":
        return "number"
    if argument == "r" and name.startswith("algorithm_"):
        return "number"
    return next(kind for kind, names in KINDS.items() if argument in names)


# -- what goes wrong ---------------------------------------------------------------------------------------------------


class Fault(NamedTuple):
    """A fault of an argument: what it makes of a healthy value, and whether that must be refused."""

    make: Callable[[Any], Any]
    refused: bool = True


def _with(index: int, value: float) -> Callable[[Tensor], Tensor]:
    def make(healthy: Tensor) -> Tensor:
        out = healthy.clone()
        out.view(-1)[index] = value
        return out

    return make


def _noncontiguous(value: Tensor) -> Tensor:
    return torch.stack([value, value], -1)[..., 0]


TENSOR = {
    "None": Fault(lambda v: None),
    "list": Fault(lambda v: v.tolist()),
    "ndarray": Fault(lambda v: v.double().numpy()),
    "text": Fault(lambda v: "pixels"),
    "number": Fault(lambda v: 0.5),
    "int64": Fault(lambda v: v.long()),
    "uint8": Fault(lambda v: (255 * v).to(torch.uint8)),
    "bool": Fault(lambda v: v > 0.5),
    "complex": Fault(lambda v: v.to(torch.complex64)),
    "meta": Fault(lambda v: v.to("meta")),
    "sparse": Fault(lambda v: v.float().to_sparse()),
    "no dimension": Fault(lambda v: v.flatten()[0]),
    "one dimension": Fault(lambda v: v.flatten()),
    "more dimensions": Fault(lambda v: v[None, None]),
    "no rows": Fault(lambda v: v[..., :0, :]),
    "no columns": Fault(lambda v: v[..., :0]),
    "wider": Fault(lambda v: torch.cat([v, v], -1)),
    "narrower": Fault(lambda v: v[..., :-1]),
    "more rows": Fault(lambda v: torch.cat([v] * 3, -2), refused=False),
    "NaN": Fault(_with(0, math.nan)),
    "infinite": Fault(_with(-1, math.inf)),
    "-infinite": Fault(_with(-1, -math.inf)),
    "all NaN": Fault(lambda v: v * math.nan),
    "huge": Fault(lambda v: v * 0 + torch.finfo(v.dtype).max, refused=False),
    "large": Fault(lambda v: v * 1e4, refused=False),
    "tiny": Fault(lambda v: v * 0 + torch.finfo(v.dtype).tiny, refused=False),
    "zeros": Fault(lambda v: v * 0, refused=False),
    "negative": Fault(lambda v: -v, refused=False),
    "gradient": Fault(lambda v: v.clone().requires_grad_(True), refused=False),
    "non-contiguous": Fault(_noncontiguous, refused=False),
    "expanded": Fault(lambda v: v[..., :1, :].expand_as(v), refused=False),
    "other type": Fault(lambda v: v.to(torch.float32 if v.dtype != torch.float32 else torch.float64), refused=False),
    "half": Fault(lambda v: v.to(torch.float16), refused=False),
    "parameter": Fault(lambda v: nn.Parameter(v.clone()), refused=False),
}
NO_NUMBER = {
    "None": Fault(lambda v: None),
    "text": Fault(lambda v: "0.5"),
    "NaN": Fault(lambda v: math.nan),
    "infinite": Fault(lambda v: math.inf),
    "-infinite": Fault(lambda v: -math.inf),
    "negative": Fault(lambda v: -0.5),
    "complex": Fault(lambda v: 0.5j),
    "list of text": Fault(lambda v: ["a", "b"]),
    "dict": Fault(lambda v: {"value": 0.5}),
    "object": Fault(lambda v: object()),
    "NaN tensor": Fault(lambda v: torch.tensor(math.nan)),
    "complex tensor": Fault(lambda v: torch.tensor([0.5j, 0.5j])),
    "meta tensor": Fault(lambda v: torch.zeros((), device="meta")),
    "wrong shape": Fault(lambda v: torch.ones(POINTS + 5)),
    "matrix": Fault(lambda v: torch.ones(POINTS, POINTS)),
    "no elements": Fault(lambda v: torch.ones(0)),
    "generator": Fault(lambda v: (0.5 for _ in range(2))),
}
NUMBERS = NO_NUMBER | {
    "zero": Fault(lambda v: 0, refused=False),
    "tiny": Fault(lambda v: 1e-300, refused=False),
    "small": Fault(lambda v: 1e-12, refused=False),
    "large": Fault(lambda v: 1e4, refused=False),
    "huge": Fault(lambda v: 1e300, refused=False),
    "True": Fault(lambda v: True, refused=False),
    "ndarray": Fault(lambda v: np.full(POINTS, 0.5), refused=False),
    "list": Fault(lambda v: [0.5] * POINTS, refused=False),
    "float16 tensor": Fault(lambda v: torch.full((POINTS,), 0.5, dtype=torch.float16), refused=False),
    "gradient": Fault(lambda v: torch.full((POINTS,), 0.5, requires_grad=True), refused=False),
    "int tensor": Fault(lambda v: torch.ones(POINTS, dtype=torch.int64), refused=False),
    "fraction": Fault(lambda v: np.float32(0.5), refused=False),
}
NUMBER = NO_NUMBER | {
    "zero": Fault(lambda v: 0, refused=False),
    "tiny": Fault(lambda v: 1e-300, refused=False),
    "small": Fault(lambda v: 1e-9, refused=False),
    "large": Fault(lambda v: 1e9, refused=False),
    "huge": Fault(lambda v: 1e300, refused=False),
    "almost 1": Fault(lambda v: 1 - 1e-16, refused=False),
    "integer text": Fault(lambda v: "1"),
    "True": Fault(lambda v: True, refused=False),
    "scalar tensor": Fault(lambda v: torch.tensor(float(v)), refused=False),
    "numpy scalar": Fault(lambda v: np.float64(v), refused=False),
}
LIST = {
    "None": Fault(lambda v: None),
    "number": Fault(lambda v: 0.5),
    "text": Fault(lambda v: "12"),
    "scalar tensor": Fault(lambda v: torch.tensor(0.5)),
    "NaN": Fault(lambda v: [0.1, math.nan]),
    "infinite": Fault(lambda v: [0.1, math.inf]),
    "negative": Fault(lambda v: [-0.1, 0.2]),
    "texts": Fault(lambda v: ["a", "b"]),
    "Nones": Fault(lambda v: [None, None]),
    "dict": Fault(lambda v: {"a": 1}),
    "object": Fault(lambda v: object()),
    "empty": Fault(lambda v: [], refused=False),
    "generator": Fault(lambda v: (0.1 * k for k in range(1, 3)), refused=False),
    "ndarray": Fault(lambda v: np.array([0.1, 0.2]), refused=False),
    "tensor": Fault(lambda v: torch.tensor([0.1, 0.2]), refused=False),
    "matrix": Fault(lambda v: torch.ones(3, POINTS + 4)),
    "tuple": Fault(lambda v: (0.1, 0.2), refused=False),
    "falling": Fault(lambda v: [0.2, 0.1], refused=False),
    "huge": Fault(lambda v: [0.1, 1e300], refused=False),
}
COUNT = {
    "zero": Fault(lambda v: 0, refused=False),
    "negative": Fault(lambda v: -1),
    "fraction": Fault(lambda v: 1.5),
    "float": Fault(lambda v: 8.0, refused=False),
    "text": Fault(lambda v: "8"),
    "None": Fault(lambda v: None, refused=False),
    "True": Fault(lambda v: True),
    "NaN": Fault(lambda v: math.nan),
    "infinite": Fault(lambda v: math.inf),
    "huge": Fault(lambda v: 10**15),
    "list": Fault(lambda v: ["8"]),
    "tensor": Fault(lambda v: torch.tensor([3.5, 4.5])),
    "object": Fault(lambda v: object()),
    "numpy": Fault(lambda v: np.int64(v), refused=False),
    "one": Fault(lambda v: 1, refused=False),
}
SIZES = {
    "None": Fault(lambda v: None),
    "number": Fault(lambda v: 6),
    "text": Fault(lambda v: "six"),
    "empty": Fault(lambda v: ()),
    "zero": Fault(lambda v: (0, 6)),
    "negative": Fault(lambda v: (-1, -6)),
    "fraction": Fault(lambda v: (2.5, 2.4)),
    "NaN": Fault(lambda v: (math.nan,)),
    "wider": Fault(lambda v: (PIXELS + 1,)),
    "folded": Fault(lambda v: (2, 3), refused=False),
    "huge": Fault(lambda v: (10**12,)),
    "object": Fault(lambda v: object()),
    "list": Fault(list, refused=False),
}
PLACE = {
    "None": Fault(lambda v: None),
    "number": Fault(lambda v: 3),
    "object": Fault(lambda v: object()),
    "list": Fault(lambda v: [v]),
    "empty": Fault(lambda v: ""),
    "absent": Fault(lambda v: "no/such:place"),
    "NUL": Fault(lambda v: "a\0b:c"),
    "device": Fault(lambda v: "/dev/null"),
}
FLAG = {
    "text": Fault(lambda v: "no"),
    "number": Fault(lambda v: 2.5),
    "None": Fault(lambda v: None),
    "tensor": Fault(lambda v: torch.tensor([True, False])),
    "numpy": Fault(lambda v: np.bool_(True), refused=False),
    "list": Fault(lambda v: []),
}
CHOICE = {
    "unknown": Fault(lambda v: "nonsense"),
    "empty": Fault(lambda v: ""),
    "None": Fault(lambda v: None, refused=False),
    "number": Fault(lambda v: 3),
    "list": Fault(lambda v: [v]),
    "tensor": Fault(lambda v: torch.ones(2)),
    "upper case": Fault(lambda v: str(v).upper()),
}
SEED = {
    "negative": Fault(lambda v: -1),
    "too large": Fault(lambda v: 2**64),
    "largest": Fault(lambda v: 2**63 - 1, refused=False),
    "fraction": Fault(lambda v: 1.5),
    "text": Fault(lambda v: "1"),
    "None": Fault(lambda v: None),
    "True": Fault(lambda v: True),
    "list": Fault(lambda v: [1]),
    "tensor": Fault(lambda v: torch.tensor([1, 2])),
    "numpy generator": Fault(lambda v: np.random.default_rng(0)),
    "generator": Fault(lambda v: seeded(3), refused=False),
    "numpy": Fault(lambda v: np.int64(3), refused=False),
}
OBJECT = {
    "None": Fault(lambda v: None, refused=False),
    "dict": Fault(lambda v: {"steps": 3}),
    "text": Fault(lambda v: "fast"),
    "number": Fault(lambda v: 3),
    "list": Fault(lambda v: [1, 2]),
    "tensor": Fault(lambda v: torch.ones(2)),
    "other object": Fault(lambda v: types.SimpleNamespace(steps=1)),
}
FAULTS = {
    "tensor": TENSOR, "numbers": NUMBERS, "number": NUMBER, "list": LIST, "count": COUNT, "flag": FLAG,
    "choice": CHOICE, "seed": SEED, "object": OBJECT, "sizes": SIZES, "place": PLACE,
}  # fmt: skip
ACCEPTED = {
    ("None", "delta"), ("None", "starts"), ("None", "further"), ("None", "guess"), ("infinite", "guess"),
    ("wrong shape", "probability"), ("zero", "attacks"), ("no elements", "successes"), ("no elements", "probability"),
    ("matrix", "probability"), ("True", "successes"), ("wider", "distance"), ("narrower", "distance"),
    ("more dimensions", "starts"), ("list", "images"), ("ndarray", "images"), ("uint8", "images"),
    ("more dimensions", "images"), ("wider", "images"), ("narrower", "images"), ("None", "logits"),
}  # fmt: skip
"""Faults that are none for the argument: (fault, argument)."""
OPTIONAL = {("measure", "r"), ("as_rows", "shape"), ("wrap", "outputs"), ("wrap", "scale")}
"""Arguments that may be None in one function, but not in others."""


class Liar(nn.Module):
    """A healthy VAE whose answers are distorted on their way out."""

    def __init__(self, vae: VAE, encode: Callable | None = None, decode: Callable | None = None) -> None:
        super().__init__()
        self.vae, self._encode, self._decode = vae, encode, decode
        self.calls = 0

    def encode(self, x: Tensor) -> Any:
        self.calls += 1
        mu, sigma = self.vae.encode(x)
        return self._encode(self, x, mu, sigma) if self._encode else (mu, sigma)

    def decode(self, z: Tensor) -> Any:
        self.calls += 1
        out = self.vae.decode(z)
        return self._decode(self, z, out) if self._decode else out

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        return self.vae.log_likelihood(x, z)

    def mean_layers(self) -> Any:
        return self.vae.mean_layers()


def other(dtype: torch.dtype) -> torch.dtype:
    return torch.float16 if dtype != torch.float16 else torch.float32


def _raise(error: Exception) -> Any:
    raise error


def _without_gradient(vae: Liar, x: Tensor) -> Tensor:
    with torch.no_grad():
        return vae.vae.encode(x)[0]


HARD_ENCODERS: dict[str, Callable] = {
    "encode returns one tensor": lambda m, x, mu, sigma: mu,
    "encode returns three tensors": lambda m, x, mu, sigma: (mu, sigma, mu),
    "encode returns None": lambda m, x, mu, sigma: None,
    "encode returns a dict": lambda m, x, mu, sigma: {"mu": mu, "sigma": sigma},
    "encode returns arrays": lambda m, x, mu, sigma: (mu.detach().double().numpy(), sigma.detach().double().numpy()),
    "mu is a float": lambda m, x, mu, sigma: (0.5, sigma),
    "mu has one dimension": lambda m, x, mu, sigma: (mu[:, 0], sigma[:, 0]),
    "mu has three dimensions": lambda m, x, mu, sigma: (mu[:, None], sigma[:, None]),
    "mu is flat": lambda m, x, mu, sigma: (mu.flatten(), sigma.flatten()),
    "mu lacks a row": lambda m, x, mu, sigma: (mu[1:], sigma[1:]),
    "mu has one row": lambda m, x, mu, sigma: (mu[:1], sigma[:1]),
    "mu is transposed": lambda m, x, mu, sigma: (mu.T, sigma.T),
    "mu has no columns": lambda m, x, mu, sigma: (mu[:, :0], sigma[:, :0]),
    "mu is NaN": lambda m, x, mu, sigma: (mu * math.nan, sigma),
    "mu is infinite": lambda m, x, mu, sigma: (mu + math.inf, sigma),
    "mu has another type": lambda m, x, mu, sigma: (mu.to(other(mu.dtype)), sigma),
    "mu is an integer": lambda m, x, mu, sigma: (mu.long(), sigma),
    "mu is elsewhere": lambda m, x, mu, sigma: (mu.to("meta"), sigma),
    "mu is random": lambda m, x, mu, sigma: (mu + sigma * torch.randn_like(mu), sigma),
    "mu depends on the batch": lambda m, x, mu, sigma: (mu - mu.mean(0) + 0.1 * len(mu), sigma),
    "mu depends on the call": lambda m, x, mu, sigma: (mu + 0.01 * m.calls, sigma),
    "sigma has one column": lambda m, x, mu, sigma: (mu, sigma[:, :1]),
    "sigma has one row": lambda m, x, mu, sigma: (mu, sigma[0][None] if len(mu) > 1 else sigma[0]),
    "sigma is a scalar": lambda m, x, mu, sigma: (mu, sigma.mean()),
    "sigma is a float": lambda m, x, mu, sigma: (mu, 0.1),
    "sigma is zero": lambda m, x, mu, sigma: (mu, 0 * sigma),
    "sigma is negative": lambda m, x, mu, sigma: (mu, -sigma),
    "sigma is partly zero": lambda m, x, mu, sigma: (mu, sigma * torch.arange(LATENTS).to(sigma)),
    "sigma is a log-variance": lambda m, x, mu, sigma: (mu, 2 * (0.5 * sigma).log()),
    "sigma is NaN": lambda m, x, mu, sigma: (mu, sigma * math.nan),
    "sigma is infinite": lambda m, x, mu, sigma: (mu, sigma + math.inf),
    "sigma has another type": lambda m, x, mu, sigma: (mu, sigma.to(other(mu.dtype))),
    "encode raises RuntimeError": lambda m, x, mu, sigma: _raise(RuntimeError("shapes cannot be multiplied")),
    "encode raises KeyError": lambda m, x, mu, sigma: _raise(KeyError("image")),
}  # fmt: skip
"""Lies of an encoder that every function of model and points must refuse."""
HARD_DECODERS: dict[str, Callable] = {
    "decode returns None": lambda m, z, out: None,
    "decode returns two tensors": lambda m, z, out: (out, out),
    "decode returns an array": lambda m, z, out: out.detach().double().numpy(),
    "decode is wider": lambda m, z, out: torch.cat([out, out], -1),
    "decode is narrower": lambda m, z, out: out[:, :-1],
    "decode has one column": lambda m, z, out: out[:, :1],
    "decode is flat": lambda m, z, out: out.flatten(),
    "decode has three dimensions": lambda m, z, out: out[:, None],
    "decode lacks a row": lambda m, z, out: out[1:],
    "decode has one row": lambda m, z, out: out[:1],
    "decode is NaN": lambda m, z, out: out * math.nan,
    "decode is infinite": lambda m, z, out: out + math.inf,
    "decode has another type": lambda m, z, out: out.to(other(out.dtype)),
    "decode is an integer": lambda m, z, out: (255 * out).long(),
    "decode is elsewhere": lambda m, z, out: out.to("meta"),
    "decode is random": lambda m, z, out: out + 0.1 * torch.randn_like(out),
    "decode depends on the batch": lambda m, z, out: out - out.mean(0) + 0.1 * len(out),
    "decode depends on the call": lambda m, z, out: out + 0.01 * m.calls,
    "decode raises RuntimeError": lambda m, z, out: _raise(RuntimeError("shapes cannot be multiplied")),
    "decode raises IndexError": lambda m, z, out: _raise(IndexError("index 3 is out of bounds")),
}
SOMETIMES: dict[str, Callable] = {
    "decode is sometimes NaN": lambda m, z, out: (
        torch.where((z.sum(1) > z.sum(1).median())[:, None], math.nan, out) if len(z) > 20 else out
    ),
    "decode is sometimes infinite": lambda m, z, out: (
        torch.where(z[:, :1] > z[:, :1].median(), math.inf, out) if len(z) > 20 else out
    ),
}
"""Lies that few rows do not show: only a function that decodes more can tell."""
NO_GRADIENT_ENCODERS: dict[str, Callable] = {
    "encode detaches": lambda m, x, mu, sigma: (mu.detach(), sigma.detach()),
    "encode runs without gradient": lambda m, x, mu, sigma: (_without_gradient(m, x), sigma),
    "encode rounds": lambda m, x, mu, sigma: ((512 * mu).round() / 512, sigma),
}
"""Lies that only functions of the encoder's gradient must refuse."""
NO_GRADIENT_DECODERS: dict[str, Callable] = {
    "decode detaches": lambda m, z, out: out.detach(),
    "decode rounds": lambda m, z, out: (512 * out).round() / 512,
}
NEED_ENCODER_GRADIENT = {
    "attack_margin", "both_sides", "curves", "encoder_gram", "encoder_jacobian", "first_order_radii", "jacobian_norms",
    "latent_attack", "linearised_radii", "maximum_damage", "output_attack", "strongest_attack", "theorem_1",
    "violations",
}  # fmt: skip
NEED_DECODER_GRADIENT = {
    "attack_margin", "both_sides", "curves", "linearised_radii", "maximum_damage", "output_attack",
    "strongest_attack", "proposition_1", "violations", "decoder_jacobian",
}  # fmt: skip
ENCODER_ONLY = {
    "encoder_jacobian", "encoder_gram", "jacobian_norms", "first_order_radii", "latent_attack", "log_likelihood",
    "certify", "mean_layers",
}  # fmt: skip
"""Functions that never decode: lies of the decoder do not touch them."""
DECODER_ONLY = {"decoder_jacobian"}


def _in_training(vae: VAE, layer: nn.Module) -> nn.Module:
    model = Liar(vae)
    vae.encoder_mu = nn.Sequential(vae.encoder_mu, layer.to(next(vae.parameters()).dtype))
    return model.train()


NO_MODELS: dict[str, Callable[[VAE], Any]] = {
    "model is None": lambda vae: None,
    "model is a number": lambda vae: 3,
    "model is a class": lambda vae: VAE,
    "model is a function": lambda vae: vae.encode,
    "model is a layer": lambda vae: nn.Linear(PIXELS, LATENTS),
    "model lacks decode": lambda vae: types.SimpleNamespace(encode=vae.encode),
    "model lacks encode": lambda vae: types.SimpleNamespace(decode=vae.decode),
    "model's encode is no function": lambda vae: types.SimpleNamespace(encode=3, decode=4),
    "model has other weights' type": lambda vae: vae.to(
        torch.float64 if next(vae.parameters()).dtype != torch.float64 else torch.float32
    ),
    "model is on the meta device": lambda vae: vae.to("meta"),
    "model is wider": lambda vae: VAE(PIXELS + 1, 4, LATENTS).to(next(vae.parameters()).dtype),
    "dropout is active": lambda vae: _in_training(vae, nn.Dropout(0.5)),
    "batch norm is in training": lambda vae: _in_training(vae, nn.BatchNorm1d(LATENTS)),
    "weights are NaN": lambda vae: vae.apply(lambda m: [p.data.fill_(math.nan) for p in m.parameters(recurse=False)]),
}


class Lie(NamedTuple):
    """A fault of the model: how it is made, and which functions must refuse it."""

    make: Callable[[VAE], Any]
    by: Callable[[str], bool]


def lies() -> dict[str, Lie]:
    """Return all faults of the model by name."""
    out = {name: Lie(make, lambda f: True) for name, make in NO_MODELS.items()}
    for name in ("model lacks decode", "model's encode is no function", "model lacks encode"):
        lacking = "decode" if "lacks decode" in name else "encode"
        only = ENCODER_ONLY if lacking == "decode" else DECODER_ONLY
        out[name] = Lie(NO_MODELS[name], lambda f, only=only: f not in only)
    for name in ("model is wider", "dropout is active", "batch norm is in training"):
        out[name] = Lie(NO_MODELS[name], lambda f: f not in DECODER_ONLY)
    out["model has other weights' type"] = Lie(NO_MODELS["model has other weights' type"], lambda f: f != "measure")
    for table, must in (
        (HARD_ENCODERS, lambda f: f not in DECODER_ONLY),
        (NO_GRADIENT_ENCODERS, lambda f: f in NEED_ENCODER_GRADIENT),
    ):
        for name, lie in table.items():
            out[name] = Lie(lambda vae, lie=lie: Liar(vae, encode=lie).eval(), must)
    unknown_width = ("decode is wider", "decode is narrower", "decode has one column")
    for table, must in (
        ({k: v for k, v in HARD_DECODERS.items() if k not in unknown_width}, lambda f: f not in ENCODER_ONLY),
        ({k: HARD_DECODERS[k] for k in unknown_width}, lambda f: f not in ENCODER_ONLY | DECODER_ONLY),
        (SOMETIMES, lambda f: False),
        (NO_GRADIENT_DECODERS, lambda f: f in NEED_DECODER_GRADIENT),
    ):
        for name, lie in table.items():
            out[name] = Lie(lambda vae, lie=lie: Liar(vae, decode=lie).eval(), must)
    return out


LIES = lies()


# -- cases -------------------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """One call: a function in one type, with one fault of an argument or one lie of the model, or neither."""

    function: str
    dtype: str
    argument: str
    fault: str

    def __str__(self) -> str:
        return f"{self.function}[{self.dtype}] {self.argument}: {self.fault}"


def _faults(name: str, argument: str) -> dict[str, Any]:
    """Return the faults of an argument by name."""
    kind = kind_of(name, argument)
    return LIES if kind == "model" else FAULTS[kind]


@cache
def cases() -> list[Case]:
    """Return all cases, in a random but fixed order."""
    out = []
    for name in functions():
        known = arguments(name)
        typed = {"x", "z", "distance"} & set(known)
        for dtype in DTYPES if typed and name not in SLOW else ["float64"]:
            out.append(Case(name, dtype, "", "healthy"))
            for argument in known:
                table = _faults(name, argument)
                if name in SLOW:
                    table = {fault: one for fault, one in table.items() if isinstance(one, Lie) or one.refused}
                out += [Case(name, dtype, argument, fault) for fault in table]
    random.Random(0).shuffle(out)
    return out


class Verdict(NamedTuple):
    """How a case ended: ``kind`` is "" where it ended as it should."""

    kind: str
    detail: str = ""


def judge(case: Case) -> Verdict:
    """Run one case."""
    dtype = DTYPES[case.dtype]
    values = {argument: healthy(case.function, argument, dtype) for argument in arguments(case.function)}
    refused = False
    if case.argument in ("model", "vae"):
        lie = LIES[case.fault]
        values[case.argument] = lie.make(values[case.argument])
        refused = lie.by(case.function)
    elif case.argument:
        fault = FAULTS[kind_of(case.function, case.argument)][case.fault]
        values[case.argument] = fault.make(values[case.argument])
        refused = fault.refused and (case.fault, case.argument) not in ACCEPTED
        refused = refused and not (case.fault == "None" and (case.function, case.argument) in OPTIONAL)
    call = functions()[case.function]
    try:
        with torch.random.fork_rng(devices=[]), watched(SECONDS), quiet():
            torch.manual_seed(0)
            result = call(**values)
    except Hang:
        return Verdict("hang")
    except (TypeError, ValueError, FileNotFoundError) as error:
        return _judge_error(case, error)
    except Exception as error:
        return Verdict("foreign error", f"{type(error).__name__}: {error}")
    if case.fault == "healthy" or not refused:
        found = not_a_number(result)
        return Verdict("NaN in the result", found) if found else Verdict("")
    return Verdict("silent", f"returned {type(result).__name__}")


def _judge_error(case: Case, error: Exception) -> Verdict:
    """Judge an error by where it was raised and what it names."""
    if case.fault in ("healthy", "gradient", "non-contiguous"):
        return Verdict("healthy input refused", f"{type(error).__name__}: {error}")
    frame = traceback.extract_tb(error.__traceback__)[-1]
    if PACKAGE not in Path(frame.filename).parents or not str(frame.line).startswith(("raise", "return", ")")):
        return Verdict("foreign error", f"{type(error).__name__}: {error}")
    names = {case.argument, "model"} if case.argument in ("model", "vae") else {case.argument}
    if case.function in ("measure", "wrap", "load"):
        names |= {
            "encode",
            "decode",
            "model",
            "images",
            "device",
        }  # a module that needs words to be understood; a file's content
    if case.argument == "radii":
        names |= {"radius"}
    if case.function == "pretrained":
        names |= {"model"}  # there is none with these settings
    if case.argument in ("x", "target", "z", "further", "found", "starts", "layers", "scale"):
        names |= {"model", "x", "target", "layers", "starts", "delta", "further", "r", "scale", "found", "linearised"}
    if not any(re.search(rf"\b{re.escape(name)}\b", str(error)) for name in names):
        return Verdict("names another argument", str(error))
    return Verdict("")


@contextmanager
def watched(seconds: float) -> Iterator[None]:
    """Raise :class:`Hang` in a call that takes too long."""

    def stop(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def quiet() -> Iterator[None]:
    """Hide warnings and what other libraries write to the standard error."""
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def not_a_number(value: Any, name: str = "result") -> str:
    """Return where a result holds NaN, or nothing; a value that its class documents as NaN does not count."""
    if is_dataclass(value) and not isinstance(value, type):
        skipped = {"value"} if getattr(value, "ended", True) is False else set()
        names = [field.name for field in fields(value) if field.name not in skipped]
        return next(filter(None, (not_a_number(getattr(value, one), one) for one in names)), "")
    if isinstance(value, list | tuple):
        return next(filter(None, (not_a_number(one, name) for one in value)), "")
    if isinstance(value, Tensor | np.ndarray | float) and np.ndim(value) >= 0:
        wrong = (
            torch.isnan(value).any() if isinstance(value, Tensor) else np.isnan(np.asarray(value, dtype=float)).any()
        )
        return name if wrong else ""
    return ""


def main() -> None:
    """Run cases and print what fails, by kind."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=10_000, help="number of cases")
    parser.add_argument("--only", default="", help="regular expression that a case must match")
    parser.add_argument("--shown", type=int, default=40, help="number of failures that are shown")
    options = parser.parse_args()
    torch.set_num_threads(1)
    chosen = [case for case in cases() if re.search(options.only, str(case))][: options.cases]
    began, found = time.monotonic(), []
    for case in chosen:
        verdict = judge(case)
        if verdict.kind:
            found.append((case, verdict))
            if len(found) <= options.shown:
                print(f"{verdict.kind}: {case} -> {verdict.detail[:200]!r}", flush=True)
    of_model = sum(case.argument in ("model", "vae") for case in chosen)
    wrong = sum(case.argument in ("model", "vae") for case, _ in found)
    print(f"{len(chosen)} of {len(cases())} cases in {time.monotonic() - began:.0f} s; {len(found)} failed")
    print(f"faults of the model: {wrong} of {of_model}; of arguments: {len(found) - wrong} of {len(chosen) - of_model}")
    for kind, number in collections.Counter(verdict.kind for _, verdict in found).most_common():
        print(f"  {number:5d}  {kind}")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
