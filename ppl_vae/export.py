"""Encoder and decoder of a fitted model as programs of torch.export, which run without this package."""

import json
from collections.abc import Iterable, Mapping
from copy import deepcopy
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from pyro.distributions.torch import Independent
from pyro.distributions.torch_distribution import ExpandedDistribution
from torch import Tensor, nn
from torch.distributions import MixtureSameFamily
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils.data import Dataset

from ppl_vae.alone import unvalidated
from ppl_vae.declare import LatentVariableModel, Observations
from ppl_vae.errors import EngineError
from ppl_vae.fit import Fit, versions
from ppl_vae.infer.batches import make_batches
from ppl_vae.likelihoods.pixels import PixelLevels
from ppl_vae.records import writable, write_bytes

__all__ = ["export"]

ROWS = 3
"""Rows that a program is traced with; 0 and 1 are sizes that torch.export may take as fixed."""


def export(fit: Fit, path: Any, data: Any = None) -> Path:
    """Write q(z | x) and p(x | z) as torch.export programs: tensors in, a tuple of tensors out, any number of rows.

    `encoder.pt2` maps what a posterior depends on to the parameters of q, `decoder.pt2` latents to the parameters of
    p(x | z): loc and scale of a normal, logits of a Bernoulli declared by logits, and so on. Where several nodes have a
    posterior or are observed, each has a program of its own, `encoder-z.pt2`. `export.json` names every
    program's node, distribution, inputs and outputs with their shapes. Shared latents are constants in it.

    Parameters
    ----------
    fit : Fit
        Of a declared model, with one value for every shared latent.
    path : path
        Folder to write to; made when absent.
    data : Tensor, mapping, Dataset, DataLoader, Stream or iterable of batches, optional
        Rows that show shapes and types, of which a few are read; the training data when the fit still has them.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    EngineError
        For a Pyro pair, many draws of theta, no data to show shapes, a latent without a declared posterior, or a node
        that cannot be exported, which is named.
    DataError
        If the file system refuses.

    Examples
    --------
    >>> import tempfile, torch, ppl_vae as pv
    >>> vae = pv.models.VAE(pv.nets.mlp_encoder(4, 8, 1), pv.nets.mlp_decoder(1, 8, 4))
    >>> x = torch.bernoulli(torch.full((20, 4), 0.5))
    >>> fit = pv.SVI(epochs=1, progress=False).fit(vae, x)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     encoder = torch.export.load(fit.export(folder) / "encoder.pt2").module()
    >>> loc, scale = encoder(x[:5])
    >>> loc.shape
    torch.Size([5, 1])
    """
    model, shared = _frozen(fit)
    folder = Path(path)
    writable(folder / "export.json")
    with torch.no_grad(), unvalidated(), model.bind(shared), model.numeric():
        values, fixed = _values(model, _few(fit, model, data))
        graph = model._graph
        observed = {node.name: node for node in graph.of_kind("observed")}
        described, programs = {}, {}
        for role, items in (("encoder", graph.posteriors), ("decoder", observed)):
            for node, item in items.items():
                name = role if len(items) == 1 else f"{role}-{node}"
                law = _Law(model, item.name, item.parents, fixed, observed)
                programs[name], described[name] = _program(law, node, {k: values[k] for k in law.inputs})
    for name, program in programs.items():
        # Not to the file: torch's writer ends the process where the disk is full.
        torch.export.save(program, content := BytesIO())
        write_bytes(folder / f"{name}.pt2", content.getbuffer())
    record = {"model": type(model).__name__, "versions": versions(), "programs": described}
    write_bytes(folder / "export.json", f"{json.dumps(record, indent=2)}\n".encode())
    return folder


def _frozen(fit: Fit) -> tuple[LatentVariableModel, dict[str, Tensor]]:
    """A copy of the model on the CPU, and its shared latents' values."""
    name = type(fit.model).__name__
    if not isinstance(fit.model, LatentVariableModel):
        raise EngineError(f"export needs a declared model, which knows its posteriors; this is a fit of {name}")
    if not fit.is_point:
        raise EngineError(
            f"export writes one value of {', '.join(fit.draws)}, and this fit has {fit.num_draws} draws; fit with "
            f'EM, or with SVI(guide="delta")'
        )
    if not fit.model._graph.posteriors:
        raise EngineError(
            f"{name} declares no posterior, so there is no encoder to export; declare one with @z.posterior"
        )
    if fit.model.local_posteriors:
        latent = next(iter(fit.model.local_posteriors))
        raise EngineError(
            f"{name}.{latent} has no declared posterior: each training datum has a q of its own, no function of x; "
            f"declare one with @{latent}.posterior"
        )
    model = deepcopy(fit.model).cpu().eval().requires_grad_(False)
    return model, {k: v.cpu() for k, v in fit.draw(0).items()}


def _few(fit: Fit, model: LatentVariableModel, data: Any) -> Observations:
    """`ROWS` rows of data: of a Dataset its first, of a loader or a stream those of its first batch."""
    known = fit.data if data is None else data
    if known is None:
        raise EngineError(
            "export needs a few rows of data to see shapes, and this fit holds none, as it was read from a file or "
            "trained on a Dataset, a loader, a stream or batches: pass data=, a tensor of a few rows or the data set"
        )
    obs = make_batches(model, known, batch_size=ROWS if isinstance(known, Dataset) else None).first
    return obs.rows(torch.arange(ROWS) % len(obs)).to(model.like)


def _values(model: LatentVariableModel, obs: Observations) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A value of everything that a node may depend on: [ROWS, ...] per datum, and the shared ones."""
    scope = model.scope(obs)
    values = {name: placed.value for name, placed in scope.items() if placed.event_dim is not None}
    fixed = {name: placed.value for name, placed in scope.items() if placed.event_dim is None}
    for name, law in model.prototypes(obs).items():
        if name not in values:
            values[name] = law.sample() if law.batch_shape else law.sample((ROWS,))
    return values, fixed


class _Law(nn.Module):
    """The parameters of a node's distribution as a function of what it depends on in each datum."""

    def __init__(
        self,
        model: LatentVariableModel,
        method: str,
        parents: tuple[str, ...],
        fixed: Mapping[str, Tensor],
        observed: Iterable[str],
    ) -> None:
        super().__init__()
        self.model, self.method, self.parents, self.fixed = model, method, parents, fixed
        self.inputs = [name for name in parents if name not in fixed]
        self.observed = set(observed)

    def distribution(self, *values: Tensor) -> TorchDistribution:
        """What the node's method returns, one row for each datum."""
        known = {**self.fixed, **{k: self._filled(k, v) for k, v in zip(self.inputs, values, strict=True)}}
        law = getattr(self.model, self.method)(*(known[name] for name in self.parents))
        return law if law.batch_shape or not values else law.expand([values[0].shape[0]])

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        """The parameters, in the order of `parameters_of`."""
        return tuple(parameters_of(self.distribution(*values)).values())

    def _filled(self, name: str, value: Tensor) -> Tensor:
        """A missing entry of a datum is zero to a network, as when the model was fitted."""
        if name not in self.observed or not value.is_floating_point():
            return value
        return torch.where(value.isnan(), torch.zeros_like(value), value)


def _program(law: _Law, node: str, inputs: Mapping[str, Tensor]) -> tuple[ExportedProgram, dict[str, Any]]:
    """The program of a node, checked on another number of rows, and what the record says of it."""
    values = tuple(inputs.values())
    made = law.distribution(*values)
    named = parameters_of(made)
    where = f"{type(law.model).__name__}.{law.method}"
    if not named:
        raise EngineError(
            f"{where} cannot be exported: {_name(base_of(made))} is not told by parameters; use a distribution that "
            f"is, such as Normal"
        )
    try:
        rows = Dim("rows")
        program = torch.export.export(law, values, dynamic_shapes=(tuple({0: rows} for _ in values),))
    except Exception as error:  # whatever torch.export says about a user's network
        raise EngineError(f"{where} cannot be exported: {type(error).__name__}: {_reason(error)}") from error
    _drop_unused(program)
    more = tuple(value.repeat(2, *[1] * (value.dim() - 1)) for value in values)
    if not all(map(_same, program.module()(*more), law(*more))):
        raise EngineError(
            f"{where} cannot be exported: its program gives other numbers than the model; does it draw noise, or count "
            f"its rows in Python?"
        )
    return program, {
        "node": node,
        "distribution": _name(base_of(made)),
        "event_shape": list(made.event_shape),
        "inputs": [_signature(name, value) for name, value in inputs.items()],
        "outputs": [_signature(name, value, bool(values)) for name, value in named.items()],
    }


def _reason(error: Exception) -> str:
    """What explains a refusal of torch.export: the first of the points that it lists, or else its first line."""
    lines = [line.strip() for line in str(error).strip().splitlines()] or [""]
    told = next((line.removeprefix("- ") for line in lines if line.startswith("- ")), lines[0])
    told = told.partition(" If you're using")[0]  # options that are set here
    if "specialized it to be a constant" not in told:
        return told
    return (
        f"{told} A program takes any number of rows: write x.shape[0] in place of len(x), which is one number for good"
    )


def _signature(name: str, value: Tensor, per_datum: bool = True) -> dict[str, Any]:
    shape = ["rows", *value.shape[1:]] if per_datum else list(value.shape)
    return {"name": name, "shape": shape, "dtype": str(value.dtype).removeprefix("torch.")}


def _same(ours: Tensor, theirs: Tensor) -> bool:
    return ours.shape == theirs.shape and torch.allclose(ours, theirs, rtol=1e-5, atol=1e-6, equal_nan=True)


def _drop_unused(program: ExportedProgram) -> None:
    """Take the parameters of the rest of the model out of a program."""
    specs = program.graph_signature.input_specs
    placeholders = program.graph.find_nodes(op="placeholder")
    for node, spec in zip(placeholders, list(specs), strict=True):
        if spec.kind is not InputKind.USER_INPUT and not node.users:
            program.graph.erase_node(node)
            specs.remove(spec)
            program.state_dict.pop(spec.target, None)
            program.constants.pop(spec.target, None)


def base_of(law: Any) -> Any:
    """The distribution whose parameters count: without what only says which dimensions are the event's."""
    while isinstance(law, Independent | ExpandedDistribution):
        law = law.base_dist
    return law


def parts_of(base: Any) -> dict[str, Any]:
    """Of a distribution that is made of others those, by name; of one of a pixel's levels that of the level."""
    if isinstance(base, PixelLevels):
        return {"level": base.base}
    if isinstance(base, MixtureSameFamily):
        return {"mixture": base.mixture_distribution, "component": base.component_distribution}
    return {}


def _name(base: Any) -> str:
    """The kind of a distribution, with the kinds of its parts."""
    parts = [_name(base_of(part)) for part in parts_of(base).values()]
    return type(base).__name__ + (f"({', '.join(parts)})" if parts else "")


def parameters_of(law: Any) -> dict[str, Tensor]:
    """The parameters of a distribution by torch's names; of alternatives (probs, logits) the one it was made with.

    Those of its parts, where it has some, have the part's name in front, "component.loc".
    """
    base = base_of(law)
    if parts := parts_of(base):
        return {f"{part}.{name}": v for part, own in parts.items() for name, v in parameters_of(own).items()}
    own = {name: vars(base)[name] for name in base.arg_constraints if isinstance(vars(base).get(name), Tensor)}
    return own or {name: getattr(base, name) for name in base.arg_constraints}
