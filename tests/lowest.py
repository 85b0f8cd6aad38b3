"""Run the tests of the core with the oldest versions that ``pyproject.toml`` allows: ``make lowest``.

An environment of its own, ``_build/lowest``, gets the package with each of its requirements at the lower end of its
range. What the requirements need in turn, and pytest, may be newer.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "_build/lowest"
TOOLS = ("pytest", "hypothesis", "mpmath")
TESTS = (
    "checks", "batches", "randomness", "results", "model", "linear", "distance", "criterion", "likelihood",
    "algorithms", "random_direction", "jacobians", "bounds", "linearised", "attacks", "margins", "weights",
)  # fmt: skip


def lower_ends(requirements: list[str]) -> list[str]:
    """Return each requirement, ``name>=version``, as ``name==version``."""
    return [re.sub(r"^([\w-]+)>=([\d.]+)$", r"\1==\2", requirement) for requirement in requirements]


def main() -> int:
    """Set up the environment, run the tests in it and return their exit status."""
    needs = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    constraints = FOLDER / "constraints.txt"
    FOLDER.mkdir(parents=True, exist_ok=True)
    constraints.write_text("\n".join(lower_ends(needs)) + "\n")
    print(f"Installing the lower ends into {FOLDER.relative_to(ROOT)}: {', '.join(lower_ends(needs))}", flush=True)
    subprocess.run([sys.executable, "-m", "venv", FOLDER], check=True)
    python = FOLDER / "bin/python"
    pip = [python, "-m", "pip", "install", "--disable-pip-version-check", "--quiet", "--constraint", constraints]
    subprocess.run([*pip, "--editable", ROOT, *TOOLS], check=True)
    tests = [ROOT / f"tests/test_{name}.py" for name in TESTS]
    return subprocess.run([python, "-m", "pytest", "-q", *tests], cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main())
