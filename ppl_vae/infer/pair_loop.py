"""The only epoch loop: shuffle, step, record, stop."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ppl_vae.fit import Status
from ppl_vae.infer.progress import Update

__all__ = ["History", "StepResult", "train"]


@dataclass(frozen=True)
class StepResult:
    """What one step saw: sums over its batch, in nats, and the weight they stand for."""

    bound: Tensor
    objective: Tensor
    weight: Tensor


@dataclass
class History:
    """One row per epoch."""

    bound: list[float] = field(default_factory=list)
    objective: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def tensors(self) -> dict[str, Tensor]:
        """The columns that were filled."""
        return {k: torch.tensor(v, dtype=torch.float64) for k, v in vars(self).items() if v}


def train(
    module: nn.Module,
    step: Callable[[Tensor, float], StepResult],
    validate: Callable[[], float] | None,
    *,
    size: int,
    batch_size: int,
    epochs: int,
    patience: int | None,
    generator: torch.Generator,
    update: Update,
) -> tuple[History, Status]:
    """Run epochs of shuffled minibatches.

    Parameters
    ----------
    module : Module
        What is trained; its best state is restored when patience runs out.
    step : callable
        (rows, epoch as a fraction) to StepResult; it moves the parameters only when its loss is finite.
    validate : callable, optional
        Held-out bound in nats per datum, at the end of each epoch.
    size, batch_size, epochs : int
        Data, minibatch and passes.
    patience : int, optional
        Epochs without a better held-out bound before the end.
    """
    history, begin = History(), time.perf_counter()
    best, best_epoch, best_state = -float("inf"), -1, None
    for epoch in range(epochs):
        sums = torch.zeros(3, dtype=torch.float64)
        rows = torch.randperm(size, generator=generator) if batch_size < size else torch.arange(size)
        for number, batch in enumerate(rows.split(batch_size)):
            result = step(batch, epoch + number * batch_size / size)
            if not bool(torch.isfinite(result.objective)):
                message = f"the objective became {result.objective.item()} at epoch {epoch}, batch {number}"
                return history, Status("failed", f"{message}; the parameters before that step are kept")
            sums += torch.stack([result.bound, result.objective, result.weight]).detach().double().cpu()
        bound, objective = (sums[:2] / sums[2]).tolist()
        history.bound.append(bound)
        history.objective.append(objective)
        history.seconds.append(time.perf_counter() - begin)
        text = f"bound {bound:.4f} nats per datum"
        if validate is not None:
            held_out = validate()
            history.validation.append(held_out)
            text += f", held out {held_out:.4f}"
            if held_out > best:
                best, best_epoch = held_out, epoch
                best_state = {k: v.clone() for k, v in module.state_dict().items()} if patience is not None else None
            elif patience is not None and epoch - best_epoch >= patience and best_state is not None:
                module.load_state_dict(best_state)
                note = f"no better held-out bound in {patience} epochs; the state of epoch {best_epoch} is kept"
                return history, Status("stopped early", note)
        update(epoch + 1, text)
    return history, Status("finished", f"{epochs} epochs")
