"""Regressions: families whose distribution depends on covariates of each datum."""

from collections.abc import Mapping
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from ppl_vae.errors import DataError
from ppl_vae.families.design import Design, Regression
from ppl_vae.families.family import NOTHING, Sums

__all__ = ["LinearRegression", "LogisticRegression"]


class LinearRegression(Regression):
    r"""p(y | x) = N(y; intercept_k + coef_k' x, variance_k): with a finite latent, a mixture of linear regressions.

    Called with the covariates, `family(index, x)`. The M-step is weighted least squares over standardised covariates,
    variance_k = N_k^-1 sum_i r_ki (y_i - intercept_k - coef_k' x_i)^2. Where covariates are collinear the
    smallest of the solutions is taken. A variance below `floor` times that of y around one line for all data is clipped
    there, or where float64 resolves no less (a standard deviation of 6e-8 of the largest y - mean); that is the
    maximum under that constraint, and a member there is reported: a line through all its points has a likelihood
    without a bound. A missing y (NaN) is skipped; covariates must be complete.

    Parameters
    ----------
    n_inputs : int
        Number of covariates p; x is [n, p], or [n] of a single one, y is [n].
    batch : int
        Number of members K; parameters coef [K, p], intercept [K], variance [K].
    floor : float
        Smallest variance relative to that around one line for all data.

    Raises
    ------
    DataError
        For covariates of another shape, and for values that are not finite.

    Examples
    --------
    >>> import torch
    >>> x = torch.tensor([[0.0], [1.0], [2.0]])
    >>> line = LinearRegression(1, batch=1)
    >>> sums = line.expect(line.expand(line.features(torch.tensor([1.0, 3.0, 5.0]), x)), torch.ones(1, 3))
    >>> values = line.maximize(sums, "ml")
    >>> round(values["intercept"].item(), 4), round(values["coef"].item(), 4)
    (1.0, 2.0)
    """

    constraints = {  # noqa: RUF012
        "coef": constraints.real,
        "intercept": constraints.real,
        "variance": constraints.positive,
    }

    lowest: Tensor
    straight: Tensor

    def __init__(self, n_inputs: int, *, batch: int, floor: float = 1e-8) -> None:
        super().__init__(n_inputs, batch=batch)
        self.floor = floor
        # Relative to the target's variance.
        self.register_buffer("lowest", torch.tensor(floor), persistent=False)
        self.register_buffer("straight", torch.tensor(False), persistent=False)

    def adapt(self, parts: Any) -> None:
        """Take the scales, and the floor from the variance around one line for all data."""
        super().adapt(parts)
        line, peak = self._one_line(parts)
        held = 16 * torch.finfo(peak.dtype).eps * peak
        self.lowest, self.straight = torch.maximum(self.floor * line, held), line <= held

    def _one_line(self, parts: Any) -> tuple[Tensor, Tensor]:
        """Variance of the target around the best line, and its largest square, both relative to its variance."""
        sums: Sums = {}
        peak = torch.ones_like(self.scale[-1])
        for y, weights, *given in parts:
            if not given:  # covariates that are no data
                return torch.ones_like(peak), peak
            design = self.features(y, *given)
            r = torch.ones_like(design.target) if weights is None else weights.to(design.target)
            own = self.expect((design, design.target), r[None])
            sums = {name: sums.get(name, 0) + value for name, value in own.items()}
            peak = torch.maximum(peak, (design.target.square() * (r > 0)).max())
        return self._variance(sums, self.least_squares(sums, {}))[0], peak

    def defaults(self) -> dict[str, Tensor]:
        """No slope: the data's mean and variance."""
        center, scale = self.target_units()
        return {
            "coef": self.center.new_zeros(self.batch, self.n_inputs),
            "intercept": center.expand(self.batch).clone(),
            "variance": scale.square().expand(self.batch).clone(),
        }

    def distribution(self, index: Tensor | None, *given: Tensor) -> TorchDistribution:
        """Normal around the line of each datum's member."""
        loc = self.predictor(index, *given)
        variance = self.variance[0 if index is None else index]
        return dist.Normal(loc, variance.sqrt().expand(loc.shape))

    def read_target(self, y: Tensor, first: int = 0) -> Tensor:
        """(y - center) / scale.

        Raises
        ------
        DataError
            If a value is infinite.
        """
        y = y.to(self.center)
        if bool(y.isinf().any()):
            row = int(y.isinf().nonzero()[0])
            raise DataError(f"LinearRegression: row {first + row} (counted from 0) is infinite; remove or repair it")
        center, scale = self.target_units()
        return (y - center) / scale

    def log_density(self, expanded: tuple[Design, Tensor]) -> Tensor:
        """Log N(y_i; intercept_k + coef_k' x_i, variance_k), [K, n], zero where y is missing."""
        design, predictor = expanded
        off = (design.target - predictor) * self.scale[-1] / self.variance.sqrt()[:, None]
        constant = (2 * torch.pi * self.variance).log()[:, None]
        return -0.5 * (off.square() + constant) * design.seen

    def expect(self, expanded: tuple[Design, Tensor], r: Tensor) -> Sums:
        """N_k, and the second moments of the covariates and y, in standard units."""
        design, _ = expanded
        weight = r * design.seen
        square = weight @ design.target.square()
        return {"count": r.sum(1), "square": square} | self.moments(design, weight, weight * design.target)

    def maximize(self, sums: Sums, estimate: str, fixed: Mapping[str, Tensor] = NOTHING) -> dict[str, Tensor]:
        """Weighted least squares, then the mean of the squared residuals."""
        beta = self.least_squares(sums, fixed)
        variance = torch.maximum(self._variance(sums, beta), self.lowest)
        return {**self.restored(beta), "variance": variance * self.scale[-1].square(), **fixed}

    def _variance(self, sums: Sums, beta: Tensor) -> Tensor:
        """Mean squared residual of the standardised target, [K]."""
        fitted = (sums["gram"] @ beta[:, :, None])[:, :, 0]
        residual = (sums["square"] - 2 * (beta * sums["cross"]).sum(1) + (beta * fitted).sum(1)).clamp_min(0)
        return residual / sums["gram"][:, 0, 0].clamp_min(1e-300)

    def degenerate(self, sums: Sums, values: Mapping[str, Tensor]) -> Tensor:
        """Empty members, and members on the variance floor: a plane goes through all their points."""
        on_floor = values["variance"] <= self.lowest * self.scale[-1].square() * (1 + 1e-6)
        return super().degenerate(sums, values) | on_floor

    def remarks(self) -> list[str]:
        """Whether the data are on one line."""
        if not bool(self.straight):
            return []
        return ["one line goes through all data, as far as float64 resolves them: the variance is set by the floor"]

    @property
    def saturated(self) -> int:
        """As many as it has coefficients, and one for the variance."""
        return self.n_inputs + 2


class LogisticRegression(Regression):
    r"""p(y = 1 | x) = 1 / (1 + exp(-intercept_k - coef_k' x)): with a finite latent, a mixture of logistic experts.

    Called with the covariates, `family(index, x)`. log p(y | x) has no sums that determine its maximum; but for
    xi = the current predictor it lies above a quadratic that touches it there,
    (y - 1/2) eta - omega(xi) eta^2 / 2 + constant, omega(xi) = tanh(xi/2) / (2 xi)
    (Jaakkola and Jordan 2000, "Bayesian parameter estimation via variational methods"; it is the EM algorithm of
    Polya-Gamma augmentation, Polson, Scott and Windle 2013). The M-step maximises that quadratic by weighted least
    squares, so the likelihood never falls. On separable data the likelihood, bounded by 1, has no maximum: the
    coefficients grow until an iteration gains less than the engine's tolerance. A missing y (NaN) is skipped;
    covariates must be complete.

    Parameters
    ----------
    n_inputs : int
        Number of covariates p; x is [n, p], or [n] of a single one, y is [n] of zeros and ones.
    batch : int
        Number of members K; parameters coef [K, p], intercept [K].

    Raises
    ------
    DataError
        For y other than 0 and 1, and for covariates of another shape or not finite.

    Examples
    --------
    >>> import torch
    >>> experts = LogisticRegression(3, batch=2)
    >>> experts(torch.tensor([[0], [1]]), torch.zeros(5, 3)).batch_shape
    torch.Size([2, 5])
    """

    constraints = {"coef": constraints.real, "intercept": constraints.real}  # noqa: RUF012

    def defaults(self) -> dict[str, Tensor]:
        """Even odds everywhere."""
        coef = self.center.new_zeros(self.batch, self.n_inputs)
        return {"coef": coef, "intercept": coef[:, 0].clone()}

    def distribution(self, index: Tensor | None, *given: Tensor) -> TorchDistribution:
        """Bernoulli with the log odds of each datum's member."""
        return dist.Bernoulli(logits=self.predictor(index, *given))

    def target_units(self) -> tuple[Tensor, Tensor]:
        """Log odds have a zero and a unit of their own."""
        return torch.zeros_like(self.center[-1]), torch.ones_like(self.scale[-1])

    def read_target(self, y: Tensor, first: int = 0) -> Tensor:
        """Zeros and ones.

        Raises
        ------
        DataError
            If a value is neither.
        """
        y = y.to(self.center)
        wrong = ~((y == 0) | (y == 1) | y.isnan())
        if bool(wrong.any()):
            row = int(wrong.nonzero()[0])
            raise DataError(
                f"LogisticRegression takes zeros and ones; {int(wrong.sum())} values are not, the first is "
                f"{y[row].item():g} in row {first + row} (counted from 0); recode them"
            )
        return y

    def log_density(self, expanded: tuple[Design, Tensor]) -> Tensor:
        """y_i eta_ki - log(1 + exp eta_ki), [K, n], zero where y is missing."""
        design, eta = expanded
        return (design.target * eta - torch.nn.functional.softplus(eta)) * design.seen

    def expect(self, expanded: tuple[Design, Tensor], r: Tensor) -> Sums:
        """N_k, and the sums of the quadratic that touches at the current predictor."""
        design, xi = expanded
        weight = r * design.seen
        # tanh(xi/2) / (2 xi) is 1/4 at zero.
        omega = torch.where(xi.abs() > 1e-4, (xi / 2).tanh() / (2 * xi), 0.25 - xi.square() / 48)
        return {"count": r.sum(1)} | self.moments(design, weight * omega, weight * (design.target - 0.5))

    def maximize(self, sums: Sums, estimate: str, fixed: Mapping[str, Tensor] = NOTHING) -> dict[str, Tensor]:
        """The maximum of the quadratic."""
        return {**self.restored(self.least_squares(sums, fixed)), **fixed}

    @property
    def saturated(self) -> int:
        """As many as it has coefficients."""
        return self.n_inputs + 1
