"""Prefixes: how many waypoints a trajectory may be given at its beginning."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from .._core.made_rows import blocks_of
from .._core.masks import token_mask
from .base import Config

__all__ = ["PrefixKeys", "prefix_tokens"]


class PrefixKeys(Config):
    """The keys of a loop that trains with prefixes."""

    prefix_max: int = Field(
        default=0,
        ge=0,
        description="trajectories: most waypoints that are given at the beginning, as many as are "
        "drawn for each sample, in whole tokens of data.pack and fewer than are real; 0 = none",
    )


def prefix_tokens(prefix_max: int, data: Any) -> int:
    """The most tokens that are given of trajectories `data`.

    Args:
        prefix_max: in waypoints.
        data: the training set, with `X` (N, T_x, d_x) and waypoints per token `pack`.

    Raises:
        ValueError: samples that are no trajectories, tokens given in part, or all real ones of the
            longest of them.
    """
    if not prefix_max:
        return 0
    if data.X.ndim != 3:
        raise ValueError(
            "expected trajectories X (N, T_x, d_x) with train.prefix_max, got X "
            f"{tuple(data.X.shape)}; leave it out"
        )
    pack = getattr(data, "pack", 1)
    mask = token_mask(data.network_inputs()[1])
    if mask is None:
        waypoints = data.X.shape[1]
    else:
        waypoints = max(int(block.sum(1).max()) for block in blocks_of(mask)) * pack
    if prefix_max % pack or prefix_max >= waypoints:
        of = "" if mask is None else " of the longest trajectory"
        raise ValueError(
            f"expected train.prefix_max below the {waypoints} waypoints{of}, a multiple of "
            f"data.pack={pack}, got {prefix_max}"
        )
    return prefix_max // pack
