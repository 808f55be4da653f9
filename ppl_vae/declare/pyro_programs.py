"""A declared model as a Pyro model and guide."""

from typing import Any

import pyro
import torch
from torch import Tensor

from ppl_vae.declare.observations import Observations
from ppl_vae.declare.program import Placed
from ppl_vae.declare.prototypes import Prototypes
from ppl_vae.errors import EngineError

__all__ = ["PyroPrograms"]


class PyroPrograms(Prototypes):
    """The running half of a declared model; users subclass LatentVariableModel."""

    def model(self, data: Any = None, index: Tensor | None = None, size: int | None = None) -> dict[str, Tensor]:
        """The model as an ordinary Pyro program.

        Parameters
        ----------
        data : Tensor, mapping or None
            Observed values, [n, *event]; None draws them too, `size` of them.
        index : Tensor, optional
            Rows of the data set that these are.
        size : int, optional
            Number of data in the whole set; the minibatch is scaled by size / n (T12, 000 (39)).
        """
        obs = None if data is None else self.observe(data)
        with self._pyro_context, self.numeric():
            shared = self.shared_program()
            if shared:
                with self.bind(shared), self._plate(obs, index, size) as rows:
                    return {**shared, **self._generate(obs, len(rows))}
            with self._plate(obs, index, size) as rows:
                return self._generate(obs, len(rows))

    def _plate(self, obs: Observations | None, index: Tensor | None, size: int | None) -> pyro.plate:
        n = len(obs) if obs is not None else size
        if n is None:
            raise EngineError("model(None) draws new data: pass size=n to say how many")
        if index is None and size in (None, n):
            return pyro.plate("data", n, dim=-1)
        rows = torch.arange(n, device=self.like.device) if index is None else index
        return pyro.plate("data", n if size is None else size, subsample=rows, dim=-1)

    def _generate(self, obs: Observations | None, n: int) -> dict[str, Tensor]:
        obs = Observations({}) if obs is None else obs
        scope = self.scope(obs)
        for node in self.local_nodes():
            d = self.distribution(node.name, scope, obs)
            known = scope.get(node.name)
            finite = known is None and d.has_enumerate_support and node.name not in self._graph.posteriors
            infer = {"enumerate": "parallel"} if finite and node.kind == "latent" else {}
            value = pyro.sample(node.name, d, obs=known and known.value, infer=infer)
            scope[node.name] = Placed(value, d.event_dim)
            if self.partly_observed(node.name, obs):
                zero = torch.zeros_like(obs.missing[node.name], dtype=self.like.dtype)
                factor = self.restrict(node.name, value, obs, zero)
                pyro.factor(f"{node.name}_observed", factor)
        return {node.name: scope[node.name].value for node in self.local_nodes()}

    def guide(self, data: Any = None, index: Tensor | None = None, size: int | None = None) -> dict[str, Tensor]:
        """The posterior as an ordinary Pyro program, with the arguments of `model`."""
        obs = self.observe(data)
        with self._pyro_context, self.numeric():
            shared = dict(self._shared_guide()()) if self.shared_laws() else {}
            with self.bind(shared):
                if not self.local_posteriors and not torch._C._get_tracing_state():  # a run before made them
                    self.allocate(obs, size or len(obs))
                with self._plate(obs, index, size):
                    return {**shared, **self._infer(obs, index)}

    def _infer(self, obs: Observations, index: Tensor | None) -> dict[str, Tensor]:
        scope, values = self.scope(obs), {}
        for node in self._inferred(scope):
            q = self._posterior(node, scope, obs, index)
            if q is not None:
                infer = {"enumerate": "parallel"} if q.has_enumerate_support else {}
                values[node.name] = pyro.sample(node.name, q, infer=infer)
                scope[node.name] = Placed(values[node.name], q.event_dim)
        return values
