"""What an ordinary Pyro model says of each datum at given draws: marginal likelihood, predictions, prior."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import pyro
import pyro.infer
import torch
from pyro import poutine
from pyro.ops.contract import contract_to_tensor
from torch import Tensor

from ppl_vae.errors import EngineError
from ppl_vae.infer.each import each
from ppl_vae.objectives import max_plate_nesting

__all__ = ["Likelihood", "PyroModel"]


@dataclass(frozen=True)
class Likelihood:
    """log p(x | theta) by observed site [chain, draw, *plates], log p(theta) by latent [chain, draw], in nats.

    `dims` names the plates, `units` says of each site what a datum is.
    """

    values: dict[str, Tensor]
    log_prior: dict[str, Tensor]
    dims: dict[str, list[str]]
    units: dict[str, str]


@dataclass(frozen=True)
class _Factor:
    """A packed log density with the symbols of its plates."""

    name: str
    value: Tensor
    plates: frozenset[str]

    def summed(self, sums: set[str]) -> set[str]:
        """The enumerated sites it depends on, as symbols."""
        return sums & set(self.value._pyro_dims)  # type: ignore[attr-defined]


class PyroModel:
    """A Pyro program at its arguments.

    Parameters
    ----------
    program : callable
        The model.
    args, kwargs : tuple, dict
        With which its observed sites have their data.
    """

    def __init__(self, program: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> None:
        self.program, self.args, self.kwargs = program, args, kwargs
        self.trace = self._run(program)
        sites = {name: site for name, site in self.trace.nodes.items() if _is_random(site)}
        self.observed = {name: site["value"].detach() for name, site in sites.items() if site["is_observed"]}
        self.latents = {name: site for name, site in sites.items() if not site["is_observed"]}
        frames = [f for site in sites.values() for f in site["cond_indep_stack"] if f.vectorized]
        for frame in frames:
            if frame.full_size is not None and frame.size != frame.full_size:
                raise EngineError(
                    f"plate {frame.name!r} draws {frame.size} of {frame.full_size} data at random: run the model on "
                    f"all of them, without subsample_size"
                )
        self.plates = {f.name: f.size for f in frames}

    def _run(self, program: Callable[..., Any]) -> poutine.Trace:
        return poutine.trace(program).get_trace(*self.args, **self.kwargs)

    def finite(self, name: str) -> bool:
        """Whether Pyro can sum a latent out."""
        return bool(self.latents[name]["fn"].has_enumerate_support)

    def dims(self) -> dict[str, list[str]]:
        """Names of the dimensions of each site's value: its plates; event dimensions are left to ArviZ."""
        return {name: _axes(self.trace.nodes[name], name) for name in (*self.latents, *self.observed)}

    def rows(self, value: Tensor) -> list[str]:
        """The plate that the rows of a tensor belong to, if one and only one has their number."""
        fitting = [name for name, size in self.plates.items() if size == value.shape[0]]
        return fitting if len(fitting) == 1 else []

    # The likelihood.

    def likelihood(self, posterior: Mapping[str, Tensor]) -> Likelihood:
        """Log p(x_i | theta_s) and log p(theta_s) at each draw."""
        names = [name for name in posterior if name in self.latents]
        missing = [name for name in self.latents if name not in names and not self.finite(name)]
        if missing:
            raise EngineError(
                f"the draws lack the latent {missing[0]!r}, which is not finite and cannot be summed out; they hold "
                f"{', '.join(posterior) or 'nothing'}"
            )
        nesting = max_plate_nesting(self.program, _nothing, self.args, self.kwargs)
        program = poutine.enum(pyro.infer.config_enumerate(self.program), first_available_dim=-1 - nesting)
        kinds: list[_Kind] = []

        def at(*values: Tensor) -> tuple[Tensor, ...]:
            trace = self._run(poutine.condition(program, data=dict(zip(names, values, strict=True))))
            found = self._factored(trace, names)
            kinds[:] = [kind for kind, _ in found]
            return tuple(value for _, value in found)

        rows, shape = _rows(posterior, names)
        columns = [column.reshape(*shape, *column.shape[1:]) for column in each(at, rows)]
        pairs = list(zip(kinds, columns, strict=True))
        like = [(kind, value) for kind, value in pairs if not kind.prior]
        return Likelihood(
            {kind.name: value for kind, value in like},
            {kind.name: value for kind, value in pairs if kind.prior},
            {kind.name: list(kind.plates) for kind, _ in like},
            {kind.name: kind.unit for kind, _ in like},
        )

    def _factored(self, trace: poutine.Trace, names: list[str]) -> list[tuple["_Kind", Tensor]]:
        """Log densities of the observed sites by datum, then of the drawn latents."""
        for site in trace.nodes.values():
            if site["type"] == "sample":
                site["scale"] = 1.0  # a minibatch's or an annealing's weight is no part of the likelihood
        trace.compute_log_prob(lambda name, site: _has_density(site))
        trace.pack_tensors()
        sums = set(trace.symbol_to_dim) - set(trace.plate_to_symbol.values())
        parts = _components([_factor(n, site, trace) for n, site in trace.nodes.items() if _has_density(site)], sums)
        several = sum(len(self._seen(part)) > 1 for part in parts) > 1
        found, prior = [], []
        for part in parts:
            seen, drawn = self._seen(part), [f for f in part if f.name in names]
            units = reduce(frozenset.intersection, (f.plates for f in part))
            rest = [f for f in part if f.name not in self.observed]
            given = _contract(rest, sums, units) if drawn else None
            if seen:
                # log sum_z p(x, u, z) - log sum_z p(u, z), u what was drawn
                value, order = _arranged(_contract(part, sums, units), units, trace, self.plates)
                if given is not None:
                    value = value - _arranged(given, units, trace, self.plates)[0]
                name = seen[0] if len(seen) == 1 else f"joint_{seen[0]}" if several else "joint"
                found.append((_Kind(name, order, self._unit(seen, part, order)), value))
            if given is not None:
                prior.append((_Kind(drawn[0].name, (), "", prior=True), given.sum()))
        return found + prior

    def _seen(self, part: list[_Factor]) -> list[str]:
        return [f.name for f in part if f.name in self.observed]

    def _unit(self, seen: list[str], part: list[_Factor], order: tuple[str, ...]) -> str:
        """What a datum of this site is, in words."""
        summed = [f.name for f in part if f.name in self.latents and self.finite(f.name)]
        words = f"an element of {' x '.join(order)}" if order else "everything that was observed"
        words += f"; {', '.join(summed)} summed out" if summed else ""
        return words + (f"; {', '.join(seen)} together" if len(seen) > 1 else "")

    # Predictions.

    def predict(self, posterior: Mapping[str, Tensor], most: int) -> tuple[dict[str, Tensor], np.ndarray]:
        """New data [chain, draw, *shape] by observed site, and the draws of each chain that they come from.

        What `posterior` lacks, finite latents among it, is drawn from the model.
        """
        names = [name for name in posterior if name in self.latents]
        chains, length = posterior[names[0]].shape[:2] if names else (1, 1)
        kept = np.linspace(0, length - 1, max(1, min(length, most // chains))).round().astype(int)

        def new(*values: Tensor) -> tuple[Tensor, ...]:
            conditioned = poutine.condition(self.program, data=dict(zip(names, values, strict=True)))
            nodes = self._run(_Fresh(conditioned, set(self.observed))).nodes
            return tuple(nodes[name]["value"] for name in self.observed)

        rows, shape = _rows({name: posterior[name][:, kept] for name in names}, names)
        columns = [column.reshape(*shape, *column.shape[1:]) for column in each(new, rows)]
        return dict(zip(self.observed, columns, strict=True)), kept

    def prior(self, count: int) -> dict[str, Tensor]:
        """Draws [1, count, *shape] of every latent and observed site."""
        names = [*self.latents, *self.observed]

        def new() -> tuple[Tensor, ...]:
            nodes = self._run(_Fresh(self.program, set(self.observed))).nodes
            return tuple(nodes[name]["value"] for name in names)

        return {name: value[None] for name, value in zip(names, each(new, [()] * count), strict=True)}


@dataclass(frozen=True)
class _Kind:
    """What a number of the trace is."""

    name: str
    plates: tuple[str, ...]
    unit: str
    prior: bool = False


class _Fresh:
    """A program whose observed sites of these names are drawn instead; factors stay."""

    def __init__(self, program: Callable[..., Any], names: set[str]) -> None:
        self.program, self.names = program, names

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with _Redraw(self.names):
            return self.program(*args, **kwargs)


class _Redraw(poutine.messenger.Messenger):
    """Sites of these names are no longer observed."""

    def __init__(self, names: set[str]) -> None:
        super().__init__()
        self.names = names

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if msg["name"] in self.names:
            msg["is_observed"], msg["value"], msg["done"] = False, None, False


def _has_density(site: Mapping[str, Any]) -> bool:
    """Whether a site adds to the log joint: random variables, and factors."""
    if site["type"] != "sample" or poutine.util.site_is_subsample(site):
        return False
    return not (site["infer"] or {}).get("_deterministic")


def _is_random(site: Mapping[str, Any]) -> bool:
    """Whether a site is a random variable."""
    return _has_density(site) and not poutine.util.site_is_factor(site)


def _axes(site: Mapping[str, Any], name: str) -> list[str]:
    """Names of a site's batch dimensions."""
    batch = len(site["fn"].batch_shape)
    frames = {f.dim: f.name for f in site["cond_indep_stack"] if f.vectorized}
    return [frames.get(i - batch, f"{name}_dim_{i}") for i in range(batch)]


def _rows(posterior: Mapping[str, Tensor], names: list[str]) -> tuple[Any, torch.Size]:
    """Values of every draw, chains one after the other, and (chains, draws)."""
    if not names:
        return [()], torch.Size((1, 1))
    return zip(*[posterior[name].flatten(0, 1) for name in names], strict=True), posterior[names[0]].shape[:2]


def _factor(name: str, site: Mapping[str, Any], trace: poutine.Trace) -> _Factor:
    plates = frozenset(trace.plate_to_symbol[f.name] for f in site["cond_indep_stack"] if f.vectorized)
    return _Factor(name, site["packed"]["log_prob"], plates)


def _components(factors: list[_Factor], sums: set[str]) -> list[list[_Factor]]:
    """Factors that enumerated sites join, each group in the order of the program."""
    groups: list[list[_Factor]] = []
    for factor in factors:
        own = factor.summed(sums)
        joined = [group for group in groups if any(own & other.summed(sums) for other in group)]
        groups = [group for group in groups if group not in joined]
        groups.append([f for group in joined for f in group] + [factor])
    return groups


def _contract(part: list[_Factor], sums: set[str], units: frozenset[str]) -> Tensor:
    """The log of the sum over enumerated sites, for each element of the plates `units`."""
    tree: OrderedDict[frozenset[str], list[Tensor]] = OrderedDict()
    for factor in part:
        tree.setdefault(factor.plates, []).append(factor.value)
    return contract_to_tensor(tree, sums, target_ordinal=units)


def _arranged(
    value: Tensor, units: frozenset[str], trace: poutine.Trace, sizes: Mapping[str, int]
) -> tuple[Tensor, tuple[str, ...]]:
    """The value with a dimension for each plate, outermost first, and their names."""
    own = value._pyro_dims  # type: ignore[attr-defined]
    order = sorted(units, key=lambda s: trace.symbol_to_dim[s])
    names = {symbol: name for name, symbol in trace.plate_to_symbol.items()}
    there = [s for s in order if s in own]
    shape = [sizes[names[s]] for s in order]
    placed = value.permute([own.index(s) for s in there])
    placed = placed.reshape([size if s in own else 1 for s, size in zip(order, shape, strict=True)])
    return placed.expand(shape).clone(), tuple(names[s] for s in order)


def _nothing(*args: Any, **kwargs: Any) -> None:
    """The guide of a model that is only traced."""
