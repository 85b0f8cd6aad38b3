"""Robustness of variational autoencoders: criterion, bounds and attacks.

Modules, each of which imports only from those before it: ``checks``, ``files``, ``data``, ``model``, ``linear``,
``weights``, ``training``, ``commands``; ``criterion``, ``algorithms``, ``bounds``, ``attacks``, ``margins``;
``figures``, ``page``.
"""
