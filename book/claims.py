"""Accept the verdicts of the last build at full scale; the command behind ``make claims``.

It copies ``_build/claims.json`` to ``book/claims.json``, the committed record with which the tests compare every later
build, and writes the summary into the README. It refuses a ledger that was made with changed parameters or by rules
other than those of ``book/claims.yml``. How a ledger comes about is in ``ledger.py``.
"""

from __future__ import annotations

import json
import re
import sys

from checkout import ROOT
from ledger import Ledger, as_json
from registry import FIELDS, Claim, LedgerError, load_registry
from wording import describe, in_short, summary

COMMITTED = ROOT / "book/claims.json"
README = ROOT / "README.md"
BLOCK = re.compile(r"(<!-- claims -->\n).*?(<!-- /claims -->)", re.DOTALL)
"""The part of the README that this command writes."""


def main() -> int:
    """Accept the last build at full scale; return the exit status."""
    from vaerobust.zoo.files import write_atomically

    built = ROOT / "_build/claims.json"
    if not built.exists():
        print("no _build/claims.json: run make book first", file=sys.stderr)
        return 1
    ledger = json.loads(built.read_bytes())
    before = json.loads(COMMITTED.read_bytes()) if COMMITTED.exists() else {"claims": []}
    problems = differing_rules(ledger, load_registry())
    problems += [f"{name} ran with changed parameters" for name in ledger["changed"]]
    if problems:
        print("not accepted: run make book first", *problems, sep="\n- ", file=sys.stderr)
        return 1
    text = README.read_text()
    write_atomically(COMMITTED, as_json(ledger))
    write_atomically(README, with_summary(text, ledger).encode())
    for difference in differences(before, ledger) if before["claims"] else []:
        print(difference)
    print(f"accepted {describe(ledger)}: book/claims.json and the summary in README.md")
    return 0


def with_summary(readme: str, ledger: Ledger) -> str:
    """Return the README with the summary of a ledger between its markers.

    Raises
    ------
    LedgerError
        If the README has no such markers.
    """
    if not BLOCK.search(readme):
        raise LedgerError(["README.md lacks the markers <!-- claims --> and <!-- /claims -->"])
    return BLOCK.sub(lambda match: f"{match[1]}\n{summary(ledger)}\n{match[2]}", readme)


def differing_rules(ledger: Ledger, registry: list[Claim]) -> list[str]:
    """Return one line for each rule of a ledger that is not that of the registry."""
    judged = {claim["name"]: claim for claim in ledger["claims"]}
    rules = {rule["name"]: rule for rule in registry}
    found = [f"{name} is no longer in book/claims.yml" for name in judged if name not in rules]
    for name, rule in rules.items():
        fields = sorted(FIELDS | {"partly"})
        entry = judged.get(name, {})
        if name not in judged:
            found.append(f"{name} was never judged")
        elif changed := [field for field in fields if entry.get(field) != rule.get(field)]:
            found.append(f"{name} was judged by another text of: {', '.join(changed)}")
    if not found and list(judged) != list(rules):
        found.append("the claims were in another order")
    return found


def differences(before: Ledger, after: Ledger) -> list[str]:
    """Return one line for each claim whose verdict differs between two ledgers, as a whole or in a part."""
    old, new = ({claim["name"]: claim for claim in ledger["claims"]} for ledger in (before, after))
    found = [f"{name}: only in the ledger before" for name in old if name not in new]
    for name, claim in new.items():
        if name not in old:
            found.append(f"{name}: only in the ledger after")
        elif verdicts(old[name]) != verdicts(claim):
            found.append(f"{name}: was {in_short(old[name])}; is {in_short(claim)}")
    return found


def verdicts(claim: Claim) -> dict[str, str]:
    """Return the verdicts on a claim: on the whole, under the empty name, and on each part."""
    return {f"part {part['part']}": part["verdict"] for part in claim["parts"]} | {"": claim["verdict"]}


if __name__ == "__main__":
    raise SystemExit(main())
