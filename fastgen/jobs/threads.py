"""CPU threads of a training: all that there are, unless one update is too small to share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .._core.conditions import cond_to, take_rows
from .._core.modules import evaluating
from .._core.seeds import draws_apart
from .._core.threads import operations_of, threads_for
from ..config.training import LoopConfig
from ..networks import Cond, call_network, network_device, time_range

__all__ = ["threads_of_training"]

_ROWS = 2
_BACKWARD = 2.0  # products of a backward for each of the forward


def threads_of_training(
    train: LoopConfig, network: nn.Module, x0: Tensor, cond: Cond, processes: int
) -> int:
    """Threads with which this process trains: those that torch has, or fewer.

    Decided by the operations of one forward and backward of `network` on a micro-batch, so that it
    is the same whenever the run goes on.

    Args:
        train: of the run; `train.threads` decides if it is given.
        network: that is trained.
        x0, cond: data (N, ...) and their conditions, N rows each or None.
        processes: that share a batch.
    """
    most = torch.get_num_threads()
    device = network_device(network, x0.device)
    if train.threads is not None or device.type != "cpu":
        return most
    x0 = x0[:_ROWS]
    cond = cond_to(take_rows(cond, slice(_ROWS)), device)
    low, high = time_range(network)
    middle = 0.5 * (low + min(high, 1.0))
    with torch.no_grad(), evaluating(network), draws_apart(device):
        forward = operations_of(lambda: call_network(network, x0, middle, cond, dtype=x0.dtype))
    of_a_row = (1.0 + _BACKWARD) * forward / len(x0)
    return threads_for(of_a_row * train.micro_batch(processes), most)
