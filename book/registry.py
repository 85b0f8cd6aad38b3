"""The registry of claims, ``book/claims.yml``: the rules by which each claim of the paper is judged.

A record of the registry is a dict with the fields :data:`FIELDS`; the head of the file explains them. This module reads
and checks the records. ``ledger.py`` applies the rules to what the notebooks measured.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from checkout import ROOT

REGISTRY = ROOT / "book/claims.yml"

Claim = dict[str, Any]
"""A record of the registry or, in a ledger, the record together with what was measured."""

RANGES = ("reproduced", "partly", "not")
"""Fields that hold a range of the quantity, in the order in which they are tried."""
FIELDS = {"name", "place", "claim", "quantity", "paper", "reproduced", "not", "reason", "notebook", "form"}
"""Fields that every record has; ``partly`` may be left out."""
LEAST = 25
"""The smallest number of claims that a registry of this paper must have."""


class LedgerError(ValueError):
    """Registry and records of the claims do not fit together; the message lists every problem."""

    def __init__(self, problems: Iterable[str]) -> None:
        super().__init__("\n".join(f"- {problem}" for problem in problems))


def load_registry(path: Path = REGISTRY, least: int = LEAST) -> list[Claim]:
    """Read and check the registry.

    Parameters
    ----------
    path : Path
    least : int
        Smallest number of records.

    Raises
    ------
    LedgerError
        If a record lacks a field, has an unknown one or one that is not well formed, if names repeat, or if there are
        too few records.
    """
    import yaml

    try:
        claims = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise LedgerError([f"{path.name} is not valid YAML: {error}"]) from error
    if not isinstance(claims, list) or not all(isinstance(claim, dict) for claim in claims):
        raise LedgerError([f"{path.name} must be a list of records"])
    problems = [f"{path.name} has {len(claims)} claims, but must have at least {least}"] * (len(claims) < least)
    names = [str(claim.get("name")) for claim in claims]
    problems += [f"{name} has more than one record" for name in sorted({n for n in names if names.count(n) > 1})]
    for name, claim in zip(names, claims, strict=True):
        problems += [f"{name}: {problem}" for problem in problems_of(claim)]
    if problems:
        raise LedgerError(problems)
    return claims


def problems_of(claim: Claim) -> Iterator[str]:
    """Yield what is wrong with a record of the registry."""
    if missing := FIELDS - set(claim):
        yield f"lacks {', '.join(sorted(missing))}"
    if unknown := set(claim) - FIELDS - {"partly"}:
        yield f"has unknown fields: {', '.join(map(str, unknown))}"
    for field in (FIELDS - set(RANGES)) & set(claim):
        if not isinstance(claim[field], str) or not claim[field].strip():
            yield f"{field} must be text, but is {claim[field]!r}"
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", str(claim.get("name", "none"))):
        yield "its name must be words in lower case with hyphens"
    for field in set(RANGES) & set(claim):
        if not is_range(claim[field]):
            yield f"{field} must be [low, high], each a number or null, but is {claim[field]!r}"
    try:
        f"{1.0:{claim.get('form', '')}}"
    except (ValueError, TypeError):
        yield f"form must be a format such as .2f, but is {claim['form']!r}"


def is_range(range_: object) -> bool:
    """Tell whether something is a pair of limits, where null stands for no limit."""
    if not isinstance(range_, list) or len(range_) != 2:
        return False
    if not all(end is None or (type(end) in (int, float) and math.isfinite(end)) for end in range_):
        return False
    return None in range_ or range_[0] <= range_[1]
