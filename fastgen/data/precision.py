"""Precision: in which dtype the numbers of a file are held.

Float32 holds 24 bits of a number. Of a place on a map, 5,400,000 m, or a time of today,
1,700,000,000 s, they leave no step of a trajectory: float32 comes after the mean is taken off. So
numbers for which it is too coarse are held in float64, and normalised there. All others are held in
float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._core.made_rows import MadeRows, blocks_of
from ..normalizer import constant_share, is_constant, outgrows_float32

__all__ = ["channels", "exact_numbers", "floats", "lost_channels"]

# Rows that are looked at at once.
_BLOCK = 4096
# Whole numbers up to here are exact in float64.
_EXACT = 2**53


def exact_numbers(name: str, tensor: Tensor) -> Tensor:
    """The numbers of a file with all their digits: real ones in float32 or float64, whole ones as
    int64.

    Raises:
        TypeError: yes-or-no values and complex numbers.
    """
    if tensor.dtype == torch.bool or tensor.is_complex():
        raise TypeError(f"expected {name} to hold numbers, got {tensor.dtype}")
    if not tensor.is_floating_point():
        return tensor.long()
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def floats(name: str, tensor: Tensor, *, labels: bool = False) -> Tensor:
    """The numbers of a file in float32, in float64 where float32 is too coarse for one of their
    channels or, with `labels`, whole ones as int64.

    Raises:
        TypeError: yes-or-no values and complex numbers.
        ValueError: whole numbers so large and close that not even float64 tells them apart.
    """
    tensor = exact_numbers(name, tensor)
    if tensor.dtype == torch.float32 or (labels and not tensor.is_floating_point()):
        return tensor
    if tensor.dtype == torch.int64:
        _check_exact(name, tensor)
    return tensor.float() if _fits_float32(tensor) else tensor.double()


def channels(tensor: Tensor) -> Tensor:
    """The numbers of a channel as a column, (n, d).

    Channels are the last axis of vectors (N, d) and of trajectories (N, T, d); other shapes, such
    as images, are one channel.
    """
    return tensor.reshape(-1, tensor.shape[-1] if tensor.ndim in (2, 3) else 1)


def lost_channels(tensor: Tensor) -> list[int]:
    """The channels (see `channels`) for which float32 is too coarse."""
    return [k for k, channel in enumerate(channels(tensor).unbind(1)) if _is_lost(channel)]


def _fits_float32(tensor: Tensor) -> bool:
    """Whether float32 holds these numbers exactly, or as finely as they need."""
    if tensor.numel() == 0 or tensor.ndim == 0:
        return True
    if isinstance(tensor, MadeRows):
        return not bool(_lost_in_blocks(tensor).any())
    return not any(map(_is_lost, channels(tensor).unbind(1)))


def _is_lost(channel: Tensor) -> bool:
    """Whether float32 is too coarse for the numbers (n,) of a channel. What isn't finite is
    refused elsewhere.

    Nothing is lost of numbers that were in float32 before, as those of one sensor beside another
    in float64; and a small spread of such numbers is the rounding of a constant.
    """
    blocks = channel.split(_BLOCK)
    if all(torch.equal(block.float().double(), block.double()) for block in blocks):
        return False
    wide = channel.double()
    if bool(is_constant(wide[:, None])):
        return False
    mean = wide.mean()
    return bool(outgrows_float32(mean, (wide - mean).square().mean().sqrt()))


def _lost_in_blocks(tensor: Tensor) -> Tensor:
    """For which channels of vectors (N, d) float32 is too coarse, by what `_is_lost` says: (d,) of
    bool."""
    exact = torch.stack([(b.float().double() == b.double()).all(0) for b in blocks_of(tensor)])
    rounded = ~exact.all(0)
    if not bool(rounded.any()):
        return rounded
    origin = tensor[0].double()
    count = len(tensor)
    mean = sum((b.double() - origin).sum(0) / count for b in blocks_of(tensor)) + origin
    square = sum((b.double() - mean).square().sum(0) / count for b in blocks_of(tensor))
    spread = torch.as_tensor(square).sqrt()
    size = torch.stack([b.double().abs().amax(0) for b in blocks_of(tensor)]).amax(0)
    constant = spread <= constant_share(torch.float64) * size
    return rounded & ~constant & outgrows_float32(torch.as_tensor(mean), spread)


def _check_exact(name: str, tensor: Tensor) -> None:
    """ValueError where whole numbers are further from zero than float64 can tell apart."""
    if tensor.numel() == 0:
        return
    if max(max(int(b.max()), -int(b.min())) for b in blocks_of(tensor)) <= _EXACT:
        return
    if isinstance(tensor, MadeRows):
        raise ValueError(
            f"expected {name} in numbers up to 2^53 each way, which float64 holds, got larger "
            "whole numbers; take off what they have in common"
        )
    for k, channel in enumerate(channels(tensor).unbind(1)):
        first = channel[0]
        spread = (channel - first).double().std(correction=0)
        size = channel.abs().max().double()
        spacing = 2.0 * size / _EXACT
        if bool((spread > 0) & (spacing > 1e-6 * spread)):
            raise ValueError(
                f"expected {name} in numbers that float64 tells apart, got channel {k} around "
                f"{float(size):.3g} with a spread of {float(spread):.3g}; take {int(first)} off it"
            )
