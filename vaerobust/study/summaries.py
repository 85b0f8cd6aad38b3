"""Summaries on disk: what was measured of a model, as a small JSON file.

Summaries exist for models whose weights do not ship, and for measurements that take too long for a page. Start at
:func:`load`: ``load(Spec("mnist", beta=5.0), CurvesSummary)`` returns what is stored. The kinds of summary are in
:mod:`vaerobust.study.records`; ``vaerobust study`` measures those that are missing
(:mod:`vaerobust.study.measurements`).

The files are named after the model and the kind. The perturbations of a :class:`BothSidesSummary` are in a second file
beside the first, in the safetensors format.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as tensors_as_bytes

from vaerobust.study.records import BothSidesSummary, Summary
from vaerobust.zoo.files import write_atomically
from vaerobust.zoo.protocol import Spec
from vaerobust.zoo.typed_json import from_plain, to_plain

FOLDER = Path(__file__).parent / "stored"
"""The folder of the summaries that ship with the package."""
DIGITS = 5
"""Significant digits to which the numbers in a file are rounded, so that files stay small."""
PARTS = ("own", "fixed")
"""The fields of a :class:`BothSidesSummary` that have perturbations."""

Kind = TypeVar("Kind", bound=Summary)


def load(spec: Spec, kind: type[Kind], *, folder: Path = FOLDER) -> Kind:
    """Load a summary of a model.

    Parameters
    ----------
    spec : Spec
        The model. Fields that are not part of its name, such as ``precision``, may be left out.
    kind : type
        A kind of summary, such as :class:`vaerobust.study.records.ModelSummary`.
    folder : path
        Where the summaries are.

    Returns
    -------
    Summary
        An object of that kind.

    Raises
    ------
    FileNotFoundError
        If there is no such summary.
    ValueError
        If its file is corrupt, lacks a field, has an unknown one, or belongs to another model. The message names the
        file and the field.
    """
    path = path_of(spec, kind, folder=folder)
    text = path.read_text()
    try:
        content = json.loads(text)
        if issubclass(kind, BothSidesSummary):
            add_perturbations(content, perturbations_path(path))
        found = from_plain(kind, content)
        if found.provenance.spec.name != spec.name:
            raise ValueError(f"it is of the model {found.provenance.spec.name}")
    except (ValueError, TypeError) as error:
        raise ValueError(f"summary {path} is corrupt ({type(error).__name__}: {error})") from error
    return found


def save(path: Path, summary: Summary) -> None:
    """Write a summary. Perturbations are written first, to their own file. Each file is written as a whole."""
    content = rounded(to_plain(summary))
    if isinstance(summary, BothSidesSummary):
        deltas = {part: getattr(summary, part).delta.contiguous() for part in PARTS}
        write_atomically(perturbations_path(path), tensors_as_bytes(deltas))
        for part in PARTS:
            del content[part]["delta"]
    write_atomically(path, (json.dumps(content, allow_nan=False) + "\n").encode())


def add_perturbations(content: Any, path: Path) -> None:
    """Put the perturbations from the file of tensors into the content of a summary of both sides.

    Raises
    ------
    ValueError
        If they are missing or corrupt.
    """
    try:
        deltas = load_tensors(path.read_bytes())
        for part in PARTS:
            content[part] = content[part] | {"delta": deltas[part]}
    except (OSError, SafetensorError, KeyError, TypeError) as error:
        raise ValueError(f"{path.name} is missing or corrupt: {error}") from error


def perturbations_path(path: Path) -> Path:
    """Return the file of the perturbations that belong to a summary of both sides."""
    return path.with_suffix(".safetensors")


def path_of(spec: Spec, kind: type[Summary], *, folder: Path = FOLDER) -> Path:
    """Return the file of a summary: NAME.json for a model's main quantities, NAME.KIND.json for any other kind."""
    return folder / ".".join(filter(None, [spec.name, kind.kind, "json"]))


def rounded(value: Any) -> Any:
    """Return plain content with its floats rounded to :data:`DIGITS` significant digits."""
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [rounded(inner) for inner in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
