"""The command ``vaerobust measure``, in a process of its own as people run it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from conftest import ROOT
from test_measuring import images, model

import vaerobust
from vaerobust.commands import main

MODELS = f"""
import sys
sys.path[:0] = [{str(ROOT / "tests")!r}]
from test_measuring import model as build

ready = build()

def other():
    return build(7)

def failing():
    raise KeyError("weights")

number = 3
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with models and images, in which the command is called."""
    (tmp_path / "types.py").write_text(MODELS)  # the name of a standard module, which is not the one that is meant
    np.save(tmp_path / "images.npy", images().numpy())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vaerobust", "measure", *arguments]
    # the file types.py must not shadow the standard module, so the interpreter's own path stays safe
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_the_command_writes_what_the_function_returns(folder):
    done = run(
        folder, "types.py:ready", "images.npy", "--out", "out", "--images", "3", "--samples", "500", "--seed", "2"
    )
    assert done.returncode == 0, done.stderr
    expected = vaerobust.measure(model(), images(3), samples=500, seed=2, progress=False)
    table = pd.read_csv(folder / "out/results.csv")
    pd.testing.assert_frame_equal(table, expected.table, check_dtype=False, rtol=1e-5)
    assert expected.headline in done.stdout
    assert "report: out/report.html" in done.stdout
    assert "left" in done.stderr
    assert json.loads((folder / "out/results.json").read_text())["name"] == "ready"


def test_two_models_are_compared(folder):
    options = ["--out", "out", "--samples", "200", "--r", "1.5", "--confidence", "0.99"]
    done = run(folder, "types.py:ready", "images.npy", *options, "--compare", "types.py:other")
    assert done.returncode == 0, done.stderr
    assert "times that of ready" in done.stdout
    assert "Beside other" in (folder / "out/report.html").read_text()
    names = ["comparison.csv", "comparison.html", "comparison.json", "compared", "parts"]
    assert sorted(path.name for path in (folder / "out").iterdir() if "re" not in path.name) == sorted(
        name for name in names if "re" not in name
    )
    assert (folder / "out/compared/report.html").exists()


FAULTS = {
    "no colon": (["types.py", "images.npy"], 1, "MODULE:NAME must name a model"),
    "no file": (["models.py:ready", "images.npy"], 1, "there is no file models.py"),
    "no module": (["no_such_module:ready", "images.npy"], 1, "cannot be imported: ModuleNotFoundError"),
    "no name": (["types.py:missing", "images.npy"], 1, "types.py has no missing"),
    "a function that fails": (["types.py:failing", "images.npy"], 1, "types.py:failing must return a model"),
    "a number": (["types.py:number", "images.npy"], 1, "encode"),
    "no images": (["types.py:ready", "missing.npy"], 1, "there is no missing.npy"),
    "a wrong level": (["types.py:ready", "images.npy", "--level", "2"], 1, "level must lie strictly between 0 and 1"),
    "a text for a number": (["types.py:ready", "images.npy", "--seed", "x"], 2, "--seed"),
    "no image": (["types.py:ready", "images.npy", "--images", "0"], 2, "--images"),
    "no such device": (["types.py:ready", "images.npy", "--device", "toaster"], 1, "device"),
    "nothing": ([], 2, "MODULE:NAME"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_errors_are_one_line_and_a_status(name, folder):
    arguments, status, words = FAULTS[name]
    done = CliRunner().invoke(main, ["measure", *arguments, "--out", "out"])
    assert done.exit_code == status, done.output
    assert isinstance(done.exception, SystemExit)
    assert words in done.output
    if status == 1:
        (line,) = [line for line in done.output.splitlines() if line.startswith("Error: ")]


def test_parts_of_another_measurement_are_an_error(folder):
    arguments = ["measure", "types.py:ready", "images.npy", "--out", "out", "--samples", "20", "--images", "1"]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    done = CliRunner().invoke(main, [*arguments, "--seed", "1"])
    assert done.exit_code == 1
    assert "choose another folder" in done.output


def test_modules_of_the_folder_can_be_imported(folder):
    (folder / "my_models.py").write_text(MODELS)
    torch.save({"images": images(1)}, folder / "images.pt")
    arguments = ["my_models:other", "images.pt", "--out", "out", "--samples", "20"]
    assert run(folder, *arguments).returncode == 0
