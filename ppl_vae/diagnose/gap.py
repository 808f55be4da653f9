"""The gap of the bound, log p(x) - L, split into what the family of q costs and what the encoder costs (T14)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_vae.alone import differentiable
from ppl_vae.diagnose.codes import Codes
from ppl_vae.diagnose.offsets import Offsets
from ppl_vae.diagnose.weights import draw_weights, weigh
from ppl_vae.evidence import Evidence, exact
from ppl_vae.infer.tracing import Traced
from ppl_vae.objectives import Elbo
from ppl_vae.progress import progress as shown

__all__ = ["LocalBound", "local_bound"]

STEPS, RATE, PARTICLES = 300, 0.05, 4
SELECT, REPORT = 256, 256
"""Draws of q per datum: to choose between the encoder's q and the one found, and to report."""


@dataclass(frozen=True)
class LocalBound:
    """The bound at the encoder's q and at the best q of its family, of each datum, [n] nats.

    Attributes
    ----------
    amortised, local : Tensor
        From the same random numbers; equal where nothing better than the encoder's q was found.
    moved : Tensor
        [n], whether something better was.
    evidence : Evidence
        log p(x_i) by the same draws of the better of the two, which they make a lower bound in the mean; never below
        `local`.
    """

    amortised: Tensor
    local: Tensor
    moved: Tensor
    evidence: Evidence


def local_bound(
    codes: Codes,
    steps: int = STEPS,
    compile: str = "trace",  # noqa: A002
    progress: bool = False,
) -> LocalBound:
    """Find each datum a q of its own, from the encoder's answer, the decoder held fixed (T14).

    The parameters of q(z | x_i) are moved in free coordinates by Adam; layers of a flow stay as they are. The encoder's
    q is kept where that found is no better in the mean of fresh draws. The bounds are means of other draws again, and
    so without bias for the q that was chosen. Where q may be any law over the values of a finite latent the best one is
    the posterior, whose bound is log p(x).

    Parameters
    ----------
    codes : Codes
        Of n data.
    steps : int
        Of Adam, each with 4 draws per datum.
    compile : {"trace", "off"}
        Whether a step runs as a graph.
    progress : bool
        Show progress.

    References
    ----------
    Cremer, Li and Duvenaud (2018). Inference suboptimality in variational autoencoders. ICML.

    Examples
    --------
    >>> import ppl_vae as pv
    >>> vae = pv.models.VAE(pv.nets.linear_encoder(3, 1), pv.nets.linear_decoder(1, 3), "gaussian")
    >>> codes = Codes(vae, vae.check(torch.zeros(4, 3)))
    >>> found = local_bound(codes, steps=20)
    >>> found.amortised.shape, found.local.shape
    (torch.Size([4]), torch.Size([4]))
    """
    if codes.any_law:
        (bound,), log_w = draw_weights(codes, 1)
        best = exact(log_w[0])
        return LocalBound(bound, best.value, best.value > bound, best)
    offsets = Offsets(codes.model, codes.obs)
    with differentiable(), codes.model.numeric():
        _climb(codes, offsets, steps, compile, progress)
    start = [torch.zeros_like(value) for value in offsets.tensors()]
    found = [value.detach() for value in offsets.tensors()]
    gain = _bound(codes, offsets, found, SELECT, seed=1)[0] - _bound(codes, offsets, start, SELECT, seed=1)[0]
    # No margin of errors: it would deny every datum a gain as small as they are, and take it for the family's gap.
    better = gain.mean(0) > 0
    amortised, first = _bound(codes, offsets, start, REPORT, seed=2)
    local, second = _bound(codes, offsets, found, REPORT, seed=2)
    bound = torch.where(better, local, amortised).mean(0)
    return LocalBound(amortised.mean(0), bound, better, weigh(torch.where(better, second, first)))


def _climb(codes: Codes, offsets: Offsets, steps: int, mode: str, progress: bool) -> None:
    rows = codes.obs.repeat(PARTICLES)
    index = torch.arange(codes.n, device=codes.model.like.device).repeat(PARTICLES)

    def gradient(*values: Tensor) -> tuple[Tensor, ...]:
        free = [value.detach().requires_grad_(True) for value in values]
        with differentiable(), offsets.applied(free):
            total = Elbo(PARTICLES)(codes.model.bound_sites(rows, index)).sum()
            return torch.autograd.grad(-total, free)

    step, tensors = Traced(gradient, mode), offsets.tensors()
    optimizer = torch.optim.Adam(tensors, RATE)
    with shown("best q of each datum", steps, progress) as update:
        for done in range(steps):
            # The draws' noise averages out only as the steps get shorter.
            optimizer.param_groups[0]["lr"] = RATE * (1 - done / steps)
            for value, slope in zip(tensors, step(*[v.detach() for v in tensors]), strict=True):
                value.grad = slope.nan_to_num(0.0, 0.0, 0.0)
            optimizer.step()
            update(done + 1, f"{codes.n} data")


def _bound(codes: Codes, offsets: Offsets, to: list[Tensor], count: int, seed: int) -> tuple[Tensor, Tensor]:
    """The bound at draws of moved q, and their log weights, [count, n] nats each."""
    with codes.model.aside(seed), offsets.applied(to):
        return draw_weights(codes, count)
