"""The likelihood-ratio test of two declarations, its null distribution by the parametric bootstrap."""

import time
from collections import Counter
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppl_vae.bootstrap import from_model
from ppl_vae.coordinates import coordinates, held
from ppl_vae.criteria import Cell
from ppl_vae.declare import LatentVariableModel
from ppl_vae.errors import EngineError, check_seed, check_whole
from ppl_vae.fit import Fit, Status
from ppl_vae.infer import EM
from ppl_vae.progress import progress as progress_bar
from ppl_vae.sweep import NOTHING, Sweep

__all__ = ["LikelihoodRatio", "likelihood_ratio_test"]

NOISE = 0.1
"""How far below zero D may be because EM stops short of a maximum, nats."""
EXCHANGED = "the first model is to be contained in the second; are they exchanged?"


@dataclass(frozen=True)
class LikelihoodRatio:
    """Result of a likelihood-ratio test.

    Attributes
    ----------
    statistic : float
        2 (log p(X | alternative) - log p(X | null)), total.
    p_value : float
        (1 + number of replicates at least as large) / (1 + number of replicates).
    replicates : Tensor
        The statistic on data drawn from the fitted null model, [B].
    null, alternative : Fit
        The two fits to the data.
    status : Status
        How many replicates could be used.
    seconds : float
        Wall-clock time.
    """

    statistic: float
    p_value: float
    replicates: Tensor
    null: Fit
    alternative: Fit
    status: Status
    seconds: float

    def __repr__(self) -> str:
        return (
            f"likelihood ratio {self.statistic:.3f}, p = {self.p_value:.3g} from {len(self.replicates)} replicates "
            f"({self.status}); next: test.null, test.alternative, test.replicates"
        )


def likelihood_ratio_test(
    null: LatentVariableModel,
    alternative: LatentVariableModel,
    data: Any,
    *,
    engine: EM | None = None,
    weights: Any = None,
    num_samples: int = 99,
    seed: int = 0,
    progress: bool = True,
) -> LikelihoodRatio:
    """Test K components against K + 1, or a simpler form against a richer one.

    D = 2 (log p(X | alternative) - log p(X | null)), each at its maximum. For mixtures D has no chi-squared law: under
    the null the extra component's parameters are not identified. Its law is that of D on data drawn from the fitted
    null model, both declarations fitted anew each time, each from several starts: a null fit that missed its maximum
    would make D too large. Components that each have a covariance of their own can shrink onto a point; replicates
    where that happens are left out and counted, and a tied covariance or a prior avoids it.

    Parameters
    ----------
    null, alternative : LatentVariableModel
        Declarations, the first contained in the second.
    data : Tensor, array, data frame or mapping
        n rows, in memory.
    engine : EM, optional
        EM(n_init=3, accelerate="squarem") by default: three starts for every fit. On the replicates the null also
        starts from the parameters that made them; the alternative always starts from the null's fit as well, as in
        `select`.
    weights : Tensor, optional
        [n], counts.
    num_samples : int
        Replicates B; the smallest p is 1 / (B + 1).
    seed : int
        Seed of the replicates.
    progress : bool
        Show progress.

    Returns
    -------
    LikelihoodRatio
        The statistic with its p-value and its replicates, and the fits of both declarations to the data.

    Raises
    ------
    EngineError
        If a number is out of range, what is given is no declaration, the first has as many free parameters as the
        second or fits better, or one of them cannot be fitted to the data, or to any replicate.

    References
    ----------
    McLachlan (1987), "On bootstrapping the likelihood ratio test statistic for the number of components in a normal
    mixture".

    Examples
    --------
    >>> import ppl_vae as pv
    >>> one, two = (pv.models.GaussianMixture(K, 1, covariance="tied") for K in (1, 2))
    >>> waiting = pv.data.faithful().values[:60, 1]
    >>> likelihood_ratio_test(one, two, waiting, num_samples=4, progress=False).p_value
    0.2
    """
    check_whole("likelihood_ratio_test", num_samples=num_samples)
    seed = check_seed(seed)
    begin = time.perf_counter()
    engine = EM(n_init=3, accelerate="squarem") if engine is None else engine
    _check_nested(null, alternative, engine)
    models = [deepcopy(model).double() for model in (null, alternative)]
    first, second = _both(engine, models, data, weights)
    if first.fit is None or second.fit is None or not (first.eligible and second.eligible):
        raise EngineError(f"the declarations cannot be compared on these data: {first.status}; {second.status}")
    if (found := _statistic(first, second)) < -NOISE:
        raise EngineError(
            f"likelihood_ratio_test: the null model fits better, by {-found / 2:.4g} nats in total: {EXCHANGED}"
        )
    replicates, failures = [], Counter[str]()
    generator = torch.Generator().manual_seed(seed)
    w = torch.ones(len(first.fit.data), dtype=torch.float64) if first.fit.weights is None else first.fit.weights
    with progress_bar("likelihood-ratio test", num_samples, progress) as update:
        for number in range(num_samples):
            drawn, _ = from_model(first.fit, w, generator)
            pair = _both(engine, models, drawn, None, {"truth": first.fit})
            lost = [cell.status.code for cell in pair if not cell.eligible]
            failures.update(lost[:1])
            replicates += [] if lost else [_statistic(*pair)]
            update(number + 1, f"{len(replicates)} replicates")
    if not replicates:
        raise EngineError(f"no replicate could be fitted: {dict(failures)}")
    statistic, drawn_statistics = _statistic(first, second), torch.tensor(replicates, dtype=torch.float64)
    larger = int((drawn_statistics >= statistic).sum())
    left_out = tuple(f"{count} left out: {code}" for code, count in failures.items())
    return LikelihoodRatio(
        statistic,
        (1 + larger) / (1 + len(replicates)),
        drawn_statistics,
        first.fit,
        second.fit,
        Status("finished", f"{len(replicates)} of {num_samples} replicates used", left_out),
        time.perf_counter() - begin,
    )


def _check_nested(null: Any, alternative: Any, engine: EM) -> None:
    for model in (null, alternative):
        if not isinstance(model, LatentVariableModel):
            raise EngineError(
                f"likelihood_ratio_test takes declarations, which it fits itself, such as pv.models.GaussianMixture(2, "
                f"d); got a {type(model).__name__}"
            )
    if not isinstance(engine, EM):
        raise EngineError(f"likelihood_ratio_test fits by EM, got engine={engine!r}")
    first, second = (_count(model, engine) for model in (null, alternative))
    if first >= second:
        raise EngineError(
            f"likelihood_ratio_test: the null model has {first} free parameters, the alternative {second}: {EXCHANGED}"
        )


def _count(model: LatentVariableModel, engine: EM) -> int:
    """Parameters that the engine moves."""
    return coordinates(model, held(model, engine.frozen)).size


def _both(
    engine: EM, models: list[LatentVariableModel], data: Any, weights: Any, known: Mapping[str, Any] = NOTHING
) -> tuple[Cell, Cell]:
    """The two declarations fitted to one data set, the first also from what is known, the second from its answer."""
    sweep = Sweep.over(engine, models[0], data, weights, None)
    return sweep.visit((0,), models[0], {"model": 0}, known), sweep.visit((1,), models[1], {"model": 1})


def _statistic(null: Cell, alternative: Cell) -> float:
    return 2 * (alternative.log_likelihood - null.log_likelihood)
