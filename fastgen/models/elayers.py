"""Equivariant layers: the dense layers of ``layers.py`` over representations. Their linear maps stand in ``emaps.py``.

References: Cohen and Welling 2016, arXiv:1602.07576.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from escnn.group import Representation
from torch import Tensor, nn

from fastgen.models.emaps import Invariant, InvariantLift, Typed, eLinear, ePositionTable
from fastgen.models.groups import check_representation, irrep_columns, regular_copies, regular_stack
from fastgen.models.layers import (
    MLP,
    NORM_EPS,
    MultiheadAttention,
    TransformerDecoderLayer,
    TransformerEncoderLayer,
    check_norm_module,
)
from fastgen.models.regressor import check_positive_int, check_probability

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
    """y = S x / sqrt(mean(x^2) + eps): the mean square of an orthogonal representation is invariant, S is one scale per
    copy or irrep.

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
            columns, sizes = [], []
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
        """Scale and shift: per channel (D,) on regular copies; elsewhere the scale is a matrix (D, D) that commutes
        with the group."""
        scale, shift = self.weight, self.bias
        if scale is not None and self.copies:
            scale = self.embed(scale)
        elif scale is not None:
            basis: Tensor = self.basis  # pyright: ignore[reportAssignmentType]
            scale = ((basis * scale.to(basis.dtype)[self.owner]) @ basis.T).to(scale.dtype)
        return scale, None if shift is None else self.embed(shift)

    def forward(self, x: Tensor) -> Tensor:
        scale, _ = self.affine()
        if self.copies or scale is None:
            return F.rms_norm(x, (self.in_rep.size,), scale, NORM_EPS)
        return F.rms_norm(x, (self.in_rep.size,), None, NORM_EPS) @ scale


class eLayerNorm(eRMSNorm):
    """y = S c / sqrt(mean(c^2) + eps) + b with c = x minus the mean of its invariant coordinates, b in the invariant
    subspace.

    On copies of the regular representation this is the ordinary LayerNorm with one scale and one shift per copy.
    Elsewhere only the invariant coordinates are centred, since no other mean is equivariant.

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
        if self.copies:
            return F.layer_norm(x, (self.in_rep.size,), scale, shift, NORM_EPS)
        if self.num_invariants:
            basis: Tensor = self.invariants.to(x.dtype)  # pyright: ignore[reportAssignmentType]
            x = x - (x @ basis).mean(-1, keepdim=True) * basis.sum(1)
        y = super().forward(x)
        return y if shift is None else y + shift


class eDropout(Typed):
    """Dropout of whole regular copies (or of the whole vector of another representation): the mask commutes with the
    group."""

    def __init__(self, rep: Representation, p: float) -> None:
        super().__init__(rep, rep)
        self.p = p
        self.copies = regular_copies(rep) or 1

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        mask = F.dropout(x.new_ones(*x.shape[:-1], self.copies, 1), self.p)
        return (x.unflatten(-1, (self.copies, -1)) * mask).flatten(-2)


class EquivariantKit:
    """The equivariant kit: a space is a representation."""

    def dim(self, space: Representation) -> int:
        return space.size

    def times(self, space: Representation, n: int) -> Representation:
        copies = regular_copies(space)
        if copies:
            return regular_stack(space.group, n * copies)
        return sum((space for _ in range(n - 1)), start=space)

    def hidden(self, space: Representation) -> Representation:
        """Regular copies, on which a pointwise nonlinearity is equivariant, of at least four times the dimension."""
        return regular_stack(space.group, -(-4 * space.size // space.group.order()))

    def check_heads(self, space: Representation, num_heads: int, name: str) -> None:
        check_positive_int(name, num_heads)
        copies = regular_copies(space)
        if copies:
            if copies % num_heads:
                raise ValueError(
                    f"expected {name} to divide the number of regular copies, {space.size} / |G| = "
                    f"{space.size} / {space.group.order()} = {copies}, got {num_heads}"
                )
            return
        head = -(-space.size // num_heads)
        blocks = np.kron(np.eye(num_heads), np.ones((head, head)))
        if space.size % num_heads or any(
            np.abs(space(g) * (1 - blocks)).max() > 1e-8 for g in space.group.generators or [space.group.identity]
        ):
            raise ValueError(
                f"expected {name} to split in_rep into invariant parts of equal size, got {num_heads} for {space}"
            )

    def linear(self, source: Representation, target: Representation, bias: bool = True) -> nn.Module:
        return eLinear(source, target, bias)

    def lift(self, in_dim: int, space: Representation) -> nn.Module:
        return InvariantLift(in_dim, space)

    def norm(self, space: Representation, norm_module: str, affine: bool = True) -> nn.Module:
        check_norm_module(norm_module)
        return (eRMSNorm if norm_module == "rmsnorm" else eLayerNorm)(space, affine=affine)

    def check_modulated(self, space: Representation) -> None:
        """Scaling channel by channel commutes with the group on regular copies, one number for each."""
        if not regular_copies(space):
            raise ValueError(
                f"expected in_rep to be copies of the regular representation when time_dim > 0, got {space}"
            )

    def dropout(self, space: Representation, p: float) -> nn.Module:
        check_probability("dropout", p)
        return eDropout(space, p) if p > 0.0 else nn.Identity()

    def positions(self, horizon: int, space: Representation) -> nn.Module:
        return ePositionTable(horizon, space)


EQUIVARIANT = EquivariantKit()


class eMLP(MLP):
    """Equivariant MLP: eLinear to regular copies, GELU, eLinear.

    Args:
        in_rep: representation of the input.
        out_rep: representation of the output, default ``in_rep``.
        hidden_rep: copies of the regular representation, default at least four times the input's dimension.
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
        if hidden_rep is not None and not regular_copies(check_representation("hidden_rep", hidden_rep)):
            raise ValueError(f"expected hidden_rep to be copies of the regular representation, got {hidden_rep}")
        super().__init__(in_rep, out_rep, hidden_dim=hidden_rep, dropout=dropout, bias=bias)

    @property
    def in_rep(self) -> Representation:
        return self.up.in_rep

    @property
    def out_rep(self) -> Representation:
        return self.down.out_rep


class eMultiheadAttention(MultiheadAttention):
    """Equivariant multi-head attention: scores are dot products, which an orthogonal representation leaves alone.

    Args:
        in_rep: representation of the tokens; its heads must be invariant (whole copies of a regular representation,
            say).
        num_heads: H.
        dropout: probability on the attention weights.
        bias: whether the linear maps have one.
    """

    kit = EQUIVARIANT

    def __init__(self, in_rep: Representation, num_heads: int, dropout: float = 0.0, bias: bool = True) -> None:
        check_representation("in_rep", in_rep)
        super().__init__(in_rep, num_heads, dropout, bias)

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
        self, in_rep: Representation, num_heads: int, *, dropout: float = 0.0, norm_module: str = "rmsnorm"
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
    """``TransformerDecoderLayer`` over a representation: same forward, equivariant maps; the memory transforms as the
    tokens do.

    Args:
        in_rep: representation of tokens and memory; copies of the regular one if ``time_dim`` > 0.
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
        super().__init__(in_rep, num_heads, dropout=dropout, norm_module=norm_module, time_dim=time_dim)

    @property
    def in_rep(self) -> Representation:
        return self.self_attention.in_rep

    @property
    def out_rep(self) -> Representation:
        return self.self_attention.in_rep
