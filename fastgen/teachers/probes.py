"""Probes: the rows of the data that a teacher is tried on before anything is trained."""

from __future__ import annotations

import torch
from torch import Tensor

from .._core.conditions import cond_to, take_rows
from ..networks import Cond

__all__ = ["probe_rows"]

_ROWS = 128
# Fewer rows are taken of large samples, each of which averages over many numbers.
_MOST_NUMBERS = 2**20
_LEAST_ROWS = 8


def probe_rows(x0: Tensor, cond: Cond, like: Tensor) -> tuple[Tensor, Cond]:
    """(x0, cond): up to 128 rows, spread over the data; on the device and in the dtype of
    `like`."""
    most = max(_LEAST_ROWS, min(_ROWS, _MOST_NUMBERS // x0[0].numel()))
    rows = torch.linspace(0, len(x0) - 1, min(most, len(x0))).round().long()
    x0 = cond_to(take_rows(x0, rows), like.device, like.dtype)
    return x0, cond_to(take_rows(cond, rows), like.device, like.dtype)
