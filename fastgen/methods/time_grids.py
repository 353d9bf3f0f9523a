"""Time grids along the teacher's trajectories, on which the student's rungs are points.

A student is trained at the very floats that its sampler calls it with, so every grid that a method
solves or compares on holds them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from .._core.checks import check_choice, check_count
from ..flow_matching import check_t_list
from ..samplers.student import SAMPLE_TYPES

__all__ = ["consistency_intervals", "consistency_times", "rung_grid", "rung_shares"]


def rung_grid(
    t_list: Sequence[float],
    calls: int = 16,
    *,
    t_max: float = 1.0,
    times: Sequence[float] | None = None,
) -> tuple[list[float], list[int]]:
    """A time grid from `t_max` to 0 on which every rung but the first is a point.

    Each segment between neighbouring rungs is cut into equal intervals, at least one, in number
    proportional to its length. The first segment starts at `t_max`, where the teacher starts.

    Args:
        t_list: the student's trajectory [t_1 > ... > 0.0].
        calls: number of intervals wanted; the grid has about as many, never fewer than there are
            rungs.
        t_max: the teacher's first time, in [t_1, 1].
        times: the teacher's own grid, decreasing to 0, in place of an even one. It begins in
            [t_1, 1] and says where; intervals are then equal as it counts them.

    Returns:
        `(grid, index)`: decreasing floats, and the place in the grid of each entry of `t_list`:
        `grid[index[k]] == t_list[k]` exactly for 0 < k; the first rung's place is 0.

    Raises:
        ValueError: for calls < 1, an invalid `t_list`, or a first time outside [t_1, 1].
    """
    rungs = check_t_list(t_list)
    check_count("calls", calls)
    first = t_max if times is None else times[0]
    if not rungs[0] <= first <= 1.0:
        raise ValueError(f"expected t_max in [t_list[0], 1] = [{rungs[0]}, 1], got {first}")
    knots = [first, *rungs[1:]]
    grid = [first]
    index = [0]
    for t, s in zip(knots, knots[1:], strict=False):
        if times is None:
            count = max(1, round(calls * (t - s) / first))
            grid += [t + (s - t) * i / count for i in range(1, count)] + [s]
        else:
            grid += _between(times, t, s)
        index.append(len(grid) - 1)
    return grid, index


def rung_shares(t_lists: Iterable[Sequence[float]]) -> list[float]:
    """How often each rung of a student of several numbers of calls is drawn, where all numbers are
    drawn equally often and then the rungs of one.

    Args:
        t_lists: of each number, [t_1 > ... > 0.0], one or more.

    Returns:
        a number for each time of their union but 0, largest time first; they add up to 1.
    """
    own = [tuple(t_list[:-1]) for t_list in t_lists]
    times = sorted({t for rungs in own for t in rungs}, reverse=True)
    return [sum(1 / len(rungs) for rungs in own if t in rungs) / len(own) for t in times]


def _between(times: Sequence[float], t: float, s: float) -> list[float]:
    """The points of a segment from `t` to `s`, without `t`: equal intervals as `times` count."""
    start = _place(times, t)
    length = _place(times, s) - start
    count = max(1, round(length))
    inside = [_at_place(times, start + length * i / count) for i in range(1, count)]
    return [*inside, s]


def _place(times: Sequence[float], t: float) -> float:
    """Where `t` stands among decreasing `times`: i at times[i], linear between."""
    after = next(i for i, time in enumerate(times) if time <= t)
    if after == 0 or times[after] == t:
        return float(after)
    before = times[after - 1]
    return after - (t - times[after]) / (before - times[after])


def _at_place(times: Sequence[float], place: float) -> float:
    """The time at such a place: the inverse of `_place`."""
    before = min(math.floor(place + 1e-9), len(times) - 1)
    share = max(place - before, 0.0)
    if share < 1e-9:
        return times[before]
    return times[before] + share * (times[before + 1] - times[before])


def consistency_intervals(progress: float, *, first: int = 4, last: int = 16) -> int:
    """Number of intervals of the time grid: `first`, doubled at equal parts of the training, at
    most `last`.

    With D = ceil(log2(last / first)) doublings, N = min(last, first 2^floor((D + 1) progress)); at
    the end N = last.

    Args:
        progress: part of the training that is done, in [0, 1].
        first, last: 1 <= first <= last.

    Raises:
        ValueError: for a progress outside [0, 1], or counts other than 1 <= first <= last.
    """
    check_count("first", first)
    if check_count("last", last) < first:
        raise ValueError(f"expected first <= last, got first={first}, last={last}")
    if not 0.0 <= progress <= 1.0:
        raise ValueError(f"expected progress in [0, 1], got {progress}")
    doublings = math.ceil(math.log2(last / first))
    return min(last, first * 2 ** min(doublings, math.floor((doublings + 1) * progress)))


def consistency_times(
    n: int,
    progress: float,
    t_list: Sequence[float],
    *,
    sample_type: str = "sde",
    first: int = 4,
    last: int = 16,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw `n` intervals (s, t) of a grid from t_list[0] to 0, uniformly, each with the `end` of
    its map.

    The grid is that of `rung_grid`: every rung is a point of it. So each rung, the first one
    included, is trained at the very float the sampler calls it with.

    Args:
        n: number of draws.
        progress: part of the training that is done, in [0, 1].
        t_list: the student's trajectory [t_1 > ... > 0.0].
        sample_type: "sde": end = 0; "ode": end = the next rung below t.
        first, last: intervals at the start and at the end of the training, see
            `consistency_intervals`. Each segment between rungs has at least one.
        generator: source of the draws.

    Returns:
        `(t, s, end)`: float64 on the CPU, shape (n,), t_1 >= t > s >= end >= 0.

    Raises:
        ValueError: for an invalid `t_list`, an unknown `sample_type`, and as
            `consistency_intervals`.
    """
    check_choice("sample_type", sample_type, SAMPLE_TYPES)
    times = check_t_list(t_list)
    grid, index = rung_grid(
        times, consistency_intervals(progress, first=first, last=last), t_max=times[0]
    )
    points = torch.tensor(grid, dtype=torch.float64)
    ends = torch.zeros(len(grid) - 1, dtype=torch.float64)
    if sample_type == "ode":
        for start, stop in zip(index, index[1:], strict=False):
            ends[start:stop] = points[stop]
    drawn = torch.randint(len(grid) - 1, (check_count("n", n),), generator=generator)
    return points[drawn], points[drawn + 1], ends[drawn]
