"""Data as EM goes over them: blocks that processes share out, cut into chunks that fit a cache."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ppl_vae.data import Block, Stream, stream
from ppl_vae.declare import LatentVariableModel, Observations
from ppl_vae.declare.identity import fingerprint
from ppl_vae.errors import DataError, EngineError
from ppl_vae.infer.processes import Share
from ppl_vae.infer.weights import check_weights, empty_rows, one_source
from ppl_vae.likelihoods.gaussian import Floored

__all__ = ["Chunk", "Parts", "even", "make_parts"]

CACHE = {"cpu": 1 << 20, "cuda": 1 << 25}
"""Numbers in the largest temporary of a chunk: what a shared cache holds, and what keeps a GPU busy."""
BLOCK = 65536
"""Rows of a block, at most."""
GRAIN = {"cpu": 4096, "cuda": BLOCK}
"""Rows that are not worth a second thread or process."""
KEEP = 1 << 25
"""Numbers of features kept between iterations (256 MB); what does not fit is computed anew, so memory is bounded."""


@dataclass(frozen=True)
class Chunk:
    """Rows of the data, their weights (None: ones), and what each family keeps of them between iterations."""

    obs: Observations
    weights: Tensor | None
    start: int
    features: dict[str, Any] = field(default_factory=dict)


class Parts:
    """The data of a fit, gone over as often as one likes."""

    def __init__(self, model: LatentVariableModel, few: Observations, share: Share) -> None:
        self.model, self.families, self.share = model, model.observed_families(few), share
        model.know(few.columns)
        widths = [family.width for family in model.families().values()]
        cache = CACHE.get(model.like.device.type, CACHE["cuda"])
        self.rows = max(64, min(BLOCK, cache // max(_cells(model, few), *widths, 1)))

    def remarks(self) -> list[str]:
        """What of the data a fit's status should mention."""
        return [remark for family in self.families.values() for remark in family.remarks()]

    @property
    def n(self) -> int:
        """Rows in all."""
        raise NotImplementedError

    def blocks(self) -> Iterator[Any]:
        """Blocks of this process, opaque to the engine."""
        raise NotImplementedError

    @property
    def num_blocks(self) -> int | None:
        """How many there are, where that is known."""
        raise NotImplementedError

    def chunks(self, block: Any) -> Iterator[Chunk]:
        """A block's chunks."""
        raise NotImplementedError

    def values(self, name: str) -> Iterator[tuple[Any, ...]]:
        """A node's values, weights and covariates, block by block over the data of all processes."""
        raise NotImplementedError

    def sample(self, count: int, seed: int) -> tuple[Observations, Tensor]:
        """At most `count` rows drawn without replacement, and their weights."""
        raise NotImplementedError

    def total(self) -> float:
        """Sum of the weights over the data of all processes."""
        raise NotImplementedError

    def fingerprint(self) -> str:
        """What tells these data, weights included, from others, cheaply and the same on every machine."""
        raise NotImplementedError

    def cut(self, obs: Observations, weights: Tensor | None, start: int) -> Iterator[Chunk]:
        """The chunks of some rows, the first of which has number `start`."""
        rows = even(len(obs), self.rows)
        for low in range(0, len(obs), rows):
            span = slice(low, min(low + rows, len(obs)))
            part = obs.rows(span)
            own = None if weights is None else weights[span]
            features = {
                name: family.features(part.with_gaps(name), *self._covariates(name, part))
                for name, family in self.families.items()
            }
            yield Chunk(part, own, start + low, features)

    def _covariates(self, name: str, part: Observations) -> tuple[Tensor, ...]:
        found = self.model.covariates(name, part)
        if any(inputs.requires_grad for inputs in found):
            raise EngineError(
                f"{type(self.model).__name__}.{name} gives its family inputs that a network makes, and sums over data "
                "are kept of inputs that stay: fit it by SVI, or freeze the network by requires_grad_(False)"
            )
        return found


@dataclass(frozen=True)
class _Span:
    low: int
    high: int


def unseen(model: LatentVariableModel, obs: Observations) -> list[str]:
    """A remark if some data have no observed value at all.

    Raises
    ------
    DataError
        If none has.
    """
    rows = empty_rows(model, obs)
    empty = 0 if rows is None else int(rows.sum())
    if empty == len(obs):
        raise DataError(f"all {empty} rows are missing altogether: there is nothing to fit")
    said = "1 row is missing altogether and tells" if empty == 1 else f"{empty} rows are missing altogether and tell"
    return [f"{said} nothing"] if empty else []


class Held(Parts):
    """Data in memory."""

    def __init__(
        self,
        model: LatentVariableModel,
        obs: Observations,
        weights: Tensor | None,
        share: Share = Share(),  # noqa: B008
    ) -> None:
        super().__init__(model, obs, share)
        self.obs, self.weights = obs, weights
        size = self._block()
        spans = [_Span(low, min(low + size, len(obs))) for low in range(0, len(obs), size)]
        self.spans, self.idle = spans[share.rank :: share.world], len(spans) < share.world
        kept = sum(value[0].numel() for value in obs.values.values() if isinstance(value, Tensor))
        self.keep = len(obs) * kept <= KEEP
        self.kept: dict[_Span, list[Chunk]] = {}

    def remarks(self) -> list[str]:
        return [*super().remarks(), *unseen(self.model, self.obs)]

    @property
    def n(self) -> int:
        return len(self.obs)

    def _block(self) -> int:
        """Rows of a block: the same for any number of threads and processes, so that a fit is too."""
        n, grain = self.n, GRAIN.get(self.model.like.device.type, GRAIN["cuda"])
        size = min(BLOCK, max(grain, n // 8, min(n // 2, self.rows)))
        return even(n, size)

    def blocks(self) -> Iterator[_Span]:
        return iter(self.spans)

    @property
    def num_blocks(self) -> int | None:
        return len(self.spans)

    def chunks(self, block: _Span) -> Iterator[Chunk]:
        span = slice(block.low, block.high)
        if block in self.kept:
            return iter(self.kept[block])
        weights = None if self.weights is None else self.weights[span]
        cut = self.cut(self.obs.rows(span), weights, block.low)
        if not self.keep:
            return cut
        self.kept[block] = list(cut)
        return iter(self.kept[block])

    def values(self, name: str) -> Iterator[tuple[Any, ...]]:
        for low in range(0, len(self.obs), BLOCK):
            span = slice(low, low + BLOCK)
            obs, own = self.obs.rows(span), None if self.weights is None else self.weights[span]
            yield obs.with_gaps(name), own, *self.model.covariates(name, obs)

    def sample(self, count: int, seed: int) -> tuple[Observations, Tensor]:
        rows = torch.arange(self.n)
        if self.n > count:
            rows = torch.randperm(self.n, generator=torch.Generator().manual_seed(seed))[:count].sort().values
        rows = rows.to(self.model.like.device)
        return self.obs.rows(rows), _ones(len(rows)).to(self.model.like) if self.weights is None else self.weights[rows]

    def total(self) -> float:
        return float(self.n) if self.weights is None else float(self.weights.sum())

    def fingerprint(self) -> str:
        named = {**self.obs.values, **{f"gaps of {name}": gaps for name, gaps in self.obs.missing.items()}}
        return fingerprint({**named, "weights": self.weights})


class Streamed(Parts):
    """Data read block by block at every pass."""

    def __init__(self, model: LatentVariableModel, stream: Stream, weights: Tensor | None, share: Share) -> None:
        first = next(iter(stream))
        few = model.check(first.data)
        self.labels = [name for name in model.finite_nodes(few) if name in few.values]
        super().__init__(model, _with_gaps(few, self.labels, model.like), share)
        one_source(stream, first.weights, weights)
        self.stream, self.weights, self.weighted = stream, weights, first.weights is not None
        self.seen: float | None = None

    @property
    def n(self) -> int:
        known = self.stream.num_rows
        return sum(len(block) for block in self.stream) if known is None else known

    def weights_of(self, block: Block) -> Tensor | None:
        """Weights of a block's rows."""
        if self.weights is None:
            return None if block.weights is None else block.weights.to(self.model.like)
        return self.weights[block.start : block.start + len(block)]

    def blocks(self) -> Iterator[Block]:
        return self.stream.shard(self.share.rank, self.share.world)

    @property
    def num_blocks(self) -> int | None:
        rows = self.stream.num_rows
        return None if rows is None else -(-rows // (self.stream.rows_at_once * self.share.world))

    def chunks(self, block: Block) -> Iterator[Chunk]:
        return self.cut(self.rows_of(block), self.weights_of(block), block.start)

    def rows_of(self, block: Block, checked: bool = True) -> Observations:
        """A block's rows, checked in an earlier pass or now."""
        obs = self.model.observe(block.data) if checked else self.model.check(block.data, block.index)
        return _with_gaps(obs, self.labels, self.model.like)

    def values(self, name: str) -> Iterator[tuple[Any, ...]]:
        for block in self.stream:
            obs = self.rows_of(block, checked=self.seen is not None)
            yield obs.with_gaps(name), self.weights_of(block), *self.model.covariates(name, obs)

    def sample(self, count: int, seed: int) -> tuple[Observations, Tensor]:
        block = self.stream.sample(count, seed, self.weights)
        weights = _ones(len(block)) if block.weights is None else block.weights
        return self.rows_of(block, checked=False), weights.to(self.model.like)

    def total(self) -> float:
        if self.seen is None:
            if self.weights is not None:
                self.seen = float(self.weights.sum())
            else:
                each = (block.weights for block in self.stream) if self.weighted else ()
                self.seen = sum(float(w.sum()) for w in each if w is not None) if self.weighted else float(self.n)
        return self.seen

    def fingerprint(self) -> str:
        return self.stream.fingerprint() + ("" if self.weights is None else fingerprint({"weights": self.weights}))


def _with_gaps(obs: Observations, labels: Iterable[str], like: Tensor) -> Observations:
    """Labels as those of a latent that some rows miss: which blocks of a stream have gaps is known at its end only."""
    values = {name: obs.values[name].to(like) for name in labels}
    gaps = {name: torch.zeros_like(value, dtype=torch.bool) for name, value in values.items()}
    return replace(obs, values={**obs.values, **values}, missing={**gaps, **obs.missing})


def make_parts(
    model: LatentVariableModel,
    data: Any,
    weights: Any,
    share: Share = Share(),  # noqa: B008
) -> Parts:
    """The data of a fit, checked, with the families adapted to their scale; `share` says which blocks are ours.

    Raises
    ------
    DataError
        If the data do not fit the model, or weights do not fit the data.
    """
    parts: Parts
    if _numbers(data) > KEEP:
        data = stream(data)
    if isinstance(data, Stream):
        if weights is not None and data.num_rows is None:
            raise DataError(
                "weights [n] need a stream that knows its rows; name the column of weights in pv.data.stream"
            )
        parts = Streamed(model, data, _given(weights, data.num_rows or 0, model), share)
    else:
        obs = model.check(data)
        parts = Held(model, obs, _given(weights, len(obs), model), share)
    for name, family in parts.families.items():
        family.adapt(_Values(parts, name))
    _adapt_likelihoods(parts)
    total = parts.total()
    if not total > 0:
        raise DataError("all weights are zero; at least one datum must count")
    return parts


def _adapt_likelihoods(parts: Parts) -> None:
    """Give floors that networks' scales have the unit of the data, of at most `BLOCK` rows."""
    if any(isinstance(module, Floored) for module in parts.model.modules()):
        obs, weights = parts.sample(BLOCK, seed=0)
        for likelihood, x in parts.model.floored(obs).items():
            likelihood.adapt(x, weights)


def _cells(model: LatentVariableModel, few: Observations) -> int:
    """Number of joint values of the finite latents: rows of the joint density."""
    laws = model.prototypes(few).items()
    hidden = [d for name, d in laws if name not in few.values or model.partly_observed(name, few)]
    return math.prod(len(d.enumerate_support(expand=False)) for d in hidden if d.has_enumerate_support)


def _numbers(data: Any) -> int:
    """Numbers in tensors and arrays; beyond `KEEP` even a copy in another dtype would be too much."""
    values = data.values() if isinstance(data, Mapping) else (data,)
    return sum(value.numel() if isinstance(value, Tensor) else getattr(value, "size", 0) for value in values)


class _Values:
    """A node's values as an iterable that starts anew each time."""

    def __init__(self, parts: Parts, name: str) -> None:
        self.parts, self.name = parts, name

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return self.parts.values(self.name)


def even(n: int, most: int) -> int:
    """Rows of each of the fewest pieces of at most `most` rows, all of one length."""
    return -(-n // -(-n // most))


def _given(weights: Any, n: int, model: LatentVariableModel) -> Tensor | None:
    return None if weights is None else check_weights(weights, n).to(model.like)


def _ones(n: int) -> Tensor:
    return torch.ones(n, dtype=torch.float64)
