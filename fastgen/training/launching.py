"""Launches: what a launcher gives a process, known without starting accelerate, and a warning of
one that started fewer processes than it was asked for."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from .._core.launcher import parent_command

__all__ = [
    "Launch",
    "is_first_process",
    "launch_of",
    "launch_warning",
    "warn_of_launch",
]

_YES = ("1", "true", "yes", "on", "y", "t")


class Launch(NamedTuple):
    """What a process will have once accelerate has started.

    Attributes:
        processes: how many share a batch.
        device: type of the device that networks are on.
        sharded: whether the processes share the weights of trained networks, too (FSDP2).
    """

    processes: int = 1
    device: str = "cpu"
    sharded: bool = False

    @property
    def shards(self) -> int | None:
        """Parts in which trained networks are; None: in one piece."""
        return self.processes if self.sharded else None


def launch_of(environment: Mapping[str, str], accelerator: torch.device | None) -> Launch:
    """The launch that left these variables, by what accelerate reads of them.

    Starting accelerate would wait for all processes; a plan doesn't need them.

    Args:
        environment: variables of this process.
        accelerator: what `torch.accelerator.current_accelerator` finds here.
    """

    def on(name: str) -> bool:
        return environment.get(name, "").lower() in _YES

    device = "cpu" if accelerator is None or on("ACCELERATE_USE_CPU") else accelerator.type
    # Accelerate does not shard on a CPU, nor without a group of processes, be it of one.
    able = device != "cpu" and "RANK" in environment
    asked = on("ACCELERATE_USE_FSDP") and environment.get("FSDP_VERSION") == "2"
    processes = int(environment.get("WORLD_SIZE", "1"))
    return Launch(processes, device, sharded=able and asked)


def is_first_process() -> bool:
    """Whether this process is the first of its launch, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def launch_warning(
    started: int, *, environment: Mapping[str, str], parent: Sequence[str], script: Sequence[str]
) -> str | None:
    """A warning of an `accelerate launch` that was asked for several processes and started one.

    Without mpirun, `accelerate launch --cpu --num_processes N` runs the script once. Such a process
    has no rank, but it has MASTER_ADDR and MASTER_PORT, which the launcher sets for N > 1 alone,
    beside ACCELERATE_MIXED_PRECISION. A cluster may export the two addresses itself. So where N
    stands on the launcher's command line, that is what counts; an N from a config file is not
    known.

    Args:
        started: processes that share the batch.
        environment: variables of this process.
        parent: words of the command line of its parent, empty where they are unknown.
        script: words of its own command line, without the interpreter.

    Returns:
        one line; None where there is nothing to warn of.
    """
    launched = {"ACCELERATE_MIXED_PRECISION", "MASTER_ADDR", "MASTER_PORT"} <= environment.keys()
    if started > 1 or not launched or {"RANK", "WORLD_SIZE"} & environment.keys():
        return None
    asked = _asked(parent)
    if asked == 1:
        return None
    number = "several" if asked is None else str(asked)
    option = "N" if asked is None else str(asked)
    return (
        f"accelerate launch was asked for {number} processes and started 1, as it does on a CPU "
        f"without mpirun; for {number}: torchrun --nproc_per_node {option} {' '.join(script)}"
    )


def warn_of_launch(started: int) -> None:
    """Print `launch_warning` of this process to stderr, if there is one."""
    said = launch_warning(started, environment=os.environ, parent=parent_command(), script=sys.argv)
    if said is not None:
        print(f"warning: {said}", file=sys.stderr, flush=True)


def _asked(command: Sequence[str]) -> int | None:
    """N of `--num_processes N`, `--num-processes N`, or either with `=`; the last one counts."""
    asked = None
    for word, after in zip(command, [*command, ""][1:], strict=True):
        option, equals, value = word.replace("-", "_").partition("=")
        number = value if equals else after
        if option == "__num_processes" and number.isdigit():
            asked = int(number)
    return asked
