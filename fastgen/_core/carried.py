"""What a condition carries: which tokens are real, and which ones of a sample are given.

Whatever is known of single rows travels with their condition, through batches, losses, samplers,
networks and files, as one mapping:

    {"Z": Z, "mask": bool (B, T_x), "cond_mask": bool (B, T_z),      True = real token
             "prefix": x (B, T_x, d), "given": bool (B, T_x)}        True = given token

Z is what the condition is by itself. Either mask may be missing, where nothing is padded; prefix
and given come together or not at all. A mapping with other members, or with Z alone, is a condition
like any other. What the members mean stands in :mod:`fastgen._core.masks` and
:mod:`fastgen._core.prefixes`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["MASKS", "Carried", "bare", "carried_by", "carried_like", "check_kind", "members_of"]

MASKS = ("mask", "cond_mask")
_PREFIX = ("prefix", "given")
# What each member has to be, for messages.
_KINDS = {
    "mask": "a bool Tensor (B, T), True = real token",
    "cond_mask": "a bool Tensor (B, T), True = real token",
    "prefix": "a floating-point Tensor (B, T, d)",
    "given": "a bool Tensor (B, T), True = given token",
}


class Carried(NamedTuple):
    """A condition by its members; None is what it doesn't carry.

    Attributes:
        Z: what the condition is by itself.
        mask, cond_mask: bool (B, T_x) and (B, T_z), the real tokens of samples and conditions.
        prefix: (B, T_x, d), as networks see samples; only its given tokens are looked at.
        given: bool (B, T_x), the tokens of it that are given.
    """

    Z: Any
    mask: Tensor | None = None
    cond_mask: Tensor | None = None
    prefix: Tensor | None = None
    given: Tensor | None = None

    def condition(self) -> Any:
        """The mapping that carries these members; Z itself where there are none."""
        found = {
            name: value
            for name, value in self._asdict().items()
            if name == "Z" or value is not None
        }
        return found if len(found) > 1 else self.Z


def carried_by(cond: Any) -> Carried:
    """The members of a condition. The only reader of the mapping.

    Raises:
        ValueError: a mask that isn't bool (B, T), or a prefix that isn't floating (B, T, d).
    """
    if isinstance(cond, Tensor) or not _is_carrier(cond):
        return Carried(cond)
    for name in members_of(cond):
        check_kind(name, cond[name])
    return Carried(**cond)


def members_of(cond: Any) -> list[str]:
    """The names of what a condition carries beside Z, whatever their kinds."""
    return [name for name in cond if name != "Z"] if _is_carrier(cond) else []


def bare(cond: Any) -> Any:
    """Z of a condition, whatever it carries beside it."""
    return cond["Z"] if _is_carrier(cond) else cond


def carried_like(Z: Any, cond: Any) -> Any:
    """Another condition `Z` of the same samples, with what `cond` carries; where it has masks of
    its own, with the mask of the samples alone, if it lacks one, and with the prefix."""
    own = carried_by(Z)
    theirs = carried_by(cond)
    mask = theirs.mask if own.mask is None else own.mask
    is_masked = own.mask is not None or own.cond_mask is not None
    cond_mask = own.cond_mask if is_masked else theirs.cond_mask
    prefix = theirs[3:] if own.prefix is None else own[3:]
    return Carried(own.Z, mask, cond_mask, *prefix).condition()


def check_kind(name: str, value: Any) -> None:
    """ValueError unless a member of the mapping is a Tensor of its kind."""
    if isinstance(value, Tensor):
        if name == "prefix":
            fits = value.is_floating_point() and value.ndim == 3
        else:
            fits = value.dtype == torch.bool and value.ndim == 2
        if fits:
            return
    got = type(value).__name__
    if isinstance(value, Tensor):
        got = f"{value.dtype} {tuple(value.shape)}"
    raise ValueError(
        f"expected {name} to be {_KINDS[name]}, got {got}; a member of a condition of your own "
        "needs another name"
    )


def _is_carrier(cond: Any) -> bool:
    """Whether a condition is the mapping of this module."""
    if not isinstance(cond, Mapping) or "Z" not in cond or len(cond) < 2:
        return False
    members = set(cond)
    prefixed = sum(name in members for name in _PREFIX)
    return prefixed != 1 and members <= {"Z", *MASKS, *_PREFIX}
