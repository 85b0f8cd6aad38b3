"""The loop that gives calls to an engine, keeps what comes back, and says what became of them.

Start reading at :func:`run`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from vaerobust.cluster.engines import Call, Engine, Timed, Work

HOPELESS = 3
"""After so many failures and no success the others are not tried."""


@dataclass
class Tally:
    """What became of the calls of a run.

    Attributes
    ----------
    what : str
        What the calls are, in the plural.
    found : int
        Calls whose result was there before the run, or was saved by another run meanwhile.
    made : int
        Calls that were computed and kept in this run.
    twice : int
        Calls that were computed here although another run saved the same result first. They count as found too.
    damaged : int
        Results that were there, did not check out, and were computed anew.
    failed : dict of str
        Why a call has no result, by its name; failures of an earlier run that were not tried again are among them.
    waiting : int
        Calls that were not tried.
    lost : int
        Workers that were lost.
    seconds : float
        Wall time of the run.
    work_seconds, core_seconds : float
        Sums over the calls of this run: of their own wall times, and of their processor times.
    """

    what: str = "shards"
    found: int = 0
    made: int = 0
    twice: int = 0
    damaged: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    waiting: int = 0
    lost: int = 0
    seconds: float = 0.0
    work_seconds: float = 0.0
    core_seconds: float = 0.0

    @property
    def speed_up(self) -> float:
        """Sum of the calls' own wall times, over the wall time of the run."""
        return self.work_seconds / self.seconds if self.seconds else 0.0

    def __str__(self) -> str:
        rows = [
            (f"{self.what} computed", f"{self.made}"),
            (f"{self.what} found", f"{self.found}"),
            ("computed twice", f"{self.twice}"),
            ("damaged and computed anew", f"{self.damaged}"),
            ("failed", f"{len(self.failed)}"),
            ("not tried", f"{self.waiting}"),
            ("workers lost", f"{self.lost}"),
            ("wall time", f"{self.seconds:.1f} s"),
            ("core-seconds", f"{self.core_seconds:.1f}"),
            ("speed-up", f"{self.speed_up:.2f}"),
        ]
        always = (f"{self.what} computed", f"{self.what} found", "wall time", "core-seconds", "speed-up")
        shown = [(name, value) for name, value in rows if name in always or value != "0"]
        lines = [f"{name:26} {value:>10}" for name, value in shown]
        lines += [f"missing: {name}: {error}" for name, error in self.failed.items()]
        return "\n".join(lines)


def run(
    calls: Sequence[Call],
    work: Work,
    engine: Engine,
    keep: Callable[[str, Timed], bool],
    *,
    fail: Callable[[str, BaseException], None] = lambda name, error: None,
    there: Callable[[str], bool] = lambda name: False,
    watch: Callable[[str], None] = lambda name: None,
    tally: Tally | None = None,
) -> Tally:
    """Compute calls on an engine.

    A call that fails is noted and does not stop the others, unless the first ones all fail.

    Parameters
    ----------
    calls : sequence of Call
    work : Work
    engine : Engine
    keep : callable
        Told the name and the result of each call that is done; returns false if another run had kept it already.
    fail : callable
        Told the name and the error of each call that failed.
    there : callable
        Asked just before a call is computed whether another run has computed it meanwhile.
    watch : callable
        Told the name of each call that is done, failed or found; for a progress bar.
    tally : Tally, optional
        Where to count; what it says already is kept.

    Returns
    -------
    Tally

    Raises
    ------
    OSError
        If a result cannot be kept, or the scheduler of the engine is gone. What was kept stays.
    """
    tally = Tally() if tally is None else tally
    waiting, running, failures = deque(calls), set[str](), 0
    start = time.perf_counter()
    engine.begin(work)
    try:
        while True:
            if failures < HOPELESS or tally.made or tally.found:
                _submit(waiting, running, engine, there, watch, tally)
            if not running:
                break
            name, result, error = engine.next()
            running.remove(name)
            if result is not None:
                _count(tally, result, keep(name, result))
            elif error is not None:
                failures, tally.failed[name] = failures + 1, described(error)
                fail(name, error)
            watch(name)
    finally:
        tally.waiting = len(waiting) + len(running)
        tally.lost = engine.lost()
        engine.end()
        tally.seconds += time.perf_counter() - start
    return tally


def _submit(
    waiting: deque[Call], running: set[str], engine: Engine, there: Callable[[str], bool],
    watch: Callable[[str], None], tally: Tally,
) -> None:  # fmt: skip
    """Give the engine as many calls as it works on at a time, but for those that another run has computed meanwhile."""
    while waiting and len(running) < engine.width():
        call = waiting.popleft()
        if there(call.name):
            tally.found += 1
            watch(call.name)
        else:
            engine.submit(call)
            running.add(call.name)


def _count(tally: Tally, result: Timed, kept: bool) -> None:
    """Count a call that is done."""
    tally.work_seconds += result.seconds
    tally.core_seconds += result.core_seconds
    if kept:
        tally.made += 1
    else:
        tally.found += 1
        tally.twice += 1


def described(error: BaseException) -> str:
    """Return an error as one line: its type and what it says."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]
