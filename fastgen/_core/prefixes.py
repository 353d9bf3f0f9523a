"""Prefixes: tokens of a sample that are given, carried by its condition.

The first k tokens of a trajectory may be known: what a robot is about to do, a path to go on. They
travel with the condition, through batches, losses and samplers, as

    {"Z": Z, "prefix": x (B, T, d), "given": bool (B, T)},        True = given,

x as networks see it; what stands in it beyond the given tokens is not looked at. Z is what the
condition is without a prefix. A mapping with other members than these three is a condition like any
other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .tensors import expand_like

__all__ = [
    "cond_without_prefix",
    "has_prefix",
    "open_share",
    "over_open_tokens",
    "prefix_of",
    "with_prefix",
]

_MEMBERS = {"Z", "prefix", "given"}


def has_prefix(cond: Any) -> bool:
    """Whether a condition carries a prefix."""
    return isinstance(cond, Mapping) and set(cond) == _MEMBERS


def with_prefix(Z: Any, prefix: Tensor, lengths: Tensor) -> dict[str, Any]:
    """The condition Z with the first `lengths` (B,) tokens of `prefix` (B, T, d) given."""
    tokens = torch.arange(prefix.shape[1], device=prefix.device)
    given = tokens < lengths.to(prefix.device)[:, None]
    return {"Z": Z, "prefix": prefix, "given": given}


def prefix_of(cond: Any) -> tuple[Any, Tensor | None, Tensor | None]:
    """(Z, prefix, given) of a condition; None for both where it carries none."""
    if not has_prefix(cond):
        return cond, None, None
    return cond["Z"], cond["prefix"], cond["given"]


def cond_without_prefix(cond: Any) -> Any:
    """Z of a condition."""
    return prefix_of(cond)[0]


def open_share(cond: Any) -> Tensor | None:
    """The share (B,) of tokens that are not given, > 0; None without a prefix."""
    given = prefix_of(cond)[2]
    if given is None:
        return None
    return 1.0 - given.double().mean(1)


def over_open_tokens(residual: Tensor, cond: Any) -> Tensor:
    """r sqrt(T / (T - k)), whose mean square over all tokens is that of r (B, T, d) over those that
    are not given, where r is 0 at the k given ones; r itself without a prefix."""
    share = open_share(cond)
    if share is None:
        return residual
    return residual * expand_like(share.rsqrt().to(residual), residual)
