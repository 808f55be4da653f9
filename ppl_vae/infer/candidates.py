"""E-steps that compute no responsibility which rounding would swallow.

A component j is out of reach of data whose margins log p(x_i, g) - log p(x_i, j) are all above REACH + log(W K / N_j),
for data of weight W and N_j of the E-step before: leaving it out changes N_j, and every other sum of component j, by
less than rounding, unless N_j falls by orders of magnitude within one step. Data are sorted into groups by the
components within reach, and bounds tell at every later theta which these are. A group is an E-step over its candidates
alone, and one with a single candidate is a constant.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppl_vae.declare import LatentVariableModel
from ppl_vae.families.kernels import Separable
from ppl_vae.families.workspace import reused_buffers
from ppl_vae.infer.expectation import Expectation, Plan
from ppl_vae.infer.groups import Groups, Margins, Mixture, Part
from ppl_vae.infer.mstep import Values, each_chunk
from ppl_vae.infer.parallel import threads
from ppl_vae.infer.parts import Held, Parts, even
from ppl_vae.infer.processes import mapped

__all__ = ["Candidates"]

REACH = 34.0
"""Nats beyond which what is left out changes a component's sums by less than 2e-15 of them."""
ROOM = 10.0
"""Nats by which a component out of reach is so when groups are made, for parameters to move."""
WORTH = 1 << 22
"""Numbers of a group's full E-step below which its calls would take longer than the arithmetic."""
SAMPLE = 2048
"""Rows by which groups are judged before they are made."""
SPARSE = 0.4
"""Share of candidates among all pairs of a datum and a component from which on groups gain nothing."""
REGROUP = 0.7
"""Pairs computed beyond those that new groups would leave, in E-steps without groups, from which on these are made."""
FIRST = 3
"""E-steps before groups are looked for: components move too fast."""
KINDS = 4096
"""Numbers that sets of candidates are told apart by; sets that share one share a group, which costs time only."""
STATE = ("counts", "steps", "next", "best", "excess")
"""What of the policy a checkpoint keeps as it is."""


@dataclass(frozen=True)
class Origin:
    """Where groups were made: parameters, and sum_i w_i r_i of the E-step before, [K, 1]."""

    values: Values
    counts: Tensor


@dataclass(frozen=True)
class Standing:
    """Where the bounds of groups hold, and what they are."""

    values: Values
    least: Tensor
    farthest: Tensor
    known: Tensor


class Candidates:
    """The E-steps of one climb, over groups of data where that is worth it.

    Parameters
    ----------
    model : LatentVariableModel
        Whose parameters the caller binds.
    parts : Parts
        The data; only those held in memory on a CPU, without gaps, are sorted.
    num_threads : int
        For the products over the data.
    """

    def __init__(self, model: LatentVariableModel, parts: Parts, num_threads: int) -> None:
        self.model, self.parts, self.num_threads = model, parts, num_threads
        self.held: Held | None = None
        self.asked = False
        self.groups: Groups | None = None
        self.origin: Origin | None = None
        self.standing: Standing | None = None
        self.counts: Tensor | None = None
        self.steps, self.next, self.best, self.excess = 0, FIRST, 1.0, 0.0

    def state(self) -> dict[str, Any]:
        """For a checkpoint: the groups follow from where they were made."""
        known = {"origin": self.origin, "standing": self.standing}
        return {
            **{name: None if value is None else dict(vars(value)) for name, value in known.items()},
            **{name: getattr(self, name) for name in STATE},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from such a state."""
        self.origin = None if state["origin"] is None else Origin(**state["origin"])
        self.standing = None if state["standing"] is None else Standing(**state["standing"])
        for name in STATE:
            setattr(self, name, state[name])

    def expect(self, plan: Plan, values: Values, every: Callable[[], Expectation]) -> Expectation:
        """The E-step at the bound values; `every` makes it over all pairs of a datum and a component."""
        if not self.asked:
            self.held, self.asked = _sortable(plan, self.parts), True
        parts = self.held
        if parts is None:
            return every()
        if self.origin is not None and self.groups is None:
            self._remake(plan, parts, self.origin)
        due = self.excess > REGROUP or (self.groups is None and self.steps >= self.next)
        if due and self.counts is not None:
            self._regroup(plan, parts, Origin(values, self.counts))
        self.steps += 1
        if self.groups is None or self.counts is None:
            e = every()
        else:
            e = self._grouped(plan, self.groups, self.counts)
            known = self.groups.known.clone()
            self.standing = Standing(mapped(values, torch.clone), self.groups.least, self.groups.farthest, known)
        self.counts = e.table
        return e

    def _needed(self, counts: Tensor) -> Tensor:
        """Margins from which on components are out of reach, [K]."""
        return REACH + (self.parts.total() * len(counts) / counts[:, 0].clamp_min(1e-300)).log().clamp_min(0)

    def _regroup(self, plan: Plan, parts: Held, origin: Origin) -> None:
        """Make groups, or make them anew, where a sample of the data says that they are worth it."""
        self.groups = self.origin = self.standing = None
        self.excess, self.next = 0.0, self.steps + self.steps // 4 + 4
        mixture, needed = _mixture(plan), self._needed(origin.counts)
        obs, _ = parts.sample(SAMPLE, seed=0)
        log, _ = mixture.joint(next(parts.cut(obs, None, 0)).features[plan.direct[0][0]])
        if float((log > log.amax(0) - needed[:, None] - ROOM).double().mean()) < SPARSE:
            groups = self._made(plan, parts, origin.counts)
            groups.known = groups.near(needed)
            self.best = self._share(groups, groups.known)
            if self.best < SPARSE:
                self.groups, self.origin = groups, Origin(mapped(origin.values, torch.clone), origin.counts)

    def _remake(self, plan: Plan, parts: Held, origin: Origin) -> None:
        """The groups of a checkpoint, with the bounds that they had."""
        with self.model.bind(origin.values):
            plan.refresh()
            self.groups = self._made(plan, parts, origin.counts)
        if self.standing is not None:
            with self.model.bind(self.standing.values):
                plan.refresh()
                self.groups.at = _mixture(plan)
            for name in ("least", "farthest", "known"):
                setattr(self.groups, name, getattr(self.standing, name).clone())
        plan.refresh()

    def _share(self, groups: Groups, near: Tensor) -> float:
        """Pairs that are computed of all pairs of a datum and a component, over all processes."""
        return float(self.parts.share.sum([groups.work(near)])[0]) / (self.parts.n * near.shape[1])

    def _made(self, plan: Plan, parts: Held, counts: Tensor) -> Groups:
        """The data sorted by component and candidates; what is too rare for that by component alone."""
        mixture, K = _mixture(plan), len(counts)
        with threads(self.num_threads):
            y, kind, margins = self._kinds(plan.direct[0][0], mixture, parts, self._needed(counts) + ROOM)
            common = (kind // K).bincount(minlength=KINDS) >= _fewest(plan)

            def merged(kind: Tensor) -> Tensor:
                return torch.where(common[kind // K], kind, (KINDS + kind % K) * K + kind % K)

            margins, kind = Margins.of(merged(margins.kind), margins.least, margins.lowest), merged(kind)
            group = (margins.kind // K).unique(return_inverse=True)[1]
            order = kind.argsort(stable=True)
            bound = torch.bucketize(kind[order], margins.kind)
            sizes = group[bound].bincount().tolist()
            spans = zip(order.split(sizes), bound.split(sizes), strict=True)
            made = [list(_parts(parts, y, *span)) for span in spans]
            return Groups(mixture, made, group, margins.kind % K, margins.least, margins.lowest)

    def _kinds(self, node: str, mixture: Mixture, parts: Held, needed: Tensor) -> tuple[Tensor, Tensor, Margins]:
        """The data y [n, d], K times a number for the set of candidates plus the best one, [n], and margins of them."""
        K = len(needed)
        salt = torch.randint(KINDS, (1, K), generator=torch.Generator().manual_seed(0)).float()
        ys, kinds, margins = [], [], None
        for chunk in each_chunk(parts):
            y = chunk.features[node]
            with reused_buffers():
                log, _ = mixture.joint(y)
                top, best = log.max(0)
                near = (log > top - needed[:, None]).float()
                kind = (salt @ near)[0].long() % KINDS * K + best
                own = Margins.of(kind, top - log, top)
            margins = own if margins is None else margins + own
            ys.append(y.mT)
            kinds.append(kind)
        assert margins is not None
        y, kind = torch.cat(ys), torch.cat(kinds)
        parts.kept.clear()
        return y, kind, margins

    def _grouped(self, plan: Plan, groups: Groups, counts: Tensor) -> Expectation:
        needed = self._needed(counts)
        groups.move(_mixture(plan))
        with threads(self.num_threads):
            near = groups.look(needed)
            self.excess += self._share(groups, near) - self.best
            e = groups.expect(near).expectation(plan.paths[id(plan.direct[0][1].family)])
        return Expectation(**self.parts.share.sum(vars(e)))


def _sortable(plan: Plan, parts: Parts) -> Held | None:
    """The data, if groups of them are possible: enough in memory, without gaps, of members that can be had singly."""
    if not (plan.is_mixture and isinstance(parts, Held) and parts.keep and not parts.idle):
        return None
    ((node, term),) = plan.direct
    whole = parts.model.like.device.type == "cpu" and node not in parts.obs.missing
    worth = term.family.batch > 1 and parts.n >= 8 * _fewest(plan)
    return parts if whole and worth and isinstance(term.kernel, Separable) else None


def _fewest(plan: Plan) -> int:
    """Rows worth a group of their own."""
    family = plan.direct[0][1].family
    return max(64, WORTH // (family.batch * family.width))


def _mixture(plan: Plan) -> Mixture:
    return Mixture(plan.direct[0][1].kernel, torch.stack(plan.tables).sum(0))


def _parts(parts: Held, y: Tensor, rows: Tensor, bound: Tensor) -> Iterator[Part]:
    """A group's data, as many at once as a chunk has."""
    size = even(len(rows), parts.rows)
    for own, kind in zip(rows.split(size), bound.split(size), strict=True):
        weights = None if parts.weights is None else parts.weights[own]
        yield Part(y.index_select(0, own).mT.contiguous(), weights, kind)
