"""What a batch has, gaps or labels, counts in that batch, whatever the batches before it had."""

import math

import pyro.distributions as dist
import pytest
import torch
from test_processes import in_processes
from torch import nn
from torch.distributions import Normal
from torch.utils.data import DataLoader, Dataset, TensorDataset

import ppl_vae as pv

MODES = ["off", "trace", "inductor"]
ROWS = 12


class Centre(pv.LatentVariableModel):
    """x ~ N(m, I), a column of which may be missing."""

    def __init__(self):
        super().__init__()
        self.m = nn.Parameter(torch.tensor([0.5, -1.0]))

    @pv.observed
    def x(self):
        return dist.Normal(self.m, 1.0).to_event(1)


class Halves(pv.LatentVariableModel):
    """y ~ Categorical(0.3, 0.7), x | y ~ N(m_y, 1): labels y may be known."""

    def __init__(self):
        super().__init__()
        self.m = nn.Parameter(torch.tensor([-1.0, 2.0]))

    @pv.latent
    def y(self):
        return dist.Categorical(torch.tensor([0.3, 0.7]))

    @pv.observed
    def x(self, y):
        return dist.Normal(self.m[y], 1.0)


def rows(*gaps):
    """Twelve rows of which these miss their second number."""
    x = torch.randn(ROWS, 2, generator=torch.Generator().manual_seed(0))
    x[list(gaps), 1] = torch.nan
    return x


def gapped_density(x, m):
    """The sum over what was seen of log N(x; m, 1), for each row."""
    return Normal(m, 1.0).log_prob(x.nan_to_num()).masked_fill(x.isnan(), 0.0).sum(1)


def labelled_density(x, y, m):
    """Of each row log p(x, y) where y is known, else log p(x); y < 0 says that it is not."""
    each = torch.tensor([0.3, 0.7]).log() + Normal(m, 1.0).log_prob(x[:, None])
    known = each.gather(1, y.clamp_min(0)[:, None])[:, 0]
    return torch.where(y < 0, each.logsumexp(1), known)


SOURCES = {
    "tensor": lambda x: x,
    "loader": lambda x: DataLoader(TensorDataset(x), batch_size=4),
    "dataset": TensorDataset,
    "batches": lambda x: list(x.split(4)),
    "short last batch": lambda x: [x[:5], x[5:10], x[10:]],
    "generator": lambda x: lambda: iter(x.split(4)),
    "stream": lambda x: pv.data.stream(lambda: iter(x.split(4))),
}
LATE, EARLY = (ROWS - 1,), (0, 2)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("gaps", [LATE, EARLY])
@pytest.mark.parametrize("mode", ["off", "trace"])
def test_a_gap_counts_in_the_batch_that_has_it(source, gaps, mode):
    """The bound of a model without latents is its density; an epoch without steps sees every batch once."""
    x = rows(*gaps)
    size = 4 if source in ("tensor", "dataset", "stream") else None
    engine = pv.SVI(1, batch_size=size, optimizer=pv.sgd(0.0), compile=mode, validation=SOURCES[source](x),
                    progress=False)  # fmt: skip
    fit = engine.fit(Centre(), SOURCES[source](x))
    expected = gapped_density(x, fit.model.m).mean().item()
    assert fit.trace["bound"].tolist() == pytest.approx([expected], abs=1e-5)
    assert fit.trace["validation"].tolist() == pytest.approx([expected], abs=1e-5)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_gradient_is_that_of_what_was_seen(accumulate):
    """One step of length 1 moves m to the mean residual: sum over seen rows of (x - m), over all rows of the batch."""
    x, began = rows(*LATE), Centre().m.detach()
    engine = pv.SVI(1, optimizer=pv.sgd(1.0), compile="trace", accumulate=accumulate, progress=False)
    fit = engine.fit(Centre(), [x[:6], x[6:]])
    m = began + (x[:6] - began).mean(0)
    m = m + (x[6:] - m).nan_to_num().mean(0)
    torch.testing.assert_close(fit.model.m.detach(), m)


@pytest.mark.parametrize("mode", MODES)
def test_a_step_of_ones_own_takes_gaps_as_they_come(mode):
    step, m = pv.svi_step(Centre(), pv.sgd(0.0), compile=mode), Centre().m.detach()
    for x in (rows(), rows(*LATE), rows(), rows(*EARLY)):
        assert step(x).item() == pytest.approx(gapped_density(x, m).mean().item(), abs=1e-5)


X = torch.tensor([0.0, 1.0, 2.0, -1.5, 0.5, 3.0])
Y = torch.tensor([0, 1, 1, 0, 0, 1])
NONE = torch.full((6,), -1)
PARTLY = {"x": X, "y": torch.where(torch.arange(6) < 3, torch.nan, Y.float())}
WITH, WITHOUT = {"x": X, "y": Y}, {"x": X}
KNOWN = [(WITH, Y), (WITHOUT, NONE), (PARTLY, torch.where(torch.arange(6) < 3, -1, Y))]
ORDERS = [(0, 1, 2), (1, 0, 2), (2, 1, 0), (1, 2, 0)]


@pytest.mark.parametrize("mode", ["off", "trace"])
@pytest.mark.parametrize("order", ORDERS)
def test_labels_count_in_the_batches_that_have_them(mode, order):
    batches = [KNOWN[k] for k in order]
    expected = [labelled_density(X, y, Halves().m.detach()).mean().item() for _, y in batches]
    engine = pv.SVI(1, optimizer=pv.sgd(0.0), start=None, compile=mode, progress=False)
    fit = engine.fit(Halves(), [batch for batch, _ in batches])
    assert fit.trace["bound"].item() == pytest.approx(sum(expected) / 3, abs=1e-5)


@pytest.mark.parametrize(("first", "last"), [(WITHOUT, WITH), (WITH, WITHOUT)])
def test_a_short_batch_may_have_labels_that_the_first_one_has_not(first, last):
    """A short batch is filled with rows at weight zero."""
    short = {name: value[:2] for name, value in last.items()}
    fit = pv.SVI(1, optimizer=pv.sgd(0.0), start=None, progress=False).fit(Halves(), [first, short])
    m = Halves().m.detach()
    parts = [labelled_density(b["x"], b.get("y", NONE)[: len(b["x"])], m) for b in (first, short)]
    assert fit.trace["bound"].item() == pytest.approx(torch.cat(parts).mean().item(), abs=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_a_step_of_ones_own_takes_labels_as_they_come(mode):
    step, m = pv.svi_step(Halves(), pv.sgd(0.0), compile=mode), Halves().m.detach()
    for batch, y in (KNOWN[1], KNOWN[0], KNOWN[1], KNOWN[0]):
        assert step(batch).item() == pytest.approx(labelled_density(X, y, m).mean().item(), abs=1e-5)


def test_labels_of_later_batches_are_learned_from():
    """The same data, labels absent in one batch or NaN in all, have the same optimum."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(2, (400,), generator=generator)
    x = torch.randn(400, generator=generator) + 2.0 * (1 - y)
    apart = [{"x": x[:200]}, {"x": x[200:], "y": y[200:]}]
    whole = {"x": x, "y": torch.where(torch.arange(400) < 200, torch.nan, y.float())}
    engine = pv.SVI(300, optimizer=pv.adam(0.03), start=None, progress=False)
    found = [engine.fit(Halves(), data).model.m.detach() for data in (apart, whole)]
    torch.testing.assert_close(found[0], found[1], atol=0.02, rtol=0.0)
    assert found[0][0] > 1.5 > 0.5 > found[0][1]  # label 0 is the component at 2


class OneGap(Dataset):
    """Rows of which a single one, that one process reads, has a gap."""

    def __len__(self):
        return ROWS

    def __getitem__(self, i):
        return rows(*LATE)[i]


def by_items():
    return numbers(OneGap())


def by_batches():
    return numbers(list(rows(*LATE).split(4)))


def numbers(data):
    size = 4 if isinstance(data, Dataset) else None
    fit = pv.SVI(3, batch_size=size, optimizer=pv.sgd(0.1), compile="trace", progress=False).fit(Centre(), data)
    return fit.model.m.tolist(), fit.trace["bound"].tolist()


@pytest.mark.parametrize("one", [by_items, by_batches])
def test_a_gap_that_one_process_has_is_the_others_too(one):
    alone = one()
    assert all(math.isfinite(number) for part in alone for number in part)
    for found in in_processes(2, one):
        for part, expected in zip(found, alone, strict=True):
            assert part == pytest.approx(expected, abs=1e-5)


class Rates(pv.LatentVariableModel):
    """Counts of two classes, which some rows tell."""

    def __init__(self):
        super().__init__()
        self.mixing, self.rates = pv.families.Categorical(2), pv.families.Poisson(batch=2)

    @pv.latent
    def a(self):
        return self.mixing()

    @pv.observed
    def k(self, a):
        return self.rates(a)


UNKNOWN = {"late": slice(150, None, 2), "early": slice(0, 50, 2), "none": slice(0, 0), "all of a block": slice(60, 95)}


@pytest.mark.parametrize("rows", [17, 400])
@pytest.mark.parametrize("case", UNKNOWN)
def test_labels_of_a_stream_count_whichever_blocks_miss_some(case, rows):
    torch.manual_seed(0)
    a = torch.randint(0, 2, (200,)).double()
    k = torch.poisson(torch.where(a == 0, 2.0, 8.0)).double()
    a[UNKNOWN[case]] = torch.nan
    data = {"k": k, "a": a}
    em = pv.EM(progress=False, start={"rates.rate": torch.tensor([2.0, 8.0]).double()})
    held, read = em.fit(Rates(), data), em.fit(Rates(), pv.data.stream(data, rows=rows))
    assert read.trace["bound"][-1].item() == pytest.approx(held.trace["bound"][-1].item(), rel=1e-10)
    torch.testing.assert_close(read.parameters["rates.rate"], held.parameters["rates.rate"], rtol=1e-6, atol=0)
    online = pv.EM(progress=False, start=held, batch_size=50, max_iter=3).fit(Rates(), pv.data.stream(data, rows=rows))
    assert online.trace["bound"][-1].item() == pytest.approx(held.trace["bound"][-1].item(), abs=1.0)
