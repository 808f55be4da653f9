"""Ctrl-C between two steps: the first asks a fit to end, the second ends it at once."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

__all__ = ["INTERRUPTED", "Interrupt", "interrupts"]

INTERRUPTED = "interrupted"
"""The status code of a fit that was asked to end."""


@dataclass
class Interrupt:
    """Whether Ctrl-C was pressed, and whether anybody has taken notice."""

    asked: bool = False
    heard: bool = False

    def hear(self) -> bool:
        """Whether to end now."""
        self.heard = self.asked
        return self.asked


@contextmanager
def interrupts(enabled: bool = True) -> Iterator[Interrupt]:
    """Within the block, the first Ctrl-C is only noted; the second, or one that nobody heard, is a KeyboardInterrupt.

    A handler of the user's own is left in its place, and threads other than the main one hear nothing.

    Examples
    --------
    >>> with interrupts() as interrupt:
    ...     signal.raise_signal(signal.SIGINT)
    ...     interrupt.hear()
    True
    """
    interrupt = Interrupt()
    plain = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not (enabled and plain and threading.current_thread() is threading.main_thread()):
        yield interrupt
        return

    def note(number: int, frame: Any) -> None:
        if interrupt.asked:
            raise KeyboardInterrupt
        interrupt.asked = True

    signal.signal(signal.SIGINT, note)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if interrupt.asked and not interrupt.heard:
        raise KeyboardInterrupt
