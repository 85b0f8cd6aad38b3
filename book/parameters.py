"""The parameters of notebooks: their names and values, and files that override some of them.

The parameters of a notebook are what its cells with the tag ``parameters`` assign, at full scale. A file of overrides
is YAML. It maps each notebook to parameters and their values; ``tests/smoke.yml`` is one. Papermill, which puts the new
values into a run, is called in ``execution.py``.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nbformat import NotebookNode

Parameters = dict[str, Any]


def read_overrides(file: Path, sources: dict[str, Path]) -> dict[str, Parameters]:
    """Read and check a file of overrides.

    Parameters
    ----------
    file : Path
    sources : dict of Path
        The notebooks by name.

    Returns
    -------
    dict
        The parameters to override, by notebook.

    Raises
    ------
    SystemExit
        With a message, if the file cannot be read, or if it names a notebook or a parameter that does not exist.
    """
    import jupytext
    import yaml

    try:
        overrides: dict[str, Parameters] = yaml.safe_load(file.read_text()) or {}
    except (OSError, yaml.YAMLError) as error:
        raise SystemExit(f"cannot read {file}: {error}") from error
    if not isinstance(overrides, dict) or not all(isinstance(parameters, dict) for parameters in overrides.values()):
        raise SystemExit(f"{file}: must map notebooks to parameters, and those to values")
    for name, parameters in overrides.items():
        if name not in sources:
            raise SystemExit(f"{file}: no notebook {name!r}; there are: {', '.join(sources)}")
        known = set(parameter_names(jupytext.read(sources[name])))
        if unknown := set(parameters) - known:
            names = ", ".join(sorted(unknown))
            raise SystemExit(f"{file}: {name} has no parameter {names}; it has: {', '.join(sorted(known)) or 'none'}")
    return overrides


def parameter_names(notebook: NotebookNode) -> Iterator[str]:
    """Yield the names of a notebook's parameters."""
    for tree in parameter_cells(notebook):
        for node in tree.body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            yield from (target.id for target in targets if isinstance(target, ast.Name))


def parameter_values(*notebooks: NotebookNode) -> set[float]:
    """Return the absolute values of all numbers among the parameters of some notebooks, those in lists included."""
    nodes = (node for notebook in notebooks for tree in parameter_cells(notebook) for node in ast.walk(tree))
    constants = (node.value for node in nodes if isinstance(node, ast.Constant))
    return {float(value) for value in constants if isinstance(value, int | float)}


def parameter_cells(notebook: NotebookNode) -> Iterator[ast.Module]:
    """Yield the parsed code of the cells with the tag ``parameters``."""
    for cell in notebook.cells:
        if cell.cell_type == "code" and "parameters" in cell.metadata.get("tags", []):
            yield ast.parse(cell.source)
