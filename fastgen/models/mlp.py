"""The MLP of a transformer layer."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from .arguments import check_probability
from .kits import DENSE, LayerKit

__all__ = ["MLP"]


class MLP(nn.Module):
    """Two linear maps with a GELU between them, applied to each token: (..., in) -> (..., out).

    Args:
        in_dim: input width.
        out_dim: output width, default `in_dim`.
        hidden_dim: width between, default 4 * `in_dim`.
        dropout: probability, after the GELU and after the second map.
        bias: whether the linear maps have one.
    """

    kit: LayerKit = DENSE

    def __init__(
        self,
        in_dim: Any,
        out_dim: Any = None,
        *,
        hidden_dim: Any = None,
        dropout: float = 0.0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        check_probability("dropout", dropout)
        out_dim = in_dim if out_dim is None else out_dim
        hidden_dim = self.kit.hidden(in_dim) if hidden_dim is None else hidden_dim
        self.up: Any = self.kit.linear(in_dim, hidden_dim, bias)
        self.down: Any = self.kit.linear(hidden_dim, out_dim, bias)
        self.hidden_dropout = self.kit.dropout(hidden_dim, dropout)
        self.out_dropout = self.kit.dropout(out_dim, dropout)

    def forward(self, x: Tensor) -> Tensor:
        y = self.hidden_dropout(F.gelu(self.up(x)))
        return self.out_dropout(self.down(y))
