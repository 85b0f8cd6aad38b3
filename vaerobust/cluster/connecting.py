"""From the command line to a Dask client: ``--workers N`` starts a cluster here, ``--scheduler ADDRESS`` joins one.

Start reading at :func:`connected`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from vaerobust.cluster.engines import Engine

if TYPE_CHECKING:
    from distributed import Client

MISSING = "a cluster needs the package distributed, which is not installed: pip install 'vaerobust[cluster]'"
"""What is said where Dask is not installed."""
RETRY = click.option("--retry", is_flag=True, help="Try again what failed in an earlier run.")
"""The option of commands that keep shards."""
JOIN = 30
"""Seconds to wait for a scheduler."""


def cluster_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options ``--workers`` and ``--scheduler`` to a command."""
    for option in (
        click.option("--scheduler", metavar="ADDRESS", help="Compute on this running Dask cluster."),
        click.option("--workers", type=click.IntRange(1), help="Compute on a Dask cluster of so many processes here."),
    ):
        command = option(command)
    return command


@contextmanager
def connected(workers: int | None, scheduler: str | None) -> Iterator[Client | None]:
    """Give a Dask client, and the address of its dashboard to the reader; give None if no cluster was asked for.

    Parameters
    ----------
    workers : int, optional
        Start a cluster of so many processes on this machine, each with one thread. It ends with this process.
    scheduler : str, optional
        Join the cluster of this scheduler, such as ``tcp://10.0.0.1:8786``.

    Raises
    ------
    ValueError
        If both are given, or Dask is not installed.
    ConnectionError
        If there is no scheduler at that address.
    """
    if workers is None and scheduler is None:
        yield None
        return
    if workers is not None and scheduler is not None:
        raise ValueError("only one of --workers and --scheduler can be given")
    if workers is not None:
        with local_cluster(workers) as client:
            click.echo(f"dashboard: {client.dashboard_link}", err=True)
            yield client
        return
    try:
        from distributed import Client
    except ImportError as error:
        raise ValueError(MISSING) from error
    try:
        client = Client(scheduler, timeout=JOIN)
    except (OSError, ValueError, TimeoutError) as error:
        raise ConnectionError(f"no Dask scheduler answers at {scheduler!r}: {error}") from error
    with client:
        click.echo(f"dashboard: {client.dashboard_link}", err=True)
        yield client


@contextmanager
def local_cluster(workers: int) -> Iterator[Client]:
    """Start a cluster of some processes on this machine, each with one thread, and give its client; end it at the end.

    Raises
    ------
    ValueError
        If Dask is not installed.
    """
    try:
        from distributed import Client, LocalCluster
    except ImportError as error:
        raise ValueError(MISSING) from error
    with (
        LocalCluster(
            n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=":0", silence_logs=logging.ERROR
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


def engine_of(client: Client) -> Engine:
    """Return the engine of a Dask client.

    Raises
    ------
    TypeError
        If it is no client.
    ValueError
        If Dask is not installed.
    """
    try:
        from distributed import Client as Dasks

        from vaerobust.cluster.dask_engine import Dask
    except ImportError as error:
        raise ValueError(MISSING) from error
    if not isinstance(client, Dasks):
        raise TypeError(f"client must be a distributed.Client, but is {type(client).__name__}")
    return Dask(client)
