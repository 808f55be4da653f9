"""The normal family, with four covariance forms and the conjugate priors of each."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from ppl_vae.errors import DeclarationError, EngineError
from ppl_vae.families.family import Family, Sums
from ppl_vae.families.forms import FORMS

__all__ = ["Normal", "NormalInverseWishartPrior"]


@dataclass(frozen=True)
class NormalInverseWishartPrior:
    """loc_k | Sigma_k ~ N(mean, Sigma_k / strength), Sigma_k ~ the covariance form's conjugate law.

    That law is inverse-Wishart(df, scale) for full and tied covariances, and inverse-gamma(df/2, scale/2) for
    each variance of the diagonal and spherical forms. What is None is taken from the data when the model is
    fitted: the data's mean, and the data's covariance over K^(2/d), with df = d + 2; that is the weak prior of
    Fraley and Raftery (2007, "Bayesian regularization for normal mixture estimation").
    """

    mean: Tensor | None = None
    strength: float = 0.01
    df: float | None = None
    scale: Tensor | None = None

    def __post_init__(self) -> None:
        if not self.strength > 0:
            raise DeclarationError(f"NormalInverseWishartPrior: strength must be positive, got {self.strength}")

    def site(self, family: "Normal", name: str, values: Mapping[str, Tensor]) -> TorchDistribution:
        """p(covariance), then p(loc | covariance)."""
        if not bool(family.adapted):
            raise EngineError(
                "a weak prior takes its mean and scale from data that it has not seen; fit the model, call "
                "model.adapt(x), or give NormalInverseWishartPrior a mean and a scale"
            )
        K, d = family.batch, family.n_features
        if name == "covariance":
            return family.form.law(family.prior_df, family.prior_scale, K, d)
        index = torch.arange(K, device=family.prior_mean.device)
        covariance = family.form.select(values["covariance"], index) / self.strength
        return family.form.distribution(family.prior_mean.expand(K, d), covariance).to_event(1)


class Normal(Family):
    r"""N(x; mu_k, Sigma_k) over d features; statistics t(x) = (1, x, x x').

    M-step (000 (14), 004 s.7.2, with mu_j in the update of Sigma_j): mu_k = N_k^-1 sum_i r_ki x_i,
    Sigma_k = N_k^-1 sum_i r_ki (x_i - mu_k)(x_i - mu_k)'. Eigenvalues relative to the data's own scale are
    clipped at `floor`, which is the maximum under that constraint: the likelihood still never falls.

    Parameters
    ----------
    n_features : int
        d; the event shape is (d,).
    batch : int
        Number of members K.
    covariance : {"full", "tied", "diagonal", "spherical"}
        Form of Sigma; parameter shapes [K, d, d], [d, d], [K, d], [K].
    prior : NormalInverseWishartPrior, "weak", optional
        Conjugate prior; "weak" takes its scale from the data.
    floor : float
        Smallest variance allowed relative to the data's.

    Examples
    --------
    >>> import torch
    >>> components = Normal(2, batch=3, covariance="diagonal")
    >>> components(torch.tensor([[0], [2]])).batch_shape
    torch.Size([2, 1])
    """

    constraints = {"covariance": constraints.dependent, "loc": constraints.real_vector}  # noqa: RUF012

    center: Tensor
    reference: Tensor
    prior_mean: Tensor
    prior_scale: Tensor
    adapted: Tensor

    def __init__(
        self,
        n_features: int,
        batch: int = 1,
        covariance: str = "full",
        prior: NormalInverseWishartPrior | str | None = None,
        floor: float = 1e-8,
    ) -> None:
        if covariance not in FORMS:
            raise DeclarationError(f"Normal: covariance must be one of {', '.join(FORMS)}; got {covariance!r}")
        if n_features < 1 or batch < 1:
            raise DeclarationError(f"Normal: n_features and batch must be at least 1, got {n_features} and {batch}")
        super().__init__(batch, self.choose_prior(prior, NormalInverseWishartPrior))
        self.n_features, self.form, self.floor = n_features, FORMS[covariance], floor
        self.prior_df = float((self.prior.df if self.prior else None) or n_features + 2)
        identity = self.form.identity(1, n_features, torch.zeros(()))
        self.register_buffer("center", torch.zeros(n_features))
        self.register_buffer(
            "reference",
            self.form.reference(torch.eye(n_features), torch.ones(n_features), torch.full((n_features,), 1.0)),
        )
        self.register_buffer("prior_mean", torch.zeros(n_features))
        self.register_buffer("prior_scale", identity if covariance == "tied" else identity[0])
        self.register_buffer("adapted", torch.tensor(False))
        if self.prior and self.prior.mean is not None and self.prior.scale is not None:
            self._set_prior(self.prior.mean, self.prior.scale)
        self.register()

    def _set_prior(self, mean: Tensor, scale: Tensor) -> None:
        self.prior_mean = torch.as_tensor(mean).to(self.center).expand(self.n_features).clone()
        self.prior_scale = torch.as_tensor(scale).to(self.center).expand(self.prior_scale.shape).clone()
        self.adapted = torch.tensor(True)

    def parameter_constraint(self, name: str) -> Constraint:
        """The covariance's set depends on its form."""
        return self.form.constraint if name == "covariance" else self.constraints[name]

    def defaults(self) -> dict[str, Tensor]:
        """Mean and covariance of the data seen by `adapt`; standard normals before that."""
        K, d = self.batch, self.n_features
        unit = self.form.identity(K, d, self.center)
        scale = self.form.data_covariance(self.reference)
        covariance = scale.expand(unit.shape).clone() if bool(self.adapted) else unit
        return {"covariance": covariance, "loc": self.center.expand(K, d).clone()}

    def adapt(self, x: Tensor, weights: Tensor | None = None) -> None:
        """Take center, reference scale and the weak prior's hyperparameters from x [n, d]."""
        x = x.to(self.center)
        w = torch.full_like(x[:, 0], 1 / len(x)) if weights is None else (weights / weights.sum()).to(x)
        observed = ~x.isnan()
        share = w[:, None] * observed
        total = share.sum(0).clamp_min(1e-300)
        center = (share * x.nan_to_num()).sum(0) / total
        centred = (x - center).nan_to_num()
        deviation = ((share * centred.square()).sum(0) / total).sqrt()
        # A constant feature has no scale of its own.
        resolution = 8 * torch.finfo(x.dtype).eps * center.abs()
        scale = torch.where(deviation > resolution, deviation, center.abs() + (center == 0))
        self.center, self.reference = center, self.form.reference(centred, scale, w)
        if self.prior is not None:
            mean = center if self.prior.mean is None else self.prior.mean
            weak = self.form.prior_scale(self.reference, self.batch, self.n_features)
            self._set_prior(mean, weak if self.prior.scale is None else self.prior.scale)
        self.adapted = torch.tensor(True)

    def distribution(self, index: Tensor | None) -> TorchDistribution:
        """MultivariateNormal, or independent Normals, with batch shape that of `index`."""
        index = torch.zeros((), dtype=torch.long, device=self.loc.device) if index is None else index
        loc, covariance = self.loc[index], self.form.select(self.covariance, index)
        return self.form.distribution(loc, covariance)

    def features(self, x: Tensor) -> Tensor:
        """Whitened data y = R^-1 (x - c), [n, d]."""
        return self.form.whiten(x.to(self.center) - self.center, self.reference)

    def log_density(self, features: Tensor) -> Tensor:
        """Log N(x_i; mu_k, Sigma_k) = log N(y_i; R^-1 (mu_k - c), R^-1 Sigma_k R^-T) - log|R|, [K, n]."""
        m = self.form.whiten(self.loc - self.center, self.reference)
        density = self.form.log_density(features, m, self.covariance, self.reference)
        return density - self.form.log_determinant(self.reference, self.n_features)

    def expect(self, features: Tensor, r: Tensor) -> Sums:
        """N_k, sum r y and sum r y y' in whitened coordinates."""
        return {"count": r.sum(1), "first": r @ features, "second": self.form.second(features, r)}

    def maximize(self, sums: Sums, estimate: str) -> dict[str, Tensor]:
        """Weighted means and covariances; with estimate="map" the mode of the conjugate posterior."""
        form, K, d = self.form, self.batch, self.n_features
        count = sums["count"]
        safe = count.clamp_min(1e-300)
        m = sums["first"] / safe[:, None]
        scatter = form.restore(sums["second"] - form.weigh(count, form.outer(m)), self.reference)
        restored = m @ self.reference.mT if self.reference.dim() == 2 else m * self.reference
        mean = restored + self.center
        if self.prior is None or estimate != "map":
            pooled, degrees = form.pool(scatter), form.degrees(safe, d)
        else:
            kappa = self.prior.strength
            off = mean - self.prior_mean
            scatter = scatter + form.weigh(kappa * count / (kappa + count), form.outer(off))
            mean = (kappa * self.prior_mean + count[:, None] * mean) / (kappa + count)[:, None]
            pooled = form.pool(scatter) + self.prior_scale
            degrees = form.degrees(count, d) + form.prior_degrees(self.prior_df, K, d)
        covariance = pooled / degrees.reshape(-1, *[1] * (pooled.dim() - 1)) if degrees.dim() else pooled / degrees
        return {"covariance": form.clip(covariance, self.reference, self.floor), "loc": mean}

    def degenerate(self, sums: Sums, values: Mapping[str, Tensor]) -> Tensor:
        """Empty members, and members on the variance floor with hardly more data than features."""
        smallest = self.form.smallest(values["covariance"], self.reference, self.batch)
        on_floor = (smallest <= self.floor * (1 + 1e-6)) & (sums["count"] <= self.n_features + 1)
        return super().degenerate(sums, values) | on_floor
