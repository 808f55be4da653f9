"""NUTS on many data sets of the same shapes: one graph of the density, whose data are its inputs."""

from dataclasses import dataclass, field, fields

from torch import Tensor

from ppl_vae.errors import EngineError
from ppl_vae.infer.nuts import NUTS
from ppl_vae.infer.target import Density, Target, make_traced
from ppl_vae.infer.tracing import Traced

__all__ = ["SharedNUTS", "shared"]

CLOSE = 1e-6
"""Relative difference between the graph at new data and their own density that rounding explains."""


@dataclass(frozen=True)
class SharedNUTS(NUTS):
    """NUTS that traces the density of its first fit, and replaces the data in the others.

    Parameters
    ----------
    num_fits : int
        How many fits are planned: whether to compile depends on all of their draws.
    """

    num_fits: int = 1
    kept: dict[str, Traced] = field(default_factory=dict)

    def target(self, density: Density, at: Tensor) -> Target:
        """The kept graph at this density's data."""
        if "graph" not in self.kept:
            draws = self.num_fits * self.num_chains * (self.warmup + self.num_samples)
            self.kept["graph"] = make_traced(density, at, draws, self.compile)
        traced = self.kept["graph"]
        value, own = traced(at, *density.data)[0].item(), density.log_density(at).item()
        if not abs(value - own) <= CLOSE * max(1.0, abs(own)):
            raise EngineError(
                f"one graph does not serve these data: it gives log density {value:.6g}, the model {own:.6g}; the "
                f"declaration keeps something of its data that is no buffer"
            )
        return Target(lambda u: traced(u, *density.data), traced.mode)


def shared(engine: NUTS, num_fits: int) -> SharedNUTS:
    """The engine, for many data sets of one shape."""
    return SharedNUTS(**{f.name: getattr(engine, f.name) for f in fields(NUTS)}, num_fits=num_fits)
