"""A sweep over settings: each cell fitted from the engine's own starts and from its neighbours."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppl_vae.coordinates import coordinates, held
from ppl_vae.counted import counted_mean
from ppl_vae.criteria import Cell, spoken
from ppl_vae.data import Stream
from ppl_vae.declare import LatentVariableModel, Observations
from ppl_vae.errors import DataError, EngineError
from ppl_vae.fit import Fit, Status
from ppl_vae.infer import EM
from ppl_vae.infer.weights import check_weights, counting

__all__ = ["Key", "Sweep", "split_off"]

NOTHING: Mapping[str, Any] = {}
Key = tuple[int, ...]
"""A place in the grid: which value of each swept keyword."""


@dataclass
class Sweep:
    """What has been fitted so far, and to what.

    Attributes
    ----------
    obs, weights : Observations, Tensor or None
        What every cell is fitted to.
    held_out, held_out_weights : Observations or None, Tensor or None
        What every fit is measured on besides.
    cells : dict of Cell
        By their place in the grid.
    """

    engine: EM
    obs: Observations
    weights: Tensor | None
    held_out: Observations | None = None
    held_out_weights: Tensor | None = None
    cells: dict[Key, Cell] = field(default_factory=dict)

    @classmethod
    def over(cls, engine: EM, model: LatentVariableModel, data: Any, weights: Any, validation: Any) -> "Sweep":
        """Read the data once, for all cells, and set the validation rows aside.

        Raises
        ------
        DataError
            For a stream, or if a fraction leaves no rows on one side.
        """
        if isinstance(data, Stream) or isinstance(validation, Stream):
            raise DataError(
                "select keeps the responsibilities of every datum, so its data are held in memory: select on a sample "
                "of rows, then fit the chosen model to the stream"
            )
        obs = model.check(data)
        w = None if weights is None else check_weights(weights, len(obs))
        if validation is None:
            return cls(engine, obs, w)
        if not isinstance(validation, int | float | np.number):
            return cls(engine, obs, w, model.check(validation))
        if not 0 < float(validation) < 1:
            raise DataError(f"validation is a part of the rows, between 0 and 1, or data; got {validation}")
        size = round(float(validation) * len(obs))
        if not 0 < size < len(obs):
            raise DataError(
                f"validation={validation} of {len(obs)} rows is {size} rows; between 1 and {len(obs) - 1} are needed"
            )
        order = torch.randperm(len(obs), generator=torch.Generator().manual_seed(engine.seed))
        kept, out = order[size:].sort().values, order[:size].sort().values
        own = (None, None) if w is None else (w[kept], w[out])
        return cls(engine, obs.rows(kept), own[0], obs.rows(out), own[1])

    def visit(
        self, key: Key, model: LatentVariableModel, settings: dict[str, Any], more: Mapping[str, Any] = NOTHING
    ) -> Cell:
        """Fit one cell from every start, those in `more` included, and keep the best."""
        begin = time.perf_counter()
        w = check_weights(counting(model, self.obs, self.weights), len(self.obs))
        free = coordinates(model, held(model, getattr(self.engine, "frozen", ()))).size
        cell = Cell(settings, _components(model, self.obs), free, w.sum().item(), Status("failed", "was not run"))
        self.cells[key] = cell
        try:
            engines = [*self._engines(key, cell), *((name, self._from(start)) for name, start in more.items())]
            ends = [(name, engine.fit(model, self.obs, self.weights)) for name, engine in engines]
        except (DataError, EngineError) as error:
            cell.status = Status("failed", str(error))
        else:
            cell.start, fit = max(ends, key=lambda end: _rank(end[1]))
            cell.status = fit.status
            self._measure(cell, fit, w)
        cell.seconds = time.perf_counter() - begin
        return cell

    def _engines(self, key: Key, cell: Cell) -> Iterator[tuple[str, EM]]:
        """The engine with its own starts, then with those of the neighbours."""
        yield "engine", replace(self.engine, progress=False)
        for name, r in self._neighbours(key, cell):
            yield name, self._from(r)

    def _from(self, start: Any) -> EM:
        """The engine with this start alone."""
        return replace(self.engine, n_init=1, start=start, progress=False)

    def _neighbours(self, key: Key, cell: Cell) -> Iterator[tuple[str, Tensor]]:
        """Responsibilities [n, K] from the cells that differ in one setting."""
        K = cell.components
        if K is None:
            return
        near = [(k, other) for k, other in self.cells.items() if other.eligible and _differ(k, key) == 1]
        simpler = [(k, o) for k, o in near if o.components == K and o.parameters < cell.parameters]
        fewer = [(k, o) for k, o in near if o.components is not None and o.components < K]
        for k, other in [*simpler, *sorted(fewer, key=lambda one: one[1].parameters)[-1:]]:
            assert other.fit is not None
            changed = next(name for name, a, b in zip(cell.settings, k, key, strict=True) if a != b)
            r = other.fit.responsibilities(self.obs)
            split = r if r.shape[1] == K else split_off(r, other.fit.log_prob(self.obs), K)
            yield f"{changed}={spoken(other.settings[changed])}", split

    def _measure(self, cell: Cell, fit: Fit, w: Tensor) -> None:
        cell.fit = fit
        cell.log_likelihood = (w * fit.log_prob(self.obs)).sum().item()
        if cell.components is not None:
            r = fit.responsibilities(self.obs)
            cell.entropy = -(w[:, None] * torch.special.xlogy(r, r)).sum().item()
        if self.held_out is not None:
            own = counting(fit.model, self.held_out, self.held_out_weights)
            cell.held_out, _ = counted_mean(fit.log_prob(self.held_out), own)


def split_off(r: Tensor, log_prob: Tensor, K: int) -> Tensor:
    """Responsibilities [n, K] from fewer components, the worst explained data given to the new ones.

    Examples
    --------
    >>> import torch
    >>> split_off(torch.ones(4, 1), torch.tensor([-1.0, -9.0, -1.0, -2.0]), 2).tolist()
    [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]]
    """
    n, before = r.shape
    share = max(1, n // (2 * K))
    order = log_prob.argsort()
    grown = torch.cat([r, r.new_zeros(n, K - before)], 1)
    for new in range(before, K):
        rows = order[(new - before) * share : (new - before + 1) * share]
        grown[rows] = torch.nn.functional.one_hot(torch.tensor(new), K).to(r)
    return grown


def _components(model: LatentVariableModel, obs: Observations) -> int | None:
    """K of the only finite latent of each datum."""
    laws = model.prototypes(obs)
    latents = [laws[node.name] for node in model.local_nodes() if node.kind == "latent"]
    finite = [law for law in latents if law.has_enumerate_support]
    return len(finite[0].enumerate_support(expand=False)) if len(finite) == 1 else None


def _differ(a: Key, b: Key) -> int:
    return sum(i != j for i, j in zip(a, b, strict=True))


def _rank(fit: Fit) -> tuple[bool, float]:
    """What EM climbed, fits that degenerated last."""
    return fit.status.code not in ("degenerate", "failed"), fit.trace["bound"][-1].item()
