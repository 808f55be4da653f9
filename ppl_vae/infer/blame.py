"""Which node of a model made a number that is none."""

from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from ppl_vae.objectives import Sites

__all__ = ["culprit"]


def culprit(sites: Sites) -> str:
    """The first node whose log density is not finite, in words; empty where there is none."""
    for log in (sites.log_p, sites.log_q, sites.penalties):
        for name, density in log.items():
            impossible = (density == -torch.inf) & (density.dim() == 1)  # along a finite latent that may well be
            if bool((density.isnan() | (density == torch.inf) | impossible).any()):
                return f"node {name}{_outside(sites.p.get(name))}"
    return ""


def _outside(law: Any) -> str:
    """The first parameter of a distribution that cannot be one, in words."""
    while isinstance(law, torch.distributions.Independent):
        law = law.base_dist
    for name, constraint in getattr(law, "arg_constraints", {}).items():
        value = vars(law).get(name)
        if not isinstance(value, Tensor) or constraints.is_dependent(constraint):
            continue
        inside = constraint.check(value)
        if not bool(inside.all()):
            bad = value[~inside].flatten()[0].item()
            return f", {type(law).__name__} whose {name} is {bad:.4g}, not of {constraint}"
    return ""
