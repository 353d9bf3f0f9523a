"""Middle and spread of data, for each span of their columns: by moments, or by limits.

A span `(start, stop, is_trivial)` is a channel, or a block of an orthogonal representation. What
isn't trivial has its middle at the origin and one spread for all of its columns, so that no element
of a group changes them. A span without spread has the spread 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["between", "moments", "quantile"]

Spans = Sequence[tuple[int, int, bool]]


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
