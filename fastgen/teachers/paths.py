"""Paths as they are said: names and arguments, and the clock that each of them means."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from .._core.checks import check_choice
from ..interpolants import (
    BaseInterpolant,
    CosineInterpolant,
    LinearInterpolant,
    VariancePreservingInterpolant,
)
from .clocks import (
    SCHEDULES_ELSEWHERE,
    Clock,
    PathClock,
    SigmaClock,
    SubVpClock,
    TableClock,
    VeClock,
    beta_table,
)

__all__ = ["PATHS", "parse_clock"]

PATHS = ("linear", "cosine", "vp", "subvp", "ve", "edm", "betas")
# Names of schedules that are paths by themselves. As a path's name "linear" is the straight path.
_SCHEDULES_OF_BETAS = ("scaled_linear", "squared_cosine", "squaredcos_cap_v2")
_ARGUMENTS_ELSEWHERE = {
    "beta_schedule": "schedule",
    "num_train_timesteps": "rows",
    "trained_betas": "betas",
}
_ARGUMENTS = {
    "linear": "noise_std",
    "vp": "beta_min, beta_max",
    "subvp": "beta_min, beta_max",
    "ve": "sigma_min, sigma_max",
    "edm": "sigma_min, sigma_max",
    "betas": "betas, schedule, rows, beta_start, beta_end, nearest",
}


def _table_clock(
    betas: Any = None, schedule: str | None = None, nearest: bool = False, **arguments: Any
) -> TableClock:
    """A table by its betas, or by its schedule and the arguments of `beta_table`."""
    if (betas is None) == (schedule is None):
        raise ValueError("expected betas (a list of numbers) or schedule, one of the two")
    if not isinstance(nearest, bool):
        raise ValueError(f"expected nearest: true or false, got {nearest!r}")
    if isinstance(schedule, str):
        schedule = SCHEDULES_ELSEWHERE.get(schedule, schedule)
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
            raise ValueError(f"expected {said} of the path, or {name}, got both")
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
        path: a name of `PATHS`; an interpolant; betas (N,) as a Tensor or list; a clock, which
            stays as it is; or a mapping with the path's `name` and its arguments. "linear" has
            `noise_std`, of the noise it was trained from, 1 if left out. "vp" and "subvp" have
            `beta_min` and `beta_max`, which may also be spelt `sigma_min` and `sigma_max`; "ve" and
            "edm" have `sigma_min` and `sigma_max`. "betas" has `nearest`, and either `betas` or
            `schedule` (of `BETA_SCHEDULES`) with `rows`, `beta_start` and `beta_end`. The name of
            such a schedule but "linear" is a path, too, also as diffusers spells it:
            "squaredcos_cap_v2", {"name": "squaredcos_cap_v2", "num_train_timesteps": 100}.
        data_at: the end of the network's clock where the data are, 0 or 1; 0 for "ve", "edm" and
            betas, which count noise.

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
    if name in ("ve", "edm", "betas") and data_at != 0:
        raise ValueError(
            f"expected data_at=0 for the path {name!r}, which counts from the data, got {data_at}"
        )
    builders: dict[str, Callable[..., Any]] = {
        "linear": LinearInterpolant,
        "cosine": CosineInterpolant,
        "vp": _vp_path,
        "subvp": lambda **ends: SubVpClock(_vp_path(**ends), data_at),
        "ve": VeClock,
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
