"""Padding of trajectories in a file: which waypoints of X, and which observations of Z, are real.

A file says it by `mask` (N, T_x) of bool, True = real, or by `lengths` (N,), the number of real
waypoints at the beginning of each row; and of Z by `cond_mask` (N, T_z) or `cond_lengths` (N,).
What stands in the padding is never looked at: it may be NaN.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .._core.made_rows import MadeRows, RowMaker, made_of, maker_of, part_of
from .._core.masks import check_real, mask_of_lengths, padding_filled

__all__ = [
    "PADDING",
    "UNMASKED",
    "Masks",
    "filled_part",
    "filled_rows",
    "masks_beside",
    "without_padding",
]

# Padded data of more numbers than this are filled when they are taken.
MOST_NUMBERS = 1 << 26
# Arrays that say what is real of X, and of Z.
PADDING = ("mask", "lengths", "cond_mask", "cond_lengths")


class Masks(NamedTuple):
    """Which waypoints of X (N, T_x, d_x) and observations of Z (N, T_z, d_z) are real: bool (N, T),
    None where all are."""

    mask: Tensor | None = None
    cond_mask: Tensor | None = None

    def rows(self, rows: Tensor) -> Masks:
        """Those of some rows."""
        return Masks(*(None if one is None else one[rows] for one in self))

    def part(self, rows: Tensor) -> Masks:
        """The same; what is made when it is taken stays so, however few rows they are."""
        return Masks(*(None if one is None else part_of(one, rows) for one in self))


# Nothing is padded.
UNMASKED = Masks()


def without_padding(
    tensors: Mapping[str, Tensor], path: str | Path
) -> tuple[dict[str, Tensor], Masks]:
    """X and Z of three axes each as a file holds them, with padding that repeats the real token
    before it; and their masks.

    Raises:
        ValueError: a mask and lengths of the same array, a mask that isn't bool (N, T), lengths
            that aren't whole numbers from 1 to T, a row without a real token.
    """
    found = {}
    masks = []
    for name, mask_name, lengths_name in (
        ("X", "mask", "lengths"),
        ("Z", "cond_mask", "cond_lengths"),
    ):
        value = tensors[name]
        mask = _mask_of(tensors, tuple(value.shape[:2]), mask_name, lengths_name, path)
        masks.append(mask)
        found[name] = value if mask is None else filled_rows(value, mask)
    return {**tensors, **found}, Masks(*masks)


def filled_rows(x: Tensor, mask: Tensor) -> Tensor:
    """`padding_filled` of trajectories x (N, T, d): now, or, of more than memory should hold, when
    rows are taken. What was filled by this very mask stays as it is."""
    if isinstance(x, MadeRows) and isinstance(x.maker, _Filled) and x.maker.mask is mask:
        return x
    made = isinstance(x, MadeRows) or isinstance(mask, MadeRows)
    if made or x.numel() > MOST_NUMBERS:
        return MadeRows(_Filled(x, mask))
    return padding_filled(x, mask)


def filled_part(x: Tensor, mask: Tensor | None, rows: Tensor) -> Tensor:
    """Some rows of what `filled_rows` made, filled by `mask`: these rows of the mask that they were
    filled by."""
    if isinstance(x, MadeRows) and isinstance(x.maker, _Filled) and mask is not None:
        return MadeRows(x.maker.part(rows, mask))
    return part_of(x, rows)


class _Filled(RowMaker):
    """Trajectories (N, T, d) whose padding repeats the real token before it."""

    def __init__(self, x: Tensor, mask: Tensor) -> None:
        self.x = maker_of(x)
        self.mask = mask
        self.shape = self.x.shape
        self.dtype = self.x.dtype

    def take(self, rows: Tensor) -> Tensor:
        return padding_filled(self.x.take(rows), maker_of(self.mask).take(rows))

    def part(self, rows: Tensor, mask: Tensor | None = None) -> RowMaker:
        """`mask`: those rows of the mask, where they are there already."""
        mask = part_of(self.mask, rows) if mask is None else mask
        return _Filled(MadeRows(self.x.part(rows)), mask)

    def vectors(
        self, step: int | None = None, mask: Tensor | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """What is real is what was there before."""
        if mask is self.mask:
            return self.x.vectors(step, mask)
        return super().vectors(step, mask)

    def contents(self) -> Iterator[Tensor]:
        yield from self.x.contents()
        yield from maker_of(self.mask).contents()


def masks_beside(tensors: Mapping[str, Tensor], path: str | Path, tokens: int) -> Masks:
    """The masks that a file holds beside conditions Z (N, ...) of samples of so many tokens; errors
    as `without_padding`."""
    Z = tensors["Z"]
    of_z = tuple(Z.shape[:2]) if Z.ndim > 1 else (len(Z), 1)
    return Masks(
        _mask_of(tensors, (len(Z), tokens), "mask", "lengths", path),
        _mask_of(tensors, of_z, "cond_mask", "cond_lengths", path),
    )


def _mask_of(
    tensors: Mapping[str, Tensor],
    shape: tuple[int, ...],
    mask_name: str,
    lengths_name: str,
    path: str | Path,
) -> Tensor | None:
    """What a file says of tokens (N, T)."""
    if mask_name in tensors and lengths_name in tensors:
        raise ValueError(f"expected {mask_name} or {lengths_name} in {path}, got both")
    if mask_name in tensors:
        check_real(mask_name, tensors[mask_name], shape)
        return tensors[mask_name]
    if lengths_name not in tensors:
        return None
    lengths = tensors[lengths_name]
    whole = not (lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool)
    rows, tokens = shape
    if not whole or tuple(lengths.shape) != (rows,):
        raise ValueError(
            f"expected {lengths_name} as one whole number for each of the {rows} rows, ({rows},), "
            f"got {lengths.dtype} {tuple(lengths.shape)}"
        )
    if not rows:
        raise ValueError(f"expected {lengths_name} of one row or more in {path}, got none")
    least, most = int(lengths.min()), int(lengths.max())
    if least < 1 or most > tokens:
        raise ValueError(
            f"expected {lengths_name} from 1 to {tokens}, the tokens of a row, got {least} to "
            f"{most}"
        )
    if rows * tokens > MOST_NUMBERS:
        return made_of(lambda lengths: mask_of_lengths(lengths, tokens), lengths)
    return mask_of_lengths(lengths, tokens)
