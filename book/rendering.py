"""Let Jupyter Book make pages from the executed notebooks, the ledger of claims and the prose of ``book/``.

:func:`build_site` makes the site; ``pdf.py`` uses the same command for its one long page. What the pages show of the
executed notebooks is decided by the Sphinx extensions in ``book/_ext``, which find the output folder of the build
through an environment variable.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from checkout import LOCK, ROOT, digest, files_under, search_path


def build_site(out: Path) -> int:
    """Build the site into ``out/html``, unless nothing that enters it has changed; return the exit status."""
    site, work, digest_file = out / "html", out / "site", out / "html.sha256"
    made_from = digest_of_inputs(out)
    where = f"The book is in {os.path.relpath(site / 'index.html')}"
    if (site / "index.html").exists() and digest_file.exists() and digest_file.read_text() == made_from:
        print(f"site: up to date\n{where}")
        return 0
    start = time.perf_counter()
    shutil.rmtree(work, ignore_errors=True)  # start from nothing, so that no outdated number or page remains
    done = subprocess.run(
        book_command(work, "html"), env=book_environment(out), stdout=subprocess.PIPE, text=True, check=False
    )
    built = work / "_build/html"
    if done.returncode:
        hint = f"Warnings are errors. What was built is in {os.path.relpath(built)}"
        print(done.stdout, hint, sep="\n", file=sys.stderr)
        return 1
    digest_file.unlink(missing_ok=True)
    shutil.rmtree(site, ignore_errors=True)
    built.replace(site)
    shutil.rmtree(work)
    digest_file.write_text(made_from)
    print(f"site: done in {time.perf_counter() - start:.0f} s\n{where}")
    return 0


def digest_of_inputs(out: Path) -> str:
    """Return one digest of all files that enter the site."""
    executed = out / "executed/notebooks"
    pages = [*files_under(ROOT / "book"), *(ROOT / "notebooks").glob("*.md"), *executed.glob("*.ipynb")]
    shown = [*files_under(ROOT / "vaerobust"), *(ROOT / "tests").glob("test_*.py"), ROOT / "CITATION.cff"]
    return digest([*pages, *shown, out / "claims.json", ROOT / "_config.yml", ROOT / "_toc.yml", LOCK])


def book_command(work: Path, builder: str) -> list[str]:
    """Return the command that makes Jupyter Book build all pages anew below ``work``, with warnings as errors."""
    start = "from jupyter_book.cli.main import main; main()"
    if not sys.stderr.isatty():
        start = "from sphinx.util.console import nocolor; nocolor(); " + start
    options = ["--path-output", str(work), "--builder", builder, "--all", "-q", "-W", "-n", "--keep-going"]
    return [sys.executable, "-c", start, "build", str(ROOT), *options]


def book_environment(out: Path) -> dict[str, str]:
    """Return the environment for :func:`book_command`, which names the output folder to the Sphinx extensions."""
    return os.environ | {"VAEROBUST_OUT": str(out), "PYTHONPATH": search_path()}
