"""The bootstrap: an EM fit repeated on data drawn anew, as the draws of a Fit."""

import time
from collections import Counter
from copy import deepcopy
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from ppl_vae.align import matched, symmetries
from ppl_vae.alone import seeded_rng
from ppl_vae.coordinates import coordinates
from ppl_vae.declare import LatentVariableModel, Observations
from ppl_vae.errors import NO_DATA, DataError, EngineError, check_seed, check_whole
from ppl_vae.fit import Fit, Status, check_fit
from ppl_vae.infer import EM
from ppl_vae.infer.weights import check_weights
from ppl_vae.progress import progress as progress_bar

__all__ = ["bootstrap", "from_model", "from_rows"]

ROWS = 300
"""Data on whose responsibilities labels are compared."""
KEPT = ("tol", "max_iter", "estimate", "assignment", "frozen", "batch_size", "accelerate")
"""Settings of the fit that its refits share, where the engine has them."""

Sample = tuple[Any, Tensor | None]
"""Data for a refit, and their weights."""


def bootstrap(
    fit: Fit,
    engine: EM | None = None,
    num_samples: int = 200,
    kind: str = "parametric",
    seed: int = 0,
    progress: bool = True,
) -> Fit:
    """Refit an EM fit to data drawn anew; each refit starts at the fitted parameters.

    The spread of the refits estimates that of the estimator, without the quadratic approximation of standard errors.
    Components of every refit that can trade labels are matched to those of the original by their responsibilities.

    Parameters
    ----------
    fit : Fit
        By EM, with its data.
    engine : EM, optional
        Its tolerance and limits; by default those of the fit.
    num_samples : int
        Number of refits B.
    kind : {"parametric", "nonparametric"}
        "parametric" draws as many data from the fitted model, with the inputs and missing entries of the original;
        "nonparametric" draws rows of the data with replacement. A weight is a count: a row of weight w is w rows.
    seed : int
        Seed that repeats the answer.
    progress : bool
        Show progress.

    Returns
    -------
    Fit
        Its `draws` are the refits, [1, B, *event] for every parameter, so `to_datatree`, `compare` and the plots take
        it; `trace["log_likelihood"]` is that of each refit on its own data. Refits that failed or degenerated are left
        out, and counted in `status`.

    Raises
    ------
    EngineError
        For a number out of range, a fit with draws, a model with free networks, or when fewer than two refits can be
        used.

    References
    ----------
    Efron (1979), "Bootstrap methods: another look at the jackknife". O'Hagan, Murphy, Scrucca and Gormley (2019),
    "Investigation of parameter uncertainty in clustering using a Gaussian mixture model via jackknife, bootstrap and
    weighted likelihood bootstrap".

    Examples
    --------
    >>> import ppl_vae as pv
    >>> fit = pv.EM(progress=False).fit(pv.models.GaussianMixture(1, 2), pv.data.faithful())
    >>> again = bootstrap(fit, num_samples=20, progress=False)
    >>> again.draws["components.loc"].shape
    torch.Size([1, 20, 1, 2])
    """
    kinds = {"parametric": from_model, "nonparametric": from_rows}
    if kind not in kinds:
        raise EngineError(f"bootstrap: kind must be one of {', '.join(kinds)}; got {kind!r}")
    check_whole("bootstrap", 2, num_samples=num_samples)
    seed = check_seed(seed)
    _check(fit)
    begin = time.perf_counter()
    engine = _engine(fit) if engine is None else engine
    if getattr(engine, "checkpoint", None) is not None:
        raise EngineError("bootstrap fits many times, and a checkpoint belongs to one fit: pass an engine without")
    engine = replace(engine, start=fit.parameters, n_init=1, progress=False)
    w = check_weights(fit.weights, len(fit.data)).to(fit.model.like)
    generator = torch.Generator().manual_seed(seed)
    refits: list[Fit] = []
    failures: Counter[str] = Counter()
    with progress_bar("bootstrap", num_samples, progress) as update:
        for number in range(num_samples):
            one = _refit(engine, fit, kinds[kind](fit, w, generator), failures)
            refits += [] if one is None else [one]
            update(number + 1, f"{sum(failures.values())} refits failed")
    status = _status(refits, failures, num_samples)
    return Fit(
        model=fit.model,
        engine="bootstrap",
        draws=_draws(fit, refits),
        trace={
            "log_likelihood": torch.stack([one.trace["bound"][-1] for one in refits]),
            "iterations": torch.tensor([len(one.trace["bound"]) for one in refits]),
        },
        bound=fit.bound,
        status=status,
        seconds=time.perf_counter() - begin,
        seed=seed,
        settings={**refits[0].settings, "kind": kind, "num_samples": num_samples, "start": "the fit"},
        data=fit.data,
        weights=fit.weights,
    )


def _check(fit: Fit) -> None:
    check_fit("bootstrap", fit)
    if fit.engine != "EM" or not isinstance(fit.model, LatentVariableModel):
        raise EngineError(
            f"bootstrap repeats an EM fit of a declared model, got one by {fit.engine} of {type(fit.model).__name__}"
        )
    if networks := coordinates(fit.model, fit.settings.get("frozen", ())).networks:
        raise EngineError(
            f"bootstrap keeps draws of families and shared latents; {type(fit.model).__name__} also has free network "
            f"parameters ({', '.join(sorted(networks)[:3])}), which draws of a Fit do not hold: use standard_errors"
        )
    if fit.data is None:
        raise EngineError(f"{NO_DATA}: set fit.data")


def _engine(fit: Fit) -> EM:
    known = {f.name for f in fields(EM)}
    return EM(**{name: fit.settings[name] for name in KEPT if name in known and name in fit.settings})


def from_model(fit: Fit, w: Tensor, generator: torch.Generator) -> Sample:
    """As many data from the fitted model, under the inputs and with the gaps of the original rows."""
    obs: Observations = fit.data
    # A weight of 2.5 stands for two rows and, every second time, a third.
    count = (w + torch.rand(len(w), generator=generator, dtype=w.dtype)).floor().long()
    rows = torch.arange(len(w)).repeat_interleave(count)
    if not len(rows):
        raise DataError(f"the weights sum to {w.sum().item():g}: as counts they leave no datum to draw")
    inputs = {name: obs.values[name][rows] for name in fit.model.inputs}
    with seeded_rng(_seed(generator)), fit.model.bind(fit.draw(0)):
        drawn = fit.model.sample_joint(len(rows), **inputs)
    values = {name: drawn[name] for name in obs.values if name not in inputs}  # latents too, where data give them
    for name in set(values) & set(obs.missing):
        values[name] = values[name].to(fit.model.like).masked_fill(obs.missing[name][rows], torch.nan)
    return {**inputs, **values}, None


def from_rows(fit: Fit, w: Tensor, generator: torch.Generator) -> Sample:
    """The rows of the data, each as often as it was drawn: its weight."""
    total = max(1, round(w.sum().item()))
    drawn = torch.multinomial(w, total, replacement=True, generator=generator)
    return fit.data, torch.bincount(drawn, minlength=len(w)).to(w)


def _seed(generator: torch.Generator) -> int:
    return int(torch.randint(2**31, (), generator=generator))


def _refit(engine: EM, fit: Fit, sample: Sample, failures: Counter[str]) -> Fit | None:
    data, weights = sample
    # A fitted model's parameters are fixed; a refit moves those of its networks too.
    model = deepcopy(fit.model).requires_grad_(True)
    try:
        one = engine.fit(model, data, weights)
    except (DataError, EngineError) as error:
        failures[str(error)] += 1
        return None
    if one.status.code in ("degenerate", "failed"):
        failures[one.status.code] += 1
        return None
    return one


def _status(refits: list[Fit], failures: Counter[str], num_samples: int) -> Status:
    left_out = [f"{count} of {num_samples} refits left out: {reason}" for reason, count in failures.items()]
    if len(refits) < 2:
        raise EngineError(f"bootstrap: fewer than two refits can be used; {'; '.join(left_out)}")
    slow = sum(not one.status.ok for one in refits)
    notes = [f"{slow} refits stopped at max_iter"] if slow else []
    return Status("finished", f"{len(refits)} of {num_samples} refits used", (*left_out, *notes))


def _draws(fit: Fit, refits: list[Fit]) -> dict[str, Tensor]:
    """Parameters of every refit with components in the order of the original, [1, B, *event]."""
    obs: Observations = fit.data
    few = obs.rows(obs.spaced(ROWS))
    values = [one.parameters for one in refits]
    if not fit.model.draws_latents(obs):
        found, reference = symmetries(fit.model, obs, fit.parameters), _responsibilities(fit, few)
        values = [matched(one.parameters, found, _responsibilities(one, few), reference) for one in refits]
    return {name: torch.stack([own[name] for own in values])[None] for name in values[0]}


def _responsibilities(fit: Fit, obs: Observations) -> dict[str, Tensor]:
    """p(z = k | x_i) of each finite latent, [n, K]."""
    with torch.no_grad(), fit.model.numeric():
        return fit.model.class_probabilities(obs, fit.model.finite_latents(obs))
