"""Probes: the rows of the data that a teacher is tried on before anything is trained."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .._core.conditions import cond_to, take_rows
from ..networks import Cond, network_device, network_dtype

__all__ = ["probe_rows"]

_ROWS = 128
# Fewer rows are taken of large samples, each of which averages over many numbers.
_MOST_NUMBERS = 2**20
_LEAST_ROWS = 8


def probe_rows(x0: Tensor, cond: Cond, network: nn.Module) -> tuple[Tensor, Cond]:
    """(x0, cond): up to 128 rows, spread over the data; where `network` is called and in its
    dtype."""
    most = max(_LEAST_ROWS, min(_ROWS, _MOST_NUMBERS // x0[0].numel()))
    rows = torch.linspace(0, len(x0) - 1, min(most, len(x0))).round().long()
    device = network_device(network, x0.device)
    dtype = network_dtype(network, x0.dtype)
    x0 = cond_to(take_rows(x0, rows), device, dtype)
    return x0, cond_to(take_rows(cond, rows), device, dtype)
