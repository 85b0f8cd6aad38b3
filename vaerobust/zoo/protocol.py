"""Which models there are: the protocol of Appendix F, and what of it each model varies."""

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
    """Everything that a training run depends on, beside the data.

    Attributes
    ----------
    dataset : {'mnist', 'fashion-mnist'}
    beta : float
        Weight of the KL term, > 0 (Section 2.3); of the total correlation, if that is the objective.
    tau : float
        Offset of the encoder's standard deviation, >= 0 (Section 4.2).
    likelihood : str
        One of :data:`vaerobust.model.LIKELIHOODS`.
    seed : int
        Of initial weights, batch order and noise.
    epochs, batch_size, learning_rate, hidden, latents : int, int, float, int, int
        As in Appendix F.
    objective : {'beta', 'beta-tc'}
        The beta-VAE (Section 2.3), or the beta-TC-VAE, where beta weights the total correlation alone. They are one at
        beta = 1.
    scale : {'softplus', 'exp'}
        How the encoder's output becomes a standard deviation.
    precision : {'float32', 'bfloat16'}
        Of the factors in matrix products; sums and everything else stay float32. 'bfloat16' takes 0.6 of the time on
        processors that multiply it, and is the same as 'float32' on others.

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
        """A file name: data set, beta and tau, then whatever tells the model from others and is not the default."""
        parts = [self.dataset, f"beta{self.beta:g}", f"tau{self.tau:g}"]
        parts += [str(getattr(self, field)) for field in ("likelihood", "objective", "scale") if self.varies(field)]
        parts += [f"{field}{getattr(self, field)}" for field in ("latents", "seed") if self.varies(field)]
        return "_".join(parts)

    def varies(self, field: str) -> bool:
        """Tell whether a field differs from its default."""
        return bool(getattr(self, field) != getattr(Spec, field))

    def build(self) -> VAE:
        """Return the untrained model; its initial weights depend on the seed alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return VAE(
                784, self.hidden, self.latents, tau=self.tau, likelihood=self.likelihood, scale=self.scale
            )  # fmt: skip


BETAS = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0)
TAUS = (0.1, 0.5, 1.0)
FAST = Spec(precision="bfloat16")

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
"""Models behind single claims of Section 5, whose weights ship too: beta-TC-VAEs, Theorem 2 on a grid, Eq. 7."""

HEADLINES = (
    *(Spec("mnist", beta) for beta in (0.1, 1.0, 5.0, 10.0)),
    Spec("mnist", tau=0.5),
    *(Spec("fashion-mnist", beta) for beta in (0.1, 1.0, 10.0)),
)
"""The models of the grid on which the trends over beta and tau rest."""

SEEDS = tuple(
    replace(spec, seed=seed, precision="bfloat16")
    for seed in range(1, 5)
    for spec in HEADLINES
    if spec.dataset == "mnist" or seed < 3
)
"""Further training seeds of the headlines; only summaries of them are kept."""

VARIANTS = (
    *(replace(FAST, beta=beta, likelihood="continuous_bernoulli") for beta in (0.1, 5.0)),
    *(replace(FAST, beta=beta, scale="exp") for beta in (0.1, 5.0)),
)
"""What the paper leaves open, where it needs training; only summaries are kept. The Gaussian ones are companions."""

SUMMARISED = (*HEADLINES, *(spec for spec in COMPANIONS if spec.latents == Spec.latents), *SEEDS, *VARIANTS)
"""The models of which there are summaries."""
