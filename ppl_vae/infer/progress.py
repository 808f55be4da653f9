"""Progress on standard error: a bar in a terminal or notebook, a log line now and then elsewhere."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

__all__ = ["progress"]

logger = logging.getLogger("ppl_vae")

PATIENCE = 1.0
"""Seconds before a bar appears: short work stays silent."""
REFRESH = 0.2
LOG_EVERY = 30.0

Update = Callable[[int, str], None]


@contextmanager
def progress(description: str, total: int, enabled: bool = True) -> Iterator[Update]:
    """Give a function (done, text) to call as often as one likes; drawing is rationed.

    Examples
    --------
    >>> with progress("EM", 10, enabled=False) as update:
    ...     update(1, "bound -3.2")
    """
    if not enabled:
        yield lambda done, text: None
        return
    console = Console(stderr=True)
    draw = _bar(console, description, total) if console.is_terminal or console.is_jupyter else _log(description, total)
    with draw as update:
        yield update


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
    begin, last = time.monotonic(), 0.0

    def update(done: int, text: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - begin < PATIENCE or now - last < REFRESH:
            return
        if not bar.live.is_started:
            bar.start()
        last = now
        bar.update(task, completed=done, text=text)
        bar.refresh()

    try:
        yield update
    finally:
        if bar.live.is_started:
            bar.stop()


@contextmanager
def _log(description: str, total: int) -> Iterator[Update]:
    last = time.monotonic()

    def update(done: int, text: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= LOG_EVERY:
            last = now
            logger.info("%s: %d of %d, %s", description, done, total, text)

    yield update
