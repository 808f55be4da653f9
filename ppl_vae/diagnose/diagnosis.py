"""What is wrong with a fit, as a table: collapse, prior hole, quality of q."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ppl_vae.declare.local import local_q
from ppl_vae.declare.pair import PyroPair
from ppl_vae.diagnose.advice import Training, advise, training_of
from ppl_vae.diagnose.aggregate import aggregate
from ppl_vae.diagnose.codes import Codes
from ppl_vae.diagnose.collapse import Collapse, collapse
from ppl_vae.diagnose.hole import Hole, hole
from ppl_vae.diagnose.inference import Inference, inference
from ppl_vae.diagnose.quantity import Quantity
from ppl_vae.errors import NO_DATA, DataError, EngineError, check_seed, check_whole
from ppl_vae.fit import check_fit
from ppl_vae.infer.weights import own_weights

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Diagnosis", "diagnose"]


@dataclass(frozen=True)
class Diagnosis:
    """Named quantities with their meaning and verdict, and what to do about those that warn.

    Attributes
    ----------
    collapse : Collapse
        What the latent units carry.
    hole : Hole
        How the aggregate posterior and the prior differ.
    inference : Inference
        How good q is.
    index : Tensor
        [n] rows of the data that were looked at; a row may stand there again where it has a weight.
    seed : int
        That chose them and drew the codes.
    notes : tuple of str
        What limits the whole table.
    training : Training
        How the model was trained, for the advice.
    data : Observations
        The rows that were looked at, for the figures.

    Examples
    --------
    >>> import ppl_vae as pv
    >>> x = pv.data.images("digits", binarize="threshold").train[:100]
    >>> vae = pv.models.VAE(pv.nets.mlp_encoder(64, 8, 2), pv.nets.mlp_decoder(2, 8, 64))
    >>> fit = pv.SVI(1, progress=False).fit(vae, x)
    >>> fit.diagnose(x)["active units"].ok
    False
    """

    collapse: Collapse
    hole: Hole
    inference: Inference
    index: Tensor
    seed: int
    notes: tuple[str, ...] = ()
    training: Training = field(default_factory=Training)
    data: Any = None
    quantities: dict[str, Quantity] = field(init=False)

    def __post_init__(self) -> None:
        parts = (self.collapse, self.hole, self.inference)
        named = {quantity.name: quantity for part in parts for quantity in part.quantities}
        object.__setattr__(self, "quantities", named)

    def __getitem__(self, name: str) -> Quantity:
        if name not in self.quantities:
            raise DataError(f"a diagnosis has no {name!r}; it has {', '.join(self.quantities)}")
        return self.quantities[name]

    def __iter__(self) -> Iterator[Quantity]:
        return iter(self.quantities.values())

    @property
    def n(self) -> int:
        """Number of data that were looked at."""
        return len(self.index)

    @property
    def ok(self) -> bool:
        """Whether nothing warns."""
        return all(quantity.ok is not False for quantity in self)

    @property
    def advice(self) -> list[str]:
        """A sentence for each warning: the evidence, what mends it, and the page to read."""
        return advise(self)

    def rows(self) -> list[tuple[str, str, str, bool | None]]:
        """Name, meaning, text and verdict of each quantity, for reports."""
        return [(q.name, q.meaning, q.text, q.ok) for q in self]

    def to_frame(self) -> "pd.DataFrame":
        """One row per quantity: value, standard error, unit, verdict, part, meaning, and why it is not defined."""
        import pandas as pd

        columns = ("value", "standard_error", "unit", "verdict", "part", "meaning", "why")
        frame = pd.DataFrame([[getattr(q, c) for c in columns] for q in self], list(self.quantities), columns)
        return frame.astype({"value": float, "standard_error": float})

    def figures(self, fit: Any = None, shape: Any = None, labels: Any = None) -> dict[str, Any]:
        """Axes by name; those of what is decoded need the fit, and the shape of images: see plots.diagnosis_figures."""
        from ppl_vae.plots import diagnosis_figures

        return diagnosis_figures(self, fit, shape, labels)

    def __str__(self) -> str:
        width = max(map(len, self.quantities)) + 2
        lines, part = [f"Diagnosis of {self.n} data"], ""
        for q in self:
            if q.part != part:
                lines.append(f"{q.part}")
                part = q.part
            lines.append(f"  {q.name:<{width}}{q.text}{'   <- ' + q.verdict if q.ok is False else ''}")
        return "\n".join([*lines, *self.notes, *(f"! {sentence}" for sentence in self.advice)])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        from html import escape

        cells = [(q.name, q.text, q.verdict, q.meaning) for q in self]
        body = "".join("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in row) + "</tr>" for row in cells)
        head = "<tr><th></th><th>value</th><th>verdict</th><th>meaning</th></tr>"
        said = "".join(f"<li>{escape(sentence)}</li>" for sentence in (*self.notes, *self.advice))
        return f"<table>{head}{body}</table><ul>{said}</ul>"


def diagnose(
    fit: Any,
    data: Any = None,
    size: int = 1000,
    num_particles: int = 500,
    gap_data: int = 32,
    ais_data: int = 0,
    seed: int = 0,
    weights: Any = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Diagnosis:
    """Measure collapse, prior hole and the quality of q of a fit whose latents have one.

    A datum of weight w counts as w data: it is looked at w times, or with so much more chance where the weights are no
    counts or their sum exceeds `size`.

    Parameters
    ----------
    fit : Fit
        Of a model with a latent per datum that is drawn, or is finite and has a q of its own.
    data : optional
        Held-out data; the training data by default.
    size : int
        Most data that are looked at, drawn at random.
    num_particles : int
        Draws of q per datum for log p(x).
    gap_data : int
        Data for which a q of their own is sought, to split the gap of the bound; 0 leaves it out.
    ais_data : int
        Data whose log p(x) is checked by annealed importance sampling; 0 leaves it out.
    seed : int
        Seed of all draws; the generator is put back as it was.
    weights : Tensor, optional
        [n]; those of the fit by default, where the data are its own.
    checkpoint : path, optional
        File that keeps log p(x) of the data that are done; the same call goes on from it.
    progress : bool
        Show progress.

    Returns
    -------
    Diagnosis
        Named quantities, each with its unit, standard error, meaning and verdict; and advice on those that warn.

    Raises
    ------
    DataError
        Without data, for counts that are too small, or for weights that stand for less than one datum.
    EngineError
        If it is no fit, no latent has a q, it is of an ordinary Pyro program, or the checkpoint is of another call.

    Examples
    --------
    >>> import ppl_vae as pv
    >>> vae = pv.models.VAE(pv.nets.linear_encoder(3, 1), pv.nets.linear_decoder(1, 3), "gaussian")
    >>> fit = pv.SVI(1, progress=False).fit(vae, torch.zeros(4, 3))
    >>> found = diagnose(fit, num_particles=50, gap_data=0)
    >>> found.n, found["mutual information"].unit
    (4, 'nats')
    """
    check_fit("diagnose", fit)
    if isinstance(fit.model, PyroPair):
        raise EngineError(
            "diagnose asks a declared model, which says what its prior and its q are; of the fit of a Pyro program "
            "fit.log_prob(data) and fit.elbo(data) tell the gap of q, and fit.to_datatree() has the rest for ArviZ"
        )
    if data is None and fit.data is None:
        raise DataError(f"{NO_DATA}: pass the data")
    check_whole("diagnose", error=DataError, size=size, num_particles=num_particles)
    check_whole("diagnose", 0, DataError, gap_data=gap_data, ais_data=ais_data)
    seed = check_seed(seed)
    model = fit.model
    with model.aside(seed), model.bind(fit.draw(0)):
        whole = fit.data if data is None else model.check(data)
        counted = own_weights(fit, whole, weights)
        index = chosen(len(whole), size, counted)
        obs = whole.rows(index)
        with model.numeric(), local_q(model, obs):
            found = aggregate(Codes(model, obs))
            q = inference(found.codes, num_particles, gap_data, ais_data, seed, checkpoint, progress)
            told = _notes(fit, counted), training_of(fit, obs), obs
            return Diagnosis(collapse(found), hole(found), q, index, seed, *told)


def chosen(n: int, size: int, weights: Tensor | None) -> Tensor:
    """Rows to look at, in order: `size` of n at most, or of as many data as the weights [n] stand for.

    Evenly spaced places along the cumulated weights of shuffled rows: row i stands there for every whole number in
    size w_i / sum w, and once more with the chance of what is left.

    Examples
    --------
    >>> chosen(4, 10, torch.tensor([2.0, 0.0, 1.0, 3.0])).tolist()
    [0, 0, 2, 3, 3, 3]
    """
    if weights is None:
        return torch.randperm(n)[:size].sort().values
    total = weights.double().sum().cpu()
    count = min(size, round(total.item()))
    if count < 1:
        raise DataError(
            f"diagnose: the weights sum to {total:g}, less than one datum: a datum of weight w counts as w data, so "
            f"scale the weights to sum to how many data there are"
        )
    rows = (weights > 0).nonzero().flatten().cpu()
    order = rows[torch.randperm(len(rows))]
    upto = weights.double().cpu()[order].cumsum(0)
    places = (torch.arange(count) + torch.rand((), dtype=torch.float64)) * (total / count)
    found = torch.searchsorted(upto, places, right=True).clamp_max(len(order) - 1)
    return order[found].sort().values


def _notes(fit: Any, weights: Tensor | None) -> tuple[str, ...]:
    said = []
    if not fit.is_point:
        said.append(f"All of it is at the first of {fit.num_draws} draws of the shared latents.")
    if weights is not None:
        said.append(f"{len(weights)} rows count as {weights.sum().item():g} data by their weights.")
    return tuple(said)
