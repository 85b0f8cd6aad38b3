"""How a ledger of claims reads: tables, entries and verdicts, in Markdown and in single lines.

:func:`summary`, :func:`counts` and :func:`entries` fill the pages of the book, :func:`line` stands below the cell that
measured a claim, and :func:`describe` and :func:`in_short` are for terminals. The verdicts themselves come from
``ledger.py``.
"""

from __future__ import annotations

import re

from ledger import Ledger
from registry import RANGES, Claim

WORDS = {
    "reproduced": "✔\xa0reproduced",
    "partly": "◐\xa0partly reproduced",
    "not": "✘\xa0not reproduced",
    "undecided": "○\xa0undecided",
}
"""Verdicts as the pages show them: a sign, a space and words, so that colour is never the only sign.

The sign and the space are two characters, which some functions below cut off.
"""
SPELLED = {"eq": "Eq.", "tc": "TC", "jacobian": "Jacobian"}
"""How titles spell some words of the claims' names."""


# All claims


def summary(ledger: Ledger, *, linked: bool = False) -> str:
    """Return a Markdown table: for each verdict, how many claims have it, and which.

    Parameters
    ----------
    ledger : dict
    linked : bool
        Whether each claim links to its entry on the page of claims, by a role that only the book understands.
    """
    rows = ["| Verdict | Claims | Which |", "|:---|---:|:---|"]
    for word, text in WORDS.items():
        claims = by_verdict(ledger["claims"], word)
        named = (f"{{ref}}`{title(c)} <{entry(c['name'])}>`" if linked else title(c) for c in claims)
        rows.append(f"| {text} | {len(claims)} | {'; '.join(named) or '-'} |")
    return "\n".join([*rows, ""])


def counts(ledger: Ledger) -> str:
    """Return one line of Markdown: how many claims have which verdict, with a link to the page of claims."""
    found = (f"{text[:2]}**{len(by_verdict(ledger['claims'], word))}** {text[2:]}" for word, text in WORDS.items())
    return f"{{.counts}}\n[{len(ledger['claims'])} claims](claims.md): {', '.join(found)}\n"


def entries(ledger: Ledger) -> str:
    """Return the entries of all claims in MyST."""
    return "\n".join(in_full(claim) for claim in ledger["claims"])


def warning(ledger: Ledger) -> str:
    """Return a warning in MyST for a build with changed parameters; the empty string at full scale."""
    if not ledger["changed"]:
        return ""
    return (
        ":::{warning}\nThis book was built with changed parameters of "
        f"{', '.join(f'`{name}`' for name in ledger['changed'])}. Its verdicts mean nothing.\n:::\n\n"
    )


def describe(ledger: Ledger) -> str:
    """Return one line of plain text: how many claims have which verdict."""
    claims = ledger["claims"]
    counts = ", ".join(f"{len(by_verdict(claims, word))} {text[2:]}" for word, text in WORDS.items())
    return f"{len(claims)} claims, {counts}"


def by_verdict(claims: list[Claim], verdict: str) -> list[Claim]:
    """Return the claims of one verdict."""
    return [claim for claim in claims if claim["verdict"] == verdict]


# One claim


def in_full(claim: Claim) -> str:
    """Return the entry of a claim in MyST: a heading, the verdict, and a list of what led to it."""
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


def verdict(claim: Claim) -> str:
    """Return the verdict on a claim as words within a sentence, which link to the claim's entry."""
    return f"{{ref}}`{WORDS[claim['verdict']]} <{entry(claim['name'])}>`"


def line(claim: Claim, *, changed: bool = False) -> str:
    """Return what a notebook shows below the cell that measured a claim: the verdict, and a link to the claim's entry.

    Parameters
    ----------
    claim : dict
    changed : bool
        Whether the notebook ran with changed parameters.
    """
    link = f"{{ref}}`Claim {claim['number']} <{entry(claim['name'])}>`, {escaped(claim['place'])}"
    verdicts = {part["verdict"] for part in claim["parts"]}
    parts = "; ".join(f"{escaped(part['part'])} {WORDS[part['verdict']]}" for part in claim["parts"])
    return (
        f"({claim['anchor']})=\n\n{{.verdict .{claim['verdict']}}}\n{link}: **{WORDS[claim['verdict']]}**"
        + (f" ({parts})" if len(verdicts) > 1 else "")
        + (". Parameters were changed, so this verdict means nothing." if changed else "")
    )


def in_short(claim: Claim) -> str:
    """Return verdict and numbers of a claim in one line of plain text."""
    parts = (f"{part['part']} {measured(part, claim['form'])} {part['verdict']}".strip() for part in claim["parts"])
    return f"{claim['verdict'].upper()} ({'; '.join(parts)})"


def title(claim: Claim) -> str:
    """Return a claim's name as a title."""
    words = [SPELLED.get(word, word) for word in claim["name"].split("-")]
    return " ".join([words[0][0].upper() + words[0][1:], *words[1:]])


def entry(name: str) -> str:
    """Return the label of a claim's entry on the page of claims."""
    return f"claim-{name}"


# Rules and numbers


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
    """Return a range in words; one of its ends may be open."""
    low, high = (None if end is None else signed(f"{end:g}") for end in range_)
    return f"at {low} or more" if high is None else f"at {high} or less" if low is None else f"within {low} to {high}"


def measured(part: Claim, form: str) -> str:
    """Return the value of a part and, in brackets, its interval and number of cases where it has them."""
    value, low, high = (signed(f"{part[key]:{form}}") for key in ("value", "low", "high"))
    inner = [f"{low} to {high}"] * (part["low"] < part["high"]) + ([f"n\xa0=\xa0{part['n']:,}"] if part["n"] else [])
    return f"{value} ({', '.join(inner)})" if inner else value


def signed(number: str) -> str:
    """Return a number with a true minus sign."""
    return number.replace("-", "−")


def escaped(text: str) -> str:
    """Return text with a backslash before every character that Markdown would interpret."""
    return re.sub(r"([\\`*_{}\[\]<>$|#])", r"\\\1", " ".join(text.split()))
