"""Networks under two names, and data that are parts of larger tensors: every way of running is the same."""

import pyro.distributions as dist
import pytest
import torch
from torch import nn

import ppl_vae as pv
from ppl_vae import latent, observed


class Decoder(nn.Module):
    def __init__(self, first):
        super().__init__()
        self.first, self.out = first, nn.Linear(2, 6)

    def forward(self, z):
        return self.out(z) + z @ self.first.weight[:2]


class Tied(pv.LatentVariableModel):
    """An autoencoder whose decoder holds the encoder's first layer."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
        self.decoder = Decoder(self.encoder[0])

    @latent
    def z(self):
        return dist.Normal(torch.zeros(2), 1.0).to_event(1)

    @z.posterior
    def q(self, x):
        loc, log_scale = self.encoder(x.flatten(1)).chunk(2, -1)
        return dist.Normal(loc, log_scale.exp()).to_event(1)

    @observed
    def x(self, z):
        return dist.Normal(self.decoder(z).reshape(-1, 2, 3), 1.0).to_event(2)


def tied():
    torch.manual_seed(0)
    return Tied()


def by_hand(x, steps):
    """Adam on the bound at one draw, written out."""
    model, found = tied(), []
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for i in range(steps):
        torch.manual_seed(i)
        q = model.q_law(x)
        z = q.rsample()
        log_p = dist.Normal(model.decoder(z).reshape(-1, 2, 3), 1.0).log_prob(x).sum((1, 2))
        bound = (log_p + dist.Normal(0.0, 1.0).log_prob(z).sum(1) - q.log_prob(z).sum(1)).mean()
        optimizer.zero_grad()
        (-bound).backward()
        optimizer.step()
        found.append(bound.item())
    return model, found


def q_law(self, x):
    loc, log_scale = self.encoder(x.flatten(1)).chunk(2, -1)
    return torch.distributions.Normal(loc, log_scale.exp())


Tied.q_law = q_law


@pytest.mark.parametrize("mode", ["off", "trace"])
def test_a_network_under_two_names_is_trained_as_by_hand(mode):
    torch.manual_seed(1)
    x = torch.randn(16, 2, 3)
    expected, bounds = by_hand(x, 5)
    model = tied()
    own = dict(model.named_parameters())
    step, found = pv.svi_step(model, pv.adam(0.01), compile=mode), []
    for i in range(5):
        torch.manual_seed(i)
        found.append(step(x).item())
    assert found == pytest.approx(bounds, abs=1e-4)
    for (name, p), (_, q) in zip(model.named_parameters(), expected.named_parameters(), strict=True):
        assert p is own[name]
        torch.testing.assert_close(p, q, atol=1e-5, rtol=1e-4)
    assert model.decoder.first is model.encoder[0]


PARTS = {
    "permuted": lambda: torch.randn(40, 3, 2).permute(0, 2, 1),
    "sliced": lambda: torch.randn(40, 2, 5)[:, :, :3],
    "every second": lambda: torch.randn(80, 2, 3)[::2],
}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("way", ["whole", "batches", "list", "step"])
def test_parts_of_a_larger_tensor_are_data_like_others(part, way):
    torch.manual_seed(2)
    x, found = PARTS[part](), []
    for data, mode in ((x, "trace"), (x, "off"), (x.contiguous(), "off")):
        torch.manual_seed(3)
        if way == "step":
            step = pv.svi_step(tied(), pv.sgd(1e-3), compile=mode)
            found.append([step(rows).item() for rows in data.split(20)])
        else:
            given = list(data.split(20)) if way == "list" else data
            size = 20 if way == "batches" else None
            engine = pv.SVI(2, batch_size=size, optimizer=pv.sgd(1e-3), compile=mode, progress=False)
            found.append(engine.fit(tied(), given).trace["bound"].tolist())
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    assert found[2] == pytest.approx(found[1], rel=1e-5)


class Location(pv.LatentVariableModel):
    """p(m) = N(0, 1), p(x | m) = N(m, 1) of the mean of x's entries, which are looked at in one row."""

    @latent(shared=True)
    def m(self):
        return dist.Normal(0.0, 1.0)

    @observed
    def x(self, m):
        return dist.Normal(m.reshape(1).expand(6).view(2, 3), 1.0).to_event(2)


@pytest.mark.parametrize("sampler", ["nutpie", "pyro"])
def test_nuts_takes_parts_of_a_larger_tensor(sampler):
    """The posterior is N(6 n xbar / (6 n + 1), 1 / (6 n + 1))."""
    torch.manual_seed(4)
    x = torch.randn(20, 2, 5, dtype=torch.float64)[:, :, :3]
    fit = pv.NUTS(300, warmup=200, num_chains=1, sampler=sampler, progress=False).fit(Location(), x)
    exact, spread = x.sum().item() / 121, 121**-0.5
    assert fit.draws["m"].mean().item() == pytest.approx(exact, abs=0.4 * spread)
