"""Standard streams that can fail without ending the work.

What a job prints is for people who may have gone: a reader that has read enough (`| head`), a disk
that is full, a terminal that is closed, a stream that was closed from the start, a terminal whose
alphabet lacks the letters of a folder's name. None of that is worth a student.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

__all__ = ["lasting_streams"]

_NAMES = ("stdin", "stdout", "stderr")


@contextmanager
def lasting_streams() -> Iterator[None]:
    """Inside, and in the flush at its end, writing to stdout and stderr never raises.

    Letters that a stream has no code for are written as escapes. After the first write that fails
    the stream leads nowhere, also for those who write to its file descriptor; of a failure on
    stdout other than a reader that has gone, a line on stderr tells.
    """
    for number, name in enumerate(_NAMES):
        if getattr(sys, name) is None:
            setattr(sys, name, _nowhere(number))
    given = {name: getattr(sys, name) for name in _NAMES[1:]}
    lasting = {
        name: stream if isinstance(stream, _Lasting) else _Lasting(stream, name)
        for name, stream in given.items()
    }
    for name, stream in lasting.items():
        setattr(sys, name, stream)
    try:
        yield
    finally:
        for name, stream in lasting.items():
            stream.flush()
            # Someone inside may have put another there, and left it.
            if getattr(sys, name) is stream:
                setattr(sys, name, given[name])


def _nowhere(number: int) -> Any:
    """A stream that leads nowhere, for one that was closed when Python started.

    Its descriptor is opened as well if it is still free: the next file to be opened would get it,
    and whatever libraries print.
    """
    null = os.open(os.devnull, os.O_RDWR)
    try:
        os.fstat(number)
    except OSError:
        os.dup2(null, number)
    if null == number:
        os.set_inheritable(number, True)
    elif os.path.sameopenfile(null, number):
        os.close(null)
        null = number
    return open(null, "r" if number == 0 else "w", encoding="utf-8", closefd=False)  # noqa: SIM115


class _Lasting:
    """A text stream whose writes don't raise.

    Args:
        stream: where the text goes.
        name: stdout or stderr.
    """

    def __init__(self, stream: Any, name: str) -> None:
        self._stream = stream
        self._name = name
        self._lost = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            try:
                self._stream.write(text)
            except UnicodeEncodeError:
                code = self._stream.encoding or "ascii"
                self._stream.write(text.encode(code, "backslashreplace").decode(code))
        except (OSError, ValueError) as error:
            self._lose(error)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._lose(error)

    def _lose(self, error: Exception) -> None:
        """From now on the stream leads nowhere."""
        if self._lost or isinstance(error, BlockingIOError):  # a pipe that is full for the moment
            return
        self._lost = True
        # A stream without a file has no descriptor.
        with suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)
            # What it still holds.
            self._stream.flush()
        gone = isinstance(error, OSError) and error.errno == errno.EPIPE
        if self._name == "stdout" and isinstance(error, OSError) and not gone:
            said = error.strerror or str(error)
            sys.stderr.write(f"warning: cannot write to stdout: {said}\n")
