"""The M-step: closed forms for what families own, gradient steps that must raise Q for the rest (generalised EM)."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.distributions import biject_to

from ppl_vae.alone import differentiable
from ppl_vae.declare import LatentVariableModel
from ppl_vae.families import Family, Sums
from ppl_vae.infer.assignment import Assign, soft
from ppl_vae.infer.expectation import Plan
from ppl_vae.infer.parts import Chunk, Parts
from ppl_vae.infer.processes import Share

__all__ = ["Maximizer", "Posterior", "Values", "each_chunk"]

Values = dict[str, Tensor]
Responsibilities = Callable[[Chunk], Tensor]
"""Of each chunk, [*enumerated, n]."""
KEEP = 1 << 22
"""Responsibilities that a gradient M-step keeps (32 MB)."""


def each_chunk(parts: Parts) -> Iterator[Chunk]:
    """The chunks of this process, one after the other."""
    for block in parts.blocks():
        yield from parts.chunks(block)


@dataclass(frozen=True)
class Maximizer:
    """theta = argmax sum_i w_i E_r[log p(x_i, z_i | theta)] + log p(theta), parameters in `frozen` left as they are."""

    model: LatentVariableModel
    estimate: str
    frozen: tuple[str, ...]

    @cached_property
    def families(self) -> dict[str, Family]:
        """The model's families by path."""
        return self.model.families()

    def closed_forms(self, sums: Mapping[str, Sums], values: Values) -> Values:
        """New values of what families own (000 (9))."""
        families = self.families
        found = dict(values)
        for path, own in sums.items():
            family = families[path]
            fixed = {name: values[f"{path}.{name}"] for name in family.constraints if f"{path}.{name}" in self.frozen}
            if len(fixed) < len(family.constraints):
                new = family.maximize(own, self.estimate, fixed) if fixed else family.maximize(own, self.estimate)
                found |= {f"{path}.{name}": value for name, value in new.items()}
        return found

    def degenerate(self, sums: Mapping[str, Sums], values: Values) -> list[tuple[str, int]]:
        """Members that have lost their data or whose likelihood has no bound, by path and number."""
        families = self.families
        found = []
        for path, own in sums.items():
            mine = {name: values[f"{path}.{name}"] for name in families[path].constraints}
            found += [(path, k) for k in families[path].degenerate(own, mine).nonzero().flatten().tolist()]
        return found

    def collapsed(self, sums: Mapping[str, Sums]) -> list[tuple[str, int, float]]:
        """Members that nothing but so few data hold that these fit anywhere: path, number, and how many data.

        None where a prior holds them, where they are frozen, or where all data together are no more.
        """
        found = []
        for path, own in sums.items():
            family, count = self.families[path], own["count"]
            held = (family.prior is not None and self.estimate == "map") or not family.saturated
            held = held or all(f"{path}.{name}" in self.frozen for name in family.constraints)
            most = family.saturated + 0.5
            if not held and count.sum() > len(count) * most:
                found += [(path, k, count[k].item()) for k in (count < most).nonzero().flatten().tolist()]
        return found

    # What no family owns.

    @cached_property
    def free(self) -> tuple[list[torch.nn.Parameter], list[str]]:
        """Parameters of the module, and shared latents declared by hand, that take gradient steps."""
        parameters = [p for name, p in self.model.free_parameters().items() if name not in self.frozen]
        by_hand = [name for name in self.model.shared_by_hand() if name not in self.frozen]
        return [p for p in parameters if p.requires_grad], by_hand

    def gradient_step(self, parts: Parts, values: Values, before: Values, assign: Assign) -> tuple[Values, int]:
        """Steps that raise Q(theta) from `values`, at the r of the E-step under `before`; and the passes they took."""
        parameters, by_hand = self.free
        if not parameters and not by_hand:
            return values, 0
        return self.raised(parts, values, Posterior(self.model, before, parameters, assign), parameters)

    def raised(
        self, parts: Parts, values: Values, r: Responsibilities, parameters: list[torch.nn.Parameter]
    ) -> tuple[Values, int]:
        """The same for these parameters and every latent declared by hand."""
        by_hand = self.free[1]
        if not parameters and not by_hand:
            return values, 0
        laws = self.model.shared_laws()
        maps = {name: biject_to(laws[name](values).support) for name in by_hand}
        raw = {name: maps[name].inv(values[name]).detach().clone().requires_grad_() for name in by_hand}

        def assembled() -> Values:
            return {**values, **{name: maps[name](u) for name, u in raw.items()}}

        def terms() -> Iterator[Tensor]:
            now = assembled()
            if self.estimate == "map" and parts.share.leads:
                yield self.model.log_prior(now)
            with self.model.bind(now):
                yield from self.expected_log_joint(parts, r)

        passes = _climb([*parameters, *raw.values()], terms, parts.share)
        with torch.no_grad():
            return {name: value.detach() for name, value in assembled().items()}, passes

    def expected_log_joint(self, parts: Parts, r: Responsibilities) -> Iterator[Tensor]:
        """The terms of Q(theta) = sum_i w_i E_r[log p(x_i, z)], one for each chunk, differentiable (000 (9))."""
        plan = None
        for chunk in each_chunk(parts):
            plan = plan or Plan(self.model, chunk.obs)
            yield _expected(plan, chunk, r(chunk))


class Posterior:
    """The responsibilities that an E-step's assignment gives each chunk, [*enumerated, n].

    Those of few data are kept; beyond `KEEP` numbers they are made anew when they are asked for, the same each time.

    Parameters
    ----------
    model : LatentVariableModel
        The model.
    values : Values
        Values of what is bound.
    moving : sequence of Parameter
        Those that steps will move; the responsibilities are those at the values of now.
    assign : Assign
        What stands in the place of q(z).
    """

    def __init__(
        self, model: LatentVariableModel, values: Values, moving: Sequence[torch.nn.Parameter], assign: Assign = soft
    ) -> None:
        self.model, self.values, self.assign = model, values, assign
        self.before = [(p, p.detach().clone()) for p in moving]
        self.plan: Plan | None = None
        self.kept: dict[int, Tensor] = {}
        self.room = KEEP

    def __call__(self, chunk: Chunk) -> Tensor:
        """Those of one chunk."""
        if chunk.start in self.kept:
            return self.kept[chunk.start]
        with self._before(), self.model.bind(self.values), torch.no_grad():
            self.plan = self.plan or Plan(self.model, chunk.obs)
            joint = self.plan.log_joint(chunk, self.plan.joint(chunk))
            r = self.assign(joint.flatten(0, -2), chunk).r.view(joint.shape)
        if r.numel() <= self.room:
            self.kept[chunk.start], self.room = r, self.room - r.numel()
        return r

    @contextmanager
    def _before(self) -> Iterator[None]:
        """Within the block parameters have the values of the E-step; graphs that hold them do not see it."""
        now = [p.data for p, _ in self.before]
        try:
            for p, value in self.before:
                p.data = value
            yield
        finally:
            for (p, _), value in zip(self.before, now, strict=True):
                p.data = value


def _expected(plan: Plan, chunk: Chunk, r: Tensor) -> Tensor:
    joint = plan.log_joint(chunk, plan.joint(chunk))
    # A value ruled out by its prior has responsibility 0, and 0 * -inf is not 0.
    each = torch.where(r > 0, r * joint, 0.0).flatten(0, -2).sum(0)
    return (each if chunk.weights is None else chunk.weights * each).sum()


def _climb(variables: list[Tensor], terms: Callable[[], Iterator[Tensor]], share: Share) -> int:
    """Move the variables to where the terms of all processes are largest in sum; how often these were gone over."""
    loss = _Loss(variables, terms, share)
    with differentiable():
        torch.optim.LBFGS(variables, max_iter=10, line_search_fn="strong_wolfe").step(loss)
    with torch.no_grad():
        for variable, value in zip(variables, loss.best, strict=True):
            variable.copy_(value)
    return loss.passes


class _Loss:
    """Minus the sum of the terms of all processes, its gradient left in the variables; knows where it was lowest."""

    def __init__(self, variables: list[Tensor], terms: Callable[[], Iterator[Tensor]], share: Share) -> None:
        self.variables, self.terms, self.share = variables, terms, share
        self.passes, self.lowest, self.wall, self.best = 0, math.inf, math.inf, self._copies()

    def _copies(self) -> list[Tensor]:
        return [variable.detach().clone() for variable in self.variables]

    def __call__(self) -> Any:
        total, gradients = self.share.sum(self._own())
        value = total.item()
        self.wall = self.wall if self.passes else value + 1e3 * (1 + abs(value))
        self.passes += 1
        if value < self.lowest:
            self.lowest, self.best = value, self._copies()
        if not math.isfinite(value):  # the line search turns back from what is far above, and stumbles over NaN
            total, gradients = torch.full_like(total, self.wall), [torch.zeros_like(v) for v in self.variables]
        for variable, gradient in zip(self.variables, gradients, strict=True):
            variable.grad = gradient
        return total

    def _own(self) -> tuple[Tensor, list[Tensor]]:
        """The part of this process, one term's graph at a time."""
        gradients = [torch.zeros_like(v) for v in self.variables]
        total = gradients[0].new_zeros((), dtype=torch.float64)
        for term in self.terms():
            total -= term.detach()
            if term.requires_grad:
                # What the terms share, made of the parameters alone, is gone through again for each of them.
                own = torch.autograd.grad(
                    term, self.variables, retain_graph=True, allow_unused=True, materialize_grads=True
                )
                for gradient, more in zip(gradients, own, strict=True):
                    gradient -= more
            del term  # and its graph with it, before the next one is made
        return total, gradients
