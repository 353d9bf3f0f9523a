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

All arithmetic is float64.

References:
    Ho et al., DDPM, 2020, arXiv:2006.11239 (linear betas). Nichol & Dhariwal, Improved DDPM, 2021,
    arXiv:2102.09672 (squared cosine). Rombach et al., Latent Diffusion, 2021, arXiv:2112.10752
    (scaled-linear betas). Karras et al., EDM, 2022, arXiv:2206.00364 (sigma as the clock). Kingma
    et al., Variational Diffusion Models, 2021, arXiv:2107.00630 (log-SNR).
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .._core.checks import check_choice, check_count
from .._core.tensors import wide_dtype
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
    "SigmaClock",
    "TableClock",
    "beta_table",
    "parse_clock",
]

BETA_SCHEDULES = ("linear", "scaled_linear", "squared_cosine", "sigmoid")
# What others call them. As a path's name "linear" is the straight path, though.
_SCHEDULES_ELSEWHERE = {"squaredcos_cap_v2": "squared_cosine"}
_ARGUMENTS_ELSEWHERE = {
    "beta_schedule": "schedule",
    "num_train_timesteps": "rows",
    "trained_betas": "betas",
}
PATHS = ("linear", "cosine", "vp", "edm", "betas")
# Names of schedules that are paths by themselves.
_SCHEDULES_OF_BETAS = ("scaled_linear", "squared_cosine", "squaredcos_cap_v2")
# alpha^2 of a last row that is pure noise: 0 would put a row at a log-SNR of minus infinity.
_LAST_ALPHA_BAR = 1e-10
_MOST_ROWS = 100_000
_ARGUMENTS = {
    "linear": "noise_std",
    "vp": "beta_min, beta_max",
    "edm": "sigma_min, sigma_max",
    "betas": "betas, schedule, rows, beta_start, beta_end, nearest",
}


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
        """The path as JSON with the key "name". `parse_clock` builds this clock again from it and
        `data_at`."""


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
        high = torch.searchsorted(table, level).clamp(1, len(table) - 1)
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
    schedule = _SCHEDULES_ELSEWHERE.get(schedule, schedule)
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


def _table_clock(
    betas: Any = None, schedule: str | None = None, nearest: bool = False, **arguments: Any
) -> TableClock:
    """A table by its betas, or by its schedule and the arguments of `beta_table`."""
    if (betas is None) == (schedule is None):
        raise ValueError("expected betas (a list of numbers) or schedule, one of the two")
    if not isinstance(nearest, bool):
        raise ValueError(f"expected nearest: true or false, got {nearest!r}")
    if isinstance(schedule, str):
        schedule = _SCHEDULES_ELSEWHERE.get(schedule, schedule)
    if schedule == "squared_cosine" and arguments.keys() & {"beta_start", "beta_end"}:
        raise ValueError(
            "expected no beta_start and beta_end for the schedule squared_cosine, which has its own"
        )
    if schedule is not None:
        betas = beta_table(schedule, **arguments)
    elif arguments:
        first = sorted(arguments)[0]
        raise ValueError(f"expected no {first} beside betas, got {arguments[first]!r}")
    return TableClock(betas, nearest=nearest)


def _vp_path(
    *,
    beta_min: float | None = None,
    beta_max: float | None = None,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
) -> VariancePreservingInterpolant:
    """The VP path of the ends of its beta, by the names that score-SDE gives them or by those of
    the interpolant."""
    ends = {}
    both = {"sigma_min": (beta_min, sigma_min), "sigma_max": (beta_max, sigma_max)}
    for name, (beta, sigma) in both.items():
        if None not in (beta, sigma):
            said = name.replace("sigma", "beta")
            raise ValueError(f"expected {said} of the path 'vp', or {name}, got both")
        given = sigma if beta is None else beta
        if given is not None:
            ends[name] = given
    if beta_min is not None or beta_max is not None:
        low = ends.get("sigma_min", 0.1)
        high = ends.get("sigma_max", 20.0)
        if not 0 < low <= high < math.inf:
            said = f"got beta_min={low}, beta_max={high}"
            raise ValueError(f"expected 0 < beta_min <= beta_max, {said}")
    return VariancePreservingInterpolant(**ends)


def parse_clock(path: object, data_at: int = 0) -> Clock:
    """The clock that a path means.

    Args:
        path: "linear", "cosine", "vp" or "edm"; an interpolant; betas (N,) as a Tensor or list; a
            clock, which stays as it is; or a mapping with the path's `name` and its arguments.
            "linear" has `noise_std`, of the noise it was trained from, 1 if left out. "vp" has
            `beta_min` and `beta_max`, which may also be spelt `sigma_min` and `sigma_max`; "edm"
            has `sigma_min` and `sigma_max`. "betas" has `nearest`, and either `betas` or
            `schedule` (of `BETA_SCHEDULES`) with `rows`, `beta_start` and `beta_end`. The name of
            such a schedule but "linear" is a path, too, also as diffusers spells it:
            "squaredcos_cap_v2", {"name": "squaredcos_cap_v2", "num_train_timesteps": 100}.
        data_at: the end of the network's clock where the data are, 0 or 1; 0 for "edm" and betas,
            which count noise.

    Raises:
        ValueError: an unknown name, arguments that the path doesn't have or refuses, `data_at` not
            0 or 1.
        TypeError: anything else as a path.
    """
    if isinstance(data_at, bool) or data_at not in (0, 1):
        raise ValueError(f"expected data_at to be 0 or 1, got {data_at!r}")
    if isinstance(path, Tensor | list | tuple):
        path = {"name": "betas", "betas": path}
    if isinstance(path, str):
        path = {"name": path}
    if isinstance(path, Clock):
        return path
    if isinstance(path, BaseInterpolant):
        return PathClock(path, data_at)
    if not isinstance(path, Mapping):
        raise TypeError(
            f"expected path as one of {', '.join(PATHS)}, an interpolant, betas or a mapping with "
            f"a name, got {type(path).__name__}"
        )
    arguments: dict[str, Any] = dict(path)
    name = str(arguments.pop("name", None))
    if name in _SCHEDULES_OF_BETAS:
        arguments["schedule"] = name
        name = "betas"
    if name == "betas":
        arguments = {_ARGUMENTS_ELSEWHERE.get(key, key): arguments[key] for key in arguments}
    check_choice("path", name, PATHS)
    if name in ("edm", "betas") and data_at != 0:
        raise ValueError(
            f"expected data_at=0 for the path {name!r}, which counts from the data, got {data_at}"
        )
    builders: dict[str, Callable[..., Any]] = {
        "linear": LinearInterpolant,
        "cosine": CosineInterpolant,
        "vp": _vp_path,
        "edm": SigmaClock,
        "betas": _table_clock,
    }
    try:
        built = builders[name](**arguments)
    except (TypeError, OverflowError) as error:
        raise ValueError(
            f"expected arguments of the path {name!r} among: {_ARGUMENTS.get(name, 'none')}; got "
            f"{arguments}"
        ) from error
    return PathClock(built, data_at) if isinstance(built, BaseInterpolant) else built
