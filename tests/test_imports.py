"""What ``import vaerobust`` offers, and what it leaves alone: plots, tables and notebooks load where they are used."""

from __future__ import annotations

import subprocess
import sys

import pytest
from conftest import ROOT

import vaerobust

HEAVY = ("seaborn", "IPython", "torchvision", "myst_nb", "pandas", "matplotlib", "sphinx", "jinja2")
"""Packages that measuring a model does not need."""


def printed(code: str) -> str:
    """Run code in a new Python and return what it printed."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_the_package_loads_nothing_heavy():
    code = f"import sys, vaerobust; print([name for name in {HEAVY} if name in sys.modules])"
    assert printed(code) == "[]"


def test_measuring_loads_nothing_heavy():
    """A bound, an attack and a certificate of a small VAE; tables load what they need when they are asked for."""
    code = f"""
import sys, torch, vaerobust
vae, x = vaerobust.VAE(6, 8, 2), torch.rand(1, 6)
r = vaerobust.minimum_r(vae, x, level=0.9).value
bound = vaerobust.theorem_1(vae, x, r, seed=1)
vaerobust.maximum_damage(vae, x, 0.1, vaerobust.AttackSettings(steps=1))
vaerobust.certified_margin(vae, x, r, samples=1000, seed=1)
bound.to_json()
print([name for name in {HEAVY} if name in sys.modules])
bound.to_frame()
print("pandas" in sys.modules)
"""
    assert printed(code).splitlines() == ["[]", "True"]


@pytest.mark.parametrize("name", vaerobust.__all__)
def test_every_name_that_is_offered_is_documented_and_there(name):
    assert (getattr(vaerobust, name).__doc__ or "").strip()


def test_the_names_are_sorted_and_few():
    """A dozen or so, so that a newcomer can read them all; capitals first, as the linter sorts them."""
    assert len(set(vaerobust.__all__)) == len(vaerobust.__all__) <= 16
    assert vaerobust.__version__
