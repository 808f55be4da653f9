"""The data that a command asks for."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppl_vae.cli.options import Compare, Train

if TYPE_CHECKING:
    import torch

    from ppl_vae.data import ImageSet, Table

__all__ = ["Parts", "read", "tell_missing", "training_data"]

logger = logging.getLogger("ppl_vae")


def read(options: Compare) -> "Table":
    """Read what is asked for as a table, Old Faithful without --data."""
    from ppl_vae.data import faithful, read_table

    if options.data is None:
        return _select(faithful(), options.columns)
    if _names_images(options.data):
        return _principal_components(_images(options, None))
    return read_table(options.data, options.columns)


def _names_images(data: str) -> bool:
    return not Path(data).suffix and not Path(data).exists()


def _images(options: Compare | Train, binarize: str | None) -> "ImageSet":
    from ppl_vae.data import images
    from ppl_vae.errors import DataError

    if options.columns is not None:
        raise DataError(f"--columns chooses columns of a table, and {options.data} is an image set")
    return images(str(options.data), options.root, binarize=binarize, download=options.download)


def _principal_components(found: "ImageSet", rows: int = 2000) -> "Table":
    """The first two principal components of the first test images: a plane that a mixture can be drawn in."""
    import torch

    from ppl_vae.data import Table

    centred = found.test[:rows].double()
    centred = centred - centred.mean(0)
    _, _, axes = torch.linalg.svd(centred, full_matrices=False)
    # Singular vectors have no sign of their own: the largest entry is made positive.
    axes = axes[:2] * axes[:2].gather(1, axes[:2].abs().argmax(1, keepdim=True)).sign()
    logger.info("%s: two principal components of %d test images", found.name, len(centred))
    return Table(centred @ axes.T, ("component 1", "component 2"), found.name, 0)


def _select(table: "Table", columns: list[str] | None) -> "Table":
    import pandas as pd

    from ppl_vae.data import from_frame

    if columns is None:
        return table
    chosen = from_frame(pd.DataFrame(table.values.numpy(), columns=list(table.columns)), columns)
    return replace(chosen, source=table.source)


def tell_missing(table: "Table") -> None:
    """Log how many rows have gaps."""
    if table.missing_rows:
        logger.warning("%s: %d of %d rows hold NaN, taken as missing", table.source, table.missing_rows, len(table))


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
    settings: dict[str, Any]
    missing_rows: int = 0


def training_data(options: Train) -> Parts:
    """Read an image set by name, or a table by its file."""
    if not _names_images(options.data):
        return _table_parts(options)
    binary = options.binarize or ("dynamic" if options.likelihood in (None, "bernoulli") else "none")
    found = _images(options, None if binary == "none" else binary)
    likelihood = options.likelihood or ("gaussian-learned" if binary == "none" else "bernoulli")
    width, settings = found.test.shape[1], _settings(likelihood, found.test)
    return Parts(found.name, found.train, found.validation, found.test, found, width, likelihood, settings)


def _settings(likelihood: str, x: "torch.Tensor") -> dict[str, Any]:
    """Settings of a likelihood that the data know: the number of grey levels, 2, 17 (digits) or 256."""
    from ppl_vae.likelihoods.pixels import Levels

    if likelihood not in ("categorical", "logistic-mixture"):
        return {}
    fitting = (levels for levels in (2, 17) if bool((Levels(levels).check(x) | x.isnan()).all()))
    return {"levels": next(fitting, 256)}


def _table_parts(options: Train) -> Parts:
    """Shuffle and split a table, 70 to 15 to 15, and standardise its columns by the training part."""
    import torch

    from ppl_vae.data import read_table
    from ppl_vae.errors import DataError

    table = read_table(options.data, options.columns)
    n = len(table)
    held = max(1, round(0.15 * n))
    if n - 2 * held < 2:
        raise DataError(f"{table.source}: {n} rows are too few to train on; at least 4 are needed, far more to learn")
    tell_missing(table)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(options.seed))
    values = table.values[order].float()
    likelihood = options.likelihood or "gaussian-learned"
    if likelihood.startswith("gaussian"):
        values = _standardised(values, n - 2 * held)
    parts = [replace(table, values=v) for v in values.split([n - 2 * held, held, held])]
    train, validation, test = (part.values for part in parts)
    width, settings = values.shape[1], _settings(likelihood, values)
    return Parts(table.source, train, validation, test, parts[2], width, likelihood, settings, table.missing_rows)


def _standardised(values: "torch.Tensor", count: int) -> "torch.Tensor":
    known = values[:count]
    mean = known.nanmean(0).nan_to_num()
    deviation = (known - mean).square().nanmean(0).sqrt()
    return (values - mean) / deviation.where(deviation > 0, deviation.new_tensor(1.0))
