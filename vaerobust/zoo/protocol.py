"""Which models there are: the protocol of Appendix F, and in what each model differs from it.

:class:`Spec` describes one training run. The lists below it name the models: :data:`GRID` and :data:`COMPANIONS` ship,
of :data:`SEEDS` and :data:`VARIANTS` only measurements are stored (:mod:`vaerobust.study`). Training itself is in
:mod:`vaerobust.zoo.training`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from vaerobust import checks
from vaerobust.model import LIKELIHOODS, SCALES, VAE
from vaerobust.zoo.data import DATASETS

OBJECTIVES = ("beta", "beta-tc")
PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True)
class Spec:
    """Everything that a training run depends on, beside the images.

    Attributes
    ----------
    dataset : {'mnist', 'fashion-mnist'}
    beta : float
        Weight of the KL term, > 0 (Section 2.3). With the objective 'beta-tc' it weights the total correlation instead.
    tau : float
        Offset of the encoder's standard deviation, >= 0 (Section 4.2).
    likelihood : str
        Distribution of a pixel, one of :data:`vaerobust.model.LIKELIHOODS`.
    seed : int
        Seed of initial weights, order of the batches and noise.
    epochs, batch_size : int
        As in Appendix F by default.
    learning_rate : float
        Step size of Adam, as in Appendix F by default.
    hidden, latents : int
        Width of the hidden layers and of the latent space (d_z), as in Appendix F by default.
    objective : {'beta', 'beta-tc'}
        The objective of the beta-VAE (Section 2.3), or of the beta-TC-VAE, in which beta weights the total correlation
        alone. At beta = 1 both are the same.
    scale : {'softplus', 'exp'}
        The function that turns the encoder's output into a standard deviation.
    precision : {'float32', 'bfloat16'}
        Precision of the factors in matrix products; their sums and all other operations stay in float32. With
        'bfloat16' training takes 0.6 of the time on processors that multiply it natively; on others both are the same.

    Raises
    ------
    ValueError
        If a value is out of its range; the message names it.
    """

    dataset: str = "mnist"
    beta: float = 1.0
    tau: float = 0.0
    likelihood: str = "bernoulli"
    seed: int = 0
    epochs: int = 100
    batch_size: int = 512
    learning_rate: float = 1e-3
    hidden: int = 400
    latents: int = 20
    objective: str = "beta"
    scale: str = "softplus"
    precision: str = "float32"

    def __post_init__(self) -> None:
        checks.one_of("dataset", self.dataset, DATASETS)
        checks.one_of("likelihood", self.likelihood, LIKELIHOODS)
        checks.one_of("objective", self.objective, OBJECTIVES)
        checks.one_of("scale", self.scale, SCALES)
        checks.one_of("precision", self.precision, PRECISIONS)
        checks.positive("beta", self.beta)
        checks.positive("tau", self.tau, zero=True)
        checks.positive("learning_rate", self.learning_rate)
        for name in ("epochs", "batch_size", "hidden", "latents"):
            checks.count(name, getattr(self, name))
        checks.count("seed", self.seed, least=0)

    @property
    def name(self) -> str:
        """The name of the model's files: data set, beta, tau, and most other fields that differ from their defaults.

        Not part of it are ``epochs``, ``batch_size``, ``learning_rate``, ``hidden`` and ``precision``. Two runs that
        differ only there have the same name.
        """
        parts = [self.dataset, f"beta{self.beta:g}", f"tau{self.tau:g}"]
        parts += [str(getattr(self, field)) for field in ("likelihood", "objective", "scale") if self.varies(field)]
        parts += [f"{field}{getattr(self, field)}" for field in ("latents", "seed") if self.varies(field)]
        return "_".join(parts)

    def varies(self, field: str) -> bool:
        """Return whether a field differs from its default."""
        return bool(getattr(self, field) != getattr(Spec, field))

    def build(self) -> VAE:
        """Return the untrained model. Its initial weights depend on the seed, the widths and nothing else."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return VAE(
                784, self.hidden, self.latents, tau=self.tau, likelihood=self.likelihood, scale=self.scale
            )  # fmt: skip


BETAS = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0)
"""The values of beta of the models with tau = 0, on each data set."""
TAUS = (0.1, 0.5, 1.0)
"""The values of tau of the MNIST models with beta = 1, in addition to 0."""
FAST = Spec(precision="bfloat16")
"""The settings that all models outside the grid share: training in bfloat16, which is faster."""

GRID = (
    *(Spec("mnist", beta) for beta in BETAS),
    *(Spec("mnist", tau=tau) for tau in TAUS),
    *(Spec("fashion-mnist", beta) for beta in BETAS),
)
"""The 15 models of the paper's experiments, whose weights ship."""

COMPANIONS = (
    *(replace(FAST, dataset=name, beta=5.0, objective="beta-tc") for name in DATASETS),
    *(replace(FAST, beta=beta, latents=2) for beta in (1.0, 10.0)),
    *(replace(FAST, beta=beta, likelihood="gaussian") for beta in (0.1, 1.0, 5.0)),
)
"""Models that check single claims of Section 5, whose weights ship too.

These are the beta-TC-VAEs, models with two latents for Theorem 2, and models with a Gaussian likelihood for Eq. 7.
"""

HEADLINES = (
    *(Spec("mnist", beta) for beta in (0.1, 1.0, 5.0, 10.0)),
    Spec("mnist", tau=0.5),
    *(Spec("fashion-mnist", beta) for beta in (0.1, 1.0, 10.0)),
)
"""The models of the grid that are compared to measure trends over beta and tau."""

SEEDS = tuple(
    replace(spec, seed=seed, precision="bfloat16")
    for seed in range(1, 5)
    for spec in HEADLINES
    if spec.dataset == "mnist" or seed < 3
)
"""Further training seeds of the headlines: four on MNIST, two on fashion-MNIST. Only their summaries are stored."""

VARIANTS = (
    *(replace(FAST, beta=beta, likelihood="continuous_bernoulli") for beta in (0.1, 5.0)),
    *(replace(FAST, beta=beta, scale="exp") for beta in (0.1, 5.0)),
)
"""Models with other choices where the paper leaves training open. Only their summaries are stored.

Models with a Gaussian likelihood, which belong here too, are among the companions.
"""

SUMMARISED = (*HEADLINES, *(spec for spec in COMPANIONS if spec.latents == Spec.latents), *SEEDS, *VARIANTS)
"""The models whose main quantities are stored as summaries."""
