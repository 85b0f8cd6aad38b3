"""No number is typed: what the check of the prose catches, what it lets through, and the book's own notebooks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import build
import prose
import pytest
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.md"))

HEADER = "---\nkernelspec:\n  name: python3\n  display_name: Python 3\n---\n\n# Title\n\n"
PARAMETERS = "```{code-cell} ipython3\n:tags: [parameters]\n\nlevel = 0.9  # of D\nbetas = [0.25, 5.0]\nn = 25\n```\n\n"


def numbers(text: str, values: set[float] | None = None, *, markdown: bool = True) -> list[str]:
    return [number for _, number, _, _ in prose.typed_numbers(text, values or set(), markdown=markdown)]


def in_notebook(tmp_path: Path, body: str) -> list[prose.Finding]:
    file = tmp_path / "notebook.md"
    file.write_text(HEADER + PARAMETERS + body)
    return prose.check([file])


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("the correlation is 0.84 here", "0.84"),
        (r"with $\rho = 0.84$", "0.84"),
        (r"with $\rho = -.84$", ".84"),
        ("$$\n\\rho = 0.84\n$$ (eq-rho)", "0.84"),
        ("errors of 1e-3", "1e-3"),
        ("holds for 87 % of them", "87"),
        ("holds for 87% of them", "87"),
        (r"holds for $87\,\%$ of them", "87"),
        ("holds for 87 per cent", "87"),
        ("breaks at 3 times the bound", "3"),
        ("breaks at $3$ times the bound", "3"),
        ("between 2 and 3 times the bound", "3"),
        ("a margin 3× as large", "3"),
        ("a margin × 3", "3"),
        ("a 3-fold margin", "3"),
        ("larger by a factor of 3", "3"),
        ("a loss of 12 nats", "12"),
        ("a loss of 1,200 nats", "1,200"),
        ("radii of 2 to 7 pixels", "7"),
        ("on 1,000 test images", "1,000"),
        ("in 3 of 20 images", "20"),
        ("ran for 80 seconds", "80"),
        ("an 80-second run", "80"),
        ("a share of `0.84`", "0.84"),
        ("a share of {math}`0.84`", "0.84"),
        ("a share of [0.84](#elsewhere)", "0.84"),
        ("a share of [0.84]{.large}", "0.84"),
        ("a share of {ref}`0.84 <elsewhere>`", "0.84"),
        ("as in Fig. 4, 0.84", "0.84"),
        ("Fig. 4 and 3 times that", "3"),
        ("Fig. 4 has 25 images", "25"),
        ("see Section 5.2 and 0.84", "0.84"),
        ("```{prf:remark} 0.84\ntext\n```", "0.84"),
        ("```{figure} x.png\n:alt: rises to 0.84\n```", "0.84"),
        ("````{prf:proof}\nIt is 0.84.\n````", "0.84"),
        ("```\n0.5\n```\n\nbut 0.84", "0.84"),
        ("| a | b |\n|---|---|\n| x | 0.84 |", "0.84"),
        ("- a point\n- at 0.84", "0.84"),
    ],
)
def test_measured_number_is_caught(text, number):
    assert numbers(text) == [number]


@pytest.mark.parametrize(
    "text",
    [
        "the correlation is {glue:text}`rho:.2f`",
        "the correlation is {glue:text}`../notebooks/02_theorem_1.md::rho:.2f`, {glue:text}`x:.0f` times as much",
        "{glue:text}`share:.1f` % of them and {glue:text}`loss:.0f` nats",
        "Fig. 4, Figs. 3 to 5 and 7 (a), Fig. 10 (g) to (i), Figs. 4 (c, d) and Eq. 7",
        "Sections 3.1, 4.2 and 5, Section 3.2.2, Definition 3.1, Appendix D, Appendices A and D.1.1, Table 2",
        "Section 5.1 argues that, and so does Theorem 2; Algorithms 1 and 2; Proposition 1",
        "Fig. 4\nand Section\n5.2 across lines",
        "published in 2021, arXiv 2007.07365, {cite:t}`camuto2021`",
        "the code `x = 0.84` and ``0.84 * x``",
        "```python\nx = 0.84\n```",
        r"$P(D \le r) > 1/2$ with $2 \times 3$ and $r = 4$, $\beta = 10$",
        "robust if the probability exceeds 1/2",
        "95 % intervals of images with 784 pixels and 20 latents",
        "the paper reports [0.84]{.paper} and [$\\rho = 0.83$]{.paper}, [3 times]{.paper #more} that",
        "<!-- 0.84 -->",
        "(label-0.84)=",
        "see [this](https://example.org/v0.84) and <https://example.org/0.84>",
        "```{figure} x-0.84.png\n:width: 80%\n:name: fig-0.84\n\nA caption.\n```",
        "one of three, twice as large, a hundred times",
        "seeds 0 to 4, norm 1, beta 10",
    ],
)
def test_what_was_not_measured_passes(text):
    assert numbers(text) == []


@given(st.decimals(min_value=0, max_value=1000, places=3))
def test_no_decimal_number_passes_unless_it_is_a_parameter(number):
    text = f"Here it is {number}, all the same."
    assert numbers(text) == [str(number)]
    assert numbers(text, {float(number)}) == []


def test_parameters_may_be_repeated_but_not_as_a_factor():
    values = {0.9, 5.0, 25.0}
    assert numbers("the 0.9-quantile, 90 % of them, at beta 5.0, on 25 test images", values) == []
    assert numbers("but 5 times as large, and 5 %", values) == ["5", "5"]


def test_strings_of_the_code_are_prose_too():
    assert numbers("Chart that rises to 0.84 at the end", markdown=False) == ["0.84"]
    assert numbers("0.84", markdown=False) == []  # a grey, say


def test_whole_notebook(tmp_path):
    body = (
        "It is 0.84.\n\n"
        "```{code-cell} ipython3\n---\nmystnb:\n  figure:\n    name: fig-a\n    caption: |\n      First line,\n"
        "      second of 0.83.\n    width: 80%\ntags: [hide-input]\n---\n"
        '"""Not 0.81."""\n'
        "figure, ax = plt.subplots(figsize=(6.5, 3.6))  # not 0.82\n"
        'ax.set(ylabel="share of 0.9, of 0.82", color="0.5")\n'
        'show(figure, f"Chart from {x:0.1f} to 0.81, "\n     "on 25 images.")\n'
        "```\n\n"
        "And 0.9 at 0.25, but\nnot 0.79.\n"
    )
    found = in_notebook(tmp_path, body)
    text = (tmp_path / "notebook.md").read_text().split("\n")
    assert [finding.number for finding in found] == ["0.84", "0.83", "0.82", "0.81", "0.79"]
    for finding in found:
        assert finding.number in text[finding.line - 1]
        assert finding.number in finding.context
        assert str(finding).startswith(f"{tmp_path}/notebook.md:{finding.line}: {finding.number} ")


def test_page_may_repeat_the_parameters_of_any_notebook(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Page\n\nFrom beta 0.1 to 5, 0.8437.\n")
    assert [finding.number for finding in prose.check([page])] == ["0.8437"]


def test_script_tells_by_its_exit_status(tmp_path):
    (tmp_path / "bad.md").write_text("# Title\n\nIt is 0.8437.\n")
    (tmp_path / "good.md").write_text("# Title\n\nIt is large.\n")
    for name, status in (("bad", 1), ("good", 0)):
        command = [sys.executable, str(ROOT / "book/prose.py"), str(tmp_path / f"{name}.md")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == status
        assert ("bad.md:3: 0.8437" in done.stdout) == bool(status)


def test_build_stops_before_anything_runs(tmp_path, monkeypatch, capsys):
    finding = prose.Finding(ROOT / "notebooks/x.md", 3, "0.84", "decimal number", "It is 0.84.")
    monkeypatch.setattr(prose, "check", lambda files: [finding])
    monkeypatch.setattr(build, "execute", lambda *arguments: pytest.fail("it ran"))
    monkeypatch.setattr(sys, "argv", ["build.py", "--out", str(tmp_path / "out")])
    assert build.main() == 1
    assert "notebooks/x.md:3: 0.84" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_number_is_typed_in(path):
    found = prose.check([path])
    assert not found, "\n".join(map(str, found))


@pytest.mark.parametrize("name", ["index.md", "claims.md"])
def test_no_number_is_typed_on_the_pages_of_results(name):
    found = prose.check([ROOT / "book" / name])
    assert not found, "\n".join(map(str, found))


def test_every_constant_comes_with_a_reason():
    assert all(pattern and reason for pattern, reason in prose.CONSTANTS)
    assert len(prose.CONSTANTS) <= 10
