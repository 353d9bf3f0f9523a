"""Where windows lie in their episodes, and windows that are cut when they are taken."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from .._core.made_rows import MadeRows, RowMaker, blocks_of

__all__ = ["CutRows", "PadMarks", "Places", "places_of"]

# Rows of windows that are counted at once.
_BLOCK = 1 << 19


@dataclass(frozen=True)
class Places:
    """The current rows of windows, of one episode after another.

    Attributes:
        start, last: first and last row of each episode that has windows, (E,).
        first: the current row of its first window, (E,).
        ends: for each such episode the number of windows up to its end, (E,).
        numbers: of these episodes, (E,).
        stride: rows from one window to the next.
    """

    start: Tensor
    last: Tensor
    first: Tensor
    ends: Tensor
    numbers: Tensor
    stride: int

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def at(self, windows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Current row, first and last row of the episode of some windows, (n,) each."""
        episode = torch.searchsorted(self.ends, windows, right=True)
        before = torch.where(episode > 0, self.ends[episode - 1], 0)
        t = self.first[episode] + (windows - before) * self.stride
        return t, self.start[episode], self.last[episode]

    @cached_property
    def episodes(self) -> Tensor:
        """The number of each window's episode, (N,)."""
        counts = self.ends.diff(prepend=self.ends.new_zeros(1))
        return self.numbers.repeat_interleave(counts)


def places_of(
    ends: list[int],
    *,
    obs_horizon: int,
    horizon: int,
    stride: int,
    before: int,
    after: int,
    padded: bool,
) -> Places:
    """The windows of episodes, given the row after the last one of each.

    Args:
        before, after: how far a window may reach beyond its episode.
        padded: an episode in which no window fits has one all the same, as late as may be.
    """
    bounds = torch.tensor(list(pairwise([0, *ends])))
    start, stop = bounds.unbind(1)
    first = start + (obs_horizon - 1 - before)
    room = stop - horizon + 1 + after - first
    counts = torch.div(room + stride - 1, stride, rounding_mode="floor").clamp(min=0)
    if padded:
        alone = counts == 0
        first = torch.where(alone, torch.minimum(first, stop - 1), first)
        counts = torch.where(alone, 1, counts)
    used = counts > 0
    numbers = torch.arange(len(ends))[used]
    counts = counts[used].cumsum(0)
    return Places(start[used], stop[used] - 1, first[used], counts, numbers, stride)


@dataclass(frozen=True)
class CutRows(RowMaker):
    """Windows (N, T, d) of rows (M, d): at the current row t those from t + `offset` on, T of them.
    Beyond the ends of its episode the first or the last row is repeated.

    Attributes:
        rows: of all episodes, (M, d).
        places: of all windows.
        offset, length: of a window, T rows.
        chosen: the windows that are meant, (N,); None: all.
    """

    rows: Tensor
    places: Places
    offset: int
    length: int
    chosen: Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        count = len(self.places) if self.chosen is None else len(self.chosen)
        return (count, self.length, self.rows.shape[1])

    @property
    def dtype(self) -> torch.dtype:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.rows.dtype

    def take(self, rows: Tensor) -> Tensor:
        return self.rows[self._places(rows)]

    def part(self, rows: Tensor) -> CutRows:
        return replace(self, chosen=rows if self.chosen is None else self.chosen[rows])

    def vectors(
        self, step: int | None = None, mask: Tensor | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Each row of the episodes once, with the number of windows that hold it."""
        counts = self._counts(step, mask)
        start = 0
        for block in blocks_of(self.rows):
            found = counts[start : start + len(block)]
            start += len(block)
            used = found > 0
            if bool(used.any()):
                yield block[used], found[used]

    def contents(self) -> Iterator[Tensor]:
        if isinstance(self.rows, MadeRows):
            yield from self.rows.maker.contents()
        else:
            yield self.rows
        places = self.places
        yield torch.tensor([places.stride, self.offset, self.length])
        yield from (places.start, places.last, places.first, places.ends)
        if self.chosen is not None:
            yield self.chosen

    def reach(self, windows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The rows that windows would be made of if episodes had no end, (n, T); first and last row
        of their episodes, (n, 1) each."""
        chosen = windows if self.chosen is None else self.chosen[windows]
        t, first, last = self.places.at(chosen)
        steps = torch.arange(self.offset, self.offset + self.length)
        return t[:, None] + steps, first[:, None], last[:, None]

    def _places(self, windows: Tensor) -> Tensor:
        """The rows that windows are made of, (n, T)."""
        rows, first, last = self.reach(windows)
        return rows.clamp(min=first, max=last)

    def _counts(self, step: int | None, mask: Tensor | None) -> Tensor:
        """How many windows hold each row of the episodes, at one step or at any, where a mask
        (N, T) says that it is real: (M,)."""
        counts = torch.zeros(len(self.rows), dtype=torch.int32)
        at_once = max(1, _BLOCK // self.length)
        for start in range(0, self.shape[0], at_once):
            windows = torch.arange(start, min(start + at_once, self.shape[0]))
            places = self._places(windows)
            real = None if mask is None else mask[start : start + at_once]
            if step is not None:
                places = places[:, step]
                real = None if real is None else real[:, step]
            places = places.flatten() if real is None else places[real]
            if len(places):
                least = int(places.min())
                found = torch.bincount(places - least)
                counts[least : least + len(found)] += found.int()
        return counts


class PadMarks(RowMaker):
    """Which rows of windows lie outside their episode, (N, T) of bool."""

    def __init__(self, windows: CutRows) -> None:
        self.windows = windows
        self.shape = windows.shape[:2]
        self.dtype = torch.bool

    def take(self, rows: Tensor) -> Tensor:
        reached, first, last = self.windows.reach(rows)
        return (reached > last) | (reached < first)

    def part(self, rows: Tensor) -> RowMaker:
        return PadMarks(self.windows.part(rows))

    def contents(self) -> Iterator[Tensor]:
        return self.windows.contents()
