"""The checkout that this file is in: its folder, its commit, digests of its files, and the processors at hand.

What every script of the book needs is here; nothing here knows of notebooks or claims. Importing this module puts the
checkout first on Python's search path, so that ``import vaerobust`` finds its package, installed or not.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements.lock"

sys.path.insert(0, str(ROOT))


def search_path() -> str:
    """Return the value of PYTHONPATH for a child process: this checkout comes first."""
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


def processors() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def files_under(folder: Path) -> Iterator[Path]:
    """Yield the files in a folder and its subfolders, except caches and hidden files, such as half-written ones."""
    return (path for path in folder.rglob("[!.]*") if path.is_file() and "__pycache__" not in path.parts)


def digest(paths: Iterable[Path]) -> str:
    """Return one SHA-256 of the names and contents of files; "missing" stands for the content of a missing file."""
    total = hashlib.sha256()
    for path in sorted(paths):
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "missing"
        total.update(f"{os.path.relpath(path, ROOT)} {content}\n".encode())
    return total.hexdigest()


def commit() -> str | None:
    """Return the short commit, with ``-dirty`` if tracked files differ from it; None where git has no checkout."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    # without the ceiling, git would also find a repository that merely contains this folder
    environment = os.environ | {"GIT_CEILING_DIRECTORIES": str(ROOT.parent)}
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
