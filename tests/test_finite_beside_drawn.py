"""What is said of a finite latent that has a declared posterior beside one that is drawn: it is that posterior."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from example_models import numbers

import ppl_vae as pv
from ppl_vae import latent, observed
from ppl_vae.over_classes import OverClasses

D, S = 12, 0.5
W = numbers(D, D, seed=1)
M = torch.stack([torch.zeros(D).double(), torch.full((D,), 0.9).double()])
PRECISION = torch.eye(D).double() + W.T @ W / S**2
GAIN = torch.linalg.solve(PRECISION, W.T) / S**2
MARGINAL = W @ W.T + S**2 * torch.eye(D).double()


def log_lik(a):
    """log p(a | y = k), [n, 2]: z integrated out."""
    return torch.stack([dist.MultivariateNormal(m, MARGINAL).log_prob(a) for m in M], -1)


class Labelled(pv.LatentVariableModel):
    """Factor analysis with a class, whose q(y | a) is exact, and whose q(z | a, y) is the best of independent units."""

    def __init__(self):
        super().__init__()
        self.level = torch.nn.Parameter(torch.tensor(5.0))

    @latent
    def y(self):
        return dist.Categorical(torch.ones(2))

    @latent
    def z(self):
        return dist.Normal(torch.zeros(D), 1.0).to_event(1)

    @y.posterior
    def q_y(self, a):
        return dist.Categorical(logits=log_lik(a))

    @z.posterior
    def q_z(self, a, y):
        return dist.Normal((a - M[y.long()]) @ GAIN.T, PRECISION.diagonal().rsqrt()).to_event(1)

    @observed
    def a(self, z, y):
        return dist.Normal(z @ W.T + M[y.long()], S).to_event(1)

    @observed
    def b(self, y):
        return dist.Normal(self.level * y, 1.0)


N = 60
LABEL = torch.arange(N) % 2
A = numbers(N, D, seed=2) @ W.T + M[LABEL] + S * numbers(N, D, seed=3)
UNKNOWN = torch.full((N,), torch.nan).double()
DATA = {"a": A, "b": UNKNOWN, "y": UNKNOWN}
R = torch.softmax(log_lik(A), -1)


def test_the_classes_are_unsure_enough_to_tell_weights_apart():
    assert (R.amax(-1) < 0.95).double().mean() > 0.1
    assert (R.amax(-1) > 0.95).any()


def test_responsibilities_are_the_declared_posterior_whatever_is_drawn():
    model = Labelled().double()
    torch.testing.assert_close(model.responsibilities(DATA, 2), R)
    fit = pv.SVI(1, progress=False).fit(model, DATA)
    torch.testing.assert_close(fit.responsibilities(DATA, num_particles=3), R)
    assert torch.equal(fit.labels(DATA), R.argmax(-1))
    torch.testing.assert_close(fit.posterior(DATA)["y"].probs, R)


def test_known_labels_stay_what_they_are():
    half = torch.where(torch.arange(N) < 30, LABEL.double(), torch.nan)
    r = Labelled().double().responsibilities({**DATA, "y": half})
    torch.testing.assert_close(r[:30], torch.nn.functional.one_hot(LABEL[:30], 2).double())
    torch.testing.assert_close(r[30:], R[30:])


def test_means_are_weighed_by_that_posterior():
    model = Labelled().double()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.testing.assert_close(model.impute(DATA, 2)["b"].detach(), 5 * R[:, 1])
        found = model.reconstruct(DATA, 4000)["a"]
    by_class = torch.stack([(A - m) @ GAIN.T @ W.T + m for m in M])
    exact = torch.einsum("nk,knd->nd", R, by_class)
    # The spread of q times W over the root of the draws, six standard errors of 720 numbers.
    se = ((W**2) @ (1 / PRECISION.diagonal()) / 4000).sqrt()
    assert ((found - exact).abs() < 6 * se).all()


def test_the_posterior_of_the_drawn_latent_is_a_mixture_over_classes():
    q = Labelled().double().posterior(DATA)["z"]
    assert isinstance(q, OverClasses)
    assert (q.batch_shape, q.event_shape) == ((N,), (D,))
    each = [dist.Normal((A - m) @ GAIN.T, PRECISION.diagonal().rsqrt()).to_event(1) for m in M]
    together = dist.MixtureSameFamily(
        dist.Categorical(R),
        dist.Normal(torch.stack([e.mean for e in each], 1), PRECISION.diagonal().rsqrt()).to_event(1),
    )
    z = numbers(3, N, D, seed=4)
    torch.testing.assert_close(q.log_prob(z), together.log_prob(z))
    torch.testing.assert_close(q.log_prob(z[0]), together.log_prob(z[0]))
    torch.testing.assert_close(q.mean, together.mean)
    torch.testing.assert_close(q.variance, together.variance)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = q.sample((4000,))
    assert drawn.shape == (4000, N, D)
    se = (together.variance / 4000).sqrt()
    assert ((drawn.mean(0) - together.mean).abs() < 6 * se).all()
    assert q.sample().shape == (N, D)


def test_two_classes_and_a_draw_of_each_are_summed_over_both():
    law = dist.Normal(numbers(2, 3, 5), 1.0)
    r = torch.softmax(numbers(6, 5, seed=1), 0).reshape(2, 3, 5)
    q, x = OverClasses(law, r), numbers(5, seed=2)
    torch.testing.assert_close(q.log_prob(x[0]), q.log_prob(x[:1].expand(5)))
    torch.testing.assert_close(q.log_prob(x), torch.logsumexp((law.log_prob(x) + r.log()).flatten(0, 1), 0))
    torch.testing.assert_close(q.mean, (r * law.mean).sum((0, 1)))
    assert q.sample((7, 2)).shape == (7, 2, 5)


def test_a_posterior_that_knows_no_draw_is_asked_once():
    rows = []

    class Counting(Labelled):
        @observed
        def a(self, z, y):
            rows.append(z.shape[-2])
            return dist.Normal(z @ W.T + M[y.long()], S).to_event(1)

    Counting().double().responsibilities(DATA)
    assert max(rows) == N


def test_a_class_that_p_excludes_and_q_does_not_is_no_nan():
    class Excluded(Labelled):
        @observed
        def b(self, y):
            return dist.Categorical(
                logits=torch.where(y[..., None] == 1, torch.tensor([0.0, -torch.inf]), torch.zeros(2))
            )

    data = {"a": A, "b": torch.ones(N), "y": UNKNOWN}
    model = Excluded().double()
    torch.testing.assert_close(model.responsibilities(data), R)
    assert not model.reconstruct(data, 2)["a"].isnan().any()


@pytest.mark.parametrize("num_particles", [1, 400])
def test_classes_of_a_pair_with_drawn_latents_take_many_draws(num_particles):
    """p(y | x) of a Pyro pair, y summed out beside a drawn z: the guide is the prior, so that one draw says little."""
    x = torch.tensor([0.0, 1.0, 3.0])

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            y = pyro.sample("y", dist.Categorical(torch.ones(2)), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(z + 3.0 * y, 0.5), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("loc", torch.zeros(())), 1.0))

    exact = torch.stack([dist.Normal(3.0 * k, 1.25**0.5).log_prob(x) for k in range(2)], -1).softmax(-1)
    fit = pv.SVI(1, progress=False).fit((model, guide), x)
    pyro.clear_param_store()
    # Weights of draws from the prior: 400 are worth about 100, so 0.05 is a standard error at most.
    close = torch.allclose(fit.responsibilities(x, num_particles).float(), exact, atol=0.15)
    assert close == (num_particles == 400)
