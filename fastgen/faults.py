"""What ends a run early: signals, and errors of one process that the others must hear of.

Ctrl-C and SIGTERM, which a cluster sends before it takes a machine back, end a run after the update
at hand, with its state saved. Exit codes are those of a shell, 128 + the signal's number: 130 and
143.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from torch import distributed

__all__ = [
    "StopRequest",
    "Stopped",
    "gather_objects",
    "leave",
    "part",
    "part_at_exit",
    "stopped_by_sigterm",
    "together",
]


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


def leave(code: int) -> NoReturn:
    """End this process with an exit code.

    One of several processes ends without the interpreter's teardown: it aborts, with another exit
    code, where a thread of the group still holds the tensors of an exchange, or others are in the
    middle of one.
    """
    if _processes() > 1:
        atexit.unregister(part_at_exit)
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    raise SystemExit(code)


def part() -> None:
    """The end of the work, to which all processes come together: each of several ends here, with
    exit code 0."""
    if _processes() > 1:
        distributed.barrier()
        leave(0)


def part_at_exit() -> None:
    """Close this process' connections before the interpreter's teardown, and let the group's
    threads drop what they hold: one that does so later aborts it."""
    # Others than gloo wait here for work that the processes which are gone will never do.
    if _processes() > 1 and distributed.get_backend() == "gloo":
        distributed.destroy_process_group()
        time.sleep(0.2)


def _processes() -> int:
    """Processes that share the work."""
    return (
        distributed.get_world_size()
        if distributed.is_available() and distributed.is_initialized()
        else 1
    )


def gather_objects(value: Any) -> list[Any]:
    """`value` of each process, in their order; `[value]` where there is one process alone."""
    if _processes() == 1:
        return [value]
    values: list[Any] = [None] * _processes()
    distributed.all_gather_object(values, value)
    return values


@contextmanager
def together() -> Iterator[None]:
    """All processes come to the end of the block, or all leave with an error: none waits for one
    that is gone.

    For blocks in which processes don't meet, such as what the main process alone writes.

    Raises:
        ValueError: in processes without an error of their own, if another one had one; it is
            quoted.
    """
    error: Exception | None = None
    try:
        yield
    except Exception as raised:
        error = raised
    said = gather_objects(None if error is None else str(error) or type(error).__name__)
    if error is not None:
        raise error
    for rank, text in enumerate(said):
        if text is not None:
            raise ValueError(f"process {rank} stopped: {text}")
