"""Progress on standard error: a bar in a terminal or notebook, a log line now and then elsewhere."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.util import find_spec
from time import monotonic

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

__all__ = ["Ration", "progress", "silent"]

logger = logging.getLogger("ppl_vae")

PATIENCE = 1.0
"""Seconds before a bar appears: short work stays silent."""
REFRESH = 0.2
LOG_EVERY = 30.0
SHARE = 0.01
"""Of the time, that goes into showing how far things are, at most."""

Update = Callable[[int, str], None]
_within: ContextVar[bool] = ContextVar("within a progress", default=False)


class Ration:
    """When to do again what costs time: at most SHARE of the time goes into it, and `least` seconds lie between.

    Parameters
    ----------
    least : float
        Seconds from one time to the next, at least.
    patience : float
        Seconds before the first time.

    Examples
    --------
    >>> ration = Ration(least=0.0, patience=0.0)
    >>> ration.due()
    True
    >>> with ration.spent():
    ...     _ = sum(range(100_000))  # milliseconds
    >>> ration.due()  # not before a hundred times as long
    False
    """

    def __init__(self, least: float, patience: float) -> None:
        self.least, self.cost = least, 0.0
        self.begin = monotonic()
        self.next = self.begin + patience

    def due(self) -> bool:
        """Whether it is time."""
        return monotonic() >= self.next

    @contextmanager
    def spent(self) -> Iterator[None]:
        """What is done within the block counts."""
        before = monotonic()
        yield
        now = monotonic()
        self.cost += now - before
        self.next = max(now + self.least, self.begin + self.cost / SHARE)


@contextmanager
def progress(description: str, total: int, enabled: bool = True) -> Iterator[Update]:
    """Give a function (done, text) to call as often as one likes; drawing is rationed.

    What runs within the block shows no progress of its own.

    Examples
    --------
    >>> with progress("EM", 10, enabled=False) as update:
    ...     update(1, "bound -3.2")
    """
    if not enabled or _within.get():
        yield lambda done, text: None
        return
    console = _console()
    drawn = console.is_interactive or console.is_jupyter
    draw = _bar(console, description, total) if drawn else _log(description, total)
    with draw as update, silent():
        yield update


WIDTH = 120
"""Characters of a line in a notebook."""


def _console() -> Console:
    console = Console(stderr=True)
    if console.is_jupyter and find_spec("ipywidgets") is None:
        # Rich draws nothing there; a notebook draws a line again as a terminal does.
        return Console(stderr=True, force_jupyter=False, force_terminal=True, width=WIDTH)
    return console


@contextmanager
def silent() -> Iterator[None]:
    """Within the block no progress is shown."""
    token = _within.set(True)
    try:
        yield
    finally:
        _within.reset(token)


@contextmanager
def _bar(console: Console, description: str, total: int) -> Iterator[Update]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
    )
    bar = Progress(*columns, console=console, transient=True, auto_refresh=False)
    task = bar.add_task(description, total=total, text="")
    ration = Ration(REFRESH, PATIENCE)

    def update(done: int, text: str) -> None:
        if not ration.due():
            return
        with ration.spent():
            if not bar.live.is_started:
                bar.start()
            bar.update(task, completed=done, text=text)
            bar.refresh()

    try:
        yield update
    finally:
        if bar.live.is_started:
            bar.stop()


@contextmanager
def _log(description: str, total: int) -> Iterator[Update]:
    ration = Ration(LOG_EVERY, LOG_EVERY)

    def update(done: int, text: str) -> None:
        if ration.due():
            with ration.spent():
                logger.info("%s: %d of %d, %s", description, done, total, text)

    yield update
