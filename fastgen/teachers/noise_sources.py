"""Noise sources: was a straight flow trained from standard normal noise, or from other noise?

A flow of the path x_s = (1 - s) x0 + s n, n of the source's law, answers n - x0. It is probed with
other laws of n, each at the times where the noise ratio s std(n) / (1 - s) is the same, so that x_s
holds as much of x0. The law that it was trained with leaves the least denoising error.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .._core.masks import real_only
from .._core.seeds import generator_for
from .._core.tensors import wide_dtype
from ..networks import Cond

__all__ = ["Source", "likely_source"]

_STDS = (0.1, 0.25, 0.5, 0.7, 1.4, 2.0, 3.0, 5.0, 10.0)
# Late times tell sources apart best.
_TIMES = (0.5, 0.8, 0.95)
# Measured on trained networks: the right law leaves .45 to .91 of the error of the standard normal
# one; another than the standard normal, where that is right, at least 1.01.
_CLEARLY_BETTER = 0.93


@dataclass(frozen=True)
class Source:
    """A law of noise: normal, or uniform on [low, high] where these are given."""

    std: float
    low: float | None = None
    high: float | None = None

    def draw(self, shape: torch.Size) -> Tensor:
        """Noise of this law, float64, of a fixed seed: all laws draw the same ranks."""
        generator = generator_for(0, "source")
        normal = torch.randn(shape, generator=generator, dtype=torch.float64)
        if self.low is None or self.high is None:
            return self.std * normal
        return self.low + (self.high - self.low) * torch.special.ndtr(normal)

    def note(self) -> str:
        """What a user is told of a teacher with this source."""
        looks = f"noise of standard deviation {self.std:g} or so"
        if 0.5 <= self.std <= 0.7:  # from few rows a box is hardly told from a bell as wide
            looks += " (or uniform on [-1, 1], which no path describes)"
        remedy = (
            f"declare it with the standard deviation it had: teacher.path={{name: linear, "
            f"noise_std: {self.std:g}}}, teacher.prediction=velocity"
        )
        if self.low is not None:
            looks = f"uniform noise on [{self.low:g}, {self.high:g}]"
            remedy = "no path describes that; train the teacher from standard normal noise"
        return (
            f"warning: the teacher's source looks like {looks}, and not like the standard normal "
            f"noise that every sampler and method here starts from; {remedy}"
        )


_SOURCES = (
    *(Source(std) for std in _STDS),
    Source(1 / math.sqrt(12), low=0.0, high=1.0),
    Source(1 / math.sqrt(3), low=-1.0, high=1.0),
)


def likely_source(
    velocity: Callable[[Tensor, Tensor, Cond], Tensor],
    x0: Tensor,
    cond: Cond,
) -> tuple[Source, float] | None:
    """The source other than the standard normal that a flow was trained from; None if that one fits
    it best.

    Args:
        velocity: called `velocity(x_s, s, cond)`, s (B,) = 0 at the data; answers n - x0.
        x0, cond: rows to probe on.

    Returns:
        `(source, share)`: its share of the error of the standard normal.
    """
    usual = _error(velocity, Source(1.0), x0, cond)
    errors = [_error(velocity, source, x0, cond) for source in _SOURCES]
    least = min(errors)
    if not least < _CLEARLY_BETTER * usual:
        return None
    return _SOURCES[errors.index(least)], least / usual


def _error(
    velocity: Callable[[Tensor, Tensor, Cond], Tensor],
    source: Source,
    x0: Tensor,
    cond: Cond,
) -> float:
    """Geometric mean over late times of E |x0_hat - x0|^2; infinity where that isn't finite."""
    wide = wide_dtype(x0.device)
    noise = real_only(source.draw(x0.shape).to(x0.device, wide), cond)
    logs = []
    for t in _TIMES:
        ratio = t / (1.0 - t)
        s = ratio / (ratio + source.std)
        x_s = (1.0 - s) * x0.to(wide) + s * noise
        s_of_rows = torch.full((len(x0),), s, dtype=wide, device=x0.device)
        x0_hat = x_s - s * velocity(x_s.to(x0.dtype), s_of_rows, cond).to(wide)
        logs.append(float((x0_hat - x0).square().mean().log()))
    mean = sum(logs) / len(logs)
    return math.exp(mean) if math.isfinite(mean) and mean < 100.0 else math.inf
