"""The engine for Dask: calls are tasks of a running cluster, be it of processes of this machine or of many machines.

What all calls share travels in a plugin of the workers, once to each, and again to a worker that is started anew.
Importing this module needs the package ``distributed``.
"""

from __future__ import annotations

import uuid
from concurrent.futures import CancelledError
from typing import Any

import cloudpickle
from distributed import Client, Future, KilledWorker, WorkerPlugin, as_completed, get_worker

from vaerobust.cluster.engines import Call, Outcome, Timed, Work, compact
from vaerobust.zoo.machine import versions

PACKAGES = ("torch", "numpy", "scipy")
"""Packages on whose versions the last digits may depend; workers have the same ones as the caller."""
WAIT = 120
"""Seconds to wait for the first worker."""


class Shared(WorkerPlugin):
    """Keeps on a worker what all calls share.

    Parameters
    ----------
    name : str
        Of this plugin.
    content : bytes
        The pickled work.
    expected : dict of str
        The caller's versions, by package.
    """

    def __init__(self, name: str, content: bytes, expected: dict[str, str]) -> None:
        self.name, self.content, self.expected = name, content, expected
        self._work: Work | None = None

    def work(self) -> Work:
        """Return the work; it is unpickled at the first call.

        Raises
        ------
        RuntimeError
            If the worker has other versions than the caller.
        """
        if self._work is None:
            found = versions(*PACKAGES)
            if found != self.expected:
                raise RuntimeError(f"workers must have the caller's versions {self.expected}, but this one has {found}")
            self._work = cloudpickle.loads(self.content)
        return self._work


def on_worker(name: str, arguments: tuple[Any, ...]) -> Timed:
    """Compute a call on a worker."""
    plugin = get_worker().plugins[name]
    assert isinstance(plugin, Shared)
    return plugin.work().timed(arguments)


class Dask:
    """Computes calls on a Dask cluster.

    A call whose worker dies is given to another one; after as many deaths as Dask's setting
    ``distributed.scheduler.allowed-failures`` allows it has failed.

    Parameters
    ----------
    client : Client
    """

    def __init__(self, client: Client) -> None:
        self.client = client
        self.gone = False

    def begin(self, work: Work) -> None:
        """Send the work to the workers.

        Raises
        ------
        ConnectionError
            If there are no workers, or the scheduler is gone.
        """
        self.name = f"vaerobust-{uuid.uuid4().hex}"
        try:
            self.client.wait_for_workers(1, timeout=WAIT)
            self.client.register_plugin(Shared(self.name, cloudpickle.dumps(work), versions(*PACKAGES)))
            self._deaths = self._removed()
        except (TimeoutError, OSError, CancelledError) as error:
            raise ConnectionError(f"no worker of {self._address()} could be reached in {WAIT} s: {error}") from error
        self.running: dict[Future, str] = {}
        self.completed = as_completed(raise_errors=False)

    def width(self) -> int:
        """Return the number of threads of all workers: a call that waits at a worker would die with it in vain."""
        try:
            return max(1, sum(self.client.nthreads().values()))
        except (OSError, CancelledError, TimeoutError) as error:
            raise self._gone() from error

    def submit(self, call: Call) -> None:
        """Give a call to the cluster."""
        key = f"{call.name}-{self.name}-{uuid.uuid4().hex}"
        try:
            future = self.client.submit(on_worker, self.name, compact(call.arguments), key=key, pure=False)
        except (OSError, CancelledError, RuntimeError) as error:
            raise self._gone() from error
        self.running[future] = call.name
        self.completed.add(future)

    def next(self) -> Outcome:
        """Wait until a call is done.

        Raises
        ------
        ConnectionError
            If the scheduler is gone.
        """
        future = next(self.completed)
        name = self.running.pop(future)
        if future.status == "finished":
            return Outcome(name, future.result(), None)
        if future.status != "error":
            raise self._gone()
        error = future.exception()
        if isinstance(error, KilledWorker):
            error = RuntimeError(
                "its workers died, one after the other: killed, or out of memory. Give them more, or look at their logs"
            )
        return Outcome(name, None, error)

    def end(self) -> None:
        """Cancel the calls that are not done, and take the work from the workers."""
        if self.gone:
            return
        try:
            self.client.cancel(list(self.running), force=True)
            self.client.unregister_worker_plugin(self.name)
        except (OSError, CancelledError, RuntimeError, TimeoutError):  # the scheduler is gone, and with it all of this
            pass

    def lost(self) -> int:
        """Return how many workers left the cluster since the work began."""
        if self.gone:
            return 0
        try:
            return self._removed() - self._deaths
        except (OSError, CancelledError, RuntimeError, TimeoutError):
            return 0

    def _removed(self) -> int:
        events = self.client.get_events("all") or ()
        return sum(event.get("action") == "remove-worker" for _, event in events if isinstance(event, dict))

    def _address(self) -> str:
        return self.client.scheduler.address if self.client.scheduler else "the cluster"

    def _gone(self) -> ConnectionError:
        self.gone = True
        return ConnectionError(f"the scheduler {self._address()} is gone; what was done is kept: run again to go on")
