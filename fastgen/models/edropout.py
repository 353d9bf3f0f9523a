"""Equivariant dropout: its mask commutes with the group."""

from __future__ import annotations

import torch.nn.functional as F
from escnn.group import Representation
from torch import Tensor

from .fourier import FourierStack, stack_of
from .typed import Typed

__all__ = ["eDropout"]


class eDropout(Typed):
    """Dropout of whole regular copies, or of the whole vector of another representation.

    Args:
        rep: representation of the features.
        p: probability.
    """

    def __init__(self, rep: Representation, p: float) -> None:
        super().__init__(rep, rep)
        self.p = p
        stack = stack_of(rep)
        self.copies = stack.copies if stack else 1
        self.copies_last = isinstance(stack, FourierStack)

    def mask(self, x: Tensor) -> Tensor:
        """Zeros and 1 / (1 - p), one for each of the tokens and copies of x (..., D): shape
        (..., copies)."""
        return F.dropout(x.new_ones(*x.shape[:-1], self.copies), self.p)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        if self.copies_last:
            y = x.unflatten(-1, (-1, self.copies)) * self.mask(x).unsqueeze(-2)
        else:
            y = x.unflatten(-1, (self.copies, -1)) * self.mask(x).unsqueeze(-1)
        return y.flatten(-2)
