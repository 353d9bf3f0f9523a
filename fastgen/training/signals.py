"""What ends a run early: signals, and errors of one process that the others must hear of.

Ctrl-C and SIGTERM, which a cluster sends before it takes a machine back, end a run after the update
at hand, with its state saved. Exit codes are those of a shell, 128 + the signal's number: 130 and
143.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

__all__ = ["StopRequest", "Stopped", "stopped_by_sigterm"]


class Stopped(KeyboardInterrupt):
    """A run ended by a signal.

    Attributes:
        exit_code: 128 + the signal's number.
    """

    def __init__(self, message: str = "", number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


class StopRequest:
    """Notes the first Ctrl-C or SIGTERM. A Ctrl-C after it stops at once.

    A SIGTERM after it says nothing new: a cluster sends it to all processes of a job, and a
    launcher hands its own on. A Ctrl-C, too, comes from the terminal and from the launcher: within
    `SAME` seconds it is the same one.

    Attributes:
        number: of the signal that came, 0 before one.
    """

    SAME = 1.0

    def __init__(self) -> None:
        self.number = 0
        self._since = 0.0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Inside, signals are noted instead of stopping the process.

        Raises:
            Stopped: at the end, if one came and nobody has stopped because of it.
        """
        with _handled((signal.SIGINT, signal.SIGTERM), self._note):
            yield
        if self.number:
            raise Stopped(number=self.number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.number:
            self.number = number
            self._since = now
        elif number == signal.SIGINT and (self.number != number or now - self._since > self.SAME):
            raise Stopped(number=number)


@contextmanager
def stopped_by_sigterm() -> Iterator[None]:
    """Inside, SIGTERM raises `Stopped`, as Ctrl-C raises KeyboardInterrupt."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped(number=number)

    with _handled((signal.SIGTERM,), stop):
        yield


@contextmanager
def _handled(numbers: tuple[signal.Signals, ...], handler: Any) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        # Only the main thread may handle signals; whoever started this one decides about them.
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)
