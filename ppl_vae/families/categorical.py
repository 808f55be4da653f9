"""The categorical family: mixing weights, class probabilities."""

from collections.abc import Mapping
from dataclasses import dataclass

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from ppl_vae.errors import DeclarationError, check_whole
from ppl_vae.families.family import NOTHING, ConjugatePrior, Family, Sums

__all__ = ["Categorical", "DirichletPrior"]


@dataclass(frozen=True)
class DirichletPrior(ConjugatePrior):
    """probs ~ Dirichlet(concentration, ..., concentration); 1 is uniform over the simplex.

    Parameters
    ----------
    concentration : float
        The same for all K categories; positive.

    Raises
    ------
    DeclarationError
        If it is not positive.
    """

    concentration: float = 1.0

    def __post_init__(self) -> None:
        if not self.concentration > 0:
            raise DeclarationError(f"DirichletPrior: concentration must be positive, got {self.concentration}")

    def site(self, family: "Categorical", name: str, values: Mapping[str, Tensor]) -> TorchDistribution:
        """The law of the probabilities, [K] or [batch, K]."""
        alpha = torch.full(family.shape, self.concentration, dtype=family.like.dtype, device=family.like.device)
        return dist.Dirichlet(alpha).to_event(len(family.shape) - 1)


class Categorical(Family):
    r"""p(z = k) = probs_k over {0, ..., K-1}; statistics t(z) = one-hot(z); M-step probs = N_k / N.

    Parameters
    ----------
    n_categories : int
        K.
    batch : int, optional
        Number of such distributions, chosen by an index (a transition table). None: one, called without index.
    prior : DirichletPrior, "weak", optional
        "weak" is DirichletPrior(1).

    Raises
    ------
    DeclarationError
        n_categories below 1, or an unknown prior.

    Examples
    --------
    >>> mixing = Categorical(3)
    >>> [round(p, 3) for p in mixing().probs.tolist()]
    [0.333, 0.333, 0.333]
    """

    constraints = {"probs": constraints.simplex}  # noqa: RUF012

    def __init__(self, n_categories: int, batch: int | None = None, prior: DirichletPrior | str | None = None) -> None:
        check_whole("Categorical", error=DeclarationError, n_categories=n_categories)
        super().__init__(batch or 1, self.choose_prior(prior, DirichletPrior))
        self.n_categories = n_categories
        self.shape = (n_categories,) if batch is None else (batch, n_categories)
        self.register_buffer("like", torch.zeros(()), persistent=False)
        self.register()

    def defaults(self) -> dict[str, Tensor]:
        """Uniform."""
        return {"probs": self.like.new_full(self.shape, 1 / self.n_categories)}

    def distribution(self, index: Tensor | None, *given: Tensor) -> TorchDistribution:
        """dist.Categorical, with batch shape that of `index`."""
        return dist.Categorical(self.probs if index is None else self.probs[index])

    def features(self, x: Tensor, *given: Tensor) -> Tensor:
        """One-hot columns [K, n], all zero where x is missing."""
        codes = torch.arange(self.n_categories, dtype=self.like.dtype, device=self.like.device)
        return (x == codes[:, None]).to(self.like.dtype)

    def log_density(self, expanded: Tensor) -> Tensor:
        """[batch, n]."""
        # 0 * log 0 is not 0: an impossible category gets the lowest number instead, and no datum that is not of it.
        log = self.probs.reshape(self.batch, -1).log()
        density = log.clamp_min(torch.finfo(log.dtype).min / 2) @ expanded
        return torch.where(density < torch.finfo(log.dtype).min / 4, -torch.inf, density)

    def expect(self, expanded: Tensor, r: Tensor) -> Sums:
        """Expected counts [batch, K]."""
        counts = r @ expanded.mT
        return {"count": counts.sum(1), "counts": counts}

    def maximize(self, sums: Sums, estimate: str, fixed: Mapping[str, Tensor] = NOTHING) -> dict[str, Tensor]:
        """probs_k = (N_k + alpha - 1) / (N + K (alpha - 1)), alpha = 1 without a prior (000 (13))."""
        alpha = self.prior.concentration if self.prior is not None and estimate == "map" else 1.0
        mass = (sums["counts"] + (alpha - 1)).clamp_min(0)
        total = mass.sum(-1, keepdim=True)
        # A member that no datum reached has no maximum: every distribution is as good, so the uniform one.
        probs = torch.where(total > 0, mass / total.clamp_min(1e-300), 1 / self.n_categories)
        return {"probs": probs.reshape(self.shape)}

    @property
    def saturated(self) -> int:
        """None: an empty category is an estimate like any other."""
        return 0

    def degenerate(self, sums: Sums, values: Mapping[str, Tensor]) -> Tensor:
        """Never: a category without data has probability zero, which is its estimate."""
        return torch.zeros(self.batch, dtype=torch.bool)
