"""Which notebooks must run again: those whose executed copy is missing, or was made from inputs that have changed.

The metadata of each executed copy have a record ``made_from`` of all that its outputs depend on: the notebook, the
package, the stored summaries if the notebook may read them, the lock file, versions of packages, parameters, and
test images. :func:`out_of_date` compares these records with what is there now. It executes nothing; the tasks that it
returns are for ``execution.py``.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from checkout import LOCK, ROOT, digest, files_under
from parameters import Parameters

if TYPE_CHECKING:
    from nbformat import NotebookNode

# Slow imports (torch, jupytext) are in the functions that need them, so that a build with nothing to do is quick.

SUMMARIES = ROOT / "vaerobust/study/stored"
SUMMARIES_READER = "vaerobust.study"
"""The only subpackage that reads the stored summaries."""
PACKAGES = ("torch", "numpy", "scipy", "matplotlib", "papermill", "vaerobust")
"""Packages on whose versions the outputs depend most."""
Record = dict[str, Any]
"""What is recorded of how an executed copy was made, as JSON."""


@dataclass(frozen=True)
class Task:
    """A notebook to execute.

    Attributes
    ----------
    source, target, failed : Path
        The MyST file, its executed copy, and where the copy of a failed run is kept.
    parameters : dict
        Parameters of the notebook to override.
    record : dict
        How the copy is made. It is kept in the copy's metadata; its entry ``made_from`` decides whether the copy is
        up to date.
    timeout : int
        Seconds that one cell may take.
    """

    source: Path
    target: Path
    failed: Path
    parameters: Parameters
    record: Record
    timeout: int


def out_of_date(sources: dict[str, Path], overrides: dict[str, Parameters], out: Path, timeout: int) -> list[Task]:
    """Return a task for each notebook that must run again, and print for each notebook whether and why.

    Copies of notebooks that no longer exist, and what failed runs left, are removed.

    Parameters
    ----------
    sources : dict of Path
        The notebooks by name.
    overrides : dict
        Parameters to override, by notebook.
    out : Path
        Output folder of the build.
    timeout : int
        Seconds that one cell may take.
    """
    executed = out / "executed/notebooks"
    for copy in executed.glob("*.ipynb"):
        if copy.stem not in sources:
            copy.unlink()
    common = common_inputs()
    tasks = []
    for name, source in sources.items():
        parameters = overrides.get(name, {})
        made_from = inputs(source, parameters, common)
        target, failed = executed / f"{name}.ipynb", out / "failed" / f"{name}.ipynb"
        failed.unlink(missing_ok=True)
        before = recorded(target).get("made_from", {})
        if changed := [what for what in made_from if made_from[what] != before.get(what)]:
            print(f"{name}: " + (f"to run again, changed: {', '.join(changed)}" if before else "to run"))
            tasks.append(Task(source, target, failed, parameters, {"made_from": made_from}, timeout))
        else:
            print(f"{name}: up to date")
    return tasks


def common_inputs() -> Record:
    """Return digests and versions of what all notebooks depend on, and of the stored summaries."""
    summaries = set(files_under(SUMMARIES))
    return {
        "vaerobust": digest(path for path in files_under(ROOT / "vaerobust") if path not in summaries),
        "summaries": digest(summaries),
        "lock file": digest([LOCK]),
        "packages": package_versions(),
        "data": data_in_use(),
    }


def inputs(source: Path, parameters: Parameters, common: Record) -> Record:
    """Return the record ``made_from`` of a notebook; the build prints its keys to say what has changed."""
    import jupytext

    own = {
        "notebook": hashlib.sha256(source.read_bytes()).hexdigest(),
        "parameters": json.dumps(parameters, sort_keys=True, default=str),
    }
    if not may_read_summaries(jupytext.read(source)):
        own["summaries"] = "not read"
    return common | own


def may_read_summaries(notebook: NotebookNode) -> bool:
    """Tell whether a notebook imports anything from the subpackage that reads the stored summaries."""
    cells = (cell.source for cell in notebook.cells if cell.cell_type == "code")
    names = (name for cell in cells for name in imported(cell))
    return any(f"{name}.".startswith(f"{SUMMARIES_READER}.") for name in names)


def imported(source: str) -> Iterator[str]:
    """Yield the full names that the import statements of a code cell name: ``a.b`` for ``from a import b``."""
    try:
        tree = ast.parse(source)
    except SyntaxError:  # a magic of IPython: what the cell imports is unknown, so count it as reading summaries
        yield SUMMARIES_READER
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def package_versions() -> dict[str, str]:
    """Return the installed versions of :data:`PACKAGES`."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def data_in_use() -> dict[str, Record]:
    """Load the test images of each data set, and return source, number and digest; print the sources.

    This also fills the cache of data sets before several notebooks would do so at the same time.
    """
    from vaerobust.zoo import data

    found: dict[str, Record] = {}
    for name in data.DATASETS:
        images = data.load(name, "test")
        print(f"data: {name}, {len(images):,} test images from {images.source}", flush=True)
        content = images.pixels.numpy().tobytes() + images.labels.numpy().tobytes()
        sha256 = hashlib.sha256(content).hexdigest()
        found[name] = {"source": images.source, "images": len(images), "sha256": sha256}
    return found


def recorded(copy: Path) -> Record:
    """Return the record of how an executed copy was made; empty if there is no readable copy."""
    try:
        record: Record = json.loads(copy.read_bytes())["metadata"]["vaerobust"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return record
