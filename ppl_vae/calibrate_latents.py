"""Calibration of q(z | x): whether it covers the latents that made the data."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppl_vae.calibration import Calibration
from ppl_vae.errors import EngineError, check_seed
from ppl_vae.fit import check_fit
from ppl_vae.infer.random_state import own_random

__all__ = ["calibrate_latents"]


def calibrate_latents(fit: Any, n: int = 1000, num_draws: int = 1000, seed: int = 0, **inputs: Tensor) -> Calibration:
    r"""Calibration of q(z | x) on data that the fitted model made itself (Yao et al. 2018).

    With :math:`z \sim p(z),\; x \sim p(x | z)` the probability that q gives to values below z is uniform in every unit
    where q(z | x) is the posterior; asymmetry around 1/2 is a bias of q, a U-shape a q that is too narrow.

    Parameters
    ----------
    fit : Fit
        With an amortised posterior, such as a VAE's.
    n : int
        Simulated data.
    num_draws : int
        Draws of q, where its distribution function is not known.
    seed : int
        Seed of the simulated data.
    **inputs : Tensor
        Values [n, ...] of the model's inputs.

    Returns
    -------
    Calibration
        `u` are the probabilities that q gives to values below z, [n, unit]; `names` are the units', such as z[0].

    Raises
    ------
    EngineError
        If it is no fit, has many draws of its parameters, or no continuous latent.

    References
    ----------
    Yao, Vehtari, Simpson and Gelman (2018), "Yes, but did it work? Evaluating variational inference".

    Examples
    --------
    >>> import torch, ppl_vae as pv
    >>> net = pv.nets.linear_encoder(3, 1), pv.nets.linear_decoder(1, 3)
    >>> fit = pv.SVI(1, progress=False).fit(pv.models.VAE(*net, "gaussian"), torch.zeros(4, 3))
    >>> pv.calibrate_latents(fit, n=50).names
    ('z[0]',)
    """
    check_fit("calibrate_latents", fit)
    if not fit.is_point:
        raise EngineError("calibrate_latents needs one value of the parameters, and this fit has many draws of them")
    model = fit.model
    observed = [node.name for node in model.local_nodes() if node.kind == "observed"]
    with own_random(check_seed(seed), [model.like.device]), torch.no_grad(), model.bind(fit.draw(0)):
        joint = model.sample_joint(n, **inputs)
        data = {**{name: joint[name] for name in observed}, **inputs}
        latents = model.draws_latents(model.check(data))
        if not latents:
            raise EngineError(f"{type(model).__name__} has no continuous latent: its posterior is exact")
        found = model.posterior(data)
        laws = found if isinstance(found, dict) else {latents[0]: found}
        u = {name: _below(laws[name], joint[name], num_draws).cpu().numpy() for name in latents}
    units = {
        f"{name}[{', '.join(map(str, index))}]" if index else name: value[(slice(None), *index)]
        for name, value in u.items()
        for index in np.ndindex(value.shape[1:])
    }
    columns = np.stack(list(units.values()), 1).astype(np.float64)
    return Calibration(tuple(units), columns, kind=f"q(z | x) of {type(model).__name__}", asymmetry=True)


def _below(q: Any, z: Tensor, num_draws: int) -> Tensor:
    """The probability that q gives to values of each unit below z, [n, *event]."""
    base = q
    while isinstance(base, torch.distributions.Independent):
        base = base.base_dist
    try:
        return base.cdf(z).double()
    except NotImplementedError:
        draws = q.sample((num_draws,))
    below, equal = (draws < z).sum(0), (draws == z).sum(0)
    return (below + torch.rand(z.shape, device=z.device) * (equal + 1)).double() / (num_draws + 1)
