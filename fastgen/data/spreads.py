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
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .._core.seeds import draw_rows, generator_for
from ..channel_kinds import KindNormalizer
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
class _Spread:
    """Median, standard deviation s and robust r of a channel."""

    median: float
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
    spreads = [_spread(values) for _, values in _by_row(parts)]
    rows = sum(map(len, parts))
    found = []
    for k, (channel, values) in enumerate(_by_row(parts)):
        own = spreads[k]
        if own.scale <= _INFLATED * own.robust:
            continue
        most = max(1.0, (_MOST if own.robust > 0 else _MOST_OF_CONSTANT) * rows)
        distance = _distances(values, own.median)
        far = (distance > _bound(own, spreads[:k] + spreads[k + 1 :])).nonzero().flatten()
        if 0 < len(far) <= most:
            farthest = float(distance.max())
            found.append(Outliers(channel, far.tolist(), farthest, own.scale, own.robust))
    return found


def _bound(own: _Spread, beside: Sequence[_Spread]) -> float:
    """The distance from the median beyond which a row is an outlier.

    In a channel that is constant but for some rows it is one of the channels beside it: the rare
    words of a vocabulary, or the corners of pictures, are as large there as anywhere else.
    """
    if own.robust > 0:
        return _FAR * own.robust
    # A number counts as the median's own if float32 can't tell the two apart.
    alike = 1e-6 * abs(own.median)
    return max(alike, _FAR * max((other.scale for other in beside), default=0.0))


def near_constants(data: Tensor, normalizer: Normalizer) -> list[NearConstant]:
    """The channels of trajectories (N, T, d) that hardly change and are normalised all the same."""
    if isinstance(normalizer, KindNormalizer):
        # Angles and rotations are not scaled.
        at, plain = normalizer.kinds.plain, normalizer.plain
        found = [] if plain is None else near_constants(data[..., at], plain)
        return [replace(one, channel=at[one.channel]) for one in found]
    scales = normalizer.scale.norm(dim=-1)
    has_mean = normalizer.mean != 0
    if normalizer.steps is not None:
        scales = scales.amax(0)
        has_mean = has_mean.any(0)
    columns = channels(data)
    constant = is_constant(columns)
    sizes = torch.stack([column.abs().amax() for column in columns.unbind(1)]).double()
    # Where no mean is taken off, the scale is not of changes.
    little = (scales < _LITTLE * sizes) & has_mean
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


def _distances(values: Sequence[Tensor], median: float) -> Tensor:
    """The largest distance from the median in each row, (N,)."""
    return torch.cat([(block.double() - median).abs().amax(1) for block in _blocks(values)])


def _spread(values: Sequence[Tensor]) -> _Spread:
    """Median and r are those of all numbers, or of some drawn from each part by its size."""
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
    # Between 0 and 1, of a channel that is one or the other, no number lies.
    low, median, high = torch.quantile(numbers.double(), at, interpolation="nearest").tolist()
    return _Spread(median, _scale(values), (high - low) / _WIDTH)


def _scale(values: Sequence[Tensor]) -> float:
    """Standard deviation of all numbers."""
    n = sum(part.numel() for part in values)
    mean = sum(float(block.double().sum()) for block in _blocks(values)) / n
    squares = sum(float((block.double() - mean).square().sum()) for block in _blocks(values))
    return (squares / n) ** 0.5
