"""Block maps: equivariant maps in the irrep basis, applied block by block.

The layout of channels and the blocks are those of `fourier.py`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .fourier import IrrepBlock
from .gradients import own_gradients

__all__ = ["block_map", "irrep_matrices"]


def irrep_matrices(
    blocks: tuple[IrrepBlock, ...], transform: Tensor, kernel: Tensor
) -> list[Tensor]:
    """Matrices of a group convolution in the irrep basis.

    Args:
        blocks: shapes of the irreps, as `FourierStack.blocks`.
        transform: `kernel_transform` of the group.
        kernel: shape (m_out, m_in, |G|).

    Returns:
        For each block one tensor (count * rows, size * m_out, size * m_in). All rows of an irrep
        have the same matrix.
    """
    m_out, m_in, order = kernel.shape
    numbers = transform.to(kernel.dtype) @ kernel.reshape(-1, order).T
    matrices = []
    start = 0
    for _, count, rows, size in blocks:
        stop = start + count * size * size
        part = numbers[start:stop].view(count, 1, size, size, m_out, m_in)
        part = part.transpose(3, 4).reshape(count, 1, size * m_out, size * m_in)
        matrices.append(part.expand(-1, rows, -1, -1).flatten(0, 1))
        start = stop
    return matrices


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
        x: features of N tokens, contiguous: (N, D_in), or (D_in, N) if `channels_first[0]`.
        blocks: shapes of the irreps.
        matrices: one tensor for each block, from `irrep_matrices`.
        bias: added to the coordinates on the trivial irrep: (m_out,).
        channels_first: of the input, of the output.

    Returns:
        (N, D_out), or (D_out, N) if `channels_first[1]`.
    """
    source = _Layout(blocks, channels_first[0])
    target = _Layout(blocks, channels_first[1])
    if own_gradients(x):
        return _BlockMap.apply(x, bias, source, target, *matrices)
    views = zip(source.views(x), matrices, strict=True)
    y = target.join([matrix @ view for view, matrix in views])
    if bias is None:
        return y
    bias = F.pad(bias, (0, y.shape[target.channel_axis] - len(bias)))
    return y + target.column(bias)


class _Layout(NamedTuple):
    """Features as a matrix: tokens first (N, D), or channels first (D, N)."""

    blocks: tuple[IrrepBlock, ...]
    channels_first: bool

    @property
    def channel_axis(self) -> int:
        return 0 if self.channels_first else 1

    @property
    def token_axis(self) -> int:
        return 1 - self.channel_axis

    def empty(self, tokens: int, copies: int, like: Tensor) -> Tensor:
        """An uninitialised matrix, in the dtype and device of `like`."""
        channels = copies * sum(b.count * b.rows * b.size for b in self.blocks)
        return like.new_empty((channels, tokens) if self.channels_first else (tokens, channels))

    def views(self, x: Tensor) -> list[Tensor]:
        """Slices of the blocks as (rows, channels of a row, tokens)."""
        order = sum(b.count * b.rows * b.size for b in self.blocks)
        copies = x.shape[self.channel_axis] // order
        sizes = [b.count * b.rows * b.size * copies for b in self.blocks]
        rows = [b.count * b.rows for b in self.blocks]
        slices = zip(x.split(sizes, self.channel_axis), rows, strict=True)
        if self.channels_first:
            return [part.unflatten(0, (n, -1)) for part, n in slices]
        return [part.unflatten(1, (n, -1)).permute(1, 2, 0) for part, n in slices]

    def join(self, parts: list[Tensor]) -> Tensor:
        """The matrix of which these are the views."""
        if self.channels_first:
            return torch.cat([part.flatten(0, 1) for part in parts])
        return torch.cat([part.permute(2, 0, 1).flatten(1) for part in parts], dim=1)

    def trivial(self, x: Tensor, copies: int) -> Tensor:
        """The channels of the trivial irrep."""
        return x[:copies] if self.channels_first else x[:, :copies]

    def column(self, bias: Tensor) -> Tensor:
        """A number for each channel, in a shape that broadcasts over the tokens."""
        return bias[:, None] if self.channels_first else bias


class _BlockMap(torch.autograd.Function):
    """`block_map` whose products are written where they belong, without a pass over the result to
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
        ctx.layouts = (source, target)
        tokens = x.shape[source.token_axis]
        copies = matrices[0].shape[1] // target.blocks[0].size
        y = target.empty(tokens, copies, x)
        for part, matrix, out in zip(source.views(x), matrices, target.views(y), strict=True):
            if target.channels_first:
                torch.bmm(matrix, part, out=out)
            else:
                torch.bmm(part.mT, matrix.mT, out=out.mT)
        if bias is not None:
            target.trivial(y, len(bias)).add_(target.column(bias))
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
            copies = matrices[0].shape[1] // target.blocks[0].size
            grad_bias = target.trivial(grad, copies).sum(target.token_axis)
        if any(ctx.needs_input_grad[4:]):
            views = zip(target.views(grad), source.views(x), strict=True)
            grads = [torch.bmm(grad_view, view.mT) for grad_view, view in views]
        return grad_x, grad_bias, None, None, *grads
