"""What a launch gives a process, and whether it got the processes that it asked for."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

__all__ = [
    "Launch",
    "is_first_process",
    "launch_of",
    "launch_warning",
    "parent_command",
    "warn_of_launch",
]


class Launch(NamedTuple):
    """What a process will have once accelerate has started.

    Attributes:
        processes: that share the batch.
        device: type of the device that networks are on.
        sharded: whether processes share the weights of trained networks (FSDP2), too.
    """

    processes: int = 1
    device: str = "cpu"
    sharded: bool = False

    @property
    def shards(self) -> int | None:
        """Parts that trained networks are in, None where they are in one piece."""
        return self.processes if self.sharded else None


def launch_of(environment: Mapping[str, str], accelerator: torch.device | None) -> Launch:
    """The launch that these variables are of, by what accelerate reads of them; for who doesn't
    want to start it, which waits for all processes.

    Args:
        environment: variables of this process.
        accelerator: what `torch.accelerator.current_accelerator` finds here.
    """

    def on(name: str) -> bool:
        return environment.get(name, "").lower() in ("1", "true", "yes", "on", "y", "t")

    device = "cpu" if accelerator is None or on("ACCELERATE_USE_CPU") else accelerator.type
    # On a CPU accelerate does not shard, and it needs a group of processes, be it of one.
    shares = device != "cpu" and "RANK" in environment and environment.get("FSDP_VERSION") == "2"
    return Launch(
        int(environment.get("WORLD_SIZE", "1")), device, shares and on("ACCELERATE_USE_FSDP")
    )


def is_first_process() -> bool:
    """Whether this process is the first of its launch, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def launch_warning(
    started: int, *, environment: Mapping[str, str], parent: Sequence[str], script: Sequence[str]
) -> str | None:
    """One line if `accelerate launch` was asked for several processes and started one, None
    otherwise.

    Without mpirun, `accelerate launch --cpu --num_processes N` runs the script once. It leaves
    MASTER_ADDR and MASTER_PORT, which it sets for N > 1 alone, beside ACCELERATE_MIXED_PRECISION,
    and no rank. A cluster may export the addresses, too, so `--num_processes 1` on the command line
    of the launcher has the last word; it is the launcher's number where it stands there. One from a
    config file is not known.

    Args:
        started: processes that share the batch.
        environment: variables of this process.
        parent: words of the command line of its parent, empty where they are unknown.
        script: words of its own command line, without the interpreter.
    """
    launched = {"ACCELERATE_MIXED_PRECISION", "MASTER_ADDR", "MASTER_PORT"} <= environment.keys()
    if started > 1 or not launched or {"RANK", "WORLD_SIZE"} & environment.keys():
        return None
    asked = _asked(parent)
    if asked == 1:
        return None
    number = "several" if asked is None else str(asked)
    return (
        f"accelerate launch was asked for {number} processes and started 1, as it does on a CPU "
        f"without mpirun; for {number}: torchrun --nproc_per_node "
        f"{'N' if asked is None else asked} {' '.join(script)}"
    )


def parent_command() -> list[str]:
    """Words of the command line of the parent process; empty where /proc doesn't tell."""
    try:
        return (
            Path(f"/proc/{os.getppid()}/cmdline")
            .read_bytes()
            .decode(errors="replace")
            .split("\0")[:-1]
        )
    except OSError:
        return []


def warn_of_launch(started: int) -> None:
    """Print `launch_warning` of this process to stderr, if there is one."""
    said = launch_warning(started, environment=os.environ, parent=parent_command(), script=sys.argv)
    if said is not None:
        print(f"warning: {said}", file=sys.stderr, flush=True)


def _asked(command: Sequence[str]) -> int | None:
    """N of `--num_processes N`, `--num-processes N` or with `=`; the last one counts."""
    asked = None
    for word, after in zip(command, [*command, ""][1:], strict=True):
        option, equals, value = word.replace("-", "_").partition("=")
        if option == "__num_processes" and (value if equals else after).isdigit():
            asked = int(value if equals else after)
    return asked
