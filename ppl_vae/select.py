"""Choice of a declaration: one fit for each setting, neighbours start each other, one table of criteria."""

import inspect
import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table as RichTable
from torch import Tensor

from ppl_vae.coordinates import coordinates, held
from ppl_vae.criteria import CRITERIA, Cell, Criterion, spoken
from ppl_vae.declare import LatentVariableModel
from ppl_vae.errors import DeclarationError, EngineError
from ppl_vae.fit import Fit
from ppl_vae.infer import EM
from ppl_vae.progress import progress as progress_bar
from ppl_vae.sweep import Sweep

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = ["Selection", "select"]


@dataclass
class Selection:
    """The cells of a sweep.

    Attributes
    ----------
    cells : list of Cell
        In the order of the grid.
    grid : dict of list
        The swept keywords with all their values.
    criterion : str
        The name in CRITERIA by which `best` is chosen.
    """

    cells: list[Cell]
    grid: dict[str, list[Any]]
    criterion: str

    @property
    def best_cell(self) -> Cell:
        """The eligible cell that is best by the criterion."""
        return self.best_by(self.criterion)

    @property
    def best(self) -> Fit:
        """The fit of the best cell."""
        fit = self.best_cell.fit
        assert fit is not None
        return fit

    def best_by(self, criterion: str) -> Cell:
        """The eligible cell that is best by another criterion.

        Raises
        ------
        EngineError
            If no cell is eligible, or the criterion has no value in any.
        """
        rule = _rule(criterion)
        known = [cell for cell in self.cells if cell.eligible and not math.isnan(rule.value(cell))]
        if not known:
            why = "; ".join(f"{cell.label}: {cell.status}" for cell in self.cells[:3])
            raise EngineError(f"no fit of this sweep can be chosen by {criterion}: {why}")
        return max(known, key=lambda cell: rule.sign * rule.value(cell))

    def to_frame(self) -> "pd.DataFrame":
        """One row per cell: settings, log-likelihood, number of parameters, criteria, status, start, seconds."""
        import pandas as pd

        best = self.best_cell
        rows = []
        for cell in self.cells:
            values = {name: rule.value(cell) for name, rule in CRITERIA.items()}
            rows.append(
                {name: spoken(value) for name, value in cell.settings.items()}
                | {"log_likelihood": cell.log_likelihood, "parameters": cell.parameters, **values}
                | {"status": cell.status.code, "start": cell.start, "seconds": cell.seconds, "best": cell is best}
            )
        frame = pd.DataFrame(rows)
        return frame[[name for name in frame.columns if name not in CRITERIA or frame[name].notna().any()]]

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draw the criterion against the number of components: see ppl_vae.plots.selection."""
        from ppl_vae.plots import selection

        return selection(self, ax)

    def rich(self) -> RichTable:
        """The table for a terminal."""
        rule = CRITERIA[self.criterion]
        table = RichTable(title=f"Selection by {self.criterion}", caption=f"{self.criterion}: {rule.better}")
        frame = self.to_frame()
        for name in frame.columns.drop("best"):
            numeric = frame[name].dtype.kind in "fiu"
            table.add_column(str(name).replace("_", " "), justify="right" if numeric else "left")
        for _, row in frame.iterrows():
            texts = [format_cell(str(name), row[name]) for name in frame.columns.drop("best")]
            table.add_row(*texts, style="bold" if row["best"] else None)
        return table

    def __repr__(self) -> str:
        console = Console(file=io.StringIO(), width=160, color_system=None, force_jupyter=False)
        console.print(self.rich())
        console.print(f"best: {self.best_cell.label} ({self.best_cell.status})", markup=False, highlight=False)
        return console.file.getvalue()  # type: ignore[attr-defined]

    def _repr_html_(self) -> str:
        from ppl_vae.report import selection_html

        return selection_html(self)


FORMATS = {"log_likelihood": "{:.4f}", "held_out": "{:.4f}", "seconds": "{:.2f}"}


def format_cell(column: str, value: Any) -> str:
    """A cell as text.

    Examples
    --------
    >>> format_cell("bic", 2320.43219), format_cell("covariance", "full")
    ('2320.43', 'full')
    """
    if not isinstance(value, float):
        return str(value)
    return "" if math.isnan(value) else FORMATS.get(column, "{:.2f}").format(value)


def select(
    declaration: Callable[..., LatentVariableModel],
    data: Any,
    *,
    engine: EM | None = None,
    weights: Any = None,
    validation: Any = None,
    criterion: str = "bic",
    progress: bool = True,
    **settings: Any,
) -> Selection:
    """Fit a declaration at every setting of a grid, and choose.

    Every cell has the engine's own starts. Beside them it starts from the responsibilities of its neighbours, the cells
    that differ in one setting: those with the same components and fewer parameters (a simpler covariance), and that
    with the next smaller number of components, its worst explained data split off. With as many components a richer
    form therefore does not end below a simpler one that it contains, but where entries are missing or that end is
    degenerate.

    Parameters
    ----------
    declaration : callable
        Class of the declaration, or a function that returns one.
    data : Tensor, array, data frame or mapping
        n rows, in memory.
    engine : EM, optional
        EM(n_init=5, accelerate="squarem") by default.
    weights : Tensor, optional
        [n], counts: BIC's n is their sum.
    validation : float or data, optional
        Held-out data; a fraction of the rows is set aside at random (by the engine's seed) and not fitted.
    criterion : str
        What `best` goes by: "bic", "aic", "icl" or "held_out", see CRITERIA. Where priors make EM return the mode of
        the posterior, they are taken at the mode (Fraley and Raftery 2007).
    progress : bool
        Show progress.
    **settings
        Keywords of the declaration. A list, tuple or range is swept; a single value that is itself a tuple goes in a
        list. `n_features`, where it is needed and not given, is the width of the data.

    Returns
    -------
    Selection
        A cell for each setting, in the order of the grid, with its fit, criteria and status; `best` is the fit chosen.

    Raises
    ------
    DeclarationError
        For an object in the place of its class, a keyword that the declaration does not take, or one without values.
    DataError
        For data or a validation fraction that cannot be used.
    EngineError
        For an engine other than EM or an unknown criterion, and when asked for the best of fits that all failed.

    Examples
    --------
    >>> import ppl_vae as pv
    >>> found = select(pv.models.GaussianMixture, pv.data.faithful(), n_components=range(1, 5),
    ...     covariance=("full", "tied"), progress=False)
    >>> found.best_cell.settings
    {'n_components': 3, 'covariance': 'tied'}
    """
    if isinstance(declaration, LatentVariableModel):
        name = type(declaration).__name__
        raise DeclarationError(f"select takes the class {name}, got an object of it: it makes one at each setting")
    engine = EM(n_init=5, accelerate="squarem") if engine is None else engine
    _check(engine, _rule(criterion), validation)
    fixed, grid = _grid(declaration, data, settings)
    places = {key: _settings(grid, key) for key in product(*[range(len(values)) for values in grid.values()])}
    models = {key: declaration(**fixed, **own).double() for key, own in places.items()}
    sweep = Sweep.over(engine, next(iter(models.values())), data, weights, validation)
    order = sorted(models, key=lambda key: coordinates(models[key], held(models[key])).size)
    with progress_bar("select", len(order), progress) as update:
        for number, key in enumerate(order):
            cell = sweep.visit(key, models[key], places[key])
            update(number + 1, cell.label)
    return Selection([sweep.cells[key] for key in places], grid, criterion)


def _settings(grid: dict[str, list[Any]], key: tuple[int, ...]) -> dict[str, Any]:
    return {name: grid[name][i] for name, i in zip(grid, key, strict=True)}


def _rule(criterion: str) -> Criterion:
    if criterion not in CRITERIA:
        raise EngineError(f"criterion must be one of {', '.join(CRITERIA)}; got {criterion!r}")
    return CRITERIA[criterion]


def _check(engine: Any, rule: Criterion, validation: Any) -> None:
    if not isinstance(engine, EM):
        raise EngineError(
            f"select compares maxima of the likelihood: engine must be an EM, got {type(engine).__name__}"
        )
    if getattr(engine, "checkpoint", None) is not None:
        raise EngineError("select fits many models, and a checkpoint belongs to one: pass an engine without checkpoint")
    if rule is CRITERIA["held_out"] and validation is None:
        raise EngineError('criterion="held_out" needs validation: data, or a fraction such as 0.2')


def _grid(declaration: Any, data: Any, settings: dict[str, Any]) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Keywords with one value, and those that are swept."""
    taken = inspect.signature(declaration).parameters
    free = any(p.kind is p.VAR_KEYWORD for p in taken.values())
    if unknown := [name for name in settings if name not in taken and not free]:
        raise DeclarationError(
            f"{getattr(declaration, '__name__', declaration)} takes no {unknown[0]!r}: its keywords are "
            f"{', '.join(taken)}"
        )
    grid = {name: list(value) for name, value in settings.items() if isinstance(value, list | tuple | range)}
    grid |= {name: value.tolist() for name, value in settings.items() if isinstance(value, np.ndarray | Tensor)}
    if empty := [name for name, values in grid.items() if not values]:
        raise DeclarationError(f"select: {empty[0]} has no values to try")
    fixed = {name: value for name, value in settings.items() if name not in grid}
    width = taken.get("n_features")
    if width is not None and width.default is width.empty and "n_features" not in settings:
        fixed["n_features"] = _width(data)
    return fixed, grid


def _width(data: Any) -> int:
    """Number of features of a table."""
    shape = getattr(data if hasattr(data, "shape") else getattr(data, "values", None), "shape", None)
    if shape is None or len(shape) > 2:
        raise DeclarationError("select cannot read n_features from these data: pass n_features=")
    return int(shape[1]) if len(shape) == 2 else 1
