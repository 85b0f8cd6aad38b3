"""The ledger of claims: what the notebooks recorded, judged by the rules of ``book/claims.yml``.

``book/build.py`` calls :func:`judge_build`, which writes ``OUT/claims.json``; the pages take their lists of claims from
there. Run as a script, this accepts the verdicts and numbers of the last build at full scale: it copies
``_build/claims.json`` to ``book/claims.json``, with which the tests compare every later build, and writes the summary
into the README.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
REGISTRY = ROOT / "book/claims.yml"
COMMITTED = ROOT / "book/claims.json"
README = ROOT / "README.md"
BLOCK = re.compile(r"(<!-- claims -->\n).*?(<!-- /claims -->)", re.DOTALL)

sys.path.insert(0, str(ROOT))  # the package of this checkout, installed or not

Claim = dict[str, Any]
Ledger = dict[str, Any]
"""``claims``: the registry's records, each with ``number``, ``parts`` and ``verdict``; ``changed``: overrides of
parameters by notebook, empty at full scale; ``data``: number and digest of the test images."""

RANGES = ("reproduced", "partly", "not")
WORDS = {
    "reproduced": "✔\xa0reproduced",
    "partly": "◐\xa0partly reproduced",
    "not": "✘\xa0not reproduced",
    "undecided": "○\xa0undecided",
}
"""Verdicts as the page says them: a sign and words, so that colour is never the only sign."""
FIELDS = {"name", "place", "claim", "quantity", "paper", "reproduced", "not", "reason", "notebook", "form"}
LEAST = 25
"""Claims that a ledger of this paper must have at least."""
SPELLED = {"eq": "Eq.", "tc": "TC", "jacobian": "Jacobian"}


class LedgerError(ValueError):
    """The ledger is at odds with its rules or with what was recorded; the message lists everything."""

    def __init__(self, problems: Iterable[str]) -> None:
        super().__init__("\n".join(f"- {problem}" for problem in problems))


# The rules


def load_registry(path: Path = REGISTRY, least: int = LEAST) -> list[Claim]:
    """Read the registry.

    Raises
    ------
    LedgerError
        If a record lacks a field or has one too many, a range is none, names repeat or there are too few records.
    """
    import yaml

    try:
        claims = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise LedgerError([f"{path.name} is no YAML: {error}"]) from error
    if not isinstance(claims, list) or not all(isinstance(claim, dict) for claim in claims):
        raise LedgerError([f"{path.name} must be a list of records"])
    problems = [f"{path.name} has {len(claims)} claims, and should have {least} at least"] * (len(claims) < least)
    names = [str(claim.get("name")) for claim in claims]
    problems += [f"{name} stands there twice" for name in sorted({name for name in names if names.count(name) > 1})]
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
    """Tell whether this is a pair of limits, null for an open one."""
    if not isinstance(range_, list) or len(range_) != 2:
        return False
    if not all(end is None or (type(end) in (int, float) and math.isfinite(end)) for end in range_):
        return False
    return None in range_ or range_[0] <= range_[1]


def verdict_of_part(rule: Claim, low: float, high: float) -> str:
    """Return the first of the rule's ranges that holds the whole interval, ends included; else ``undecided``."""
    for word in RANGES:
        if word in rule:
            least, most = rule[word]
            if (least is None or least <= low) and (most is None or high <= most):
                return word
    return "undecided"


def verdict_of_parts(verdicts: list[str]) -> str:
    """Return the verdict on which the parts agree; if they do not, ``partly`` as long as one is that or better."""
    if len(set(verdicts)) == 1:
        return verdicts[0]
    return "partly" if {"reproduced", "partly"} & set(verdicts) else "undecided"


# What was recorded


def judge_build(out: Path, registry: Path = REGISTRY, least: int = LEAST) -> Ledger:
    """Judge what the executed notebooks under ``out`` recorded, and write ``out/claims.json``.

    Raises
    ------
    LedgerError
        If registry and records do not fit: a claim missing, unknown, recorded twice, or by another notebook.
    """
    from vaerobust.zoo.files import write_atomically

    (out / "claims.json").unlink(missing_ok=True)  # whole and of this build, or absent
    copies = {path.stem: json.loads(path.read_bytes()) for path in sorted((out / "executed/notebooks").glob("*.ipynb"))}
    ledger = judge(load_registry(registry, least), copies)
    write_atomically(out / "claims.json", as_json(ledger))
    return ledger


def judge(registry: list[Claim], copies: dict[str, Any]) -> Ledger:
    """Return the ledger that follows from a registry and executed notebooks; see :func:`judge_build`."""
    recorded = {name: list(records(copy)) for name, copy in copies.items()}
    if problems := list(misfits(registry, recorded)):
        raise LedgerError(problems)
    claims = []
    for number, rule in enumerate(registry, 1):
        parts = [
            {key: record[key] for key in ("part", "value", "low", "high", "n")}
            | {"verdict": verdict_of_part(rule, record["low"], record["high"])}
            for record in recorded[rule["notebook"]]
            if record["claim"] == rule["name"]
        ]
        verdict = verdict_of_parts([part["verdict"] for part in parts])
        claims.append({"number": number, **rule, "parts": parts, "verdict": verdict, "anchor": anchor(rule["name"])})
    metadata = {name: copy["metadata"] for name, copy in copies.items()}
    changed = {name: data.get("papermill", {}).get("parameters", {}) for name, data in metadata.items()}
    made_from = [data.get("vaerobust", {}).get("made_from", {}) for data in metadata.values()]
    images = {name: source for made in made_from for name, source in made.get("data", {}).items()}
    return {
        "claims": claims,
        "changed": {name: parameters for name, parameters in changed.items() if parameters},
        "data": {name: {key: images[name][key] for key in ("images", "sha256")} for name in sorted(images)},
    }


def records(notebook: Any) -> Iterator[Claim]:
    """Yield what an executed notebook recorded by ``vaerobust.page.numbers.claim``, each with its cell's place."""
    from vaerobust.page.numbers import CLAIM

    for place, cell in enumerate(notebook["cells"]):
        for output in cell.get("outputs", []):
            if CLAIM in output.get("data", {}):
                yield {**output["data"][CLAIM], "cell": place}


def misfits(registry: list[Claim], recorded: dict[str, list[Claim]]) -> Iterator[str]:
    """Yield where the records of the notebooks do not fit the registry, one line each."""
    home = {rule["name"]: rule["notebook"] for rule in registry}
    missing: dict[str, list[str]] = {}
    for name, notebook in home.items():
        if name not in {record["claim"] for record in recorded.get(notebook, [])}:
            missing.setdefault(notebook, []).append(name)
    for notebook, names in sorted(missing.items()):
        why = "does not record" if notebook in recorded else "is not among the executed notebooks, to record"
        yield f"{notebook} {why}: {', '.join(names)}"
    for notebook, found in recorded.items():
        seen = set()
        for record in found:
            name, part = record["claim"], record["part"]
            if name not in home:
                yield f"{notebook} records {name}, which is not in the registry"
            elif home[name] != notebook:
                yield f"{notebook} records {name}, which the registry has in {home[name]}"
            elif (name, part) in seen:
                yield f"{notebook} records {name} twice" + (f" for {part}" if part else " without a part")
            seen.add((name, part))


def anchor(name: str) -> str:
    """Return the label of the place in a notebook where a claim was measured."""
    return f"measured-{name}"


def entry(name: str) -> str:
    """Return the label of a claim's entry on the page of claims."""
    return f"claim-{name}"


def as_json(ledger: Ledger) -> bytes:
    """Return a ledger as a file that can be read and compared line by line."""
    return (json.dumps(ledger, indent=1, ensure_ascii=False) + "\n").encode()


# The committed record


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
    """Return the README with the summary of a ledger between its markers."""
    if not BLOCK.search(readme):
        raise LedgerError(["README.md lacks the markers <!-- claims --> and <!-- /claims -->"])
    return BLOCK.sub(lambda match: f"{match[1]}\n{summary(ledger)}\n{match[2]}", readme)


def differing_rules(ledger: Ledger, registry: list[Claim]) -> list[str]:
    """Return where the rules by which a ledger was judged are not those of the registry."""
    judged = {claim["name"]: claim for claim in ledger["claims"]}
    rules = {rule["name"]: rule for rule in registry}
    found = [f"{name} is no longer in book/claims.yml" for name in judged if name not in rules]
    for name, rule in rules.items():
        fields = sorted(FIELDS | {"partly"})
        before = judged.get(name, {})
        if name not in judged:
            found.append(f"{name} was never judged")
        elif changed := [field for field in fields if before.get(field) != rule.get(field)]:
            found.append(f"{name} was judged by another text of: {', '.join(changed)}")
    if not found and list(judged) != list(rules):
        found.append("the claims were in another order")
    return found


def differences(before: Ledger, after: Ledger) -> list[str]:
    """Return, a line each, the claims whose verdicts, as a whole or in a part, differ between two ledgers."""
    old, new = ({claim["name"]: claim for claim in ledger["claims"]} for ledger in (before, after))
    found = [f"{name}: only in the one before" for name in old if name not in new]
    for name, claim in new.items():
        if name not in old:
            found.append(f"{name}: only in the one after")
        elif judged(old[name]) != judged(claim):
            found.append(f"{name}: was {in_short(old[name])}; is {in_short(claim)}")
    return found


def judged(claim: Claim) -> dict[str, str]:
    """Return the verdicts on a claim: on the whole, by the empty name, and on its parts."""
    return {f"part {part['part']}": part["verdict"] for part in claim["parts"]} | {"": claim["verdict"]}


def in_short(claim: Claim) -> str:
    """Return verdict and numbers of a claim in one line."""
    parts = (f"{part['part']} {measured(part, claim['form'])} {part['verdict']}".strip() for part in claim["parts"])
    return f"{claim['verdict'].upper()} ({'; '.join(parts)})"


def describe(ledger: Ledger) -> str:
    """Return the numbers of claims by verdict in one line."""
    claims = ledger["claims"]
    counts = ", ".join(f"{len(by_verdict(claims, word))} {text[2:]}" for word, text in WORDS.items())
    return f"{len(claims)} claims, {counts}"


def by_verdict(claims: list[Claim], verdict: str) -> list[Claim]:
    """Return the claims of one verdict."""
    return [claim for claim in claims if claim["verdict"] == verdict]


# On the page


def summary(ledger: Ledger, *, linked: bool = False) -> str:
    """Return a Markdown table: verdicts, how many claims have them, and which.

    Parameters
    ----------
    linked : bool
        Whether each claim is linked to its entry on the page of claims, by a role that only the book knows.
    """
    rows = ["| Verdict | Claims | Which |", "|:---|---:|:---|"]
    for word, text in WORDS.items():
        claims = by_verdict(ledger["claims"], word)
        named = (f"{{ref}}`{title(c)} <{entry(c['name'])}>`" if linked else title(c) for c in claims)
        rows.append(f"| {text} | {len(claims)} | {'; '.join(named) or '-'} |")
    return "\n".join([*rows, ""])


def counts(ledger: Ledger) -> str:
    """Return how many claims have which verdict, as one line of Markdown that links to the page of claims."""
    found = (f"{text[:2]}**{len(by_verdict(ledger['claims'], word))}** {text[2:]}" for word, text in WORDS.items())
    return f"{{.counts}}\n[{len(ledger['claims'])} claims](claims.md): {', '.join(found)}\n"


def title(claim: Claim) -> str:
    """Return a claim's name in words."""
    words = [SPELLED.get(word, word) for word in claim["name"].split("-")]
    return " ".join([words[0][0].upper() + words[0][1:], *words[1:]])


def warning(ledger: Ledger) -> str:
    """Return a remark in MyST for a build with changed parameters; nothing at full scale."""
    if not ledger["changed"]:
        return ""
    return (
        ":::{warning}\nThis book was built with changed parameters of "
        f"{', '.join(f'`{name}`' for name in ledger['changed'])}. Its verdicts mean nothing.\n:::\n\n"
    )


def entries(ledger: Ledger) -> str:
    """Return the entries of all claims in MyST."""
    return "\n".join(in_full(claim) for claim in ledger["claims"])


def in_full(claim: Claim) -> str:
    """Return the entry of a claim in MyST: a heading, its verdict, and a list of what led to it."""
    form, several = claim["form"], len(claim["parts"]) > 1
    found = []
    for part in claim["parts"]:
        name = f"{escaped(part['part'])}: " if part["part"] else ""
        found.append(f"{name}{measured(part, form)}" + (f", {WORDS[part['verdict']]}" if several else ""))
    items = {
        f"The paper, {escaped(claim['place'])}": [escaped(claim["paper"])],
        "This book": found,
        "Quantity": [f"{escaped(claim['quantity'])}; measured in {{ref}}`this cell <{claim['anchor']}>`"],
        "Rule": [rule_in_words(claim)],
        "Reason": [escaped(claim["reason"])],
    }
    listed = "\n".join(f"{term}\n" + "".join(f": {text}\n" for text in texts) for term, texts in items.items())
    return (
        f"({entry(claim['name'])})=\n## {claim['number']}. {title(claim)}\n\n{escaped(claim['claim'])}\n\n"
        f"{{.verdict .{claim['verdict']}}}\n**{WORDS[claim['verdict']]}**\n\n{listed}"
    )


def line(claim: Claim, *, changed: bool = False) -> str:
    """Return what stands in a notebook below the cell that measured a claim: the verdict, with a link to its entry."""
    link = f"{{ref}}`Claim {claim['number']} <{entry(claim['name'])}>`, {escaped(claim['place'])}"
    verdicts = {part["verdict"] for part in claim["parts"]}
    parts = "; ".join(f"{escaped(part['part'])} {WORDS[part['verdict']]}" for part in claim["parts"])
    return (
        f"({claim['anchor']})=\n\n{{.verdict .{claim['verdict']}}}\n{link}: **{WORDS[claim['verdict']]}**"
        + (f" ({parts})" if len(verdicts) > 1 else "")
        + (". Parameters were changed, so this means nothing." if changed else "")
    )


def rule_in_words(rule: Claim) -> str:
    """Return the ranges of a rule as a sentence."""
    clauses = []
    for word in RANGES:
        if rule.get(word) == [None, None]:
            clauses.append(f"else {WORDS[word][2:]}")
            break
        if word in rule:
            clauses.append(f"{range_in_words(rule[word])}: {WORDS[word][2:]}")
    else:
        clauses.append("else undecided")
    return f"The whole interval {'; '.join(clauses)}."


def range_in_words(range_: list[float | None]) -> str:
    """Return the limits of a range, one of which may be open."""
    low, high = (None if end is None else signed(f"{end:g}") for end in range_)
    return f"at {low} or more" if high is None else f"at {high} or less" if low is None else f"within {low} to {high}"


def measured(part: Claim, form: str) -> str:
    """Return the value of a part, in brackets its interval and the number of cases, if it has them."""
    value, low, high = (signed(f"{part[key]:{form}}") for key in ("value", "low", "high"))
    inner = [f"{low} to {high}"] * (part["low"] < part["high"]) + ([f"n\xa0=\xa0{part['n']:,}"] if part["n"] else [])
    return f"{value} ({', '.join(inner)})" if inner else value


def signed(number: str) -> str:
    """Return a number with a true minus sign."""
    return number.replace("-", "−")


def escaped(text: str) -> str:
    """Return text in which Markdown finds nothing to format."""
    return re.sub(r"([\\`*_{}\[\]<>$|#])", r"\\\1", " ".join(text.split()))


if __name__ == "__main__":
    raise SystemExit(main())
