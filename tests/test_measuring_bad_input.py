"""Bad input of the command ``vaerobust measure``: each case ends in an error that says what is wrong."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from vaerobust.measuring.command import measure_model


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """A folder with files of models and images of which all but ok.npy and m.py:vae are broken."""
    folder = tmp_path_factory.mktemp("broken")
    (folder / "m.py").write_text(
        "import vaerobust\nvae = vaerobust.VAE(6, 8, 2)\nthree = 3\ndef none(): return None\n"
        "def boom(): raise KeyError('x')\ndef gone(): raise SystemExit(3)\n"
    )
    (folder / "bad.py").write_text("def (:\n")
    (folder / "file").write_text("")
    np.save(folder / "ok.npy", np.full((2, 6), 0.5, dtype=np.float32))
    np.save(folder / "objects.npy", np.array([{}], dtype=object))
    np.save(folder / "nan.npy", np.full((2, 6), np.nan))
    np.save(folder / "none.npy", np.ones((0, 6)))
    np.savez(folder / "two.npz", a=np.ones((2, 6)), b=np.ones((2, 6)))
    torch.save([1, 2], folder / "numbers.pt")
    torch.save({"a": print}, folder / "code.pt")
    for name, content in (
        ("cut.npy", folder / "ok.npy"),
        ("cut.npz", folder / "two.npz"),
        ("cut.pt", folder / "code.pt"),
    ):
        (folder / name).write_bytes(content.read_bytes()[:90])
    for name in ("empty.npy", "empty.npz", "empty.pt"):
        (folder / name).write_bytes(b"")
    (folder / "junk.pt").write_bytes(b"junk")
    for name in ("nothing", "sizes", "damaged"):
        (folder / name).mkdir()
    for name, size in (("a", (3, 2)), ("b", (2, 2))):
        Image.new("L", size).save(folder / "sizes" / f"{name}.png")
    (folder / "damaged" / "a.png").write_bytes((folder / "sizes" / "a.png").read_bytes()[:40])
    (folder / "corrupt" / "parts").mkdir(parents=True)
    (folder / "corrupt" / "parts" / "run.json").write_text("[]")
    return folder


IMAGES = (
    "objects.npy nan.npy none.npy two.npz numbers.pt code.pt cut.npy cut.npz cut.pt empty.npy empty.npz empty.pt "
    "junk.pt nothing sizes damaged absent.npy m.py"
)
MODELS = "no.module:vae absent.py:vae bad.py:vae m.py:absent m.py:boom m.py:gone m.py:three m.py:none m.py : math:pi"
OPTIONS = (
    "--images=-1", "--images=0", "--r=-1", "--r=nan", "--level=2", "--confidence=1", "--samples=0", "--seed=-1",
    "--device=moon", "--suspicions=no", "--compare=m:x", "--out=file", "--out=file/sub", "--out=corrupt",
)  # fmt: skip


@pytest.mark.parametrize(
    ("model", "images", "option"),
    [("m.py:vae", one, "") for one in IMAGES.split()]
    + [(one, "ok.npy", "") for one in MODELS.split()]
    + [("m.py:vae", "ok.npy", one) for one in OPTIONS],
)
def test_bad_input_of_the_command_is_an_error_without_a_traceback(broken, monkeypatch, model, images, option):
    monkeypatch.chdir(broken)
    monkeypatch.setattr(sys, "path", list(sys.path))
    result = CliRunner().invoke(measure_model, [model, images, "--out=out", *filter(None, [option])])
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code in (1, 2), result.output
    assert "Error: " in result.output
    assert "Traceback" not in result.output
