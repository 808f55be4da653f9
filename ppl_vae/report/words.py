"""What the numbers mean, in sentences: which fit to trust here, and why."""

import math
from typing import Any

import numpy as np

from ppl_vae.compare import Table
from ppl_vae.convergence import convergence
from ppl_vae.evaluation import Evaluation, plus_minus
from ppl_vae.fit import Fit

__all__ = ["healthy", "reference", "training_summary", "training_warnings", "verdict"]

CLOSE = 0.25
"""Standard deviations of the reference within which a mean counts as the same."""
NARROW, WIDE = 0.8, 1.25


def healthy(fit: Fit) -> bool:
    """Whether the chains of a fit agree and say enough."""
    found = convergence(fit)
    return found is not None and found.ok


def reference(table: Table) -> str | None:
    """Name of the fit whose draws are the posterior itself: the first NUTS."""
    return next((name for name, fit in table.fits.items() if fit.engine == "NUTS"), None)


def verdict(table: Table) -> list[str]:
    """Say which engine to trust, how far the others are from it, and whether predictions differ."""
    name = reference(table)
    sentences = [_lead(table, name)]
    if name is not None and healthy(table.fits[name]):
        sentences += [s for other in table.fits if other != name and (s := _against(table, other, name))]
    sentences.append(_predictions(table))
    if not table.warnings:
        sentences.append("No warning holds: every fit ended as it should.")
    return sentences


def _lead(table: Table, name: str | None) -> str:
    if name is None:
        ended = [n for n, fit in table.fits.items() if fit.status.ok]
        return (
            f"No sampler is among these fits, so nothing here measures how good the others' uncertainty is. "
            f"{', '.join(ended) or 'None of them'} ended well."
        )
    found = convergence(table.fits[name])
    if found is None:
        return f"{name} has no draw that moves, so nothing can be said of them."
    facts = f"worst R-hat {found.rhat:.3f}, smallest ESS {found.ess:.0f}, {found.divergences} divergences"
    if healthy(table.fits[name]):
        return (
            f"Trust {name} here: its chains agree ({facts}), so its draws stand for the posterior, and the others are "
            f"held against it."
        )
    if found.chains == 1:
        return f"{name} ran a single chain ({facts}), so whether others would agree is not known: run at least two."
    return f"Do not trust {name} yet ({facts}): run longer before its draws are taken as the posterior."


def _against(table: Table, other: str, name: str) -> str | None:
    """How far another fit's means and standard deviations are from the reference's."""
    if table.fits[other].status.ok is False:
        return f"Do not use {other}: {table.fits[other].status}."
    frame = table.parameters()
    if other not in frame or f"{name} sd" not in frame:
        return None
    sd = frame[f"{name} sd"].where(frame[f"{name} sd"] > 0)
    off = ((frame[other] - frame[name]).abs() / sd).dropna()
    if off.empty:
        return None
    far = f"at most {off.max():.2f} of {name}'s standard deviations from its mean ({off.idxmax()})"
    seconds = f"{table.fits[other].seconds:.1f} s against {table.fits[name].seconds:.1f} s"
    if f"{other} sd" not in frame:
        return f"{other} is {far}, in {seconds}; it is a point and says nothing of uncertainty."
    ratio = float(np.nanmedian(frame[f"{other} sd"] / sd))
    width = "about as wide as" if NARROW <= ratio <= WIDE else "narrower than" if ratio < NARROW else "wider than"
    means = "agree" if off.max() <= CLOSE else "differ"
    return (
        f"{other}'s means {means}: {far}; its posterior is {width} {name}'s (median ratio of standard deviations "
        f"{ratio:.2f}), in {seconds}."
    )


def _predictions(table: Table) -> str:
    values = {name: row.log_predictive for name, row in table.rows.items()}
    best, least = max(values, key=values.__getitem__), min(values, key=values.__getitem__)
    if len(values) < 2:
        return f"It predicts {values[best]:.4f} nats per datum."
    gap, error = values[best] - values[least], max(row.log_predictive_se for row in table.rows.values())
    said = f"Predictions differ by {gap:.4f} nats per datum between {best} and {least}"
    if math.isnan(error):
        return f"{said}; of a single datum there is no standard error."
    size = "far less than" if gap < error / 4 else "less than" if gap < error else "more than"
    return f"{said}, {size} the standard error over data ({error:.4f})."


def training_summary(fit: Fit, found: Evaluation) -> list[str]:
    """Say what the trained model is worth on held-out data."""
    gap = found.log_prob - found.elbo
    sentences = [
        f"On {found.n} held-out data the bound is {plus_minus(found.elbo, found.elbo_se, 2)} nats per datum and "
        f"log p(x), {'exactly' if found.method == 'exact' else 'by importance weights'}, "
        f"{plus_minus(found.log_prob, found.log_prob_se, 2)}. The difference of {gap:.2f} nats is at least what "
        f"q(z | x) lacks."
    ]
    if found.kl_per_unit is not None:
        total = float(found.kl_per_unit.sum())
        sentences.append(
            f"{found.active_units} of {len(found.kl_per_unit)} latent units are active; together they carry "
            f"{total:.2f} nats per datum."
        )
    sentences.append(f"Training took {fit.seconds:.1f} s and ended as: {fit.status}.")
    return sentences


def training_warnings(fit: Fit, found: Evaluation) -> list[str]:
    """Say what the reader should know before believing the evaluation."""
    warnings = [] if fit.status.ok else [f"The fit did not end well: {fit.status}."]
    warnings += [found.doubt] if found.doubt else []
    if found.active_units == 0:
        warnings.append("No latent unit is active: the posterior has collapsed onto the prior.")
    held_out = fit.trace.get("validation")
    if held_out is not None and len(held_out) > 10:
        best, last = float(held_out.max()), float(held_out[-5:].mean())
        if best - last > 2 * found.elbo_se:
            warnings.append(
                f"The held-out bound was best at epoch {int(held_out.argmax()) + 1} ({best:.2f}) and fell to "
                f"{last:.2f}: the model overfits; stop earlier (patience=)."
            )
        tenth = max(2, len(held_out) // 10)
        rise = float(held_out[-tenth:].mean() - held_out[-2 * tenth : -tenth].mean())
        if rise > found.elbo_se:
            warnings.append(
                f"The held-out bound still rose by {rise:.2f} nats per datum in the last tenth of the epochs: "
                f"train longer."
            )
    return warnings


def spoken(settings: dict[str, Any]) -> dict[str, str]:
    """Settings as text."""
    return {key: str(value) for key, value in settings.items()}
