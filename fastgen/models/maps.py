"""Linear maps that aren't stored as their matrix, and tables of positions."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["POSITION_STD", "LinearMap", "PositionTable", "dense_of"]

# Tokens have size one after the norm; positions ten times smaller were found slower to learn from.
POSITION_STD = 0.1


class LinearMap(nn.Module, ABC):
    """A linear map that is stored as fewer numbers than its matrix has."""

    weight: nn.Parameter

    @abstractmethod
    def dense(self) -> tuple[Tensor, Tensor | None]:
        """The matrix (out, in) and the bias (out,) or None, differentiable in the parameters."""

    @abstractmethod
    def reset_parameters(self, scheme: str = "xavier_uniform") -> None:
        """Draw the parameters afresh, with the variance of a dense matrix under `scheme`."""

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.dense()
        return F.linear(x, weight, bias)


def dense_of(linear: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of an `nn.Linear` or a `LinearMap`, as differentiable tensors."""
    if isinstance(linear, nn.Linear):
        return linear.weight, linear.bias
    if isinstance(linear, LinearMap):
        return linear.dense()
    raise TypeError(f"expected nn.Linear or LinearMap, got {type(linear).__name__}")


class PositionTable(nn.Module):
    """Learned positions: a table (horizon, dim) whose first T rows are added to T tokens."""

    def __init__(self, horizon: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(horizon, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=POSITION_STD)

    def forward(self, length: int) -> Tensor:
        """Rows of the first `length` positions, shape (length, dim)."""
        return self.weight[:length]
