"""Annealed importance sampling: log p(x) without q."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.distributions import biject_to

from ppl_vae import codebooks
from ppl_vae.alone import differentiable
from ppl_vae.diagnose.codes import Code, Codes, UndefinedError
from ppl_vae.evidence import Evidence, importance
from ppl_vae.infer.tracing import Traced
from ppl_vae.progress import progress as shown

__all__ = ["annealed"]

ACCEPT, GAIN = 0.65, 0.1
"""Share of accepted moves that the steps are made for, and how fast they follow."""


def annealed(
    codes: Codes,
    chains: int = 16,
    temperatures: int = 200,
    leapfrog: int = 5,
    compile: str = "trace",  # noqa: A002
    progress: bool = False,
) -> Evidence:
    """Log p(x_i) by chains that go from the prior to the posterior, [n] nats.

    A chain starts at z ~ p(z) and passes the densities p(z) p(x | z)^b for b from 0 to 1, moved by Hamiltonian Monte
    Carlo at each; its weight is w = prod_t p(x | z_{t-1})^(b_t - b_{t-1}), and E w = p(x). So the log of the mean
    weight is in the mean a lower bound of log p(x), whatever the chains do, and it owes nothing to q. The steps'
    lengths are found for each datum in a run of its own, whose chains are thrown away.

    Parameters
    ----------
    codes : Codes
        Of n data.
    chains, temperatures, leapfrog : int
        Chains per datum, densities on the way, steps of a move.
    compile : {"trace", "off"}
        Whether the gradient runs as a graph.
    progress : bool
        Show progress.

    Raises
    ------
    UndefinedError
        If the latents cannot be moved by their gradient.

    References
    ----------
    Neal (2001). Annealed importance sampling. Statistics and Computing. Wu, Burda, Salakhutdinov and Grosse (2017). On
    the quantitative analysis of decoder-based generative models. ICLR.

    Examples
    --------
    >>> import ppl_vae as pv
    >>> vae = pv.models.VAE(pv.nets.linear_encoder(3, 1), pv.nets.linear_decoder(1, 3), "gaussian")
    >>> codes = Codes(vae, vae.check(torch.zeros(4, 3)))
    >>> found = annealed(codes, chains=4, temperatures=10)
    >>> found.value.shape, found.method
    (torch.Size([4]), 'annealed')
    """
    path = Path(codes, chains, compile)
    betas = sigmoid_schedule(temperatures)
    with torch.no_grad(), codes.model.numeric(), codes.model.aside():
        path.check()
        with shown("annealing", 2 * temperatures, progress) as update:
            steps = _tuned(path, betas, leapfrog, lambda done: update(done, "lengths of the steps"))
            log_w = _run(path, betas, leapfrog, steps, lambda done: update(temperatures + done, f"{chains} chains"))
    return replace(importance(log_w.reshape(chains, codes.n)), method="annealed")


def sigmoid_schedule(count: int, steepness: float = 4.0) -> Tensor:
    """Temperatures from 0 to 1, close together at both ends, [count + 1].

    Examples
    --------
    >>> sigmoid_schedule(2)
    tensor([0.0000, 0.5000, 1.0000])
    """
    t = torch.sigmoid(torch.linspace(-steepness, steepness, count + 1))
    return (t - t[0]) / (t[-1] - t[0])


class Path:
    """The densities p(z) p(x | z)^b of all data and chains at once, on flat unconstrained u, z = T(u).

    Rows are [chains * n], one chain of all data after the other.
    """

    def __init__(self, codes: Codes, chains: int, mode: str) -> None:
        self.codes, self.count = codes, chains * codes.n
        self.rows = codes.obs.repeat(chains)
        laws = codes.model.prototypes(codes.obs)
        rough = [n for n in codes.names if laws[n].support.is_discrete or isinstance(laws[n], codebooks.Codes)]
        if rough:
            raise UndefinedError(f"{rough[0]} is discrete, and moves follow a gradient")
        try:
            self.maps: dict[str, Any] = {name: biject_to(laws[name].support) for name in codes.names}
        except NotImplementedError as error:
            raise UndefinedError(f"the support of {codes.names} has no free coordinates") from error
        self.shapes = {n: torch.Size(self.maps[n].inverse_shape(laws[n].event_shape)) for n in codes.names}
        self.slope = Traced(lambda u, beta: self._slope(u, beta), mode)

    def start(self) -> Tensor:
        """U of draws from the prior, [rows, width]."""
        z = self.codes.draw_prior(self.count, self.rows)
        return torch.cat([self.maps[name].inv(value).reshape(self.count, -1) for name, value in z.items()], 1)

    def check(self) -> None:
        """Refuse a prior without a density, beside whose points everything is impossible."""
        prior, _ = self.densities(self.start() + 1e-3)
        if bool((prior == -torch.inf).all()):
            raise UndefinedError("the prior is a set of points, and moves follow a gradient")

    def densities(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Log p(z) with the Jacobian of T, and log p(x | z), [rows] each."""
        z, log_jacobian = self._constrained(u)
        prior = self.codes.prior(z, self.rows)
        rows = replace(self.rows, values={**self.rows.values, **z})
        joint = self.codes.model.log_weights(rows, 1)[0]
        return prior + log_jacobian, joint - prior

    def _constrained(self, u: Tensor) -> tuple[Code, Any]:
        z: Code = {}
        log_jacobian: Any = 0.0
        parts = u.split([shape.numel() for shape in self.shapes.values()], 1)
        for (name, shape), part in zip(self.shapes.items(), parts, strict=True):
            free = part.reshape(len(u), *shape)
            z[name] = self.maps[name](free)
            log_jacobian = log_jacobian + self.maps[name].log_abs_det_jacobian(free, z[name]).reshape(len(u), -1).sum(1)
        return z, log_jacobian

    def _slope(self, u: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with differentiable():
            at = u.detach().requires_grad_(True)
            prior, likelihood = self.densities(at)
            target = prior + beta * likelihood
            (slope,) = torch.autograd.grad(target.sum(), at)
        return target.detach(), likelihood.detach(), slope


def _move(path: Path, u: Tensor, beta: Tensor, length: Tensor, leapfrog: int) -> tuple[Tensor, Tensor]:
    """One Hamiltonian move of every row; the new u, and the probability with which it was accepted."""
    momentum = torch.randn_like(u)
    before, _, slope = path.slope(u, beta)
    energy, new, p = before - 0.5 * momentum.square().sum(1), u, momentum
    for _ in range(leapfrog):
        p = p + 0.5 * length * slope
        new = new + length * p
        after, _, slope = path.slope(new, beta)
        p = p + 0.5 * length * slope
    change = after - 0.5 * p.square().sum(1) - energy
    chance = change.nan_to_num(-torch.inf, torch.inf, -torch.inf).clamp_max(0).exp()
    return torch.where((torch.rand_like(chance) < chance)[:, None], new, u), chance


def _tuned(path: Path, betas: Tensor, leapfrog: int, update: Callable[[int], None]) -> list[Tensor]:
    """Length of the steps at every temperature, [rows, 1] each; all chains of a datum share theirs."""
    u, n = path.start(), path.codes.n
    length = u.new_full((n,), 0.5)
    found = []
    for beta in betas[1:].to(u):
        u, chance = _move(path, u, beta, length.repeat(path.count // n)[:, None], leapfrog)
        length = length * (GAIN * (chance.reshape(-1, n).mean(0) - ACCEPT)).exp()
        found.append(length.repeat(path.count // n)[:, None])
        update(len(found))
    return found


def _run(path: Path, betas: Tensor, leapfrog: int, lengths: list[Tensor], update: Callable[[int], None]) -> Tensor:
    """Log weights of all chains, [rows] in float64."""
    u = path.start()
    log_w = torch.zeros(path.count, dtype=torch.float64, device=u.device)
    ways = betas.to(u)
    for t, length in enumerate(lengths):
        likelihood = path.slope(u, ways[t])[1]
        log_w += (ways[t + 1] - ways[t]).double() * likelihood.double()
        u, _ = _move(path, u, ways[t + 1], length, leapfrog)
        update(t + 1)
    if not bool(log_w.isfinite().any()):
        raise UndefinedError(f"all {math.prod(log_w.shape)} chains ended where the density is zero")
    return log_w
