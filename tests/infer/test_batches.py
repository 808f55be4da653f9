"""Batches: every row once an epoch with its weight, the same whenever asked for, cut and shared out, for each kind."""

import time
from contextlib import contextmanager

import numpy as np
import pandas as pd
import pyro.distributions as dist
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset, TensorDataset

import ppl_vae as pv
from ppl_vae.infer import batch
from ppl_vae.infer.batches import example, index_needed, make_batches, size_needed
from ppl_vae.infer.processes import Share

N, SIZE = 11, 4
X = torch.arange(N * 3, dtype=torch.float32).reshape(N, 3)
WEIGHTS = torch.arange(N, dtype=torch.float64) + 0.5


class Rows(pv.LatentVariableModel):
    """z ~ N(0, 1), x | z ~ N(z, 1) in three dimensions."""

    def __init__(self):
        super().__init__()
        self.log_scale = torch.nn.Parameter(torch.zeros(()))

    @pv.latent
    def z(self):
        return dist.Normal(0.0, 1.0)

    @z.posterior
    def q_z(self, x):
        return dist.Normal(x.mean(-1), 1.0)

    @pv.observed
    def x(self, z):
        return dist.Normal(z[..., None].expand(*z.shape, 3), self.log_scale.exp()).to_event(1)


class Labelled(Rows):
    label = pv.given()

    @pv.observed
    def x(self, z, label):
        return dist.Normal((z + label)[..., None].expand(*z.shape, 3), self.log_scale.exp()).to_event(1)


class Items(Dataset):
    """Rows by name, with noise drawn from torch's generator where asked for."""

    def __init__(self, noise=0.0):
        self.noise, self.asked = noise, []

    def __len__(self):
        return N

    def __getitem__(self, i):
        self.asked.append(i)
        return {"x": X[i] + self.noise * torch.randn(3)}


class Sequential(IterableDataset):
    def __iter__(self):
        return iter(X)


class Few(IterableDataset):
    def __iter__(self):
        return iter(X[:3])


class Restarts:
    def __iter__(self):
        return iter(X.split(SIZE))


def generator_function():
    yield from X.split(SIZE)


def shuffled_loader():
    return DataLoader(TensorDataset(X, X[:, 0]), batch_size=SIZE, shuffle=True)


def own_generator():
    return DataLoader(TensorDataset(X), batch_size=SIZE, shuffle=True, generator=torch.Generator().manual_seed(7))


KINDS = {
    "tensor": (lambda: X, SIZE),
    "array": (lambda: X.numpy(), SIZE),
    "frame": (lambda: pd.DataFrame(X.numpy()), SIZE),
    "mapping": (lambda: {"x": X}, SIZE),
    "dataset": (Items, SIZE),
    "stream": (lambda: pv.data.stream(X, rows=5), SIZE),
    "loader": (shuffled_loader, None),
    "loader with a generator": (own_generator, None),
    "loader with workers": (lambda: DataLoader(Items(), batch_size=SIZE, shuffle=True, num_workers=1), None),
    "iterable dataset": (Sequential, SIZE),
    "list": (lambda: list(X.split(SIZE)), None),
    "list of mappings": (lambda: [{"x": part} for part in X.split(SIZE)], None),
    "object": (Restarts, None),
    "generator function": (lambda: generator_function, None),
}
SEEKABLE = ("tensor", "array", "frame", "mapping", "dataset", "stream")
KNOWN_SIZE = (*SEEKABLE, "loader", "loader with a generator", "loader with workers", "list", "list of mappings")


@pytest.fixture
def model():
    return Rows()


def test_an_iterable_dataset_may_be_smaller_than_a_batch():
    vae = pv.models.VAE(pv.nets.mlp_encoder(3, 8, 2), pv.nets.mlp_decoder(2, 8, 3), pv.likelihoods.Gaussian(3))
    fit = pv.SVI(2, batch_size=5, validation=Few(), progress=False).fit(vae, Few())
    assert fit.trace["validation"].isfinite().tolist() == [True, True]
    found, whole = fit.evaluate(Few(), num_particles=5), fit.evaluate(X[:3], num_particles=5)
    assert found.n == 3
    assert found.log_prob == pytest.approx(whole.log_prob)


def plain(batches, number=0, start=0):
    """(rows, weights, index, real) of each batch of an epoch."""
    return [
        (b.obs.values["x"].tolist(), b.weights.tolist(), None if b.index is None else b.index.tolist(), b.real)
        for b in batches.epoch(number, start)
    ]


def counted(batches, number=0):
    """First numbers of the rows that count in an epoch, and what each counts."""
    rows = [(row[0], w) for xs, ws, _, _ in plain(batches, number) for row, w in zip(xs, ws, strict=True) if w]
    return dict(sorted(rows)), len(rows)


@pytest.mark.parametrize("kind", KINDS)
def test_every_row_once_an_epoch_in_batches_of_one_shape(model, kind):
    make, size = KINDS[kind]
    batches = make_batches(model, make(), batch_size=size, seed=3)
    for number in (0, 1):
        found = plain(batches, number)
        assert {len(rows) for rows, *_ in found} == {SIZE}
        rows, count = counted(batches, number)
        assert (count, list(rows)) == (N, X[:, 0].tolist())
        assert set(rows.values()) == {1.0}
        for xs, ws, index, real in found:
            assert ws == [1.0] * real + [0.0] * (SIZE - real)
            assert all(row in X.tolist() for row in xs)
            assert index is None or [X[i].tolist() for i in index] == xs
        assert batches.indexed == (found[0][2] is not None)
    known = batches.steps is not None
    assert known == (kind not in ("iterable dataset", "object", "generator function"))
    assert not known or batches.steps == len(found)
    assert (batches.size, batches.total) == ((N, float(N)) if kind in KNOWN_SIZE else (None, None))
    assert batches.batch_size == SIZE
    assert batches.exact == (kind in SEEKABLE)
    assert batches.weights is None


@pytest.mark.parametrize("kind", KINDS)
def test_an_epoch_is_the_same_whenever_it_is_asked_for_and_from_any_batch_on(model, kind):
    make, size = KINDS[kind]
    batches, again = (make_batches(model, make(), batch_size=size, seed=3) for _ in range(2))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    later, whole = plain(batches, 5), plain(batches, 2)
    assert plain(again, 2) == whole
    assert plain(again, 5) == later
    for start in range(len(whole)):
        assert plain(again, 2, start) == whole[start:]
    assert torch.equal(torch.get_rng_state(), before)
    assert batches.fingerprint() == again.fingerprint()


@pytest.mark.parametrize("kind", ["tensor", "dataset", "stream", "loader"])
def test_seeds_and_epochs_have_orders_of_their_own(model, kind):
    make, size = KINDS[kind]
    batches = [make_batches(model, make(), batch_size=size, seed=seed) for seed in (0, 1)]
    orders = [plain(b, number) for b in batches for number in (0, 1)]
    assert all(one != other for i, one in enumerate(orders) for other in orders[:i])


@pytest.mark.parametrize("kind", ["tensor", "dataset", "stream"])
def test_without_shuffling_rows_come_in_their_order(model, kind):
    make, size = KINDS[kind]
    found = plain(make_batches(model, make(), batch_size=size, seed=3, shuffle=False), 1)
    assert [i for _, _, index, real in found for i in index[:real]] == list(range(N))


class Normalised(Rows):
    """q of data that batch normalisation has seen."""

    def __init__(self):
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(3, affine=False, momentum=0.05)

    @pv.latent
    def z(self):
        return dist.Normal(0.0, 1.0)

    @z.posterior
    def q_z(self, x):
        return dist.Normal(self.norm(x).mean(-1), 1.0)


MANY = torch.randn(300, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", [300, 200, 290, 299])
@pytest.mark.parametrize(
    "make",
    [lambda n: MANY, lambda n: TensorDataset(MANY), lambda n: pv.data.stream(MANY), lambda n: list(MANY.split(n))],
    ids=["tensor", "dataset", "stream", "list"],
)
def test_what_fills_a_batch_looks_like_data_to_batch_normalisation(make, size):
    """The running variance is that of the data, but for the noise of batches of 200: 3 x 200 / 2 degrees of freedom."""
    batch_size = None if isinstance(make(size), list) else size
    fit = pv.SVI(40, batch_size=batch_size, optimizer=pv.sgd(0.0), progress=False).fit(Normalised(), make(size))
    assert fit.model.norm.running_var.mean().item() == pytest.approx(MANY.var(0).mean().item(), rel=4 / 300**0.5 / 2)


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if "workers" not in kind])
def test_processes_share_every_batch(model, kind, world):
    make, size = KINDS[kind]
    whole = plain(make_batches(model, make(), batch_size=size, seed=3), 1)
    parts = [make_batches(model, make(), batch_size=size, seed=3, share=Share(r, world)) for r in range(world)]
    assert {b.fingerprint() for b in parts} == {make_batches(model, make(), batch_size=size, seed=3).fingerprint()}
    shares = [plain(b, 1) for b in parts]
    for number, (rows, _, _, real) in enumerate(whole):
        mine = [share[number] for share in shares]
        assert {len(xs) for xs, *_ in mine} == {-(-SIZE // world)}
        assert max(r for *_, r in mine) - min(r for *_, r in mine) <= 1
        together = [row for xs, ws, _, _ in mine for row, w in zip(xs, ws, strict=True) if w]
        assert sorted(together) == sorted(rows[:real])
        assert sum(sum(ws) for _, ws, _, _ in mine) == real
        assert all(row in X.tolist() for xs, *_ in mine for row in xs)


def test_a_process_reads_only_its_own_items_of_a_data_set(model):
    items = Items()
    batches = make_batches(model, items, batch_size=SIZE, seed=3, share=Share(1, 2))
    items.asked.clear()
    found = plain(batches)
    assert sum(real for *_, real in found) == 5
    assert len(items.asked) == 6  # and one that fills the last batch


@pytest.mark.parametrize("kind", ["tensor", "dataset", "stream"])
@pytest.mark.parametrize("world", [1, 2])
def test_weights_follow_their_rows(model, kind, world):
    make, size = KINDS[kind]
    expected = dict(zip(X[:, 0].tolist(), WEIGHTS.tolist(), strict=True))
    found = {}
    for rank in range(world):
        batches = make_batches(model, make(), WEIGHTS, size, 3, Share(rank, world))
        found |= counted(batches)[0]
        assert batches.total == WEIGHTS.sum().item()
        torch.testing.assert_close(batches.weights, WEIGHTS[: len(batches.first)].float())
    assert dict(sorted(found.items())) == expected
    assert batches.fingerprint() != make_batches(model, make(), WEIGHTS + 1, size, 3).fingerprint()


def test_a_column_of_a_stream_holds_weights(model):
    data = pv.data.stream(torch.cat([X, WEIGHTS[:, None].float()], 1), weights="x3", rows=5)
    batches = make_batches(model, data, batch_size=SIZE)
    assert list(counted(batches)[0].values()) == WEIGHTS.tolist()
    assert (batches.total, batches.weights.tolist()) == (WEIGHTS.sum().item(), WEIGHTS[:5].tolist())


def test_a_stream_that_does_not_know_its_rows_counts_them(model):
    batches = make_batches(model, pv.data.stream(generator_function, rows=5), batch_size=SIZE)
    assert batches.steps is None
    assert (batches.total, batches.size, batches.steps) == (11.0, 11, 5)
    assert len(plain(batches)) == 5


def test_a_data_set_is_cut_as_a_tensor_is(model):
    tensor, items = (make_batches(model, data, batch_size=SIZE, seed=3) for data in (X, Items()))
    assert [b.index.tolist() for b in tensor.epoch(2)] == [b.index.tolist() for b in items.epoch(2)]


def test_without_a_batch_size_all_rows_are_one_batch_in_their_order(model):
    batches = make_batches(model, X, seed=3)
    ((rows, weights, index, real),) = plain(batches, 4)
    assert (rows, weights, index, real) == (X.tolist(), [1.0] * N, list(range(N)), N)
    assert plain(batches, 4, 1) == []
    assert batches.first.values["x"].data_ptr() == next(batches.epoch(0)).obs.values["x"].data_ptr()
    halves = [plain(make_batches(model, X, share=Share(rank, 2)))[0] for rank in range(2)]
    assert [real for *_, real in halves] == [6, 5]
    assert [i for _, _, index, real in halves for i in index[:real]] == [*range(0, N, 2), *range(1, N, 2)]


def test_of_a_stream_without_a_batch_size_every_block_is_a_batch(model):
    found = plain(make_batches(model, pv.data.stream(X, rows=5), seed=3), 4)
    assert [index[:real] for _, _, index, real in found] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10]]


def test_more_processes_than_rows(model):
    found = [plain(make_batches(model, X[:2], share=Share(rank, 3))) for rank in range(3)]
    assert [real for ((*_, real),) in found] == [1, 1, 0]
    assert found[2] == [([X[0].tolist()], [0.0], [0], 0)]
    ((_, weights, _, real),) = plain(make_batches(model, TensorDataset(X[:2]), share=Share(2, 3)))
    assert (weights, real) == ([0.0], 0)


# What batches hold.


def test_dynamic_binary_draws_from_the_default_generator():
    torch.manual_seed(1)
    grey = torch.rand(N, 64)
    vae = pv.models.VAE(pv.nets.mlp_encoder(64, 8, 2), pv.nets.mlp_decoder(2, 8, 64))
    batches = make_batches(vae, pv.data.DynamicBinary(grey), batch_size=SIZE)

    def drawn(seed):
        torch.manual_seed(seed)
        return [b.obs.values["x"] for b in batches.epoch(0)]

    first, again, other = drawn(0), drawn(0), drawn(1)
    assert all(map(torch.equal, first, again))
    assert not torch.equal(first[0], other[0])
    assert set(first[0].unique().tolist()) == {0.0, 1.0}
    index = next(batches.epoch(0)).index
    mean = torch.stack([next(batches.epoch(0)).obs.values["x"] for _ in range(2000)]).mean(0)
    assert (mean - grey[index]).abs().max() < 0.06  # five standard errors of 2,000 draws


def test_dynamic_binary_in_the_dtype_of_the_model():
    vae = pv.models.VAE(pv.nets.mlp_encoder(64, 8, 2), pv.nets.mlp_decoder(2, 8, 64)).double()
    batch = next(make_batches(vae, pv.data.DynamicBinary(torch.rand(N, 64)), batch_size=SIZE).epoch(0))
    assert batch.obs.values["x"].dtype == batch.weights.dtype == torch.float64


def gappy():
    x = X.clone()
    x[0, 1] = torch.nan
    return x


def test_batches_of_data_with_gaps_all_have_masks(model):
    batches = make_batches(model, gappy(), batch_size=SIZE, seed=1)
    found = list(batches.epoch(0))
    assert all(set(b.obs.missing) == {"x"} for b in found)
    assert sum(int(b.obs.missing["x"][: b.real].sum()) for b in found) == 1
    assert all(b.obs.values["x"].isfinite().all() for b in found)


def test_loaded_batches_have_masks_if_the_first_or_they_themselves_have_gaps(model):
    first = list(make_batches(model, list(gappy().split(SIZE))).epoch(0))
    assert [int(b.obs.missing["x"][: b.real].sum()) for b in first] == [1, 0, 0]
    last = list(make_batches(model, list(gappy().flip(0).split(SIZE))).epoch(0))
    assert [set(b.obs.missing) for b in last] == [set(), set(), {"x"}]


@pytest.mark.parametrize("put", [lambda x, y: (x, y), lambda x, y: {"label": y, "x": x}, lambda x, y: [x, y, None]])
def test_labels_by_name_or_by_place(put):
    data = [put(x, x[:, 0]) for x in X.split(SIZE)]
    for found in make_batches(Labelled(), data).epoch(0):
        assert torch.equal(found.obs.values["label"], found.obs.values["x"][:, 0])


def test_integers_of_a_loader_become_what_the_node_needs():
    vae = pv.models.VAE(pv.nets.mlp_encoder(3, 8, 2), pv.nets.mlp_decoder(2, 8, 3))
    loader = DataLoader(TensorDataset((X % 2).to(torch.uint8)), batch_size=SIZE)
    assert {b.obs.values["x"].dtype for b in make_batches(vae, loader).epoch(0)} == {torch.float32}


def test_what_items_draw_depends_on_the_seed_epoch_and_batch_only(model):
    batches, again = (make_batches(model, Items(noise=1.0), batch_size=SIZE, seed=0) for _ in range(2))
    whole = plain(batches, 1)
    torch.manual_seed(99)
    assert plain(again, 1, 2) == whole[2:]
    other = {tuple(b.index.tolist()): b.obs for b in make_batches(model, Items(noise=1.0), seed=1).epoch(1)}
    assert len(other) == 1
    loader, replayed = (make_batches(model, DataLoader(Items(noise=1.0), SIZE)) for _ in range(2))
    assert plain(replayed, 1, 2) == plain(loader, 1)[2:]


def test_a_data_set_in_memory_is_cut_without_the_cost_of_a_loader():
    x = torch.rand(4096, 784).round()
    vae = pv.models.VAE(pv.nets.mlp_encoder(784, 4, 2), pv.nets.mlp_decoder(2, 4, 784))
    batches = make_batches(vae, x, batch_size=128)
    seconds = []
    for number in range(5):
        begin = time.perf_counter()
        seconds.append((sum(b.real for b in batches.epoch(number)) / 128, time.perf_counter() - begin))
    # 50 microseconds a batch where nothing else runs; a step of a small VAE takes 3 milliseconds.
    assert min(spent / count for count, spent in seconds) < 5e-4


# Errors.


class Empty(Dataset):
    def __len__(self):
        return 0


def used_up():
    once = iter(X.split(SIZE))
    return lambda: once


class Dwindling:
    """Batches at the first pass, none at the second."""

    def __init__(self):
        self.left = [X.split(SIZE)]

    def __iter__(self):
        return iter(self.left.pop() if self.left else ())


REFUSED = {
    "one-shot generator": (lambda: generator_function(), {}, "can be read only once.*not called"),
    "map": (lambda: map(torch.neg, X.split(2)), {}, "can be read only once"),
    "loader's batch size": (shuffled_loader, {"batch_size": 5}, "4 rows, and batch_size=5 was given; leave batch_size"),
    "weights of a loader": (shuffled_loader, {"weights": WEIGHTS}, "weights .* Dataset, a tensor or"),
    "rows of an iterable dataset": (Sequential, {}, "say batch_size="),
    "no batches": (lambda: lambda: iter([]), {}, "there is no batch"),
    "no rows": (Empty, {}, "no rows"),
    "large batch for blocks": (lambda: pv.data.stream(X, rows=2), {"batch_size": 4}, "rows=4 or more"),
    "batch size": (lambda: X, {"batch_size": 0}, "at least 1, got 0"),
    "weights": (lambda: X, {"weights": WEIGHTS[1:]}, r"weights have shape \(10,\)"),
    "weights of a dataset": (Items, {"weights": -WEIGHTS}, "non-negative"),
    "text": (lambda: "x.npy", {}, "str"),
    "wrong shape": (lambda: [X[:, :2]], {}, r"list, the first batch: .*so \(2,\) per datum"),
    "unknown name": (lambda: [{"y": X}], {}, "list, the first batch: nobody passed 'x'"),
    "distributed sampler": (
        lambda: DataLoader(TensorDataset(X), sampler=DistributedSampler(TensorDataset(X), 2, 0)),
        {},
        "DistributedSampler",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_data_are_refused_in_words(model, case):
    make, options, message = REFUSED[case]
    with pytest.raises(pv.DataError, match=message):
        make_batches(model, make(), **options)


def test_too_few_entries_name_what_is_expected():
    with pytest.raises(pv.DataError, match=r"a batch has 1 entries, and the model takes 2: .*\(x, label\)"):
        make_batches(Labelled(), DataLoader(TensorDataset(X), batch_size=SIZE))


LATE = {
    "larger batch": (lambda: [X[:2], X[2:]], r"epoch 0, batch 1: a batch of 9 rows, and the first one has 2"),
    "infinite": (lambda: [X[:2], X[2:4] / 0], r"epoch 0, batch 1: .*infinite"),
    "other shape": (lambda: [X[:2], X[2:4, :2]], r"epoch 0, batch 1: .*event shape"),
    "cannot start anew": (used_up, "can be read only once"),
    "used up": (Dwindling, "epoch 0 has only 0 batches"),
}


@pytest.mark.parametrize("case", LATE)
def test_a_bad_batch_is_named_when_it_comes(model, case):
    make, message = LATE[case]
    batches = make_batches(model, make())
    with pytest.raises(pv.DataError, match=message):
        list(batches.epoch(0))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "workers" not in kind])
def test_an_epoch_may_start_at_its_end_and_for_iterables_not_beyond(model, kind):
    make, size = KINDS[kind]
    batches = make_batches(model, make(), batch_size=size)
    count = len(plain(batches))
    assert plain(batches, 0, count) == []
    if not batches.exact:
        with pytest.raises(pv.DataError, match=f"only {count} batches, and batch {count + 1} was asked for"):
            plain(batches, 0, count + 1)


def test_grey_pixels_of_a_later_batch_are_refused():
    vae = pv.models.VAE(pv.nets.mlp_encoder(3, 8, 2), pv.nets.mlp_decoder(2, 8, 3))
    batches = make_batches(vae, [X[:2] % 2, X[:2] / 40])
    with pytest.raises(pv.DataError, match=r"batch 1: .*grey pixels"):
        list(batches.epoch(0))


def test_what_is_said_of_unknown_sizes_and_numbers(model):
    batches = make_batches(model, generator_function)
    assert size_needed(batches).startswith("generator_function does not say how many rows")
    assert "numbers, and z has no posterior" in index_needed(batches, "z")


def test_on_a_gpu_the_next_batch_is_made_while_the_last_one_is_used(monkeypatch):
    """The order of events only, with stand-ins for CUDA's streams."""
    told = []

    class Stream:
        def __init__(self, device):
            pass

        def wait_stream(self, other):
            told.append("wait")

    @contextmanager
    def entered(_):
        told.append("in")
        yield
        told.append("out")

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", entered)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(batch, "_tensors", lambda ready: ())
    source = (told.append(f"make {i}") or i for i in range(1, 3))
    for number in batch.ahead(source, torch.device("cuda")):
        told.append(f"use {number}")
    assert told == [
        "in", "make 1", "out", "wait", "in", "make 2", "out", "use 1", "wait", "in", "out", "use 2",
    ]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_an_example_has_the_dtype_of_the_data(kind):
    before = torch.get_rng_state()
    found = example(KINDS[kind][0]())
    value = next(iter(found.values())) if isinstance(found, dict) else found
    assert isinstance(value, pd.DataFrame) or value.dtype in (torch.float32, np.float32)
    assert torch.equal(torch.get_rng_state(), before)
