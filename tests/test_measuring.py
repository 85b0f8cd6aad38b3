"""A model is measured in three lines: the table, what is missing, the files, parts that are resumed, and two models."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, random_vae, uniform
from hypothesis import given
from hypothesis import strategies as some
from scipy import stats
from torch import Tensor, nn
from usual_models import convolutional, held_out, perceptron

import vaerobust
from vaerobust.certify.both_sides import both_sides
from vaerobust.measuring.images import as_rows, load
from vaerobust.measuring.measure import affordable
from vaerobust.measuring.record import COLUMNS, MARGINS, median_interval, shown
from vaerobust.zoo.weights import Trained

PIXELS, SHAPE = 16, (1, 4, 4)
QUICK = {"samples": 2000, "progress": False}
FILES = ("results.csv", "results.json", "report.html")


def images(n: int = 7) -> Tensor:
    return uniform(n, PIXELS, seed=4)


def model(seed: int = 0):
    return random_vae(PIXELS, 12, 3, seed=seed)


@pytest.fixture(scope="module")
def report():
    return vaerobust.measure(model(), images(), name="random", **QUICK)


def test_three_lines_give_a_table_with_a_row_per_image(report):
    assert list(report.table.columns) == list(COLUMNS)
    assert list(report.table["image"]) == list(range(7))
    assert report.missing == {}
    assert not report.table.isna().any(axis=None)
    table = report.table
    assert (table["theorem_1"] <= table["spectral"] + 1e-12).all()
    assert (table["half_space"] <= table["certified"]).all()
    assert (table["certified"] <= table["attack"])[table["attack_confirmed"]].all()
    assert "certified" in str(report).lower()


def test_it_measures_what_both_sides_measures():
    vae, x = model(), images(3)
    expected = both_sides(vae, x, samples=50_000, seed=5).own
    found = vaerobust.measure(vae, x, samples=50_000, seed=5, progress=False).table
    names = {"attack_confirmed": "confirmed", "attack_censored": "censored"}
    for name in (*COLUMNS[1:13], "half_space", "decoder_aware", "whitened", "spectral"):
        value = getattr(expected, names.get(name, name)).double().numpy()
        np.testing.assert_allclose(found[name].to_numpy(float), value, rtol=1e-9, err_msg=name)


def test_one_r_for_all_images():
    found = vaerobust.measure(model(), images(2), r=0.5, **QUICK).table
    assert (found["r"] == 0.5).all()


def test_the_same_call_gives_the_same_numbers_whatever_the_image_is_measured_with(report):
    again = vaerobust.measure(model(), images(), **QUICK)
    pd.testing.assert_frame_equal(again.table, report.table)
    fewer = vaerobust.measure(model(), images(), first=2, **QUICK)
    pd.testing.assert_frame_equal(fewer.table, report.table.iloc[:2], rtol=1e-6)


def test_a_trained_model_and_its_vae_measure_alike():
    trained = Trained(model(), vaerobust.pretrained("mnist", 2.0).manifest)
    found = vaerobust.measure(trained, images(2), **QUICK)
    assert found.run.name == "mnist_beta2_tau0"
    pd.testing.assert_frame_equal(found.table, vaerobust.measure(model(), images(2), **QUICK).table)


def test_shaped_images_fit_a_flat_model(report):
    shaped = images().unflatten(1, SHAPE).numpy()
    found = vaerobust.measure(model(), shaped, **QUICK)
    assert found.images.shape == SHAPE
    pd.testing.assert_frame_equal(found.table, report.table)


def test_the_model_is_left_as_it_was():
    vae = convolutional(pooling=True)
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    wrapped = vaerobust.wrap(vae, shape=(1, 28, 28), scale="log_variance", logits=True)
    vaerobust.measure(wrapped, held_out(1), samples=200, progress=False)
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())


def test_the_draws_fall_with_the_cost_of_the_decoder():
    """A product of n x n matrices takes 2 n^3 operations, and one of a row and an n x n matrix 2 n^2."""
    vae, x = model(), images(1)
    assert affordable(vae, x) == 50_000
    wide = torch.zeros(3, 5000).double(), torch.zeros(5000, 5000).double(), torch.zeros(5000, PIXELS).double()
    vae.decode = lambda z: z @ wide[0] @ wide[1][:, :4000] @ wide[2][:4000]
    assert affordable(vae, x) == 6000
    vae.decode = lambda z: z @ wide[0] @ wide[1] @ wide[1] @ wide[1] @ wide[2]
    assert affordable(vae, x) == 2000


class Pooled(nn.Module):
    """An encoder with max pooling, of which no certificate is known."""

    def __init__(self) -> None:
        super().__init__()
        self.vae, self.pool = random_vae(4, 8, 2), nn.MaxPool2d(2)
        self.up = nn.Upsample(scale_factor=2)

    def encode(self, x: Tensor):
        return self.vae.encode(self.pool(x.view(-1, *SHAPE)).flatten(1))

    def decode(self, z: Tensor) -> Tensor:
        return self.up(self.vae.decode(z).view(-1, 1, 2, 2)).flatten(1)


def test_what_cannot_be_certified_is_named_and_all_else_is_measured(tmp_path):
    found = vaerobust.measure(Pooled(), images(6), **QUICK)
    assert set(found.missing) == {"certified", "half_space"}
    assert np.isinf(found.curve.certified).all()
    assert (found.curve.broken > 0).all() and (np.diff(found.curve.broken, axis=0) >= 0).all()
    assert "pool" in found.missing["certified"]
    assert found.table[["certified", "half_space"]].isna().all(axis=None)
    rest = [name for name in COLUMNS if name not in ("certified", "half_space")]
    assert not found.table[rest].isna().any(axis=None)
    page = found.save(tmp_path).read_text()
    assert "Nothing could be certified" in page
    assert "It is at least what an attack reaches" in page
    assert "pool" in page


def test_the_limit_of_p_is_the_same_without_a_certificate():
    vae, x = model(), images(2)
    with_one = vaerobust.measure(vae, x, **QUICK).table["p_low"]
    found = vaerobust.measure(Sorted(model()), x, **QUICK)
    assert "certified" in found.missing
    assert (found.table["p_low"] - with_one).abs().max() < 0.05


class Sorted:
    """A model whose encoder sorts, which changes next to nothing but cannot be traced into layers."""

    def __init__(self, vae) -> None:
        self.vae = vae

    def encode(self, x: Tensor):
        mu, sigma = self.vae.encode(x)
        return mu + 1e-12 * x.sort(1).values[:, :1], sigma

    def decode(self, z: Tensor) -> Tensor:
        return self.vae.decode(z)


def test_results_are_saved_as_csv_json_and_a_page(report, tmp_path):
    assert report.save(tmp_path / "new") == tmp_path / "new/report.html"
    assert {path.name for path in (tmp_path / "new").iterdir()} == set(FILES)
    table = pd.read_csv(tmp_path / "new/results.csv")
    pd.testing.assert_frame_equal(table, report.table, check_dtype=False, rtol=1e-5)
    content = json.loads((tmp_path / "new/results.json").read_text())
    assert content["images"] == 7
    assert content["confidence"] == 0.999
    chosen = {"level": 0.9, "r": None, "confidence": 0.999, "samples": 2000, "seed": 0, "threads": 1}
    assert content["settings"] == chosen
    assert len(content["weights_sha256"]) == len(content["images_sha256"]) == 64
    assert {"python", "torch", "vaerobust"} <= set(content["versions"])
    assert len(content["table"]) == 7
    assert content["medians"]["attack"]["value"] == pytest.approx(report.table["attack"].median(), rel=1e-5)


def test_the_headline_says_the_answer(report):
    table = report.table
    words = f"shorter than {shown(table['certified'].median())} (median)"
    assert words in report.headline
    assert f"norm {shown(table['attack'].median())} (median) breaks it" in report.headline
    assert "99.9 %" in report.headline


def test_weights_images_and_settings_have_digests_of_their_own():
    run = vaerobust.measure(model(), images(1), samples=20, progress=False).run
    others = {
        "weights_sha256": vaerobust.measure(model(1), images(1), samples=20, progress=False).run,
        "images_sha256": vaerobust.measure(model(), 1 - images(1), samples=20, progress=False).run,
        "settings": vaerobust.measure(model(), images(1), samples=21, progress=False).run,
    }
    for name, other in others.items():
        assert [key for key in run.identity() if run.identity()[key] != other.identity()[key]] == [name]


def test_finished_parts_are_resumed(report, tmp_path, monkeypatch):
    whole = vaerobust.measure(model(), images(), out=tmp_path, **QUICK)
    pd.testing.assert_frame_equal(whole.table, report.table)
    parts = sorted(path.name for path in (tmp_path / "parts").glob("*.safetensors"))
    assert parts == ["000000.safetensors", "000005.safetensors", "curve.safetensors"]
    (tmp_path / "parts/000000.safetensors").write_bytes(b"damaged")
    (tmp_path / "parts/curve.safetensors").unlink()
    done = []
    from vaerobust.measuring import measure as room

    monkeypatch.setattr(room, "measured_part", lambda *given, f=room.measured_part: (done.append(1), f(*given))[1])
    again = vaerobust.measure(model(), images(), out=tmp_path, **QUICK)
    assert len(done) == 1
    pd.testing.assert_frame_equal(again.table, report.table)


@pytest.mark.parametrize(
    ("change", "word"),
    [({"seed": 1}, "settings"), ({"model": model(2)}, "weights_sha256"), ({"images": 1 - images()}, "images_sha256")],
)
def test_parts_of_another_measurement_are_refused(change, word, tmp_path):
    vaerobust.measure(model(), images(1), out=tmp_path, samples=20, progress=False)
    given = {"model": model(), "images": images(1), "out": tmp_path, "samples": 20, "progress": False} | change
    with pytest.raises(ValueError, match=rf"out must be empty or hold parts of this measurement, .* other .*{word}"):
        vaerobust.measure(**given)


def test_a_damaged_record_is_an_error(tmp_path):
    vaerobust.measure(model(), images(1), out=tmp_path, samples=20, progress=False)
    (tmp_path / "parts/run.json").write_text("{")
    with pytest.raises(ValueError, match=r"run\.json is corrupt"):
        vaerobust.measure(model(), images(1), out=tmp_path, samples=20, progress=False)


SCRIPT = """
import sys, torch
sys.path[:0] = [{tests!r}]
torch.set_num_threads(1)
from test_measuring import images, model
import vaerobust
for out in sys.argv[1:]:
    vaerobust.measure(model(), images(7), samples=500, out=out, progress=False).save(out)
"""


def test_a_measurement_that_was_killed_goes_on_and_writes_the_same_bytes(tmp_path):
    """SIGKILL after the first part; then the same call again."""
    command = [sys.executable, "-c", SCRIPT.format(tests=str(ROOT / "tests")), str(tmp_path / "killed")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment)
    first = tmp_path / "killed/parts/000000.safetensors"
    patience = time.monotonic() + 300
    while not first.exists():
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < patience
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed/results.csv").exists()
    kept = first.stat().st_mtime_ns
    subprocess.run([*command, str(tmp_path / "whole")], env=environment, check=True)
    assert first.stat().st_mtime_ns == kept
    for name in FILES:
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


FAULTS = {
    "no model": ({"model": 3}, (TypeError, ValueError), "encode"),
    "images of another size": ({"images": uniform(3, 5)}, ValueError, "encode"),
    "no images": ({"images": torch.empty(0, PIXELS)}, ValueError, "images must have shape"),
    "one image without a batch": ({"images": torch.rand(PIXELS)}, ValueError, "images must have shape"),
    "texts": ({"images": ["a", "b"]}, TypeError, "images must be a tensor"),
    "NaN": ({"images": torch.full((2, PIXELS), torch.nan)}, ValueError, "images must be finite"),
    "bytes as floats": ({"images": 255 * images()}, ValueError, "divide them by 255"),
    "signed pixels": ({"images": 2 * images() - 1}, ValueError, r"normalise=\(0.5, 0.5\)"),
    "standardised pixels": ({"images": 4 * images() - 2}, ValueError, "before they are normalised"),
    "whole numbers": ({"images": torch.ones(2, PIXELS, dtype=torch.int64)}, TypeError, "images must be floating"),
    "level": ({"level": 1.0}, ValueError, "level must lie strictly between 0 and 1"),
    "confidence": ({"confidence": 2.0}, ValueError, "confidence must lie"),
    "r": ({"r": -1.0}, ValueError, "r must be a finite number >= 0"),
    "samples": ({"samples": 0}, ValueError, "samples must be a whole number"),
    "seed": ({"seed": 1.5}, TypeError, "seed must be a whole number"),
    "first": ({"first": 0}, ValueError, "first must be a whole number"),
    "suspicions": ({"suspicions": "maybe"}, ValueError, "suspicions must be one of"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_bad_arguments_are_errors_that_name_them(name):
    change, kind, words = FAULTS[name]
    begin = time.monotonic()
    with pytest.raises(kind, match=words):
        vaerobust.measure(**({"model": model(), "images": images()} | change))
    assert time.monotonic() - begin < 20


def test_what_looks_like_a_mistake_is_an_error_or_stands_on_the_page(tmp_path):
    vae = perceptron()

    class Variance(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = vae

        def encode(self, x: Tensor):
            mu, log_variance = self.inner.encode(x)
            return mu, log_variance.exp()

        def decode(self, z: Tensor) -> Tensor:
            return self.inner.decode(z)

    with pytest.raises(ValueError, match="sigma looks like a variance"):
        vaerobust.measure(Variance(), held_out(1))
    with pytest.warns(UserWarning, match="sigma looks like a variance"):
        found = vaerobust.measure(Variance(), held_out(1), suspicions="warn", samples=200, progress=False)
    assert "This looks like a mistake" in found.save(tmp_path).read_text()


# images


def test_images_are_read_from_every_format(tmp_path):
    from PIL import Image

    grey = np.random.default_rng(0).integers(0, 256, (3, 4, 5), dtype=np.uint8)
    np.save(tmp_path / "a.npy", grey)
    np.savez(tmp_path / "a.npz", labels=np.zeros(3), images=grey)
    torch.save(torch.from_numpy(grey), tmp_path / "a.pt")
    (tmp_path / "pngs").mkdir()
    for i, one in enumerate(grey):
        Image.fromarray(one).save(tmp_path / f"pngs/{i}.png")
    rows = [as_rows(load(tmp_path / name)) for name in ("a.npy", "a.npz", "a.pt", "pngs")]
    for one in rows:
        assert torch.equal(one.pixels, torch.from_numpy(grey).flatten(1).float() / 255)
    assert rows[-1].shape == (1, 4, 5)


def test_coloured_pngs_have_the_channels_first(tmp_path):
    from PIL import Image

    colours = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    Image.fromarray(colours).save(tmp_path / "a.png")
    assert torch.equal(load(tmp_path), torch.from_numpy(colours).permute(2, 0, 1)[None])


def write_png_of_another_size(folder: Path) -> None:
    from PIL import Image

    for i in (4, 5):
        Image.fromarray(np.zeros((i, i), dtype=np.uint8)).save(folder / f"{i}.png")


BROKEN = {
    "x.npy": (lambda path: path.write_bytes(b"no array"), "cannot be read"),
    "empty.npy": (lambda path: path.write_bytes(b""), "cannot be read"),
    "objects.npy": (lambda path: np.save(path, np.array([{}]), allow_pickle=True), "cannot be read"),
    "texts.npy": (lambda path: np.save(path, np.array(["a"])), "must be an array or a tensor of numbers"),
    "x.npz": (lambda path: path.write_bytes(b"PK no zip"), "cannot be read"),
    "two.npz": (lambda path: np.savez(path, a=np.zeros(3), b=np.zeros(3)), "be named images, but it has: a, b"),
    "x.pt": (lambda path: path.write_bytes(b"no tensor"), "cannot be read"),
    "model.pt": (lambda path: torch.save(nn.Linear(2, 2), path), "cannot be read"),
    "list.pt": (lambda path: torch.save([1, 2], path), "holds list"),
    "x.jpg": (lambda path: path.write_bytes(b""), r"a folder of PNGs or a file \.npy"),
    "nothing": (lambda path: path.mkdir(), "holds none"),
    "sizes": (lambda path: (path.mkdir(), write_png_of_another_size(path)), "must have one size, but 5.png"),
    "text": (lambda path: (path.mkdir(), (path / "a.png").write_text("no picture")), "cannot be read"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_files_that_hold_no_images_are_errors(name, tmp_path):
    write, words = BROKEN[name]
    write(tmp_path / name)
    with pytest.raises(ValueError, match=words):
        load(tmp_path / name)


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no .*missing\.npy"):
        load(tmp_path / "missing.npy")


def test_channels_last_are_refused_with_the_way_out():
    with pytest.raises(ValueError, match=r"model's shape \(3, 8, 9\), but each has \(8, 9, 3\): .*permute"):
        as_rows(torch.rand(2, 8, 9, 3), (3, 8, 9))


# medians and comparisons


@given(some.integers(1, 60), some.floats(0, 1))
def test_the_interval_of_the_median_covers_it(n, place):
    """Order statistics k and n + 1 - k miss the median with probability 2 P(B < k), B binomial: at most 5 %."""
    low, high = median_interval(np.arange(n, dtype=float))
    if math.isinf(low):
        assert 2 * 0.5**n > 0.05
        return
    rank = int(low) + 1
    assert high == n - rank
    assert 2 * stats.binom.cdf(rank - 1, n, 0.5) <= 0.05
    assert 2 * stats.binom.cdf(rank, n, 0.5) > 0.05


def test_numbers_are_shown_as_a_reader_wants_them():
    values = {0.05963: "0.060", 0.1587: "0.16", 2.4375: "2.44", 12.34: "12.3", 0: "0", 0.00001: "1.0e-05", 784: "784"}
    assert {value: shown(value) for value in values} == values
    assert shown(math.inf) == "∞"
    assert shown(math.nan) == "-"


def test_two_models_are_compared_image_by_image(report, tmp_path):
    second = vaerobust.measure(model(7), images(), name="other", **QUICK)
    found = vaerobust.compare(report, second)
    rows = found.table.set_index("name")
    assert list(rows.index) == ["r", *(column.name for column in MARGINS)]
    ratios = np.sort(second.table["attack"] / report.table["attack"])
    assert rows.loc["attack", "ratio"] == pytest.approx(np.median(ratios))
    assert (rows.loc["attack", "low"], rows.loc["attack", "high"]) == pytest.approx((ratios[0], ratios[-1]))
    assert found.save(tmp_path).name == "comparison.html"
    assert json.loads((tmp_path / "comparison.json").read_text())["second"]["name"] == "other"
    assert "times that of random" in found.headline


def test_a_model_beside_itself_shows_no_difference(report):
    found = vaerobust.compare(report, report)
    assert {row.ratio for row in found.rows} == {1.0}
    assert {row.p_value for row in found.rows} == {1.0}
    assert "neither is shown to be more robust" in found.headline


def test_reports_on_other_images_or_settings_are_not_compared(report):
    with pytest.raises(ValueError, match="images of first"):
        vaerobust.compare(report, vaerobust.measure(model(), 1 - images(), **QUICK))
    with pytest.raises(ValueError, match="its seed is 1 in place of 0"):
        vaerobust.compare(report, vaerobust.measure(model(), images(), seed=1, **QUICK))
    with pytest.raises(TypeError, match="second must be a report"):
        vaerobust.compare(report, 3)
