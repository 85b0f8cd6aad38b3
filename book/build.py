"""Execute the notebooks, then build the book.

Each ``notebooks/NAME.md`` runs under papermill into ``OUT/executed/notebooks/NAME.ipynb``, unless nothing that it
depends on has changed. What they recorded of the paper's claims is judged by ``book/claims.yml`` into
``OUT/claims.json``. Jupyter Book then renders the copies, the ledger and the pages of ``book/`` into ``OUT/html``, with
warnings as errors. A number that was typed into a notebook's prose ends the build before it begins
(``book/prose.py``). Everything can be interrupted and started again: a copy, or the site, is replaced only by a whole
one.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import claims
import prose

if TYPE_CHECKING:
    from nbformat import NotebookNode

# What takes a second to import (torch, papermill) is imported where it is used: a run with nothing to do is short.

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements.lock"
PACKAGES = ("torch", "numpy", "scipy", "matplotlib", "papermill", "vaerobust")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
Parameters = dict[str, Any]
Record = dict[str, Any]

sys.path.insert(0, str(ROOT))  # the package of this checkout, installed or not


@dataclass(frozen=True)
class Task:
    """A notebook to execute.

    Attributes
    ----------
    source, target, failed : Path
        The MyST file, its executed copy, and where the copy of a failed run is kept.
    parameters : dict
        Overrides of its parameters.
    record : dict
        What the copy's metadata tells of how it was made; its ``made_from`` decides whether it is still good.
    timeout : int
        Seconds that one cell may take.
    """

    source: Path
    target: Path
    failed: Path
    parameters: Parameters
    record: Record
    timeout: int


class Outcome(NamedTuple):
    """How a run ended: ``problem`` is None, or says what went wrong and where."""

    seconds: float
    problem: str | None


def main() -> int:
    """Execute what is out of date and build the site; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=Path, metavar="FILE.yml", help="overrides: {notebook: {parameter: value}}")
    parser.add_argument("--out", type=Path, default=ROOT / "_build", help="output folder (default: _build)")
    parser.add_argument("--jobs", type=int, default=processors(), help="notebooks at a time (default: %(default)s)")
    parser.add_argument(
        "--timeout", type=int, default=1800, help="seconds that one cell may take (default: %(default)s)"
    )
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    out = args.out.resolve()
    sources = {path.stem: path for path in sorted((ROOT / "notebooks").glob("*.md"))}
    overrides = read_overrides(args.parameters, sources) if args.parameters else {}
    if typed := prose.check(sources.values()):
        print("typed numbers, see book/prose.py for where they should come from:", *typed, sep="\n", file=sys.stderr)
        return 1
    try:
        problems = execute(out_of_date(sources, overrides, out, args.timeout), args.jobs)
        for name, problem in problems.items():
            print(f"\nFAILED: notebooks/{name}.md: {problem}", file=sys.stderr)
        return 1 if problems or not judge_claims(out) else build_site(out)
    except KeyboardInterrupt:
        print("\ninterrupted; what is finished is kept", file=sys.stderr)
        return 130


def processors() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def read_overrides(file: Path, sources: dict[str, Path]) -> dict[str, Parameters]:
    """Read and check the parameters to override, by notebook; exit if one does not exist."""
    import jupytext
    import yaml

    try:
        overrides: dict[str, Parameters] = yaml.safe_load(file.read_text()) or {}
    except (OSError, yaml.YAMLError) as error:
        raise SystemExit(f"cannot read {file}: {error}") from error
    if not isinstance(overrides, dict) or not all(isinstance(parameters, dict) for parameters in overrides.values()):
        raise SystemExit(f"{file}: must map notebooks to parameters, and those to values")
    for name, parameters in overrides.items():
        if name not in sources:
            raise SystemExit(f"{file}: no notebook {name!r}; there are: {', '.join(sources)}")
        known = set(parameter_names(jupytext.read(sources[name])))
        if unknown := set(parameters) - known:
            names = ", ".join(sorted(unknown))
            raise SystemExit(f"{file}: {name} has no parameter {names}; it has: {', '.join(sorted(known)) or 'none'}")
    return overrides


def parameter_names(notebook: NotebookNode) -> Iterator[str]:
    """Yield the names that the cells tagged ``parameters`` assign."""
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", []):
            for node in ast.parse(cell.source).body:
                targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
                yield from (target.id for target in targets if isinstance(target, ast.Name))


def out_of_date(sources: dict[str, Path], overrides: dict[str, Parameters], out: Path, timeout: int) -> list[Task]:
    """Return a task for each notebook whose executed copy is missing or was made from something else."""
    data = data_in_use()
    summaries = set(files_under(ROOT / "vaerobust/study/stored"))  # of interest to the notebooks that read them alone
    package = digest(path for path in files_under(ROOT / "vaerobust") if path not in summaries)
    packages = package_versions()
    executed = out / "executed/notebooks"
    for copy in executed.glob("*.ipynb"):
        if copy.stem not in sources:
            copy.unlink()
    tasks = []
    for name, source in sources.items():
        parameters = overrides.get(name, {})
        made_from = {
            "notebook": hashlib.sha256(source.read_bytes()).hexdigest(),
            "vaerobust": package,
            "summaries": digest(summaries) if "summaries" in source.read_text() else "not read",
            "lock file": digest([LOCK]),
            "packages": packages,
            "parameters": json.dumps(parameters, sort_keys=True, default=str),
            "data": data,
        }
        target, failed = executed / f"{name}.ipynb", out / "failed" / f"{name}.ipynb"
        failed.unlink(missing_ok=True)
        before = recorded(target).get("made_from", {})
        if changed := [what for what in made_from if made_from[what] != before.get(what)]:
            print(f"{name}: " + (f"to run again, changed: {', '.join(changed)}" if before else "to run"))
            tasks.append(Task(source, target, failed, parameters, {"made_from": made_from}, timeout))
        else:
            print(f"{name}: up to date")
    return tasks


def data_in_use() -> dict[str, dict[str, object]]:
    """Load the test images, which fills the cache before kernels ask for it, and say where they came from."""
    from vaerobust.zoo import data

    found: dict[str, dict[str, object]] = {}
    for name in data.DATASETS:
        images = data.load(name, "test")
        print(f"data: {name}, {len(images):,} test images from {images.source}", flush=True)
        content = images.pixels.numpy().tobytes() + images.labels.numpy().tobytes()
        sha256 = hashlib.sha256(content).hexdigest()
        found[name] = {"source": images.source, "images": len(images), "sha256": sha256}
    return found


def files_under(folder: Path) -> Iterator[Path]:
    """Yield the files in a folder and its subfolders, less caches and half-written ones."""
    return (path for path in folder.rglob("[!.]*") if path.is_file() and "__pycache__" not in path.parts)


def digest(paths: Iterable[Path]) -> str:
    """Return one SHA-256 over names and contents of files; a missing file counts as such."""
    total = hashlib.sha256()
    for path in sorted(paths):
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "missing"
        total.update(f"{os.path.relpath(path, ROOT)} {content}\n".encode())
    return total.hexdigest()


def recorded(copy: Path) -> Record:
    """Return what an executed copy tells of how it was made; nothing if there is no readable copy."""
    try:
        record: Record = json.loads(copy.read_bytes())["metadata"]["vaerobust"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return record


def package_versions() -> dict[str, str]:
    """Return the versions of the packages on which results depend most."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """Return the short commit, with ``-dirty`` if tracked files differ; None where this is no git checkout."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    here = os.environ | {"GIT_CEILING_DIRECTORIES": str(ROOT.parent)}  # not a repository that merely contains this one
    try:
        return subprocess.run(command, cwd=ROOT, env=here, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def execute(tasks: list[Task], jobs: int) -> dict[str, str]:
    """Run the tasks, ``jobs`` at a time, each in a process of its own; return the problems by notebook."""
    if not tasks:
        return {}
    from tqdm import tqdm

    from vaerobust.zoo.machine import processor

    jobs = max(1, min(jobs, len(tasks)))
    threads = max(1, processors() // jobs)
    made_by = {"commit": commit(), "processor": processor(), "threads": threads}
    problems = {}
    before = os.environ.copy()
    with tempfile.TemporaryDirectory(prefix="vaerobust-") as scratch:
        prepare_environment(Path(scratch), threads)
        context = multiprocessing.get_context("spawn")  # a forked process would inherit torch's locked thread pool
        pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=leave_interrupts_to_parent)
        try:
            runs = {}
            for task in tasks:
                task.record.update(made_by)
                runs[pool.submit(run, task, Path(scratch))] = task.source.stem
            with tqdm(as_completed(runs), total=len(runs), desc="notebooks", unit="notebook", disable=None) as bar:
                for future in bar:
                    name = runs[future]
                    try:
                        seconds, problem = future.result()
                    except BrokenProcessPool:
                        seconds, problem = 0.0, "the process that ran it died, perhaps for want of memory"
                    bar.write(f"{name}: " + (f"done in {seconds:.0f} s" if problem is None else "FAILED"))
                    if problem is not None:
                        problems[name] = problem
        except BaseException:
            for process in multiprocessing.active_children():
                process.kill()  # their kernels notice within a second and end too
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            os.environ.clear()
            os.environ.update(before)
    return problems


def search_path() -> str:
    """Return where a child process looks for packages: in this checkout first."""
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


def leave_interrupts_to_parent() -> None:
    """Ignore Ctrl-C in a worker: the parent gets it too, and ends the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def prepare_environment(scratch: Path, threads: int) -> None:
    """Set the environment of the kernels, so that nothing of the user's own set-up enters the results."""
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))
    os.environ.update(
        JUPYTER_PREFER_ENV_PATH="1",  # the kernel of this environment, not one that the user installed
        TMPDIR=str(scratch),  # where the connection files of the kernels go
        IPYTHONDIR=str(scratch / "ipython"),
        PYTHONPATH=search_path(),
    )
    os.environ.pop("JUPYTER_PATH", None)
    # which source of data failed has been said by now; a kernel without a network would say it again, on stderr
    startup = scratch / "ipython/profile_default/startup"
    startup.mkdir(parents=True)
    (startup / "quiet.py").write_text(
        "import logging\nlogging.getLogger('vaerobust').addHandler(logging.NullHandler())"
    )
    # on its first use matplotlib lists the fonts, and says so on stderr, which a notebook must not do
    subprocess.run([sys.executable, "-c", "import matplotlib.font_manager"], stderr=subprocess.DEVNULL, check=False)


def run(task: Task, scratch: Path) -> Outcome:
    """Execute one notebook; only a run that ended well replaces its executed copy."""
    import jupytext
    import nbformat
    import papermill
    from jupyter_client.manager import AsyncKernelManager
    from papermill.exceptions import PapermillExecutionError

    from vaerobust.zoo.files import write_atomically

    name = task.source.stem

    class SocketKernel(AsyncKernelManager):
        """Talk over Unix sockets: no ports to race for. The path is its own, or two kernels would share one."""

        transport = "ipc"
        ip = str(scratch / name)

    notebook = jupytext.read(task.source)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"  # jupytext draws random ones
    before, after = scratch / f"{name}-before.ipynb", scratch / f"{name}.ipynb"
    nbformat.write(notebook, before)
    start = time.perf_counter()
    problem = None
    try:
        papermill.execute_notebook(
            before, after, task.parameters, kernel_name="python3", kernel_manager_class=SocketKernel,
            cwd=task.source.parent, execution_timeout=task.timeout, progress_bar=False,
        )  # fmt: skip
    except PapermillExecutionError:
        pass  # its traceback is in the copy
    except Exception as error:  # a cell that takes too long, or a kernel that died
        problem = f"{type(error).__name__}: {error}".rstrip()
    seconds = time.perf_counter() - start
    if after.exists():
        notebook = nbformat.read(after, as_version=4)
        where = first_problem(notebook)
        problem = f"{problem}\n{where or last_started(notebook)}" if problem else where
    elif problem is None:
        problem = "papermill wrote nothing"
    if problem is not None:
        if after.exists():
            write_atomically(task.failed, after.read_bytes())
            problem += f"\n\nAll that it did until then: {os.path.relpath(task.failed)}"
        return Outcome(seconds, problem)
    for cell in notebook.cells:
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell["id"] = "parameters"
    for path in ("input_path", "output_path"):  # of a temporary folder
        notebook.metadata.papermill.pop(path, None)
    notebook.metadata["vaerobust"] = task.record
    write_atomically(task.target, (nbformat.writes(notebook) + "\n").encode())
    return Outcome(seconds, None)


def first_problem(notebook: NotebookNode) -> str | None:
    """Describe the first cell that raised an error or wrote to stderr; None if there is none."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                return f"{quoted(cell)}\nraised\n\n{indented(''.join(line + chr(10) for line in output.traceback))}"
            if output.output_type == "stream" and output.name == "stderr":
                return f"{quoted(cell)}\nwrote to stderr, which a page must not show:\n\n{indented(output.text)}"
    return None


def last_started(notebook: NotebookNode) -> str:
    """Quote the cell that ran last."""
    started = [cell for cell in notebook.cells if cell.metadata.get("papermill", {}).get("start_time")]
    return f"The last that ran was {quoted(started[-1])}" if started else "No cell had started."


def quoted(cell: NotebookNode) -> str:
    """Return the number and source of a cell."""
    return f"cell [{cell.get('execution_count') or '*'}]\n\n{indented(cell.source)}\n"


def indented(text: str) -> str:
    """Indent a text, less its terminal colours."""
    return textwrap.indent(re.sub(r"\x1b\[[0-9;]*m", "", text).rstrip(), "    ")


def judge_claims(out: Path) -> bool:
    """Write the ledger of claims; tell whether registry and records fit."""
    try:
        ledger = claims.judge_build(out)
    except claims.LedgerError as error:
        print(f"\nFAILED: the ledger of claims, book/claims.yml:\n{error}", file=sys.stderr)
        return False
    print(f"claims: {claims.describe(ledger)}" + ", with changed parameters, so nothing" * bool(ledger["changed"]))
    return True


def build_site(out: Path) -> int:
    """Build the site with Jupyter Book, unless nothing that enters it has changed; return the exit status."""
    site, work, note = out / "html", out / "site", out / "html.sha256"
    executed = out / "executed/notebooks"
    pages = [*files_under(ROOT / "book"), *(ROOT / "notebooks").glob("*.md"), *executed.glob("*.ipynb")]
    shown = [*files_under(ROOT / "vaerobust"), *(ROOT / "tests").glob("test_*.py"), ROOT / "CITATION.cff"]
    made_from = digest([*pages, *shown, out / "claims.json", ROOT / "_config.yml", ROOT / "_toc.yml", LOCK])
    front = f"The book is in {os.path.relpath(site / 'index.html')}"
    if (site / "index.html").exists() and note.exists() and note.read_text() == made_from:
        print(f"site: up to date\n{front}")
        return 0
    start = time.perf_counter()
    shutil.rmtree(work, ignore_errors=True)  # from nothing: glued numbers and renamed pages never go stale
    environment = os.environ | {"VAEROBUST_OUT": str(out), "PYTHONPATH": search_path()}
    done = subprocess.run(book_command(work, "html"), env=environment, stdout=subprocess.PIPE, text=True, check=False)
    built = work / "_build/html"
    if done.returncode:
        print(
            done.stdout,
            f"Warnings are errors. What was built is in {os.path.relpath(built)}",
            sep="\n",
            file=sys.stderr,
        )
        return 1
    note.unlink(missing_ok=True)
    shutil.rmtree(site, ignore_errors=True)
    built.replace(site)
    shutil.rmtree(work)
    note.write_text(made_from)
    print(f"site: done in {time.perf_counter() - start:.0f} s\n{front}")
    return 0


def book_command(work: Path, builder: str) -> list[str]:
    """Return the command that makes Jupyter Book build all pages anew below ``work``, with warnings as errors."""
    start = "from jupyter_book.cli.main import main; main()"
    if not sys.stderr.isatty():
        start = "from sphinx.util.console import nocolor; nocolor(); " + start
    options = ["--path-output", str(work), "--builder", builder, "--all", "-q", "-W", "-n", "--keep-going"]
    return [sys.executable, "-c", start, "build", str(ROOT), *options]


if __name__ == "__main__":
    raise SystemExit(main())
