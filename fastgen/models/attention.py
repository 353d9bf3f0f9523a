"""Multi-head attention with one fused map for queries, keys and values."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .arguments import check_mask, check_probability, check_seen
from .kits import DENSE, LayerKit
from .maps import dense_of

__all__ = ["MultiheadAttention"]


class MultiheadAttention(nn.Module):
    """Multi-head attention: softmax(q k^T / sqrt(d_head)) v in each head.

    Heads are consecutive slices of the channels. Self-attention evaluates the fused map once.
    Cross-attention takes its first third for the queries, the rest for keys and values of the
    memory.

    Args:
        embed_dim: width D, a multiple of `num_heads`.
        num_heads: H.
        dropout: probability on the attention weights, in training mode only.
        bias: whether the linear maps have one.

    References: Vaswani et al. 2017, arXiv:1706.03762.
    """

    kit: LayerKit = DENSE

    def __init__(
        self, embed_dim: Any, num_heads: int, dropout: float = 0.0, bias: bool = True
    ) -> None:
        super().__init__()
        check_probability("dropout", dropout)
        self.kit.check_heads(embed_dim, num_heads, "num_heads")
        self.num_heads = num_heads
        self.dropout = dropout
        self.width = self.kit.dim(embed_dim)
        self.qkv: Any = self.kit.linear(embed_dim, self.kit.times(embed_dim, 3), bias)
        self.qkv.fused = 3  # each third is initialised as a map of its own
        self.out: Any = self.kit.linear(embed_dim, embed_dim, bias)

    def _heads(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, parts: int
    ) -> tuple[Tensor, ...]:
        """Project and split: (B, T, D) -> `parts` tensors (B, H, T, D / H)."""
        split = (parts, self.num_heads, self.width // self.num_heads)
        y = F.linear(x, weight, bias).unflatten(-1, split)
        return y.permute(2, 0, 3, 1, 4).unbind(0)

    def project(self, x: Tensor, memory: Tensor | None) -> tuple[Tensor, ...]:
        """Queries of x, keys and values of `memory` or of x: (B, H, T, D / H) each."""
        weight, bias = dense_of(self.qkv)
        if memory is None:
            return self._heads(x, weight, bias, 3)
        width = self.width
        q_bias = None if bias is None else bias[:width]
        kv_bias = None if bias is None else bias[width:]
        (q,) = self._heads(x, weight[:width], q_bias, 1)
        k, v = self._heads(memory, weight[width:], kv_bias, 2)
        return q, k, v

    def merge(self, y: Tensor) -> Tensor:
        """Heads (B, H, T, D / H) back to channels (B, T, D)."""
        return y.transpose(1, 2).flatten(2)

    def forward(
        self,
        x: Tensor,
        memory: Tensor | None = None,
        *,
        is_causal: bool = False,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Attend from x to itself, or to a memory.

        Args:
            x: tokens (B, T, D).
            memory: tokens (B, S, D) to read; None: x itself.
            is_causal: token i sees tokens <= i of x.
            mask: bool (B, S), or (B, T) without a memory: only tokens that are True are seen.

        Returns:
            (B, T, D).

        Raises:
            TypeError: a mask that is not bool.
            ValueError: a mask of another shape, or one that hides all tokens of a row.
        """
        if mask is not None:
            read = x if memory is None else memory
            check_mask(mask, (read.shape[0], read.shape[1]))
            if not is_causal:
                check_seen(mask)
        q, k, v = self.project(x, memory)
        p = self.dropout if self.training else 0.0
        seen = None if mask is None else mask[:, None, None]
        if seen is not None and is_causal:
            # Each token sees itself: padding before the first real token would see nothing, and be
            # NaN.
            i = torch.arange(x.shape[1], device=x.device)
            seen = seen & (i[:, None] > i) | (i[:, None] == i)
            is_causal = False
        return self.out(self.merge(F.scaled_dot_product_attention(q, k, v, seen, p, is_causal)))
