"""Variational Bayes by scikit-learn's rules: reg_covar is added, and an absolute change of the bound ends it."""

from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from ppl_vae.families import Normal, NormalInverseWishartPrior, NormalPosterior, conjugate
from ppl_vae.families.family import Sums
from ppl_vae.infer.vb import VB
from ppl_vae.sklearn.density import Density, normal
from ppl_vae.sklearn.engine import Chronicle

__all__ = ["ChangeVB", "RegularisedPrior", "expected"]


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
    before : float, optional
        The bound before the first iteration, of a warm start.
    chronicle : Chronicle, optional
        Told of every iteration.
    """

    before: float | None = None
    chronicle: Chronicle | None = None

    def _settled(self, bounds: list[float], total: float) -> bool:
        course = [*([] if self.before is None else [self.before]), *bounds[-2:]][-2:]
        if len(course) < 2:
            return False
        if self.chronicle is not None:
            self.chronicle.step(len(bounds) - (self.before is None), course[1] - course[0])
        return abs(course[1] - course[0]) < self.tol


def expected(
    kind: str, device: Any, log_weights: Any, weights: Any, means: Any, covariances: Any, strength: Any, df: Any
) -> Density:
    """The function x [n, d] -> E_q[log pi_k + log N(x_i; mu_k, Sigma_k)], [K, n], from an estimator's arrays."""
    family: Normal = normal(kind, weights, means, covariances).to(device)
    strength, df = (torch.as_tensor(a, device=device) for a in (strength, df))
    if kind == "diag":
        df = df.reshape(len(means), -1)  # one for each feature where entries are missing
    covariance = family.covariance.detach()
    scale = covariance * df.reshape(*df.shape, *[1] * (covariance.dim() - df.dim()))
    q = NormalPosterior(family, strength.reshape(len(means), -1), family.loc.detach(), df, scale)
    return Density(family, q.kernel(), torch.as_tensor(log_weights, device=device))
