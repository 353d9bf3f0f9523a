"""Masks: which tokens of samples and conditions are real, carried by the condition.

Samples of unequal length are padded to one. What is real of them travels with their condition
(:mod:`fastgen._core.carried`) as `mask` (B, T_x) and `cond_mask` (B, T_z), True = real token, of
which either may be missing, where nothing is padded.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .carried import MASKS, Carried, carried_by, check_kind, members_of
from .checks import at_hand
from .made_rows import MadeRows, blocks_of, mapped_rows
from .tensors import expand_mask

__all__ = [
    "MASKS",
    "check_real",
    "cond_without_masks",
    "is_masked",
    "mask_names",
    "mask_of_lengths",
    "masks_of",
    "packed_mask",
    "padding_filled",
    "real_only",
    "token_mask",
    "with_masks",
]


def is_masked(cond: Any) -> bool:
    """Whether a condition carries one mask or both."""
    return bool(mask_names(cond))


def with_masks(Z: Any, mask: Tensor | None = None, cond_mask: Tensor | None = None) -> Any:
    """The condition Z with the masks that aren't None; Z itself where both are."""
    if mask is None and cond_mask is None:
        return Z
    return Carried(Z, mask, cond_mask).condition()


def masks_of(cond: Any) -> tuple[Any, Tensor | None, Tensor | None]:
    """(the condition without its masks, mask, cond_mask); a mask that it doesn't carry is None.

    Raises:
        ValueError: a mask of it isn't bool (B, T).
    """
    if isinstance(cond, Tensor):
        return cond, None, None
    found = carried_by(cond)
    rest = found._replace(mask=None, cond_mask=None)
    return rest.condition(), found.mask, found.cond_mask


def mask_names(cond: Any) -> list[str]:
    """The names of the masks that a condition carries."""
    return [name for name in MASKS if name in members_of(cond)]


def cond_without_masks(cond: Any) -> Any:
    """A condition without its masks."""
    return masks_of(cond)[0]


def token_mask(cond: Any) -> Tensor | None:
    """The mask (B, T_x) of the samples that a condition belongs to; None: all tokens are real.
    Errors as `masks_of`."""
    return None if isinstance(cond, Tensor) else carried_by(cond).mask


def real_only(x: Tensor, cond: Any) -> Tensor:
    """Samples x (B, T, ...) with 0 at the tokens that the masks of their condition call padding;
    `x` itself without a mask. Padding gets no gradient, whatever it holds.

    Raises:
        ValueError: a mask of another size, or one without a real token in some row.
    """
    mask = token_mask(cond)
    return x if mask is None else x.masked_fill(~expand_mask(mask, x), 0.0)


# ---- Masks by themselves -------------------------------------------------------------------------


def check_real(name: str, mask: Any, shape: tuple[int, ...]) -> None:
    """Refuse a mask that isn't bool of this shape (B, T), or has a row without a real token.

    Raises:
        ValueError: such as `expected mask of shape (8, 16), True = real token, got (8, 5)`.
    """
    check_kind(name, mask)
    if tuple(mask.shape) != tuple(shape):
        raise ValueError(
            f"expected {name} of shape {tuple(shape)}, True = real token, got {tuple(mask.shape)}"
        )
    if at_hand(mask):
        parts = blocks_of(mask) if isinstance(mask, MadeRows) else [mask]
        empty = torch.cat([~part.any(1) for part in parts]).nonzero().flatten().tolist()
        if empty:
            raise ValueError(
                f"expected {name} to have a real token (True) in each row, got none in row "
                f"{empty[0]}; True marks what is real, not padding"
            )


def mask_of_lengths(lengths: Tensor, tokens: int) -> Tensor:
    """The mask (B, tokens) of samples whose first `lengths` (B,) tokens are real."""
    return torch.arange(tokens, device=lengths.device) < lengths[:, None]


def packed_mask(mask: Tensor, pack: int) -> Tensor:
    """The mask (B, T / pack) of tokens that hold `pack` waypoints each.

    Raises:
        ValueError: a token that is real in part.
    """
    if pack == 1:
        return mask
    if isinstance(mask, MadeRows):
        for block in blocks_of(mask):
            packed_mask(block, pack)  # refused here, before rows are taken
        return mapped_rows(mask, lambda rows: packed_mask(rows, pack))
    parts = mask.unflatten(1, (-1, pack))
    whole = parts.all(2)
    # While a sampler is exported there are no numbers yet.
    if not torch.compiler.is_compiling() and not bool((whole == parts.any(2)).all()):
        raise ValueError(
            f"expected real waypoints in whole tokens of pack={pack}, got a token with padding "
            "beside them; choose lengths that are multiples of it, or pack=1"
        )
    return whole


def padding_filled(x: Tensor, mask: Tensor | None) -> Tensor:
    """x (B, T, ...) whose padding repeats the real token before it, or the first one where there is
    none before: one form for all that padding may hold. `x` itself without a mask."""
    if mask is None:
        return x
    place = torch.arange(mask.shape[1]).expand(mask.shape)
    last = place.masked_fill(~mask, -1).cummax(1).values
    first = mask.int().argmax(1, keepdim=True)
    source = torch.where(last < 0, first, last)
    return x[torch.arange(len(x))[:, None], source]
