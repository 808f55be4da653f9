"""How good q is: the gap of the bound and its parts, the weights of its draws, and an independent check of log p(x)."""

import math
import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppl_vae.diagnose.ais import annealed
from ppl_vae.diagnose.codes import Codes, UndefinedError
from ppl_vae.diagnose.gap import LocalBound, local_bound
from ppl_vae.diagnose.quantity import Quantity, error, measured, undefined
from ppl_vae.diagnose.weights import BOUND, bound_and_evidence
from ppl_vae.evidence import Evidence, hardly_vary
from ppl_vae.infer.rows_done import RowsDone, question
from ppl_vae.progress import progress as shown

__all__ = ["Inference", "inference"]

PART = "inference"
BAD_SHARE, NATS, DRAWS = 0.25, 1.0, 5.0
"""Most data with a bad k, nats of amortisation gap, and fewest effective draws at the median, of a sound q."""
WEIGHTED = ("log p(x)", "gap", "bad Pareto k", "effective sample size")
"""What takes draws of q with weights of their own."""
POINT = "q is a point mass, and its draws are all alike: of log p(x) there is the ELBO alone"
EXACT = "log p(x) is the sum over all values of the latents, which takes no draws of q"


@dataclass(frozen=True)
class Inference:
    """How good q is.

    Attributes
    ----------
    bound : Tensor
        [n] nats, the ELBO of each datum that was looked at.
    evidence : Evidence
        Of the same data and draws: log p(x), error, effective sample size and k-hat; the bound where q is a point mass,
        exact where all latents are finite.
    local : LocalBound or None
        The bound with a q of its own for some of them.
    annealed : Evidence or None
        log p(x) by annealed importance sampling of some of them.
    quantities : list of Quantity
        The rows of the table.
    """

    bound: Tensor
    evidence: Evidence
    local: LocalBound | None
    annealed: Evidence | None
    quantities: list[Quantity]


def inference(
    codes: Codes,
    num_particles: int,
    gap_data: int,
    ais_data: int,
    seed: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> Inference:
    """Measure the gap, its parts, the tails of the weights, and check log p(x)."""
    count = 1 if codes.points or codes.finite else num_particles
    header = question(codes.model, codes.obs, num_particles=count, seed=seed)
    found = RowsDone(checkpoint, "diagnose", header, BOUND, codes.n)
    with shown("log p(x)", codes.n, progress) as update:
        bound, evidence = bound_and_evidence(codes, count, seed, found, update)
    local, split = _split(codes, gap_data, progress)
    check, said = _check(codes, evidence, ais_data, progress)
    tails = _tails(evidence, num_particles)
    rows = [*_evidence(bound, evidence, num_particles), *split, *tails, *said]
    if codes.finite:
        rows = [undefined(q.name, PART, q.meaning, EXACT) if q in tails else q for q in rows]
    elif codes.points:
        rows = [undefined(q.name, PART, q.meaning, POINT) if q.name in WEIGHTED else q for q in rows]
    return Inference(bound, evidence, local, check, rows)


def _evidence(bound: Tensor, evidence: Evidence, count: int) -> list[Quantity]:
    by_draws = f"by {count} draws of q weighted by p(x, z) / q(z | x): in the mean a lower bound"
    said = f"mean over data, {'exact' if evidence.method == 'exact' else by_draws}"
    value, gap, noise = evidence.value, evidence.value - bound, _noise(evidence)
    return [
        measured("ELBO", PART, "mean over data of the evidence lower bound", bound.mean(), error(bound)),
        measured("log p(x)", PART, said, value.mean(), _joined(error(value), noise)),
        measured("gap", PART, "log p(x) less the ELBO", gap.mean(), _joined(error(gap), noise)),
    ]


def _noise(evidence: Evidence) -> float:
    """Standard error of the mean over data that the draws make."""
    return evidence.standard_error.square().sum().sqrt().item() / len(evidence.value)


def _joined(a: float | None, b: float) -> float | None:
    return None if a is None else math.hypot(a, b)


def _split(codes: Codes, count: int, progress: bool) -> tuple[LocalBound | None, list[Quantity]]:
    """The gap as approximation gap plus amortisation gap, on the first data."""
    few = codes.first(max(count, 1))
    family = f"of {few.n} data: log p(x) less the bound at the best q of its family, one for each datum"
    encoder = f"of {few.n} data: the bound at the best q of its family for each datum, less the encoder's"
    if count == 0:
        return None, []
    try:
        if not codes.amortised:
            raise UndefinedError("q has parameters of its own for each datum, there is no encoder")
        local = local_bound(few, progress=progress)
    except UndefinedError as why:
        return None, [
            undefined("approximation gap", PART, family, str(why)),
            undefined("amortisation gap", PART, encoder, str(why)),
        ]
    rest, gained = local.evidence.value - local.local, local.local - local.amortised
    noise = _joined(error(rest), _noise(local.evidence))
    sound = gained.mean() <= NATS
    return local, [
        measured("approximation gap", PART, family, rest.mean(), noise),
        measured("amortisation gap", PART, encoder, gained.mean(), error(gained), ok=sound),
    ]


def _tails(evidence: Evidence, count: int) -> list[Quantity]:
    limit = min(1 - 1 / math.log10(count), 0.7) if count > 10 else 0.0
    k_meaning = (
        f"share of data whose weights have a Pareto k above {limit:.2f} and vary by more than a third: there q misses "
        f"part of the posterior"
    )
    n_meaning = f"of {count} draws, what the weights are worth for the median datum"
    ess = evidence.effective_sample_size
    size = measured("effective sample size", PART, n_meaning, ess.median(), unit="draws", ok=ess.median() >= DRAWS)
    if evidence.k_hat is None:
        return [undefined("bad Pareto k", PART, k_meaning, "it takes 25 draws at least"), size]
    known = ~evidence.k_hat.isnan()
    if not bool(known.any()):
        return [undefined("bad Pareto k", PART, k_meaning, "the weights tie"), size]
    bad = ((evidence.k_hat > limit) & ~hardly_vary(ess, count))[known].double().mean()
    return [measured("bad Pareto k", PART, k_meaning, bad, unit="of data", ok=bad <= BAD_SHARE), size]


def _check(codes: Codes, evidence: Evidence, count: int, progress: bool) -> tuple[Evidence | None, list[Quantity]]:
    name = "annealed log p(x)"
    meaning = "less the importance-weighted one on the same data; both are lower bounds in the mean"
    if count == 0:
        return None, []
    few = codes.first(count)
    try:
        found: Any = annealed(few, progress=progress)
    except UndefinedError as why:
        return None, [undefined(name, PART, meaning, str(why))]
    more = found.value - evidence.value[: few.n]
    noise = torch.hypot(found.standard_error, evidence.standard_error[: few.n])
    own = noise.square().sum().sqrt() / few.n
    said = f"{meaning}, {few.n} data; a clear excess says that q misses part of the posterior"
    return found, [measured(name, PART, said, more.mean(), own, ok=more.mean() <= max(0.5, 4 * own))]
