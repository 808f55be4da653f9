"""The M-step: closed forms for what families own, gradient steps that must raise Q for the rest (generalised EM)."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.distributions import biject_to

from ppl_vae.alone import differentiable
from ppl_vae.declare import LatentVariableModel
from ppl_vae.families import Family, Sums
from ppl_vae.infer.expectation import Plan
from ppl_vae.infer.parts import Chunk, Parts
from ppl_vae.infer.processes import Share

__all__ = ["Maximizer", "Values", "each_chunk"]

Values = dict[str, Tensor]


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

    def gradient_step(self, parts: Parts, values: Values) -> Values:
        """Quasi-Newton steps on Q(theta) at the posterior under `values`; undone should they not raise it."""
        parameters, by_hand = self.free
        if not parameters and not by_hand:
            return values
        with self.model.bind(values), torch.no_grad():
            r = self.posteriors(parts)
        return self.raised(parts, values, r, parameters)

    def raised(self, parts: Parts, values: Values, r: list[Tensor], parameters: list[torch.nn.Parameter]) -> Values:
        """The same at responsibilities r of each chunk, for these parameters and every latent declared by hand."""
        by_hand = self.free[1]
        if not parameters and not by_hand:
            return values
        laws = self.model.shared_laws()
        maps = {name: biject_to(laws[name](values).support) for name in by_hand}
        raw = {name: maps[name].inv(values[name]).detach().clone().requires_grad_() for name in by_hand}

        def assembled() -> Values:
            return {**values, **{name: maps[name](u) for name, u in raw.items()}}

        def q_value() -> Tensor:
            now = assembled()
            with self.model.bind(now):
                q = self.expected_log_joint(parts, r)
            return q + self.model.log_prior(now) if self.estimate == "map" and parts.share.leads else q

        _climb([*parameters, *raw.values()], q_value, parts.share)
        with torch.no_grad():
            return {name: value.detach() for name, value in assembled().items()}

    def posteriors(self, parts: Parts) -> list[Tensor]:
        """p(z | x_i) of each chunk, [*enumerated, n]."""
        plan, found = None, []
        for chunk in each_chunk(parts):
            plan = plan or Plan(self.model, chunk.obs)
            joint = plan.log_joint(chunk, plan.joint(chunk))
            found.append(torch.softmax(joint.flatten(0, -2), 0).view(joint.shape))
        return found

    def expected_log_joint(self, parts: Parts, posterior: list[Tensor]) -> Tensor:
        """Q(theta) = sum_i w_i E_r[log p(x_i, z)], differentiable in theta (000 (9))."""
        plan, q = None, torch.zeros((), dtype=self.model.like.dtype, device=self.model.like.device)
        for chunk, r in zip(each_chunk(parts), posterior, strict=True):
            plan = plan or Plan(self.model, chunk.obs)
            joint = plan.log_joint(chunk, plan.joint(chunk))
            # A value ruled out by its prior has responsibility 0, and 0 * -inf is not 0.
            each = torch.where(r > 0, r * joint, 0.0).flatten(0, -2).sum(0)
            q = q + (each if chunk.weights is None else chunk.weights * each).sum()
        return q


def _climb(variables: list[Tensor], objective: Callable[[], Tensor], share: Share) -> None:
    """Raise the sum of the processes' objectives."""

    def loss() -> Any:
        """Minus the sum, its gradient left in the variables."""
        own = -objective()
        gradients: Any = [torch.zeros_like(v) for v in variables]
        if own.requires_grad:  # not so in a process without data
            gradients = torch.autograd.grad(own, variables, allow_unused=True, materialize_grads=True)
        total, gradients = share.sum((own.detach(), gradients))
        if not bool(total.isfinite()):  # the line search turns back from what is far above, and stumbles over NaN
            total, gradients = torch.full_like(total, wall), [torch.zeros_like(v) for v in variables]
        for variable, gradient in zip(variables, gradients, strict=True):
            variable.grad = gradient
        return total

    before, kept = share.sum(-objective()).item(), [v.detach().clone() for v in variables]
    wall = before + 1e3 * (1 + abs(before))
    with differentiable():
        torch.optim.LBFGS(variables, max_iter=10, line_search_fn="strong_wolfe").step(loss)
    with torch.no_grad():
        if not share.sum(-objective()).item() <= before:
            for variable, value in zip(variables, kept, strict=True):
                variable.copy_(value)
