"""Prefixes: tokens of a sample that are given, carried by its condition.

The first k tokens of a trajectory may be known: what a robot is about to do, a path to go on. They
travel with the condition (:mod:`fastgen._core.carried`) as `prefix` x (B, T, d), as networks see
samples, and `given` (B, T), True = given; what stands in the prefix beyond the given tokens is not
looked at. Of a padded sample the first k real tokens are given. The other real tokens are open:
what is sampled, and what losses are means over.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .carried import carried_by, members_of
from .made_rows import MadeRows, made_of, zipped_rows
from .masks import mask_of_lengths
from .tensors import expand_like

__all__ = [
    "check_no_prefix",
    "cond_without_prefix",
    "drawn_lengths",
    "has_prefix",
    "open_share",
    "open_tokens",
    "over_open_tokens",
    "pinned",
    "prefix_of",
    "with_prefix",
]


def has_prefix(cond: Any) -> bool:
    """Whether a condition carries a prefix."""
    return "prefix" in members_of(cond)


def with_prefix(cond: Any, prefix: Tensor, lengths: Tensor) -> dict[str, Any]:
    """A condition with the first `lengths` (B,) tokens of `prefix` (B, T, d) given; with masks, the
    first real ones. Of rows that are made when they are taken, so is what is given."""
    found = carried_by(cond)
    lengths = lengths.to(prefix.device)
    if found.mask is not None:
        given = zipped_rows(_first_real, found.mask, lengths)
    else:
        tokens = prefix.shape[1]
        of_rows = made_of if isinstance(prefix, MadeRows) else zipped_rows
        given = of_rows(lambda lengths: mask_of_lengths(lengths, tokens), lengths)
    return found._replace(prefix=prefix, given=given).condition()


def _first_real(mask: Tensor, lengths: Tensor) -> Tensor:
    """The first `lengths` (B,) tokens that a mask (B, T) calls real: bool (B, T)."""
    return mask & (mask.cumsum(1) <= lengths[:, None])


def prefix_of(cond: Any) -> tuple[Any, Tensor | None, Tensor | None]:
    """(the condition without its prefix, prefix, given); None for both where it carries none."""
    found = carried_by(cond)
    if found.prefix is None:
        return cond, None, None
    return found._replace(prefix=None, given=None).condition(), found.prefix, found.given


def cond_without_prefix(cond: Any) -> Any:
    """A condition without its prefix."""
    return prefix_of(cond)[0]


def drawn_lengths(uniform: Tensor, most: int, mask: Tensor) -> Tensor:
    """Whole numbers (B,) of tokens to be given, all in 0..min(most, real tokens - 1) equally often;
    of a mask whose rows are made when they are taken, numbers that are, too.

    Args:
        uniform: uniform in [0, 1), (B,).
        most: of a sample without padding.
        mask: bool (B, T), True = real token.
    """

    def drawn(uniform: Tensor, mask: Tensor) -> Tensor:
        limits = (mask.sum(1).to(uniform.device) - 1).clamp(0, most)
        return (uniform.double() * (limits + 1)).long().clamp(max=limits)

    return zipped_rows(drawn, uniform, mask)


def pinned(x: Tensor, cond: Any) -> Tensor:
    """Samples x (B, T, ...) with the very prefix of their condition at its given tokens, which get
    no gradient; `x` itself without a prefix."""
    found = carried_by(cond)
    if found.prefix is None or found.given is None:
        return x
    return torch.where(found.given[..., None], found.prefix.to(x), x)


def check_no_prefix(cond: Any, what: str) -> None:
    """Refuse given tokens in a loss that doesn't know them; `what` it is of, for people.

    Raises:
        ValueError: the condition carries a prefix.
    """
    if has_prefix(cond):
        raise ValueError(
            f"expected a condition without a prefix for {what}, got one; VSD, KD and flow "
            "matching know given tokens"
        )


# ---- Means over open tokens ----------------------------------------------------------------------


def open_tokens(cond: Any, mask: Tensor | None = None) -> Tensor | None:
    """Which tokens (B, T) of samples are real and not given: what losses are means over; None: all.

    Args:
        cond: condition of the samples.
        mask: of the real ones, in place of that of the condition; None: that one.
    """
    found = carried_by(cond)
    mask = found.mask if mask is None else mask
    if found.given is None:
        return mask
    return ~found.given if mask is None else mask & ~found.given


def open_share(cond: Any) -> Tensor | None:
    """The share (B,) of real tokens that are not given, > 0; None without a prefix."""
    found = carried_by(cond)
    if found.given is None:
        return None
    if found.mask is None:
        return 1.0 - found.given.double().mean(1)
    return 1.0 - found.given.double().sum(1) / found.mask.double().sum(1)


def over_open_tokens(residual: Tensor, cond: Any) -> Tensor:
    """r sqrt(T / (T - k)), whose mean square over all T real tokens is that of r (B, T, d) over
    those that are not given, where r is 0 at the k given ones; r itself without a prefix."""
    share = open_share(cond)
    if share is None:
        return residual
    return residual * expand_like(share.rsqrt().to(residual), residual)
