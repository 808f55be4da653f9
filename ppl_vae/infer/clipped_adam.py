"""Pyro's ClippedAdam: Adam on gradients clipped element by element, with a learning rate that decays at every step."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

__all__ = ["ClippedAdam"]


class ClippedAdam(torch.optim.Optimizer):
    """Adam with clipping and decay, all parameters at a time.

    With g clipped to [-clip, clip] and step t from 1,

        lr <- lrd lr
        m <- b1 m + (1 - b1) g,    v <- b2 v + (1 - b2) g^2
        p <- p - lr sqrt(1 - b2^t) / (1 - b1^t) m / (sqrt(v) + eps)

    as in `pyro.optim.clipped_adam`, whose eps stands outside the bias correction, unlike that of torch's Adam.

    Parameters
    ----------
    params : iterable
        Parameters, or groups of them.
    lr : float or Tensor
        Learning rate; a tensor is changed in place, so that a CUDA graph sees it.
    betas : (float, float)
        b1 and b2.
    eps : float
        Added to the denominator.
    weight_decay : float
        Times the parameter, added to the clipped gradient.
    clip : float
        Largest absolute value of a gradient's element.
    lrd : float
        Factor of the learning rate at every step.
    capturable : bool
        Whether a CUDA graph may hold a step.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        clip: float = 10.0,
        lrd: float = 1.0,
        capturable: bool = False,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "clip": clip, "lrd": lrd}
        super().__init__(params, {**defaults, "capturable": capturable})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            group["lr"] *= group["lrd"]
            moved = [p for p in group["params"] if p.grad is not None]
            if moved:
                self._move(moved, group)
        return loss

    def _move(self, moved: list[Tensor], group: dict[str, Any]) -> None:
        (b1, b2), clip = group["betas"], group["clip"]
        g = [p.grad for p in moved if p.grad is not None]
        torch._foreach_clamp_min_(g, -clip)
        torch._foreach_clamp_max_(g, clip)
        if group["weight_decay"]:
            g = list(torch._foreach_add(g, moved, alpha=group["weight_decay"]))
        m, v, t = ([self._state_of(p)[name] for p in moved] for name in ("exp_avg", "exp_avg_sq", "step"))
        torch._foreach_add_(t, 1)
        torch._foreach_mul_(m, b1)
        torch._foreach_add_(m, g, alpha=1 - b1)
        torch._foreach_mul_(v, b2)
        torch._foreach_addcmul_(v, g, g, value=1 - b2)
        denominator = torch._foreach_sqrt(v)
        torch._foreach_add_(denominator, group["eps"])
        change = torch._foreach_div(m, denominator)
        # In float64: in float32 1 - b2^t has few digits while t is small.
        steps = [one.double() for one in t]
        torch._foreach_mul_(change, [-group["lr"] * (1 - b2**s).sqrt() / (1 - b1**s) for s in steps])
        torch._foreach_add_(moved, change)

    def _state_of(self, p: Tensor) -> dict[str, Tensor]:
        state = self.state[p]
        if not state:
            # torch keeps "step" in float32 when it loads a state.
            state["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
        return state
