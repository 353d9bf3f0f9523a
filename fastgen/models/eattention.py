"""Equivariant multi-head attention."""

from __future__ import annotations

from escnn.group import Representation
from torch import Tensor

from .attention import MultiheadAttention
from .ekits import EQUIVARIANT
from .fourier import FourierStack
from .representations import check_representation

__all__ = ["eMultiheadAttention"]


class eMultiheadAttention(MultiheadAttention):
    """Equivariant multi-head attention.

    Its scores are dot products, which an orthogonal representation leaves alone.

    Args:
        in_rep: representation of the tokens. Each head must be invariant: whole copies of a regular
            representation, say.
        num_heads: H.
        dropout: probability on the attention weights.
        bias: whether the linear maps have one.
    """

    kit = EQUIVARIANT

    def __init__(
        self, in_rep: Representation, num_heads: int, dropout: float = 0.0, bias: bool = True
    ) -> None:
        check_representation("in_rep", in_rep)
        super().__init__(in_rep, num_heads, dropout, bias)

    def project(self, x: Tensor, memory: Tensor | None) -> tuple[Tensor, ...]:
        if not isinstance(self.in_rep, FourierStack):
            return super().project(x, memory)
        if memory is None:
            return self._heads_by_irreps(x, slice(None), 3)
        copies = self.in_rep.copies
        (q,) = self._heads_by_irreps(x, slice(copies), 1)
        k, v = self._heads_by_irreps(memory, slice(copies, None), 2)
        return q, k, v

    def _heads_by_irreps(self, x: Tensor, copies: slice, parts: int) -> tuple[Tensor, ...]:
        """As `heads` in the irrep basis, where channels are laid out (component, copy)."""
        order = self.in_rep.group.order()
        # Computed from the width, not left to `view` as -1, which an empty batch doesn't allow.
        copies_of_head = self.width // order // self.num_heads
        y = self.qkv.by_irreps(x.flatten(0, 1), copies=copies)
        y = y.view(*x.shape[:2], order, parts, self.num_heads, copies_of_head)
        y = y.permute(3, 0, 4, 1, 2, 5).flatten(4)
        # With one copy in a head, its channels would be a strided view, for which torch doesn't use
        # its fused attention.
        return y.contiguous().unbind(0)

    def merge(self, y: Tensor) -> Tensor:
        if not isinstance(self.in_rep, FourierStack):
            return super().merge(y)
        order = self.in_rep.group.order()
        return y.unflatten(3, (order, -1)).permute(0, 2, 3, 1, 4).flatten(2)

    @property
    def in_rep(self) -> Representation:
        return self.out.in_rep

    @property
    def out_rep(self) -> Representation:
        return self.out.out_rep
