"""What every family is: a distribution, its sufficient statistics, and its maximum-likelihood update."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, ClassVar, Protocol

import torch
from pyro.distributions import TorchDistribution
from pyro.nn import PyroModule, PyroParam
from torch import Tensor
from torch.distributions.constraints import Constraint

from ppl_vae.errors import DeclarationError, EngineError

__all__ = ["ConjugatePrior", "Family", "Parts", "Prior", "Sums"]

Sums = dict[str, Tensor]
"""Expected sufficient statistics; they add over chunks of data."""

Parts = Iterable[tuple[Any, ...]]
"""(data [n, *event], weights [n] or None, *covariates), chunk by chunk, to be gone through again; NaN is missing."""


NOTHING: Mapping[str, Tensor] = MappingProxyType({})


class Prior(Protocol):
    """A conjugate prior: one law per parameter of its family, in sampling order."""

    def site(self, family: Any, name: str, values: Mapping[str, Tensor]) -> TorchDistribution:
        """p(parameter | earlier parameters), the whole parameter in its event shape."""
        ...


class ConjugatePrior:
    """A prior of this package, which is of one kind of family; a user's own is any object with `site`."""


class Family(PyroModule):
    """An exponential family with `batch` members, called with an index to give a distribution.

    A family without a prior owns its parameters. With a prior they are shared latents of the model: they have
    no value of their own until `bind` gives them one.

    A new family sets `constraints`, and defines `defaults`, `distribution`, `features`, `log_density`,
    `expect` and `maximize`. EM asks for `features` once for each chunk of rows, for `kernel` once in each E-step,
    and then for `expand`, `log_density` and `expect` of that kernel, chunk by chunk.

    Parameters
    ----------
    batch : int
        Number of members K.
    prior : Prior, optional
        Conjugate prior over the parameters.
    """

    constraints: ClassVar[dict[str, Constraint]] = {}

    def __init__(self, batch: int, prior: Any = None) -> None:
        super().__init__()
        self.batch, self.prior = batch, prior

    def register(self) -> None:
        """Create the parameters, at the end of a subclass's __init__."""
        if self.prior is None:
            for name, value in self.defaults().items():
                setattr(self, name, PyroParam(value, self.parameter_constraint(name)))

    def parameter_constraint(self, name: str) -> Constraint:
        """The set that a parameter lives in."""
        return self.constraints[name]

    def __getattr__(self, name: str) -> Any:
        if name in type(self).constraints and self.__dict__.get("prior") is not None:
            raise EngineError(
                f"{type(self).__name__}.{name} has a prior, so it is a shared latent without a value of its own; "
                f"fit the model and read fit.parameters or fit.draws, or pass prior=None"
            )
        return super().__getattr__(name)

    @contextmanager
    def bind(self, values: Mapping[str, Tensor]) -> Iterator[None]:
        """Let `values` stand for the parameters within the block."""
        before = {name: self.__dict__[name] for name in values if name in self.__dict__}
        # Instance attributes are found before PyroModule's parameters.
        self.__dict__.update(values)
        try:
            yield
        finally:
            for name in values:
                self.__dict__.pop(name, None)
            self.__dict__.update(before)

    @property
    def fixed(self) -> tuple[str, ...]:
        """Parameters that `fix` gave a value."""
        return self.__dict__.get("_fixed", ())

    def hold(self, names: Iterable[str]) -> None:
        """Let these parameters count as given, at the values that they have."""
        self.__dict__["_fixed"] = tuple(dict.fromkeys((*self.fixed, *names)))

    def fix(self, values: Mapping[str, Tensor]) -> None:
        """Give the parameters these values."""
        self.hold(values)
        for name, value in values.items():
            if self.prior is None:
                try:
                    setattr(self, name, value)
                except torch.linalg.LinAlgError as error:
                    raise EngineError(
                        f"{name} is not positive definite in {value.dtype}, though it may be in more digits: fit in "
                        f"float64 (pass data.double()), or start from components that are less flat ({error})"
                    ) from error
            else:
                self.__dict__[name] = value

    def __call__(self, *args: Any, **kwargs: Any) -> TorchDistribution:
        """Call `forward` outside Pyro's context, or within the model's."""
        # PyroModule's own __call__ would write the parameters into Pyro's global store, where two models of one
        # class overwrite each other; inside a model the model's own context decides.
        return torch.nn.Module.__call__(self, *args, **kwargs)

    def forward(self, index: Tensor | None = None, *given: Tensor) -> TorchDistribution:
        """Distribution of member `index` (any shape of integers), or of the only member, given covariates."""
        d = self.distribution(index, *given)
        d.origin = (self, index, given)  # EM reads which family made the distribution
        return d

    def adapt(self, parts: Parts) -> None:
        """Take from data what depends on its scale: a weak prior, a variance floor."""

    def coordinates(self, x: Tensor) -> Tensor:
        """Data x as points [n, p] whose distances mean something, for starts; missing entries at the centre."""
        x = x if x.is_floating_point() else x.double()
        return torch.where(x.isnan(), x.nanmean(0).nan_to_num(), x).reshape(len(x), -1)

    def values(self) -> dict[str, Tensor]:
        """The parameters as they stand, constrained."""
        return {name: getattr(self, name).detach() for name in self.constraints}

    # What a subclass defines.

    def defaults(self) -> dict[str, Tensor]:
        """Starting values of the parameters by name."""
        raise NotImplementedError

    def distribution(self, index: Tensor | None, *given: Tensor) -> TorchDistribution:
        """The distribution of member `index`."""
        raise NotImplementedError

    def features(self, x: Tensor, *given: Tensor) -> Any:
        """What of x [n, *event] every E-step needs, computed once; missing entries are NaN."""
        return x

    def kernel(self) -> Any:
        """The object whose `expand`, `log_density` and `expect` one E-step calls: the family, unless it prepares."""
        return self

    def expand(self, features: Any) -> Any:
        """What of a chunk's features both halves of an E-step need."""
        return features

    def log_density(self, expanded: Any) -> Tensor:
        """Log p(x_i | member k), [K, n] in nats, missing entries integrated out."""
        raise NotImplementedError

    def expect(self, expanded: Any, r: Tensor) -> Sums:
        """sum_i r_ki E[t(x_i)] for responsibilities r [K, n]."""
        raise NotImplementedError

    def maximize(self, sums: Sums, estimate: str, fixed: Mapping[str, Tensor] = NOTHING) -> dict[str, Tensor]:
        """Parameters that maximise the expected log-likelihood, plus the log prior when estimate="map".

        Parameters in `fixed` keep the value given there, and the others are maximised under it; a family with a
        single parameter is not asked when that one is fixed.
        """
        raise NotImplementedError

    @property
    def width(self) -> int:
        """Numbers per datum of the largest temporary in an E-step."""
        return self.batch

    def degenerate(self, sums: Sums, values: Mapping[str, Tensor]) -> Tensor:
        """[K] of bool: members that have lost their data or sit on too few to be estimated."""
        return sums["count"] <= torch.finfo(sums["count"].dtype).eps * sums["count"].sum()

    @property
    def saturated(self) -> int:
        """How many data a member fits equally well wherever they are: as many as it has parameters to a feature."""
        return len(self.constraints)

    def remarks(self) -> list[str]:
        """What of the data seen by `adapt` a fit's status should mention."""
        return []

    # The prior, when there is one.

    @classmethod
    def choose_prior(cls, prior: Any, weak: type[Any]) -> Any:
        """The prior itself, or the weak one by its name.

        Raises
        ------
        DeclarationError
            For any other string, a prior of other families, or no prior at all.
        """
        if isinstance(prior, str) and prior == "weak":
            return weak()
        if isinstance(prior, ConjugatePrior) and not isinstance(prior, weak):
            raise DeclarationError(f"{cls.__name__} takes a {weak.__name__} as its prior, got {prior}")
        if prior is not None and not hasattr(prior, "site"):
            raise DeclarationError(f'{cls.__name__}: prior must be None, "weak" or a prior object; got {prior!r}')
        return prior

    def site(self, name: str, values: Mapping[str, Tensor]) -> TorchDistribution:
        """Law of one parameter given those before it."""
        if self.prior is None:
            raise EngineError(f"{type(self).__name__} has no prior, so {name} has no law")
        return self.prior.site(self, name, values)

    def extra_repr(self) -> str:
        """Size and prior, for torch's repr."""
        return f"batch={self.batch}, prior={self.prior}"
