"""The normal family, with four covariance forms and the conjugate priors of each."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from ppl_vae.errors import DataError, DeclarationError, EngineError, check_whole
from ppl_vae.families.family import NOTHING, ConjugatePrior, Family, Parts, Sums
from ppl_vae.families.forms import FORMS
from ppl_vae.families.located import InUnits, Located
from ppl_vae.families.scales import flat_remark

__all__ = ["Normal", "NormalInverseWishartPrior"]


LEAST = 1e-150
"""Distance whose square is hardly held."""


@dataclass(frozen=True)
class NormalInverseWishartPrior(ConjugatePrior):
    """loc_k | Sigma_k ~ N(mean, Sigma_k / strength), Sigma_k ~ the covariance form's conjugate law.

    That law is inverse-Wishart(df, scale) for full and tied covariances, and inverse-gamma(df/2, scale/2) for
    each variance of the diagonal and spherical forms. What is None is taken from the data when the model is
    fitted: the data's mean, and the data's covariance over K^(2/d), with df = d + 2; that is the weak prior of
    Fraley and Raftery (2007, "Bayesian regularization for normal mixture estimation").

    Parameters
    ----------
    mean : Tensor, optional
        [d], the same for all members.
    strength : float
        How many data the prior counts as in each member's mean; positive.
    df : float, optional
        Degrees of freedom.
    scale : Tensor, optional
        [d, d] for full and tied covariances, [d] for diagonal, [] for spherical; the same for all members.

    Raises
    ------
    DeclarationError
        If strength is not positive.
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
        root = family.form.select(family.form.root(values["covariance"]), index) / math.sqrt(self.strength)
        return Located(family.form.distribution(family.prior_mean.expand(K, d), root), family)


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

    Raises
    ------
    DeclarationError
        An unknown covariance or prior, or n_features or batch below 1.

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
    flat: Tensor
    excused: Tensor
    lowest: Tensor

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
        check_whole("Normal", error=DeclarationError, n_features=n_features, batch=batch)
        super().__init__(batch, self.choose_prior(prior, NormalInverseWishartPrior))
        self.n_features, self.form, self.floor = n_features, FORMS[covariance], floor
        self.prior_df = float((self.prior.df if self.prior else None) or n_features + 2)
        identity = self.form.identity(1, n_features, torch.zeros(()))
        ones = torch.ones(n_features)
        self.register_buffer("center", torch.zeros(n_features))
        self.register_buffer(
            "reference",
            self.form.reference(self.form.moment(torch.eye(n_features), ones), ones),
        )
        self.register_buffer("prior_mean", torch.zeros(n_features))
        self.register_buffer("prior_scale", identity if covariance == "tied" else identity[0])
        self.register_buffer("adapted", torch.tensor(False))
        self.register_buffer("flat", torch.tensor(0), persistent=False)
        self.register_buffer("excused", torch.tensor(0), persistent=False)
        self.register_buffer("lowest", floor**0.5 * self.reference, persistent=False)
        if self.prior and self.prior.mean is not None and self.prior.scale is not None:
            self._set_prior(self.prior.mean, self.prior.scale)
        self.register()

    def _set_prior(self, mean: Tensor, scale: Tensor) -> None:
        self.prior_mean = torch.as_tensor(mean).to(self.center).expand(self.n_features).clone()
        self.prior_scale = torch.as_tensor(scale).to(self.center).expand(self.prior_scale.shape).clone()
        self.adapted = torch.tensor(True)

    @property
    def units(self) -> tuple[Tensor, Tensor]:
        """Place and scale of each feature of the data seen by `adapt`, [d] each; zeros and ones before that."""
        variances = self.form.variances(self.form.data_covariance(self.reference))
        return self.center, variances.expand(self.n_features).sqrt()

    def parameter_constraint(self, name: str) -> Constraint:
        """The covariance's set depends on its form; means are seen in units of the data."""
        return self.form.constraint if name == "covariance" else InUnits(self)

    def defaults(self) -> dict[str, Tensor]:
        """Mean and covariance of the data seen by `adapt`; standard normals before that."""
        K, d = self.batch, self.n_features
        unit = self.form.identity(K, d, self.center)
        scale = self.form.data_covariance(self.reference)
        covariance = scale.expand(unit.shape).clone() if bool(self.adapted) else unit
        return {"covariance": covariance, "loc": self.center.expand(K, d).clone()}

    def adapt(self, parts: Parts) -> None:
        """Take center, reference scale and the weak prior's hyperparameters from x [n, d]."""
        loc = self.values()["loc"].clone() if self.prior is None else None
        like = self.center
        center, total = self._center(parts)
        moment = torch.zeros((), dtype=center.dtype, device=center.device)
        share, farthest, rows = torch.zeros_like(center), torch.zeros_like(center), 0
        for x, weights in parts:
            w = _shares(x, weights, total).to(center)
            away = (x.to(center) - center).nan_to_num()
            moment, farthest = moment + self.form.moment(away, w), farthest.maximum(away.abs().amax(0))
            share = share + w @ (~x.isnan()).to(center)
            rows += int(((w > 0) & ~x.isnan().all(1)).sum())
        variances = self.form.variances(moment)
        _check_held(farthest, variances)
        deviation = (variances / share.clamp_min(1e-300)).sqrt()
        # A constant feature has no scale of its own.
        resolution = 8 * torch.finfo(like.dtype).eps * center.abs()
        scale = torch.where(deviation > resolution, deviation, center.abs() + (center == 0))
        self.center, self.reference = center.to(like), self.form.reference(moment, scale).to(like)
        if loc is not None:
            self.loc = loc  # the same means in the new units
        if moment.dim() == 2 and bool((share < 1 - 1e-12).any()):
            moment = self._without_gaps(parts, center, moment)
        self.lowest = self.form.lowest(moment, scale, self.floor).to(like)
        flat = self.form.flat(moment, scale)
        self.flat = torch.tensor(flat, device=center.device)
        self.excused = torch.tensor(self.form.excused(flat, rows, self.n_features), device=center.device)
        if self.prior is not None:
            mean = center if self.prior.mean is None else self.prior.mean
            weak = self.form.prior_scale(self.reference, self.batch, self.n_features)
            self._set_prior(mean, weak if self.prior.scale is None else self.prior.scale)
        self.adapted = torch.tensor(True, device=center.device)

    def _without_gaps(self, parts: Parts, center: Tensor, moment: Tensor) -> Tensor:
        """Moment [d, d] of the rows that miss nothing, around their mean; that of all where they are too few."""
        # An entry filled in lies off the line on which dependent features are: how flat the data are shows without.
        first, own, total, rows = torch.zeros_like(center), torch.zeros_like(moment), 0.0, 0
        for x, weights in parts:
            w = _shares(x, weights, 1.0).to(center)
            whole = ~x.isnan().any(1) & (w > 0)
            y, w = x[whole].to(center) - center, w[whole]
            first, own = first + w @ y, own + self.form.moment(y, w)
            total, rows = total + float(w.sum()), rows + len(w)
        if rows <= len(center) + 1:
            return moment
        return own / total - first[:, None] * first / total**2

    def _center(self, parts: Parts) -> tuple[Tensor, float]:
        """Weighted mean of what is seen of each feature, [d] in float64, and the total weight."""
        # What float32 rounds off would be taken for spread where features depend on each other.
        like = self.center.double()
        seen, mean, total = torch.zeros_like(like), torch.zeros_like(like), 0.0
        for x, weights in parts:
            w = _shares(x, weights, 1.0).to(mean)
            own = w @ (~x.isnan()).to(mean)
            seen, total = seen + own, total + float(w.sum())
            # A running mean, because a sum of data far from zero would lose the digits that matter.
            mean = mean + (w @ (x.to(mean) - mean).nan_to_num()) / seen.clamp_min(1e-300)
        if not bool((seen > 0).all()):
            empty = (seen <= 0).nonzero().flatten().tolist()
            raise DataError(f"no datum has a value of feature {', '.join(map(str, empty))}; drop what is all NaN")
        return mean, total

    def distribution(self, index: Tensor | None, *given: Tensor) -> TorchDistribution:
        """MultivariateNormal, or independent Normals, with batch shape that of `index`."""
        index = torch.zeros((), dtype=torch.long, device=self.loc.device) if index is None else index
        # One factor of each member, however often the index has it.
        root = self.form.select(self.form.root(self.covariance), index)
        return self.form.distribution(self.loc[index], root)

    def features(self, x: Tensor, *given: Tensor) -> Any:
        """Whitened data y = R^-1 (x - c) as columns, [d, n]; where entries are missing, with what is seen."""
        centred = x.to(self.center) - self.center
        missing = centred.isnan()
        if bool(missing.any()):
            return self.form.gaps(centred, missing, self.reference)
        return self.form.whiten(centred, self.reference).mT.contiguous()

    def coordinates(self, x: Tensor) -> Tensor:
        """Whitened data [n, d]."""
        return self.form.whiten((x.to(self.center) - self.center).nan_to_num(), self.reference)

    def kernel(self) -> Any:
        """The covariance form's E-step at the current parameters."""
        m = self.form.whiten(self.loc - self.center, self.reference)
        return self.form.kernel(m, self.covariance, self.reference)

    def log_density(self, expanded: Any) -> Tensor:
        """Log N(x_i; mu_k, Sigma_k), [K, n]."""
        kernel = self.kernel()
        return kernel.log_density(kernel.expand(expanded))

    def expect(self, expanded: Any, r: Tensor) -> Sums:
        """N_k, sum r y and sum r y y' in whitened coordinates, the second in the covariance's shape."""
        kernel = self.kernel()
        return kernel.expect(kernel.expand(expanded), r)

    @property
    def width(self) -> int:
        """Features and densities of a datum."""
        return self.batch + self.form.width(self.batch, self.n_features)

    def maximize(self, sums: Sums, estimate: str, fixed: Mapping[str, Tensor] = NOTHING) -> dict[str, Tensor]:
        """Weighted means and covariances; with estimate="map" the mode of the conjugate posterior."""
        form, R = self.form, self.reference
        n = sums.get("seen", sums["count"][:, None]).clamp_min(1e-300)  # [K, 1] or, where entries are missing, [K, d]
        m = sums["first"] / n
        mean = form.restored(m, R) + self.center
        scatter = form.restore(sums["second"] - form.pooled(n, m), R)
        prior = self.prior if estimate == "map" else None
        if "loc" in fixed:
            loc = fixed["loc"]
            scatter = scatter + form.pooled(n, mean - loc)
            if prior:
                scatter = scatter + form.pooled(torch.full_like(n, prior.strength), loc - self.prior_mean)
        elif prior:
            kappa = prior.strength
            loc = (kappa * self.prior_mean + n * mean) / (kappa + n)
            scatter = scatter + form.pooled(kappa * n / (kappa + n), mean - self.prior_mean)
        else:
            loc = mean
        if "covariance" in fixed:
            return {"covariance": fixed["covariance"], "loc": loc}
        degrees = form.degrees(n, self.n_features)
        if prior:
            scatter = scatter + self.prior_scale
            degrees = degrees + form.prior_degrees(self.prior_df, self.batch, self.n_features)
        return {"covariance": form.clip(scatter / degrees, self.lowest, 1.0), "loc": loc}

    def degenerate(self, sums: Sums, values: Mapping[str, Tensor]) -> Tensor:
        """Empty members, and members on the variance floor in a direction in which the data spread, or in all.

        There the likelihood has no bound but the floor: the member sits on a point, a line or a plane.
        """
        directions = self.form.on_floor(values["covariance"], self.lowest, self.batch, 1 + 1e-3)
        every = self.form.directions(self.n_features)
        return super().degenerate(sums, values) | (directions > self.excused) | (directions == every)

    @property
    def saturated(self) -> int:
        """One more than a full covariance has directions, which are then all at one distance from the mean."""
        return self.form.saturated(self.n_features)

    def remarks(self) -> list[str]:
        """What of the data is worth knowing: features without spread."""
        return flat_remark(int(self.flat), self.n_features, self.floor)


def _check_held(farthest: Tensor, variances: Tensor) -> None:
    """Refuse features whose squares, in their own unit too, are beyond what float64 holds, or below it."""
    square = farthest.square()
    beyond = ~variances.isfinite() | ~square.isfinite() | ~(square / variances.clamp_min(LEAST**2)).isfinite()
    lost = beyond | ((variances == 0) & (farthest > 0) & (farthest < LEAST))
    if bool(lost.any()):
        j = int(lost.nonzero()[0, 0])
        raise DataError(
            f"feature {j} has values {farthest[j].item():.0e} from their mean, whose squares float64 cannot hold: "
            "divide the feature by its standard deviation, and leave out rows of weight zero that are so far off"
        )


def _shares(x: Tensor, weights: Tensor | None, total: float) -> Tensor:
    """Weights of the rows over their total, [n]."""
    return torch.full_like(x[:, 0], 1 / total) if weights is None else weights / total
