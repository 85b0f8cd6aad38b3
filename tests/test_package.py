"""The package as people install it: a wheel in a clean environment, with its requirements and nothing else.

The environment is new and empty. It gets links to the installed distributions that the wheel requires, directly or in
turn, so nothing is downloaded, and an import of anything else fails there as it would on a user's machine.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import lowest
import pytest
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.version import Version

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CORE = {"numpy", "scipy", "torch", "safetensors", "platformdirs", "tqdm", "pandas", "matplotlib", "jinja2", "click"}
PYTHON_BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
PAGE = "vaerobust.page"
"""What a notebook puts on its page needs the extra ``book``."""
DASK = "vaerobust.cluster.dask_engine"
"""The one module that needs the extra ``cluster``; it is imported only where a cluster is asked for."""


def closure(requirements: list[str]) -> set[str]:
    """Return the names of the installed distributions that the requirements need, directly or in turn."""
    names: set[str] = set()
    waiting = [Requirement(text) for text in requirements]
    while waiting:
        requirement = waiting.pop()
        wanted = any(
            requirement.marker is None or requirement.marker.evaluate({"extra": extra})
            for extra in (requirement.extras or {""})
        )
        # an extra of a requirement may ask for what that requirement alone does not
        key = str(Requirement(f"{requirement.name}[{','.join(sorted(requirement.extras))}]"))
        if not wanted or key in names:
            continue
        try:
            found = distribution(requirement.name)
        except PackageNotFoundError:
            continue
        names.add(key)
        for text in found.requires or []:
            inner = Requirement(text)
            extras = {""} | requirement.extras
            if inner.marker is None or any(inner.marker.evaluate({"extra": extra}) for extra in extras):
                inner.marker = None
                waiting.append(inner)
    return {Requirement(key).name for key in names}


def link(name: str, target: Path) -> None:
    """Link what a distribution installed into another environment's folder of packages."""
    found = distribution(name)
    source = Path(found.locate_file(""))
    for top in {path.parts[0] for path in found.files or []} - {"..", "__pycache__"}:
        if not (target / top).exists():
            (target / top).symlink_to(source / top)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Build the wheel from a copy of the sources, since a build writes beside them."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "vaerobust", folder / "vaerobust", ignore=shutil.ignore_patterns("__pycache__"))
    command = ["pip", "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", folder]
    subprocess.run([sys.executable, "-m", *command, folder], check=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def clean(wheel, tmp_path_factory) -> Path:
    """Install the wheel into an environment that has its requirements and nothing else: the environment's folder."""
    folder = tmp_path_factory.mktemp("clean")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    packages = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)}))
    for name in closure(PROJECT["dependencies"]):
        link(name, packages)
    # without an index, pip fails unless the links meet every requirement
    install = ["pip", "--python", folder / "bin/python", "install", "--quiet", "--no-index", wheel]
    # PYTHONPATH would show pip this checkout as installed already
    outside = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([sys.executable, "-m", *install], check=True, cwd=folder, env=outside)
    return folder


def run(clean: Path, *command: str, **environment: str) -> str:
    """Run a command of the clean environment in it, with no data cache and no other programs: what it printed."""
    environment |= {"PATH": str(clean / "bin"), "HOME": str(clean), "VAEROBUST_DATA": str(clean / "data")}
    environment |= {name: os.environ[name] for name in ("OMP_NUM_THREADS",) if name in os.environ}
    done = subprocess.run(
        [clean / "bin" / command[0], *command[1:]], cwd=clean, env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_ten_distributions_are_required(clean):
    asked = run(
        clean, "python", "-c", "from importlib.metadata import requires; print(*requires('vaerobust'), sep='\\n')"
    )
    needs = [Requirement(text) for text in asked.splitlines()]
    assert {need.name.lower() for need in needs if need.marker is None} == CORE
    assert {str(need.marker) for need in needs} == {
        "None", 'extra == "book"', 'extra == "cluster"', 'extra == "test"',
    }  # fmt: skip


def test_what_the_book_needs_is_not_there(clean):
    absent = ("seaborn", "IPython", "torchvision", "myst_nb", "sphinx", "playwright", "pytest", "yaml")
    code = f"from importlib.util import find_spec; print([name for name in {absent} if find_spec(name)])"
    assert run(clean, "python", "-c", code) == "[]\n"


def test_every_module_but_those_of_page_and_dask_can_be_imported(clean):
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in sorted((ROOT / "vaerobust").rglob("*.py"))
        if path.stem not in {"__init__", "__main__"}
    ]
    assert DASK in names
    core = [name for name in names if not name.startswith(PAGE) and name != DASK]
    assert len(core) < len(names)
    run(clean, "python", "-c", f"import importlib\nfor name in {core}: importlib.import_module(name)")


def test_the_readmes_three_lines_give_the_same_numbers_at_each_run(clean):
    first, _, _ = PYTHON_BLOCKS
    assert "vaerobust.measure(" in first
    printed = run(clean, "python", "-c", first)
    results = {name: (clean / "out" / name).read_bytes() for name in ("results.csv", "results.json", "report.html")}
    assert "theorem_1" in results["results.csv"].decode()
    shutil.rmtree(clean / "out")
    assert run(clean, "python", "-c", first) == printed
    assert {name: (clean / "out" / name).read_bytes() for name in results} == results


def test_the_readmes_single_functions_give_the_same_numbers_at_each_run(clean):
    _, _, single = PYTHON_BLOCKS
    assert "certified_margin" in single
    printed = run(clean, "python", "-c", single)
    assert re.search(r"\d\.\d{2}", printed)
    assert run(clean, "python", "-c", single) == printed


def test_the_readmes_wraps_fit_the_modules_that_they_are_for(clean):
    """Each line of the block is run with a module of its own, as the comment above it describes."""
    _, wraps, _ = PYTHON_BLOCKS
    cases = re.findall(r"^# .*\n(model = (?:.*\n)+?)(?=^#|\Z)", wraps, re.MULTILINE)
    modules = """
import torch, vaerobust
from torch import nn
from torch.distributions import Bernoulli, Normal

class Pair(nn.Module):
    shape = (1, 28, 28)
    def __init__(self):
        super().__init__()
        size = self.shape[0] * self.shape[1] * self.shape[2]
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(size, 4))
        self.decoder = nn.Sequential(nn.Linear(2, size), nn.Unflatten(1, self.shape))
    def encode(self, x):
        return self.encoder(x).chunk(2, dim=1)
    def decode(self, z):
        return 5 * self.decoder(z)

class Distributions(Pair):
    def encode(self, x):
        mu, log_variance = super().encode(x)
        return Normal(mu, torch.exp(log_variance / 2))
    def decode(self, z):
        return Bernoulli(logits=super().decode(z))

class Parts(Pair):
    shape = (3, 64, 64)
    encode = decode = None

torch.manual_seed(0)
"""
    assert len(cases) == 3
    for case, name in zip(cases, ("Pair", "Distributions", "Parts"), strict=True):
        use = f"my_module = {name}().eval()\n{case}size = torch.Size(model.shape).numel()\n"
        use += "mu, sigma = model.encode(torch.rand(3, size))\nassert (sigma > 0).all()\n"
        use += "assert model.decode(mu).shape == (3, size)\n"
        run(clean, "python", "-c", modules + use)


def test_data_files_types_and_version_are_inside(clean):
    code = """
import vaerobust
from importlib.metadata import version
from importlib.resources import files
root = files("vaerobust")
assert "clean" in str(root), root
assert vaerobust.__version__ == version("vaerobust")
for folder in ("", "zoo/pretrained", "zoo/samples", "study/stored"):
    print(*sorted(f"{folder}/{path.name}" for path in (root / folder).iterdir() if path.is_file()), sep="\\n")
"""
    inside = set(run(clean, "python", "-c", code).splitlines())
    package = ROOT / "vaerobust"
    tracked = [
        path for name in ("zoo/pretrained", "zoo/samples", "study/stored") for path in (package / name).iterdir()
    ]
    assert {str(path.relative_to(package)) for path in tracked if path.is_file()} | {"/py.typed"} <= inside


def test_the_command_tells_what_it_can_do(clean):
    said = run(clean, "vaerobust", "--help")
    assert "Usage: vaerobust" in said
    assert all(name in said for name in ("measure", "data", "train", "study"))


def test_the_tests_of_the_lower_ends_exist():
    assert [name for name in lowest.TESTS if not (ROOT / f"tests/test_{name}.py").exists()] == []


def test_lower_ends_are_below_what_is_installed():
    """The core's are tested by ``make lowest``; a tool's is a version that the book was built with."""
    requirements = [
        *PROJECT["dependencies"],
        *(text for some in PROJECT["optional-dependencies"].values() for text in some),
    ]
    for requirement in map(Requirement, requirements):
        lower = [part.version for part in requirement.specifier if part.operator in {">=", "=="}]
        assert len(lower) == 1, requirement
        assert Version(lower[0]) <= Version(distribution(requirement.name).version)
    assert {text.split("==")[0].lower() for text in lowest.lower_ends(PROJECT["dependencies"])} == CORE
