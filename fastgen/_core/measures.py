"""Middle and spread of data, for each span of their columns: by moments, or by limits.

A span `(start, stop, is_trivial)` is a channel, or a block of an orthogonal representation. What
isn't trivial has its middle at the origin and one spread for all of its columns, so that no element
of a group changes them. A span without spread has the spread 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from .made_rows import MadeRows, even_rows

__all__ = [
    "Counted",
    "between",
    "checked_blocks",
    "counted_extremes",
    "counted_moments",
    "counted_vectors",
    "moments",
    "quantile",
    "some_rows",
]

# Numbers that quantiles are taken of, of data that memory doesn't hold.
_QUANTILE_NUMBERS = 1 << 24

Spans = Sequence[tuple[int, int, bool]]
# Blocks of rows (n, d) in float64 with how often each is there (n,), from the first again at each
# call: data that memory doesn't hold.
Counted = Callable[[], Iterable[tuple[Tensor, Tensor]]]


def some_rows(x: Tensor, mask: Tensor | None, kind: str) -> tuple[Tensor, Tensor | None]:
    """What a kind is measured on, with its mask: of `MadeRows` some, for quantiles, which need all
    at once."""
    if kind != "quantiles" or not isinstance(x, MadeRows):
        return x, mask
    rows = even_rows(len(x), max(1, _QUANTILE_NUMBERS // x[0].numel()))
    return x[rows], None if mask is None else mask[rows]


def counted_vectors(
    x: MadeRows, mask: Tensor | None, step: int | None, basis: Tensor | None
) -> Counted:
    """The rows of x in a basis, None for their own, in blocks, as often as they are asked for."""

    def counted() -> Iterator[tuple[Tensor, Tensor]]:
        for y, counts in x.maker.vectors(step, mask):
            yield (y.double() if basis is None else y.double() @ basis), counts

    return counted


def moments(y: Tensor, spans: Spans, constant_share: float) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (d,) of rows y (N, d), one of each span."""
    centre = y.mean(0)
    spread = torch.empty(y.shape[1], dtype=torch.float64)
    for start, stop, is_trivial in spans:
        if not is_trivial:
            centre[start:stop] = 0.0
        sd = float((y[:, start:stop] - centre[start:stop]).square().mean().sqrt())
        # The rounding of a constant, if divided by its own size, would be noise to learn.
        constant = sd <= constant_share * float(y[:, start:stop].abs().max())
        spread[start:stop] = 1.0 if constant else sd
    return centre, spread


def between(
    y: Tensor,
    spans: Spans,
    constant_share: float,
    low: float,
    high: float,
) -> tuple[Tensor, Tensor]:
    """Middle and half the distance (d,) of the numbers that shares `low` and `high` of the rows
    y (N, d) lie below; in a span that isn't trivial 0, and the radius that as many lie within."""
    centre = torch.zeros(y.shape[1], dtype=torch.float64)
    spread = torch.empty(y.shape[1], dtype=torch.float64)
    for start, stop, is_trivial in spans:
        part = y[:, start:stop]
        if is_trivial:
            least = quantile(part.reshape(-1), low)
            largest = quantile(part.reshape(-1), high)
            centre[start:stop] = (least + largest) / 2
            half = (largest - least) / 2
        else:
            half = quantile(part.norm(dim=1), high - low)
        constant = half <= constant_share * float(part.abs().max())
        spread[start:stop] = 1.0 if constant else half
    return centre, spread


def quantile(values: Tensor, share: float) -> float:
    """The number that a share of values (N,) lies below, with straight lines between them."""
    # torch.quantile takes 16 million numbers at most.
    ordered = values.sort().values
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return float(torch.lerp(ordered[below], ordered[above], place - below))


# ---- A block at a time ---------------------------------------------------------------------------


def counted_moments(rows: Counted, spans: Spans, constant_share: float) -> tuple[Tensor, Tensor]:
    """`moments` of rows that come in blocks, which are gone through twice."""
    count = 0.0
    middle = total = largest = torch.zeros(1, dtype=torch.float64)
    for y, counts in rows():
        if not count:
            # Of numbers far from zero the sum of what is far would lose the digits.
            middle = y[0].clone()
        total = total + counts.double() @ (y - middle)
        largest = torch.maximum(largest, y.abs().amax(0))
        count += float(counts.sum())
    centre = middle + total / count
    for start, stop, is_trivial in spans:
        if not is_trivial:
            centre[start:stop] = 0.0
    squares = torch.zeros_like(centre)
    for y, counts in rows():
        squares += counts.double() @ (y - centre).square()
    spread = torch.empty_like(centre)
    for start, stop, _ in spans:
        sd = float((squares[start:stop] / count).mean().sqrt())
        constant = sd <= constant_share * float(largest[start:stop].max())
        spread[start:stop] = 1.0 if constant else sd
    return centre, spread


def counted_extremes(rows: Counted, spans: Spans, constant_share: float) -> tuple[Tensor, Tensor]:
    """`between` all numbers, of rows that come in blocks."""
    least, largest, radius = [], [], []
    for y, _ in rows():
        least.append(y.amin(0))
        largest.append(y.amax(0))
        radius.append(torch.stack([y[:, a:b].norm(dim=1).max() for a, b, _ in spans]))
    low, high = torch.stack(least).amin(0), torch.stack(largest).amax(0)
    balls = torch.stack(radius).amax(0)
    centre = torch.zeros_like(low)
    spread = torch.empty_like(low)
    for k, (start, stop, is_trivial) in enumerate(spans):
        half = float(balls[k])
        if is_trivial:
            bottom, top = float(low[start:stop].min()), float(high[start:stop].max())
            centre[start:stop] = (bottom + top) / 2
            half = (top - bottom) / 2
        size = float(torch.maximum(low[start:stop].abs(), high[start:stop].abs()).max())
        spread[start:stop] = 1.0 if half <= constant_share * size else half
    return centre, spread


def checked_blocks(
    basis: Tensor, spans: Spans, d: int
) -> tuple[Tensor, list[tuple[int, int, bool]]]:
    """The basis (d, d) in float64 and the spans as a list, after checking that they split R^d
    orthogonally."""
    spans = [(int(start), int(stop), bool(trivial)) for start, stop, trivial in spans]
    if tuple(basis.shape) != (d, d):
        raise ValueError(
            f"expected a representation of dimension {d}, the number of channels, got "
            f"{tuple(basis.shape)}"
        )
    if not torch.allclose(basis.T @ basis, torch.eye(d, dtype=torch.float64), atol=1e-6):
        raise ValueError(
            "expected an orthogonal change of basis in blocks, got one that isn't; use an "
            "orthogonal representation"
        )
    covered = [i for start, stop, _ in sorted(spans) for i in range(start, stop)]
    if covered != list(range(d)):
        raise ValueError(
            f"expected blocks that cover 0..{d} once, got "
            f"{[(start, stop) for start, stop, _ in spans]}"
        )
    return basis, spans
