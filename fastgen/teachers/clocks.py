"""Clocks: the path that a network was trained on, read on the network's own time s.

    x_s = alpha(s) x0 + sigma(s) eps

A clock gives alpha and sigma at s. The other way round, it gives the s of a noise ratio sigma /
alpha. That ratio is what two paths have in common: x_s / (alpha + sigma) is the rectified-flow
sample x_t at t = sigma / (alpha + sigma).

| clock      | s                           | alpha             | sigma             |
|------------|-----------------------------|-------------------|-------------------|
| PathClock  | [0, 1], data at 0 or at 1   | the interpolant's | the interpolant's |
| TableClock | row 0 .. N-1, data at row 0 | sqrt(abar_s)      | sqrt(1 - abar_s)  |
| SigmaClock | sigma_min .. sigma_max      | 1                 | s                 |
| VeClock    | [0, 1], data at 0           | 1                 | lo (hi / lo)^s    |
| SubVpClock | [0, 1], data at 0 or at 1   | that of VP        | 1 - alpha(s)^2    |

with lo and hi for sigma_min and sigma_max.

All arithmetic is float64.

References:
    Ho et al., DDPM, 2020, arXiv:2006.11239 (linear betas). Nichol & Dhariwal, Improved DDPM, 2021,
    arXiv:2102.09672 (squared cosine). Rombach et al., Latent Diffusion, 2021, arXiv:2112.10752
    (scaled-linear betas). Karras et al., EDM, 2022, arXiv:2206.00364 (sigma as the clock). Kingma
    et al., Variational Diffusion Models, 2021, arXiv:2107.00630 (log-SNR). Song et al., Score-based
    generative modeling, 2021, arXiv:2011.13456 (VE and sub-VP).
"""

from __future__ import annotations

import abc
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._core.checks import check_choice, check_count
from .._core.tensors import rows_below, wide_dtype
from ..interpolants import (
    BaseInterpolant,
    CosineInterpolant,
    LinearInterpolant,
    VariancePreservingInterpolant,
)

__all__ = [
    "BETA_SCHEDULES",
    "Clock",
    "PathClock",
    "SCHEDULES_ELSEWHERE",
    "SigmaClock",
    "SubVpClock",
    "TableClock",
    "VeClock",
    "beta_table",
]

BETA_SCHEDULES = ("linear", "scaled_linear", "squared_cosine", "sigmoid")
# What others call them.
SCHEDULES_ELSEWHERE = {"squaredcos_cap_v2": "squared_cosine"}
# alpha^2 of a last row that is pure noise: 0 would put a row at a log-SNR of minus infinity.
_LAST_ALPHA_BAR = 1e-10
_MOST_ROWS = 100_000


class Clock(abc.ABC):
    """alpha and sigma on a network's own time, and the time of a noise ratio.

    Attributes:
        ratios: (smallest, largest) noise ratio on the path; the largest is infinity if it reaches
            pure noise.
        whole: times are rounded to whole numbers before a network sees them.
        smooth: the path has a velocity.
    """

    ratios: tuple[float, float]
    whole = False
    smooth = True

    @abc.abstractmethod
    def coefficients(self, s: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) at float64 times, shaped like `s`."""

    @abc.abstractmethod
    def derivatives(self, s: Tensor) -> tuple[Tensor, Tensor]:
        """(d alpha / ds, d sigma / ds), shaped like `s`."""

    @abc.abstractmethod
    def time_of_ratio(self, ratio: Tensor) -> Tensor:
        """The s with sigma(s) / alpha(s) = ratio, for float64 ratios within `ratios`."""

    @abc.abstractmethod
    def describe(self) -> dict[str, Any]:
        """The path as JSON with the key "name", from which and `data_at`
        :func:`fastgen.teachers.paths.parse_clock` builds this clock again."""


class PathClock(Clock):
    """The path of an interpolant, with the network's data at s = 0 or at s = 1.

    An interpolant has its data at 1 on its own time, tau.
    """

    def __init__(self, interpolant: BaseInterpolant, data_at: int) -> None:
        self.interpolant = interpolant
        self.data_at = data_at
        ends = torch.tensor([1.0, 0.0], dtype=torch.float64)
        alpha, _ = interpolant.compute_alpha_t(ends)
        sigma, _ = interpolant.compute_sigma_t(ends)
        low, high = (sigma / alpha).tolist()
        self.ratios = (low, high)

    def _tau(self, s: Tensor) -> Tensor:
        return s if self.data_at == 1 else 1.0 - s

    def coefficients(self, s: Tensor) -> tuple[Tensor, Tensor]:
        tau = self._tau(s)
        alpha, _ = self.interpolant.compute_alpha_t(tau)
        sigma, _ = self.interpolant.compute_sigma_t(tau)
        return alpha, sigma

    def derivatives(self, s: Tensor) -> tuple[Tensor, Tensor]:
        tau = self._tau(s)
        _, d_alpha = self.interpolant.compute_alpha_t(tau)
        _, d_sigma = self.interpolant.compute_sigma_t(tau)
        sign = 1.0 if self.data_at == 1 else -1.0  # d tau / ds
        return sign * d_alpha, sign * d_sigma

    def time_of_ratio(self, ratio: Tensor) -> Tensor:
        tau = self.interpolant.time_of_noise_ratio(ratio)
        assert isinstance(tau, Tensor)  # a tensor in, a tensor out; this tells the type checker
        return self._tau(tau)

    def describe(self) -> dict[str, Any]:
        match self.interpolant:
            case LinearInterpolant(noise_std=1.0):
                return {"name": "linear"}
            case LinearInterpolant(noise_std=std):
                return {"name": "linear", "noise_std": std}
            case CosineInterpolant():
                return {"name": "cosine"}
            case VariancePreservingInterpolant(sigma_min=low, sigma_max=high):
                return {"name": "vp", "sigma_min": low, "sigma_max": high}
            case _:
                return {"name": "custom", "class": type(self.interpolant).__name__}


class TableClock(Clock):
    """A discrete DDPM schedule: abar_i = prod_{j <= i} (1 - beta_j). Between the rows log-SNR is
    linear.

    Args:
        betas: shape (N,), N >= 2, each in (0, 1). The last may be 1: pure noise, which is taken as
            alpha = 1e-5.
        nearest: True: the network gets the nearest row as a whole number, for one that looks it up
            in a table of N.
    """

    smooth = False

    def __init__(self, betas: Tensor | Sequence[float], *, nearest: bool = False) -> None:
        table = torch.as_tensor(betas, dtype=torch.float64).detach().to("cpu", copy=True)
        if table.ndim != 1 or not 2 <= len(table) <= _MOST_ROWS:
            raise ValueError(
                f"expected betas of shape (N,) with 2 <= N <= {_MOST_ROWS}, got "
                f"{tuple(table.shape)}"
            )
        inside = (table > 0) & (table < 1)
        if not bool(inside[:-1].all()) or not 0 < table[-1] <= 1:
            row = int((~inside).nonzero()[0])
            raise ValueError(
                f"expected every beta in (0, 1), got {table[row]:g} in row {row}; alphas_cumprod "
                "is not betas: betas = 1 - abar[1:] / abar[:-1], after beta_0 = 1 - abar[0]"
            )
        self.betas = table
        self.whole = bool(nearest)
        log_abar = torch.log1p(-table).cumsum(0)
        if torch.isinf(log_abar[-1]):
            log_abar[-1] = min(math.log(_LAST_ALPHA_BAR), float(log_abar[-2]) - 1.0)
        # Minus the log-SNR, 2 log(sigma / alpha), which increases. By expm1, 1 - abar doesn't
        # cancel near the data.
        levels = torch.log(-torch.expm1(log_abar)) - log_abar
        self.ratios = (math.exp(levels[0] / 2), math.exp(levels[-1] / 2))
        self._tables = {torch.device("cpu"): levels}

    def _table(self, device: torch.device) -> Tensor:
        if device not in self._tables:
            self._tables[device] = self._tables[torch.device("cpu")].to(device, wide_dtype(device))
        return self._tables[device]

    def coefficients(self, s: Tensor) -> tuple[Tensor, Tensor]:
        table = self._table(s.device)
        row = s.clamp(0.0, len(table) - 1.0)
        low = row.floor().long().clamp(max=len(table) - 2)
        level = torch.lerp(table[low], table[low + 1], row - low)
        return torch.sigmoid(-level).sqrt(), torch.sigmoid(level).sqrt()

    def derivatives(self, s: Tensor) -> tuple[Tensor, Tensor]:
        raise TypeError("a table of betas has no velocity: its path has corners")

    def time_of_ratio(self, ratio: Tensor) -> Tensor:
        table = self._table(ratio.device)
        level = (2.0 * ratio.log()).clamp(table[0], table[-1])
        high = rows_below(table, level).clamp(1, len(table) - 1)
        start = table[high - 1]
        end = table[high]
        # A beta too small for float64 makes two rows equal.
        height = (end - start).clamp(min=torch.finfo(table.dtype).tiny)
        return (high - 1) + ((level - start) / height).clamp(0.0, 1.0)

    def describe(self) -> dict[str, Any]:
        return {"name": "betas", "betas": self.betas.tolist(), "nearest": self.whole}


class SigmaClock(Clock):
    """EDM's clock: x = x0 + sigma eps, and the network is told sigma. How it scales its input is
    its own affair."""

    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0) -> None:
        if not 0 < sigma_min < sigma_max < math.inf:
            raise ValueError(
                f"expected 0 < sigma_min < sigma_max, got sigma_min={sigma_min}, "
                f"sigma_max={sigma_max}"
            )
        self.sigma_min = float(sigma_min)
        self.sigma_max = float(sigma_max)
        self.ratios = (self.sigma_min, self.sigma_max)

    def coefficients(self, s: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(s), s

    def derivatives(self, s: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(s), torch.ones_like(s)

    def time_of_ratio(self, ratio: Tensor) -> Tensor:
        return ratio

    def describe(self) -> dict[str, Any]:
        return {"name": "edm", "sigma_min": self.sigma_min, "sigma_max": self.sigma_max}


class VeClock(Clock):
    """Variance exploding, x = x0 + sigma eps, of a network that is told s in [0, 1]: the logarithm
    of sigma = sigma_min (sigma_max / sigma_min)^s is linear in it."""

    def __init__(self, sigma_min: float = 0.01, sigma_max: float = 50.0) -> None:
        self.inner = SigmaClock(sigma_min, sigma_max)
        self.ratios = self.inner.ratios
        self._growth = math.log(self.inner.sigma_max / self.inner.sigma_min)

    def coefficients(self, s: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(s), self.inner.sigma_min * torch.exp(self._growth * s)

    def derivatives(self, s: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(s), self._growth * self.coefficients(s)[1]

    def time_of_ratio(self, ratio: Tensor) -> Tensor:
        return (ratio / self.inner.sigma_min).log() / self._growth

    def describe(self) -> dict[str, Any]:
        return {**self.inner.describe(), "name": "ve"}


class SubVpClock(PathClock):
    """Sub-VP: alpha of the VP path, and for sigma the square of its sigma, 1 - alpha^2."""

    def __init__(self, interpolant: VariancePreservingInterpolant, data_at: int) -> None:
        super().__init__(interpolant, data_at)
        _, high = self.ratios
        # r of VP has alpha = 1 / sqrt(1 + r^2) and sigma^2 = r^2 / (1 + r^2).
        self.ratios = (0.0, high**2 / math.hypot(1.0, high))

    def coefficients(self, s: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = super().coefficients(s)
        return alpha, sigma**2

    def derivatives(self, s: Tensor) -> tuple[Tensor, Tensor]:
        alpha, _ = super().coefficients(s)
        d_alpha, _ = super().derivatives(s)
        return d_alpha, -2.0 * alpha * d_alpha

    def time_of_ratio(self, ratio: Tensor) -> Tensor:
        # The r of VP at the same time: r^2 / sqrt(1 + r^2) = ratio.
        square = ratio * (ratio + torch.hypot(ratio, torch.full_like(ratio, 2.0))) / 2.0
        return super().time_of_ratio(square.sqrt())

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "name": "subvp"}


def beta_table(
    schedule: str, rows: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02
) -> Tensor:
    """The betas (rows,) of a DDPM schedule, float64.

    | schedule       | beta_i                                       |
    |----------------|----------------------------------------------|
    | linear         | linspace(beta_start, beta_end)               |
    | scaled_linear  | linspace(sqrt(beta_start), sqrt(beta_end))^2 |
    | squared_cosine | min(1 - f((i + 1) / N) / f(i / N), .999)     |
    | sigmoid        | beta_start + (beta_end - beta_start) g_i     |

    with f(u) = cos^2(pi/2 (u + .008) / 1.008), g the sigmoid of linspace(-6, 6), and N = `rows`.
    diffusers calls squared_cosine squaredcos_cap_v2, which does, too.

    Raises:
        ValueError: an unknown schedule, fewer than 2 rows, betas outside (0, 1).
    """
    schedule = SCHEDULES_ELSEWHERE.get(schedule, schedule)
    check_choice("schedule", schedule, BETA_SCHEDULES)
    if check_count("rows", rows) < 2 or rows > _MOST_ROWS:
        raise ValueError(f"expected rows in 2..{_MOST_ROWS}, got {rows}")
    if schedule == "squared_cosine":
        u = torch.arange(rows + 1, dtype=torch.float64) / rows
        level = torch.cos(math.pi / 2 * (u + 0.008) / 1.008) ** 2
        return (1.0 - level[1:] / level[:-1]).clamp(max=0.999)
    if not 0 < beta_start <= beta_end < 1:
        raise ValueError(
            f"expected 0 < beta_start <= beta_end < 1, got {beta_start} and {beta_end}"
        )
    if schedule == "sigmoid":
        share = torch.sigmoid(torch.linspace(-6.0, 6.0, rows, dtype=torch.float64))
        return beta_start + (beta_end - beta_start) * share
    power = 2.0 if schedule == "scaled_linear" else 1.0
    first = beta_start ** (1 / power)
    last = beta_end ** (1 / power)
    return torch.linspace(first, last, rows, dtype=torch.float64) ** power
