"""The settings of both commands, checked before anything is run, and saved beside the report."""

import json
import logging
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter, Token

__all__ = ["Common", "Compare", "Train", "arguments", "prepare", "save_settings", "say", "shown"]

logger = logging.getLogger("ppl_vae")


def _whole(kind: Any, tokens: Sequence[Token]) -> int:
    """A whole number as it is typed; "2.5" is none, which cyclopts would round."""
    try:
        return int(tokens[0].value)
    except ValueError:
        raise ValueError(f"a whole number is expected, got {tokens[0].value!r}") from None


Whole = Annotated[int, Parameter(converter=_whole)]


@dataclass(kw_only=True)
class Common:
    """What both commands take."""

    columns: Annotated[list[str] | None, Parameter(consume_multiple=True, negative=())] = None
    "Columns of the table to take, in this order."
    seed: Whole = 0
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

    data: str | None = None
    "CSV, Parquet or .npy file, or an image set by name (two principal components of it); Old Faithful without it."
    root: Path | None = None
    "Folder that holds an image set's files."
    download: Annotated[bool, Parameter(negative=())] = False
    "Download an image set that is not there."
    components: Whole = 2
    "Number of components."
    covariance: Literal["full", "tied", "diagonal", "spherical"] = "full"
    "Form of the components' covariance."
    epochs: Whole = 1000
    "Epochs of SVI."
    draws: Whole = 1000
    "Draws that NUTS keeps, per chain."
    warmup: Whole = 500
    "Draws that NUTS spends in adaptation, per chain."
    chains: Whole = 4
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
    binarize: Literal["dynamic", "fixed", "threshold", "none"] | None = None
    "How grey pixels become binary ones: dynamic, unless the likelihood is one of grey pixels."
    likelihood: (
        Literal[
            "bernoulli",
            "continuous-bernoulli",
            "gaussian",
            "gaussian-learned",
            "gaussian-network",
            "gaussian-optimal",
            "logistic-mixture",
            "categorical",
        ]
        | None
    ) = None
    "p(x|z): bernoulli for binary images, gaussian-learned otherwise."
    latent: Whole = 8
    "Latent units."
    hidden: Whole = 256
    "Hidden units of the encoder and of the decoder."
    epochs: Whole = 100
    "Passes over the data."
    batch_size: Whole = 128
    "Data per step."
    learning_rate: float = 3e-3
    "Adam's step."
    beta: float = 1.0
    "Weight of the KL term: above 1 for fewer, more independent units; the bound that is reported has weight 1."
    warmup: Whole | None = None
    "Epochs over which that weight rises from 0; a tenth of all if not given. Give it to go on for more epochs."
    particles: Whole = 1000
    "Draws per datum for the importance-weighted log p(x)."
    checkpoint: Path | None = None
    "Folder for the state of the training: the same command goes on from it after an interruption, or for more epochs."
    compile: Literal["auto", "inductor", "trace", "off"] = "auto"
    "The training step as a compiled graph, a plain graph, or run through Python; auto weighs what pays."


# Before: what can be refused in a moment must not be found out after minutes.


def prepare(options: Common) -> None:
    """Refuse what can be refused in a moment, and send logs to standard error."""
    from ppl_vae.errors import DataError, check_seed
    from ppl_vae.records import writable

    counts = ("components", "epochs", "draws", "chains", "latent", "hidden", "batch_size", "particles")
    for name in counts:
        if getattr(options, name, 1) < 1:
            raise DataError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(options, name)}")
    check_seed(options.seed, DataError)
    for name in ("warmup", "beta"):
        if not (getattr(options, name, None) or 0) >= 0:
            raise DataError(f"--{name} must not be negative, got {getattr(options, name)}")
    if not getattr(options, "learning_rate", 1.0) > 0:
        raise DataError(f"--learning-rate must be positive, got {getattr(options, 'learning_rate')}")  # noqa: B009
    writable(options.output)
    _keep_inputs(options)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    for handler in [h for h in logger.handlers if getattr(h, "of_the_command_line", False)]:
        logger.removeHandler(handler)
    if not options.quiet:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(message)s"))
        handler.of_the_command_line = True  # type: ignore[attr-defined]
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)


def _keep_inputs(options: Common) -> None:
    """Refuse to write over the data, or the settings over the report."""
    from ppl_vae.errors import DataError

    settings, data = _settings_path(options), getattr(options, "data", None)
    if settings == options.output:
        raise DataError(f"--output is the report, and its settings go to {settings}: name it report.html, for one")
    for path in (options.output, settings):
        if data is not None and path.resolve() == Path(data).resolve():
            raise DataError(f"{path} is the data, and this would be written over them: give --output another name")
    if options.config is not None and options.output.resolve() == options.config.resolve():
        raise DataError(f"{options.output} is the --config, and the report would be written over it: give --output")


def _settings_path(options: Common) -> Path:
    return options.output.with_suffix(".toml")


def shown(options: Common) -> AbstractContextManager[None]:
    """A block that shows how far its work has come, unless quiet."""
    from ppl_vae.progress import silent

    return silent() if options.quiet else nullcontext()


def say(options: Common, message: str) -> None:
    """Log a line, unless quiet."""
    if not options.quiet:
        logger.info(message)


def arguments(options: Common) -> list[str]:
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


def save_settings(options: Common) -> None:
    """Write every setting beside the report, to be read again by --config; never over the file they were read from."""
    from ppl_vae.report.page import write

    path = _settings_path(options)
    if options.config is not None and path.resolve() == options.config.resolve():
        say(options, f"{path} is left as it is; the report has the command with what was typed")
        return
    lines = []
    for field in fields(options):
        value = getattr(options, field.name)
        if value is not None and field.name != "config":
            # A JSON scalar or list of strings is TOML, too.
            plain = str(value) if isinstance(value, Path) else value
            lines.append(f"{field.name} = {json.dumps(plain, ensure_ascii=False)}")
    write(path, "\n".join(lines) + "\n")
