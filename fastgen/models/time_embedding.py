"""The time embedding: features of a time that networks read."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._core.checks import check_count
from .arguments import check_positive

__all__ = ["TimeEmbedding", "Waves"]


class TimeEmbedding(nn.Module):
    """Features of the time t in [0, 1], (B,) -> (B, dim) or (B, T) -> (B, T, dim): sinusoids of
    `time_scale` * t, then Linear, SiLU, Linear, SiLU.

    The dim / 2 frequencies are spaced geometrically from 1/1000 to 1/16. At `time_scale` = 1000 the
    phases therefore turn by 1 to 62 rad over [0, 1]: every channel tells t = 0.90 from 0.95, and
    none oscillates faster than a solver steps. (With frequencies up to 1000 rad, networks learned
    markedly more slowly.) Steps 0..999 have the same features at `time_scale` = 1.

    The sinusoids are computed in float32 or above, whatever the network's dtype: half precision
    would round the phase itself.

    Args:
        dim: number of features, >= 2.
        time_scale: multiplies t; finite and > 0.

    Raises:
        ValueError: an argument out of range.

    References:
        Vaswani et al. 2017, arXiv:1706.03762 (the sinusoids).
        Peebles and Xie 2023, arXiv:2212.09748 (the MLP on them).
    """

    def __init__(self, dim: int, time_scale: float = 1000.0) -> None:
        super().__init__()
        check_count("dim", dim, least=2)
        check_positive("time_scale", time_scale)
        self.time_scale = float(time_scale)
        self.num_frequencies = dim // 2
        self.hidden = nn.Linear(2 * self.num_frequencies, dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, t: Tensor) -> Tensor:
        """Features (..., dim), in the dtype of the weights, of times t (...) in float32 or
        float64."""
        frequencies = torch.logspace(
            -3.0, -math.log10(16.0), self.num_frequencies, device=t.device, dtype=t.dtype
        )
        phase = self.time_scale * t[..., None] * frequencies
        features = torch.cat([phase.cos(), phase.sin()], dim=-1).to(self.hidden.weight.dtype)
        return F.silu(self.out(F.silu(self.hidden(features))))


class Waves(nn.Module):
    """Time t (B,) as D / 2 sines and as many cosines, of periods 2 pi .. 20000 pi.

    Args:
        dim: D, even, at least 4.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, t: Tensor) -> Tensor:
        """Map (B,) to (B, D)."""
        half = self.dim // 2
        exponent = torch.arange(half, device=t.device) * -(math.log(10000.0) / (half - 1))
        angle = t[:, None] * exponent.exp()[None]
        return torch.cat([angle.sin(), angle.cos()], -1)
