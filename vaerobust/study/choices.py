"""Choices that the paper leaves open about a margin, varied one at a time.

:data:`CHOICES` lists them. The first is the one that all main summaries use; each other choice changes
one thing. :func:`vaerobust.study.measurements.measure_choices` measures the margins under all of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from vaerobust.attacks import AttackSettings

CHEAP_ATTACK = AttackSettings(steps=20, restarts=2, samples=8)
"""The attack of the stored margins, which need hundreds of searches per model: fewer steps and samples than usual."""


@dataclass(frozen=True)
class Choice:
    """One way to settle what the paper leaves open about a margin.

    Attributes
    ----------
    name : str
        An identifier, which stored files use as a key.
    label : str
        What a reader sees.
    level : float
        Level of the quantile of D(x) that is taken as r, in (0, 1). It has no effect if ``r`` is given.
    r : float, optional
        The same r for every image, in pixels.
    samples : int
        Number of draws of eta from which r is estimated, and of draws in each test of r-robustness.
    reference : {'mean', 'sample'}
        With 'mean', D is measured from g(mu(x)), as in Eq. 3. With 'sample', it is measured from a second sampled
        reconstruction, as in Definition 3.1.
    attack : AttackSettings
        Settings of the attack. If ``perturb_sigma`` is true, the perturbation also changes sigma, in the attack and in
        the tests of r-robustness (Algorithm 2). If not, sigma is that of the unperturbed image (Eq. 3).
    images : int
        Number of images that are measured; fewer where the attack is expensive.
    """

    name: str
    label: str
    level: float = 0.9
    r: float | None = None
    samples: int = 1000
    reference: str = "mean"
    attack: AttackSettings = CHEAP_ATTACK
    images: int = 30


DEFAULT = Choice("default", "as everywhere")
"""The choice of the main summaries."""
FIXED_R = Choice("fixed_r_4", "r = 4", r=4.0)
"""The other choice of the main summaries, with the same r for all images and models."""

CHOICES = (
    DEFAULT,
    Choice("level_075", "r: 0.75-quantile", level=0.75),
    Choice("level_099", "r: 0.99-quantile", level=0.99),
    Choice("fixed_r_2", "r = 2", r=2.0),
    FIXED_R,
    Choice("fixed_r_6", "r = 6", r=6.0),
    Choice("perturbed_sigma", "sigma moves", attack=replace(CHEAP_ATTACK, perturb_sigma=True)),
    Choice("sampled_reference", "sampled reference", reference="sample"),
    Choice("samples_40", "40 samples", samples=40),
    Choice("samples_4000", "4000 samples", samples=4000),
    Choice("pixel_box", "pixels in [0, 1]", attack=replace(CHEAP_ATTACK, box=True)),
    Choice("stronger_attack", "stronger attack", attack=AttackSettings(steps=80, restarts=4, samples=16), images=6),
    Choice("lbfgs", "L-BFGS-B", attack=replace(CHEAP_ATTACK, method="lbfgs"), images=6),
)
"""All choices."""
