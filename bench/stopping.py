"""Being asked to stop. Signal handlers only set a flag; who works looks at it between two steps. Torch-free."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator, Mapping
from typing import Any

#: what a signal means to a run, as its state says it
SIGNALS: Mapping[int, str] = {
    signal.SIGINT: "stopped by Ctrl-C",
    signal.SIGTERM: "asked to end (SIGTERM)",
    signal.SIGUSR2: "near its time limit (SIGUSR2)",
}


class Interrupted(KeyboardInterrupt):
    """A run was asked to stop: it has saved, and the same command or the scheduler's requeue continues it."""


class Stop:
    """Whether this process has been asked to stop, and why. The first reason stays."""

    def __init__(self) -> None:
        self.why = ""
        self.signal: int | None = None
        self._event = threading.Event()

    def ask(self, why: str, number: int | None = None) -> None:
        if not self._event.is_set():
            self.why, self.signal = why, number
        self._event.set()

    def is_set(self) -> bool:
        return self._event.is_set()


@contextlib.contextmanager
def on_signals(*numbers: int) -> Iterator[Stop]:
    """Inside, these signals (of SIGNALS) set the flag; a second Ctrl-C ends at once. In a main thread only."""
    stop, before = Stop(), {}

    def asked(number: int, frame: Any) -> None:
        if number == signal.SIGINT and stop.is_set():
            raise KeyboardInterrupt
        stop.ask(SIGNALS[number], number)

    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, asked) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
