"""Equivariant linear maps, with only the degrees of freedom as parameters; the modules all
equivariant layers rest on.

Hidden features are copies of the regular representation, laid out (copy, group element). A map
between two such stacks is a group convolution: a kernel (m_out, m_in, |G|) read as the dense matrix
W[(o, g), (i, h)] = k[o, i, g^-1 h]. A map from or to a small representation rho has one free vector
per copy, W[(c, g), :] = (rho(g) w_c)^T. Every other map is assembled from irrep blocks, whose
numbers multiply a basis of the irrep's endomorphisms (1, 2 or 4 matrices for irreps of real,
complex or quaternionic type; Schur).

The dense matrix is made once per call from the parameters as they are and never kept, so that no
update can leave it stale. Between two stacks in the irrep basis (``fourier.py``) the same
parameters give the matrices of the irreps instead, and no dense matrix is made.

References: Cohen and Welling 2016, arXiv:1602.07576; Cesa, Lang and Weiler 2022 (escnn).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from escnn.group import Representation
from torch import Tensor, nn

from .fourier import (
    FourierStack,
    block_map,
    fourier_matrix,
    irrep_matrices,
    kernel_transform,
    stack_of,
)
from .groups import (
    check_representation,
    invariant_basis,
    irrep_columns,
    kernel_selector,
    rep_matrices,
)
from .layers import POSITION_STD, LinearMap, initialise_
from .specs import describe_group, describe_representation, parse_group, parse_representation

__all__ = [
    "check_basis",
    "Invariant",
    "InvariantLift",
    "SharedRepresentations",
    "Typed",
    "eLinear",
    "ePositionTable",
]


def check_basis(basis: str, known: tuple[str, ...]) -> None:
    """Raise for a way of evaluating linear maps that is not available."""
    if basis not in known:
        raise ValueError(
            f"unknown basis {basis!r}, expected one of those available: {', '.join(known)}"
        )


class SharedRepresentations(nn.Module):
    """Keeps one escnn object per representation: copies of the module share it (deep-copying one
    copies its whole group), and pickling writes its description instead, since escnn's objects hold
    local functions."""

    def _reps(self) -> dict[str, Representation]:
        return {
            name: value
            for name, value in self.__dict__.items()
            if isinstance(value, Representation)
        }

    def __deepcopy__(self, memo: dict[int, Any]) -> SharedRepresentations:
        memo.update({id(rep): rep for rep in self._reps().values()})
        clone = self.__class__.__new__(self.__class__)
        memo[id(self)] = clone
        clone.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return clone

    def __getstate__(self) -> dict[str, Any]:
        reps = {
            name: (describe_group(rep.group), describe_representation(rep))
            for name, rep in self._reps().items()
        }
        return {**self.__dict__, **reps, "_described": list(reps)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        for name in state.pop("_described"):
            group, description = state[name]
            state[name] = parse_representation(parse_group(group), description)
        super().__setstate__(state)


class Typed(SharedRepresentations):
    """A module that knows how its input and output transform, and the constants that follow from
    it.

    Constants are non-persistent buffers, cast anew from float64 masters whenever the module moves
    or changes dtype, so that ``.float().double()`` loses no digit. In place of a master stands the
    function ``(group, dtype, device)`` of a table that all layers of the group share.
    """

    in_rep: Representation
    out_rep: Representation

    def __init__(self, in_rep: Representation, out_rep: Representation) -> None:
        super().__init__()
        self.in_rep = check_representation("in_rep", in_rep)
        self.out_rep = check_representation("out_rep", out_rep)
        if in_rep.group != out_rep.group:
            raise ValueError(
                f"expected in_rep and out_rep of one group, got {in_rep.group.name} and "
                f"{out_rep.group.name}"
            )
        self._masters: dict[str, Tensor | Callable[..., Tensor]] = {}

    def _constant(self, name: str, master: Tensor | Callable[..., Tensor]) -> None:
        """Register a constant; floating ones are kept in float32 or above."""
        self._masters[name] = master
        reference = torch.empty(0)  # of the default dtype and device
        self.register_buffer(name, self._cast(master, reference), persistent=False)

    def __deepcopy__(self, memo: dict[int, Any]) -> Typed:
        # Constants never change in place: a copy has the very same ones.
        for kept in (self._masters, self._buffers):
            memo.update(
                {
                    id(kept[name]): kept[name]
                    for name in self._masters
                    if isinstance(kept[name], Tensor)
                }
            )
        return super().__deepcopy__(memo)  # pyright: ignore[reportReturnType]

    def __getstate__(self) -> dict[str, Any]:
        """Without the tables of the group, which are made or found again."""
        state = super().__getstate__()
        tables = {
            name: self._buffers[name]
            for name, master in self._masters.items()
            if not isinstance(master, Tensor)
        }
        state["_buffers"] = {
            name: value for name, value in self._buffers.items() if name not in tables
        }
        state["_tables"] = {
            name: torch.empty(0, dtype=b.dtype, device=b.device)
            for name, b in tables.items()
            if b is not None
        }
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        tables = state.pop("_tables")
        super().__setstate__(state)
        for name, like in tables.items():
            self._buffers[name] = self._cast(self._masters[name], like)

    def _cast(self, master: Tensor | Callable[..., Tensor], reference: Tensor) -> Tensor:
        dtype = torch.promote_types(reference.dtype, torch.float32)
        if not isinstance(master, Tensor):
            return master(self.in_rep.group, dtype, reference.device)
        return master.to(
            device=reference.device, dtype=dtype if master.is_floating_point() else master.dtype
        )

    def _apply(self, fn: Any, recurse: bool = True) -> Typed:
        super()._apply(fn, recurse)
        for name, master in self._masters.items():
            setattr(self, name, self._cast(master, getattr(self, name)))
        return self

    def extra_repr(self) -> str:
        return f"{self.in_rep} -> {self.out_rep}"


class Invariant(Typed):
    """Common part of the modules whose parameters live in the invariant subspace of ``out_rep``, of
    dimension ``num_invariants``."""

    def __init__(self, in_rep: Representation, out_rep: Representation) -> None:
        super().__init__(in_rep, out_rep)
        self.stack = stack_of(out_rep)
        self.copies = self.stack.copies if self.stack else 0
        basis = None if self.stack else invariant_basis(out_rep)
        self.num_invariants = self.copies if basis is None else basis.shape[1]
        if basis is not None:
            self._constant("invariants", basis)

    def embed(self, coefficients: Tensor) -> Tensor:
        """Vectors of the invariant subspace from coefficients (..., num_invariants): constant over
        each regular copy, or B c in a basis B."""
        if self.stack:
            return self.stack.invariant(coefficients)
        basis: Tensor = self.invariants  # pyright: ignore[reportAssignmentType]
        return (coefficients.to(basis.dtype) @ basis.T).to(coefficients.dtype)


class eLinear(Invariant, LinearMap):
    r"""Equivariant affine map: :math:`W \rho_{in}(g) = \rho_{out}(g) W`, bias in the invariant
    subspace of ``out_rep``.

    ``weight`` and ``bias`` hold exactly the degrees of freedom, ``weight.numel() = 1/|G| sum_g tr
    rho_in(g) tr rho_out(g)``.

    Args:
        in_rep: representation of the input.
        out_rep: representation of the output, of the same group.
        bias: whether to add one; without invariant vectors in ``out_rep`` there is none.

    Raises:
        ValueError: representations of different groups, infinite groups, matrices that are not
            orthogonal.
    """

    def __init__(self, in_rep: Representation, out_rep: Representation, bias: bool = True) -> None:
        super().__init__(in_rep, out_rep)
        source = stack_of(in_rep)
        out_copies = self.copies
        order = in_rep.group.order()
        in_copies = source.copies if source else 0
        self.fused = 1
        if in_copies and out_copies:
            self.kind = "kernel"
            shape = (out_copies, in_copies, order)
            if not (isinstance(in_rep, FourierStack) and isinstance(out_rep, FourierStack)):
                self._constant("selector", kernel_selector)
        elif in_copies or out_copies:
            self.kind, small = ("lower", out_rep) if in_copies else ("lift", in_rep)
            shape = (in_copies or out_copies, small.size)
            # row c of the weight times this is (rho(g) w_c) for all g: matrix [e', (g, e)] =
            # rho(g)[e, e']
            self._constant("orbit", rep_matrices(small).permute(2, 0, 1).reshape(small.size, -1))
        else:
            self.kind, shape = "blocks", (self._build_blocks(),)
        self.turned = isinstance(in_rep, FourierStack), isinstance(out_rep, FourierStack)
        if any(self.turned):
            self._constant("fourier", fourier_matrix)
        if isinstance(in_rep, FourierStack) and isinstance(out_rep, FourierStack):
            self._constant("transform", kernel_transform)
            self.irrep_blocks = in_rep.blocks
        self.weight = nn.Parameter(torch.empty(shape))
        self.bias = (
            nn.Parameter(torch.empty(self.num_invariants)) if bias and self.num_invariants else None
        )
        self.reset_parameters()

    def _build_blocks(self) -> int:
        """Bases of the irreps that both representations contain; returns the number of degrees of
        freedom."""
        sources = irrep_columns(self.in_rep)
        targets = irrep_columns(self.out_rep)
        self.blocks: list[
            tuple[int, int, int]
        ] = []  # multiplicity out, multiplicity in, dimension of the endomorphisms
        for irrep_id in (i for i in targets if i in sources):
            algebra = torch.from_numpy(
                np.ascontiguousarray(self.in_rep.group.irrep(*irrep_id).endomorphism_basis())
            )
            n = len(self.blocks)
            self._constant(f"target_{n}", targets[irrep_id])
            # [d_in, i, k, a]: the source columns after the k-th endomorphism, sum_b algebra[k, a,
            # b] Q[d_in, i, b]
            self._constant(
                f"source_{n}", torch.einsum("kab,dib->dika", algebra.double(), sources[irrep_id])
            )
            self.blocks.append(
                (targets[irrep_id].shape[1], sources[irrep_id].shape[1], len(algebra))
            )
        return sum(math.prod(block) for block in self.blocks)

    def dense(self) -> tuple[Tensor, Tensor | None]:
        """Expand to the dense matrix (out, in) and bias (out,), differentiably, in the dtype of the
        parameters."""
        if all(self.turned):
            units = torch.eye(self.in_rep.size, dtype=self.weight.dtype, device=self.weight.device)
            bias = None if self.bias is None else self.embed(self.bias)
            return (self.by_irreps(units) - (0.0 if bias is None else bias)).T, bias
        if self.kind == "kernel":
            selector: Tensor = self.selector  # pyright: ignore[reportAssignmentType]
            m_out, m_in, order = self.weight.shape
            blocks = (self.weight.to(selector.dtype).view(-1, order) @ selector).to(
                self.weight.dtype
            )
            blocks = blocks.view(m_out, m_in, order, order).permute(0, 2, 1, 3)
            weight = blocks.reshape(m_out * order, m_in * order)
        elif self.kind == "blocks":
            weight = self._dense_blocks()
        else:
            orbit: Tensor = self.orbit  # pyright: ignore[reportAssignmentType]
            copies, size = self.weight.shape
            rows = (self.weight.to(orbit.dtype) @ orbit).to(self.weight.dtype).view(-1, size)
            weight = rows if self.kind == "lift" else rows.T
        if any(self.turned):
            fourier: Tensor = self.fourier.to(weight.dtype)  # pyright: ignore[reportAssignmentType]
            order = len(fourier)
            if self.turned[1]:
                weight = torch.einsum(
                    "gc,ogi->coi", fourier, weight.unflatten(0, (-1, order))
                ).flatten(0, 1)
            if self.turned[0]:
                weight = torch.einsum(
                    "gc,oig->oci", fourier, weight.unflatten(1, (-1, order))
                ).flatten(1)
        return weight, None if self.bias is None else self.embed(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        if not all(self.turned):
            return super().forward(x)
        return self.by_irreps(x.reshape(-1, x.shape[-1])).view(*x.shape[:-1], self.out_rep.size)

    def by_irreps(
        self,
        x: Tensor,
        *,
        copies: slice = slice(None),
        channels_first: tuple[bool, bool] = (False, False),
    ) -> Tensor:
        """Between stacks in the irrep basis: the map to some of the output copies, applied as
        ``block_map`` does."""
        kernel = self.weight[copies]
        transform = self.transform
        matrices = irrep_matrices(self.irrep_blocks, transform, kernel)  # pyright: ignore[reportArgumentType]
        bias = None if self.bias is None else self.bias[copies] * math.sqrt(kernel.shape[-1])
        return block_map(x, self.irrep_blocks, matrices, bias, channels_first=channels_first)

    def _dense_blocks(self) -> Tensor:
        weight = self.weight.new_zeros(self.out_rep.size, self.in_rep.size)
        start = 0
        for n, block in enumerate(self.blocks):
            target = getattr(self, f"target_{n}")
            source = getattr(self, f"source_{n}")
            numbers = self.weight[start : start + math.prod(block)].view(block).to(target.dtype)
            weight = weight + torch.einsum("eoa,oik,dika->ed", target, numbers, source).to(
                weight.dtype
            )
            start += math.prod(block)
        return weight

    def reset_parameters(self, scheme: str = "xavier_uniform") -> None:
        """Draw the weight so that the expanded matrix has the variance that ``scheme`` gives a
        dense map of its size; bias zero."""
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


class InvariantLift(Invariant, LinearMap):
    """Affine map from plain numbers (on which the group does nothing) into the invariant subspace
    of ``out_rep``."""

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
    """Learned positions (horizon, num_invariants) in the invariant subspace, expanded once per call
    and not per token."""

    def __init__(self, horizon: int, rep: Representation) -> None:
        super().__init__(rep, rep)
        self.weight = nn.Parameter(torch.empty(horizon, self.num_invariants))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=POSITION_STD)

    def forward(self, length: int) -> Tensor:
        """Rows of the first ``length`` positions, shape (length, dim)."""
        return self.embed(self.weight[:length])
