"""Execute the notebooks and build the book; the command behind ``make book``.

The build has these steps, each in a module of its own:

1. ``prose.py`` looks for measured numbers that were typed into the notebooks, and ends the build if it finds one;
2. ``freshness.py`` finds the notebooks whose executed copies are out of date;
3. ``execution.py`` runs each ``notebooks/NAME.md`` under papermill into ``OUT/executed/notebooks/NAME.ipynb``;
4. ``ledger.py`` collects what the copies recorded about the paper's claims, judges it by the rules of
   ``book/claims.yml``, and writes the ledger, ``OUT/claims.json``;
5. ``rendering.py`` runs Jupyter Book, which makes ``OUT/html`` from the copies, the ledger and the pages of ``book/``.

A build may be interrupted and started again at any time. An executed copy is replaced only by a complete one, and so is
the site.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

import ledger
import prose
from checkout import ROOT, processors
from execution import execute
from freshness import out_of_date
from parameters import read_overrides
from registry import LedgerError
from rendering import build_site
from wording import describe


def main() -> int:
    """Run the steps of a build; return the exit status."""
    args = parse_arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    out = args.out.resolve()
    sources = {path.stem: path for path in sorted((ROOT / "notebooks").glob("*.md"))}
    overrides = read_overrides(args.parameters, sources) if args.parameters else {}
    if typed := prose.check(sources.values()):
        print("typed numbers; book/prose.py says where they should come from:", *typed, sep="\n", file=sys.stderr)
        return 1
    try:
        problems = execute(out_of_date(sources, overrides, out, args.timeout), args.jobs)
        for name, problem in problems.items():
            print(f"\nFAILED: notebooks/{name}.md: {problem}", file=sys.stderr)
        return 1 if problems or not judge_claims(out) else build_site(out)
    except KeyboardInterrupt:
        print("\ninterrupted; what is finished is kept", file=sys.stderr)
        return 130


def parse_arguments() -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=Path, metavar="FILE.yml", help="overrides: {notebook: {parameter: value}}")
    parser.add_argument("--out", type=Path, default=ROOT / "_build", help="output folder (default: _build)")
    parser.add_argument("--jobs", type=int, default=processors(), help="notebooks at a time (default: %(default)s)")
    parser.add_argument(
        "--timeout", type=int, default=1800, help="seconds that one cell may take (default: %(default)s)"
    )
    return parser.parse_args()


def judge_claims(out: Path) -> bool:
    """Write the ledger of claims and print its summary; return whether the records fit the registry."""
    try:
        judged = ledger.judge_build(out)
    except LedgerError as error:
        print(f"\nFAILED: the ledger of claims, book/claims.yml:\n{error}", file=sys.stderr)
        return False
    remark = "; parameters were changed, so these verdicts mean nothing" if judged["changed"] else ""
    print(f"claims: {describe(judged)}{remark}")
    return True


if __name__ == "__main__":
    raise SystemExit(main())
