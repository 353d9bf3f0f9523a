"""The masks that a student is sampled with: what it was trained for, and what is given."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from .._core.conditions import tensors_in
from .._core.masks import MASKS, check_real, masks_of, with_masks

__all__ = ["masked_condition"]

# What each mask is about, for messages.
_OF = {"mask": "samples", "cond_mask": "conditions"}


def masked_condition(
    cond: Any, mask: Any, cond_mask: Any, *, trained: Collection[str], tokens: int
) -> Any:
    """The condition of a sampling run with its masks (:mod:`fastgen._core.masks`).

    Args:
        cond: Z, or Z with its masks.
        mask, cond_mask: bool (B, tokens) and (B, T_z), for a `cond` without them; None: nothing
            is padded.
        trained: the masks that the student was trained with.
        tokens: T_x.

    Raises:
        ValueError: a mask that is given twice, that the student was trained without, or that
            doesn't fit.
    """
    Z, *own = masks_of(cond)
    given = (mask, cond_mask)
    if all(one is None for one in (*own, *given)):
        return Z
    found = {}
    for name, inside, beside in zip(MASKS, own, given, strict=True):
        if inside is not None and beside is not None:
            raise ValueError(f"expected {name} in cond or beside it, got both")
        found[name] = beside if inside is None else inside
        if found[name] is not None and name not in trained:
            raise ValueError(
                f"expected no {name} from a student that was trained on {_OF[name]} of one length, "
                "got one; leave it out"
            )
    _check(Z, found, tokens)
    return with_masks(Z, found["mask"], found["cond_mask"])


def _check(Z: Any, masks: dict[str, Any], tokens: int) -> None:
    """Refuse masks that don't fit each other or the condition."""
    for name, mask in masks.items():
        if mask is None:
            continue
        tensors = tensors_in(Z)
        rows = len(tensors[0]) if tensors else len(mask)
        length = tokens
        if name == "cond_mask":
            length = tensors[0].shape[1] if tensors and tensors[0].ndim > 1 else 1
        check_real(name, mask, (rows, length))
