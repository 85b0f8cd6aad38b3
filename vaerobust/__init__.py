"""Robustness of variational autoencoders: criterion, bounds, attacks and certificates.

A point x is r-robust to a perturbation delta if its reconstruction stays within a distance r, more often than not:
P(D(x, delta) <= r) > 1/2, where D is the distance between the reconstruction of x + delta, with the encoder's noise,
and that of x, without noise. Otherwise delta breaks r-robustness. The margin of x is the largest R such that x is
r-robust to every perturbation of norm up to R. Distances, norms and radii are 2-norms in input units: for images, in
pixel values.

Two functions come first. :func:`measure` measures every bound at some images and reports them, and :func:`wrap` adapts
a VAE of any shape and convention:

    model = vaerobust.wrap(my_module, shape=(1, 28, 28), scale="log_variance")  # or vaerobust.pretrained("mnist", 1.0)
    report = vaerobust.measure(model, images, seed=0)         # images with pixels in [0, 1], shape (n, ...)
    report.table                                              # a DataFrame with one row per image
    report.save("out")                                        # results.csv, results.json, report.html

:func:`compare` sets two reports side by side.

The single functions take a model with ``encode(x) -> (mu, sigma)`` and ``decode(z) -> mean``. Inputs x, latents z and
results are float tensors with one row per point. Begin with these, in this order:

    vae = vaerobust.pretrained("mnist", beta=1.0).vae         # or what wrap returns
    x = vaerobust.load_images("mnist", "test").pixels[:10]    # (10, 784)
    r = vaerobust.minimum_r(vae, x, level=0.9).value          # the 0.9-quantile of D(x), where delta is 0
    vaerobust.theorem_1(vae, x, r)                            # the paper's lower bound on the margin, to first order
    vaerobust.certified_margin(vae, x, r)                     # a lower bound with a guarantee
    vaerobust.strongest_attack(vae, x, r)                     # an upper bound, from an attack

By default the bounds start from other seeds than r, so that they are not computed from the noise that chose r.

Each result has ``to_frame()``, a table with one row per point, and ``to_json()``. Every function that draws random
numbers takes ``seed``; :mod:`vaerobust.randomness` says what it means. What the paper defines is in the modules at the
top of the package. The package ``certify`` goes beyond the paper, ``zoo`` holds the trained models and their data,
``study`` the stored measurements, ``page`` what the book's notebooks show, and ``measuring`` what :func:`measure` does.
"""

from importlib.metadata import PackageNotFoundError, version

from vaerobust.algorithms import minimum_r
from vaerobust.attacks import AttackSettings, maximum_damage
from vaerobust.bounds import theorem_1
from vaerobust.certify.certificates import certified_margin
from vaerobust.criterion import probability_of_robustness
from vaerobust.distance import distances
from vaerobust.margins import strongest_attack
from vaerobust.measuring.compare import compare
from vaerobust.measuring.measure import measure
from vaerobust.measuring.wrap import wrap
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
    "certified_margin",
    "compare",
    "distances",
    "load_images",
    "maximum_damage",
    "measure",
    "minimum_r",
    "pretrained",
    "probability_of_robustness",
    "random_direction_radius",
    "strongest_attack",
    "theorem_1",
    "wrap",
]
