"""CPU threads of a training: all that there are, unless one update is too small to share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .._core.conditions import take_rows
from .._core.modules import evaluating
from .._core.seeds import draws_apart
from .._core.threads import operations_of, threads_for
from ..config.training import LoopConfig
from ..networks import Cond, call_network, time_range
from ..training.processes import Processes

__all__ = ["threads_of_training"]

_ROWS = 2
_BACKWARD = 2.0  # products of a backward for each of the forward


def threads_of_training(
    train: LoopConfig,
    make: Callable[[], nn.Module],
    x0: Tensor,
    cond: Cond,
    processes: Processes,
) -> int:
    """Threads with which this process trains: those that torch has, or fewer.

    Decided by the operations of one forward and backward of the network on a micro-batch, so that
    it is the same whenever the run goes on.

    Args:
        train: of the run; `train.threads` decides if it is given.
        make: makes the network that is trained. Called only where it decides.
        x0, cond: data (N, ...) and their conditions, N rows each or None.
        processes: that share a batch, on one kind of device.
    """
    most = torch.get_num_threads()
    if train.threads is not None or processes.device.type != "cpu":
        return most
    network = make()
    x0 = x0[:_ROWS]
    cond = take_rows(cond, slice(_ROWS))
    low, high = time_range(network)
    middle = 0.5 * (low + min(high, 1.0))
    with torch.no_grad(), evaluating(network), draws_apart(processes.device):
        forward = operations_of(lambda: call_network(network, x0, middle, cond, dtype=x0.dtype))
    of_a_row = (1.0 + _BACKWARD) * forward / len(x0)
    return threads_for(of_a_row * train.micro_batch(processes.num_processes), most)
