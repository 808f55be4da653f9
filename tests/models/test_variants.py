"""Variants of the VAE: scales from padded batches, a q for every datum, several layers, labels."""

import pytest
import torch

import ppl_vae as pv
from ppl_vae.infer.ascent import ModelObjective
from ppl_vae.infer.batches import make_batches
from ppl_vae.infer.step import Step

# The optimal scale of weighted rows


def optimal_vae():
    """A VAE whose decoder ignores z, so that its errors are known."""
    torch.manual_seed(0)
    vae = pv.models.VAE(pv.nets.mlp_encoder(3, 4, 2), pv.nets.linear_decoder(2, 3), "gaussian-optimal").double()
    torch.nn.init.zeros_(vae.decoder.weight)
    torch.nn.init.constant_(vae.decoder.bias, 0.5)
    return vae.train()


@pytest.mark.parametrize("mode", ["off", "trace"])
@pytest.mark.parametrize("particles", [1, 3])
def test_the_optimal_scale_does_not_see_the_rows_that_fill_a_batch(mode, particles):
    vae, x = optimal_vae(), torch.randn(5, 3, dtype=torch.float64)
    batches = make_batches(vae, x, batch_size=3, shuffle=False)
    last = list(batches.epoch(0))[-1]
    assert last.weights.tolist() == [1.0, 1.0, 0.0]
    step = Step(ModelObjective(vae, pv.elbo(particles), 1.0), None, mode)
    step.gradient(last)
    squares = (x[3:] - 0.5).square()
    assert vae.likelihood.variance.item() == pytest.approx(squares.mean().item(), rel=1e-12)


def test_the_optimal_scale_counts_rows_by_their_weights_and_gaps_not_at_all():
    vae, x = optimal_vae(), torch.randn(4, 3, dtype=torch.float64)
    x[0, 1] = torch.nan
    w = torch.tensor([2.0, 0.0, 1.0, 0.5], dtype=torch.float64)
    (batch,) = make_batches(vae, x, w, shuffle=False).epoch(0)
    Step(ModelObjective(vae, pv.elbo(), 1.0), None, "trace").gradient(batch)
    squares = (x - 0.5).square()
    seen = (~x.isnan()).double() * w[:, None]
    expected = (seen * squares.nan_to_num()).sum() / seen.sum()
    assert vae.likelihood.variance.item() == pytest.approx(expected.item(), rel=1e-12)


def test_a_batch_without_weight_leaves_the_optimal_scale_as_it_is():
    likelihood = pv.likelihoods.GaussianOptimal()
    p = likelihood(torch.zeros(2, 3)).weigh(torch.zeros(2))
    assert bool(p.log_prob(torch.full((2, 3), 7.0)).isfinite().all())
    assert likelihood.variance.item() == 1.0
