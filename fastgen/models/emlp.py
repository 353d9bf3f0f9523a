"""The equivariant MLP of a transformer layer."""

from __future__ import annotations

import torch.nn.functional as F
from escnn.group import Representation
from torch import Tensor

from .edropout import eDropout
from .ekits import EQUIVARIANT
from .fourier import FourierStack, stack_of
from .mlp import MLP
from .representations import check_representation
from .stacks import regular_stack

__all__ = ["eMLP"]


class eMLP(MLP):
    """Equivariant MLP: eLinear to regular copies, GELU, eLinear.

    Between stacks in the irrep basis both maps are block-diagonal. Only the GELU needs the regular
    basis, so two Fourier transforms, F and its transpose, stand around it. Channels come first
    there, which makes each transform one matrix product.

    Args:
        in_rep: representation of the input.
        out_rep: representation of the output, default `in_rep`.
        hidden_rep: copies of the regular representation, default at least four times the input's
            dimension.
        dropout: probability, after the GELU and after the second map.
        bias: whether the linear maps have one.
    """

    kit = EQUIVARIANT

    def __init__(
        self,
        in_rep: Representation,
        out_rep: Representation | None = None,
        *,
        hidden_rep: Representation | None = None,
        dropout: float = 0.0,
        bias: bool = True,
    ) -> None:
        check_representation("in_rep", in_rep)
        if hidden_rep is not None and not stack_of(check_representation("hidden_rep", hidden_rep)):
            raise ValueError(
                f"expected hidden_rep to be copies of the regular representation, got {hidden_rep}"
            )
        hidden = self.kit.hidden(in_rep) if hidden_rep is None else hidden_rep
        if isinstance(hidden, FourierStack):
            ends = (in_rep, in_rep if out_rep is None else out_rep)
            if not all(isinstance(rep, FourierStack) for rep in ends):
                hidden = regular_stack(hidden.group, hidden.copies)
        super().__init__(in_rep, out_rep, hidden_dim=hidden, dropout=dropout, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.up.out_rep
        if not isinstance(hidden, FourierStack):
            return super().forward(x)
        fourier = self.up.fourier.to(x.dtype)
        order = len(fourier)
        tokens = x.reshape(-1, x.shape[-1])
        y = self.up.by_irreps(tokens, channels_first=(False, True))  # (order * copies, tokens)
        y = fourier.T @ F.gelu(fourier @ y.view(order, -1))
        y = y.view(order, hidden.copies, -1)
        if isinstance(self.hidden_dropout, eDropout) and self.hidden_dropout.training:
            # One number for each token and copy: this mask is the same in either basis.
            mask = self.hidden_dropout.mask(x.new_empty(y.shape[-1], 1))
            y = y * mask.T
        y = self.down.by_irreps(y.flatten(0, 1), channels_first=(True, False))
        return self.out_dropout(y.view(*x.shape[:-1], self.out_rep.size))

    @property
    def in_rep(self) -> Representation:
        return self.up.in_rep

    @property
    def out_rep(self) -> Representation:
        return self.down.out_rep
