"""q and the model trained in turns, as EM takes them: whose turn a step is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ppl_vae.errors import EngineError, check_whole
from ppl_vae.infer.ascent import ModelObjective
from ppl_vae.infer.batches import Batches
from ppl_vae.infer.processes import Share
from ppl_vae.infer.sides import belongs_to_q, drawn
from ppl_vae.infer.step import StepResult
from ppl_vae.objectives import Sites
from ppl_vae.objectives.sites import by_datum, total

__all__ = ["Alternate", "Lagging", "Turns", "alternate", "lagging", "mutual_information"]


class Turns(Protocol):
    """Whose turn each step of one fit is."""

    def moving(self, step: int, epoch: int) -> Sequence[bool] | None:
        """For each parameter, those of single data last, whether this step moves it; None: all of them."""

    def seen(self, result: StepResult) -> None:
        """Take note of a step that was taken."""

    def close(self, epoch: int) -> str:
        """End an epoch; a note for the fit's status, or nothing."""

    def state(self) -> dict[str, Any]:
        """What the next turns depend on beside the numbers of step and epoch."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from such a state."""


@dataclass(frozen=True)
class Alternate:
    """Turns of fixed length; made by `alternate`, which tells what each field means."""

    q: int = 1
    model: int = 1
    per: str = "step"
    parameters: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        check_whole("alternate", q=self.q, model=self.model)
        if self.per not in ("step", "epoch"):
            raise EngineError(f'alternate: per must be "step" or "epoch", got {self.per!r}')

    def turns(self, climbed: ModelObjective, batches: Batches, share: Share) -> Turns:
        """The turns of a fit."""
        return _Cycle(self, belongs_to_q(climbed, batches.first, self.parameters))


@dataclass(frozen=True)
class Lagging:
    """Many steps of q before each one of the model, while codes gain information; made by `lagging`."""

    window: int = 10
    most: int = 100
    patience: int = 1
    rows: int = 500
    parameters: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        check_whole("lagging", window=self.window, patience=self.patience)
        check_whole("lagging", self.window, most=self.most)
        check_whole("lagging", 2, rows=self.rows)

    def turns(self, climbed: ModelObjective, batches: Batches, share: Share) -> Turns:
        """The turns of a fit."""
        return _Lag(self, belongs_to_q(climbed, batches.first, self.parameters), climbed, batches, share)


class _Cycle:
    """q's turn, the model's turn, and again: a function of the step, so there is nothing to keep."""

    def __init__(self, plan: Alternate, q: Sequence[bool]) -> None:
        self.plan, self.q, self.model = plan, tuple(q), tuple(not own for own in q)

    def moving(self, step: int, epoch: int) -> Sequence[bool]:
        count = step if self.plan.per == "step" else epoch
        return self.q if count % (self.plan.q + self.plan.model) < self.plan.q else self.model

    def seen(self, result: StepResult) -> None:
        pass

    def close(self, epoch: int) -> str:
        return ""

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        pass


class _Lag:
    """The schedule of He et al. (2019): its state is where the inner loop stands, and the best information."""

    def __init__(
        self, plan: Lagging, q: Sequence[bool], climbed: ModelObjective, batches: Batches, share: Share
    ) -> None:
        self.plan, self.q, self.model = plan, tuple(q), tuple(not own for own in q)
        self.climbed, self.batches, self.share = climbed, batches, share
        self.joint, self.inner, self.sum = False, 0, 0.0
        self.last: float | None = None
        self.best, self.waited = -1.0, 0

    def moving(self, step: int, epoch: int) -> Sequence[bool] | None:
        if self.joint:
            return None
        return self.model if self.inner < 0 else self.q

    def seen(self, result: StepResult) -> None:
        if self.joint:
            return
        if self.inner < 0:  # the model had its step
            self.inner, self.sum, self.last = 0, 0.0, None
            return
        self.inner, self.sum = self.inner + 1, self.sum + float(result.objective / result.weight)
        if self.inner % self.plan.window == 0:
            mean, self.sum = self.sum / self.plan.window, 0.0
            flat = self.last is not None and mean <= self.last
            self.last = mean
            if flat or self.inner >= self.plan.most:
                self.inner = -1

    def close(self, epoch: int) -> str:
        if self.joint:
            return ""
        information = self._information()
        self.waited = 0 if information > self.best else self.waited + 1
        self.best = max(self.best, information)
        self.joint = self.waited >= self.plan.patience
        if not self.joint:
            return ""
        return (
            f"q and the model were trained together from epoch {epoch + 1} on: the information of the codes was "
            f"{information:.3f} nats, {self.best:.3f} at its best"
        )

    def _information(self) -> float:
        """The mean over all processes, with the same noise at every look."""
        count = min(self.plan.rows, len(self.batches.first))
        obs = self.batches.first.rows(torch.arange(count, device=self.climbed.like.device))
        with torch.no_grad():
            value = mutual_information(drawn(self.climbed, obs)[0])
        return float(self.share.sum(value)) / self.share.world

    def state(self) -> dict[str, Any]:
        names = ("joint", "inner", "sum", "last", "best", "waited")
        return {name: getattr(self, name) for name in names}

    def restore(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state)


def mutual_information(sites: Sites) -> Tensor:
    """I(x; z) under q, mean_i log q(z_i | x_i) - log (1/n) sum_k q(z_i | x_k), in nats; it never exceeds log n.

    Of finite latents y the expectation over their values, of drawn ones given y the mean over the data that may have
    that value. Of several latents the sum, each given the earlier ones' draws.

    Raises
    ------
    EngineError
        If no latent has a q.
    """
    if not sites.log_q:
        raise EngineError("the information of codes is that of latents with a q, and no latent of this model has one")
    none = torch.zeros_like(by_datum(next(iter(sites.log_q.values()))))
    n = len(none)
    log_y = none + total(sites.log_q[name] for name in sites.enumerated)  # log q(y | x), [*values, n]
    y = log_y.exp()
    found = torch.where(y > 0, y * (log_y - y.mean(-1, keepdim=True).log()), 0.0).sum() / n
    for name in sites.drawn:
        q, z = sites.q[name], sites.values[name]
        branches = q.batch_shape[:-1]
        share = y.sum_to_size(*branches, n) if branches else y.new_ones(n)
        at = z.movedim(len(branches), 0).unsqueeze(1 + len(branches))
        each = q.log_prob(at)  # log q(z_i | x_k, y), [n, *values, n]
        of_all = torch.logsumexp(each + share.log() - share.sum(-1, keepdim=True).log(), -1).movedim(0, -1)
        found = found + torch.where(share > 0, share * (each.diagonal(dim1=0, dim2=-1) - of_all), 0.0).sum() / n
    return found


def alternate(q: int = 1, model: int = 1, per: str = "step", parameters: Sequence[str] | None = None) -> Alternate:
    """Train q and the model in turns, for `SVI(alternate=...)`: EM with gradient steps (T18, 000 s. 3).

    In q's turn the bound rises by closing the gap to log p(x), in the model's turn by raising what is below. Gradients
    of all parameters are computed in one graph, and the optimiser moves those whose turn it is; the others keep their
    moments.

    Parameters
    ----------
    q, model : int
        Lengths of the turns; q begins.
    per : {"step", "epoch"}
        What the lengths count.
    parameters : sequence of str, optional
        Which parameters are q's, by name or by the module that holds them, such as ["encoder"]. By default those that a
        draw of q or its density uses: encoders, parameters of single data, the guide of shared latents. What the
        prior uses too, as a VampPrior the encoder, is q's.

    Raises
    ------
    EngineError
        If a length is below 1; at the fit, if one side has no parameter.

    Examples
    --------
    >>> alternate(q=5)
    Alternate(q=5, model=1, per='step', parameters=None)
    """
    return Alternate(q, model, per, _names(parameters))


def lagging(
    window: int = 10, most: int = 100, patience: int = 1, rows: int = 500, parameters: Sequence[str] | None = None
) -> Lagging:
    """Let q catch up before every step of the model while codes gain information, then train both: against collapse.

    An encoder that lags behind the true posterior lets the decoder learn to ignore the code (T22). q takes steps until
    the mean objective of a window of them is no better than that of the window before, then the model takes one. At the
    end of each epoch I(x; z) is estimated; when it has not risen above its best for `patience` epochs, both are trained
    together from then on, and the status of the fit says so.

    Parameters
    ----------
    window : int
        Steps of q whose objectives are averaged.
    most : int
        Steps of q in one turn, at most.
    patience : int
        Epochs without more information before both are trained together; 1 is the published rule, for long epochs.
    rows : int
        Rows of the data, the first ones, on which I(x; z) is estimated; the estimate cannot exceed log(rows).
    parameters : sequence of str, optional
        As in `alternate`.

    Raises
    ------
    EngineError
        If a number is out of range; at the fit, where no latent has a q.

    References
    ----------
    He, Spokoyny, Neubig and Berg-Kirkpatrick (2019). Lagging inference networks and posterior collapse in variational
    autoencoders. ICLR.

    Examples
    --------
    >>> lagging(most=50).most
    50
    """
    return Lagging(window, most, patience, rows, _names(parameters))


def _names(parameters: str | Sequence[str] | None) -> tuple[str, ...] | None:
    """One name or several; a string is not a sequence of letters."""
    return (parameters,) if isinstance(parameters, str) else None if parameters is None else tuple(parameters)
