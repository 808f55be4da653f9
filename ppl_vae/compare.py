"""Several fits, one table: each engine's own bound in its own column, one held-out column that all share."""

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table as RichTable
from torch import Tensor

from ppl_vae.align import exchangeable, match
from ppl_vae.coordinates import coordinates
from ppl_vae.datatree import posterior_draws
from ppl_vae.declare import Observations
from ppl_vae.diagnostics import convergence, elbo_total, evaluate, leave_one_out, standard_error
from ppl_vae.errors import DataError
from ppl_vae.fit import Fit

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["COLUMNS", "Row", "Table", "compare"]

K_LIMIT, WEIGHT_SHARE = 0.7, 0.05

Total = tuple[float, float, float]
"""Bound on log p(X), its importance-weighted estimate, and the share of draws that the weights are worth."""

COLUMNS = {
    "engine": "engine",
    "log_predictive": "log p(x) of the data compared on, nats per datum",
    "log_predictive_se": "standard error",
    "log_likelihood": "log p(X | theta), total, training",
    "elbo_total": "bound on log p(X), total",
    "elbo": "bound on log p(x), nats per datum",
    "gap": "what the bound lacks, in its own unit",
    "bic": "BIC, smaller is better",
    "elpd_loo": "ELPD by PSIS-LOO, total",
    "elpd_se": "its standard error",
    "bad_k": "data with Pareto k above 0.7",
    "rhat": "worst R-hat",
    "ess": "smallest ESS",
    "ari": "agreement of labels",
    "seconds": "seconds",
    "status": "status",
}
"""Columns of a comparison with what they mean."""


@dataclass
class Row:
    """One fit's line of the table; None where a column has no meaning for it."""

    engine: str
    log_predictive: float
    log_predictive_se: float
    seconds: float
    status: str
    log_likelihood: float | None = None
    elbo_total: float | None = None
    elbo: float | None = None
    gap: float | None = None
    bic: float | None = None
    elpd_loo: float | None = None
    elpd_se: float | None = None
    bad_k: int | None = None
    rhat: float | None = None
    ess: float | None = None
    ari: float | None = None


@dataclass
class Table:
    """The comparison.

    Attributes
    ----------
    fits : dict of Fit
        What was compared, by name.
    data : Observations
        What they were compared on.
    rows : dict of Row
        One line per fit.
    matched : dict
        Draws of each fit, [chain, draw, *event] by parameter, components in the order of the first fit.
    warnings : list of str
        What the reader should know before believing a number.
    """

    fits: dict[str, Fit]
    data: Observations
    rows: dict[str, Row]
    matched: dict[str, dict[str, Tensor]]
    warnings: list[str] = field(default_factory=list)

    def to_frame(self) -> "pd.DataFrame":
        """One row per fit, the columns of COLUMNS; NaN where a column has no meaning for a fit."""
        import pandas as pd

        frame = pd.DataFrame([vars(row) for row in self.rows.values()], index=list(self.rows))
        return frame[[name for name in COLUMNS if frame[name].notna().any()]]

    def parameters(self) -> "pd.DataFrame":
        """Every scalar parameter of matched components: mean by fit; sd and 90% interval where there are draws."""
        import pandas as pd

        columns: dict[str, dict[str, float]] = {}
        for name, draws in self.matched.items():
            sampled = not self.fits[name].is_point
            for parameter, value in draws.items():
                flat = value.flatten(0, 1).double()
                for where in np.ndindex(*flat.shape[1:]):
                    label = f"{parameter}[{', '.join(map(str, where))}]" if where else parameter
                    scalar = flat[(slice(None), *where)]
                    columns.setdefault(name, {})[label] = scalar.mean().item()
                    if sampled:
                        lower, upper = scalar.quantile(torch.tensor([0.05, 0.95], dtype=scalar.dtype)).tolist()
                        columns.setdefault(f"{name} sd", {})[label] = scalar.std().item()
                        columns.setdefault(f"{name} lower", {})[label] = lower
                        columns.setdefault(f"{name} upper", {})[label] = upper
        return pd.DataFrame(columns)

    def report(self, path: str | Path, command: str | None = None) -> Path:
        """Write the comparison as one self-contained HTML file."""
        from ppl_vae.report import write_comparison

        return write_comparison(self, path, command)

    def rich(self) -> RichTable:
        """The table for a terminal."""
        frame = self.to_frame()
        table = RichTable(title="Comparison", caption="larger log probabilities are better; nats")
        table.add_column("")
        for name in frame.columns:
            table.add_column(name.replace("_", " "), justify="left" if name in ("engine", "status") else "right")
        for label, row in frame.iterrows():
            table.add_row(str(label), *[format_cell(name, row[name]) for name in frame.columns])
        return table

    def __repr__(self) -> str:
        console = Console(file=io.StringIO(), width=160, color_system=None)
        console.print(self.rich())
        for warning in self.warnings:
            console.print(f"! {warning}", markup=False)
        return console.file.getvalue()  # type: ignore[attr-defined]

    def _repr_html_(self) -> str:
        from ppl_vae.report import table_html

        return table_html(self)


FORMATS = {
    "log_predictive": "{:.4f}",
    "log_predictive_se": "{:.4f}",
    "log_likelihood": "{:.4f}",
    "elbo_total": "{:.3f}",
    "elbo": "{:.4f}",
    "gap": "{:.3f}",
    "bic": "{:.2f}",
    "elpd_loo": "{:.2f}",
    "elpd_se": "{:.2f}",
    "bad_k": "{:.0f}",
    "rhat": "{:.4f}",
    "ess": "{:.0f}",
    "ari": "{:.3f}",
    "seconds": "{:.2f}",
}


def format_cell(column: str, value: Any) -> str:
    """A cell as text, empty where the column has no meaning for the fit.

    Examples
    --------
    >>> format_cell("rhat", 1.00234), format_cell("rhat", None)
    ('1.0023', '')
    """
    if isinstance(value, str):
        return value
    return "" if value is None or value != value else FORMATS[column].format(value)


def compare(fits: Mapping[str, Fit], data: Any = None, labels: Any = None, num_particles: int = 200) -> Table:
    """Compare fits of one model, or of several models of the same data.

    Parameters
    ----------
    fits : mapping of Fit
        By name; components of the others are matched to the first.
    data : optional
        Held-out data; the training data of the first fit by default, which the table then says.
    labels : array, optional
        [n] known classes for the agreement of labels; without them fits are held against the first.
    num_particles : int
        Draws of q per datum where log p(x) is not exact.

    Returns
    -------
    Table
        With to_frame(), parameters(), report(path).

    Raises
    ------
    DataError
        Without fits, or without data.

    Examples
    --------
    >>> import ppl_vae as pv
    >>> x = pv.data.faithful().values
    >>> fits = {K: pv.EM(n_init=3, progress=False).fit(pv.models.GaussianMixture(K, 2), x) for K in (1, 2)}
    >>> pv.compare(fits).to_frame()["log_likelihood"].round(2).tolist()
    [-1289.8, -1130.26]
    """
    if not fits:
        raise DataError("compare needs at least one fit: compare({name: fit}, data)")
    named = {str(name): fit for name, fit in fits.items()}
    first = next(iter(named.values()))
    if data is None and first.data is None:
        raise DataError("the fits hold no data: pass compare(fits, data)")
    obs = first.data if data is None else first.model.check(data)
    table = Table(named, obs, {}, {})
    if data is None:
        table.warnings.append("log_predictive is on the training data: pass held-out data to compare predictions")
    reference = _hard_labels(first, obs) if labels is None else np.asarray(labels)
    for name, fit in named.items():
        total = elbo_total(fit)
        table.rows[name] = _row(fit, fit.model.check(_raw(obs)), num_particles, total)
        table.rows[name].ari = _agreement(fit, obs, reference, skip=fit is first and labels is None)
        table.matched[name] = _matched(first, fit, obs)
        table.warnings += [f"{name}: {sentence}" for sentence in _warnings(fit, table.rows[name], total)]
    return table


def _raw(obs: Observations) -> dict[str, Any]:
    """Values with their NaN back, so that each fit reads them in its own dtype."""
    return {n: v.masked_fill(obs.missing[n], torch.nan) if n in obs.missing else v for n, v in obs.values.items()}


def _row(fit: Fit, obs: Observations, num_particles: int, total: Total | None) -> Row:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        predictive = fit.log_predictive(obs, num_particles).double()
    row = Row(fit.engine, predictive.mean().item(), standard_error(predictive), fit.seconds, fit.status.code)
    if fit.engine == "EM":
        _fill_em(row, fit)
    elif total is not None:
        row.elbo_total, row.gap = total[0], total[1] - total[0]
    elif fit.engine == "SVI":
        evaluation = evaluate(fit, obs, num_particles)
        row.elbo, row.gap = evaluation.elbo, evaluation.log_prob - evaluation.elbo
    if (chains := convergence(fit)) is not None:
        row.rhat, row.ess = chains.rhat, chains.ess
    if (elpd := leave_one_out(fit) if fit.data is not None else None) is not None:
        row.elpd_loo, row.elpd_se = float(elpd.elpd), float(elpd.se)
        row.bad_k = int((np.asarray(elpd.pareto_k) > K_LIMIT).sum())
    return row


def _fill_em(row: Row, fit: Fit) -> None:
    """Log p(X | theta): the bound is tight after an E-step, so its gap is zero; BIC where theta is its maximum."""
    if fit.data is None:
        return
    weights = torch.ones(len(fit.data)) if fit.weights is None else fit.weights
    per_datum = fit.log_predictive(fit.data).double()
    row.log_likelihood, row.gap = (weights.to(per_datum) * per_datum).sum().item(), 0.0
    if not fit.bound.endswith("log p(theta)"):
        row.bic = -2 * row.log_likelihood + degrees_of_freedom(fit) * float(torch.log(weights.sum()))


def degrees_of_freedom(fit: Fit) -> int:
    """Number of free scalars among a fit's parameters: a simplex of K counts K - 1.

    Examples
    --------
    >>> import ppl_vae as pv
    >>> fit = pv.EM(progress=False).fit(pv.models.GaussianMixture(2, 2), pv.data.faithful())
    >>> degrees_of_freedom(fit)
    11
    """
    return coordinates(fit.model, fit.settings.get("frozen", ())).size


def _hard_labels(fit: Fit, obs: Observations) -> np.ndarray | None:
    if not _finite(fit, obs):
        return None
    return fit.labels(_raw(obs)).numpy()


def _finite(fit: Fit, obs: Observations) -> bool:
    """Whether the model has exactly one finite latent, whose values can be called labels."""
    laws = fit.model.prototypes(fit.model.check(_raw(obs)))
    latents = [node.name for node in fit.model.local_nodes() if node.kind == "latent"]
    return len(latents) == 1 and laws[latents[0]].has_enumerate_support


def _agreement(fit: Fit, obs: Observations, reference: np.ndarray | None, skip: bool) -> float | None:
    from sklearn.metrics import adjusted_rand_score

    own = None if reference is None or skip else _hard_labels(fit, obs)
    return None if own is None else float(adjusted_rand_score(reference, own))


def _matched(first: Fit, fit: Fit, obs: Observations) -> dict[str, Tensor]:
    """The fit's draws with components in the order of the first fit's."""
    draws = posterior_draws(fit)
    if fit is first or not draws or not _finite(fit, obs) or not _finite(first, obs):
        return draws
    a, b = first.responsibilities(_raw(obs)), fit.responsibilities(_raw(obs))
    if a.shape != b.shape:
        return draws
    point = {name: value.flatten(0, 1)[0] for name, value in draws.items()}
    own = fit.model.check(_raw(obs))
    names = exchangeable(fit.model, own.rows(torch.arange(min(50, len(own)))), point)
    order = match(a.double(), b.double())
    return {name: value.index_select(2, order) if name in names else value for name, value in draws.items()}


def _warnings(fit: Fit, row: Row, total: Total | None) -> list[str]:
    found = [] if fit.status.ok else [str(fit.status)]
    if fit.status.ok:
        found += list(fit.status.notes)
    if (chains := convergence(fit)) is not None:
        found += [said for said in chains.warnings() if said not in found]
    if row.bad_k:
        found.append(f"{row.bad_k} data have a Pareto k above {K_LIMIT}: their share of elpd_loo is not reliable")
    if total is not None and total[2] < WEIGHT_SHARE:
        found.append(
            f"q covers the posterior poorly: the importance weights are worth {total[2]:.1%} of the draws, so the gap "
            f"is underestimated"
        )
    return found
