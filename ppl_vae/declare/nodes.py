"""Nodes of a declaration: what the decorators make, and how a class's nodes are checked and ordered."""

import difflib
import dis
import inspect
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from types import MethodType
from typing import Any, overload

import pyro
from pyro.nn import PyroModule

from ppl_vae.errors import DeclarationError

__all__ = [
    "Given",
    "Graph",
    "Node",
    "Penalty",
    "Posterior",
    "Term",
    "collect",
    "given",
    "inherit",
    "latent",
    "observed",
    "penalty",
]

NodeFunction = Callable[..., Any]


class Term:
    """A method of a declaration; its arguments name what it depends on."""

    def __init__(self, function: NodeFunction) -> None:
        self.parents = _parents(function)
        self.function = function
        self.name = function.__name__
        self.__doc__ = function.__doc__

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        return self if instance is None else MethodType(self.function, instance)


class Node(Term):
    """A random variable of the model: a method that returns its distribution, its arguments being its parents."""

    def __init__(self, function: NodeFunction, kind: str, shared: bool = False) -> None:
        super().__init__(function)
        self.kind, self.shared = kind, shared

    def posterior(self, function: NodeFunction) -> "Posterior":
        """Declare q(this latent | arguments)."""
        return Posterior(function, self)


class Posterior(Term):
    """q of a latent: a method that returns a distribution, its arguments what the distribution depends on."""

    def __init__(self, function: NodeFunction, node: Node) -> None:
        super().__init__(function)
        self.node = node


class Penalty(Term):
    """A term of the training objective only: a method that returns [n] nats."""


class Given:
    """An input of the model that is conditioned on, never modelled."""

    name: str

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name


@overload
def latent(function: NodeFunction) -> Node: ...
@overload
def latent(*, shared: bool = False) -> Callable[[NodeFunction], Node]: ...
def latent(function: NodeFunction | None = None, *, shared: bool = False) -> Any:
    """Declare a latent variable: one draw per datum, or with shared=True one draw for the whole data set.

    Parameters
    ----------
    function : method
        Returns the distribution given its arguments, which name other nodes or inputs.
    shared : bool
        Whether it is drawn once, before the data: a parameter with a prior. It then depends on shared latents alone,
        and has no posterior of its own: SVI gives it an automatic guide.

    Examples
    --------
    >>> import torch, ppl_vae as pv, pyro.distributions as dist
    >>> class Coin(pv.LatentVariableModel):
    ...     @pv.latent(shared=True)
    ...     def bias(self):
    ...         return dist.Beta(1.0, 1.0)
    ...     @pv.observed
    ...     def x(self, bias):
    ...         return dist.Bernoulli(bias)
    >>> Coin().graph()["x"].parents
    ('bias',)
    """
    return Node(function, "latent", shared) if function is not None else lambda f: Node(f, "latent", shared)


@overload
def observed(function: NodeFunction) -> Node: ...
@overload
def observed() -> Callable[[NodeFunction], Node]: ...
def observed(function: NodeFunction | None = None) -> Any:
    """Declare an observed variable, one value per datum.

    Examples
    --------
    >>> observed(lambda self, z: None).parents
    ('z',)
    """
    return Node(function, "observed") if function is not None else observed


@overload
def penalty(function: NodeFunction) -> Penalty: ...
@overload
def penalty() -> Callable[[NodeFunction], Penalty]: ...
def penalty(function: NodeFunction | None = None) -> Any:
    """Declare a term that SVI subtracts from its training objective, [n] nats; never part of the bound.

    Its arguments are observed nodes, inputs, latents, and posteriors by their names, of which it gets the
    distribution. Over a finite latent its expectation is taken, under q where that was declared, else under
    p(z | x). A fit reports its mean in each epoch as `trace["penalty: name"]`.

    Examples
    --------
    >>> import torch, ppl_vae as pv, pyro.distributions as dist
    >>> class Shrunken(pv.models.VAE):
    ...     @pv.penalty
    ...     def far(self, q_z):
    ...         return 0.1 * q_z.mean.square().sum(-1)
    >>> vae = Shrunken(pv.nets.mlp_encoder(4, 8, 1), pv.nets.mlp_decoder(1, 8, 4))
    >>> fit = pv.SVI(2, progress=False).fit(vae, torch.zeros(9, 4))
    >>> sorted(fit.trace)
    ['bound', 'objective', 'penalty: far', 'seconds']
    """
    return Penalty(function) if function is not None else penalty


def given() -> Any:
    """Declare an input that the model conditions on, such as the labels of a conditional VAE.

    Examples
    --------
    >>> isinstance(given(), Given)
    True
    """
    return Given()


def _parents(function: NodeFunction) -> tuple[str, ...]:
    if not inspect.isfunction(function):
        raise DeclarationError(f"a node is a method, got {function!r}: write @latent, @observed or @penalty above it")
    parameters = list(inspect.signature(function).parameters.values())
    if not parameters:
        raise DeclarationError(f"node {function.__name__!r} takes no argument; it is a method, whose first one is self")
    for p in parameters[1:]:
        if p.kind not in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) or p.default is not p.empty:
            raise DeclarationError(
                f"node {function.__name__!r}: argument {p} must be a plain name, the name of a parent node or input"
            )
    return tuple(p.name for p in parameters[1:])


@dataclass(frozen=True)
class Graph:
    """The checked nodes of a class, parents before children."""

    nodes: Mapping[str, Node] = field(default_factory=dict)
    posteriors: Mapping[str, Posterior] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()
    penalties: Mapping[str, Penalty] = field(default_factory=dict)

    def of_kind(self, kind: str, shared: bool = False) -> list[Node]:
        """Nodes of a kind, in order."""
        return [n for n in self.nodes.values() if n.kind == kind and n.shared == shared]


def inherit(bases: Sequence[type]) -> Graph:
    """What a class's bases declare, in method resolution order: as for any method, the nearest wins."""
    nodes: dict[str, Node] = {}
    posteriors: dict[str, Posterior] = {}
    inputs: list[str] = []
    penalties: dict[str, Penalty] = {}
    for base in reversed(bases):
        for name, value in vars(base).items():
            if isinstance(value, Node):
                nodes[name] = value
            elif isinstance(value, Posterior):
                posteriors[value.node.name] = value
            elif isinstance(value, Penalty):
                penalties[name] = value
            elif isinstance(value, Given):
                inputs.append(name)
    return Graph(nodes, posteriors, tuple(dict.fromkeys(inputs)), penalties)


def collect(cls: type, inherited: Graph, reserved: Iterable[str]) -> Graph:
    """The graph of a class: its parents' nodes, those it overrides, and its own.

    Raises
    ------
    DeclarationError
        Naming the node, the argument and the class for an unknown parent, a cycle, a name taken by the base
        class, or a posterior of an observed node.
    """
    nodes, posteriors, penalties = dict(inherited.nodes), dict(inherited.posteriors), dict(inherited.penalties)
    inputs = list(inherited.inputs)
    taken = {p.name: name for name, p in posteriors.items()}
    for name, value in list(vars(cls).items()):
        if inspect.isfunction(value) and name in nodes:
            value = Node(value, nodes[name].kind, nodes[name].shared)
            setattr(cls, name, value)
        elif inspect.isfunction(value) and name in taken:
            value = Posterior(value, nodes[taken[name]])
            setattr(cls, name, value)
        elif inspect.isfunction(value) and name in penalties:
            value = Penalty(value)
            setattr(cls, name, value)
        if isinstance(value, Term | Given) and name in reserved:
            raise DeclarationError(
                f"{cls.__name__}.{name}: the name {name!r} belongs to LatentVariableModel; give the node another name"
            )
        if isinstance(value, Node):
            nodes[name] = value
        elif isinstance(value, Given):
            inputs.append(name)
        elif isinstance(value, Posterior):
            _check_posterior(cls, value)
            posteriors[value.node.name] = value
        elif isinstance(value, Penalty):
            penalties[name] = value
    _check_hidden(cls, reserved)
    known = {*nodes, *inputs}
    _check_parents(cls, [*nodes.values(), *posteriors.values()], known)
    _check_parents(cls, penalties.values(), {*known, *(q.name for q in posteriors.values())})
    _check_shared(cls, nodes)
    for item in (*nodes.values(), *posteriors.values()):
        _check_unsampled(cls, item)
    order = _topological(cls, {name: [p for p in n.parents if p in nodes] for name, n in nodes.items()})
    among = {name: [p for p in q.parents if p in posteriors] for name, q in posteriors.items()}
    guide_order = _topological(cls, among)
    # Shared latents are drawn before the plate.
    order.sort(key=lambda name: not nodes[name].shared)
    return Graph(
        {n: nodes[n] for n in order},
        {n: posteriors[n] for n in guide_order},
        tuple(dict.fromkeys(inputs)),
        penalties,
    )


def _check_hidden(cls: type, reserved: Iterable[str]) -> None:
    """A helper must not take the place of a method by accident; one with the same arguments means to."""
    for name in sorted(vars(cls).keys() & (set(reserved) - set(dir(PyroModule)))):
        hidden = next(vars(base)[name] for base in cls.__mro__[1:] if name in vars(base))
        if _arguments(vars(cls)[name]) != _arguments(hidden):
            raise DeclarationError(
                f"{cls.__name__}.{name} would hide {name!r} of LatentVariableModel, which is another thing; give it "
                f"another name"
            )


def _arguments(member: Any) -> tuple[str, ...] | None:
    """Names of the arguments of a method, () of a property; None of anything else."""
    if isinstance(member, property):
        return ()
    return tuple(inspect.signature(member).parameters) if inspect.isfunction(member) else None


def _check_posterior(cls: type, posterior: Posterior) -> None:
    if posterior.node.kind == "observed":
        raise DeclarationError(
            f"{cls.__name__}.{posterior.name}: posterior for {posterior.node.name!r}, which is observed; only a latent "
            f"has a posterior"
        )
    if posterior.node.shared:
        raise DeclarationError(
            f"{cls.__name__}.{posterior.name}: {posterior.node.name!r} is shared; the q of shared latents is an "
            f"automatic guide, chosen by SVI(guide=...)"
        )
    if posterior.name == posterior.node.name:
        raise DeclarationError(
            f"{cls.__name__}.{posterior.name}: a posterior needs a name of its own, for example q_{posterior.name}"
        )


def _check_parents(cls: type, items: Iterable[Term], known: set[str]) -> None:
    for item in items:
        for parent in item.parents:
            if parent not in known:
                near = difflib.get_close_matches(parent, known, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise DeclarationError(
                    f"{cls.__name__}.{item.name}: argument {parent!r} names no node or input; there are "
                    f"{', '.join(sorted(known)) or 'none'}{hint}"
                )


def _check_shared(cls: type, nodes: Mapping[str, Node]) -> None:
    for node in nodes.values():
        local = [p for p in node.parents if p not in nodes or not nodes[p].shared]
        if node.shared and local:
            raise DeclarationError(
                f"{cls.__name__}.{node.name} is shared, drawn once before the data plate, but depends on {local[0]!r}, "
                f"which has a value per datum"
            )


def _check_unsampled(cls: type, item: Term) -> None:
    """What a node would draw by itself is drawn anew at every call, and never inferred."""
    if _calls_sample(item.function.__code__, item.function.__globals__):
        raise DeclarationError(
            f"{cls.__name__}.{item.name} calls pyro.sample, and a node only returns its law: a latent is a node of its "
            "own; declare it with @latent(shared=True), or @latent for a value per datum, and take it as an argument"
        )


def _calls_sample(code: types.CodeType, around: Mapping[str, Any]) -> bool:
    names = [(str(one.opname), one.argval) for one in dis.get_instructions(code)]
    for (opname, name), (_, then) in pairwise([*names, ("", "")]):
        found = around.get(name) if opname == "LOAD_GLOBAL" else None
        if found is pyro.sample or (found is pyro and then == "sample"):
            return True
    return any(_calls_sample(inner, around) for inner in code.co_consts if isinstance(inner, types.CodeType))


def _topological(cls: type, parents: Mapping[str, list[str]]) -> list[str]:
    order: list[str] = []
    path: list[str] = []

    def visit(name: str) -> None:
        if name in path:
            cycle = " -> ".join([*path[path.index(name) :], name])
            raise DeclarationError(f"{cls.__name__}: the nodes depend on each other in a cycle: {cycle}")
        if name in order:
            return
        path.append(name)
        for parent in parents[name]:
            visit(parent)
        path.pop()
        order.append(name)

    for name in parents:
        visit(name)
    return order
