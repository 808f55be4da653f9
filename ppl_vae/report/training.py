"""The page of a trained model with continuous latents."""

import math
import os
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ppl_vae import plots
from ppl_vae.data import ImageSet
from ppl_vae.diagnose import Diagnosis
from ppl_vae.errors import EngineError
from ppl_vae.evaluation import Evaluation, plus_minus
from ppl_vae.fit import Fit
from ppl_vae.records import writable
from ppl_vae.report.comparison import FEATURES, foot
from ppl_vae.report.figures import drawing, new_figure, svg
from ppl_vae.report.methods import training_methods
from ppl_vae.report.page import render, write
from ppl_vae.report.plane import SIDE, latent_plane
from ppl_vae.report.views import as_json
from ppl_vae.report.words import training_summary, training_warnings

__all__ = ["evaluation_rows", "write_training"]

SHOWN = 16
"""Latent units whose KL is written out."""


def write_training(
    fit: Fit,
    evaluation: Evaluation,
    data: Any,
    path: str | os.PathLike[str],
    command: str | None = None,
    labels: Any = None,
    shape: tuple[int, int, int] | None = None,
) -> Path:
    """Write a training run as one HTML file that needs no network.

    Parameters
    ----------
    fit : Fit
        Of SVI.
    evaluation : Evaluation
        From fit.evaluate on held-out data.
    data : ImageSet, or Tensor, Table or mapping
        Images, whose test part is shown, or held-out rows: of a table, or by name with the inputs of the model.
    path : path
        File to write; an older one is replaced only when the new one is complete.
    command : str, optional
        What to type to get the same page.
    labels : Tensor, optional
        [n] classes of the held-out data, those of the image set by default.
    shape : (int, int, int), optional
        Channels, height and width, where held-out rows are images; that of the image set by default.
    """
    path = writable(path)
    test, name = data, "images" if shape else "a table"
    if isinstance(data, ImageSet):
        test, name, shape = data.test, data.name, data.shape
        labels = data.labels.get("test") if labels is None else labels
    found = _diagnosed(fit, test)
    with drawing():
        plane = latent_plane(fit, test, shape, labels) if shape else None
        figures = {
            "diagnosed": _diagnosis_figures(found, fit, test, shape, labels, plane is not None),
            "curves": _curves(fit, evaluation),
            "pictures": _pictures(fit, test, shape) if shape else [],
            "predictive": [] if shape else _predictive(fit, test),
            "latent": _latent(fit, test, labels),
        }
    text = render(
        "training.html",
        title=f"{type(fit.model).__name__} by {fit.engine}",
        lead=f"Trained on {name}: {len(fit.data) if fit.data else '?'} training data.",
        summary=training_summary(fit, evaluation),
        warnings=training_warnings(fit, evaluation),
        rows=evaluation_rows(evaluation),
        diagnosis=found,
        has_kl=evaluation.kl_per_unit is not None,
        latent_caption=_latent_caption(fit, labels),
        plane=plane,
        plane_side=SIDE,
        plane_data=as_json({"units": plane.units, "box": plane.box}) if plane else None,
        methods=training_methods(fit, evaluation, name),
        **figures,
        **foot(fit.model, {fit.engine: fit}, command),
    )
    return write(path, text)


def _diagnosed(fit: Fit, test: Any) -> Diagnosis | None:
    """What is wrong with the fit; None for one whose latents have no q."""
    try:
        return fit.diagnose(test)
    except EngineError:
        return None


def _diagnosis_figures(
    found: Diagnosis | None, fit: Fit, test: Any, shape: Any, labels: Any, has_plane: bool
) -> list[tuple[str, Markup]]:
    """What the diagnosis has to show and no other part of the page does."""
    axes = found.figures(fit, shape, labels) if found else plots.diagnosed.usage_figures(fit, test)
    elsewhere = {"KL of each unit", "reconstructions", "prior samples"} | ({"latent map"} if has_plane else set())
    n = found.n if found else "the"
    return [
        (name, svg(ax.figure, f"{name} of {n} held-out data")) for name, ax in axes.items() if name not in elsewhere
    ]


def evaluation_rows(found: Evaluation) -> list[tuple[str, str, str]]:
    """Name, meaning and text of each quantity of an evaluation."""
    per = "nats per datum"
    rows = [
        ("ELBO", "evidence lower bound on held-out data", f"{plus_minus(found.elbo, found.elbo_se, 4)} {per}"),
        ("log p(x)", found.method, f"{plus_minus(found.log_prob, found.log_prob_se, 4)} {per}"),
        ("gap", "log p(x) less the bound", f"{found.log_prob - found.elbo:.4f} {per}"),
    ]
    if math.isfinite(found.min_ess):
        rows.append(("smallest ESS", "of a datum's importance weights", f"{found.min_ess:.1f} draws"))
    if found.kl_per_unit is None:
        return [
            *rows,
            ("KL per unit", "defined for one θ and one posterior of independent units", "not defined"),
        ]
    active = f"{found.active_units} of {len(found.kl_per_unit)}"
    rows.append(("active units", "whose posterior mean varies over the data by at least 0.01", active))
    kl = sorted(found.kl_per_unit.tolist(), reverse=True)
    more = f" and {len(kl) - SHOWN} more" if len(kl) > SHOWN else ""
    each = ", ".join(f"{value:.2f}" for value in kl[:SHOWN])
    return [*rows, ("KL per unit", f"largest first, {per}", each + more)]


def _curves(fit: Fit, found: Evaluation) -> list[tuple[str, Markup]]:
    curves = []
    if len(fit.trace.get("bound", ())):
        ax = plots.epochs(fit, new_figure(3.9, 2.8).add_subplot())
        curves.append(("Bound by epoch", svg(ax.figure, "Training and held-out bound by epoch")))
    if found.kl_per_unit is not None:
        ax = plots.kl_bars(found.kl_per_unit, new_figure(3.9, 2.8).add_subplot())
        curves.append(("KL of each latent unit", svg(ax.figure, "KL of each latent unit, largest first")))
    return curves


def _pictures(fit: Fit, test: Any, shape: tuple[int, int, int]) -> list[tuple[str, Markup]]:
    above = plots.reconstructions(fit, test, shape, new_figure(6.5, 1.5).add_subplot())
    above.set_title("")
    inputs = fit.model.check(test).values
    where = ", at the inputs of held-out data in turn" if fit.model.inputs else ""
    drawn = plots.prior_samples(fit, shape, new_figure(6.5, 2.8).add_subplot(), inputs=inputs)
    return [
        (
            "Above, held-out images; below, their reconstructions: the mean of p(x | z) with z from q(z | x). What is "
            "blurred or changed is what the latent units do not carry.",
            svg(above.figure, "Held-out images above their reconstructions"),
        ),
        (
            f"Means of p(x | z) for z drawn from the prior{where}. If they look worse than the reconstructions, the "
            "prior has holes where no datum is encoded.",
            svg(drawn.figure, "Images decoded from draws of the prior"),
        ),
    ]


def _latent_caption(fit: Fit, labels: Any) -> str:
    said = "Each point is the posterior mean of one held-out datum"
    if fit.model.inputs:
        said += ", of which the inputs are known. What is decoded is at the inputs of the first one"
        return said + ("; colour and number are the class." if labels is not None else ".")
    return said + ("; colour and number are its class, which training never saw." if labels is not None else ".")


def _predictive(fit: Fit, test: Any) -> list[tuple[str, Markup]]:
    if fit.model.inputs:
        return []
    found = []
    _, _, columns = plots.style.values_of(fit, test)
    for j, column in enumerate(columns[:FEATURES]):
        ax = plots.predictive_check(fit, test, new_figure(3.9, 2.7).add_subplot(), feature=j, draws=20)
        ax.set_xlabel("")
        found.append((column, svg(ax.figure, f"Density of {column} in held-out data and in data drawn from the model")))
    return found


def _latent(fit: Fit, test: Any, labels: Any) -> Markup | None:
    try:
        ax = plots.latent_space(fit, test, labels, new_figure(6.0, 5.0).add_subplot())
    except EngineError:
        return None
    return svg(ax.figure, "Posterior means of held-out data in the plane")
