"""Regular features in the irrep basis, where an equivariant map is block-diagonal.

A function f on the group is f = F f^ with an orthogonal F (|G|, |G|) whose columns are matrix
elements of the irreps. Take an irrep of dimension d whose endomorphisms have dimension e (1, 2 or 4
for real, complex and quaternionic type). It has d / e rows of d components each. The columns of F
are ordered (irrep, row, component), the trivial irrep first. m copies of the regular representation
are laid out (row, component, copy), so a row of an irrep is a slice of the channels.

An equivariant map acts on every row of an irrep by one and the same matrix (d m_out, d m_in). This
matrix is linear in the kernel of the group convolution that the map is in the regular basis (a
Fourier transform). All rows together cost the share sum_irreps d^3 / e / |G|^2 of a dense map's
products; `block_maps.py` computes them.

References:
    Cohen and Welling 2016, arXiv:1602.07576.
    Cesa, Lang and Weiler 2022 (escnn).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .groups import multiplication_table, per_group, table_tensor
from .representations import irrep_columns
from .stacks import Stack, regular_copies, regular_stack

__all__ = [
    "FourierStack",
    "IrrepBlock",
    "fourier_matrix",
    "fourier_stack",
    "kernel_transform",
    "stack_of",
]


class IrrepBlock(NamedTuple):
    """Neighbouring irreps of one shape.

    Attributes:
        start: channel of the first of them, with one copy.
        count: how many irreps.
        rows: d / e, rows of each.
        size: d, components of a row.
    """

    start: int
    count: int
    rows: int
    size: int


class _Fourier(NamedTuple):
    """The Fourier transform of a group, in float64."""

    matrix: np.ndarray  # F (|G|, |G|)
    blocks: tuple[IrrepBlock, ...]
    transform: np.ndarray  # of kernels, (sum of d^2 over the irreps, |G|)


class _IrrepPart(NamedTuple):
    """The columns of F that belong to an irrep, and what they are sorted by."""

    size: int
    rows: int
    is_not_trivial: bool
    part: np.ndarray  # (|G|, rows, size)


@per_group
def _fourier(group: Any) -> _Fourier:
    irreps = _irrep_parts(group)
    columns = [irrep.part.reshape(len(irrep.part), -1) for irrep in irreps]
    matrix = np.concatenate(columns, axis=1)
    # Column 0 is 1 / sqrt(|G|): invariant vectors have positive coordinates.
    matrix[:, 0] = abs(matrix[:, 0])
    product = multiplication_table(group)
    blocks: list[IrrepBlock] = []
    transform = []
    start = 0
    for size, rows, _, part in irreps:
        if blocks and (blocks[-1].size, blocks[-1].rows) == (size, rows):
            blocks[-1] = blocks[-1]._replace(count=blocks[-1].count + 1)
        else:
            blocks.append(IrrepBlock(start, 1, rows, size))
        start += rows * size
        # The map f -> (g -> f[g u]) on a row, as the mean over the rows:
        # [u, p, q] = sum_g F[g, p] F[g u, q].
        moved = np.einsum("grp,gurq->pqu", part, part[product]) / rows
        transform.append(moved.reshape(size * size, -1))
    return _Fourier(matrix, tuple(blocks), np.concatenate(transform))


def _irrep_parts(group: Any) -> list[_IrrepPart]:
    """The columns of F by irreps, smaller irreps first and the trivial one before all others."""
    parts = []
    for irrep_id, columns in irrep_columns(regular_stack(group, 1)).items():
        irrep = group.irrep(*irrep_id)
        units = _orthonormal_units(np.asarray(irrep.endomorphism_basis(), dtype=np.float64))
        rows = _rows_of_units(units)  # (d, d / e, e)
        # [g, r, a, i]: component (a, i) of row r, with a the unit and i the copy of the irrep in
        # the regular representation.
        part = np.einsum("gij,jra->grai", columns.numpy(), rows)
        part = part.reshape(len(part), rows.shape[1], -1)
        parts.append(_IrrepPart(irrep.size, rows.shape[1], not irrep.is_trivial(), part))
    return sorted(parts, key=lambda irrep: irrep[:3])


def _orthonormal_units(algebra: np.ndarray) -> np.ndarray:
    """Orthonormal basis (e, d, d) of an endomorphism algebra, in the inner product tr(A^T B) / d.

    The first is 1.
    """
    size = algebra.shape[-1]
    candidates = np.concatenate([np.eye(size)[None], algebra])
    candidates = candidates.reshape(len(algebra) + 1, -1) / math.sqrt(size)
    units: list[np.ndarray] = []
    for candidate in candidates:
        for _ in range(2):  # the second pass removes what rounding left of the first
            along = (u * (u @ candidate) for u in units)
            candidate = candidate - sum(along, start=np.zeros_like(candidate))
        norm = np.linalg.norm(candidate)
        if norm > 1e-6 and len(units) < len(algebra):
            units.append(candidate / norm)
    return np.stack(units).reshape(-1, size, size) * math.sqrt(size)


def _rows_of_units(units: np.ndarray) -> np.ndarray:
    """Orthonormal basis (d, d / e, e) of R^d in which every unit acts on each row alike.

    A row consists of the images u b of a vector b under all units u.
    """
    count, size, _ = units.shape
    rows: list[np.ndarray] = []
    for candidate in np.eye(size):
        for _ in range(2):  # the second pass removes what rounding left of the first
            along = (row @ (row.T @ candidate) for row in rows)
            candidate = candidate - sum(along, start=np.zeros(size))
        norm = np.linalg.norm(candidate)
        if norm > 1e-2 and len(rows) < size // count:
            rows.append((units @ (candidate / norm)).T)
    return np.stack(rows, axis=1)


@per_group
def fourier_matrix(group: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    """F (|G|, |G|), orthogonal: f[g] = sum_c F[g, c] f^[c]."""
    return table_tensor(_fourier(group).matrix, dtype, device)


@per_group
def kernel_transform(group: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The matrix (sum of d^2 over the irreps, |G|) that maps a kernel k[u] to its irrep
    matrices."""
    return table_tensor(_fourier(group).transform, dtype, device)


class FourierStack(Stack):
    """m copies of the regular representation in the irrep basis, laid out (row, component,
    copy)."""

    def __init__(self, group: Any, copies: int) -> None:
        super().__init__(group, copies, f"{copies}x[regular, irrep basis]")
        self.blocks = _fourier(group).blocks

    @property
    def _basis(self) -> np.ndarray:
        """The matrix (D, D) from m regular copies, laid out (copy, element), to these
        coordinates."""
        matrix = _fourier(self.group).matrix
        blocks = [np.kron(matrix.T, row[:, None]) for row in np.eye(self.copies)]
        return np.concatenate(blocks, axis=1)

    def matrix_of(self, element: Any) -> np.ndarray:
        matrix = _fourier(self.group).matrix
        regular = np.round(self.group.regular_representation(element))
        return np.kron(matrix.T @ regular @ matrix, np.eye(self.copies))

    @property
    def change_of_basis(self) -> np.ndarray:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._basis @ regular_stack(self.group, self.copies).change_of_basis

    @property
    def change_of_basis_inv(self) -> np.ndarray:  # pyright: ignore[reportIncompatibleVariableOverride]
        return regular_stack(self.group, self.copies).change_of_basis_inv @ self._basis.T

    def of_copies(self, copies: int) -> FourierStack:
        return fourier_stack(self.group, copies)

    def invariant(self, coefficients: Tensor) -> Tensor:
        # A constant function v has the coordinate v sqrt(|G|) on the trivial irrep and no other.
        trivial = coefficients * math.sqrt(self.group.order())
        return F.pad(trivial, (0, self.size - self.copies))

    def spread(self, numbers: Tensor) -> Tensor:
        shape = (*numbers.shape[:-1], self.group.order(), self.copies)
        return numbers.unsqueeze(-2).expand(shape).flatten(-2)


@per_group
def fourier_stack(group: Any, copies: int) -> FourierStack:
    """The one shared `FourierStack` of a group and a number of copies."""
    return FourierStack(group, copies)


def stack_of(rep: Any) -> Stack | None:
    """`rep` as copies of the regular representation, in one of the two layouts, or None if it is no
    such."""
    if isinstance(rep, Stack):
        return rep
    copies = regular_copies(rep)
    return regular_stack(rep.group, copies) if copies else None
