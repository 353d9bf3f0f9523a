"""Locks on a folder: one process at a time, whoever started it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["locked_folder"]


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Inside, no other process is inside with the same folder; waits until it is so.

    The lock is on the folder itself, so that it leaves no file, and it ends with its process. A
    system or a disk without such locks keeps nobody out.

    Raises:
        OSError: the folder can't be opened.
    """
    try:
        import fcntl
    except ImportError:  # a system without advisory locks
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a disk without them
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
