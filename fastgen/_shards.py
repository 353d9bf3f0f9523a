"""Weights that processes share (FSDP2, torch's `fully_shard`): shards to full tensors and back. All
that is not a shard is left as it is, so that nobody needs to ask.

Gathering and distributing are collective: all processes must do them, in one order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


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
