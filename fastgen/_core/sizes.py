"""Sizes that a network was trained with: of each axis but the rows, the least and the most.

    {"X": [(4, 4), (8, 8)], "Z": [(1, 2), (12, 12)]}

says of a network that it saw samples X (B, 4, 8), and conditions Z (B, 1, 12) to (B, 2, 12). A
member of a condition is named as by `named_tensors`: "Z.goal", "Z.0". A network that can be called
with other sizes was not taught what to answer there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from .checks import is_count
from .conditions import cond_text, named_tensors
from .masks import masks_of

__all__ = ["Sizes", "check_sizes", "parse_sizes", "sizes_of", "sizes_text", "trained_sizes_of"]

Sizes = dict[str, list[tuple[int, int]]]


def sizes_of(value: Any, name: str) -> Sizes:
    """The sizes of a Tensor, or of each Tensor in a condition, whose first axis are rows.

    Args:
        value: a Tensor, a mapping or tuple of Tensors, or None, which has none.
        name: "X" or "Z".
    """
    return {
        member: [(size, size) for size in tensor.shape[1:]]
        for member, tensor in named_tensors(value, name).items()
    }


def trained_sizes_of(x0: Tensor | None, cond: Any) -> Sizes:
    """The sizes of X and Z that a network is trained with. Where they are padded, their tokens are
    as many as are real in the row with least, up to all.

    Args:
        x0: samples (N, T, ...); None: those of Z alone.
        cond: of N rows; masks of its own say what is real.
    """
    Z, *masks = masks_of(cond)
    found: Sizes = {}
    for (value, name), mask in zip(((x0, "X"), (Z, "Z")), masks, strict=True):
        sizes = sizes_of(value, name)
        if mask is not None:
            least = int(mask.sum(1).min())
            for axes in sizes.values():
                axes[0] = (least, axes[0][1])
        found |= sizes
    return found


def check_sizes(value: Any, name: str, sizes: Sizes, who: str) -> None:
    """Refuse a value whose sizes lie outside those trained.

    Args:
        value: as in `sizes_of`.
        name: "X" or "Z": what else `sizes` speaks of is passed over.
        sizes: what was trained.
        who: the network, for people: "the student".

    Raises:
        ValueError: a size outside, or a member that is missing or that none was trained with.
    """
    trained = {
        member: axes
        for member, axes in sizes.items()
        if member == name or member.startswith(f"{name}.")
    }
    given = named_tensors(value, name)
    if given.keys() != trained.keys():
        raise ValueError(
            f"expected {_all_text(name, trained)}, as {who} was trained, got {cond_text(value)}"
        )
    for member, tensor in given.items():
        if not _fits(tensor, trained[member]):
            raise ValueError(
                f"expected {member} of shape {sizes_text(trained[member])}, as {who} was trained, "
                f"got {tuple(tensor.shape)}: no other size was trained"
            )


def parse_sizes(value: Any) -> Sizes:
    """`value` as sizes.

    Args:
        value: {name: one entry for each axis but the rows}. An entry is a size, or the least and
            the most.

    Raises:
        ValueError: anything else.
    """
    wanted = "expected sizes as {name: [size or [least, most], ...]} of whole numbers"
    if not isinstance(value, Mapping):
        raise ValueError(f"{wanted}, got {type(value).__name__}")
    sizes: Sizes = {}
    for name, axes in value.items():
        if not isinstance(name, str) or isinstance(axes, str) or not isinstance(axes, Sequence):
            raise ValueError(f"{wanted}, got {name!r}: {type(axes).__name__}")
        pairs = [_pair(axis) for axis in axes]
        if None in pairs:
            raise ValueError(f"{wanted}, got {name}: {list(axes)}")
        sizes[name] = [pair for pair in pairs if pair is not None]
    return sizes


def sizes_text(axes: Sequence[tuple[int, int]]) -> str:
    """Sizes for people: "(B, 2, 12)", "(B, 1..2, 12)", "(B,)"."""
    shown = [str(least) if least == most else f"{least}..{most}" for least, most in axes]
    return f"({', '.join(['B', *shown])})" if shown else "(B,)"


def _all_text(name: str, trained: Sizes) -> str:
    """All that was trained under one name."""
    if not trained:
        return f"no {name}"
    return ", ".join(f"{member} of shape {sizes_text(axes)}" for member, axes in trained.items())


def _fits(tensor: Tensor, axes: Sequence[tuple[int, int]]) -> bool:
    if tensor.ndim != 1 + len(axes):
        return False
    sizes = zip(tensor.shape[1:], axes, strict=True)
    return all(least <= size <= most for size, (least, most) in sizes)


def _pair(axis: Any) -> tuple[int, int] | None:
    """(least, most) of one axis; None for what is neither a size nor such a pair."""
    if is_count(axis, 0):
        return axis, axis
    if not isinstance(axis, tuple | list) or len(axis) != 2:
        return None
    least, most = axis
    if not is_count(least, 0) or not is_count(most, 0) or least > most:
        return None
    return least, most
