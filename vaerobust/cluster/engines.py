"""Engines: where calls are computed. In this process, in a pool of processes, or on a Dask cluster.

All of them do the same: they take calls, and give back outcomes as they are done. Start reading at :class:`Engine`. The
engine for Dask is in :mod:`vaerobust.cluster.dask_engine`, since Dask need not be installed.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch


class Call(NamedTuple):
    """A named piece of work.

    Attributes
    ----------
    name : str
        Different for each call.
    arguments : tuple
        What the function gets after what all calls share.
    """

    name: str
    arguments: tuple[Any, ...]


def compact(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return arguments whose tensors own their memory: a part of a tensor would travel with the whole of it."""
    return tuple(one.clone() if isinstance(one, torch.Tensor) else one for one in arguments)


class Timed(NamedTuple):
    """What a function returned, with the seconds of wall time and of processor time that it took."""

    value: Any
    seconds: float
    core_seconds: float


class Outcome(NamedTuple):
    """What became of a call: its result, or else the error with which it ended."""

    name: str
    result: Timed | None
    error: BaseException | None


@dataclass(frozen=True)
class Work:
    """What is computed.

    Attributes
    ----------
    function : callable
        Called as ``function(shared, *arguments)``. It belongs to a module, so that other processes can import it.
    shared : object
        What all calls share, such as a model. It is sent once to each worker.
    threads : int
        Threads that each call is computed on. The last digits of sums depend on it, so it is the same on all workers.
    """

    function: Callable[..., Any]
    shared: Any
    threads: int = 1

    def timed(self, arguments: tuple[Any, ...]) -> Timed:
        """Call the function, and take its time."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        clock = time.thread_time if self.threads == 1 else time.process_time
        start, core_start = time.perf_counter(), clock()
        try:
            value = self.function(self.shared, *arguments)
        finally:
            torch.set_num_threads(before)
        return Timed(value, time.perf_counter() - start, clock() - core_start)


class Engine(Protocol):
    """Computes calls.

    A loop begins the work, submits calls up to the engine's width, takes outcomes as they come, and ends the work.
    """

    def begin(self, work: Work) -> None:
        """Make ready for calls of this work."""

    def width(self) -> int:
        """Return how many calls are worked on at a time; at least 1."""

    def submit(self, call: Call) -> None:
        """Take a call."""

    def next(self) -> Outcome:
        """Wait until a call is done, and return what became of it."""

    def end(self) -> None:
        """Give up the calls that are not done."""

    def lost(self) -> int:
        """Return how many workers were lost since the work began."""


class Here:
    """Computes one call after the other in this process."""

    def begin(self, work: Work) -> None:
        """Make ready for calls of this work."""
        self.work, self.calls = work, deque[Call]()

    def width(self) -> int:
        """Return 1."""
        return 1

    def submit(self, call: Call) -> None:
        """Take a call."""
        self.calls.append(call)

    def next(self) -> Outcome:
        """Compute the next call."""
        call = self.calls.popleft()
        try:
            return Outcome(call.name, self.work.timed(call.arguments), None)
        except Exception as error:
            return Outcome(call.name, None, error)

    def end(self) -> None:
        """Forget the calls that are not done."""
        self.calls.clear()

    def lost(self) -> int:
        """Return 0."""
        return 0


_WORK: Work | None = None
"""In a process of a pool: the work that it computes."""


class Pool:
    """Computes calls in processes of this machine. They end when this process ends, however it ends.

    Parameters
    ----------
    processes : int
    """

    def __init__(self, processes: int) -> None:
        self.processes = processes

    def begin(self, work: Work) -> None:
        """Start the pool; each process gets the work once."""
        context = multiprocessing.get_context("spawn")  # a forked process would inherit locks of torch's threads
        self.pool = ProcessPoolExecutor(
            self.processes, mp_context=context, initializer=begin_in_pool, initargs=(work,)
        )  # fmt: skip
        self.running: dict[Future[Timed], str] = {}

    def width(self) -> int:
        """Return the number of processes."""
        return self.processes

    def submit(self, call: Call) -> None:
        """Give a call to the pool."""
        self.running[self.pool.submit(in_pool, compact(call.arguments))] = call.name

    def next(self) -> Outcome:
        """Wait until a call is done.

        Raises
        ------
        ConnectionError
            If a process died. The pool cannot go on without it.
        """
        future = next(iter(wait(self.running, return_when=FIRST_COMPLETED).done))
        name = self.running.pop(future)
        error = future.exception()
        if isinstance(error, BrokenProcessPool):
            raise ConnectionError("a process was killed or ran out of memory; run again to go on") from error
        return Outcome(name, None if error else future.result(), error)

    def end(self) -> None:
        """Stop the pool."""
        self.pool.shutdown(wait=not self.running, cancel_futures=True)

    def lost(self) -> int:
        """Return 0: a pool that loses a process ends."""
        return 0


def begin_in_pool(work: Work) -> None:
    """Make a process of a pool ready: it keeps the work, and ends with its parent."""
    global _WORK
    _WORK = work
    end_with_parent()


def in_pool(arguments: tuple[Any, ...]) -> Timed:
    """Compute a call in a process of a pool."""
    assert _WORK is not None
    return _WORK.timed(arguments)


def end_with_parent() -> None:
    """End this process as soon as the one that started it has ended, even by a signal that nothing can catch."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
