"""The command line: parse, call, print.

Exit codes: 0 well, 1 failure, 2 usage or input, 3 diagnostics failed under --strict. Tables, or one JSON document,
go to standard output; progress and logs to standard error.
"""

import json
import logging
import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, CycloptsError, Parameter
from cyclopts.config import Toml

from ppl_vae.version import __version__

if TYPE_CHECKING:
    import torch
    from rich.console import Console

    from ppl_vae.compare import Table as Comparison
    from ppl_vae.data import ImageSet, Table
    from ppl_vae.diagnostics import Evaluation
    from ppl_vae.fit import Fit

__all__ = ["Compare", "Train", "app", "main"]

WELL, FAILURE, USAGE, DIAGNOSTICS = 0, 1, 2, 3

app = App(
    name="ppl-vae",
    version=__version__,
    help="Latent-variable models: declare once, fit by EM, SVI or NUTS, compare. Exit codes: 0 well, 1 failure, "
    "2 usage or input, 3 diagnostics failed under --strict.",
)
logger = logging.getLogger("ppl_vae")


@dataclass(kw_only=True)
class Common:
    """What both commands take."""

    columns: Annotated[list[str] | None, Parameter(consume_multiple=True, negative=())] = None
    "Columns of the table to take, in this order."
    seed: int = 0
    "Seed of everything random."
    output: Path = Path("report.html")
    "The report to write; the resolved settings go beside it, as .toml."
    json: Annotated[bool, Parameter(negative=())] = False
    "Print one JSON document instead of tables."
    quiet: Annotated[bool, Parameter(negative=())] = False
    "No progress and no tables."
    strict: Annotated[bool, Parameter(negative=())] = False
    "Exit with 3 when a diagnostic fails."
    config: Path | None = None
    "TOML file with any of these settings; what is typed wins."


@dataclass(kw_only=True)
class Compare(Common):
    """Settings of `ppl-vae compare`."""

    data: Path | None = None
    "CSV, Parquet or .npy file; Old Faithful without it."
    components: int = 2
    "Number of components."
    covariance: Literal["full", "tied", "diagonal", "spherical"] = "full"
    "Form of the components' covariance."
    epochs: int = 1000
    "Epochs of SVI."
    draws: int = 1000
    "Draws that NUTS keeps, per chain."
    warmup: int = 500
    "Draws that NUTS spends in adaptation, per chain."
    chains: int = 4
    "Chains of NUTS."


@dataclass(kw_only=True)
class Train(Common):
    """Settings of `ppl-vae train`."""

    data: str = "digits"
    "Image set (digits, mnist, fashion-mnist, kmnist, emnist), or a CSV, Parquet or .npy file."
    root: Path | None = None
    "Folder of the image set's files."
    download: Annotated[bool, Parameter(negative=())] = False
    "Let torchvision fetch the image set."
    binarize: Literal["dynamic", "fixed", "threshold", "none"] = "dynamic"
    "How grey pixels become binary ones."
    likelihood: Literal["bernoulli", "gaussian", "gaussian-learned", "gaussian-network"] | None = None
    "p(x|z): bernoulli for binary images, gaussian-learned otherwise."
    latent: int = 8
    "Latent units."
    hidden: int = 256
    "Hidden units of the encoder and of the decoder."
    epochs: int = 100
    "Passes over the data."
    batch_size: int = 128
    "Data per step."
    learning_rate: float = 1e-3
    "Adam's step."
    particles: int = 1000
    "Draws per datum for the importance-weighted log p(x)."


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments after the program's name; those of the process by default.

    Examples
    --------
    >>> main(["--version"]) == 0
    0.1.0
    True
    """
    from ppl_vae.errors import DataError, DeclarationError, EngineError

    tokens = list(sys.argv[1:] if argv is None else argv)
    try:
        path = _config_path(tokens)
        app.config = () if path is None else (Toml(path, must_exist=True, use_commands_as_keys=False),)
        code = app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        return _complain(str(error), USAGE)
    except (DataError, DeclarationError, OSError) as error:
        return _complain(str(error), USAGE)
    except EngineError as error:
        return _complain(str(error), FAILURE)
    except KeyboardInterrupt:
        return _complain("interrupted", FAILURE)
    return code if isinstance(code, int) else WELL


def _complain(message: str, code: int) -> int:
    print(f"ppl-vae: {' '.join(message.split())}", file=sys.stderr)
    return code


def _config_path(tokens: Sequence[str]) -> str | None:
    for token, following in zip(tokens, [*tokens[1:], None], strict=True):
        if token == "--config":
            return following
        if token.startswith("--config="):
            return token.partition("=")[2]
    return None


@app.command
def compare(options: Annotated[Compare | None, Parameter(name="*")] = None) -> int:
    """Fit a Gaussian mixture by EM, SVI and NUTS, compare the fits, and write a report."""
    options = options or Compare()
    _prepare(options)
    from ppl_vae.compare import compare as make_table

    data, dropped = _complete_rows(_read(options))
    fits = _mixture_fits(options, data)
    _say(options, "comparing")
    table = make_table(fits)
    failed = _failed_fits(table)
    command = shlex.join(["ppl-vae", "compare", *_arguments(options)])
    _say(options, "writing the report")
    table.report(options.output, command)
    _save_settings(options)
    if options.json:
        _print_json(_compare_document(options, table, data, dropped, failed))
    elif not options.quiet:
        _print_comparison(options, table, data)
    return _verdict(options, failed)


@app.command
def train(options: Annotated[Train | None, Parameter(name="*")] = None) -> int:
    """Train a variational autoencoder by SVI, evaluate it on held-out data, and write a report."""
    options = options or Train()
    _prepare(options)
    from ppl_vae.infer.optimizers import adam, linear
    from ppl_vae.infer.svi import SVI
    from ppl_vae.report import write_training

    data = _training_data(options)
    engine = SVI(
        epochs=options.epochs,
        batch_size=options.batch_size,
        optimizer=adam(options.learning_rate),
        beta=linear(0, 1, epochs=max(1, options.epochs // 10)),
        validation=data.validation,
        seed=options.seed,
        progress=not options.quiet,
    )
    _say(options, f"training on {len(data.train)} data, {len(data.validation)} for validation")
    fit = engine.fit(_vae(options, data), data.train)
    _say(options, f"evaluating on {len(data.test)} held-out data")
    found = fit.evaluate(data.test, num_particles=options.particles)
    failed = _failed_training(fit, found)
    _say(options, "writing the report")
    command = shlex.join(["ppl-vae", "train", *_arguments(options)])
    write_training(fit, found, data.shown, options.output, command)
    _save_settings(options)
    if options.json:
        _print_json(_train_document(options, fit, found, data, failed))
    elif not options.quiet:
        _print_training(options, fit, found)
    return _verdict(options, failed)


# Before: what can be refused in a moment must not be found out after minutes.


def _prepare(options: Common) -> None:
    from ppl_vae.errors import DataError

    counts = ("components", "epochs", "draws", "chains", "latent", "hidden", "batch_size", "particles")
    for name in counts:
        if getattr(options, name, 1) < 1:
            raise DataError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(options, name)}")
    if getattr(options, "warmup", 0) < 0:
        raise DataError(f"--warmup must not be negative, got {getattr(options, 'warmup')}")  # noqa: B009
    if not getattr(options, "learning_rate", 1.0) > 0:
        raise DataError(f"--learning-rate must be positive, got {getattr(options, 'learning_rate')}")  # noqa: B009
    if options.output.is_dir():
        raise DataError(f"{options.output}: is a folder; --output needs a file name")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    for handler in [h for h in logger.handlers if getattr(h, "of_the_command_line", False)]:
        logger.removeHandler(handler)
    if not options.quiet:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(message)s"))
        handler.of_the_command_line = True  # type: ignore[attr-defined]
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)


def _say(options: Common, message: str) -> None:
    if not options.quiet:
        logger.info(message)


def _arguments(options: Common) -> list[str]:
    """Give the arguments that differ from the defaults: what to type to get the same run."""
    found: list[str] = []
    for field in fields(options):
        value = getattr(options, field.name)
        if value == field.default or field.name in ("config", "json", "quiet", "strict"):
            continue
        found.append(f"--{field.name.replace('_', '-')}")
        if not isinstance(value, bool):
            found += list(map(str, value)) if isinstance(value, list) else [str(value)]
    return found


def _save_settings(options: Common) -> Path:
    """Write every setting beside the report, to be read again by --config."""
    from ppl_vae.report.page import write

    lines = []
    for field in fields(options):
        value = getattr(options, field.name)
        if value is not None and field.name != "config":
            # A JSON scalar or list of strings is TOML, too.
            plain = str(value) if isinstance(value, Path) else value
            lines.append(f"{field.name} = {json.dumps(plain, ensure_ascii=False)}")
    return write(options.output.with_suffix(".toml"), "\n".join(lines) + "\n")


# Data.


def _read(options: Compare) -> "Table":
    from ppl_vae.data import faithful, read_table

    if options.data is None:
        return _select(faithful(), options.columns)
    return read_table(options.data, options.columns)


def _select(table: "Table", columns: list[str] | None) -> "Table":
    from dataclasses import replace

    import pandas as pd

    from ppl_vae.data import from_frame

    if columns is None:
        return table
    chosen = from_frame(pd.DataFrame(table.values.numpy(), columns=list(table.columns)), columns)
    return replace(chosen, source=table.source)


def _complete_rows(table: "Table") -> tuple["Table", int]:
    """Leave out rows with NaN, which EM's closed forms do not take, and count them."""
    from dataclasses import replace

    from ppl_vae.errors import DataError

    if not table.missing_rows:
        return table, 0
    values = table.values[~table.values.isnan().any(1)]
    if len(values) < 2:
        raise DataError(
            f"{table.source}: {table.missing_rows} of {len(table)} rows hold NaN; fewer than 2 are complete"
        )
    logger.warning("%s: %d of %d rows hold NaN and are left out", table.source, table.missing_rows, len(table))
    return replace(table, values=values, missing_rows=0), table.missing_rows


@dataclass
class Parts:
    """Training, validation and test data, and what the report shows of them."""

    name: str
    train: Any
    validation: Any
    test: Any
    shown: Any
    width: int
    likelihood: str
    missing_rows: int = 0


def _training_data(options: Train) -> Parts:
    suffix = Path(options.data).suffix.lower()
    if suffix or Path(options.data).exists():
        return _table_parts(options)
    from ppl_vae.data import images
    from ppl_vae.errors import DataError

    if options.columns is not None:
        raise DataError(f"--columns chooses columns of a table, and {options.data} is an image set")
    binarize = None if options.binarize == "none" else options.binarize
    found: ImageSet = images(options.data, options.root, binarize=binarize, download=options.download)
    likelihood = options.likelihood or ("gaussian-learned" if binarize is None else "bernoulli")
    width = found.test.shape[1]
    return Parts(found.name, found.train, found.validation, found.test, found, width, likelihood)


def _table_parts(options: Train) -> Parts:
    """Shuffle and split a table, 70 to 15 to 15, and standardise its columns by the training part."""
    from dataclasses import replace

    import torch

    from ppl_vae.data import read_table
    from ppl_vae.errors import DataError

    table = read_table(options.data, options.columns)
    n = len(table)
    held = max(1, round(0.15 * n))
    if n - 2 * held < 2:
        raise DataError(f"{table.source}: {n} rows are too few to train on; at least 4 are needed, far more to learn")
    if table.missing_rows:
        logger.warning("%s: %d of %d rows hold NaN, taken as missing", table.source, table.missing_rows, n)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(options.seed))
    values = table.values[order].float()
    likelihood = options.likelihood or "gaussian-learned"
    if likelihood != "bernoulli":
        values = _standardised(values, n - 2 * held)
    parts = [replace(table, values=v) for v in values.split([n - 2 * held, held, held])]
    train, validation, test = (part.values for part in parts)
    return Parts(table.source, train, validation, test, parts[2], values.shape[1], likelihood, table.missing_rows)


def _standardised(values: "torch.Tensor", count: int) -> "torch.Tensor":
    known = values[:count]
    mean = known.nanmean(0).nan_to_num()
    deviation = (known - mean).square().nanmean(0).sqrt()
    return (values - mean) / deviation.where(deviation > 0, deviation.new_tensor(1.0))


# Fits.


def _mixture_fits(options: Compare, data: "Table") -> "dict[str, Fit]":
    """ML and MAP from the same k-means++ starts, SVI and NUTS from the MAP answer."""
    from ppl_vae.infer.em import EM
    from ppl_vae.infer.nuts import NUTS
    from ppl_vae.infer.optimizers import adam
    from ppl_vae.infer.svi import SVI
    from ppl_vae.models import GaussianMixture

    model = GaussianMixture(options.components, data.values.shape[1], options.covariance, prior="weak")
    common = {"seed": options.seed, "progress": not options.quiet}
    fits: dict[str, Fit] = {}
    _say(options, f"EM on {len(data)} data from {data.source}")
    fits["EM (ML)"] = EM(n_init=10, estimate="ml", **common).fit(model, data)
    fits["EM (MAP)"] = EM(n_init=10, **common).fit(model, data)
    start = fits["EM (MAP)"]
    _say(options, f"SVI, {options.epochs} epochs")
    svi = SVI(epochs=options.epochs, optimizer=adam(1e-2), guide="multivariate", start=start, **common)
    fits["SVI"] = svi.fit(model, data)
    _say(options, f"NUTS, {options.chains} chains of {options.warmup} + {options.draws}")
    nuts = NUTS(options.draws, warmup=options.warmup, num_chains=options.chains, start=start, **common)
    fits["NUTS"] = nuts.fit(model, data)
    return fits


def _vae(options: Train, data: Parts) -> Any:
    import torch

    from ppl_vae import nets
    from ppl_vae.likelihoods import LIKELIHOODS
    from ppl_vae.models import VAE

    with torch.random.fork_rng([]):
        torch.manual_seed(options.seed)
        numbers = data.width * LIKELIHOODS[data.likelihood].width
        encoder = nets.mlp_encoder(data.width, options.hidden, options.latent)
        return VAE(encoder, nets.mlp_decoder(options.latent, options.hidden, numbers), data.likelihood)


# After: diagnostics, printing.


def _failed_fits(table: "Comparison") -> list[str]:
    """Give what --strict does not accept."""
    from ppl_vae.compare import ESS_LIMIT, RHAT_LIMIT
    from ppl_vae.diagnostics import convergence

    failed = [f"{name}: {fit.status}" for name, fit in table.fits.items() if not fit.status.ok]
    for name, fit in table.fits.items():
        found = convergence(fit)
        if found is not None and found.rhat > RHAT_LIMIT:
            failed.append(f"{name}: R-hat {found.rhat:.3f} is above {RHAT_LIMIT}")
        if found is not None and found.ess < ESS_LIMIT:
            failed.append(f"{name}: effective sample size {found.ess:.0f} is below {ESS_LIMIT}")
        if found is not None and found.divergences:
            failed.append(f"{name}: {found.divergences} divergences")
        if table.rows[name].bad_k:
            failed.append(f"{name}: {table.rows[name].bad_k} data have a bad Pareto k")
    return failed


def _failed_training(fit: "Fit", found: "Evaluation") -> list[str]:
    failed = [] if fit.status.ok else [str(fit.status)]
    if not math.isfinite(found.elbo):
        failed.append(f"the held-out bound is {found.elbo}")
    if found.active_units == 0:
        failed.append("no latent unit is active")
    return failed


def _verdict(options: Common, failed: list[str]) -> int:
    if not options.strict or not failed:
        return WELL
    return _complain(f"diagnostics failed: {'; '.join(failed)}", DIAGNOSTICS)


def _print_json(document: Mapping[str, Any]) -> None:
    print(json.dumps(_plain(document), ensure_ascii=False, allow_nan=False))


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


def _compare_document(
    options: Compare, table: "Comparison", data: "Table", dropped: int, failed: list[str]
) -> dict[str, Any]:
    return {
        "command": "compare",
        "version": __version__,
        "seed": options.seed,
        "data": {"source": data.source, "rows": len(data), "rows_left_out": dropped, "columns": data.columns},
        "fits": table.to_frame().to_dict("index"),
        "parameters": table.parameters().to_dict("index"),
        "warnings": table.warnings,
        "failed_diagnostics": failed,
        "report": str(options.output),
    }


def _train_document(options: Train, fit: "Fit", found: "Evaluation", data: Parts, failed: list[str]) -> dict[str, Any]:
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


def _print_comparison(options: Compare, table: "Comparison", data: "Table") -> None:
    from ppl_vae.compare import format_cell
    from ppl_vae.report.comparison import distinct

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
    for warning in table.warnings:
        console.print(f"! {warning}", markup=False, highlight=False)
    best = table.rows["EM (ML)"].log_likelihood
    if best is not None:
        console.print(f"maximum of the log-likelihood: {best:.4f} nats over {len(data)} data", highlight=False)
    console.print(f"report: {options.output}", highlight=False, markup=False)


def _print_training(options: Train, fit: "Fit", found: "Evaluation") -> None:
    from ppl_vae.report.training import evaluation_rows

    console = _console()
    rows = [[name, value, meaning] for name, meaning, value in evaluation_rows(found)]
    _print_rows(console, f"VAE by SVI, {fit.seconds:.1f} s, {fit.status.code}", ["", "held out", ""], rows)
    console.print(f"report: {options.output}", highlight=False, markup=False)


def _print_rows(console: "Console", title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.table import Table as RichTable
    from rich.text import Text

    table = RichTable(title=Text(title), title_justify="left")
    for number, head in enumerate(heads):
        table.add_column(Text(head), justify="right" if number else "left")
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
