"""What a command says: tables for people, or one JSON document; and what --strict does not accept."""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ppl_vae.cli.inputs import Parts
from ppl_vae.cli.options import Compare, Train
from ppl_vae.version import __version__

if TYPE_CHECKING:
    from rich.console import Console

    from ppl_vae.compare import Table as Comparison
    from ppl_vae.data import Table
    from ppl_vae.evaluation import Evaluation
    from ppl_vae.fit import Fit

__all__ = [
    "compare_document",
    "failed_fits",
    "failed_training",
    "print_comparison",
    "print_json",
    "print_training",
    "train_document",
]


def failed_fits(table: "Comparison") -> list[str]:
    """Give what --strict does not accept."""
    from ppl_vae.convergence import convergence

    failed = [f"{name}: {fit.status}" for name, fit in table.fits.items() if not fit.status.ok]
    for name, fit in table.fits.items():
        found = convergence(fit)
        failed += [f"{name}: {said}" for said in found.warnings()] if found is not None else []
        if table.rows[name].bad_k:
            failed.append(f"{name}: {table.rows[name].bad_k} data have a bad Pareto k")
    return failed


def failed_training(fit: "Fit", found: "Evaluation") -> list[str]:
    """Give what --strict does not accept."""
    failed = [] if fit.status.ok else [str(fit.status)]
    if not math.isfinite(found.elbo):
        failed.append(f"the held-out bound is {found.elbo}")
    if found.active_units == 0:
        failed.append("no latent unit is active")
    return failed


def print_json(document: Mapping[str, Any]) -> None:
    """Print one JSON document on one line."""
    sys.stdout.write(json.dumps(_plain(document), ensure_ascii=False, allow_nan=False) + "\n")


def _plain(value: Any) -> Any:
    """Turn a value into what JSON has: NaN and infinities are null."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | bool | None) else str(value)


def compare_document(options: Compare, table: "Comparison", data: "Table", failed: list[str]) -> dict[str, Any]:
    """Everything that the tables and the report say, for programs."""
    return {
        "command": "compare",
        "version": __version__,
        "seed": options.seed,
        "data": {
            "source": data.source,
            "rows": len(data),
            "rows_with_missing": data.missing_rows,
            "columns": data.columns,
        },
        "fits": table.to_frame().to_dict("index"),
        "parameters": table.parameters().to_dict("index"),
        "warnings": table.warnings,
        "failed_diagnostics": failed,
        "report": str(options.output),
    }


def train_document(options: Train, fit: "Fit", found: "Evaluation", data: Parts, failed: list[str]) -> dict[str, Any]:
    """Everything that the table and the report say, for programs."""
    return {
        "command": "train",
        "version": __version__,
        "seed": options.seed,
        "data": {
            "source": data.name,
            **{part: len(getattr(data, part)) for part in ("train", "validation", "test")},
            "rows_with_missing": data.missing_rows,
        },
        "status": fit.status.code,
        "seconds": fit.seconds,
        "evaluation": vars(found),
        "trace": {name: values.tolist() for name, values in fit.trace.items()},
        "failed_diagnostics": failed,
        "report": str(options.output),
    }


def _console() -> "Console":
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=120)


def print_comparison(options: Compare, table: "Comparison", data: "Table") -> None:
    """Print the comparison and the parameters, and the words that the report begins with."""
    from ppl_vae.compare import format_cell
    from ppl_vae.report.comparison import distinct
    from ppl_vae.report.words import verdict

    console, frame = _console(), table.to_frame()
    rows = [[str(c).replace("_", " "), *(format_cell(str(c), v) for v in frame[c])] for c in frame.columns]
    _print_rows(console, f"{data.source}: {len(data)} data", ["", *table.fits], rows)
    parameters = table.parameters()
    names = [n for n in table.fits if n in parameters]
    interval = "NUTS lower" in parameters
    heads = ["parameter", *names, *(["NUTS 90% interval"] if interval else [])]
    rows = []
    for label, row in distinct(parameters).iterrows():
        between = [f"{row['NUTS lower']:#.4g} to {row['NUTS upper']:#.4g}"] if interval else []
        rows.append([str(label), *(f"{row[n]:#.4g}" for n in names), *between])
    _print_rows(console, "Parameters, components matched", heads, rows)
    _print_words(console, verdict(table), table.warnings)
    best = table.rows["EM (ML)"].log_likelihood
    if best is not None:
        console.print(f"maximum of the log-likelihood: {best:.4f} nats over {len(data)} data", highlight=False)
    console.print(f"report: {options.output}", highlight=False, markup=False)


def print_training(options: Train, fit: "Fit", found: "Evaluation") -> None:
    """Print the evaluation, and the words that the report begins with."""
    from ppl_vae.report.training import evaluation_rows
    from ppl_vae.report.words import training_summary, training_warnings

    console = _console()
    rows = [[name, value, meaning] for name, meaning, value in evaluation_rows(found)]
    _print_rows(console, f"VAE by SVI, {fit.seconds:.1f} s, {fit.status.code}", ["", "held out", ""], rows)
    _print_words(console, training_summary(fit, found), training_warnings(fit, found))
    console.print(f"report: {options.output}", highlight=False, markup=False)


def _print_words(console: "Console", sentences: Sequence[str], warnings: Sequence[str]) -> None:
    """Print the summary, and the warnings marked as such."""
    for sentence in sentences:
        console.print(sentence, markup=False, highlight=False)
    for warning in warnings:
        console.print(f"! {warning}", markup=False, highlight=False)


def _print_rows(console: "Console", title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.table import Table as RichTable
    from rich.text import Text

    table = RichTable(title=Text(title), title_justify="left")
    for number, head in enumerate(heads):
        table.add_column(Text(head), justify="right" if number else "left")
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)
