"""Processes that work together: weights in shards, words to each other, and how all come to an end.

Weights that processes share (FSDP2, torch's `fully_shard`) are shards of a DTensor. What is no
shard is left as it is by the functions here, so that nobody needs to ask.

To gather, to distribute and to meet is collective: all processes must do it, in one order.
"""

from __future__ import annotations

import atexit
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from torch import Tensor, distributed, nn

__all__ = [
    "gather_objects",
    "gathered",
    "is_shard",
    "leave",
    "own",
    "leave_together",
    "leave_group_at_exit",
    "settle",
    "shared_like",
    "sharing",
    "together",
]


def sharing() -> bool:
    """Whether there is a group of processes, be it of one."""
    return distributed.is_available() and distributed.is_initialized()


# ---- Shards --------------------------------------------------------------------------------------


def is_shard(x: Any) -> bool:
    """Whether `x` is a DTensor."""
    if not sharing():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(x, DTensor)


def gathered(x: Any) -> Any:
    """The full tensor of a shard, on every process."""
    return x.full_tensor() if is_shard(x) else x


def own(x: Any) -> Any:
    """This process' part of a shard, in the same memory."""
    return x.to_local() if is_shard(x) else x


def shared_like(x: Tensor, like: Any) -> Tensor:
    """A full tensor, the same on all processes, in shards that lie where those of `like` do."""
    if is_shard(x) or not is_shard(like):
        return x
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(x.to(like.device), like.device_mesh, like.placements)


def settle(*modules: nn.Module | None) -> None:
    """Bring sharded networks into the state in which their parameters are the shards.

    After a forward without a backward, a network keeps its gathered weights. They would be taken
    for its parameters, and a flag that is set on them would stay with them.

    A network that has not run yet is initialised. At its first forward FSDP notes for good which
    parameters are trained, and the network may be frozen then.
    """
    if not sharing():
        return
    from torch.distributed.fsdp import FSDPModule

    for module in modules:
        if module is None:
            continue
        for part in module.modules():
            if isinstance(part, FSDPModule):
                part._get_fsdp_state()._lazy_init()
                part.reshard()


# ---- Words ---------------------------------------------------------------------------------------


def _processes() -> int:
    """How many processes share the work."""
    return distributed.get_world_size() if sharing() else 1


def gather_objects(value: Any) -> list[Any]:
    """`value` of each process, in their order; `[value]` of a process that is alone."""
    if _processes() == 1:
        return [value]
    values: list[Any] = [None] * _processes()
    distributed.all_gather_object(values, value)
    return values


@contextmanager
def together() -> Iterator[None]:
    """All processes come to the end of the block, or all leave with an error: none waits for one
    that is gone.

    It is for blocks in which processes don't meet, such as what the main process alone writes.

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


# ---- The end -------------------------------------------------------------------------------------


def leave(code: int) -> NoReturn:
    """End this process with an exit code.

    One of several processes ends without the interpreter's teardown. That would abort it with
    another exit code where a thread of the group still holds the tensors of an exchange, or where
    others are in the middle of one.
    """
    if _processes() > 1:
        atexit.unregister(leave_group_at_exit)
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    raise SystemExit(code)


def leave_together() -> None:
    """The end of the work, to which all processes come: each of several ends here, with exit code
    0."""
    if _processes() > 1:
        distributed.barrier()
        leave(0)


def leave_group_at_exit() -> None:
    """Close this process' connections before the interpreter's teardown, and wait until the group's
    threads have let go of what they hold: one that does so later aborts the process."""
    # Other backends than gloo would wait here for work that processes which are gone never do.
    if _processes() > 1 and distributed.get_backend() == "gloo":
        distributed.destroy_process_group()
        time.sleep(0.2)
