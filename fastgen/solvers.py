"""Solvers of dx/dt = velocity(x, t) over a given time grid, in either direction of time.

A step takes a state `x` at time `t` to the next time `s`; with h = s - t,

    euler     x + h v(x, t)                                           order 1, 1 call
    midpoint  x + h v(x + h/2 v(x, t), t + h/2)                       order 2, 2 calls
    heun      x + h/2 (v(x, t) + v(x + h v(x, t), s))                 order 2, 2 calls
    rk4       the classical Runge-Kutta step                          order 4, 4 calls
    ab2       x + h (v + h / (2 h') (v - v')), v', h' of last step    order 2, 1 call

The first step of ab2, two-step Adams-Bashforth, is Euler's.

References:
    Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I, 1993, sections II.1 and
    III.5.
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from ._core.tensors import time_dtype

__all__ = [
    "AdamsBashforth2",
    "SOLVERS",
    "Velocity",
    "collect",
    "euler_step",
    "heun_step",
    "integrate",
    "midpoint_step",
    "rk4_step",
]

Velocity = Callable[[Tensor, float], Tensor]
Step = Callable[[Velocity, Tensor, float, float], Tensor]


def euler_step(velocity: Velocity, x: Tensor, t: float, s: float) -> Tensor:
    """First order: follow the velocity at the start."""
    return x + (s - t) * velocity(x, t)


def midpoint_step(velocity: Velocity, x: Tensor, t: float, s: float) -> Tensor:
    """Second order: follow the velocity found half way."""
    h = s - t
    return x + h * velocity(x + h / 2 * velocity(x, t), t + h / 2)


def heun_step(velocity: Velocity, x: Tensor, t: float, s: float) -> Tensor:
    """Second order: follow the mean of the velocities at both ends."""
    h = s - t
    v = velocity(x, t)
    return x + h / 2 * (v + velocity(x + h * v, s))


def rk4_step(velocity: Velocity, x: Tensor, t: float, s: float) -> Tensor:
    """Fourth order: the classical Runge-Kutta weights 1, 2, 2, 1."""
    h = s - t
    k1 = velocity(x, t)
    k2 = velocity(x + h / 2 * k1, t + h / 2)
    k3 = velocity(x + h / 2 * k2, t + h / 2)
    k4 = velocity(x + h * k3, s)
    return x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


class AdamsBashforth2:
    """Second order with one call a step: extrapolate the velocity from the last two, for steps of
    any lengths.

    Integrating the line through (t', v') and (t, v) from t to s gives h (v + h / (2 h') (v - v')).
    It remembers v' and h', so one object serves one trajectory.
    """

    def __init__(self) -> None:
        self.last: tuple[Tensor, float] | None = None

    def __call__(self, velocity: Velocity, x: Tensor, t: float, s: float) -> Tensor:
        h = s - t
        v = velocity(x, t)
        if self.last is None:
            change = torch.zeros_like(v)
        else:
            last_v, last_h = self.last
            change = h / (2 * last_h) * (v - last_v)
        self.last = (v, h)
        return x + h * (v + change)


# A solver is made anew for each trajectory, because a multi-step one has a memory.
SOLVERS: dict[str, Callable[[], Step]] = {
    "euler": lambda: euler_step,
    "midpoint": lambda: midpoint_step,
    "heun": lambda: heun_step,
    "rk4": lambda: rk4_step,
    "ab2": AdamsBashforth2,
}


def integrate(
    velocity: Velocity, x: Tensor, grid: Sequence[float], method: str
) -> Iterator[Tensor]:
    """Solve dx/dt = velocity(x, t) over `grid` and yield the state at every grid point, the first
    included."""
    step = SOLVERS[method]()
    yield x
    for t, s in itertools.pairwise(grid):
        x = step(velocity, x, t, s)
        yield x


def collect(
    states: Iterable[Tensor], times: Sequence[float], dtype: torch.dtype, return_all_steps: bool
) -> Tensor | tuple[Tensor, Tensor]:
    """Run through the states of a trajectory, without keeping more of them than are asked for.

    Returns:
        the last state in `dtype`; or with `return_all_steps` `(xs (B, K+1, ...), ts (K+1,))`.
    """
    if not return_all_steps:
        return collections.deque(states, maxlen=1)[0].to(dtype)
    xs = torch.stack([x.to(dtype) for x in states], dim=1)
    return xs, torch.tensor(times, dtype=time_dtype(dtype), device=xs.device)
