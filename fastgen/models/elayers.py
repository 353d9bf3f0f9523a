"""Equivariant layers: the dense layers of ``layers.py`` over representations. Their linear maps
stand in ``emaps.py``.

References: Cohen and Welling 2016, arXiv:1602.07576.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from escnn.group import Representation
from torch import Tensor, nn

from .emaps import Invariant, InvariantLift, Typed, eLinear, ePositionTable
from .fourier import FourierStack, stack_of
from .groups import check_representation, irrep_columns, regular_stack
from .layers import (
    MLP,
    NORM_EPS,
    MultiheadAttention,
    TransformerDecoderLayer,
    TransformerEncoderLayer,
    check_norm_module,
    rms_norm,
)
from .regressor import check_positive_int, check_probability

__all__ = [
    "EQUIVARIANT",
    "eLayerNorm",
    "eMLP",
    "eMultiheadAttention",
    "eRMSNorm",
    "eTransformerDecoderLayer",
    "eTransformerEncoderLayer",
]


class eRMSNorm(Invariant):
    """y = S x / sqrt(mean(x^2) + eps): the mean square of an orthogonal representation is
    invariant, S is one scale per copy or irrep.

    Args:
        in_rep: representation of the features.
        affine: whether there is an S.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    owner: Tensor

    def __init__(self, in_rep: Representation, *, affine: bool = True) -> None:
        super().__init__(in_rep, in_rep)
        self.register_parameter("weight", None)
        self.register_parameter("bias", None)
        if affine:
            self.weight = nn.Parameter(torch.ones(self.copies or len(in_rep.irreps)))
        if affine and not self.copies:
            columns = []
            sizes = []
            for irrep_id, parts in irrep_columns(in_rep).items():
                columns.append(parts.flatten(1))
                sizes += [in_rep.group.irrep(*irrep_id).size] * parts.shape[1]
            self._constant("basis", torch.cat(columns, dim=1))
            self._constant("owner", torch.from_numpy(np.repeat(np.arange(len(sizes)), sizes)))

    def reset_parameters(self) -> None:
        for parameter, value in ((self.weight, 1.0), (self.bias, 0.0)):
            if parameter is not None:
                nn.init.constant_(parameter, value)

    def affine(self) -> tuple[Tensor | None, Tensor | None]:
        """Scale and shift: per channel (D,) on regular copies; elsewhere the scale is a matrix (D,
        D) that commutes with the group."""
        scale = self.weight
        shift = self.bias
        if scale is not None and self.stack:
            scale = self.stack.spread(scale)
        elif scale is not None:
            basis: Tensor = self.basis  # pyright: ignore[reportAssignmentType]
            scale = ((basis * scale.to(basis.dtype)[self.owner]) @ basis.T).to(scale.dtype)
        return scale, None if shift is None else self.embed(shift)

    def forward(self, x: Tensor) -> Tensor:
        scale, _ = self.affine()
        if self.copies or scale is None:
            return rms_norm(x, scale)
        return rms_norm(x, None) @ scale


class eLayerNorm(eRMSNorm):
    """y = S c / sqrt(mean(c^2) + eps) + b with c = x minus the mean of its invariant coordinates, b
    in the invariant subspace.

    On copies of the regular representation this is the ordinary LayerNorm with one scale and one
    shift per copy. Elsewhere only the invariant coordinates are centred, since no other mean is
    equivariant.

    Args:
        in_rep: representation of the features.
        affine: whether there are S and b.
    """

    def __init__(self, in_rep: Representation, *, affine: bool = True) -> None:
        super().__init__(in_rep, affine=affine)
        if affine and self.num_invariants:
            self.bias = nn.Parameter(torch.zeros(self.num_invariants))

    def forward(self, x: Tensor) -> Tensor:
        scale, shift = self.affine()
        if self.copies and not isinstance(self.stack, FourierStack):
            return F.layer_norm(x, (self.in_rep.size,), scale, shift, NORM_EPS)
        if isinstance(self.stack, FourierStack):
            centre = x[..., : self.copies].mean(-1, keepdim=True).expand(*x.shape[:-1], self.copies)
            x = x - F.pad(centre, (0, self.in_rep.size - self.copies))
        elif self.num_invariants:
            basis: Tensor = self.invariants.to(x.dtype)  # pyright: ignore[reportAssignmentType]
            x = x - (x @ basis).mean(-1, keepdim=True) * basis.sum(1)
        y = super().forward(x)
        return y if shift is None else y + shift


class eDropout(Typed):
    """Dropout of whole regular copies (or of the whole vector of another representation): the mask
    commutes with the group."""

    def __init__(self, rep: Representation, p: float) -> None:
        super().__init__(rep, rep)
        self.p = p
        stack = stack_of(rep)
        self.copies = stack.copies if stack else 1
        self.copies_last = isinstance(stack, FourierStack)

    def mask(self, x: Tensor) -> Tensor:
        """Zeros and 1 / (1 - p), one for each of the tokens and copies of x (..., D): shape (...,
        copies)."""
        return F.dropout(x.new_ones(*x.shape[:-1], self.copies), self.p)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        if self.copies_last:
            return (x.unflatten(-1, (-1, self.copies)) * self.mask(x).unsqueeze(-2)).flatten(-2)
        return (x.unflatten(-1, (self.copies, -1)) * self.mask(x).unsqueeze(-1)).flatten(-2)


class EquivariantKit:
    """The equivariant kit: a space is a representation."""

    def dim(self, space: Representation) -> int:
        return space.size

    def times(self, space: Representation, n: int) -> Representation:
        stack = stack_of(space)
        if stack:
            return stack.of_copies(n * stack.copies)
        return sum((space for _ in range(n - 1)), start=space)

    def hidden(self, space: Representation) -> Representation:
        """Regular copies, on which a pointwise nonlinearity is equivariant, of at least four times
        the dimension; a stack in the irrep basis keeps that basis, and its nonlinearity goes
        through the regular one."""
        copies = -(-4 * space.size // space.group.order())
        return (
            space.of_copies(copies)
            if isinstance(space, FourierStack)
            else regular_stack(space.group, copies)
        )

    def check_heads(self, space: Representation, num_heads: int, name: str) -> None:
        check_positive_int(name, num_heads)
        stack = stack_of(space)
        if stack:
            copies = stack.copies
            if copies % num_heads:
                raise ValueError(
                    f"expected {name} to divide the number of regular copies, {space.size} / |G| = "
                    f"{space.size} / {space.group.order()} = {copies}, got {num_heads}"
                )
            return
        head = -(-space.size // num_heads)
        blocks = np.kron(np.eye(num_heads), np.ones((head, head)))
        if space.size % num_heads or any(
            np.abs(space(g) * (1 - blocks)).max() > 1e-8
            for g in space.group.generators or [space.group.identity]
        ):
            raise ValueError(
                f"expected {name} to split in_rep into invariant parts of equal size, got "
                f"{num_heads} for {space}"
            )

    def linear(
        self, source: Representation, target: Representation, bias: bool = True
    ) -> nn.Module:
        return eLinear(source, target, bias)

    def lift(self, in_dim: int, space: Representation) -> nn.Module:
        return InvariantLift(in_dim, space)

    def norm(self, space: Representation, norm_module: str, affine: bool = True) -> nn.Module:
        check_norm_module(norm_module)
        return (eRMSNorm if norm_module == "rmsnorm" else eLayerNorm)(space, affine=affine)

    def check_modulated(self, space: Representation) -> None:
        """Scaling commutes with the group on regular copies, one number for each."""
        if not stack_of(space):
            raise ValueError(
                "expected in_rep to be copies of the regular representation when time_dim > 0, "
                f"got {space}"
            )

    def dropout(self, space: Representation, p: float) -> nn.Module:
        check_probability("dropout", p)
        return eDropout(space, p) if p > 0.0 else nn.Identity()

    def positions(self, horizon: int, space: Representation) -> nn.Module:
        return ePositionTable(horizon, space)


EQUIVARIANT = EquivariantKit()


class eMLP(MLP):
    """Equivariant MLP: eLinear to regular copies, GELU, eLinear.

    Between stacks in the irrep basis both maps are block-diagonal, and only the GELU sees the
    regular basis: two Fourier transforms, F and its transpose, stand around it. Channels come first
    there, which makes each one matrix product.

    Args:
        in_rep: representation of the input.
        out_rep: representation of the output, default ``in_rep``.
        hidden_rep: copies of the regular representation, default at least four times the input's
            dimension.
        dropout: probability.
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
        ends = (in_rep, in_rep if out_rep is None else out_rep)
        if isinstance(hidden, FourierStack) and not all(
            isinstance(rep, FourierStack) for rep in ends
        ):
            hidden = regular_stack(hidden.group, hidden.copies)
        super().__init__(in_rep, out_rep, hidden_dim=hidden, dropout=dropout, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.up.out_rep
        if not isinstance(hidden, FourierStack):
            return super().forward(x)
        fourier = self.up.fourier.to(x.dtype)
        y = self.up.by_irreps(
            x.reshape(-1, x.shape[-1]), channels_first=(False, True)
        )  # (components * copies, tokens)
        y = (fourier.T @ F.gelu(fourier @ y.view(len(fourier), -1))).view(
            len(fourier), hidden.copies, -1
        )
        if isinstance(self.hidden_dropout, eDropout) and self.hidden_dropout.training:
            y = (
                y * self.hidden_dropout.mask(x.new_empty(y.shape[-1], 1)).T
            )  # a number a copy: either basis will do
        y = self.down.by_irreps(y.flatten(0, 1), channels_first=(True, False))
        return self.out_dropout(y.view(*x.shape[:-1], self.out_rep.size))

    @property
    def in_rep(self) -> Representation:
        return self.up.in_rep

    @property
    def out_rep(self) -> Representation:
        return self.down.out_rep


class eMultiheadAttention(MultiheadAttention):
    """Equivariant multi-head attention: scores are dot products, which an orthogonal representation
    leaves alone.

    Args:
        in_rep: representation of the tokens; its heads must be invariant (whole copies of a regular
            representation, say).
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

    def _by_irreps(self, x: Tensor, copies: slice, parts: int) -> tuple[Tensor, ...]:
        """As ``_heads`` in the irrep basis, where channels are laid out (component, copy)."""
        y = self.qkv.by_irreps(x.flatten(0, 1), copies=copies)
        copies_a_head = (
            self.width // self.in_rep.group.order() // self.num_heads
        )  # spelt out for an empty batch
        y = y.view(*x.shape[:2], self.in_rep.group.order(), parts, self.num_heads, copies_a_head)
        # one copy a head would make a head's channels a strided view, with which torch leaves its
        # fused attention
        return y.permute(3, 0, 4, 1, 2, 5).flatten(4).contiguous().unbind(0)

    def _project(self, x: Tensor, memory: Tensor | None) -> tuple[Tensor, ...]:
        if not isinstance(self.in_rep, FourierStack):
            return super()._project(x, memory)
        if memory is None:
            return self._by_irreps(x, slice(None), 3)
        copies = self.in_rep.copies
        return *self._by_irreps(x, slice(copies), 1), *self._by_irreps(
            memory, slice(copies, None), 2
        )

    def _merge(self, y: Tensor) -> Tensor:
        if not isinstance(self.in_rep, FourierStack):
            return super()._merge(y)
        return y.unflatten(3, (self.in_rep.group.order(), -1)).permute(0, 2, 3, 1, 4).flatten(2)

    @property
    def in_rep(self) -> Representation:
        return self.out.in_rep

    @property
    def out_rep(self) -> Representation:
        return self.out.out_rep


class eTransformerEncoderLayer(TransformerEncoderLayer):
    """``TransformerEncoderLayer`` over a representation: same forward, equivariant maps.

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
    """``TransformerDecoderLayer`` over a representation: same forward, equivariant maps; the memory
    transforms as the tokens do.

    Args:
        in_rep: representation of tokens and memory; copies of the regular one, in either basis, if
            ``time_dim`` > 0.
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

    def _modulate(self, time: Tensor) -> tuple[Tensor, ...]:
        stack = stack_of(self.in_rep)
        if not isinstance(stack, FourierStack):
            return super()._modulate(time)
        # scales and gates are numbers of the copies, a shift is a vector of the invariant subspace
        numbers = (
            F.linear(time, self.modulation.weight, self.modulation.bias)[:, None]
            .unflatten(-1, (9, -1))
            .unbind(2)
        )
        return tuple(
            stack.invariant(n) if i % 3 == 1 else stack.spread(n) for i, n in enumerate(numbers)
        )

    @property
    def in_rep(self) -> Representation:
        return self.self_attention.in_rep

    @property
    def out_rep(self) -> Representation:
        return self.self_attention.in_rep
