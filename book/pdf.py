"""Print the whole book into one PDF, ``OUT/book.pdf``; the command behind ``make pdf``.

It executes nothing: ``book/build.py`` must have filled the output folder. Jupyter Book makes one long page of the whole
book, and a browser prints it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from browser import NoBrowserError, launch
from checkout import ROOT
from playwright.sync_api import PdfMargins, sync_playwright
from rendering import book_command, book_environment

MARGIN: PdfMargins = {"top": "18mm", "bottom": "18mm", "left": "14mm", "right": "14mm"}
FOOTER = '<div style="width: 100%; font-size: 8px; text-align: center"><span class="pageNumber"></span></div>'


def main() -> int:
    """Build all pages as one, print it, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "_build", help="output folder (default: _build)")
    out = parser.parse_args().out.resolve()
    start = time.perf_counter()
    work = out / "single"
    shutil.rmtree(work, ignore_errors=True)
    if subprocess.run(book_command(work, "singlehtml"), env=book_environment(out), check=False).returncode:
        return 1
    # Sphinx writes the page into book/, but its links to _static are those of a page at the top: move it there
    page = shutil.copy(work / "_build/singlehtml/book/index.html", work / "_build/singlehtml/all.html")
    try:
        print_page(Path(page), out / "book.pdf")
    except NoBrowserError as error:
        print(error, file=sys.stderr)
        return 1
    shutil.rmtree(work)
    size = (out / "book.pdf").stat().st_size / 1e6
    print(f"{os.path.relpath(out / 'book.pdf')}: {size:.1f} MB, in {time.perf_counter() - start:.0f} s")
    return 0


def print_page(source: Path, target: Path) -> None:
    """Print the page ``source`` into the PDF ``target``, once its formulas are typeset and its pictures are loaded.

    Raises
    ------
    NoBrowserError
        If no browser starts.
    """
    with sync_playwright() as playwright:
        chromium = launch(playwright)
        page = chromium.new_page(color_scheme="light")
        page.goto(source.as_uri(), wait_until="load", timeout=120_000)
        page.evaluate("() => MathJax.startup.promise.then(() => true)")
        page.evaluate("document.querySelectorAll('.toggle-hidden').forEach(it => it.classList.remove('toggle-hidden'))")
        page.evaluate("""() => Promise.all([...document.images].map(image => {
            image.loading = "eager";
            return image.decode().catch(() => null);
        })).then(() => true)""")
        page.pdf(
            path=target, format="A4", outline=True, tagged=True, margin=MARGIN, display_header_footer=True, scale=0.8,
            header_template="<span></span>", footer_template=FOOTER,
        )  # fmt: skip
        chromium.close()


if __name__ == "__main__":
    raise SystemExit(main())
