"""The book as one PDF, printed at smoke scale."""

from __future__ import annotations

import re
import subprocess
import sys

from conftest import ROOT
from pypdf import PdfReader
from test_book import NOTEBOOKS


def test_the_pdf_has_every_chapter_and_its_formulas(smoke):
    command = [sys.executable, str(ROOT / "book/pdf.py"), "--out", str(smoke)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (smoke / "single").exists()
    pages = [page.extract_text() for page in PdfReader(smoke / "book.pdf").pages]
    text = re.sub(r"\s+", "", "".join(pages))
    for path in NOTEBOOKS:
        title = re.search(r"^# (.*)$", path.read_text(), re.MULTILINE)[1]
        assert re.sub(r"\s+", "", title).replace("'", "’") in text, path.stem
    for part in ("Notation", "Runningitagain", "Howtocite", "Whatchecksthetheorems", "References"):
        assert part in text
    assert "make book" in " ".join(pages)
    assert not re.search(r"\\\(|\\\[|\\mathbf\{|\\lVert", text), "raw TeX"
    assert all(sum(map(len, pages[i : i + 3])) for i in range(len(pages) - 3)), "three empty pages in a row"
