"""The two-stage prior: after training, a mixture fitted by EM to the codes takes the place of p(z)."""

from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ppl_vae.alone import forked_rng
from ppl_vae.errors import EngineError
from ppl_vae.fit import Fit
from ppl_vae.infer import EM
from ppl_vae.infer.weights import own_weights
from ppl_vae.models import GaussianMixture
from ppl_vae.models.vae import takes_prior
from ppl_vae.priors import Mixture

__all__ = ["refit_prior", "with_prior"]


def refit_prior(
    fit: Fit,
    data: Any,
    n_components: int,
    draws: int = 1,
    em: EM | None = None,
    seed: int = 0,
    weights: Any = None,
) -> Fit:
    """Replace the prior of a trained VAE by a mixture of normals fitted to its aggregate posterior q(z) = E_x q(z | x).

    With encoder and decoder held fixed the bound depends on the prior through E_q(z) log p(z) alone, and that is the
    likelihood of a mixture of codes drawn from q(z | x): a problem for EM, without a gradient. What it gains is what
    KL(q(z) || p(z)) loses: the prior's holes, where the decoder has never been, are no longer sampled.

    Parameters
    ----------
    fit : Fit
        Of a `models.VAE` or `models.DeepLatentVariableModel`; it is not changed.
    data : Tensor or mapping
        What it was trained on: held-out data would no longer be held out.
    n_components : int
        K of the mixture, with full covariances and their weak prior.
    draws : int
        Codes drawn for each datum.
    em : EM, optional
        The engine; three starts by default.
    seed : int
        Of the draws, and of the default engine.
    weights : Tensor, optional
        [n], datum i counts w_i times, as in the fit; those of the fit by default, where the data are its own.

    Returns
    -------
    Fit
        The same fit, its model's `prior` being a `priors.Mixture` and its trace still that of the training. To load it
        from a file, give `Fit.load` a VAE with `prior=priors.Mixture(n_components, latent_dim)`.

    Raises
    ------
    EngineError
        If z is not drawn from the model's `prior`.

    References
    ----------
    Ghosh, Sajjadi, Vergari, Black and Schoelkopf (2020). From variational to deterministic autoencoders. ICLR,
    section 4.

    Examples
    --------
    >>> import torch, ppl_vae as pv
    >>> x = (torch.rand(100, 4) < 0.5).float()
    >>> vae = pv.models.VAE(pv.nets.mlp_encoder(4, 8, 2), pv.nets.mlp_decoder(2, 8, 4))
    >>> fit = pv.SVI(epochs=2, progress=False).fit(vae, x)
    >>> pv.refit_prior(fit, x, n_components=3).model.z().event_shape
    torch.Size([2])
    """
    if not takes_prior(fit.model):
        raise EngineError(
            "refit_prior replaces the module `prior` of a models.VAE or models.DeepLatentVariableModel, from which z "
            f"is drawn; {type(fit.model).__name__} declares a z of its own, or none. Make it a subclass of models.VAE "
            "with that law as prior=, and leave z as it is"
        )
    obs = fit.model.check(data)
    z, w = _codes(fit, obs, draws, seed), own_weights(fit, obs, weights)
    engine = em or EM(n_init=3, seed=seed, progress=False)
    mixture = GaussianMixture(n_components, z.shape[1], prior="weak")
    found = engine.fit(mixture, z, weights=None if w is None else w.repeat(draws))
    p = found.parameters
    with forked_rng():
        prior = Mixture.of(p["mixing.probs"], p["components.loc"], p["components.covariance"])
    return with_prior(fit, prior, f"prior refitted as a mixture of {n_components} on {len(z)} codes, EM {found.status}")


def with_prior(fit: Fit, prior: nn.Module, note: str) -> Fit:
    """The same fit with another prior, which stays as it is, and a note that says so."""
    model = deepcopy(fit.model)
    model.prior = prior.to(model.like).eval().requires_grad_(False)
    return replace(fit, model=model, status=replace(fit.status, notes=(*fit.status.notes, note)))


def _codes(fit: Fit, data: Any, draws: int, seed: int) -> Tensor:
    """Draws of q(z | x), [draws * n, k], in float64 on the CPU."""
    with fit.model.aside(seed), torch.no_grad(), fit.model.numeric():
        q = fit.posterior(data)
        q = q["z"] if isinstance(q, dict) else q
        return q.sample((draws,)).flatten(0, 1).double().cpu()
