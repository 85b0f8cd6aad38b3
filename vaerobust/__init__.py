"""Robustness of variational autoencoders: criterion, bounds and attacks.

Modules, each of which imports only from those before it: ``checks``, ``files``, ``data``, ``model``, ``linear``,
``protocol``, ``weights``, ``training``; ``criterion``, ``algorithms``, ``lipschitz``, ``bounds``, ``attacks``,
``margins``, ``certificates``, ``sandwich``; ``summaries``, ``benchmarks``, ``commands``; ``figures``, ``page``.
"""
