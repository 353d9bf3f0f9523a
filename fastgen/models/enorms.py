"""Equivariant norms: RMSNorm and LayerNorm over representations."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from escnn.group import Representation
from torch import Tensor, nn

from .fourier import FourierStack
from .norms import NORM_EPS, rms_norm
from .representations import irrep_columns
from .typed import Invariant

__all__ = ["eLayerNorm", "eRMSNorm"]


class eRMSNorm(Invariant):
    """y = S x / sqrt(mean(x^2) + eps), with one scale in S for each regular copy or irrep.

    It is equivariant since an orthogonal representation leaves the mean square alone.

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
            if not self.copies:
                self._build_basis()

    def _build_basis(self) -> None:
        """Make an orthogonal basis of irreps and, for each of its vectors, the index of the scale
        that owns it."""
        columns = []
        sizes = []
        for irrep_id, parts in irrep_columns(self.in_rep).items():
            columns.append(parts.flatten(1))
            sizes += [self.in_rep.group.irrep(*irrep_id).size] * parts.shape[1]
        owner = np.repeat(np.arange(len(sizes)), sizes)
        self.register_constant("basis", torch.cat(columns, dim=1))
        self.register_constant("owner", torch.from_numpy(owner))

    def reset_parameters(self) -> None:
        if self.weight is not None:
            nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def affine(self) -> tuple[Tensor | None, Tensor | None]:
        """Scale and shift; None where there is none.

        On regular copies the scale is one number per channel (D,). Elsewhere it is a matrix (D, D)
        that commutes with the group.
        """
        scale = self.weight
        if scale is not None and self.stack:
            scale = self.stack.spread(scale)
        elif scale is not None:
            basis: Tensor = self.basis  # pyright: ignore[reportAssignmentType]
            scaled = basis * scale.to(basis.dtype)[self.owner]
            scale = (scaled @ basis.T).to(scale.dtype)
        shift = None if self.bias is None else self.embed(self.bias)
        return scale, shift

    def forward(self, x: Tensor) -> Tensor:
        scale, _ = self.affine()
        if self.copies or scale is None:
            return rms_norm(x, scale)
        return rms_norm(x, None) @ scale


class eLayerNorm(eRMSNorm):
    """y = S c / sqrt(mean(c^2) + eps) + b, where c is x minus the mean of its invariant coordinates
    and b lies in the invariant subspace.

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
        y = super().forward(self._centred(x))
        return y if shift is None else y + shift

    def _centred(self, x: Tensor) -> Tensor:
        """x minus the mean of its invariant coordinates."""
        if isinstance(self.stack, FourierStack):
            # The first channels are the coordinates on the trivial irrep, one per copy.
            mean = x[..., : self.copies].mean(-1, keepdim=True)
            centre = mean.expand(*x.shape[:-1], self.copies)
            return x - F.pad(centre, (0, self.in_rep.size - self.copies))
        if not self.num_invariants:
            return x
        basis: Tensor = self.invariants.to(x.dtype)  # pyright: ignore[reportAssignmentType]
        return x - (x @ basis).mean(-1, keepdim=True) * basis.sum(1)
