"""log p(x) of many data by many draws: importance weights in bounded memory, resumable."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_vae.alone import unvalidated
from ppl_vae.declare import LatentVariableModel
from ppl_vae.declare.answers import log_weights
from ppl_vae.declare.local import local_q
from ppl_vae.declare.observations import Observations
from ppl_vae.errors import EngineError, check_seed, check_whole
from ppl_vae.evidence import Evidence, RunningWeights, exact
from ppl_vae.families.supports import law_of_entries
from ppl_vae.fit import Fit
from ppl_vae.infer.random_state import own_random
from ppl_vae.infer.rows_done import EVIDENCE, RowsDone, columns, evidence, question, said
from ppl_vae.infer.step import choose
from ppl_vae.infer.tracing import Traced
from ppl_vae.progress import progress as shown

__all__ = ["log_evidence"]

AT_ONCE = 4096
"""Data times draws held in memory at once, unless told otherwise: on a processor its caches hold their pixels."""
ROWS = 16
"""Data in a block, at most."""
Weigh = Callable[[Observations], Tensor]
"""Log weights of further draws of a block, [draws, rows]."""


def log_evidence(
    fit: Fit | LatentVariableModel,
    data: Any,
    num_particles: int = 5000,
    at_once: int = AT_ONCE,
    checkpoint: str | os.PathLike[str] | None = None,
    seed: int = 0,
    compile: str = "auto",  # noqa: A002
    progress: bool = True,
) -> Evidence:
    """Log p(x_i) by importance weights of many draws of q, in memory that grows with neither data nor draws.

        log p(x) ~ log (1/S) sum_s p(x | z_s) p(z_s) / q(z_s | x),   z_s ~ q(z | x)

    The estimate is a lower bound in expectation and rises to log p(x) with S. A posterior that looks at data only runs
    once for many draws; the densities are traced once. Draws depend on the seed and the datum's block only: a run that
    was interrupted ends with the numbers of one that was not.

    Parameters
    ----------
    fit : Fit or LatentVariableModel
        A point estimate, or a model without shared latents.
    data : Tensor, array, data frame or mapping
        Observed values, n rows.
    num_particles : int
        S, draws of q per datum.
    at_once : int
        Data times draws held in memory at once.
    checkpoint : path, optional
        File that keeps what is done; the same call goes on from it, and returns at once when all is done.
    seed : int
        Seed of the draws.
    compile : {"auto", "inductor", "trace", "off"}
        As of `SVI`.
    progress : bool
        Show progress.

    Returns
    -------
    Evidence
        Value, standard error, effective sample size and k-hat of each datum, [n], float64; exact where every latent is
        finite. Of a single draw the standard error is NaN: it is unknown. Where q is a point mass, as a VQ-VAE's, there
        are no weights of other values, and it is the bound, with the method "bound".

    Raises
    ------
    EngineError
        For numbers that are not whole or out of range, what is no fit or model, a fit with many draws of its
        parameters, a checkpoint of another call, or a weight that is not a number.

    References
    ----------
    Burda, Grosse and Salakhutdinov (2016). Importance weighted autoencoders. ICLR.

    Examples
    --------
    >>> import ppl_vae as pv
    >>> x = pv.data.images("digits", binarize="threshold").test[:20]
    >>> vae = pv.models.VAE(pv.nets.mlp_encoder(64, 8, 2), pv.nets.mlp_decoder(2, 8, 64))
    >>> found = pv.log_evidence(vae, x, num_particles=50, progress=False)
    >>> found.value.shape, found.k_hat.shape, found.method
    (torch.Size([20]), torch.Size([20]), 'importance')
    """
    check_whole("log_evidence", num_particles=num_particles, at_once=at_once)
    seed = check_seed(seed)
    if isinstance(fit, Fit) and not fit.is_point:
        raise EngineError(
            f"log_evidence needs one value of the parameters, this fit has {fit.num_draws} draws of them: take "
            "fit.log_predictive(data, num_particles), which averages over draws"
        )
    if not isinstance(fit, Fit | LatentVariableModel):
        raise EngineError(
            f"log_evidence takes a Fit or a declared model, got a {type(fit).__name__}: fit first, "
            "log_evidence(engine.fit(model, data), data)"
        )
    model: Any = fit.model if isinstance(fit, Fit) else fit
    values = fit.draw(0) if isinstance(fit, Fit) else {}
    with own_random(seed, [model.like.device]), model.bind(values), torch.no_grad():
        obs = model.check(data).drawn()
        if not model.draws_latents(obs):
            return model.evidence(obs)
        if _sees_points(model, obs):
            return Evidence(**{**vars(exact(model.elbo(obs))), "method": "bound"})
        plan = Plan(num_particles, at_once, seed, len(obs))
        header = question(model, obs, num_particles=num_particles, at_once=at_once, seed=seed)
        found = RowsDone(checkpoint, "log_evidence", header, EVIDENCE, len(obs))
        with unvalidated(), model.standing(), shown("log p(x)", len(obs), progress) as update:
            weigh = _weigher(model, obs, plan, compile)
            found.work(
                plan.blocks(found.done),
                lambda rows: columns(_of_block(plan, model, weigh, obs, rows)),
                lambda so_far: update(so_far.done, said(so_far)),
            )
    return evidence(found)


@dataclass(frozen=True)
class Plan:
    """How data and draws are cut: blocks of `rows` data, each with `draws` draws at a time."""

    count: int
    at_once: int
    seed: int
    size: int

    @property
    def rows(self) -> int:
        """Data in a block."""
        return max(1, min(self.size, ROWS, self.at_once))

    @property
    def pieces(self) -> int:
        """Passes over a block."""
        return -(-self.count * self.rows // self.at_once)

    @property
    def draws(self) -> int:
        """Draws for each datum in a pass."""
        return -(-self.count // self.pieces)

    def blocks(self, done: int) -> Iterator[Tensor]:
        """Rows of each block that is not done."""
        return (torch.arange(first, min(first + self.rows, self.size)) for first in range(done, self.size, self.rows))


def _of_block(plan: Plan, model: LatentVariableModel, weigh: Weigh, obs: Observations, rows: Tensor) -> Evidence:
    """All draws of one block, with a seed of its own; a short block is filled up, so that there is one graph."""
    torch.manual_seed((plan.seed * 1_000_003 + int(rows[0])) % (1 << 63))
    filled = torch.cat([rows, rows[:1].expand(plan.rows - len(rows))])
    block, weights = obs.rows(filled.to(_device(obs))), RunningWeights(plan.count)
    with model.numeric(), local_q(model, block):
        for start in range(0, plan.count, plan.draws):
            log_w = weigh(block)[: plan.count - start]
            if not bool((log_w < torch.inf).all()):
                row = int(rows[0]) + int((~(log_w < torch.inf)).any(0).nonzero()[0])
                raise EngineError(
                    f"log_evidence: an importance weight of datum {row} is not finite; look at model.elbo(x)"
                )
            weights.add(log_w)
    return weights.evidence()


def _weigher(model: LatentVariableModel, obs: Observations, plan: Plan, mode: str) -> Weigh:
    """A function of a block: log weights of further draws, [draws, rows]."""
    names, gaps, encoded = list(obs.values), list(obs.missing), _of_data(model, obs)

    def of_tensors(*tensors: Tensor) -> tuple[Tensor]:
        values, missing = tensors[: len(names)], tensors[len(names) :]
        block = Observations(dict(zip(names, values, strict=True)), dict(zip(gaps, missing, strict=True)), obs.columns)
        return (weights_of(model, block, plan.draws, encoded),)

    if model.draws_without_posterior(obs):  # every block then has a q of its own
        mode = "off"
    steps = -(-plan.size // plan.rows) * plan.pieces
    traced = Traced(of_tensors, choose(mode, sum(p.numel() for p in model.parameters()), plan.at_once, steps))

    return lambda block: traced(*block.values.values(), *block.missing.values())[0]


def weights_of(model: LatentVariableModel, obs: Observations, count: int, encoded: Sequence[str]) -> Tensor:
    """Log p(x_i, z_s) - log q(z_s | x_i) with every finite latent summed out, [count, n].

    The posteriors of the latents in `encoded` look at data only and are called once for all draws; other latents are
    drawn along with the rest.
    """
    given: dict[str, Tensor] = {}
    log_q: Any = 0.0
    for name in encoded:
        q = model._posterior(model._graph.nodes[name], model.scope(obs), obs, None)
        assert q is not None
        z = q.rsample((count,)) if q.has_rsample else q.sample((count,))
        given[name], log_q = z.flatten(0, 1), log_q + q.log_prob(z)
    rows = obs.repeat(count)
    rows = replace(rows, values={**rows.values, **given})
    index = torch.arange(len(obs), device=model.like.device).repeat(count) if model.local_posteriors else None
    return log_weights(model.bound_sites(rows, index), count) - log_q


def _of_data(model: LatentVariableModel, obs: Observations) -> list[str]:
    """Continuous latents whose declared posterior looks at nothing that is drawn."""
    posteriors, known = model._graph.posteriors, set(obs.values) - set(obs.missing)
    return [n for n in model.draws_latents(obs) if n in posteriors and set(posteriors[n].parents) <= known]


def _sees_points(model: LatentVariableModel, obs: Observations) -> bool:
    """Whether every drawn latent has a point mass for a q: all its draws are one, and weigh nothing."""
    if model.draws_without_posterior(obs):
        return False
    with model.numeric(), model.aside():
        sites = model.bound_sites(obs.rows(slice(0, 1)))
    return all(isinstance(law_of_entries(sites.q[name]), dist.Delta) for name in sites.drawn)


def _device(obs: Observations) -> torch.device:
    return next(iter(obs.values.values())).device
