"""How often each value of a discrete latent is used: the codes of a codebook, the values of a finite latent."""

from typing import Any

import torch
from torch import Tensor

from ppl_vae.codebooks import Quantized
from ppl_vae.declare.local import local_q
from ppl_vae.diagnose.codes import Codes

__all__ = ["code_shares"]


def code_shares(fit: Any, data: Any) -> dict[str, Tensor]:
    """Shares of the values of each discrete latent in data, [K] by the latent's name; none where all are continuous.

    Codes of a codebook are counted over all positions. Of a finite latent it is the mean of its responsibilities.

    Parameters
    ----------
    fit : Fit
        Of a declared model; at the first of its draws.
    data : Tensor, array or mapping
        n rows.

    Examples
    --------
    >>> import ppl_vae as pv
    >>> x = (torch.rand(20, 4) < 0.5).float()
    >>> model = pv.models.CategoricalVAE(pv.nets.mlp_decoder(4, 8, 3), pv.nets.mlp_decoder(3, 8, 4), categories=3)
    >>> shares = code_shares(pv.SVI(1, progress=False).fit(model, x), x)
    >>> shares["z"].shape, round(shares["z"].sum().item(), 5)
    (torch.Size([3]), 1.0)
    """
    model = fit.model
    with model.aside(fit.seed), model.bind(fit.draw(0)), model.numeric(), torch.no_grad():
        obs = model.check(data)
        return {**_of_codebooks(model, obs), **_of_finite(model, obs)}


def _of_codebooks(model: Any, obs: Any) -> dict[str, Tensor]:
    if not model.draws_latents(obs):
        return {}
    with local_q(model, obs):
        found = {name: q for name, q in Codes(model, obs).q.items() if isinstance(q, Quantized)}
    counts = {name: torch.bincount(q.index.flatten(), minlength=q.book.n_codes) for name, q in found.items()}
    return {name: count.double() / count.sum() for name, count in counts.items()}


def _of_finite(model: Any, obs: Any) -> dict[str, Tensor]:
    finite = model.finite_latents(obs)
    if not finite:
        return {}
    r = model.responsibilities(obs)
    by_name = r if isinstance(r, dict) else {finite[0]: r}
    return {name: p.double().mean(0) for name, p in by_name.items() if p.dim() == 2}
