"""What SVI climbs on a declared model: its objective on a minibatch, as a function of parameters and data."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ppl_vae.declare import LatentVariableModel, Observations
from ppl_vae.errors import EngineError
from ppl_vae.functional import called_with
from ppl_vae.infer.batches import Batch
from ppl_vae.infer.blame import culprit
from ppl_vae.infer.precision import PRECISIONS
from ppl_vae.infer.processes import Share
from ppl_vae.infer.step import NO_FACTOR, Frozen, Names, Pieces
from ppl_vae.objectives import Elbo, Objective, Sites
from ppl_vae.objectives.sites import score

__all__ = ["ModelObjective"]


class ModelObjective:
    """sum_i w_i L_i + (sum_i w_i / n) (log p(theta) - log q(theta)) over a batch, of a data set of weight n (000 (39)).

    Parameters
    ----------
    model : LatentVariableModel
        Its parameters are what is moved.
    objective : Objective
        The bound of a datum, or what is maximised in its place.
    total : float
        Weight of the whole data set: each batch takes its share of what the shared latents cost.
    annealed : bool
        Whether the objective differs from the bound, which is then computed beside it; with penalties it does.
    precision : {"full", "bf16"}
        "bf16": the networks' matrix products in bfloat16, everything else as it is.
    """

    def __init__(
        self,
        model: LatentVariableModel,
        objective: Objective,
        total: float,
        annealed: bool = False,
        precision: str = "full",
    ) -> None:
        self.model, self.objective, self.penalties = model, objective, model.penalties
        self.annealed = annealed or bool(self.penalties)
        if not hasattr(objective, "is_bound"):
            raise EngineError(
                f"the objective of a declared model is one such as pv.elbo() or pv.iwae(8), called; got {objective!r}"
            )
        if precision not in PRECISIONS:
            raise EngineError(f"precision must be one of {', '.join(PRECISIONS)}; got {precision!r}")
        self.precision = PRECISIONS[precision]
        self.like = model.like
        if precision != "full" and self.like.dtype == torch.float64:
            raise EngineError(
                f"precision={precision!r} shortens products of float32 numbers, and data and model are float64: pass "
                "x.float(), or leave precision out"
            )
        self.total = self.like.new_tensor(total)
        local = {id(p) for p in model.local_posteriors.parameters()}
        self.frozen = Frozen(model.named_parameters())
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self.names: list[str] = [name for name, p in named if id(p) not in local]
        self.row_names: list[str] = [name for name, p in named if id(p) in local]
        self.dense: list[Tensor] = [p for _, p in named if id(p) not in local]
        self.sparse: list[Tensor] = [p for _, p in named if id(p) in local]
        self.num_rows = len(self.sparse)
        self.rows_optimizer: torch.optim.Optimizer | None = None
        self.buffers: dict[str, Tensor] = {}
        self.looked = False
        self.holder = _Holder(model, self._sums)

    def pieces(self, batch: Batch, beta: float, count: int) -> list[Pieces]:
        """Values and gaps of the batch, its weights, beta and the total, with the rows of per-datum parameters."""
        self.frozen.check()
        if not self.looked:
            self._look(batch)
        # What a batch has may differ from one to the next: labels, gaps.
        names = tuple(sorted(batch.obs.values)), tuple(sorted(batch.obs.missing))
        values, gaps = names
        shared = [self.total, self.like.new_tensor(beta), *self.buffers.values()]
        found = []
        for part in _cut(batch, count):
            tensors = [part.obs.values[name] for name in values] + [part.obs.missing[name] for name in gaps]
            rows = [p.detach()[part.index] for p in self.sparse]
            found.append(Pieces(rows, [*tensors, part.weights, *shared], part.weights.sum(), names))
        return found

    def _look(self, batch: Batch) -> None:
        """See which running statistics the networks change."""
        self.looked = True
        before = {name: (b, b.clone()) for name, b in self.model.named_buffers()}
        with self.model.aside(), self.model.buffers_kept(), torch.no_grad(), self.model.numeric():
            shared, _ = self.model.draw_shared()
            with self.model.bind(shared):
                self.model.sites(*self._repeated(batch))
            changed = {name.rpartition(".")[0] for name, (b, old) in before.items() if not torch.equal(b, old)}
        # What a network changes in one of its buffers it may change in the others.
        # A floating one may be changed by whoever trains, such as a temperature by a callback.
        self.buffers = {
            name: b for name, (b, _) in before.items() if name.rpartition(".")[0] in changed or b.is_floating_point()
        }

    def _repeated(self, batch: Batch) -> tuple[Observations, Tensor | None]:
        """The rows of a batch once for each particle, and the numbers of their own parameters, if any."""
        particles = self.objective.num_particles
        index = None if batch.index is None or not self.sparse else batch.index.repeat(particles)
        return batch.obs.repeat(particles), index

    def sums(self, leaves: Sequence[Tensor], rest: Sequence[Tensor], names: Names) -> tuple[Tensor, ...]:
        """Objective, bound and penalties of a piece, with these tensors in the place of the model's parameters."""
        buffers = rest[len(rest) - len(self.buffers) :]
        places = [*self.names, *self.row_names, *self.buffers]
        given = {f"model.{name}": tensor for name, tensor in zip(places, [*leaves, *buffers], strict=True)}
        return called_with(self.holder, given, rest, names)

    def _sums(self, rest: Sequence[Tensor], names: Names) -> tuple[Tensor, ...]:
        tensors, (values, gaps) = iter(rest), names
        seen, missing = {name: next(tensors) for name in values}, {name: next(tensors) for name in gaps}
        w, total, beta = next(tensors), next(tensors), next(tensors)
        obs = Observations(seen, missing, weights=w)
        model, particles = self.model, self.objective.num_particles
        index = torch.arange(len(obs), device=w.device).repeat(particles) if self.sparse else None
        shared, log_q = model.draw_shared()
        with model.bind(shared), model.numeric():
            with self.precision(w.device.type):
                sites = model.sites(obs.repeat(particles), index)
            theta = (w.sum() / total) * (model.log_prior(shared) - log_q)
            value = (w * self.objective(sites, beta, w)).sum() + beta * theta
            if not self.annealed:
                return value, value
            penalties = [self._penalty(sites, name, w) for name in self.penalties]
            with torch.no_grad():
                bound = (w * Elbo(particles)(sites)).sum() + theta
            return value - sum(penalties), bound, *penalties

    def _penalty(self, sites: Sites, name: str, weights: Tensor) -> Tensor:
        """Of the data, its mean over the particles, with the score's gradient for draws that have no pathwise one."""
        each = sites.penalties[name]
        return weights @ (each + score(sites, each)).reshape(self.objective.num_particles, -1).mean(0)

    def completed(self, gradients: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        """The gradients as they are."""
        return gradients

    def move_rows(self, batch: Batch, gradients: Sequence[Tensor], share: Share) -> None:
        """A step of SparseAdam on the rows in the batch of all processes."""
        assert batch.index is not None
        assert self.rows_optimizer is not None
        real = torch.arange(len(batch.index), device=batch.index.device) < batch.real
        index = torch.where(real, batch.index, -1)
        if share.world > 1:
            index = share.stacked(index).flatten()
            gradients = [share.stacked(gradient).flatten(0, 1) for gradient in gradients]
        kept = index >= 0
        for parameter, gradient in zip(self.sparse, gradients, strict=True):
            parameter.grad = torch.sparse_coo_tensor(
                index[kept][None], gradient[kept], parameter.shape, check_invariants=False
            )
        self.rows_optimizer.step()

    def blame(self, batch: Batch) -> str:
        """The first node whose log density is not finite; empty where all are."""
        model = self.model
        try:
            with model.aside(), model.buffers_kept(), torch.no_grad(), model.numeric():
                shared, _ = model.draw_shared()
                with model.bind(shared):
                    return culprit(model.sites(*self._repeated(batch)))
        except torch.linalg.LinAlgError:
            return NO_FACTOR


class _Holder(nn.Module):
    """The model under one name, so that its parameters can be replaced while a function of it runs."""

    def __init__(self, model: LatentVariableModel, function: Any) -> None:
        super().__init__()
        self.model, self.function = model, function

    def forward(self, rest: Sequence[Tensor], names: Names) -> tuple[Tensor, ...]:
        return self.function(rest, names)


def _cut(batch: Batch, count: int) -> list[Batch]:
    if count == 1:
        return [batch]
    m = len(batch.weights)
    if m % count:
        raise EngineError(f"a batch of {m} data cannot be cut into accumulate={count} pieces of one size")
    size, parts = m // count, []
    for low in range(0, m, size):
        rows = slice(low, low + size)
        index = None if batch.index is None else batch.index[rows]
        parts.append(Batch(batch.obs.rows(rows), batch.weights[rows], index, size))
    return parts
