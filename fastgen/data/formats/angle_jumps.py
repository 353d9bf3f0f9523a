"""Channels of recorded episodes that look like angles: they stay within one turn, move by small
steps, and now and then jump by nearly a whole turn, from pi to -pi."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["AngleLike", "angle_like_channels"]

# A whole turn, by the unit that angles may be in.
_TURNS = {"radians": 2 * math.pi, "degrees": 360.0}
# In turns: how far beyond one turn numbers may be by rounding, what is a jump, and what is a step
# of something that moves. Numbers that leap anywhere have steps between the two.
_SLACK = 1e-3
_JUMP = 0.75
_STEP = 0.25


class AngleLike(NamedTuple):
    """A channel that looks like an angle.

    Attributes:
        channel: its number.
        unit: radians or degrees.
        jumps: how often it jumps by about a whole turn.
    """

    channel: int
    unit: str
    jumps: int


def angle_like_channels(rows: Tensor, ends: Sequence[int]) -> list[AngleLike]:
    """The channels of rows (N, d), all finite, that look like angles.

    A channel does if its numbers span one turn at most and lie within one turn of 0, if none of its
    steps is between a quarter and three quarters of a turn, if some are longer, and if each of
    those, less a whole turn, is no longer than twice the longest of the short steps.

    Args:
        rows: of all episodes, one after the other, or the first of them.
        ends: where each episode ends; the step to the next episode is none.
    """
    if len(rows) < 2:
        return []
    rows = rows.double()
    within = torch.ones(len(rows) - 1, dtype=torch.bool)
    starts = [end for end in ends if 0 < end < len(rows)]
    within[torch.tensor(starts, dtype=torch.long) - 1] = False
    found = []
    for channel, numbers in enumerate(rows.unbind(1)):
        steps = (numbers[1:] - numbers[:-1])[within].abs()
        for unit, turn in _TURNS.items():
            jumps = _jumps(numbers / turn, steps / turn)
            if jumps:
                found.append(AngleLike(channel, unit, jumps))
    return found


def _jumps(numbers: Tensor, steps: Tensor) -> int:
    """How many of the steps of a channel, in turns, are jumps of an angle; 0 if it looks like
    none."""
    low, high = float(numbers.min()), float(numbers.max())
    if high - low > 1 + _SLACK or max(-low, high) > 1 + _SLACK:
        return 0
    is_jump = steps >= _JUMP
    short = steps[~is_jump]
    if not bool(is_jump.any()) or not len(short):
        return 0
    longest = float(short.max())
    off = float((steps[is_jump] - 1).abs().max())
    return int(is_jump.sum()) if longest < _STEP and off <= 2 * longest else 0
