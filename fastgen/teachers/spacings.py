"""Spacings: the times at which a converted teacher is called when it is sampled.

A teacher that predicts noise finds x0 in (x_s - sigma eps) / alpha, so its errors in x0 grow with
sigma / alpha; equal steps in RF time would begin where that ratio is largest and take most of it in
one step. Its samplers count rows of its table instead, N in all, K of them called:

| spacing   | row of call i = 0 .. K-1                              |
|-----------|-------------------------------------------------------|
| trailing  | N - i N / K - 1                                       |
| linspace  | (N - 1) (1 - i / (K - 1))                             |
| leading   | (K - 1 - i) floor(N / K) + offset                     |
| log_snr   | equal steps of log(sigma / alpha) from last to first  |
| time      | equal steps of RF time, from the last to the data     |

After the last call comes the data, t = 0. Rows are rounded to whole ones, unless there are fewer
than calls.

References:
    Song et al., DDIM, 2020, arXiv:2010.02502. Lin et al., Common Diffusion Noise Schedules and
    Sample Steps are Flawed, 2023, arXiv:2305.08891 (names of the spacings). Lu et al., DPM-Solver,
    2022, arXiv:2206.00927 (log-SNR).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from .._core.checks import check_choice
from .clocks import Clock, TableClock

__all__ = ["SPACINGS", "TRUSTED_NOISE_TIME", "Spacing", "parse_spacing"]

SPACINGS = ("time", "log_snr", "leading", "linspace", "trailing")
_OF_ROWS = ("leading", "linspace", "trailing")
# Up to this RF time t a network that predicts noise is trusted: x0 has its errors t / (1 - t)
# times, here 19 times.
TRUSTED_NOISE_TIME = 0.95
# Equal steps of log-SNR need an end; below this noise ratio a single step is left to the data.
_LEAST_RATIO = 1e-2


@dataclass(frozen=True)
class Spacing:
    """The times of a clock at which a teacher is called.

    Args:
        clock: its clock.
        name: of `SPACINGS`, any but "time".
        last: the largest RF time at which it is asked, if the clock goes as far.
        offset: of "leading" only: added to every row.
    """

    clock: Clock
    name: str
    last: float
    offset: int = 0

    @property
    def by_rows(self) -> bool:
        """Whether it counts the rows of a table."""
        return self.name in _OF_ROWS

    def times(self, calls: int) -> list[float]:
        """`calls` strictly decreasing RF times in (0, 1], then 0."""
        if isinstance(self.clock, TableClock) and self.by_rows:
            found = [self._time_of_row(row) for row in self._rows(calls, len(self.clock.betas))]
        else:
            found = self._in_log_snr(calls)
        return [*found, 0.0]

    def _rows(self, calls: int, rows: int) -> list[float]:
        """The rows of `calls` calls, decreasing; a row below 0 lies between row 0 and the data."""
        first = self._last_row(rows)
        # More calls than rows, or a table that isn't used up to its end: parts of rows.
        if calls > rows or first < rows - 1:
            return [(first + 1.0) * (1.0 - i / calls) - 1.0 for i in range(calls)]
        if self.name == "leading":
            top = rows - 1 - (calls - 1) * (rows // calls)
            offset = min(self.offset, top)
            return [(calls - 1 - i) * (rows // calls) + offset for i in range(calls)]
        if self.name == "linspace" and calls > 1:
            return [round((rows - 1) * (1.0 - i / (calls - 1))) for i in range(calls)]
        return [round(rows - i * rows / calls) - 1 for i in range(calls)]

    def _last_row(self, rows: int) -> float:
        """The last row within the times that the teacher is asked at; part of one if need be."""
        ratio = self.last / max(1.0 - self.last, 1e-12)
        if ratio >= self.clock.ratios[1] * (1.0 - 1e-9):
            return rows - 1.0
        return float(self.clock.time_of_ratio(torch.tensor([ratio], dtype=torch.float64)))

    def _time_of_row(self, row: float) -> float:
        alpha, sigma = (
            float(c)
            for c in self.clock.coefficients(torch.tensor(max(row, 0.0), dtype=torch.float64))
        )
        t = sigma / (alpha + sigma)
        return t if row >= 0 else t * (1.0 + row)

    def _in_log_snr(self, calls: int) -> list[float]:
        low = max(self.clock.ratios[0], _LEAST_RATIO)
        high = min(self.last / max(1.0 - self.last, 1e-12), self.clock.ratios[1])
        levels = [
            math.log(high) + (math.log(low) - math.log(high)) * i / max(calls - 1, 1)
            for i in range(calls)
        ]
        return [1.0 / (1.0 + math.exp(-level)) for level in levels]


def parse_spacing(
    spacing: object, clock: Clock, *, predicts_noise: bool, clipped: bool
) -> Spacing | None:
    """The spacing of a teacher; None for equal steps in RF time.

    Args:
        spacing: a name of `SPACINGS`, `{name: leading, offset: 1}`, or None: "trailing" for a table
            of betas that predicts noise, else "time".
        clock: of the teacher.
        predicts_noise: whether its answer is eps up to a factor.
        clipped: whether its x0 is clipped, so that it can be asked at its last row. One that
            predicts noise and isn't clipped is asked up to `TRUSTED_NOISE_TIME`, unless its rows
            are asked for by name.

    Raises:
        ValueError: an unknown name, rows of a path that has none, an offset that isn't a whole
            number >= 0 or isn't of "leading".
    """
    usable = 1.0 if clipped or not predicts_noise else TRUSTED_NOISE_TIME
    if spacing is None:
        if not (predicts_noise and isinstance(clock, TableClock)):
            return None
        return Spacing(clock, "trailing", usable)
    arguments: dict[str, Any] = {"name": spacing}
    if isinstance(spacing, Mapping):
        arguments = dict(spacing)
    name = str(arguments.pop("name", None))
    check_choice("spacing", name, SPACINGS)
    offset = arguments.pop("offset", 0)
    is_whole = isinstance(offset, int) and not isinstance(offset, bool) and offset >= 0
    if arguments or not is_whole or (offset and name != "leading"):
        raise ValueError(
            "expected spacing as a name, or leading with an offset >= 0: {name: leading, offset: "
            f"1}}, got {spacing!r}"
        )
    if name in _OF_ROWS and not isinstance(clock, TableClock):
        raise ValueError(
            f"expected spacing time or log_snr for the path {clock.describe()['name']!r}, which "
            f"has no rows, got {name!r}"
        )
    if name == "time":
        return None
    return Spacing(clock, name, 1.0 if name in _OF_ROWS else usable, offset)
