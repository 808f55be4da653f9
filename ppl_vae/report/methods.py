"""A paragraph for the methods section of a paper, from what was in fact done."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from ppl_vae.convergence import convergence
from ppl_vae.evaluation import Evaluation, plus_minus
from ppl_vae.fit import Fit
from ppl_vae.report.equations import equations

__all__ = ["comparison_methods", "training_methods"]

SAID = 6
"""Columns that are named."""


def comparison_methods(fits: Mapping[str, Fit], data: Any, has_loo: bool) -> str:
    """Say how the fits of a comparison were made and judged.

    Parameters
    ----------
    fits : mapping of Fit
        By name.
    data : Observations
        What they were compared on.
    has_loo : bool
        Whether the table has a column by leave-one-out.
    """
    first = next(iter(fits.values()))
    said = [_model(first.model, data)]
    said += [f"{name}: {engine_methods(fit)}." for name, fit in fits.items()]
    said.append(
        "Fits were compared by the log predictive density of each observation, the log of the mean over draws of "
        "p(x | θ) with the latent variables of each observation integrated out, in nats"
        + (
            "; expected log pointwise predictive density by Pareto-smoothed importance-sampling leave-one-out "
            "(Vehtari, Gelman and Gabry 2017)"
            if has_loo
            else ""
        )
        + ". Components were matched across fits by their responsibilities."
    )
    return " ".join([*said, _software(first)])


def training_methods(fit: Fit, found: Evaluation, source: str) -> str:
    """Say how a model was trained and evaluated.

    Parameters
    ----------
    fit : Fit
        Of SVI.
    found : Evaluation
        On held-out data.
    source : str
        Name of the data.
    """
    count = f"{len(fit.data)} observations of " if fit.data is not None else ""
    log_prob = "exactly" if found.method == "exact" else "by importance sampling from q(z | x)"
    if math.isfinite(found.min_ess):
        log_prob += f" (the smallest effective sample size of an observation was {found.min_ess:.1f})"
    how = engine_methods(fit)
    return (
        f"We trained {_named(fit.model)} on {count}{source}. {how[0].upper()}{how[1:]}. On {found.n} held-out "
        f"observations the evidence lower bound was {plus_minus(found.elbo, found.elbo_se, 2)} and log p(x), computed "
        f"{log_prob}, {plus_minus(found.log_prob, found.log_prob_se, 2)} nats per observation (mean ± standard error). "
        f"{_software(fit)}"
    )


def engine_methods(fit: Fit) -> str:
    """Say how one fit was made."""
    return ENGINES.get(fit.engine, _other)(fit, fit.settings)


GUIDES = {"normal": "mean-field normal", "lowrank": "low-rank normal", "multivariate": "full-rank normal"}


def _named(model: Any) -> str:
    laws = "; ".join(f"{left} = {right}" for left, right in equations(model))
    return f"a latent-variable model ({type(model).__name__}: {laws})"


def _model(model: Any, data: Any) -> str:
    parts = []
    for name, value in data.values.items():
        columns = data.columns.get(name) or ()
        names = f" ({', '.join(columns)})" if 0 < len(columns) <= SAID else ""
        width = value.shape[1:].numel()
        parts.append(f"{name}, {width} variable{'s' if width != 1 else ''}{names}")
    return f"We fitted {_named(model)} to {len(data)} observations of {'; '.join(parts)}."


def _em(fit: Fit, s: Mapping[str, Any]) -> str:
    goal = "maximum a posteriori" if fit.bound.endswith("log p(theta)") else "maximum likelihood"
    starts = len(fit.trace.get("starts", ())) or 1
    origin = s.get("start", "k-means++")
    begun = f"the best of {starts} {origin} starts" if starts > 1 else f"one start ({origin})"
    return (
        f"{goal} by expectation maximisation (Dempster, Laird and Rubin 1977) from {begun}, until an iteration gained "
        f"less than {s.get('tol', 0):g} nats per observation in relative terms; it {_ended(fit)} with "
        f"{fit.bound.replace('theta', 'θ')} = {fit.trace['bound'][-1]:.2f} nats"
    )


def _vb(fit: Fit, s: Mapping[str, Any]) -> str:
    return (
        f"mean-field variational Bayes with conjugate updates; it {_ended(fit)} with a bound on log p(X) of "
        f"{fit.trace['bound'][-1]:.2f} nats"
    )


def _svi(fit: Fit, s: Mapping[str, Any]) -> str:
    batch = s.get("batch_size")
    law = GUIDES.get(str(s.get("guide")), "automatic")
    family = f" with a {law} approximation of the shared parameters' posterior" if fit.draws else ""
    optimizer = str(s.get("optimizer", "")).split(", betas")[0].rstrip(")") + ")"
    beta = str(s.get("beta", 1.0))
    weighted = "" if beta in ("1", "1.0") else f", the KL term weighted by {beta}"
    return (
        f"stochastic variational inference{family} by {optimizer}, {s.get('epochs')} epochs, "
        f"{f'batches of {batch}' if batch else 'all data in each step'}{weighted}; it {_ended(fit)}"
    )


def _nuts(fit: Fit, s: Mapping[str, Any]) -> str:
    found = convergence(fit)
    health = (
        f"; the largest rank-normalised split R-hat was {found.rhat:.3f}, the smallest effective sample size "
        f"{found.ess:.0f} (Vehtari et al. 2021), and {found.divergences or 'none'} of {found.transitions} transitions "
        f"diverged"
        if found is not None
        else ""
    )
    return (
        f"the no-U-turn sampler (Hoffman and Gelman 2014; {s.get('sampler')}) with the latent variables of each "
        f"observation summed out, {s.get('num_chains')} chains of {s.get('num_samples')} draws after "
        f"{s.get('warmup')} of warm-up{health}"
    )


def _bootstrap(fit: Fit, s: Mapping[str, Any]) -> str:
    return f"{fit.num_draws} bootstrap refits by expectation maximisation"


def _other(fit: Fit, s: Mapping[str, Any]) -> str:
    return f"{fit.engine}; it {_ended(fit)}"


ENGINES: dict[str, Callable[[Fit, Mapping[str, Any]], str]] = {
    "EM": _em,
    "VB": _vb,
    "SVI": _svi,
    "NUTS": _nuts,
    "bootstrap": _bootstrap,
}
"""How each engine's fits are told."""


def _ended(fit: Fit) -> str:
    """How it ended, as the rest of a sentence."""
    length = len(fit.trace.get("bound", ()))
    ends = {
        "converged": f"converged after {length - 1} iterations",
        "finished": "ran as planned",
        "stopped early": f"stopped early after {length} epochs",
    }
    return ends.get(fit.status.code, f"ended as {fit.status.code!r}")


def _software(fit: Fit) -> str:
    names = {"ppl_vae": "ppl_vae", "python": "Python", "torch": "PyTorch", "pyro": "Pyro"}
    found = ", ".join(f"{names.get(k, k)} {v}" for k, v in fit.versions.items())
    return f"Software: {found}; seed {fit.seed}."
