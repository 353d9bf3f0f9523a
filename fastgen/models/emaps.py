"""Equivariant linear maps, whose parameters are just their degrees of freedom.

Hidden features are copies of the regular representation, laid out (copy, group element). There are
three kinds of maps:

- Between two such stacks, a map is a group convolution: a kernel (m_out, m_in, |G|) that is read as
  the dense matrix W[(o, g), (i, h)] = k[o, i, g^-1 h].
- From or to a small representation rho, a map has one free vector w_c per copy c:
  W[(c, g), :] = (rho(g) w_c)^T.
- Every other map is assembled from blocks, one for each irrep that both representations contain.
  Its numbers multiply a basis of the irrep's endomorphisms (1, 2 or 4 matrices for irreps of real,
  complex or quaternionic type, by Schur's lemma).

The dense matrix is made from the parameters in each call and never kept, so that no update can
leave it stale. Between two stacks in the irrep basis (`fourier.py`) the same parameters give the
matrices of the irreps, and no dense matrix is made.

References:
    Cohen and Welling 2016, arXiv:1602.07576.
    Cesa, Lang and Weiler 2022 (escnn).
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from escnn.group import Representation
from torch import Tensor, nn

from .block_maps import block_map, irrep_matrices
from .fourier import FourierStack, fourier_matrix, kernel_transform, stack_of
from .groups import kernel_selector
from .maps import POSITION_STD, LinearMap
from .parameters import initialise_
from .representations import irrep_columns, rep_matrices
from .typed import Invariant

__all__ = ["InvariantLift", "eLinear", "ePositionTable"]


class eLinear(Invariant, LinearMap):
    r"""Equivariant affine map.

    .. math:: W \rho_{in}(g) = \rho_{out}(g) W \quad \forall g \in G

    The bias lies in the invariant subspace of `out_rep`. `weight` and `bias` hold exactly the
    degrees of freedom: `weight.numel()` = 1/|G| sum_g tr rho_in(g) tr rho_out(g).

    Args:
        in_rep: representation of the input.
        out_rep: representation of the output, of the same group.
        bias: whether to add one. Without invariant vectors in `out_rep` there is none.

    Raises:
        TypeError: one that is no escnn representation.
        ValueError: representations of different groups, infinite groups, matrices that are not
            orthogonal.
    """

    def __init__(self, in_rep: Representation, out_rep: Representation, bias: bool = True) -> None:
        super().__init__(in_rep, out_rep)
        self.fused = 1
        self.in_irreps = isinstance(in_rep, FourierStack)
        self.out_irreps = isinstance(out_rep, FourierStack)
        source = stack_of(in_rep)
        in_copies = source.copies if source else 0
        out_copies = self.copies

        if in_copies and out_copies:
            self.kind = "kernel"
            shape = (out_copies, in_copies, in_rep.group.order())
        elif in_copies:
            self.kind = "lower"
            shape = (in_copies, out_rep.size)
            self.register_constant("orbit", _orbit(out_rep))
        elif out_copies:
            self.kind = "lift"
            shape = (out_copies, in_rep.size)
            self.register_constant("orbit", _orbit(in_rep))
        else:
            self.kind = "blocks"
            shape = (self._build_blocks(),)

        if isinstance(in_rep, FourierStack) and isinstance(out_rep, FourierStack):
            self.register_constant("transform", kernel_transform)
            self.irrep_blocks = in_rep.blocks
        elif self.kind == "kernel":
            self.register_constant("selector", kernel_selector)
        if self.in_irreps or self.out_irreps:
            self.register_constant("fourier", fourier_matrix)

        self.weight = nn.Parameter(torch.empty(shape))
        has_bias = bias and self.num_invariants > 0
        self.bias = nn.Parameter(torch.empty(self.num_invariants)) if has_bias else None
        self.reset_parameters()

    def _build_blocks(self) -> int:
        """Make the bases of the irreps that both representations contain.

        `blocks` gets, for each of them: multiplicity in the output, multiplicity in the input,
        dimension of the endomorphisms.

        Returns:
            The number of degrees of freedom.
        """
        sources = irrep_columns(self.in_rep)
        targets = irrep_columns(self.out_rep)
        self.blocks: list[tuple[int, int, int]] = []
        for irrep_id in targets:
            if irrep_id not in sources:
                continue
            n = len(self.blocks)
            source = sources[irrep_id]
            target = targets[irrep_id]
            basis = self.in_rep.group.irrep(*irrep_id).endomorphism_basis()
            algebra = torch.from_numpy(np.ascontiguousarray(basis)).double()
            self.register_constant(f"target_{n}", target)
            # [d_in, i, k, a]: the source columns after the k-th endomorphism,
            # sum_b algebra[k, a, b] source[d_in, i, b].
            turned = torch.einsum("kab,dib->dika", algebra, source)
            self.register_constant(f"source_{n}", turned)
            self.blocks.append((target.shape[1], source.shape[1], len(algebra)))
        return sum(math.prod(block) for block in self.blocks)

    # ---- The dense matrix -------------------------------------------------------------------

    def dense(self) -> tuple[Tensor, Tensor | None]:
        """The matrix (out, in) and the bias (out,) or None, in the dtype of the parameters and
        differentiable in them."""
        bias = None if self.bias is None else self.embed(self.bias)
        if self.in_irreps and self.out_irreps:
            units = torch.eye(self.in_rep.size, dtype=self.weight.dtype, device=self.weight.device)
            images = self.by_irreps(units)
            return (images - (0.0 if bias is None else bias)).T, bias
        if self.kind == "kernel":
            weight = self._dense_kernel()
        elif self.kind == "blocks":
            weight = self._dense_blocks()
        else:
            weight = self._dense_orbit()
        if self.in_irreps or self.out_irreps:
            weight = self._in_irrep_basis(weight)
        return weight, bias

    def _dense_kernel(self) -> Tensor:
        """W[(o, g), (i, h)] = k[o, i, g^-1 h]."""
        selector: Tensor = self.selector  # pyright: ignore[reportAssignmentType]
        m_out, m_in, order = self.weight.shape
        kernels = self.weight.to(selector.dtype).view(-1, order)
        blocks = (kernels @ selector).to(self.weight.dtype)
        blocks = blocks.view(m_out, m_in, order, order).permute(0, 2, 1, 3)
        return blocks.reshape(m_out * order, m_in * order)

    def _dense_orbit(self) -> Tensor:
        """W[(c, g), :] = (rho(g) w_c)^T, or its transpose for a map to the small representation."""
        orbit: Tensor = self.orbit  # pyright: ignore[reportAssignmentType]
        size = self.weight.shape[1]
        rows = (self.weight.to(orbit.dtype) @ orbit).to(self.weight.dtype).view(-1, size)
        return rows if self.kind == "lift" else rows.T

    def _dense_blocks(self) -> Tensor:
        """The sum of the irreps' blocks."""
        weight = self.weight.new_zeros(self.out_rep.size, self.in_rep.size)
        start = 0
        for n, block in enumerate(self.blocks):
            target = getattr(self, f"target_{n}")
            source = getattr(self, f"source_{n}")
            stop = start + math.prod(block)
            numbers = self.weight[start:stop].view(block).to(target.dtype)
            part = torch.einsum("eoa,oik,dika->ed", target, numbers, source)
            weight = weight + part.to(weight.dtype)
            start = stop
        return weight

    def _in_irrep_basis(self, weight: Tensor) -> Tensor:
        """The matrix between regular copies, read in the irrep basis on the side that uses it."""
        fourier: Tensor = self.fourier.to(weight.dtype)  # pyright: ignore[reportAssignmentType]
        order = len(fourier)
        if self.out_irreps:
            rows = weight.unflatten(0, (-1, order))
            weight = torch.einsum("gc,ogi->coi", fourier, rows).flatten(0, 1)
        if self.in_irreps:
            columns = weight.unflatten(1, (-1, order))
            weight = torch.einsum("gc,oig->oci", fourier, columns).flatten(1)
        return weight

    # ---- The map ----------------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        if not (self.in_irreps and self.out_irreps):
            return super().forward(x)
        y = self.by_irreps(x.reshape(-1, x.shape[-1]))
        return y.view(*x.shape[:-1], self.out_rep.size)

    def by_irreps(
        self,
        x: Tensor,
        *,
        copies: slice = slice(None),
        channels_first: tuple[bool, bool] = (False, False),
    ) -> Tensor:
        """The map between two stacks in the irrep basis.

        Args:
            x: features of N tokens, as :func:`fastgen.models.block_maps.block_map` takes them.
            copies: the output copies that are wanted.
            channels_first: of the input, of the output; as in `block_map`.
        """
        transform: Tensor = self.transform  # pyright: ignore[reportAssignmentType]
        kernel = self.weight[copies]
        matrices = irrep_matrices(self.irrep_blocks, transform, kernel)
        bias = None
        if self.bias is not None:
            bias = self.bias[copies] * math.sqrt(kernel.shape[-1])
        return block_map(x, self.irrep_blocks, matrices, bias, channels_first=channels_first)

    def reset_parameters(self, scheme: str = "xavier_uniform") -> None:
        """Draw the weight so that the dense matrix has the variance that `scheme` gives a dense map
        of its size; the bias is zero."""
        if self.kind == "blocks":
            start = 0
            for block in self.blocks:
                m_out, m_in, algebra = block
                part = self.weight[start : start + math.prod(block)]
                initialise_(part, scheme, m_in * algebra, m_out * algebra // self.fused)
                start += math.prod(block)
        else:
            initialise_(self.weight, scheme, self.in_rep.size, self.out_rep.size // self.fused)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


def _orbit(rep: Representation) -> Tensor:
    """The matrix (d, |G| d) by which a row w becomes rho(g) w for all g: entry [e', (g, e)] is
    rho(g)[e, e']."""
    return rep_matrices(rep).permute(2, 0, 1).reshape(rep.size, -1)


class InvariantLift(Invariant, LinearMap):
    """Affine map from plain numbers, which the group leaves alone, into the invariant subspace of
    `out_rep`.

    Args:
        in_dim: how many numbers.
        out_rep: representation of the output.
    """

    def __init__(self, in_dim: int, out_rep: Representation) -> None:
        super().__init__(out_rep, out_rep)
        self.in_features = in_dim
        self.weight = nn.Parameter(torch.empty(self.num_invariants, in_dim))
        self.bias = nn.Parameter(torch.empty(self.num_invariants))
        self.reset_parameters()

    def dense(self) -> tuple[Tensor, Tensor | None]:
        return self.embed(self.weight.T).T, self.embed(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.embed(F.linear(x, self.weight, self.bias))

    def reset_parameters(self, scheme: str = "xavier_uniform") -> None:
        initialise_(self.weight, scheme, self.in_features, self.out_rep.size)
        nn.init.zeros_(self.bias)

    def extra_repr(self) -> str:
        return f"{self.in_features} invariants -> {self.out_rep}"


class ePositionTable(Invariant):
    """Learned positions in the invariant subspace: a table (horizon, num_invariants), which is
    expanded once per call and not per token.

    Args:
        horizon: most tokens.
        rep: representation of the tokens.
    """

    def __init__(self, horizon: int, rep: Representation) -> None:
        super().__init__(rep, rep)
        self.weight = nn.Parameter(torch.empty(horizon, self.num_invariants))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=POSITION_STD)

    def forward(self, length: int) -> Tensor:
        """Rows of the first `length` positions, shape (length, dim)."""
        return self.embed(self.weight[:length])
