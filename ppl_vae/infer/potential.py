"""The log joint of everything that NUTS samples from a declared model, on one flat unconstrained vector."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from ppl_vae.alone import forked_rng
from ppl_vae.declare import LatentVariableModel, Observations
from ppl_vae.errors import EngineError
from ppl_vae.infer.layout import Layout

__all__ = ["Potential"]


class Potential:
    """log p(X, theta) + log|d theta / d u| at theta = T(u): shared latents, and continuous latents of each datum.

    Finite latents are summed out. Minus this is the potential energy that Hamiltonian samplers use.

    Parameters
    ----------
    model : LatentVariableModel
        Without free parameters.
    obs : Observations
        The data.
    weights : Tensor
        [n]: datum i counts w_i times.
    """

    def __init__(self, model: LatentVariableModel, obs: Observations, weights: Tensor) -> None:
        self.model, self.obs = model, obs
        self.names = [name for name, value in obs.values.items() if isinstance(value, Tensor)]
        self.local = model.draws_without_posterior(obs)
        self.layout = self._layout()
        self.data = self.tensors(obs, weights)

    def _layout(self) -> Layout:
        layout, values = Layout(), dict(self.model.family_defaults())
        with forked_rng(), self.model.numeric():
            for name, law in self.model.shared_laws().items():
                d = law(values)
                value = d.sample()
                values.setdefault(name, value)
                layout.add(name, value, d.support)
        laws = self.model.prototypes(self.obs)
        for name in self.local:
            if laws[name].support.is_discrete:
                raise EngineError(
                    f"NUTS moves along gradients, and latent {name!r} ~ {type(laws[name]).__name__} has whole values "
                    "that are not summed out: take a Categorical over as many as matter, for each entry"
                )
            shape = (len(self.obs), *laws[name].event_shape)
            layout.add(name, self.model.like.new_empty(shape), laws[name].support)
        return layout

    def tensors(self, obs: Observations, weights: Tensor) -> tuple[Tensor, ...]:
        """What the density depends on beside u: weights, observed values, and what the model keeps of its data.

        One graph of `log_density` serves every data set of these shapes whose missing entries are the same ones.
        """
        return weights, *[obs.values[name] for name in self.names], *_buffers(self.model).values()

    def prior_draw(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A draw of every site from the prior, given those already in `values`."""
        drawn = dict(values)
        with self.model.numeric(), torch.no_grad():
            for name, law in self.model.shared_laws().items():
                if name not in drawn:
                    drawn[name] = law(drawn).sample()
            with self.model.bind(drawn):
                if self.local:
                    inputs = {n: self.obs.values[n] for n in self.model.inputs}
                    joint = self.model.sample_joint(len(self.obs), **inputs)
                    drawn |= {name: joint[name] for name in self.local}
        return drawn

    def log_density(self, u: Tensor, *data: Tensor) -> Tensor:
        """Log p(X, theta) + log|d theta / d u|, total nats; `data` as `tensors` gives them, the model's own if none."""
        weights, *rest = data or self.data
        observed = dict(zip(self.names, rest, strict=False))
        kept = dict(zip(_buffers(self.model), rest[len(observed) :], strict=True))
        with _replaced(self.model, kept):
            values, log_jacobian = self.layout.constrain(u)
            local = {name: values.pop(name) for name in self.local}
            obs = Observations({**self.obs.values, **observed, **local}, self.obs.missing, self.obs.columns)
            with self.model.bind(values), self.model.numeric():
                per_datum = self.model.log_weights(obs, 1)[0]
                return (weights * per_datum).sum() + self.model.log_prior(values) + log_jacobian


def _buffers(model: LatentVariableModel) -> dict[str, Tensor]:
    """What families took from the data, such as the scale of a weak prior; flags decide what is computed and stay."""
    return {name: value for name, value in model.named_buffers() if value.is_floating_point() and value.numel()}


@contextmanager
def _replaced(model: LatentVariableModel, buffers: Mapping[str, Tensor]) -> Iterator[None]:
    """Within the block the model's buffers are these."""
    modules = dict(model.named_modules())
    places = [
        (modules[path]._buffers, own, value)
        for name, value in buffers.items()
        for path, _, own in [name.rpartition(".")]
    ]
    before = [owner[own] for owner, own, _ in places]
    for owner, own, value in places:
        owner[own] = value
    try:
        yield
    finally:
        for (owner, own, _), value in zip(places, before, strict=True):
            owner[own] = value
