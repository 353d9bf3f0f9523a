"""Signals: Ctrl-C, the SIGTERM that a cluster sends before it takes a machine back, and the SIGHUP
of a terminal that is closed.

In training they end a run after the update at hand, with its state saved. Exit codes are those of a
shell, 128 + the signal's number: 130, 143 and 129. A process that was started to survive its
terminal, by nohup, ignores SIGHUP, and goes on doing so.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch

from .processes import Processes

__all__ = ["HEARD_WITHIN", "SharedStop", "StopRequest", "Stopped", "stopped_by_signals"]

# Signals that ask for an end, beside Ctrl-C; not every system has SIGHUP.
_ENDS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
# Seconds, about, in which processes on GPUs hear that one of them got a signal.
HEARD_WITHIN = 5.0


class Stopped(KeyboardInterrupt):
    """A run was ended by a signal.

    Args:
        message: what was saved and how to go on.
        number: of the signal.

    Attributes:
        exit_code: 128 + the signal's number.
    """

    def __init__(self, message: str = "", number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


class StopRequest:
    """Notes the first Ctrl-C, SIGTERM or SIGHUP, and lets a second Ctrl-C stop at once.

    One signal may come more than once. A cluster sends SIGTERM to all processes of a job, and their
    launcher hands its own on, so a later one says nothing new. Ctrl-C comes from the terminal and
    from the launcher, so another within `SAME` seconds is the same one.

    Attributes:
        number: of the signal that came first, 0 before one.
    """

    SAME = 1.0  # seconds

    def __init__(self) -> None:
        self.number = 0
        self._since = 0.0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Inside, signals are noted instead of stopping the process.

        Raises:
            Stopped: at the end, if one came and nothing inside has stopped for it.
        """
        with _handled((signal.SIGINT, *_ENDS), self._note):
            yield
        if self.number:
            raise Stopped(number=self.number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.number:
            self.number = number
            self._since = now
            return
        same = self.number == number and now - self._since <= self.SAME
        if number == signal.SIGINT and not same:
            raise Stopped(number=number)


class SharedStop:
    """The wish to stop that any process may have, heard by all after the same update.

    A GPU is asked seldom, alone or by many processes: the host then waits for all that it has
    enqueued there.

    Args:
        request: of this process.
        processes: that share the run.

    Attributes:
        every: updates from one time that GPUs are asked to the next.
    """

    def __init__(self, request: StopRequest, processes: Processes) -> None:
        self.request = request
        self.processes = processes
        self.every = 1
        self._last_time = 0.0
        self._last_iteration = 0

    def restart(self, iteration: int) -> None:
        """Time updates from now on, before the one after `iteration`."""
        self.every = 1
        self._last_time = time.monotonic()
        self._last_iteration = iteration

    def due(self, updates: int) -> bool:
        """Whether GPUs are asked after so many `updates` of their stage."""
        return updates % self.every == 0

    def heard(self, iteration: int, *, ask: bool = True) -> int:
        """Number of the signal that any process got, 0 if none.

        Args:
            iteration: of the update that was done last.
            ask: the other processes, too; all must then call this after the same update. A process
                that is alone knows without asking.
        """
        number = self.request.number
        alone = self.processes.num_processes == 1
        if not ask:
            return number if alone else 0
        every = self._updates_within(HEARD_WITHIN, iteration)
        if alone:
            self.every = every
            return number
        both = self.processes.gather(torch.tensor([[number, every]], device=self.processes.device))
        # By the clock of one of them, so that all ask after the same updates.
        self.every = int(both[0, 1])
        return int(both[:, 0].max())

    def _updates_within(self, seconds: float, iteration: int) -> int:
        """Updates in so many seconds, by the time they took since the last call; at least 1."""
        now = time.monotonic()
        passed = max(1e-3, now - self._last_time)
        updates = max(1, iteration - self._last_iteration)
        self._last_time = now
        self._last_iteration = iteration
        return max(1, int(seconds * updates / passed))


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Inside, SIGTERM and SIGHUP raise `Stopped`, as Ctrl-C raises KeyboardInterrupt."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped(number=number)

    with _handled(_ENDS, stop):
        yield


@contextmanager
def _handled(numbers: tuple[signal.Signals, ...], handler: Any) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        # Only the main thread may handle signals: whoever started this one decides about them.
        yield
        return
    heard = [number for number in numbers if not _ignored(number)]
    before = {number: signal.signal(number, handler) for number in heard}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


def _ignored(number: signal.Signals) -> bool:
    """Whether nohup had SIGHUP ignored. Others are heard always: shells have Ctrl-C ignored in
    whatever a script starts in the background."""
    return number == getattr(signal, "SIGHUP", None) and signal.getsignal(number) == signal.SIG_IGN
