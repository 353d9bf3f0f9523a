"""Regular features in the irrep basis, where an equivariant map is block-diagonal.

A function f on the group is f = F f^ with an orthogonal F (|G|, |G|) whose columns are matrix
elements of the irreps. They are ordered (irrep, row, component): an irrep of dimension d whose
endomorphisms have dimension e (1, 2 or 4 for real, complex and quaternionic type) has d / e rows of
d components, trivial irrep first. An equivariant map acts on every row of an irrep by one and the
same matrix (d m_out, d m_in), which is linear in the kernel of the group convolution that the map
is in the regular basis (a Fourier transform). It takes the share sum_irreps d^3 / e / |G|^2 of a
dense map's products.

m copies are laid out (row, component, copy): a row of an irrep is a slice of the channels.

References: Cohen and Welling 2016, arXiv:1602.07576; Cesa, Lang and Weiler 2022 (escnn).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .groups import (
    Stack,
    irrep_columns,
    multiplication_table,
    per_group,
    regular_copies,
    regular_stack,
)
from .layers import own_gradients

__all__ = [
    "FourierStack",
    "IrrepBlock",
    "block_map",
    "fourier_matrix",
    "fourier_stack",
    "irrep_matrices",
    "kernel_transform",
    "stack_of",
]


class IrrepBlock(NamedTuple):
    """Neighbouring irreps of one shape: ``count`` irreps of ``rows`` rows of ``size`` components,
    the first of them at ``start``."""

    start: int
    count: int
    rows: int
    size: int


@per_group
def _fourier(group: Any) -> tuple[np.ndarray, tuple[IrrepBlock, ...], np.ndarray]:
    """F, its blocks, and the transform of kernels (sum of d^2, |G|), in float64."""
    columns = irrep_columns(regular_stack(group, 1))
    irreps = []
    for irrep_id, parts in columns.items():
        irrep = group.irrep(*irrep_id)
        units = _orthonormal_units(np.asarray(irrep.endomorphism_basis(), dtype=np.float64))
        rows = _rows_of_units(units)  # (d, d / e, e)
        # [g, r, a, i]: component (a, i) of row r, a the unit and i the copy of the irrep in the
        # regular representation
        part = np.einsum("gij,jra->grai", parts.numpy(), rows)
        irreps.append(
            (
                irrep.size,
                rows.shape[1],
                not irrep.is_trivial(),
                part.reshape(len(part), rows.shape[1], -1),
            )
        )
    irreps.sort(key=lambda i: i[:3])
    matrix = np.concatenate([part.reshape(len(part), -1) for *_, part in irreps], axis=1)
    matrix[:, 0] = abs(matrix[:, 0])  # 1 / sqrt(|G|): invariant vectors have positive coordinates
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
        # the map f -> (g -> f[g u]) on a row: [u, p, q] = sum_g F[g, p] F[g u, q], the mean over
        # the rows
        moved = np.einsum("grp,gurq->pqu", part, part[product]) / rows
        transform.append(moved.reshape(size * size, -1))
    return matrix, tuple(blocks), np.concatenate(transform)


def _orthonormal_units(algebra: np.ndarray) -> np.ndarray:
    """Orthonormal basis (e, d, d) of an endomorphism algebra in the inner product tr(A^T B) / d;
    the first is 1."""
    size = algebra.shape[-1]
    start = np.concatenate([np.eye(size)[None], algebra]).reshape(len(algebra) + 1, -1) / math.sqrt(
        size
    )
    units: list[np.ndarray] = []
    for candidate in start:
        for _ in range(2):  # the second pass removes what rounding left of the first
            candidate = candidate - sum(
                (u * (u @ candidate) for u in units), start=np.zeros_like(candidate)
            )
        norm = np.linalg.norm(candidate)
        if norm > 1e-6 and len(units) < len(algebra):
            units.append(candidate / norm)
    return np.stack(units).reshape(-1, size, size) * math.sqrt(size)


def _rows_of_units(units: np.ndarray) -> np.ndarray:
    """Orthonormal basis (d, d / e, e) of R^d in which every unit acts on each row alike: a row is
    b, its images u b."""
    count, size, _ = units.shape
    rows: list[np.ndarray] = []
    for candidate in np.eye(size):
        for _ in range(2):
            candidate = candidate - sum(
                (row @ (row.T @ candidate) for row in rows), start=np.zeros(size)
            )
        norm = np.linalg.norm(candidate)
        if norm > 1e-2 and len(rows) < size // count:
            rows.append((units @ (candidate / norm)).T)
    return np.stack(rows, axis=1)


@per_group
def fourier_matrix(group: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    """F (|G|, |G|), orthogonal: f[g] = sum_c F[g, c] f^[c]. One tensor per group, dtype and device
    is shared."""
    with torch.inference_mode(
        False
    ):  # the table outlives the caller, who may be in inference mode now and train later
        return torch.from_numpy(_fourier(group)[0]).to(device=device, dtype=dtype)


@per_group
def kernel_transform(group: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The matrix (sum of d^2 over the irreps, |G|) from a kernel k[u] to its irrep matrices; shared
    likewise."""
    with torch.inference_mode(False):
        return torch.from_numpy(_fourier(group)[2]).to(device=device, dtype=dtype)


class FourierStack(Stack):
    """m copies of the regular representation in the irrep basis, laid out (row, component,
    copy)."""

    def __init__(self, group: Any, copies: int) -> None:
        super().__init__(group, copies, f"{copies}x[regular, irrep basis]")
        self.blocks = _fourier(group)[1]

    @property
    def _basis(self) -> np.ndarray:
        """From m regular copies, laid out (copy, element): (D, D)."""
        return np.concatenate(
            [np.kron(_fourier(self.group)[0].T, row[:, None]) for row in np.eye(self.copies)],
            axis=1,
        )

    def _matrix(self, element: Any) -> np.ndarray:
        matrix = _fourier(self.group)[0]
        return np.kron(
            matrix.T @ np.round(self.group.regular_representation(element)) @ matrix,
            np.eye(self.copies),
        )

    @property
    def change_of_basis(self) -> np.ndarray:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._basis @ regular_stack(self.group, self.copies).change_of_basis

    @property
    def change_of_basis_inv(self) -> np.ndarray:  # pyright: ignore[reportIncompatibleVariableOverride]
        return regular_stack(self.group, self.copies).change_of_basis_inv @ self._basis.T

    def of_copies(self, copies: int) -> FourierStack:
        return fourier_stack(self.group, copies)

    def invariant(self, coefficients: Tensor) -> Tensor:
        # a function of value v has the coordinate v sqrt(|G|) on the trivial irrep and no other
        return F.pad(coefficients * math.sqrt(self.group.order()), (0, self.size - self.copies))

    def spread(self, numbers: Tensor) -> Tensor:
        return (
            numbers.unsqueeze(-2)
            .expand(*numbers.shape[:-1], self.group.order(), self.copies)
            .flatten(-2)
        )


@per_group
def fourier_stack(group: Any, copies: int) -> FourierStack:
    """The one shared ``FourierStack`` of a group and a number of copies."""
    return FourierStack(group, copies)


def stack_of(rep: Any) -> Stack | None:
    """``rep`` as copies of the regular representation in one of the two layouts, or None if it is
    no such."""
    if isinstance(rep, Stack):
        return rep
    copies = regular_copies(rep)
    return regular_stack(rep.group, copies) if copies else None


def irrep_matrices(
    blocks: tuple[IrrepBlock, ...], transform: Tensor, kernel: Tensor
) -> list[Tensor]:
    """Matrices of a group convolution in the irrep basis.

    Args:
        blocks: shapes of the irreps, as ``FourierStack.blocks``.
        transform: ``kernel_transform`` of the group.
        kernel: shape (m_out, m_in, |G|).

    Returns:
        For each block one tensor (count * rows, size * m_out, size * m_in), the rows of an irrep
        alike.
    """
    m_out, m_in, order = kernel.shape
    numbers = transform.to(kernel.dtype) @ kernel.reshape(-1, order).T
    matrices = []
    start = 0
    for _, count, rows, size in blocks:
        part = numbers[start : start + count * size * size].view(count, 1, size, size, m_out, m_in)
        part = part.transpose(3, 4).reshape(count, 1, size * m_out, size * m_in)
        matrices.append(part.expand(-1, rows, -1, -1).flatten(0, 1))
        start += count * size * size
    return matrices


class _Layout(NamedTuple):
    """Features as matrices: tokens first (N, D), or channels first (D, N)."""

    blocks: tuple[IrrepBlock, ...]
    channels_first: bool

    def empty(self, tokens: int, copies: int, like: Tensor) -> Tensor:
        channels = copies * sum(b.count * b.rows * b.size for b in self.blocks)
        return like.new_empty((channels, tokens) if self.channels_first else (tokens, channels))

    def views(self, x: Tensor) -> list[Tensor]:
        """Slices of the blocks as (rows, channels of a row, tokens)."""
        order = sum(b.count * b.rows * b.size for b in self.blocks)
        copies = x.shape[0 if self.channels_first else 1] // order
        sizes = [b.count * b.rows * b.size * copies for b in self.blocks]
        rows = [b.count * b.rows for b in self.blocks]
        if self.channels_first:
            return [p.unflatten(0, (n, -1)) for p, n in zip(x.split(sizes, 0), rows, strict=True)]
        return [
            p.unflatten(1, (n, -1)).permute(1, 2, 0)
            for p, n in zip(x.split(sizes, 1), rows, strict=True)
        ]

    def first(self, x: Tensor, copies: int) -> Tensor:
        """The channels of the trivial irrep."""
        return x[:copies] if self.channels_first else x[:, :copies]

    def join(self, parts: list[Tensor]) -> Tensor:
        """The matrix of which these are the views."""
        if self.channels_first:
            return torch.cat([p.flatten(0, 1) for p in parts])
        return torch.cat([p.permute(2, 0, 1).flatten(1) for p in parts], dim=1)


class _BlockMap(torch.autograd.Function):
    """``block_map`` whose products are written where they belong, without a pass over the result to
    join them."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        bias: Tensor | None,
        source: _Layout,
        target: _Layout,
        *matrices: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(x, *matrices)
        ctx.layouts = source, target
        tokens = x.shape[1 if source.channels_first else 0]
        copies = matrices[0].shape[1] // target.blocks[0].size
        y = target.empty(tokens, copies, x)
        for part, matrix, out in zip(source.views(x), matrices, target.views(y), strict=True):
            if target.channels_first:
                torch.bmm(matrix, part, out=out)
            else:
                torch.bmm(part.mT, matrix.mT, out=out.mT)
        if bias is not None:
            target.first(y, len(bias)).add_(bias[:, None] if target.channels_first else bias)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, *matrices = ctx.saved_tensors
        source, target = ctx.layouts
        grad = grad.contiguous()
        grad_x = None
        grad_bias = None
        grads = [None] * len(matrices)
        if ctx.needs_input_grad[0]:
            grad_x = _BlockMap.apply(grad, None, target, source, *(m.mT for m in matrices))
        if ctx.needs_input_grad[1]:
            first = target.first(grad, matrices[0].shape[1] // target.blocks[0].size)
            grad_bias = first.sum(1 if target.channels_first else 0)
        if any(ctx.needs_input_grad[4:]):
            grads = [
                torch.bmm(g, p.mT) for g, p in zip(target.views(grad), source.views(x), strict=True)
            ]
        return grad_x, grad_bias, None, None, *grads


def block_map(
    x: Tensor,
    blocks: tuple[IrrepBlock, ...],
    matrices: list[Tensor],
    bias: Tensor | None = None,
    *,
    channels_first: tuple[bool, bool] = (False, False),
) -> Tensor:
    """Apply a block-diagonal map in the irrep basis.

    Args:
        x: features of N tokens, contiguous: (N, D_in), or (D_in, N) if ``channels_first[0]``.
        blocks: shapes of the irreps.
        matrices: one tensor a block, from ``irrep_matrices``.
        bias: added to the coordinates on the trivial irrep: (m_out,).
        channels_first: of the input, of the output.

    Returns:
        (N, D_out), or (D_out, N) if ``channels_first[1]``.
    """
    source, target = (_Layout(blocks, first) for first in channels_first)
    if not own_gradients(x):
        y = target.join([m @ p for p, m in zip(source.views(x), matrices, strict=True)])
        if bias is None:
            return y
        bias = F.pad(bias, (0, y.shape[0 if target.channels_first else 1] - len(bias)))
        return y + (bias[:, None] if target.channels_first else bias)
    return _BlockMap.apply(x, bias, source, target, *matrices)
