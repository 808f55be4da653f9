"""The two-stage VQ-VAE: after training, a law fitted to its codes takes the place of the uniform prior."""

from typing import Any

from torch import nn

from ppl_vae.errors import EngineError
from ppl_vae.fit import Fit
from ppl_vae.infer import SVI, adam
from ppl_vae.infer.weights import own_weights
from ppl_vae.models import VQVAE, CodePrior
from ppl_vae.models.vqvae import fitting
from ppl_vae.refit import with_prior

__all__ = ["refit_codes"]


def refit_codes(fit: Fit, data: Any, law: nn.Module, engine: SVI | None = None, weights: Any = None) -> Fit:
    """Replace the uniform prior of a trained VQ-VAE's codes by a law fitted to the codes of the data.

    With encoder, decoder and codebook held fixed the bound depends on the prior through log p(c) alone, which is the
    likelihood of a model without a latent, `CodePrior`. Samples then have codes that go together.

    Parameters
    ----------
    fit : Fit
        Of a `models.VQVAE`; it is not changed.
    data : Tensor or mapping
        What it was trained on: held-out data would no longer be held out.
    law : Module
        `code_priors.Independent(P, K)` or `code_priors.Autoregressive(P, K)`.
    engine : SVI, optional
        100 epochs of batches of 128 by default.
    weights : Tensor, optional
        [n], datum i counts w_i times, as in the fit; those of the fit by default, where the data are its own.

    Returns
    -------
    Fit
        The same fit, its model's `prior` being the fitted law and its trace still that of the training. To load it from
        a file, give `Fit.load` a VQVAE with `prior=` such a law.

    Raises
    ------
    EngineError
        If the fit is not of a VQVAE.
    DeclarationError
        If the law is of other codes.

    Examples
    --------
    >>> import torch, ppl_vae as pv
    >>> encoder, decoder = pv.nets.mlp_decoder(4, 8, 4), pv.nets.mlp_decoder(4, 8, 4)
    >>> vq = pv.models.VQVAE(encoder, decoder, pv.codebooks.Learned(3, 2), positions=2)
    >>> x = torch.randn(50, 4)
    >>> fit = pv.SVI(2, progress=False).fit(vq, x)
    >>> fit = pv.refit_codes(fit, x, pv.code_priors.Independent(2, 3), pv.SVI(2, progress=False))
    >>> fit.sample(3).shape
    torch.Size([3, 4])
    """
    if not isinstance(fit.model, VQVAE):
        raise EngineError(f"refit_codes is for a fit of models.VQVAE; this is one of {type(fit.model).__name__}")
    fitting(law, fit.model.positions, fit.model.codebook.n_codes)
    obs = fit.model.check(data)
    codes = fit.model.codes(obs)
    engine = engine or SVI(100, batch_size=128, optimizer=adam(3e-3), seed=fit.seed, progress=False)
    found = engine.fit(CodePrior(law), codes, weights=own_weights(fit, obs, weights))
    return with_prior(fit, found.model.prior, f"codes' prior refitted on {len(codes)} data, SVI {found.status}")
