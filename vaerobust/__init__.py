"""Robustness of variational autoencoders: criterion, bounds, attacks and certificates.

A point x is r-robust to a perturbation delta if its reconstruction stays within a distance r, more often than not:
P(D(x, delta) <= r) > 1/2, where D is the distance between the reconstruction of x + delta, with the encoder's noise,
and that of x, without noise. Otherwise delta breaks r-robustness. The margin of x is the largest R such that x is
r-robust to every perturbation of norm up to R. Distances, norms and radii are 2-norms in input units: for images, in
pixel values.

The functions below take a model with ``encode(x) -> (mu, sigma)`` and ``decode(z) -> mean``. Inputs x, latents z and
results are float tensors with one row per point. Begin with these, in this order:

    vae = vaerobust.pretrained("mnist", beta=1.0).vae         # or a model of your own
    x = vaerobust.load_images("mnist", "test").pixels[:10]    # (10, 784)
    r = vaerobust.minimum_r(vae, x, level=0.9, seed=0).value  # the 0.9-quantile of D(x), where delta is 0
    vaerobust.theorem_1(vae, x, r, seed=1)                    # the paper's lower bound on the margin, to first order
    vaerobust.certified_margin(vae, x, r, seed=1)             # a lower bound with a guarantee
    vaerobust.strongest_attack(vae, x, r, seed=1)             # an upper bound, from an attack

The bounds have another seed than r, so that they are not computed from the noise that chose r.

Each result has ``to_frame()``, a table with one row per point, and ``to_json()``. Every function that draws random
numbers takes ``seed``; :mod:`vaerobust.randomness` says what it means. What the paper defines is in the modules at the
top of the package. The package ``certify`` goes beyond the paper, ``zoo`` holds the trained models and their data,
``study`` the stored measurements, and ``page`` what the book's notebooks show.
"""

from importlib.metadata import PackageNotFoundError, version

from vaerobust.algorithms import minimum_r
from vaerobust.attacks import AttackSettings, maximum_damage
from vaerobust.bounds import theorem_1
from vaerobust.certify.certificates import certified_margin
from vaerobust.criterion import probability_of_robustness
from vaerobust.distance import distances
from vaerobust.margins import MarginSearch, attack_margin, strongest_attack
from vaerobust.model import VAE, GaussianVAE
from vaerobust.random_direction import random_direction_radius
from vaerobust.zoo.data import load as load_images
from vaerobust.zoo.weights import pretrained

try:
    __version__ = version("vaerobust")
except PackageNotFoundError:  # a checkout that is not installed
    __version__ = "unknown"

__all__ = [
    "VAE",
    "AttackSettings",
    "GaussianVAE",
    "MarginSearch",
    "attack_margin",
    "certified_margin",
    "distances",
    "load_images",
    "maximum_damage",
    "minimum_r",
    "pretrained",
    "probability_of_robustness",
    "random_direction_radius",
    "strongest_attack",
    "theorem_1",
]
