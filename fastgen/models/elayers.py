"""Equivariant transformer layers: the dense layers over representations."""

from __future__ import annotations

import torch.nn.functional as F
from escnn.group import Representation
from torch import Tensor

from .eattention import eMultiheadAttention
from .ekits import EQUIVARIANT
from .emlp import eMLP
from .fourier import FourierStack, stack_of
from .layers import TransformerDecoderLayer, TransformerEncoderLayer
from .representations import check_representation

__all__ = ["eTransformerDecoderLayer", "eTransformerEncoderLayer"]


class eTransformerEncoderLayer(TransformerEncoderLayer):
    """`TransformerEncoderLayer` over a representation: the same forward with equivariant maps.

    Args:
        in_rep: representation of the tokens.
        num_heads, dropout, norm_module: as there.
    """

    kit = EQUIVARIANT
    attention_class = eMultiheadAttention
    mlp_class = eMLP

    def __init__(
        self,
        in_rep: Representation,
        num_heads: int,
        *,
        dropout: float = 0.0,
        norm_module: str = "rmsnorm",
    ) -> None:
        check_representation("in_rep", in_rep)
        super().__init__(in_rep, num_heads, dropout=dropout, norm_module=norm_module)

    @property
    def in_rep(self) -> Representation:
        return self.self_attention.in_rep

    @property
    def out_rep(self) -> Representation:
        return self.self_attention.in_rep


class eTransformerDecoderLayer(TransformerDecoderLayer):
    """`TransformerDecoderLayer` over a representation: the same forward with equivariant maps.

    Args:
        in_rep: representation of the tokens and of the memory. If `time_dim` > 0, it is copies of
            the regular one, in either basis.
        num_heads, dropout, norm_module, time_dim: as there.
    """

    kit = EQUIVARIANT
    attention_class = eMultiheadAttention
    mlp_class = eMLP

    def __init__(
        self,
        in_rep: Representation,
        num_heads: int,
        *,
        dropout: float = 0.0,
        norm_module: str = "rmsnorm",
        time_dim: int = 0,
    ) -> None:
        check_representation("in_rep", in_rep)
        super().__init__(
            in_rep, num_heads, dropout=dropout, norm_module=norm_module, time_dim=time_dim
        )

    def modulation_at(self, time: Tensor) -> tuple[Tensor, ...]:
        stack = stack_of(self.in_rep)
        if not isinstance(stack, FourierStack):
            return super().modulation_at(time)
        lift = self.modulation
        numbers = F.linear(time, lift.weight, lift.bias).unflatten(-1, (9, -1))
        if time.ndim == 2:
            numbers = numbers[:, None]
        modulation = []
        for i, number in enumerate(numbers.unbind(2)):
            is_shift = i % 3 == 1
            # A shift is an invariant vector; scales and gates are numbers of the copies.
            modulation.append(stack.invariant(number) if is_shift else stack.spread(number))
        return tuple(modulation)

    @property
    def in_rep(self) -> Representation:
        return self.self_attention.in_rep

    @property
    def out_rep(self) -> Representation:
        return self.self_attention.in_rep
