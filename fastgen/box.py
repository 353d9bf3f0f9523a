"""A box of numbers: the range that data are declared to lie in, and samples are clamped to.

Pixels lie in [-1, 1]; a network that was trained on them answers beyond. With lo and hi in original
units, for all channels or one for each,

    clamp(x) = min(max(x, lo), hi)

is the nearest point of the box, so it brings a sample nearer to every datum.

It is the last thing that is done to a sample, after the last call and the normaliser's inverse.
Between the rungs nothing is clamped: a student is trained on the states of its own rollout as they
are. Nor is anything in a loss: a clamped number has no gradient, and what lies outside could not be
brought back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["Box"]

# A matrix of a group may be off by its rounding.
_ROUNDING = 1e-6

Limits = float | Sequence[float]


class Box:
    """All x (..., d) with lo <= x <= hi.

    Args:
        lo, hi: a number for all channels, or one for each of d. lo < hi.

    Attributes:
        lo, hi: (1,) or (d,), float64.

    Raises:
        ValueError: what is no number or not finite, lists of different lengths, lo >= hi.
    """

    def __init__(self, lo: Limits, hi: Limits) -> None:
        lows = _numbers(lo)
        highs = _numbers(hi)
        if len(lows) != len(highs) and 1 not in (len(lows), len(highs)):
            raise ValueError(
                f"expected as many numbers in lo as in hi, got {len(lows)} and {len(highs)}"
            )
        if not all(math.isfinite(number) for number in (*lows, *highs)):
            raise ValueError(f"expected finite numbers as [lo, hi], got {[lo, hi]}")
        ends = [torch.tensor(numbers, dtype=torch.float64) for numbers in (lows, highs)]
        self.lo, self.hi = torch.broadcast_tensors(*ends)
        if bool((self.lo >= self.hi).any()):
            raise ValueError(f"expected lo < hi in every channel, got {[lo, hi]}")

    @classmethod
    def from_state(cls, state: Any) -> Box:
        """The box of `[lo, hi]`, as configs and exported folders spell it; inverse of `state`.

        Raises:
            ValueError: anything else.
        """
        if not isinstance(state, list | tuple) or len(state) != 2:
            raise ValueError(f"expected two entries, [lo, hi], got {state!r}")
        return cls(*state)

    def state(self) -> list[Any]:
        """`[lo, hi]`, each a number, or a list of one for each channel."""
        if len(self.lo) == 1:
            return [self.lo.item(), self.hi.item()]
        return [self.lo.tolist(), self.hi.tolist()]

    def check_channels(self, channels: int) -> None:
        """Refuse data of another number of channels, the length of their last axis.

        Raises:
            ValueError: there are lists, of another length.
        """
        if len(self.lo) not in (1, channels):
            raise ValueError(
                f"expected numbers for {channels} channels, or one for all, got {len(self.lo)}"
            )

    def clamp(self, x: Tensor) -> Tensor:
        """The point of the box nearest to x (..., d); its shape, dtype and device. NaN and infinity
        stay, so that a network that breaks is seen."""
        lo, hi = self._ends(x)
        inside = torch.minimum(torch.maximum(x, lo), hi)
        return torch.where(torch.isfinite(x), inside, x)

    def contains(self, x: Tensor) -> Tensor:
        """Which rows of x (N, ..., d) lie in the box whole, as their dtype can say it: (N,) of
        bool."""
        lo, hi = self._ends(x)
        return ((lo <= x) & (x <= hi)).flatten(1).all(1)

    def is_kept_by(self, matrix: Tensor) -> bool:
        """Whether an orthogonal matrix (n d, n d), acting on n points at once, commutes with
        `clamp`.

        That is so if it permutes numbers and changes their signs, and maps the box to itself. Any
        other turns the box, and clamping takes off what lies in another direction.
        """
        size = matrix.double().abs()
        if not bool(((size < _ROUNDING) | ((size - 1.0).abs() < _ROUNDING)).all()):
            return False
        centre = (self.lo + self.hi) / 2
        half = (self.hi - self.lo) / 2
        repeats = len(matrix) // len(centre)
        centre = centre.repeat(repeats)
        half = half.repeat(repeats)
        slack = _ROUNDING * float(half.max())
        moved = (matrix.double() @ centre - centre).abs().max()
        widened = (size @ half - half).abs().max()
        return bool(moved <= slack) and bool(widened <= slack)

    def _ends(self, x: Tensor) -> tuple[Tensor, Tensor]:
        # Not every device has float64, so they are rounded to the dtype before they are moved.
        return self.lo.to(x.dtype).to(x.device), self.hi.to(x.dtype).to(x.device)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Box) and self.state() == other.state()

    def __hash__(self) -> int:
        return hash(repr(self.state()))

    def __repr__(self) -> str:
        lo, hi = self.state()
        return f"Box({lo}, {hi})"


def _numbers(value: Any) -> list[float]:
    """A number or a list of numbers as floats."""
    listed = value if isinstance(value, list | tuple) else [value]
    numbers = [n for n in listed if isinstance(n, int | float) and not isinstance(n, bool)]
    if not listed or len(numbers) != len(listed):
        raise ValueError(f"expected a number, or a list with one for each channel, got {value!r}")
    try:
        return [float(number) for number in numbers]
    except OverflowError as error:
        raise ValueError(
            "expected finite numbers as [lo, hi], got one beyond all floats"
        ) from error
