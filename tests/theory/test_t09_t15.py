"""T9, T10 and T15: EM's two steps, its closed form, and the VAE whose answer is probabilistic PCA."""

import pytest
import torch

import ppl_vae as pv
from ppl_vae.infer.expectation import Plan, added
from ppl_vae.infer.mstep import Maximizer, Posterior, each_chunk
from ppl_vae.infer.parts import make_parts


def test_t09_likelihood_gains_at_least_what_q_gains():
    """log p(X | theta') - log p(X | theta) >= Q(theta'; theta) - Q(theta; theta) >= 0 at every iteration."""
    x = pv.data.faithful().values
    model = pv.models.GaussianMixture(3, 2).double()
    parts = make_parts(model, x, None)
    maximizer = Maximizer(model, "ml", frozen=())
    torch.manual_seed(3)
    values = model.family_defaults()
    values["components.loc"] = x[torch.randperm(272)[:3]].clone()

    def e_step(values):
        with model.bind(values):
            plan = Plan(model, parts.obs)
            e = added(plan.expect(chunk) for chunk in each_chunk(parts))
            return e.log_prob, plan.finish(e), Posterior(model, values, moving=list(model.parameters()))

    def expected(r):
        return sum(maximizer.expected_log_joint(parts, r))

    with torch.no_grad():
        log_prob, sums, r = e_step(values)
        for _ in range(15):
            fresh = maximizer.closed_forms(sums, values)
            with model.bind(values):
                q_before = expected(r)
            with model.bind(fresh):
                gain_of_q = expected(r) - q_before
            before, values = log_prob, fresh
            log_prob, sums, r = e_step(values)
            assert gain_of_q >= -1e-9
            assert log_prob - before >= gain_of_q - 1e-9


def test_t10_univariate_closed_form_by_hand():
    """One iteration of a univariate mixture against the formulas written out in plain tensors."""
    x = pv.data.faithful().values[:, 0]
    w, m, v = torch.tensor([0.3, 0.7]), torch.tensor([2.0, 4.0]), torch.tensor([0.2, 0.5])
    w, m, v = w.double(), m.double(), v.double()
    density = w * torch.exp(-((x[:, None] - m) ** 2) / (2 * v)) / (2 * torch.pi * v).sqrt()
    r = density / density.sum(1, keepdim=True)
    count = r.sum(0)
    mean = (r * x[:, None]).sum(0) / count
    variance = (r * (x[:, None] - mean) ** 2).sum(0) / count
    start = {"mixing.probs": w, "components.loc": m[:, None], "components.covariance": v[:, None, None]}
    fit = pv.EM(start=start, max_iter=2, tol=0, progress=False).fit(pv.models.GaussianMixture(2, 1), x)
    torch.testing.assert_close(fit.parameters["mixing.probs"], count / len(x), rtol=1e-10, atol=0)
    torch.testing.assert_close(fit.parameters["components.loc"][:, 0], mean, rtol=1e-10, atol=0)
    torch.testing.assert_close(fit.parameters["components.covariance"][:, 0, 0], variance, rtol=1e-10, atol=0)
    assert torch.equal(fit.labels(x), fit.responsibilities(x).argmax(1))


def test_t15_linear_decoder_reaches_probabilistic_pca():
    """The maximum of probabilistic PCA, in closed form from the eigenvalues, is reached by the linear VAE."""
    n, d, k = 300, 5, 2
    truth = torch.randn(d, k, dtype=torch.float64) @ torch.diag(torch.tensor([2.0, 1.0]).double())
    x = torch.randn(n, k, dtype=torch.float64) @ truth.T + 0.5 * torch.randn(n, d, dtype=torch.float64)
    x = x - x.mean(0)
    covariance = x.T @ x / n
    eigenvalues = torch.linalg.eigvalsh(covariance).flip(0)
    noise = eigenvalues[k:].mean()
    log_det = eigenvalues[:k].log().sum() + (d - k) * noise.log()
    best = -0.5 * (d * torch.log(torch.tensor(2 * torch.pi)) + log_det + d).item()

    torch.manual_seed(0)
    vae = pv.models.VAE(pv.nets.linear_encoder(d, k), pv.nets.linear_decoder(k, d), "gaussian-learned")
    engine = pv.SVI(2500, optimizer=pv.adam(3e-2), objective=pv.elbo(4, kl="analytic"), progress=False)
    fit = engine.fit(vae, x)
    w, s = fit.model.decoder.weight, fit.model.likelihood.scale
    marginal = w @ w.T + s**2 * torch.eye(d, dtype=torch.float64)
    reached = torch.distributions.MultivariateNormal(fit.model.decoder.bias, marginal).log_prob(x).mean().item()
    assert best - 0.02 < reached <= best + 1e-9
    # The decoder can rotate until a diagonal q is exact, so the bound is tight as well.
    assert fit.elbo(x, 50).mean().item() == pytest.approx(reached, abs=0.02)
    assert s.item() == pytest.approx(noise.sqrt().item(), rel=0.03)


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian", "gaussian-learned", "gaussian-network"])
def test_t15_every_decoder_trains(likelihood):
    x = (torch.randn(200, 1) @ torch.randn(1, 6) + 0.3 * torch.randn(200, 6)).float()
    x = (x > 0).float() if likelihood == "bernoulli" else x
    width = 2 if likelihood == "gaussian-network" else 1
    vae = pv.models.VAE(pv.nets.mlp_encoder(6, 16, 2), pv.nets.mlp_decoder(2, 16, 6 * width), likelihood)
    fit = pv.SVI(60, batch_size=50, optimizer=pv.adam(1e-2), progress=False).fit(vae, x)
    bound = fit.trace["bound"]
    assert bound[-10:].mean() > bound[:3].mean() + 0.2
    assert fit.status.code == "finished"
