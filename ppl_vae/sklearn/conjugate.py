"""Variational Bayes by scikit-learn's rules: reg_covar is added, and an absolute change of the bound ends it."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch

from ppl_vae.declare import LatentVariableModel
from ppl_vae.families import Normal, NormalInverseWishartPrior, NormalPosterior, conjugate
from ppl_vae.families.family import Sums
from ppl_vae.infer.expected import Posteriors
from ppl_vae.infer.vb import VB
from ppl_vae.sklearn.density import Density, normal
from ppl_vae.sklearn.engine import Chronicle

__all__ = ["ChangeVB", "RegularisedPrior", "expected", "posterior"]


@dataclass(frozen=True)
class RegularisedPrior(NormalInverseWishartPrior):
    """The prior whose posterior sees the data's covariances with `reg_covar` on the diagonal."""

    reg_covar: float = 0.0


@dataclass(frozen=True)
class RegularisedPosterior(NormalPosterior):
    """The posterior of `RegularisedPrior`."""

    reg_covar: float = 0.0

    def updated(self, sums: Sums) -> "RegularisedPosterior":
        """Each datum adds reg_covar I to the scale."""
        q: Any = super().updated(sums)
        form, n = self.family.form, sums.get("seen", sums["count"][:, None])
        unit = form.identity(self.family.batch, self.family.n_features, self.scale)
        return replace(q, scale=q.scale + self.reg_covar * form.degrees(n, self.family.n_features) * unit)


@conjugate.register
def _regularised(prior: RegularisedPrior, family: Any) -> RegularisedPosterior:
    q = conjugate.dispatch(NormalInverseWishartPrior)(prior, family)
    return RegularisedPosterior(**{f.name: getattr(q, f.name) for f in fields(q)}, reg_covar=prior.reg_covar)


@dataclass(frozen=True)
class ChangeVB(VB):
    """VB that ends when the bound, in total nats, changes by less than `tol`.

    Parameters
    ----------
    last : callable, optional
        The model to the q(theta) that an earlier fit ended with.
    chronicle : Chronicle, optional
        Told of every iteration.
    """

    last: Callable[[LatentVariableModel], Posteriors] | None = None
    chronicle: Chronicle | None = None

    def _left_off(self, model: LatentVariableModel) -> Posteriors | None:
        return None if self.last is None else self.last(model)

    def _settled(self, bounds: list[float], total: float) -> bool:
        if len(bounds) < 2:
            return False
        change = bounds[-1] - bounds[-2]
        if self.chronicle is not None:
            self.chronicle.step(len(bounds) - 1, change)
        return abs(change) < self.tol


def posterior(family: Normal, *arrays: Any) -> NormalPosterior:
    """The components' law from its middle, means and covariances, and the counts behind them, strength and df."""
    K, device = family.batch, family.center.device
    loc, covariance, strength, df = (torch.as_tensor(np.asarray(a), device=device).double() for a in arrays)
    if family.form.name == "diagonal":
        df = df.reshape(K, -1)  # one for each feature where entries are missing
    scale = covariance * df.reshape(*df.shape, *[1] * (covariance.dim() - df.dim()))
    return NormalPosterior(family, strength.reshape(K, -1), loc, df, scale)


def expected(
    kind: str, device: Any, log_weights: Any, weights: Any, means: Any, covariances: Any, strength: Any, df: Any
) -> Density:
    """The function x [n, d] -> E_q[log pi_k + log N(x_i; mu_k, Sigma_k)], [K, n], from an estimator's arrays."""
    family: Normal = normal(kind, weights, means, covariances).to(device)
    q = posterior(family, means, covariances, strength, df)
    return Density(family, q.kernel(), torch.as_tensor(log_weights, device=device))
