"""Work on more than one process or machine: shards, the engines that compute them, and one loop that keeps results.

A *call* is a named piece of work; a *shard* is the call whose result is kept in a file, and is identified by the digest
of the weights, a range of images, and the digest of the settings. What a shard computes depends on these alone: its
noise comes from the measurement's seed, it is computed on a stated number of threads, and neither the worker nor the
order matters. So the joined result has the same bytes whoever computed the shards.

- :mod:`vaerobust.cluster.shards` keeps each shard's result in a sealed file of its own, and names them in a manifest;
- :mod:`vaerobust.cluster.engines` computes calls in this process, in a pool of processes, or on a Dask cluster;
- :mod:`vaerobust.cluster.running` is the loop that gives calls to an engine and keeps what comes back;
- :mod:`vaerobust.cluster.connecting` turns ``--workers`` and ``--scheduler`` into a Dask client.

Workers return results and write nothing, so they need no disk in common with the caller, who writes each file as a
whole. What all calls share, such as a model, is sent once to each worker.
"""
