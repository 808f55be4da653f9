"""Several fits, one table: each engine's own bound in its own column, one held-out column that all share."""

import io
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table as RichTable
from torch import Tensor

from ppl_vae.comparable import common_weights, other_data, other_nodes
from ppl_vae.convergence import convergence
from ppl_vae.declare import LatentVariableModel, Observations
from ppl_vae.errors import DataError, EngineError
from ppl_vae.fit import Fit
from ppl_vae.invariants import invariants
from ppl_vae.labels import agreement, label_notes, matched_draws, responsibilities
from ppl_vae.quality import quality, quality_words
from ppl_vae.rows import COLUMNS, Row, judge

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["COLUMNS", "Row", "Table", "compare"]


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
    notes : list of str
        How the labels of components were treated.
    invariants : dict
        What of each fit's draws does not depend on labels, [chain, draw, ...] by name: see ppl_vae.invariants.
    elpd : dict
        ArviZ's record of leave-one-out of each fit that has one.
    """

    fits: dict[str, Fit]
    data: Observations
    rows: dict[str, Row]
    matched: dict[str, dict[str, Tensor]]
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    invariants: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    elpd: dict[str, Any] = field(default_factory=dict)

    def to_frame(self) -> "pd.DataFrame":
        """One row per fit, the columns of COLUMNS; NaN where a column has no meaning for a fit."""
        import pandas as pd

        frame = pd.DataFrame([vars(row) for row in self.rows.values()], index=list(self.rows))
        return frame[[name for name in COLUMNS if frame[name].notna().any()]]

    def parameters(self) -> "pd.DataFrame":
        """Every scalar parameter of matched components, and then what does not depend on labels.

        Mean by fit; sd and 90% interval where there are draws.
        """
        import pandas as pd

        columns: dict[str, dict[str, float]] = {}
        for name in self.matched:
            sampled = not self.fits[name].is_point
            for parameter, value in self._everything(name).items():
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

    def _everything(self, name: str) -> dict[str, Tensor]:
        return {**self.matched[name], **self.invariants.get(name, {})}

    def loo(self, method: str = "stacking") -> "pd.DataFrame":
        """ArviZ's comparison by leave-one-out: differences of elpd with their standard errors, and model weights.

        Parameters
        ----------
        method : {"stacking", "bb-pseudo-bma", "pseudo-bma"}
            How models are weighted.

        Raises
        ------
        EngineError
            If fewer than two fits have draws of a posterior and hold their training data, or those differ in number.
        """
        from arviz_stats import compare as by_elpd

        sizes = {int(elpd.n_data_points) for elpd in self.elpd.values()}
        if len(self.elpd) < 2:
            raise EngineError(
                f"loo compares two or more fits that have draws of their parameters and hold their training data; of "
                f"{', '.join(self.fits)} {', '.join(self.elpd) or 'none'} does: fit by SVI, VB or NUTS"
            )
        if len(sizes) > 1:
            raise EngineError(f"loo compares fits of the same data; {', '.join(self.elpd)} are of {sorted(sizes)} data")
        with warnings.catch_warnings():
            # It sorts in place, whose end pandas 3.1 announces.
            warnings.simplefilter("ignore", DeprecationWarning)
            return by_elpd(self.elpd, method=method)

    def sampled(self) -> str | None:
        """Name of the fit whose draws are the posterior itself: the first of NUTS."""
        return next((name for name, fit in self.fits.items() if fit.engine == "NUTS"), None)

    def quality(self, reference: str | None = None) -> "pd.DataFrame":
        """Errors of other fits of the same model against draws from the posterior: see ppl_vae.quality.quality.

        Parameters
        ----------
        reference : str, optional
            The fit held for the posterior; the first of NUTS.

        Raises
        ------
        EngineError
            If there is no such fit, or it has no draws.
        """
        name = self.sampled() if reference is None else reference
        if name is None or name not in self.fits or self.fits[name].is_point:
            raise EngineError(
                f"quality needs draws from the posterior to hold the others against: name one of {', '.join(self.fits)}"
                f" that has draws, got {reference!r}; NUTS is taken where it is there"
            )
        others = [n for n in self.fits if n != name and self._of_one_model(n, name)]
        return quality(self._everything(name), {n: self._everything(n) for n in others})

    def _of_one_model(self, a: str, b: str) -> bool:
        """Whether two fits are of one declaration with parameters of the same shapes."""
        shapes = [{name: value.shape[2:] for name, value in self.matched[fit].items()} for fit in (a, b)]
        return type(self.fits[a].model) is type(self.fits[b].model) and shapes[0] == shapes[1]

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
            table.add_column(name.replace("_", "\n"), justify="left" if name in ("engine", "status") else "right")
        for label, row in frame.iterrows():
            table.add_row(str(label), *[format_cell(name, row[name]) for name in frame.columns])
        return table

    def __repr__(self) -> str:
        # As wide as it takes, so that no number is cut; in a notebook rich would show the text beside the HTML.
        console = Console(file=io.StringIO(), width=400, color_system=None, force_jupyter=False)
        console.print(self.rich())
        for sentence in [*(f"! {warning}" for warning in self.warnings), *self.notes]:
            console.print(sentence, markup=False, width=160)
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
    "khat": "{:.2f}",
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


def compare(
    fits: Mapping[str, Fit], data: Any = None, labels: Any = None, num_particles: int = 200, weights: Any = None
) -> Table:
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
    weights : Tensor, optional
        [n], datum i of the data compared on counts w_i times, for every fit; where these are training data, the weights
        that the fits have in common by default.

    Returns
    -------
    Table
        With to_frame(), parameters(), quality(), loo(), report(path).

    Raises
    ------
    DataError
        Without fits, without data, or with labels or weights of other data.

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
    named = _named(fits)
    first = next(iter(named.values()))
    if data is None and first.data is None:
        raise DataError("the fits hold no data: pass compare(fits, data)")
    obs = first.data if data is None else first.model.check(data)
    table = Table(named, obs, {}, {})
    if data is None:
        table.warnings.append("log_predictive is on the training data: pass held-out data to compare predictions")
    seen = {name: _seen(name, fit, obs, next(iter(named))) for name, fit in named.items()}
    counted, said = common_weights(named, seen, weights)
    table.warnings += [*said, *other_nodes(named, seen)]
    r = {name: responsibilities(fit, seen[name]) for name, fit in named.items()}
    reference = next(iter(r.values()))
    known = None if labels is None else _classes(labels, len(obs))
    traded: dict[str, list[str]] = {}
    for name, fit in named.items():
        own = seen[name]
        judged = judge(fit, own, num_particles, counted)
        if fit is not first or known is not None:
            judged.row.ari = agreement(known, reference, r[name])
        table.rows[name] = judged.row
        if judged.elpd is not None:
            table.elpd[name] = judged.elpd
        table.matched[name], traded[name] = matched_draws(fit, own, reference, {} if fit is first else r[name])
        table.invariants[name] = invariants(fit.model, own, table.matched[name])
        table.warnings += [f"{name}: {sentence}" for sentence in judged.warnings]
    table.warnings += other_data(named)
    table.notes = label_notes(named, r, traded)
    table.warnings += _against_reference(table)
    return table


def _classes(labels: Any, n: int) -> np.ndarray:
    known = np.asarray(labels)
    if known.shape != (n,):
        raise DataError(f"compare: labels are one class for each of the {n} data compared, got shape {known.shape}")
    return known


def _named(fits: Any) -> dict[str, Fit]:
    wrong = [fits] if not isinstance(fits, Mapping) else [fit for fit in fits.values() if not isinstance(fit, Fit)]
    if wrong:
        raise DataError(
            f"compare takes fits by name, {{name: engine.fit(model, data), ...}}; got a {type(wrong[0]).__name__}"
        )
    programs = [str(name) for name, fit in fits.items() if not isinstance(fit.model, LatentVariableModel)]
    if programs:
        raise DataError(
            f"compare takes fits of declared models, and {', '.join(programs)} are of ordinary Pyro programs: give "
            "their trees, fit.to_datatree(), to arviz_stats.compare, or declare the model"
        )
    return {str(name): fit for name, fit in fits.items()}


def _against_reference(table: Table) -> list[str]:
    """What is wrong with approximate posteriors, where chains that agree tell what the posterior is."""
    name = table.sampled()
    found = None if name is None else convergence(table.fits[name])
    if name is None or found is None or not found.ok:
        return []
    errors = table.quality(name)
    others = [n for n, fit in table.fits.items() if not fit.is_point and fit.engine in ("SVI", "VB")]
    own = {n: errors.loc[n] for n in others if n in errors.index.get_level_values(0)}
    return [f"{n}: {said}" for n, frame in own.items() for said in quality_words(name, frame)]


def _raw(obs: Observations) -> dict[str, Any]:
    """Values with their NaN back, so that each fit reads them in its own dtype."""
    return {n: v.masked_fill(obs.missing[n], torch.nan) if n in obs.missing else v for n, v in obs.values.items()}


def _seen(name: str, fit: Fit, obs: Observations, first: str) -> Observations:
    """The data as a fit's model sees them."""
    try:
        return fit.model.check(_raw(obs))
    except DataError as error:
        raise DataError(
            f"compare holds fits against each other on the same data, and {name} cannot read those of {first}: {error}"
        ) from error
