"""Simulation-based calibration: whether an engine's posterior covers the parameters that made the data."""

import os
import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppl_vae.align import symmetries
from ppl_vae.calibration import Calibration
from ppl_vae.declare import LatentVariableModel, Observations
from ppl_vae.declare.identity import fingerprint
from ppl_vae.errors import DataError, EngineError, check_seed, check_whole
from ppl_vae.infer import NUTS
from ppl_vae.infer.identity import described
from ppl_vae.infer.random_state import own_random
from ppl_vae.infer.shared_nuts import shared
from ppl_vae.invariants import invariants, over_draws
from ppl_vae.progress import progress as progress_bar
from ppl_vae.records import read_record, write_record

__all__ = ["calibrate"]

SAVE_EVERY = 10.0
"""Seconds between checkpoints."""
MOST_QUANTITIES = 30
"""Scalars of shared latents that are followed by default, evenly spaced when there are more."""
COLUMNS = ("u", "truth", "mean", "sd", "draws")

Draws = Mapping[str, Tensor]
Quantity = Callable[[dict[str, Tensor]], Tensor]


def calibrate(
    model: LatentVariableModel,
    engine: Any,
    num_simulations: int = 1000,
    n: int = 100,
    quantities: Mapping[str, Quantity] | None = None,
    inputs: Mapping[str, Tensor] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Calibration:
    r"""Simulation-based calibration of an engine on a declared model (Talts et al. 2018).

    Each simulation draws :math:`\theta \sim p(\theta)` and n data from :math:`p(x | \theta)`, fits, and takes the rank
    of every quantity of :math:`\theta` among L posterior draws. Ranks are uniform where the posterior is right,

    .. math:: \theta \sim p(\theta),\; x \sim p(x | \theta),\; \theta_1, \dots, \theta_L \sim p(\theta | x)
              \;\Rightarrow\; \#\{l : \theta_l < \theta\} \sim \mathrm{Uniform}\{0, \dots, L\}.

    Draws are thinned to their effective number, and a rank is smoothed to (rank + v) / (L + 1), v uniform.

    Parameters
    ----------
    model : LatentVariableModel
        Whose parameters all have priors. A weak prior takes its scale from data: call `model.adapt(x)` first; it
        then stays as it is over all simulations.
    engine : NUTS, SVI, VB or any object with fit(model, data)
        NUTS traces the density once for all simulations.
    num_simulations : int
        Number of simulations; each has a seed of its own.
    n : int
        Data in each.
    quantities : mapping of callables, optional
        Functions of one draw of the shared latents, by name. By default every scalar of the shared latents and
        log p(X | theta); where labels can switch only what does not depend on them: mean and variance of p(x | theta),
        its density at three data, and log p(X | theta).
    inputs : mapping, optional
        Values [n, ...] of the model's inputs, the same in every simulation.
    checkpoint : path, optional
        Where what is done is kept every 10 seconds; the same call goes on from there, and gives the same answer.
    seed : int
        Seed of everything random.
    progress : bool
        Show progress, with the time left.

    Returns
    -------
    Calibration
        `u` are the smoothed ranks, [simulation, quantity]; simulations whose fit failed are left out, and `failures`
        says why.

    Raises
    ------
    EngineError
        If the model has nothing shared with a prior, the engine's fit is a point estimate, or fewer than two
        simulations could be fitted.
    DataError
        If the checkpoint is of another call.

    References
    ----------
    Talts, Betancourt, Simpson, Vehtari and Gelman (2018), "Validating Bayesian inference algorithms with
    simulation-based calibration".

    Examples
    --------
    >>> import torch, ppl_vae as pv, pyro.distributions as dist
    >>> class Mean(pv.LatentVariableModel):
    ...     @pv.latent(shared=True)
    ...     def mu(self):
    ...         return dist.Normal(0.0, 1.0)
    ...     @pv.observed
    ...     def x(self, mu):
    ...         return dist.Normal(mu, 1.0)
    >>> engine = pv.SVI(1, num_draws=10, progress=False)
    >>> found = pv.calibrate(Mean(), engine, num_simulations=2, n=5, progress=False)
    >>> found.names, found.u.shape
    (('mu', 'log p(X | theta)'), (2, 2))
    """
    study = _Study(model, engine, num_simulations, n, quantities, dict(inputs or {}), seed)
    rows, failures = study.run(Path(checkpoint) if checkpoint is not None else None, progress)
    if len(rows) < 2:
        raise EngineError(
            f"calibrate: {len(rows)} of {num_simulations} simulations could be fitted, and ranks need at least 2; the "
            f"first failed because {failures[0]}"
        )
    record = {key: np.stack([row[key] for row in rows]) for key in rows[0]}
    u = record.pop("u")
    kind = f"{getattr(engine, 'name', type(engine).__name__)} on {type(model).__name__}, n = {n}"
    return Calibration(study.names, u, record, tuple(failures), kind)


Row = dict[str, np.ndarray]


class _PointError(EngineError):
    """A fit without draws, whatever the data: no other simulation would have them."""


class _Study:
    """The simulations of one call."""

    def __init__(
        self, model: LatentVariableModel, engine: Any, count: int, n: int, quantities: Mapping[str, Quantity] | None,
        inputs: dict[str, Tensor], seed: int,
    ) -> None:  # fmt: skip
        if not isinstance(model, LatentVariableModel):
            raise EngineError(
                f"calibrate takes a declared model, whose data it makes itself; got {type(model).__name__}"
            )
        check_whole("calibrate", 2, num_simulations=count)
        check_whole("calibrate", n=n)
        self.count, self.n, self.inputs, self.seed = count, n, inputs, check_seed(seed)
        self.model = deepcopy(model).double()
        if not self.model.shared_laws():
            raise EngineError(f"{type(model).__name__} has no shared latent with a prior: there is nothing to rank")
        self.settings = described(engine)
        self.engine = shared(engine, count) if type(engine) is NUTS else engine
        with own_random(seed, []):
            theta, data = self.simulate(0)
            _keep_prior(self.model, theta, data)
            obs = self.model.check(data)
            self.ask = _quantities(self.model, obs, theta, quantities)
            first, second = self.ask(obs, _one(theta)), self.ask(obs, _one(self.simulate(1)[0]))
            # What never moves, as the weight of a single component, has no rank.
            fixed = () if quantities else [name for name in first if torch.equal(first[name], second[name])]
            self.names = tuple(name for name in first if name not in fixed)

    def simulate(self, number: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Theta from the prior and data from theta, those of simulation `number`."""
        torch.manual_seed(_seed(self.seed, number))
        theta: dict[str, Tensor] = {}
        with torch.no_grad(), self.model.numeric():
            for name, law in self.model.shared_laws().items():
                theta[name] = law(theta).sample()
        with self.model.bind(theta):
            drawn = self.model.sample_joint(self.n, **self.inputs)
        observed = [node.name for node in self.model.local_nodes() if node.kind == "observed"]
        return theta, {**{name: drawn[name] for name in observed}, **self.inputs}

    def one(self, number: int) -> Row:
        """Ranks, and what else is kept of a simulation."""
        begin = time.perf_counter()
        with own_random(_seed(self.seed, number), []):
            theta, data = self.simulate(number)
            fit = _silent(self.engine, _seed(self.seed, number)).fit(self.model, data)
        if fit.is_point:
            raise _PointError(
                f"calibrate ranks the truth among draws of a posterior, and this fit by {fit.engine} has one value: "
                "take NUTS, SVI or VB, with many draws"
            )
        shared_draws = {name: fit.draws[name].double() for name in theta}
        obs = self.model.check(data)
        truths, draws = self.ask(obs, _one(theta)), self.ask(obs, shared_draws)
        rng = np.random.default_rng([self.seed, number])
        found = [_ranked(truths[name].item(), draws[name].cpu().numpy(), rng) for name in self.names]
        row = {key: np.array([one[key] for one in found]) for key in COLUMNS}
        divergences = fit.sample_stats.get("diverging", torch.zeros(1)).sum().item()
        return row | {"seconds": np.array(time.perf_counter() - begin), "divergences": np.array(float(divergences))}

    def run(self, path: Path | None, show: bool) -> tuple[list[Row], list[str]]:
        """Every simulation that is not in the checkpoint yet."""
        done = self._opened(path)
        saved = time.monotonic()
        with progress_bar("calibrate", self.count, show) as update:
            try:
                for number in range(self.count):
                    if number not in done:
                        done[number] = self._tried(number)
                    failed = sum(isinstance(row, str) for row in done.values())
                    update(len(done), f"{failed} fits failed" if failed else "")
                    if path is not None and time.monotonic() - saved > SAVE_EVERY:
                        self._save(path, done)
                        saved = time.monotonic()
            finally:
                if path is not None:
                    self._save(path, done)
        ordered = [done[number] for number in sorted(done)]
        return [row for row in ordered if not isinstance(row, str)], [row for row in ordered if isinstance(row, str)]

    def _tried(self, number: int) -> Row | str:
        try:
            row = self.one(number)
        except _PointError:
            raise
        except (EngineError, DataError, torch.linalg.LinAlgError) as error:
            return str(error)
        return row if bool(np.isfinite(row["u"]).all()) else "its draws are not finite"

    # The checkpoint.

    def _header(self) -> dict[str, Any]:
        return {
            "model": type(self.model).__name__, "state": fingerprint(self.model.state_dict()), "engine": self.settings,
            "n": self.n, "seed": self.seed, "quantities": list(self.names), "inputs": fingerprint(self.inputs),
        }  # fmt: skip

    def _save(self, path: Path, done: Mapping[int, Row | str]) -> None:
        rows = {number: row for number, row in done.items() if not isinstance(row, str)}
        failed = {str(number): row for number, row in done.items() if isinstance(row, str)}
        tensors = {f"{i}/{key}": torch.as_tensor(value) for i, row in rows.items() for key, value in row.items()}
        write_record(path, {"header": self._header(), "failed": failed}, tensors, KEY)

    def _opened(self, path: Path | None) -> dict[int, Row | str]:
        if path is None or not path.is_file():
            return {}
        record, tensors = read_record(path, KEY, "checkpoint of calibrate")
        theirs, own = record["header"], self._header()
        if differing := [name for name in own if theirs.get(name) != _plain(own[name])]:
            raise DataError(
                f"{path} holds a calibration with another {', '.join(differing)}; pass the same, or another path"
            )
        done: dict[int, Row | str] = {int(number): reason for number, reason in record["failed"].items()}
        for name, value in tensors.items():
            number, _, key = name.partition("/")
            row = done.setdefault(int(number), {})
            if not isinstance(row, str):
                row[key] = value.cpu().numpy()
        return {number: row for number, row in done.items() if number < self.count}


KEY = "ppl_vae calibration"


def _plain(value: Any) -> Any:
    """A value as JSON gives it back."""
    import json

    return json.loads(json.dumps(value, default=str))


def _seed(seed: int, number: int) -> int:
    """The seed of simulation `number`."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def _silent(engine: Any, seed: int) -> Any:
    """The engine with this seed and without progress, where it has such settings."""
    if not is_dataclass(engine) or isinstance(engine, type):
        return engine
    names = {f.name for f in fields(engine)}
    return replace(engine, **{k: v for k, v in (("seed", seed), ("progress", False)) if k in names})


def _one(theta: Draws) -> dict[str, Tensor]:
    """Theta as one chain of one draw."""
    return {name: value[None, None] for name, value in theta.items()}


def _keep_prior(model: LatentVariableModel, theta: Draws, data: Mapping[str, Tensor]) -> None:
    """Where data would change the prior, families no longer adapt to them: the prior is that of the simulations."""
    again = deepcopy(model)
    again.adapt(data)
    with model.numeric(), torch.no_grad():
        if not torch.allclose(model.log_prior(theta), again.log_prior(theta)):
            for family in model.families().values():
                setattr(family, "adapt", _stay)  # noqa: B010


def _stay(parts: Any) -> None:
    """Take nothing from data."""


def _quantities(
    model: LatentVariableModel, obs: Observations, theta: Draws, given: Mapping[str, Quantity] | None
) -> Callable[[Observations, Draws], dict[str, Tensor]]:
    """A function of data and draws that gives scalars [chain, draw] by name."""
    if given is not None:
        own = dict(given)
        return lambda obs, draws: _scalars({name: over_draws(f, model, draws) for name, f in own.items()})
    local, first = model.draws_latents(obs), obs
    switch = [] if local else symmetries(model, obs, theta)

    def ask(obs: Observations, draws: Draws) -> dict[str, Tensor]:
        found = invariants(model, first, draws) if switch else dict(draws)
        scalars = _scalars(found)
        if not switch:
            names = list(scalars)
            scalars = {name: scalars[name] for name in names[:: -(-len(names) // MOST_QUANTITIES)]}
        if not local:
            likelihood = over_draws(lambda values: model.log_weights(obs, 1)[0].sum(), model, draws, len(obs))
            scalars["log p(X | theta)"] = likelihood
        return scalars

    return ask


def _scalars(values: Draws) -> dict[str, Tensor]:
    """Each entry of [chain, draw, *event] under its own name, [chain, draw]."""
    return {
        f"{name}[{', '.join(map(str, index))}]" if index else name: value[(..., *index)]
        for name, value in values.items()
        for index in np.ndindex(tuple(value.shape[2:]))
    }


def _ranked(truth: float, draws: np.ndarray, rng: np.random.Generator) -> dict[str, float]:
    """The truth's smoothed rank among thinned draws [chain, draw]; ties are broken at random."""
    kept = _thinned(draws)
    below, equal = int((kept < truth).sum()), int((kept == truth).sum())
    u = (below + rng.uniform() * (equal + 1)) / (len(kept) + 1)
    return {"u": u if np.isfinite(kept).all() else np.nan, "truth": truth, "mean": float(draws.mean()),
            "sd": float(draws.std()), "draws": float(len(kept))}  # fmt: skip


def _thinned(draws: np.ndarray) -> np.ndarray:
    """As many evenly spaced draws as the smaller of bulk and tail effective sample size: about independent ones."""
    from arviz_stats.base import array_stats

    flat = draws.reshape(-1)
    if draws.shape[1] < 8 or np.ptp(draws) == 0 or not np.isfinite(draws).all():
        return flat
    bulk = array_stats.ess(draws, chain_axis=0, draw_axis=1, method="bulk")
    tail = array_stats.ess(draws, chain_axis=0, draw_axis=1, method="tail", prob=(0.05, 0.95))
    count = max(1, int(min(float(np.nan_to_num(bulk, nan=1.0)), float(np.nan_to_num(tail, nan=1.0)), len(flat))))
    return flat[np.linspace(0, len(flat) - 1, count).round().astype(int)]
