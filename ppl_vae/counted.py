"""A datum of weight w is w data: what that means for means, leave-one-out and replicated data."""

from collections.abc import Mapping
from copy import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppl_vae.errors import EngineError
from ppl_vae.fit import Fit

__all__ = ["counted_elpd", "counted_mean", "counts_of", "every_datum", "same_data"]


def counts_of(weights: Tensor | None) -> Tensor | None:
    """Weights as counts, [n] of whole numbers; None where they are not.

    Examples
    --------
    >>> import torch
    >>> counts_of(torch.tensor([2.0, 0.0])), counts_of(torch.tensor([0.5, 1.5]))
    (tensor([2, 0]), None)
    """
    if weights is None or not torch.equal(weights, weights.round()):
        return None
    return weights.long()


def every_datum(fit: Fit) -> Any:
    """The training data of a fit, each row as many times as its weight says.

    Raises
    ------
    EngineError
        If weights are no counts: how many data there are is then not known.
    """
    if fit.weights is None:
        return fit.data
    if (counts := counts_of(fit.weights)) is None:
        raise EngineError(
            "data sets are drawn as large as the data, but the weights of this fit are no whole numbers, so that it is"
            " not known how many data there are: pass data="
        )
    return fit.data.rows(torch.repeat_interleave(counts.cpu()))


def counted_mean(values: Tensor, weights: Tensor | None = None) -> tuple[float, float]:
    """Mean over data and its standard error, a weight standing for so many data.

    Examples
    --------
    >>> import torch
    >>> counted_mean(torch.tensor([0.0, 0.0, 2.0, 2.0])) == counted_mean(torch.tensor([0.0, 2.0]), torch.ones(2) * 2)
    True
    """
    w = torch.ones(len(values)).to(values) if weights is None else weights.to(values)
    n = w.sum()
    mean = (w * values).sum() / n
    variance = (w * (values - mean) ** 2).sum() / (n - 1)
    return mean.item(), (variance / n).sqrt().item() if n > 1 else float("nan")


def counted_elpd(elpd: Any, pointwise: Tensor, counts: Tensor) -> Any:
    """ArviZ's leave-one-out of distinct data [n] as that of the repeated data: any copy left out has the same answer.

    Parameters
    ----------
    elpd : ELPDData
        Of the distinct data.
    pointwise : Tensor
        Log p(x_i | theta_s) of those, [chain, draw, n].
    counts : Tensor
        [n], whole numbers.
    """
    again = np.repeat(np.arange(len(counts)), counts.cpu().numpy())
    each = pointwise.flatten(0, 1).double()
    lppd = (each.logsumexp(0) - np.log(len(each))).cpu().numpy()
    found = copy(elpd)
    found.elpd_i, found.pareto_k = (v.isel({v.dims[0]: again}) for v in (elpd.elpd_i, elpd.pareto_k))
    values = np.asarray(found.elpd_i)
    found.elpd, found.n_data_points = float(values.sum()), len(values)
    found.se = float((len(values) * values.var()) ** 0.5)
    found.p = float(lppd[again].sum() - found.elpd)
    return found


def same_data(a: Any, b: Any) -> bool:
    """Whether two Observations hold the same values, and miss the same."""

    def equal(x: Mapping[str, Any], y: Mapping[str, Any]) -> bool:
        return x.keys() == y.keys() and all(x[name] is y[name] or _equal(x[name], y[name]) for name in x)

    return equal(a.values, b.values) and equal(a.missing, b.missing)


def _equal(x: Any, y: Any) -> bool:
    return isinstance(x, Tensor) and isinstance(y, Tensor) and x.dtype == y.dtype and torch.equal(x, y)
