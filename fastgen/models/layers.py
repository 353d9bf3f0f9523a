"""Pre-norm transformer layers: an encoder layer, and a decoder layer that the time may modulate."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .._core.checks import check_count
from .attention import MultiheadAttention
from .kits import DENSE, LayerKit
from .mlp import MLP
from .parameters import reset_parameters_

__all__ = ["TransformerDecoderLayer", "TransformerEncoderLayer"]


class TransformerEncoderLayer(nn.Module):
    """Pre-norm encoder layer: x + SA(norm(x)), then x + MLP(norm(x)).

    SA is self-attention; the MLP is four times as wide as x.

    Args:
        embed_dim: width D.
        num_heads: H.
        dropout: probability on attention weights, inside the MLP and on both residual branches.
        norm_module: "rmsnorm" or "layernorm".
    """

    kit: LayerKit = DENSE
    attention_class: type[MultiheadAttention] = MultiheadAttention
    mlp_class: type[MLP] = MLP

    def __init__(
        self, embed_dim: Any, num_heads: int, *, dropout: float = 0.0, norm_module: str = "rmsnorm"
    ) -> None:
        super().__init__()
        self.self_norm = self.kit.norm(embed_dim, norm_module)
        self.self_attention: Any = self.attention_class(embed_dim, num_heads, dropout)
        self.mlp_norm = self.kit.norm(embed_dim, norm_module)
        self.mlp = self.mlp_class(embed_dim, dropout=dropout)
        self.dropout = self.kit.dropout(embed_dim, dropout)

    def forward(self, x: Tensor, *, is_causal: bool = False, mask: Tensor | None = None) -> Tensor:
        """Map x (B, T, D) to (B, T, D); of x only the tokens that `mask`, bool (B, T), keeps are
        seen."""
        y = self.self_attention(self.self_norm(x), is_causal=is_causal, mask=mask)
        x = x + self.dropout(y)
        return x + self.mlp(self.mlp_norm(x))


class TransformerDecoderLayer(nn.Module):
    """Pre-norm decoder layer: self-attention, cross-attention to a memory, MLP, each on a residual
    branch.

    With `time_dim` > 0, the time modulates every branch f:

        x + gate(t) * f(scale(t) * norm(x) + shift(t)).

    Scale, shift and gate are affine in the time features and start at 1, 0 and 1. They take the
    place of the norm's own scale.

    Args:
        embed_dim: width D.
        num_heads: H.
        dropout: probability on attention weights, inside the MLP and on the residual branches.
        norm_module: "rmsnorm" or "layernorm".
        time_dim: number of time features, 0 for a layer without time.

    References: Peebles and Xie 2023, arXiv:2212.09748 (modulation by the time).
    """

    kit: LayerKit = DENSE
    attention_class: type[MultiheadAttention] = MultiheadAttention
    mlp_class: type[MLP] = MLP

    def __init__(
        self,
        embed_dim: Any,
        num_heads: int,
        *,
        dropout: float = 0.0,
        norm_module: str = "rmsnorm",
        time_dim: int = 0,
    ) -> None:
        super().__init__()
        check_count("time_dim", time_dim, least=0)
        kit = self.kit
        affine = time_dim == 0
        self.self_norm = kit.norm(embed_dim, norm_module, affine)
        self.self_attention: Any = self.attention_class(embed_dim, num_heads, dropout)
        self.cross_norm = kit.norm(embed_dim, norm_module, affine)
        self.cross_attention = self.attention_class(embed_dim, num_heads, dropout)
        self.mlp_norm = kit.norm(embed_dim, norm_module, affine)
        self.mlp = self.mlp_class(embed_dim, dropout=dropout)
        self.dropout = kit.dropout(embed_dim, dropout)
        self.modulation: Any = None
        if time_dim:
            kit.check_modulated(embed_dim)
            self.modulation = kit.lift(time_dim, kit.times(embed_dim, 9))
            self.modulation.starts_as = (1.0, 0.0, 1.0) * 3
            reset_parameters_(self.modulation, "xavier_uniform")

    def forward(
        self,
        x: Tensor,
        memory: Tensor,
        time: Tensor | None = None,
        *,
        is_causal: bool = False,
        mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
    ) -> Tensor:
        """Map x (B, T, D) to (B, T, D).

        Args:
            x: tokens.
            memory: tokens (B, S, D) to read. They are read as they are: who makes them normalises
                them.
            time: time features (B, time_dim), or each token's own (B, T, time_dim); None if
                `time_dim` is 0.
            is_causal: token i sees tokens <= i of x.
            mask: bool (B, T), the tokens of x that others may see.
            memory_mask: bool (B, S), the tokens of the memory that are read.

        Raises:
            ValueError: time features are missing, or given to a layer without time; a mask of
                another shape, or one that hides all tokens of a row.
            TypeError: a mask that is not bool.
        """
        if (time is None) != (self.modulation is None):
            wanted = "features" if time is None else "None"
            raise ValueError(f"expected time {wanted} for this layer's time_dim")
        if time is not None:
            seen = (mask, memory_mask)
            return self._modulated(x, memory, time, is_causal=is_causal, seen=seen)
        y = self.self_attention(self.self_norm(x), is_causal=is_causal, mask=mask)
        x = x + self.dropout(y)
        y = self.cross_attention(self.cross_norm(x), memory, mask=memory_mask)
        x = x + self.dropout(y)
        return x + self.mlp(self.mlp_norm(x))

    def _modulated(
        self,
        x: Tensor,
        memory: Tensor,
        time: Tensor,
        *,
        is_causal: bool,
        seen: tuple[Tensor | None, Tensor | None],
    ) -> Tensor:
        """The three branches, each between its scale and shift and its gate; `seen` are the masks
        of x and of the memory."""
        mask, memory_mask = seen
        numbers = self.modulation_at(time)

        scale, shift, gate = numbers[0:3]
        y = torch.addcmul(shift, self.self_norm(x), scale)
        y = self.self_attention(y, is_causal=is_causal, mask=mask)
        x = torch.addcmul(x, self.dropout(y), gate)

        scale, shift, gate = numbers[3:6]
        y = torch.addcmul(shift, self.cross_norm(x), scale)
        y = self.cross_attention(y, memory, mask=memory_mask)
        x = torch.addcmul(x, self.dropout(y), gate)

        scale, shift, gate = numbers[6:9]
        y = torch.addcmul(shift, self.mlp_norm(x), scale)
        return torch.addcmul(x, self.mlp(y), gate)

    def last_maps(self) -> list[nn.Module]:
        """The map that each branch ends with: where all are zero, x is handed on as it is."""
        return [self.self_attention.out, self.cross_attention.out, self.mlp.down]

    def modulation_at(self, time: Tensor) -> tuple[Tensor, ...]:
        """Scale, shift and gate of the three branches: nine tensors (B, 1, D), or (B, T, D) of
        features of each token."""
        numbers = self.modulation(time)
        return (numbers if time.ndim == 3 else numbers[:, None]).chunk(9, dim=-1)
