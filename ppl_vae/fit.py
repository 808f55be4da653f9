"""The record of a fit: what was fitted, how it went, and everything the fitted model can say."""

import os
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ppl_vae.errors import EngineError
from ppl_vae.fit_answers import Answers
from ppl_vae.version import __version__

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Fit", "Status", "check_fit", "versions"]


@dataclass(frozen=True)
class Status:
    """How a fit ended, as a value.

    Attributes
    ----------
    code : str
        "converged", "finished", "stopped early", "stopped by a callback", "interrupted", "max_iter", "degenerate" or
        "failed".
    message : str
        One sentence for people.
    notes : tuple of str
        What happened on the way: repairs, warnings, naming the component or site.
    """

    code: str
    message: str
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the answer can be used as it is."""
        return self.code in ("converged", "finished", "stopped early", "stopped by a callback")

    def __str__(self) -> str:
        return "; ".join([f"{self.code}: {self.message}", *self.notes])


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    import pyro

    return {
        "ppl_vae": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "pyro": pyro.__version__,
    }


class Parameters(dict[str, Tensor]):
    """A dictionary that says what it holds when it is asked for what it does not."""

    def __missing__(self, name: str) -> Tensor:
        raise KeyError(f"there is no parameter {name!r}; there are {', '.join(self)}")


@dataclass
class Fit(Answers):
    """Declaration, state, draws, trace and status of one fit.

    Attributes
    ----------
    model : LatentVariableModel
        The fitted copy of the declaration.
    engine : str
        "EM", "VB", "SVI", "NUTS" or "bootstrap".
    draws : dict of Tensor
        Shared latents, [chain, draw, *event]; a point estimate is 1 x 1. A bootstrap's are its refits.
    trace : dict of Tensor
        The engine's record by iteration or epoch: "bound" (total nats for EM and VB, nats per datum for SVI),
        "seconds", ...
    bound : str
        What `trace["bound"]` is.
    status : Status
        How it ended.
    seconds : float
        Wall-clock time of the fit.
    seed : int
        Seed that repeats it.
    settings : dict
        Most of the engine's arguments.
    data : Observations, optional
        The training data; not saved.
    weights : Tensor, optional
        [n], of the training data; not saved.
    sample_stats : dict of Tensor
        Sampler's record, [chain, draw].
    versions : dict of str
        Of ppl_vae, python, torch and pyro, with which it was made.
    history : dict of Tensor
        EM's parameters at some of its iterations, [iterations kept, *event], and under "iteration" which these are.
    q : dict
        VB's conjugate posterior of each family's parameters, by path; not saved.
    """

    model: Any
    engine: str
    draws: dict[str, Tensor]
    trace: dict[str, Tensor]
    bound: str
    status: Status
    seconds: float
    seed: int
    settings: dict[str, Any] = field(default_factory=dict)
    data: Any = None
    weights: Tensor | None = None
    sample_stats: dict[str, Tensor] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=versions)
    history: dict[str, Tensor] = field(default_factory=dict)
    q: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.model, torch.nn.Module):
            for module in self.model.modules():
                module.__dict__["_of_fit"] = True  # frozen by the engine, not by its owner: a later fit trains on

    @property
    def parameters(self) -> dict[str, Tensor]:
        """Mean over its draws of each parameter that has draws, and the value of each other one, by name."""
        found = {name: value.mean((0, 1)) for name, value in self.draws.items()}
        for path, family in self.model.families().items():
            if family.prior is None:
                own = {f"{path}.{name}": value for name, value in family.values().items()}
                found |= {name: value for name, value in own.items() if name not in found}
        return Parameters({**found, **getattr(self.model, "values", {})})

    # What the fit is worth, and how to keep it.

    def evaluate(self, data: Any, num_particles: int = 100, weights: Any = None, seed: int = 0) -> Any:
        """ELBO, log p(x), KL per unit and their kin on data: see ppl_vae.evaluation.evaluate."""
        from ppl_vae.evaluation import evaluate

        return evaluate(self, data, num_particles, seed, weights)

    def diagnose(self, data: Any = None, **options: Any) -> Any:
        """Collapse, prior hole and quality of q, with verdicts and advice: see ppl_vae.diagnose.diagnose."""
        from ppl_vae.diagnose import diagnose

        return diagnose(self, data, **options)

    def to_datatree(self, data: Any = None, seed: int = 0) -> "xr.DataTree":
        """Everything that ArviZ reads, as one tree of named arrays: see ppl_vae.datatree.to_datatree."""
        from ppl_vae.datatree import to_datatree

        return to_datatree(self, data, seed)

    def export(self, path: str | os.PathLike[str], data: Any = None) -> Path:
        """Write q(z | x) and p(x | z) as programs that run without this package: see ppl_vae.export.export."""
        from ppl_vae.export import export

        return export(self, path, data)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write parameters, draws and record to one safetensors file; no code, no pickle, no data.

        Parameters
        ----------
        path : path
            File to write; an older one is replaced only when the new one is complete.

        Raises
        ------
        DataError
            If the file system refuses.
        EngineError
            If the model is an ordinary Pyro program.
        """
        from ppl_vae.fit_files import save

        return save(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: Any) -> "Fit":
        """Read a fit back into a declaration of the same class and shape.

        Raises
        ------
        DataError
            If the file is missing, cut short, not a fit, or of another model.
        """
        from ppl_vae.fit_files import load

        return load(path, model)

    def _free(self) -> list[str]:
        """Names of networks and parameters that no family owns."""
        own = (*(f"{path}." for path in self.model.families()), "local_posteriors.", "shared_guide.")
        named = self.model.named_parameters() if isinstance(self.model, torch.nn.Module) else ()
        return list(dict.fromkeys(name.partition(".")[0] for name, _ in named if not name.startswith(own)))

    def __repr__(self) -> str:
        kind = "point estimate" if self.is_point else f"{self.num_draws} draws"
        last = self.trace.get("bound")
        bound = f"\n  {self.bound}: {last[-1].item():.4f}" if last is not None and len(last) else ""
        free = self._free()
        rest = f"{'; ' if self.parameters else ''}in fit.model {', '.join(free)}" if free else ""
        return (
            f"Fit of {type(self.model).__name__} by {self.engine} ({kind}, {self.seconds:.1f} s, seed {self.seed})"
            f"\n  {self.status}{bound}"
            f"\n  parameters: {', '.join(self.parameters)}{rest}"
            f"\n  next: fit.log_predictive(x), fit.sample(n), fit.evaluate(x), fit.to_datatree(), fit.save(path)"
        )

    def _repr_html_(self) -> str:
        from ppl_vae.report import fit_html

        return fit_html(self)


def check_fit(where: str, fit: Any) -> None:
    """Refuse what is no Fit, such as a model that is not fitted yet."""
    if not isinstance(fit, Fit):
        raise EngineError(
            f"{where} takes a Fit, got a {type(fit).__name__}: fit the model first, {where}(engine.fit(model, data))"
        )
