"""Spreads of channels that are not what they seem: set by a few rows, or by noise.

Data are normalised by the standard deviation s of each channel. One row of 1e6 among numbers of
size 1 makes s so large that networks see all other rows alike. A channel of .3 +- 1e-6 has s =
1e-6, and its noise becomes as large as any other channel. Beside s stands what outliers don't
change,

    r = (q_90 - q_10) / 2.563,

with the quantiles of the channel's numbers; r = s for a normal law.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .._core.seeds import draw_rows, generator_for
from ..normalizer import Normalizer, is_constant
from .precision import channels

__all__ = ["NearConstant", "Outliers", "near_constants", "outliers"]

# q_90 - q_10 of a standard normal law.
_WIDTH = 2.563
# Outliers make s this many times r, and are this many r from the median.
_INFLATED = 3.0
_FAR = 10.0
# What more rows than this have in common is no outlier; in a channel that is constant but for some
# rows, such as one for a rare event, the share is smaller.
_MOST = 0.1
_MOST_OF_CONSTANT = 0.001
# A channel whose scale is below the first share of its own size, or below the second of the largest
# scale beside it, is almost constant.
_LITTLE = 1e-4
_LITTLE_BESIDE = 1e-7
# Numbers that quantiles are taken of, about and at most, and rows that are looked at at once.
_SAMPLE = 100_000
_LARGEST_SAMPLE = 1_000_000
_BLOCK = 4096


@dataclass(frozen=True)
class Outliers:
    """Rows that decide the scale of a channel.

    Attributes:
        channel: its number; None where there is one for all numbers of a row.
        rows: of the data given.
        farthest: largest distance of their numbers from the median.
        scale: standard deviation of the channel, s.
        robust: r, or 0 for a channel that is constant but for these rows.
    """

    channel: int | None
    rows: list[int]
    farthest: float
    scale: float
    robust: float


@dataclass(frozen=True)
class NearConstant:
    """A channel whose small changes are made large.

    Attributes:
        channel: its number.
        mean, scale: of its numbers.
    """

    channel: int
    mean: float
    scale: float


def outliers(*parts: Tensor) -> list[Outliers]:
    """The channels whose scale a few rows decide.

    Args:
        parts: of the data, (N, ...) each, as if they were one after the other. They are not put
            together, since a copy of the data may be more than fits. Channels as
            `precision.channels`.
    """
    found = []
    rows = sum(map(len, parts))
    for channel, values in _by_row(parts):
        median, robust = _robust(values)
        scale = _scale(values)
        # A number counts as the median's own if float32 can't tell the two apart.
        alike = 1e-6 * abs(median)
        bound = _FAR * robust if robust > 0 else alike
        distance = torch.cat([(block.double() - median).abs().amax(1) for block in _blocks(values)])
        far = (distance > bound).nonzero().flatten()
        most = max(1.0, (_MOST if robust > 0 else _MOST_OF_CONSTANT) * rows)
        if scale > _INFLATED * robust and 0 < len(far) <= most:
            farthest = float(distance.max())
            found.append(Outliers(channel, far.tolist(), farthest, scale, robust))
    return found


def near_constants(data: Tensor, normalizer: Normalizer) -> list[NearConstant]:
    """The channels of trajectories (N, T, d) that hardly change and are normalised all the same."""
    scales = normalizer.scale.norm(dim=1)
    columns = channels(data)
    constant = is_constant(columns)
    sizes = torch.stack([column.abs().amax() for column in columns.unbind(1)]).double()
    # Where no mean is taken off, the scale is not of changes.
    little = (scales < _LITTLE * sizes) & (normalizer.mean != 0)
    little |= scales < _LITTLE_BESIDE * scales.max()
    return [
        NearConstant(k, float(columns[:, k].double().mean()), float(scales[k]))
        for k in (little & ~constant).nonzero().flatten().tolist()
    ]


def _by_row(parts: Sequence[Tensor]) -> Iterator[tuple[int | None, list[Tensor]]]:
    """Each channel with its numbers in each part, (N, numbers of a row)."""
    if parts[0].ndim not in (2, 3):
        yield None, [part.reshape(len(part), -1) for part in parts]
        return
    for channel in range(parts[0].shape[-1]):
        yield channel, [part[..., channel].reshape(len(part), -1) for part in parts]


def _blocks(values: Sequence[Tensor]) -> Iterator[Tensor]:
    for part in values:
        yield from part.split(_BLOCK)


def _robust(values: Sequence[Tensor]) -> tuple[float, float]:
    """Median and r of all numbers, or of some drawn from each part by its size."""
    share = min(1.0, _SAMPLE / sum(part.numel() for part in values))
    drawn = []
    for part in values:
        rows = max(1, round(share * len(part))) if share < 1 else len(part)
        drawn.append(part[draw_rows(len(part), rows, generator_for(0, "quantiles"))].reshape(-1))
    numbers = torch.cat(drawn)
    if len(numbers) > _LARGEST_SAMPLE:
        pick = draw_rows(len(numbers), _LARGEST_SAMPLE, generator_for(0, "quantiles"))
        numbers = numbers[pick]
    at = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    low, median, high = torch.quantile(numbers.double(), at).tolist()
    return median, (high - low) / _WIDTH


def _scale(values: Sequence[Tensor]) -> float:
    """Standard deviation of all numbers."""
    n = sum(part.numel() for part in values)
    mean = sum(float(block.double().sum()) for block in _blocks(values)) / n
    squares = sum(float((block.double() - mean).square().sum()) for block in _blocks(values))
    return (squares / n) ** 0.5
