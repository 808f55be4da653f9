"""Linear predictors of covariates: what the regressions share, and their weighted least squares."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ppl_vae.errors import DataError, DeclarationError, check_whole
from ppl_vae.families.family import Family, Sums
from ppl_vae.families.scales import center_and_scale

__all__ = ["Design", "Regression"]


class Design(NamedTuple):
    """A row of ones above the standardised covariates, [q, n], q = p + 1; the target [n], 0 where it is not seen."""

    rows: Tensor
    target: Tensor
    seen: Tensor


class Regression(Family):
    """What regressions share: the linear predictor intercept_k + coef_k' x, and its weighted least squares.

    Sums are over standardised covariates, so that an offset of the covariates costs no digits.
    """

    center: Tensor
    scale: Tensor

    def __init__(self, n_inputs: int, *, batch: int) -> None:
        check_whole(type(self).__name__, error=DeclarationError, n_inputs=n_inputs, batch=batch)
        super().__init__(batch)
        self.n_inputs = n_inputs
        # Center and scale of the covariates, then of the target.
        self.register_buffer("center", torch.zeros(n_inputs + 1))
        self.register_buffer("scale", torch.ones(n_inputs + 1))
        self.register()

    def read_target(self, y: Tensor, first: int = 0) -> Tensor:
        """The target as it enters the sums, NaN where it is missing; a subclass checks and standardises it."""
        raise NotImplementedError

    def read_inputs(self, x: Tensor, first: int = 0) -> Tensor:
        """Covariates [..., p] in the family's dtype; a single one may come as [n].

        Raises
        ------
        DataError
            If they are of another shape, or not finite.
        """
        if x.dim() == 1 and self.n_inputs == 1:  # a column of a data frame
            x = x[:, None]
        if x.shape[-1:] != (self.n_inputs,) or x.dim() < 2:
            raise DataError(
                f"{type(self).__name__} got covariates of shape [{', '.join(map(str, ['n', *x.shape[1:]]))}], "
                f"[n, {self.n_inputs}] is expected: {self._advice(x)}"
            )
        x = x.to(self.center)
        if not bool(x.isfinite().all()):
            row = int((~x.isfinite()).flatten(1).any(1).nonzero()[0])
            raise DataError(
                f"{type(self).__name__}: the covariates of row {first + row} (counted from 0) are NaN or "
                "infinite; fill them"
            )
        return x

    def _advice(self, x: Tensor) -> str:
        name = type(self).__name__
        if x.dim() == 1:
            return f"put them together by torch.stack([a, b, ...], 1), or declare {name}(1, ...) for a single one"
        return f"declare {name}({x.shape[-1]}, ...), or pass others"

    def predictor(self, index: Tensor | None, x: Tensor) -> Tensor:
        """intercept_k + coef_k' x, in the shape of `index` and the rows of x [..., n, p] together.

        A single covariate in the shape of `index` is one number for each index.
        """
        index = torch.zeros((), dtype=torch.long, device=self.coef.device) if index is None else index
        if self.n_inputs == 1 and x.shape == index.shape:
            x = x[..., None]
        return self.intercept[index] + (self.coef[index] * self.read_inputs(x)).sum(-1)

    def adapt(self, parts: Any) -> None:
        """Take center and scale of the covariates and of the target from parts (y, weights, covariates)."""
        center, scale = center_and_scale(self._tables(parts), self.center)
        self.center, self.scale = torch.zeros_like(self.center), torch.ones_like(self.scale)
        self.center[-len(center) :], self.scale[-len(scale) :] = center, scale

    def _tables(self, parts: Any) -> Iterator[tuple[Tensor, Tensor | None]]:
        first = 0
        for y, weights, *given in parts:
            columns = [*(self.read_inputs(x, first) for x in given), y.to(self.center)[:, None]]
            self.read_target(y, first)
            first += len(y)
            yield torch.cat(columns, 1), weights

    def features(self, x: Tensor, *given: Tensor) -> Design:
        """The standardised covariates as columns, and the target."""
        (inputs,) = given
        standard = (self.read_inputs(inputs) - self.center[:-1]) / self.scale[:-1]
        rows = torch.cat([torch.ones_like(standard[:, :1]), standard], 1).mT.contiguous()
        target = self.read_target(x)
        return Design(rows, target.nan_to_num(), (~target.isnan()).to(target))

    def expand(self, features: Design) -> tuple[Design, Tensor]:
        """The features, and the linear predictor [K, n] in the units of the target's sums."""
        return features, self.standardised() @ features.rows

    def target_units(self) -> tuple[Tensor, Tensor]:
        """Center and scale of the target."""
        return self.center[-1], self.scale[-1]

    def standardised(self) -> Tensor:
        """Intercept and coefficients for the standardised covariates, [K, q]."""
        center, scale = self.target_units()
        intercept = self.intercept + self.coef @ self.center[:-1] - center
        return torch.cat([intercept[:, None], self.coef * self.scale[:-1]], 1) / scale

    def restored(self, beta: Tensor) -> dict[str, Tensor]:
        """The way back."""
        center, scale = self.target_units()
        coef = beta[:, 1:] * scale / self.scale[:-1]
        return {"coef": coef, "intercept": center + scale * beta[:, 0] - coef @ self.center[:-1]}

    def moments(self, design: Design, weight: Tensor, target: Tensor) -> Sums:
        """Sum of weight_ki rows_i rows_i' [K, q, q], and of target_ki rows_i [K, q]."""
        return {"gram": (weight[:, None] * design.rows) @ design.rows.mT, "cross": target @ design.rows.mT}

    def least_squares(self, sums: Sums, fixed: Mapping[str, Tensor]) -> Tensor:
        """The beta [K, q] that maximises cross' beta - beta' gram beta / 2, the smallest of several."""
        gram, cross = sums["gram"], sums["cross"]
        if "coef" in fixed:
            _, scale = self.target_units()
            slope = fixed["coef"] * self.scale[:-1] / scale
            intercept = (cross[:, 0] - (gram[:, 0, 1:] * slope).sum(1)) / gram[:, 0, 0].clamp_min(1e-300)
            if "intercept" in fixed:
                with self.bind({name: fixed[name] for name in ("coef", "intercept")}):
                    return self.standardised()
            return torch.cat([intercept[:, None], slope], 1)
        if "intercept" in fixed:
            return self._through(gram, cross, fixed["intercept"])
        return (torch.linalg.pinv(gram, hermitian=True) @ cross[:, :, None])[:, :, 0]

    def _through(self, gram: Tensor, cross: Tensor, intercept: Tensor) -> Tensor:
        """Least squares with a given intercept at x = 0, where the covariates are scaled but not centred."""
        center, scale = self.target_units()
        shift = self.center[:-1] / self.scale[:-1]
        move = torch.eye(len(shift) + 1).to(gram)
        move[1:, 0] = shift
        gram, cross = move @ gram @ move.mT, cross @ move.mT
        start = ((intercept - center) / scale)[:, None]
        rest = (cross - gram[:, :, 0] * start)[:, 1:, None]
        slope = (torch.linalg.pinv(gram[:, 1:, 1:], hermitian=True) @ rest)[:, :, 0]
        return torch.cat([start + slope @ shift[:, None], slope], 1)

    @property
    def width(self) -> int:
        """Weighted covariates of a datum."""
        return self.batch * (self.n_inputs + 2)
