"""Trackers: where the numbers of a run go, a CSV file or TensorBoard, or anything with the same four methods."""

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from ppl_vae.errors import DataError, EngineError, check_whole
from ppl_vae.fit import Status
from ppl_vae.infer.callbacks import Callback, Metrics, Run
from ppl_vae.records import replacing

__all__ = ["CSVTracker", "TensorBoardTracker", "Tracker", "track"]


@runtime_checkable
class Tracker(Protocol):
    """What keeps a run's numbers.

    `parameters` begins a run, in which steps only grow. A run that goes on from a checkpoint may tell once more of
    steps that the interrupted one told of: what was kept of its first step and later ones is then to be forgotten.
    """

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """The numbers of a step, by name."""

    def parameters(self, settings: Mapping[str, Any]) -> None:
        """The settings of the run, once at its beginning."""

    def figure(self, name: str, figure: Any, step: int) -> None:
        """A matplotlib figure of a step."""

    def flush(self) -> None:
        """Put everything on the disk."""


class CSVTracker:
    """Metrics as the rows of a CSV file.

    A row is written whole or not at all, and a column that a later step brings is added to the file. The first row of
    a run drops those of its step and later ones, which an interrupted run left: a run that goes on from its
    checkpoint continues the file, one that starts anew replaces it. Settings go to `<stem>.json` beside it, figures to
    `<stem>-<name>-<step>.png`.

    Parameters
    ----------
    path : path
        The file, which should end in .csv; its folder is made if need be.

    Raises
    ------
    DataError
        If there is a file that is not the metrics of a run.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "metrics.csv"
    ...     tracker = CSVTracker(path)
    ...     tracker.metrics(0, {"bound": -3.5})
    ...     tracker.metrics(1, {"bound": -3.25})
    ...     print(path.read_text())
    step,bound
    0,-3.5
    1,-3.25
    <BLANKLINE>
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if self.path.is_dir():
            raise DataError(f"CSVTracker writes a file, and {self.path} is a folder; name a file in it")
        self.columns: list[str] | None = None

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Append a row."""
        if self.columns is None:
            columns, rows = self._read()
            self._rewrite(columns, [row for row in rows if int(row["step"]) < step])
        known = self.columns or []
        if new := [name for name in values if name not in known]:
            columns, rows = self._read()
            self._rewrite([*columns, *new], rows)
        # One write of a whole line: a process that is killed leaves all of it or nothing.
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        try:
            os.write(handle, _lines(self.columns or [], [{"step": step, **values}]).encode())
        finally:
            os.close(handle)

    def parameters(self, settings: Mapping[str, Any]) -> None:
        """Write the settings as JSON beside the file, and begin a run."""
        self.columns = None
        _replace(self.path.with_suffix(".json"), json.dumps(dict(settings), indent=2, default=str) + "\n")

    def figure(self, name: str, figure: Any, step: int) -> None:
        """Write a figure as PNG beside the file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(self.path.with_name(f"{self.path.stem}-{name}-{step:06d}.png"))

    def flush(self) -> None:
        """Wait until the disk has the rows."""
        if self.path.is_file():
            with self.path.open("rb") as file:
                os.fsync(file.fileno())

    def _read(self) -> tuple[list[str], list[dict[str, Any]]]:
        """Columns and rows of the file; a last line that was cut short does not count."""
        if not self.path.is_file():
            return ["step"], []
        text = self.path.read_text(encoding="utf-8")
        reader = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1]))
        columns, rows = list(reader.fieldnames or []), list(reader)
        if text and (columns[:1] != ["step"] or not all(row["step"].isdigit() for row in rows)):
            raise DataError(f"{self.path} is not a file of metrics: its first column must be step; name another file")
        return columns or ["step"], rows

    def _rewrite(self, columns: list[str], rows: Sequence[Mapping[str, Any]]) -> None:
        _replace(self.path, _lines(columns, rows, header=True))
        self.columns = columns


def _lines(columns: Sequence[str], rows: Sequence[Mapping[str, Any]], header: bool = False) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _replace(path: Path, text: str) -> None:
    """Put a complete file in the place of another."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


class TensorBoardTracker:
    """Metrics as TensorBoard's scalars, settings as a table, figures as images.

    A run that goes on from a checkpoint hides what the interrupted one had written for later steps.

    Parameters
    ----------
    folder : path
        Where the event files go: `tensorboard --logdir folder` shows them.

    Raises
    ------
    EngineError
        If TensorBoard is not installed.

    Examples
    --------
    >>> TensorBoardTracker("runs/vae")  # doctest: +SKIP
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise EngineError(
                "TensorBoardTracker needs TensorBoard, which is not installed: python -m pip install 'ppl_vae[track]', "
                "or python -m pip install tensorboard. CSVTracker needs nothing"
            ) from error
        self.folder, self.make, self.table = Path(folder), SummaryWriter, ""
        self.writer: Any = None

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """One scalar for each name."""
        writer = self._opened(step)
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    def parameters(self, settings: Mapping[str, Any]) -> None:
        """A table under "settings", and the beginning of a run."""
        if self.writer is not None:
            self.writer.close()
            self.writer = None
        rows = "".join(f"<tr><td>{escape(name)}</td><td>{escape(str(v))}</td></tr>" for name, v in settings.items())
        self.table = f"<table>{rows}</table>"

    def figure(self, name: str, figure: Any, step: int) -> None:
        """An image."""
        self._opened(step).add_figure(name, figure, step, close=False)

    def flush(self) -> None:
        """Write the events that wait."""
        if self.writer is not None:
            self.writer.flush()

    def _opened(self, step: int) -> Any:
        if self.writer is None:
            self.writer = self.make(str(self.folder), purge_step=step)
            if self.table:
                self.writer.add_text("settings", self.table, step)
                self.table = ""
        return self.writer


class _Track(Callback):
    """Gives a tracker the metrics of every so-many-th step."""

    def __init__(self, tracker: Tracker, every: int | None) -> None:
        self.tracker, self.every = tracker, every
        self.waiting: tuple[int, Metrics] | None = None

    @property
    def called(self) -> str:
        """By the tracker, which is what the user made."""
        return f"track({type(self.tracker).__name__})"

    def set_up(self, run: Run) -> None:
        """Tell of the settings."""
        self.waiting = None
        if run.leads:
            self.tracker.parameters({"engine": run.engine, "model": type(run.model).__name__, **run.settings})

    def end(self, run: Run, step: int, metrics: Metrics) -> None:
        """Tell of a step when it is its turn."""
        self.waiting = step, metrics
        if self._due(run, step):
            self._tell(run)

    def tear_down(self, run: Run, status: Status) -> None:
        """Tell of the last step."""
        self._tell(run)
        if run.leads:
            self.tracker.flush()

    def _due(self, run: Run, step: int) -> bool:
        if self.every is not None:
            return step % self.every == 0
        return step % (run.steps_per_epoch or 1) == 0

    def _tell(self, run: Run) -> None:
        if self.waiting is not None and run.leads:
            step, metrics = self.waiting
            self.tracker.metrics(step, {name: float(value) for name, value in metrics.items()})
        self.waiting = None


def track(tracker: Tracker, every: int | None = None) -> Callback:
    """A callback that gives a run's settings and metrics to a tracker, in the process that writes files.

    Parameters
    ----------
    tracker : Tracker
        `CSVTracker(path)`, `TensorBoardTracker(folder)`, or any object with their four methods.
    every : int, optional
        Steps from one row to the next; the last step always has one. None: every EM iteration and every draw, and for
        SVI the first step of every epoch, whose bound is taken at the same parameters as the held-out one beside it.
        On a GPU, reading SVI's metrics waits until they are computed.

    Raises
    ------
    EngineError
        If the tracker lacks a method, or `every` is below 1.

    Examples
    --------
    >>> import tempfile, ppl_vae as pv
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "em.csv"
    ...     em = pv.EM(callbacks=[track(CSVTracker(path), every=3)], progress=False)
    ...     fit = em.fit(pv.models.GaussianMixture(2, 2), pv.data.faithful())
    ...     [row.split(",")[0] for row in path.read_text().split()]
    ['step', '0', '3', '6', '8']
    """
    missing = [name for name in ("metrics", "parameters", "figure", "flush") if not hasattr(tracker, name)]
    if isinstance(tracker, type) or missing:
        said = f"the class {tracker.__name__}" if isinstance(tracker, type) else f"{tracker!r} without {missing[0]}"
        raise EngineError(f"track takes a tracker, such as pv.CSVTracker(path); got {said}")
    if every is not None:
        check_whole("track", every=every)
    return _Track(tracker, every)
