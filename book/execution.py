"""Execute notebooks with papermill, several at a time, each in a process and a kernel of its own.

:func:`execute` takes tasks and returns what went wrong, by notebook. A notebook fails if a cell raises an error, writes
to stderr or takes too long, or if its kernel dies. Only a run that ended well replaces the executed copy; the copy of a
failed run is kept beside it, for whoever looks for the reason. Which notebooks are to run is decided in
``freshness.py``.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from checkout import commit, processors, search_path
from freshness import Task

if TYPE_CHECKING:
    from nbformat import NotebookNode

# Slow imports (torch, papermill) are in the functions that need them, so that a build with nothing to do is quick.

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


class Outcome(NamedTuple):
    """How a run ended.

    Attributes
    ----------
    seconds : float
    problem : str or None
        What went wrong and where; None if nothing did.
    """

    seconds: float
    problem: str | None


def execute(tasks: list[Task], jobs: int) -> dict[str, str]:
    """Run the tasks, ``jobs`` at a time; return the problems by notebook."""
    if not tasks:
        return {}
    from vaerobust.zoo.machine import processor

    jobs = max(1, min(jobs, len(tasks)))
    threads = max(1, processors() // jobs)
    made_by = {"commit": commit(), "processor": processor(), "threads": threads}
    for task in tasks:
        task.record.update(made_by)
    with tempfile.TemporaryDirectory(prefix="vaerobust-") as scratch, kernel_environment(Path(scratch), threads):
        return run_all(tasks, jobs, Path(scratch))


def run_all(tasks: list[Task], jobs: int, scratch: Path) -> dict[str, str]:
    """Run the tasks in a pool of ``jobs`` processes, and show the progress; return the problems by notebook."""
    from tqdm import tqdm

    problems = {}
    context = multiprocessing.get_context("spawn")  # a forked process would inherit torch's locked thread pool
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=leave_interrupts_to_parent)
    try:
        runs = {pool.submit(run, task, scratch): task.source.stem for task in tasks}
        with tqdm(as_completed(runs), total=len(runs), desc="notebooks", unit="notebook", disable=None) as bar:
            for future in bar:
                name = runs[future]
                try:
                    seconds, problem = future.result()
                except BrokenProcessPool:
                    seconds, problem = 0.0, "the process that ran it died; a lack of memory is the usual reason"
                bar.write(f"{name}: " + (f"done in {seconds:.0f} s" if problem is None else "FAILED"))
                if problem is not None:
                    problems[name] = problem
    except BaseException:
        for process in multiprocessing.active_children():
            process.kill()  # their kernels notice within a second and end too
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return problems


def leave_interrupts_to_parent() -> None:
    """Ignore Ctrl-C in a worker process: the parent gets it too, and ends the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def kernel_environment(scratch: Path, threads: int) -> Iterator[None]:
    """Set the environment that kernels inherit, so that the user's own configuration cannot enter the results.

    The environment is restored at the end.
    """
    before = os.environ.copy()
    try:
        set_environment(scratch, threads)
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def set_environment(scratch: Path, threads: int) -> None:
    """Set the variables and write the start-up file of :func:`kernel_environment`."""
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))
    os.environ.update(
        JUPYTER_PREFER_ENV_PATH="1",  # the kernel of this environment, not one that the user installed
        TMPDIR=str(scratch),  # where the connection files of the kernels go
        IPYTHONDIR=str(scratch / "ipython"),
        PYTHONPATH=search_path(),
    )
    os.environ.pop("JUPYTER_PATH", None)
    # the build has said which source of data failed; a kernel without a network would repeat it, on stderr
    startup = scratch / "ipython/profile_default/startup"
    startup.mkdir(parents=True)
    (startup / "quiet.py").write_text(
        "import logging\nlogging.getLogger('vaerobust').addHandler(logging.NullHandler())"
    )
    # on its first use matplotlib lists the fonts and says so on stderr, which would fail the first notebook
    subprocess.run([sys.executable, "-c", "import matplotlib.font_manager"], stderr=subprocess.DEVNULL, check=False)


def run(task: Task, scratch: Path) -> Outcome:
    """Execute one notebook, and keep its copy under ``task.target`` or, if it failed, ``task.failed``."""
    import nbformat

    from vaerobust.zoo.files import write_atomically

    after = scratch / f"{task.source.stem}.ipynb"
    start = time.perf_counter()
    problem = run_with_papermill(task, after, scratch)
    seconds = time.perf_counter() - start
    if not after.exists():
        return Outcome(seconds, problem or "papermill wrote nothing")
    notebook = nbformat.read(after, as_version=4)
    where = first_problem(notebook)
    if problem is not None or where is not None:
        problem = f"{problem}\n{where or last_started(notebook)}" if problem else where
        write_atomically(task.failed, after.read_bytes())
        return Outcome(seconds, f"{problem}\n\nEverything up to there: {os.path.relpath(task.failed)}")
    remove_traces(notebook)
    notebook.metadata["vaerobust"] = task.record
    write_atomically(task.target, (nbformat.writes(notebook) + "\n").encode())
    return Outcome(seconds, None)


def run_with_papermill(task: Task, after: Path, scratch: Path) -> str | None:
    """Execute a notebook into the file ``after``.

    Returns
    -------
    str or None
        What ended the run; None if the notebook ran to its end or until a cell raised an error, which is then among the
        outputs in the file.
    """
    import jupytext
    import nbformat
    import papermill
    from jupyter_client.manager import AsyncKernelManager
    from papermill.exceptions import PapermillExecutionError

    name = task.source.stem

    class SocketKernel(AsyncKernelManager):
        """Talk over Unix sockets, which need no free ports; each kernel has a path of its own, so none is shared."""

        transport = "ipc"
        ip = str(scratch / name)

    notebook = jupytext.read(task.source)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"  # jupytext draws random ones
    before = scratch / f"{name}-before.ipynb"
    nbformat.write(notebook, before)
    try:
        papermill.execute_notebook(
            before, after, task.parameters, kernel_name="python3", kernel_manager_class=SocketKernel,
            cwd=task.source.parent, execution_timeout=task.timeout, progress_bar=False,
        )  # fmt: skip
    except PapermillExecutionError:
        return None
    except Exception as error:  # a cell that takes too long, or a kernel that died
        return f"{type(error).__name__}: {error}".rstrip()
    return None


def remove_traces(notebook: NotebookNode) -> None:
    """Remove from an executed notebook what differs between equal runs: a random id and temporary paths."""
    for cell in notebook.cells:
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell["id"] = "parameters"
    for path in ("input_path", "output_path"):
        notebook.metadata.papermill.pop(path, None)


def first_problem(notebook: NotebookNode) -> str | None:
    """Describe the first cell that raised an error or wrote to stderr; return None if no cell did."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                return f"{quoted(cell)}\nraised\n\n{indented(''.join(line + chr(10) for line in output.traceback))}"
            if output.output_type == "stream" and output.name == "stderr":
                return f"{quoted(cell)}\nwrote to stderr, which a page must not show:\n\n{indented(output.text)}"
    return None


def last_started(notebook: NotebookNode) -> str:
    """Return a sentence that quotes the cell that started last."""
    started = [cell for cell in notebook.cells if cell.metadata.get("papermill", {}).get("start_time")]
    return f"The last cell that started was {quoted(started[-1])}" if started else "No cell had started."


def quoted(cell: NotebookNode) -> str:
    """Return the number and source of a cell."""
    return f"cell [{cell.get('execution_count') or '*'}]\n\n{indented(cell.source)}\n"


def indented(text: str) -> str:
    """Return a text indented, without the colours of a terminal."""
    return textwrap.indent(re.sub(r"\x1b\[[0-9;]*m", "", text).rstrip(), "    ")
