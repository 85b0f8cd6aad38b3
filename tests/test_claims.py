"""The ledger of claims: its rules, what the notebooks record, the committed record, and how pages show it."""

from __future__ import annotations

import copy
import json
import math
import random

import build
import claims
import nbformat
import pytest
import wording
import yaml
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from ledger import Ledger, as_json, judge_build, verdict_of_part, verdict_of_parts
from ledger import judge as judge_copies
from registry import FIELDS, LEAST, RANGES, LedgerError, load_registry

from vaerobust.page.numbers import CLAIM

BUILT = ROOT / "_build/claims.json"
RANK = {word: i for i, word in enumerate((*RANGES, "undecided"))}

RULE = {"reproduced": [0.7, 1], "partly": [0.5, 1], "not": [-1, 0.7]}
RECORD = {
    "name": "bound-loose",
    "place": "Section 3, Fig. 4 (a, b)",
    "claim": "The bound is loose.",
    "quantity": "KL(q || q*) over $x$, exact 95 % interval",
    "paper": "0.84",
    **RULE,
    "reason": "Half of the <variance>.",
    "notebook": "02_theorem_1",
    "form": ".2f",
}


def registry(*changes: dict) -> list[dict]:
    return [RECORD | change for change in changes or [{}]]


def record(
    name: str = "bound-loose", value: float = 0.8, *, part: str = "", n: int | None = None, spread: float = 0.05
):
    return {"claim": name, "part": part, "value": value, "low": value - spread, "high": value + spread, "n": n}


def notebook(*cells: list[dict], parameters: dict | None = None) -> nbformat.NotebookNode:
    """Make an executed notebook whose cells recorded the given claims."""
    made = nbformat.v4.new_notebook()
    for records in cells:
        outputs = [nbformat.v4.new_output("display_data", data={CLAIM: one}) for one in records]
        made.cells.append(nbformat.v4.new_code_cell("claim(...)", outputs=outputs, execution_count=1))
    made.metadata["papermill"] = {"parameters": parameters or {}}
    return made


def judge(rules: list[dict], **notebooks: nbformat.NotebookNode) -> Ledger:
    return judge_copies(rules, {name.removeprefix("nb_"): made for name, made in notebooks.items()})


# The rules


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.8, 0.9, "reproduced"),
        (0.7, 1.0, "reproduced"),  # ends belong to a range
        (0.69, 1.0, "partly"),
        (0.5, 0.5, "partly"),  # the first range counts, and 0.5 is in "not" too
        (0.7, 0.7, "reproduced"),
        (0.49, 0.6, "not"),
        (-1.0, 0.7, "not"),
        (0.4, 0.9, "undecided"),
        (0.9, 1.1, "undecided"),
        (-2.0, 0.0, "undecided"),
    ],
)
def test_verdict_of_an_interval(low, high, verdict):
    assert verdict_of_part(RULE, low, high) == verdict


@pytest.mark.parametrize(
    ("rule", "low", "high", "verdict"),
    [
        ({"reproduced": [1, None], "not": [0, 1]}, 1.0, 1e9, "reproduced"),
        ({"reproduced": [1, None], "not": [0, 1]}, 0.0, 1.0, "not"),
        ({"reproduced": [1, None], "not": [0, 1]}, 0.99, 1.01, "undecided"),
        ({"reproduced": [None, 3], "not": [3, None]}, -1e9, 3.0, "reproduced"),
        ({"reproduced": [-0.1, 0.1], "not": [None, None]}, -1e9, 1e9, "not"),
    ],
)
def test_verdict_with_open_ranges(rule, low, high, verdict):
    assert verdict_of_part(rule, low, high) == verdict


numbers = st.floats(-10, 10)
intervals = st.tuples(numbers, numbers).map(sorted)
ranges = intervals | st.tuples(st.none() | numbers, st.none()).map(list) | st.tuples(st.none(), numbers).map(list)
rules = st.fixed_dictionaries({"reproduced": ranges, "not": ranges}, optional={"partly": ranges})
verdicts = st.sampled_from(list(wording.WORDS))


@given(rules, intervals)
def test_verdict_is_the_first_range_that_holds_every_point(rule, interval):
    found = verdict_of_part(rule, *interval)
    points = [interval[0] + (interval[1] - interval[0]) * k / 8 for k in range(8)] + [interval[1]]
    for word in RANGES:
        if word in rule:
            low, high = rule[word]
            holds = all((low is None or low <= point) and (high is None or point <= high) for point in points)
            assert holds or found != word
            if holds:
                assert RANK[found] <= RANK[word]


@given(rules, intervals, st.floats(0, 1), st.floats(0, 1))
def test_a_narrower_interval_is_never_judged_worse(rule, interval, a, b):
    low, high = sorted(interval[0] + (interval[1] - interval[0]) * share for share in (a, b))
    inside = max(low, interval[0]), min(high, interval[1])  # rounding may leave the interval
    assert RANK[verdict_of_part(rule, *inside)] <= RANK[verdict_of_part(rule, *interval)]


@given(st.lists(verdicts, min_size=1, max_size=6))
def test_verdict_of_parts(found):
    together = verdict_of_parts(found)
    assert together == verdict_of_parts(random.Random(0).sample(found, len(found)))
    if len(set(found)) == 1:
        assert together == found[0]
    elif "reproduced" in found or "partly" in found:
        assert together == "partly"
    else:
        assert together == "undecided"


def test_registry_of_the_book_is_well_formed():
    rules = load_registry()
    assert len(rules) >= LEAST
    for rule in rules:
        assert wording.rule_in_words(rule)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reason": None}, "reason must be text"),
        ({"claim": " "}, "claim must be text"),
        ({"paper": 1}, "paper must be text"),
        ({"reproduced": [1, 0]}, "reproduced must be"),
        ({"not": [0]}, "not must be"),
        ({"partly": 0.5}, "partly must be"),
        ({"partly": ["0", 1]}, "partly must be"),
        ({"partly": [True, 1]}, "partly must be"),
        ({"partly": [math.nan, 1]}, "partly must be"),
        ({"reproduced": None}, "reproduced must be"),
        ({"form": ".2q"}, "form must be a format"),
        ({"partially": [0, 1]}, "unknown fields: partially"),
        ({"name": "Bound loose"}, "lower case"),
    ],
)
def test_registry_that_is_not_well_formed(tmp_path, change, message):
    (tmp_path / "claims.yml").write_text(yaml.safe_dump(registry(change)))
    with pytest.raises(LedgerError, match=message):
        load_registry(tmp_path / "claims.yml", least=1)


def test_registry_lists_all_that_is_wrong(tmp_path):
    rules = registry({"reproduced": [1, 0]}, {})
    del rules[1]["place"]
    (tmp_path / "claims.yml").write_text(yaml.safe_dump(rules))
    with pytest.raises(LedgerError) as error:
        load_registry(tmp_path / "claims.yml")
    for part in ("must have at least 25", "bound-loose has more than one record", "reproduced must be", "lacks place"):
        assert part in str(error.value)


# What was recorded


def test_parts_are_judged_one_by_one_and_together():
    made = notebook([], [record(part="MNIST", n=7)], [record(part="fashion-MNIST", value=0.0)])
    (claim,) = judge(registry(), nb_02_theorem_1=made)["claims"]
    assert [(part["part"], part["n"], part["verdict"]) for part in claim["parts"]] == [
        ("MNIST", 7, "reproduced"),
        ("fashion-MNIST", None, "not"),
    ]
    assert (claim["verdict"], claim["number"], claim["anchor"]) == ("partly", 1, "measured-bound-loose")
    assert {key: claim[key] for key in RECORD} == RECORD


@pytest.mark.parametrize(
    ("rules", "notebooks", "message"),
    [
        (registry(), {"nb_02_theorem_1": notebook([])}, "02_theorem_1 does not record: bound-loose"),
        (registry(), {}, "02_theorem_1 is not among the executed notebooks, but should record: bound-loose"),
        (
            registry(),
            {"nb_02_theorem_1": notebook([record()]), "nb_03": notebook([record(part="a")])},
            "03 records bound-loose, which the registry places in 02_theorem_1",
        ),
        (registry(), {"nb_02_theorem_1": notebook([record()], [record()])}, "records bound-loose twice without a part"),
        (registry(), {"nb_02_theorem_1": notebook([record(part="a"), record(part="a")])}, "bound-loose twice for a"),
        (registry(), {"nb_02_theorem_1": notebook([record(), record("new")])}, "records new, which is not in the reg"),
    ],
)
def test_records_that_do_not_fit_the_registry(rules, notebooks, message):
    with pytest.raises(LedgerError, match=message):
        judge(rules, **notebooks)


def test_all_misfits_are_told_at_once():
    rules = registry({"name": "a"}, {"name": "b"}, {"name": "c", "notebook": "03"})
    with pytest.raises(LedgerError) as error:
        judge(rules, nb_02_theorem_1=notebook([record("d")]))
    assert str(error.value).count("\n- ") + 1 == 3
    assert "does not record: a, b" in str(error.value)


def test_build_writes_the_ledger_or_leaves_none(tmp_path):
    (tmp_path / "claims.yml").write_text(yaml.safe_dump(registry()))
    copy_ = tmp_path / "out/executed/notebooks/02_theorem_1.ipynb"
    copy_.parent.mkdir(parents=True)
    nbformat.write(notebook([record()], parameters={"points": 3}), copy_)
    ledger = judge_build(tmp_path / "out", tmp_path / "claims.yml", least=1)
    assert json.loads((tmp_path / "out/claims.json").read_text()) == ledger
    assert ledger["changed"] == {"02_theorem_1": {"points": 3}}
    nbformat.write(notebook([]), copy_)
    with pytest.raises(LedgerError):
        judge_build(tmp_path / "out", tmp_path / "claims.yml", least=1)
    assert not (tmp_path / "out/claims.json").exists()


def test_build_stops_and_says_why(tmp_path, capsys):
    assert not build.judge_claims(tmp_path)
    rules = load_registry()
    told = capsys.readouterr().err
    assert all(f"{rule['notebook']} is not among the executed notebooks" in told for rule in rules)
    assert all(rule["name"] in told for rule in rules)


def test_whole_registry_can_be_recorded():
    """What the book's own rules would make of numbers in the midst of their ranges."""
    rules = load_registry()
    cells: dict[str, list] = {}
    for rule in rules:
        low, high = rule["reproduced"]
        middle = low + 1 if high is None else high - 1 if low is None else (low + high) / 2
        cells.setdefault(rule["notebook"], []).append([record(rule["name"], middle, spread=0)])
    ledger = judge_copies(rules, {name: notebook(*found) for name, found in cells.items()})
    assert {claim["verdict"] for claim in ledger["claims"]} == {"reproduced"}
    assert claims.differing_rules(ledger, rules) == []


# The committed record


@pytest.fixture(scope="session")
def committed() -> Ledger:
    assert claims.COMMITTED.exists(), "there is no book/claims.json: run make book, then make claims"
    return json.loads(claims.COMMITTED.read_bytes())


def test_committed_record_was_judged_by_the_rules_of_the_registry(committed):
    problems = claims.differing_rules(committed, load_registry())
    assert not problems, "run make book, then make claims:\n" + "\n".join(problems)


def test_committed_verdicts_follow_from_the_committed_numbers(committed):
    for claim in committed["claims"]:
        found = [verdict_of_part(claim, part["low"], part["high"]) for part in claim["parts"]]
        assert found == [part["verdict"] for part in claim["parts"]], claim["name"]
        assert claim["verdict"] == verdict_of_parts(found), claim["name"]


def test_committed_record_is_of_full_scale(committed):
    assert committed["changed"] == {}


def test_readme_has_the_summary_of_the_committed_record(committed):
    readme = claims.README.read_text()
    assert readme == claims.with_summary(readme, committed), "run make claims"


def test_last_build_has_the_committed_verdicts(committed):
    if not BUILT.exists():
        pytest.skip("no _build/claims.json: make book has not been run")
    built = json.loads(BUILT.read_bytes())
    if built["data"] != committed["data"]:
        pytest.skip(f"the book was built from other data, {built['data']}")
    different = claims.differences(committed, built)
    assert not different, "run make claims if the new verdicts are right:\n" + "\n".join(different)


@pytest.fixture
def ledger() -> Ledger:
    rules = registry({"name": "a"}, {"name": "b"}, {"name": "eq-7-holds"}, {"name": "d"})
    made = notebook(
        [record("a"), record("b", 0.0)],
        [record("eq-7-holds", part="x_1"), record("eq-7-holds", 0, part="y"), record("d", 0.7)],
    )
    return judge(rules, nb_02_theorem_1=made)


def judged_again(ledger: Ledger) -> Ledger:
    """Judge the numbers of a ledger anew."""
    cells = [
        [
            {"claim": claim["name"], **{k: part[k] for k in ("part", "value", "low", "high", "n")}}
            for part in claim["parts"]
        ]
        for claim in ledger["claims"]
    ]
    rules = [{key: claim[key] for key in RECORD} for claim in ledger["claims"]]
    return judge(rules, nb_02_theorem_1=notebook(*cells))


def test_same_numbers_are_no_difference(ledger):
    assert claims.differences(ledger, judged_again(ledger)) == []


@pytest.mark.parametrize("place", range(4))
def test_number_that_leaves_its_range_is_a_difference(ledger, place):
    after = copy.deepcopy(ledger)
    part = after["claims"][place]["parts"][0]
    part.update({key: part[key] - 10 for key in ("value", "low", "high")})
    after = judged_again(after)
    (message,) = claims.differences(ledger, after)
    before, now = ledger["claims"][place], after["claims"][place]
    assert message.startswith(f"{before['name']}: was {before['verdict'].upper()}")
    assert f"is {now['verdict'].upper()}" in message
    for claim in (before, now):
        for part in claim["parts"]:
            assert wording.measured(part, ".2f") in message


def test_number_that_stays_in_its_range_is_none(ledger):
    after = copy.deepcopy(ledger)
    part = after["claims"][0]["parts"][0]
    part.update({key: part[key] + 0.01 for key in ("value", "low", "high")})
    assert claims.differences(ledger, judged_again(after)) == []


def test_claim_or_part_that_comes_or_goes_is_a_difference(ledger):
    fewer = copy.deepcopy(ledger)
    gone = fewer["claims"].pop(0)
    assert claims.differences(ledger, fewer) == ["a: only in the ledger before"]
    assert claims.differences(fewer, ledger) == ["a: only in the ledger after"]
    fewer["claims"].insert(0, gone | {"parts": []})
    assert len(claims.differences(ledger, fewer)) == 1


@pytest.mark.parametrize("field", sorted(FIELDS - {"name"} | {"partly"}))
def test_changed_rule_is_told(ledger, field):
    rules = [{key: claim[key] for key in RECORD} for claim in ledger["claims"]]
    assert claims.differing_rules(ledger, rules) == []
    rules[2] = rules[2] | {field: [0, 0.1] if field in RANGES else "else"}
    assert claims.differing_rules(ledger, rules) == [f"eq-7-holds was judged by another text of: {field}"]
    assert len(claims.differing_rules(ledger, rules[:2] + registry({"name": "new"}))) == 3
    assert len(claims.differing_rules(ledger, [*reversed(rules[:2])] + [ledger["claims"][2]] + rules[3:])) == 1


@pytest.fixture
def project(tmp_path, monkeypatch, ledger):
    """A checkout with a build, in which make claims can be run."""
    monkeypatch.setattr(claims, "ROOT", tmp_path)
    monkeypatch.setattr(claims, "COMMITTED", tmp_path / "claims.json")
    monkeypatch.setattr(claims, "README", tmp_path / "README.md")
    rules = [{key: claim[key] for key in RECORD} for claim in ledger["claims"]]
    monkeypatch.setattr(claims, "load_registry", lambda: rules)
    (tmp_path / "README.md").write_text("# Top\n\n<!-- claims -->\noutdated\n<!-- /claims -->\n\nEnd\n")
    (tmp_path / "_build").mkdir()
    (tmp_path / "_build/claims.json").write_bytes(as_json(ledger))
    return tmp_path


def test_make_claims_accepts_a_full_build(project, ledger, capsys):
    assert claims.main() == 0
    assert json.loads((project / "claims.json").read_text()) == ledger
    readme = (project / "README.md").read_text()
    assert readme.startswith("# Top\n\n<!-- claims -->\n\n| Verdict")
    assert readme.endswith("|\n\n<!-- /claims -->\n\nEnd\n")
    assert "outdated" not in readme
    assert "accepted 4 claims" in capsys.readouterr().out
    assert claims.main() == 0
    assert (project / "README.md").read_text() == readme


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"changed": {"02_theorem_1": {"points": 3}}}, "02_theorem_1 ran with changed parameters"),
        ({"claims": []}, "a was never judged"),
        (None, "run make book"),
    ],
)
def test_make_claims_refuses_another_build(project, ledger, capsys, change, message):
    (project / "_build/claims.json").unlink()
    if change is not None:
        (project / "_build/claims.json").write_bytes(as_json(ledger | change))
    assert claims.main() == 1
    assert message in capsys.readouterr().err
    assert not (project / "claims.json").exists()
    assert "outdated" in (project / "README.md").read_text()


# On the page


def test_summary_names_every_claim_once_under_its_verdict(ledger):
    table = wording.summary(ledger)
    rows = {row.split("|")[1].strip(): row for row in table.splitlines()[2:]}
    assert list(rows) == list(wording.WORDS.values())
    for claim in ledger["claims"]:
        assert wording.title(claim) in rows[wording.WORDS[claim["verdict"]]]
    for word, row in zip(wording.WORDS, rows.values(), strict=True):
        assert int(row.split("|")[2]) == len(wording.by_verdict(ledger["claims"], word))
    assert all(f"<claim-{claim['name']}>`" in wording.summary(ledger, linked=True) for claim in ledger["claims"])


@pytest.mark.parametrize(
    ("name", "title"), [("eq-7-jacobian", "Eq. 7 Jacobian"), ("bound-loose", "Bound loose"), ("tc-robust", "TC robust")]
)
def test_title(name, title):
    assert wording.title({"name": name}) == title


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (
            RULE,
            "The whole interval within 0.7 to 1: reproduced; within 0.5 to 1: partly reproduced; "
            "within −1 to 0.7: not reproduced; else undecided.",
        ),
        (
            {"reproduced": [None, 3], "not": [3, None]},
            "The whole interval at 3 or less: reproduced; at 3 or more: not reproduced; else undecided.",
        ),
        (
            {"reproduced": [0.5, 2], "not": [None, None]},
            "The whole interval within 0.5 to 2: reproduced; else not reproduced.",
        ),
    ],
)
def test_rule_in_words(rule, words):
    assert wording.rule_in_words(rule) == words


@pytest.mark.parametrize(
    ("low", "high", "n", "words"),
    [
        (0.7, 0.9, None, "0.80 (0.70 to 0.90)"),
        (-0.7, 0.9, 12345, "0.80 (−0.70 to 0.90, n = 12,345)"),
        (0.8, 0.8, 3, "0.80 (n = 3)"),
        (0.8, 0.8, None, "0.80"),
    ],
)
def test_measured_value_in_words(low, high, n, words):
    part = {"value": 0.8, "low": low, "high": high, "n": n}
    assert wording.measured(part, ".2f").replace("\xa0", " ") == words


def test_entry_has_everything_and_markdown_finds_nothing_to_format():
    made = notebook([record(part="MNIST", n=1000), record(part="a_b", value=0.0)])
    (claim,) = judge(registry(), nb_02_theorem_1=made)["claims"]
    text = wording.in_full(claim)
    for shown in (
        "(claim-bound-loose)=\n## 1. Bound loose\n",
        "The bound is loose.",
        "{.verdict .partly}\n**◐\xa0partly reproduced**",
        "The paper, Section 3, Fig. 4 (a, b)\n: 0.84\n",
        ": MNIST: 0.80 (0.75 to 0.85, n\xa0=\xa01,000), ✔\xa0reproduced\n",
        ": a\\_b: 0.00 (−0.05 to 0.05), ✘\xa0not reproduced\n",
        r": KL(q \|\| q\*) over \$x\$, exact 95 % interval; measured in {ref}`this cell <measured-bound-loose>`",
        "Rule\n: The whole interval within 0.7 to 1: reproduced;",
        r"Reason" "\n" r": Half of the \<variance\>.",
    ):
        assert shown in text
    line = wording.line(claim)
    assert line.startswith(
        "(measured-bound-loose)=\n\n{.verdict .partly}\n{ref}`Claim 1 <claim-bound-loose>`, Section 3"
    )
    assert "(MNIST ✔\xa0reproduced; a\\_b ✘\xa0not reproduced)" in line
    assert "means nothing" in wording.line(claim, changed=True)


def test_changed_parameters_are_warned_of(ledger):
    assert wording.warning(ledger) == ""
    assert "`02_theorem_1`" in wording.warning(ledger | {"changed": {"02_theorem_1": {"points": 3}}})


@pytest.fixture
def on_page(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "book/_ext")
    return pytest.importorskip("claims_on_page")


def test_verdicts_stand_below_the_cells_that_measured_and_records_are_gone(on_page):
    made = notebook([record("a", part="x"), record("b")], [], [record("a", part="y")])
    made.cells[0].outputs.append(nbformat.v4.new_output("display_data", data={"text/plain": "kept"}))
    ledger = judge(registry({"name": "a"}, {"name": "b"}), nb_02_theorem_1=made)
    on_page.insert_verdicts(made, "02_theorem_1", ledger)
    nbformat.validate(made)
    assert [cell.cell_type for cell in made.cells] == ["code", "markdown", "code", "code", "markdown"]
    assert ["(measured-a)=" in cell.source for cell in made.cells] == [False, False, False, False, True]
    assert ["(measured-b)=" in cell.source for cell in made.cells] == [False, True, False, False, False]
    outputs = [output for cell in made.cells for output in cell.get("outputs", [])]
    assert [output.data for output in outputs] == [{"text/plain": "kept"}]


def test_notebook_without_ledger_only_loses_its_records(on_page):
    made = notebook([record()], [])
    on_page.insert_verdicts(made, "02_theorem_1", None)
    assert [cell.cell_type for cell in made.cells] == ["code", "code"]
    assert not made.cells[0].outputs


def test_page_gets_what_it_asks_for(on_page, tmp_path, ledger):
    (tmp_path / "claims.json").write_bytes(as_json(ledger))
    source = ["# Page\n\n<!-- claims: summary -->\n\n<!-- claims: entries -->\n\nEnd \\1 <!-- other -->\n"]
    on_page.fill(tmp_path, "page", source)
    assert wording.summary(ledger, linked=True) in source[0]
    assert wording.entries(ledger) in source[0]
    assert source[0].endswith("End \\1 <!-- other -->\n")


@pytest.mark.parametrize("name", ["index.md", "claims.md"])
def test_pages_ask_for_the_summary(name):
    assert "\n<!-- claims: summary -->\n" in (ROOT / "book" / name).read_text()
