"""Vectors of categories: d independent categorical features."""

from collections.abc import Mapping

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from ppl_vae.errors import DataError, DeclarationError, check_whole
from ppl_vae.families.categorical import DirichletPrior
from ppl_vae.families.family import NOTHING, Family, Parts, Sums

__all__ = ["CategoricalVector"]


class CategoricalVector(Family):
    r"""p(x_j = c) = probs_jc over {0, ..., C-1} for each of d independent features: latent class analysis.

    t(x) = the one-hot vectors of the features. M-step: probs_kjc = (N_kjc + alpha - 1) / sum_c (N_kjc + alpha - 1)
    with N_kjc = sum_i r_ki [x_ij = c] and alpha = 1 without a prior. Missing entries (NaN) are skipped. Features with
    different numbers of categories are blocks of a `Product`.

    Parameters
    ----------
    n_categories : int
        C, the same for every feature.
    n_features : int
        d; the event shape is (d,).
    batch : int
        Number of members K; the parameter has shape [K, d, C].
    prior : DirichletPrior, "weak", optional
        Of every feature's probabilities; "weak" is DirichletPrior(1).

    Raises
    ------
    DataError
        For values other than 0, ..., C-1.

    Examples
    --------
    >>> import torch
    >>> answers = CategoricalVector(3, n_features=2, batch=2)
    >>> x = torch.tensor([[0.0, 2.0], [1.0, float("nan")]])
    >>> sums = answers.expect(answers.features(x), torch.eye(2))
    >>> answers.maximize(sums, "ml")["probs"][0].round(decimals=3).tolist()
    [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    """

    constraints = {"probs": constraints.simplex}  # noqa: RUF012

    def __init__(
        self, n_categories: int, n_features: int, *, batch: int, prior: DirichletPrior | str | None = None
    ) -> None:
        sizes = {"n_categories": n_categories, "n_features": n_features, "batch": batch}
        check_whole("CategoricalVector", error=DeclarationError, **sizes)
        super().__init__(batch, self.choose_prior(prior, DirichletPrior))
        self.n_categories, self.n_features = n_categories, n_features
        self.shape = (batch, n_features, n_categories)
        self.register_buffer("like", torch.zeros(()), persistent=False)
        self.register()

    def defaults(self) -> dict[str, Tensor]:
        """Uniform."""
        return {"probs": self.like.new_full(self.shape, 1 / self.n_categories)}

    def distribution(self, index: Tensor | None, *given: Tensor) -> TorchDistribution:
        """Independent Categorical over the features."""
        return dist.Categorical(self.probs[0 if index is None else index]).to_event(1)

    def adapt(self, parts: Parts) -> None:
        """Check every value."""
        first = 0
        for x, _ in parts:
            self._read(x, first)
            first += len(x)

    def _read(self, x: Tensor, first: int = 0) -> tuple[Tensor, Tensor]:
        """Categories [n, d], zero where missing, and which are seen."""
        x = x.reshape(len(x), -1).to(self.like)
        seen = ~x.isnan()
        inside = (x >= 0) & (x < self.n_categories) & (x == x.floor())
        wrong = seen & ~inside
        if bool(wrong.any()):
            row, column = wrong.nonzero()[0].tolist()
            raise DataError(
                f"CategoricalVector takes categories 0, ..., {self.n_categories - 1}; {int(wrong.sum())} values are "
                f"not, the first is {x[row, column].item():g} in row {first + row} (counted from 0), feature {column}; "
                "recode them"
            )
        return torch.where(seen, x, 0.0).long(), seen

    def coordinates(self, x: Tensor) -> Tensor:
        """The one-hot vectors, [n, d C]."""
        return self.features(x).mT

    def features(self, x: Tensor, *given: Tensor) -> Tensor:
        """One-hot columns, [d C, n], zero where x is missing."""
        category, seen = self._read(x)
        one_hot = torch.nn.functional.one_hot(category, self.n_categories).to(self.like) * seen[..., None]
        return one_hot.flatten(1).mT.contiguous()

    def log_density(self, expanded: Tensor) -> Tensor:
        """sum_j log probs_kj(x_ij) over the seen entries, [K, n]."""
        # The smallest probability is that of torch's Categorical.
        return self.probs.clamp_min(torch.finfo(self.probs.dtype).eps).log().flatten(1) @ expanded

    def expect(self, expanded: Tensor, r: Tensor) -> Sums:
        """N_k [K], and N_kjc [K, d, C]."""
        return {"count": r.sum(1), "counts": (r @ expanded.mT).reshape(self.shape)}

    def maximize(self, sums: Sums, estimate: str, fixed: Mapping[str, Tensor] = NOTHING) -> dict[str, Tensor]:
        """Shares of the categories among the entries seen, with estimate="map" the mode of the Dirichlet posterior."""
        alpha = self.prior.concentration if self.prior is not None and estimate == "map" else 1.0
        mass = (sums["counts"] + (alpha - 1)).clamp_min(0)
        total = mass.sum(-1, keepdim=True)
        # A feature that a member never sees has no maximum: every distribution is as good, so the uniform one.
        probs = torch.where(total > 0, mass / total.clamp_min(1e-300), 1 / self.n_categories)
        return {"probs": probs}

    @property
    def width(self) -> int:
        """Densities and one-hot entries of a datum."""
        return self.batch + self.n_features * self.n_categories
