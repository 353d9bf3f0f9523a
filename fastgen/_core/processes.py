"""Weights that processes share (FSDP2, torch's `fully_shard`): shards to full tensors and back. All
that is not a shard is left as it is, so that nobody needs to ask.

Gathering and distributing are collective: all processes must do them, in one order.
"""

from __future__ import annotations

import atexit
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from torch import Tensor, distributed, nn


def sharing() -> bool:
    """Whether there are other processes at all."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


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
    """This process' part of a shard, sharing its memory."""
    return x.to_local() if is_shard(x) else x


def shared_like(x: Tensor, like: Any) -> Tensor:
    """A full tensor, the same on all processes, as shards that lie as those of `like`."""
    if is_shard(x) or not is_shard(like):
        return x
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(x.to(like.device), like.device_mesh, like.placements)


def settle(*modules: nn.Module | None) -> None:
    """Bring sharded networks into the state in which their parameters are the shards.

    A root keeps its gathered weights after a forward without backward. They would then be taken for
    the parameters, and a flag set on them would stay with them. A network that has not run yet is
    initialised: at its first forward FSDP notes for good which parameters are trained, which must
    not be while it is frozen.
    """
    if not sharing():
        return
    from torch.distributed.fsdp import FSDPModule

    for module in modules:
        for part in () if module is None else module.modules():
            if isinstance(part, FSDPModule):
                part._get_fsdp_state()._lazy_init()
                part.reshard()


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
