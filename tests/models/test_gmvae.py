"""The mixture VAE: its bound with the cluster summed out, and the clusters that it finds."""

import itertools

import pyro.distributions as dist
import pytest
import torch
from torch.testing import assert_close

import ppl_vae as pv


def clusters(n, seed):
    """Three kinds of binary data of 12 pixels, each with noise of its own, and their kinds."""
    generator = torch.Generator().manual_seed(seed)
    kinds = torch.eye(3).repeat_interleave(4, 1) * 0.9 + 0.05
    label = torch.randint(3, (n,), generator=generator)
    return torch.bernoulli(kinds[label], generator=generator), label


def nets():
    torch.manual_seed(0)
    return pv.nets.mlp_encoder(12, 16, 2), pv.nets.mlp_decoder(2, 16, 12)


@pytest.fixture(scope="module")
def fit():
    """Two stages: a VAE, EM on its codes, and both together from there."""
    x, _ = clusters(300, 1)
    torch.manual_seed(0)
    vae = pv.SVI(20, 50, pv.adam(1e-2), beta=0.3, compile="trace", progress=False).fit(pv.models.VAE(*nets()), x).model
    em = pv.EM(n_init=2, progress=False).fit(pv.models.GaussianMixture(3, 2, "diagonal"), vae.posterior(x).mean)
    model = pv.models.GMVAE(vae.encoder, vae.decoder, 3)
    engine = pv.SVI(8, 50, pv.adam(3e-3), start=em.parameters, compile="trace", progress=False)
    return engine.fit(model, x)


def test_the_cluster_is_summed_out_of_the_bound():
    model, (x, _) = pv.models.GMVAE(*nets(), 3).eval(), clusters(10, 3)
    with torch.no_grad():
        model.components.loc = torch.randn(3, 2)
        torch.manual_seed(2)
        found = model.elbo(x)
        torch.manual_seed(2)
        q = model.q_z(x)
        z = q.rsample()
        p = dist.MixtureSameFamily(model.mixing(), model.components(torch.arange(3)))
        expected = p.log_prob(z) + dist.Bernoulli(logits=model.decoder(z)).log_prob(x).sum(1) - q.log_prob(z)
    assert_close(found, expected)


def test_the_clusters_are_found(fit):
    x, label = clusters(200, 2)
    r = fit.responsibilities(x)
    assert_close(r.sum(1), torch.ones(200))
    found = r.argmax(1)
    right = max((torch.tensor(p)[found] == label).double().mean().item() for p in itertools.permutations(range(3)))
    assert right > 0.9
    assert fit.sample(5).shape == (5, 12)


def test_the_bound_gains_over_the_start(fit):
    trace = fit.trace["bound"]
    assert trace[-1] > trace[0]
    x, _ = clusters(100, 4)
    gap = fit.log_prob(x, 200) - fit.elbo(x, 20)
    assert gap.mean() > -4 * gap.std() / 10


def test_clusters_that_start_at_random_move_apart():
    """Equal components would get equal gradients, and stay one."""
    x, _ = clusters(100, 5)
    model = pv.models.GMVAE(*nets(), 3)
    trained = pv.SVI(3, 50, pv.adam(1e-2), compile="off", progress=False).fit(model, x)
    moves = trained.model.components.loc - model.components.loc
    assert torch.linalg.matrix_rank((moves - moves.mean(0)).detach(), atol=1e-4) == 2
