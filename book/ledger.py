"""The ledger of claims: what the notebooks measured, judged by the rules of the registry.

A cell records a measurement by :func:`vaerobust.page.numbers.claim`; the executed copy of the notebook carries the
record among the cell's outputs. :func:`judge_build` collects these records, gives each its verdict, and writes the
ledger to ``OUT/claims.json``, from which the pages take their lists of claims. How a page words a verdict is in
``wording.py``, and how a ledger becomes the committed record in ``claims.py``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from registry import LEAST, RANGES, REGISTRY, Claim, LedgerError, load_registry

Ledger = dict[str, Any]
"""What ``claims.json`` holds.

- ``claims``: the records of the registry, each with its ``number``, ``parts``, ``verdict`` and ``anchor``;
- ``changed``: parameters that differ from full scale, by notebook; empty at full scale;
- ``data``: number and digest of the test images, by data set.
"""


def judge_build(out: Path, registry: Path = REGISTRY, least: int = LEAST) -> Ledger:
    """Judge what the executed notebooks under ``out`` recorded, and write ``out/claims.json``.

    Parameters
    ----------
    out : Path
        Output folder of a build.
    registry : Path
    least : int
        Smallest number of claims in the registry.

    Raises
    ------
    LedgerError
        If the registry is not well formed, or if records do not fit it: a claim is not recorded, not in the registry,
        recorded twice, or recorded by another notebook. No file is left in this case.
    """
    from vaerobust.zoo.files import write_atomically

    (out / "claims.json").unlink(missing_ok=True)
    copies = {path.stem: json.loads(path.read_bytes()) for path in sorted((out / "executed/notebooks").glob("*.ipynb"))}
    ledger = judge(load_registry(registry, least), copies)
    write_atomically(out / "claims.json", as_json(ledger))
    return ledger


def judge(registry: list[Claim], copies: dict[str, Any]) -> Ledger:
    """Return the ledger that follows from the registry and the executed notebooks; see :func:`judge_build`."""
    recorded = {name: list(records(copy)) for name, copy in copies.items()}
    if problems := list(misfits(registry, recorded)):
        raise LedgerError(problems)
    metadata = {name: copy["metadata"] for name, copy in copies.items()}
    changed = {name: data.get("papermill", {}).get("parameters", {}) for name, data in metadata.items()}
    made_from = [data.get("vaerobust", {}).get("made_from", {}) for data in metadata.values()]
    images = {name: source for made in made_from for name, source in made.get("data", {}).items()}
    return {
        "claims": [judged(number, rule, recorded[rule["notebook"]]) for number, rule in enumerate(registry, 1)],
        "changed": {name: parameters for name, parameters in changed.items() if parameters},
        "data": {name: {key: images[name][key] for key in ("images", "sha256")} for name in sorted(images)},
    }


def judged(number: int, rule: Claim, found: list[Claim]) -> Claim:
    """Return a claim's entry in the ledger.

    Parameters
    ----------
    number : int
        Its place in the registry, from 1.
    rule : dict
        Its record in the registry.
    found : list of dict
        All that its notebook recorded.
    """
    parts = [
        {key: record[key] for key in ("part", "value", "low", "high", "n")}
        | {"verdict": verdict_of_part(rule, record["low"], record["high"])}
        for record in found
        if record["claim"] == rule["name"]
    ]
    verdict = verdict_of_parts([part["verdict"] for part in parts])
    return {"number": number, **rule, "parts": parts, "verdict": verdict, "anchor": anchor(rule["name"])}


def verdict_of_part(rule: Claim, low: float, high: float) -> str:
    """Return the first of the rule's ranges in which the whole interval lies, ends included; else "undecided"."""
    for word in RANGES:
        if word in rule:
            least, most = rule[word]
            if (least is None or least <= low) and (most is None or high <= most):
                return word
    return "undecided"


def verdict_of_parts(verdicts: list[str]) -> str:
    """Return the verdict on a claim from those on its parts.

    If the parts agree, theirs is the verdict. If they do not, it is "partly" where at least one part is reproduced
    or partly reproduced, and "undecided" otherwise.
    """
    if len(set(verdicts)) == 1:
        return verdicts[0]
    return "partly" if {"reproduced", "partly"} & set(verdicts) else "undecided"


def records(notebook: Any) -> Iterator[Claim]:
    """Yield the records of claims in an executed notebook, each with the index of its cell, from 0."""
    from vaerobust.page.numbers import CLAIM

    for index, cell in enumerate(notebook["cells"]):
        for output in cell.get("outputs", []):
            if CLAIM in output.get("data", {}):
                yield {**output["data"][CLAIM], "cell": index}


def misfits(registry: list[Claim], recorded: dict[str, list[Claim]]) -> Iterator[str]:
    """Yield one line for each way in which the records of the notebooks do not fit the registry."""
    home = {rule["name"]: rule["notebook"] for rule in registry}
    missing: dict[str, list[str]] = {}
    for name, notebook in home.items():
        if name not in {record["claim"] for record in recorded.get(notebook, [])}:
            missing.setdefault(notebook, []).append(name)
    for notebook, names in sorted(missing.items()):
        why = "does not record" if notebook in recorded else "is not among the executed notebooks, but should record"
        yield f"{notebook} {why}: {', '.join(names)}"
    for notebook, found in recorded.items():
        seen = set()
        for record in found:
            name, part = record["claim"], record["part"]
            if name not in home:
                yield f"{notebook} records {name}, which is not in the registry"
            elif home[name] != notebook:
                yield f"{notebook} records {name}, which the registry places in {home[name]}"
            elif (name, part) in seen:
                yield f"{notebook} records {name} twice" + (f" for {part}" if part else " without a part")
            seen.add((name, part))


def anchor(name: str) -> str:
    """Return the label of the place in a notebook where a claim was measured."""
    return f"measured-{name}"


def as_json(ledger: Ledger) -> bytes:
    """Return a ledger as a file that can be read and compared line by line."""
    return (json.dumps(ledger, indent=1, ensure_ascii=False) + "\n").encode()
