"""The launcher that a process was started by, and what becomes of the process when it goes.

`accelerate launch` passes no signal on where it starts a single process: SIGTERM ends the launcher,
and the process would go on without anybody who knows of it. A launcher that is killed leaves its
processes as well. So a process that was started by a launcher looks whether its parent is still
there, and takes it for a SIGTERM when it is gone.

Any other parent may go: a shell that a run was started from with nohup, setsid or disown.

The parent is noted when this file is imported, before torch, whose import takes seconds.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

__all__ = ["AT_START", "is_launcher", "parent_command", "watch_launcher"]

EVERY = 0.5  # seconds between two looks
_PROGRAMS = ("accelerate", "accelerate-launch", "torchrun")
_MODULES = (
    "accelerate.commands.launch",
    "accelerate.commands.accelerate_cli",
    "torch.distributed.run",
    "torch.distributed.launch",
)
# Where the system doesn't tell a parent's command line: what launchers leave, each all of its own.
_VARIABLES = (
    {"ACCELERATE_MIXED_PRECISION", "ACCELERATE_DYNAMO_BACKEND", "ACCELERATE_CPU_AFFINITY"},
    {"RANK", "LOCAL_RANK", "TORCHELASTIC_RUN_ID"},
)


class _Start(NamedTuple):
    """What a process knew of its parent.

    Attributes:
        process: its own id; a fork of it has another parent.
        parent: id of that parent.
        launched: whether the parent is a launcher.
    """

    process: int
    parent: int
    launched: bool


def is_launcher(command: Sequence[str], environment: Mapping[str, str]) -> bool:
    """Whether a parent is the launcher of accelerate or of torch.

    Args:
        command: words of its command line, empty where they are unknown.
        environment: variables of this process, which tell where the words don't.
    """
    if not command:
        return any(names <= environment.keys() for names in _VARIABLES)
    # The interpreter and its options come before the program.
    for word in command[:6]:
        path = Path(word)
        as_module = ".".join(path.with_suffix("").parts[-3:])
        if path.name in _PROGRAMS or word in _MODULES or as_module in _MODULES:
            return True
    return False


def parent_command() -> list[str]:
    """Words of the command line of the parent process; empty where /proc doesn't tell."""
    try:
        command = Path(f"/proc/{os.getppid()}/cmdline").read_bytes()
    except OSError:
        return []
    return command.decode(errors="replace").split("\0")[:-1]


def _start() -> _Start:
    # In this order: where the parent goes in between, the words are those of another.
    parent = os.getppid()
    launched = is_launcher(parent_command(), os.environ)
    return _Start(os.getpid(), parent, launched)


AT_START = _start()
_watching: set[int] = set()  # ids of processes: a thread doesn't follow into a fork


def watch_launcher() -> None:
    """From now on, send this process SIGTERM as soon as the launcher it was started by is gone.

    It is for processes that handle SIGTERM. Nothing happens where there is no launcher, and nothing
    more at a second call.
    """
    own = os.getpid()
    if AT_START.process != own or not AT_START.launched or own in _watching:
        return
    _watching.add(own)
    threading.Thread(target=_watch, args=(own, AT_START.parent), daemon=True).start()


def _watch(own: int, parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(EVERY)
    os.kill(own, signal.SIGTERM)
