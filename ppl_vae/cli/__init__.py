"""The command line: parse, call, print.

Exit codes: 0 well, 1 failure, 2 usage or input, 3 diagnostics failed under --strict. Tables, or one JSON document,
go to standard output; progress and logs to standard error.
"""

import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, CycloptsError, Parameter
from cyclopts.config import Toml

from ppl_vae.cli.inputs import Parts, read, tell_missing, training_data
from ppl_vae.cli.options import Common, Compare, Train, arguments, prepare, save_settings, say, shown
from ppl_vae.cli.outputs import (
    compare_document,
    failed_fits,
    failed_training,
    print_comparison,
    print_json,
    print_training,
    train_document,
)
from ppl_vae.version import __version__

if TYPE_CHECKING:
    from ppl_vae.data import Table
    from ppl_vae.fit import Fit

__all__ = ["app", "compare", "main", "train"]

SMALL = 1_000_000
"""Numbers per E-step below which threads cost more than they save, far more on a busy machine."""
WELL, FAILURE, USAGE, DIAGNOSTICS = 0, 1, 2, 3

app = App(
    name="ppl-vae",
    version=__version__,
    help="Latent-variable models: declare once, fit by EM, SVI or NUTS, compare. Exit codes: 0 well, 1 failure, "
    "2 usage or input, 3 diagnostics failed under --strict.",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments after the program's name; those of the process by default.

    Examples
    --------
    >>> main(["compare", "--data", "absent.csv"])  # says so on standard error
    2
    """
    from ppl_vae.errors import DataError, DeclarationError, EngineError

    tokens = list(sys.argv[1:] if argv is None else argv)
    try:
        path = _config_path(tokens)
        app.config = () if path is None else (Toml(path, must_exist=True, use_commands_as_keys=False),)
        code = app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        return _complain(f"{path}: {error}" if "TOML" in str(error) else str(error), USAGE)
    except FileNotFoundError as error:
        return _complain(f"there is no file {error.filename}" if error.filename else str(error), USAGE)
    except (DataError, DeclarationError, OSError) as error:
        return _complain(str(error), USAGE)
    except EngineError as error:
        return _complain(str(error), FAILURE)
    except KeyboardInterrupt:
        return _complain("interrupted", FAILURE)
    return code if isinstance(code, int) else WELL


def _complain(message: str, code: int) -> int:
    sys.stderr.write(f"ppl-vae: {' '.join(message.split())}\n")
    return code


def _config_path(tokens: Sequence[str]) -> str | None:
    for token, following in zip(tokens, [*tokens, None][1:], strict=True):
        if token == "--config":
            return following
        if token.startswith("--config="):
            return token.partition("=")[2]
    return None


@app.command
def compare(options: Annotated[Compare | None, Parameter(name="*")] = None) -> int:
    """Fit a Gaussian mixture by EM, SVI and NUTS, compare the fits, and write a report."""
    options = options or Compare()
    prepare(options)
    from ppl_vae.compare import compare as make_table

    data = read(options)
    tell_missing(data)
    with _threads(1 if data.values.numel() * options.components < SMALL else None), shown(options):
        fits = _mixture_fits(options, data)
        say(options, "comparing")
        table = make_table(fits)
        failed = failed_fits(table)
        command = shlex.join(["ppl-vae", "compare", *arguments(options)])
        say(options, "writing the report")
        table.report(options.output, command)
    save_settings(options)
    if options.json:
        print_json(compare_document(options, table, data, failed))
    elif not options.quiet:
        print_comparison(options, table, data)
    return _verdict(options, failed)


@app.command
def train(options: Annotated[Train | None, Parameter(name="*")] = None) -> int:
    """Train a variational autoencoder by SVI, evaluate it on held-out data, and write a report."""
    options = options or Train()
    prepare(options)
    from ppl_vae.infer.optimizers import adam
    from ppl_vae.infer.schedules import linear
    from ppl_vae.infer.svi import SVI
    from ppl_vae.report import write_training

    data = training_data(options)
    warmup = max(1, options.epochs // 10) if options.warmup is None else options.warmup
    engine = SVI(
        epochs=options.epochs,
        batch_size=options.batch_size,
        optimizer=adam(options.learning_rate),
        beta=linear(0, options.beta, epochs=warmup) if warmup else options.beta,
        validation=data.validation,
        checkpoint=options.checkpoint,
        compile=options.compile,
        seed=options.seed,
    )
    say(options, f"training on {len(data.train)} data, {len(data.validation)} for validation")
    with shown(options):
        with _warmup_named(options):
            fit = engine.fit(_vae(options, data), data.train)
        say(options, f"evaluating on {len(data.test)} held-out data")
        found = fit.evaluate(data.test, num_particles=options.particles)
        failed = failed_training(fit, found)
        say(options, "writing the report")
        command = shlex.join(["ppl-vae", "train", *arguments(options)])
        write_training(fit, found, data.shown, options.output, command)
    save_settings(options)
    if options.json:
        print_json(train_document(options, fit, found, data, failed))
    elif not options.quiet:
        print_training(options, fit, found)
    return _verdict(options, failed)


def _verdict(options: Common, failed: list[str]) -> int:
    if not options.strict or not failed:
        return WELL
    return _complain(f"diagnostics failed: {'; '.join(failed)}", DIAGNOSTICS)


# Fits.


@contextmanager
def _warmup_named(options: Train) -> Iterator[None]:
    """Where a checkpoint is refused for a warm-up that nobody set, say how to set it."""
    from ppl_vae.errors import EngineError

    try:
        yield
    except EngineError as error:
        there = re.search(r"beta\.Linear\.epochs was (\d+) there", str(error))
        if there is None or options.warmup is not None:
            raise
        raise EngineError(
            f"{error}. The warm-up is a tenth of --epochs unless it is given: to go on for more epochs, add --warmup "
            f"{there[1]}"
        ) from error


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _mixture_fits(options: Compare, data: "Table") -> "dict[str, Fit]":
    """ML and MAP from the same k-means++ starts, SVI and NUTS from the MAP answer."""
    from ppl_vae.infer.em import EM
    from ppl_vae.infer.nuts import NUTS
    from ppl_vae.infer.optimizers import adam
    from ppl_vae.infer.svi import SVI
    from ppl_vae.models import GaussianMixture

    model = GaussianMixture(options.components, data.values.shape[1], options.covariance, prior="weak")
    common: dict[str, Any] = {"seed": options.seed}
    fits: dict[str, Fit] = {}
    say(options, f"EM on {len(data)} data from {data.source}")
    fits["EM (ML)"] = EM(n_init=10, estimate="ml", **common).fit(model, data)
    fits["EM (MAP)"] = EM(n_init=10, **common).fit(model, data)
    start = fits["EM (MAP)"]
    say(options, f"SVI, {options.epochs} epochs")
    svi = SVI(epochs=options.epochs, optimizer=adam(1e-2), guide="multivariate", start=start, **common)
    fits["SVI"] = svi.fit(model, data)
    say(options, f"NUTS, {options.chains} chains of {options.warmup} + {options.draws}")
    nuts = NUTS(options.draws, warmup=options.warmup, num_chains=options.chains, start=start, **common)
    fits["NUTS"] = nuts.fit(model, data)
    return fits


def _vae(options: Train, data: Parts) -> Any:
    from ppl_vae import nets
    from ppl_vae.alone import seeded_rng
    from ppl_vae.likelihoods import LIKELIHOODS
    from ppl_vae.models import VAE

    with seeded_rng(options.seed):
        make: Any = LIKELIHOODS[data.likelihood]
        law = make(**data.settings)
        numbers = data.width * law.width
        encoder = nets.mlp_encoder(data.width, options.hidden, options.latent)
        return VAE(encoder, nets.mlp_decoder(options.latent, options.hidden, numbers), law)
