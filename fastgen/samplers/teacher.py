"""The teacher's sampler: its ODE dx/dt = flow in RF time, from noise (t = 1) to data (t = 0).

The state and the time grid are float64; the network sees its own dtype. No gradient graph is kept,
and memory does not grow with the number of steps unless all states are asked for.

A teacher is not followed everywhere. One that predicts noise has x0 = (x_t - t eps) / (1 - t),
whose errors grow without bound towards t = 1, where x0 itself hardly changes. A converted one is
not defined beyond its `t_max`. Beyond the last trusted time T its x0 is therefore the one at T for
the same noise,

    velocity = (x_t - x0) / t,    x_T = (T / t) x_t + (1 - T / t) x0,    x0 = x_T - T flow(x_T, T),

an equation for x0 that is solved by rounds, from x0 = 0 or from the x0 of the step before.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from .._core.checks import check_choice, check_count, check_pred_type
from .._core.masks import real_only
from .._core.tensors import EPSILON, expand_like, wide_dtype
from ..flow_matching import convert_prediction
from ..guidance import Guidance, check_guidance
from ..networks import (
    Cond,
    Network,
    call_network,
    check_trained_sizes,
    predicts_noise,
    sampling_times,
    time_range,
    trusted_until,
)
from ..solvers import SOLVERS, Velocity, collect, integrate
from ..teachers.guided import GuidedNetwork
from ..teachers.spacings import TRUSTED_NOISE_TIME

__all__ = [
    "ONE_STEP_SOLVERS",
    "TRUSTED_NOISE_TIME",
    "sample_teacher",
    "teacher_grid",
    "teacher_step",
    "teacher_velocity",
    "trusted_time",
]

# Rounds that solve for x0 beyond the trusted time, where they start from x0 = 0.
ROUNDS = 3
# Solvers whose step needs nothing of the steps before it.
ONE_STEP_SOLVERS = ("euler", "midpoint", "heun", "rk4")

Flow = Callable[[Tensor, float | Tensor], Tensor]


# ---- Times ---------------------------------------------------------------------------------------


def teacher_grid(
    network: object, steps: int | None, t_grid: Iterable[float] | None = None
) -> list[float]:
    """Decreasing RF times: `t_grid`, checked; or `steps` steps to 0, at the times that the teacher
    declares, or equal ones from its `t_max` (1 if it has none).

    Raises:
        ValueError: if the grid does not decrease strictly from (0, 1] to 0, or contradicts `steps`.
    """
    if t_grid is None:
        steps = check_count("steps", steps)
        declared = sampling_times(network, steps)
        if declared is not None:
            return declared
        _, t_max = time_range(network)
        return [t_max * (1.0 - i / steps) for i in range(steps + 1)]
    grid = [float(t) for t in t_grid]
    if (
        len(grid) < 2
        or grid[-1] != 0.0
        or not 0.0 < grid[0] <= 1.0
        or any(s >= t for t, s in itertools.pairwise(grid))
    ):
        raise ValueError(f"expected t_grid strictly decreasing from (0, 1] to 0.0, got {grid}")
    if steps is not None and steps != len(grid) - 1:
        raise ValueError(
            f"expected steps={len(grid) - 1} (or None) for a t_grid of {len(grid)} times, got "
            f"{steps}"
        )
    return grid


def trusted_time(network: Network, pred_type: str) -> float:
    """The last time T at which a teacher's own x0 is followed: what it declares, else its `t_max`,
    for noise predictions .95 if that is less."""
    declared = trusted_until(network)
    if declared is not None:
        return declared
    _, trusted = time_range(network)
    if pred_type == "eps" or predicts_noise(network):
        trusted = min(trusted, TRUSTED_NOISE_TIME)
    return trusted


# ---- Velocity ------------------------------------------------------------------------------------


def teacher_velocity(
    network: Network,
    cond: Cond,
    *,
    dtype: torch.dtype,
    pred_type: str = "flow",
) -> Velocity:
    """The velocity field dx/dt of a network in RF time.

    Beyond the trusted time x0 is found by three rounds at the first call, and by one round from the
    last x0 at each call after it: that makes two calls of the network more for a trajectory. The
    last x0 is remembered, so one velocity serves one trajectory, as a multi-step solver does.

    Args:
        network, cond, pred_type: as in `sample_teacher`.
        dtype: what a network without parameters is given.
    """
    check_pred_type(pred_type)
    trusted = trusted_time(network, pred_type)
    flow = _flow_of(network, cond, pred_type, dtype)
    last_x0: Tensor | None = None

    def velocity(x: Tensor, t: float) -> Tensor:
        nonlocal last_x0
        if t <= trusted:
            return flow(x, t)
        share = trusted / t
        if last_x0 is None:
            x0, _ = _solve_for_x0(flow, x, trusted, share, torch.zeros_like(x), ROUNDS)
        else:
            x0, _ = _solve_for_x0(flow, x, trusted, share, last_x0, 1)
        last_x0 = x0
        return (x - x0) / t

    return velocity


def _flow_of(network: Network, cond: Cond, pred_type: str, dtype: torch.dtype) -> Flow:
    """The flow of a network that predicts `pred_type`: a function of x (B, ...) and t, a float or
    (B, 1, ..., 1); in the dtype of x."""

    def flow(x: Tensor, t: float | Tensor) -> Tensor:
        times = t.flatten() if isinstance(t, Tensor) else t
        pred = call_network(network, x, times, cond, dtype=dtype).to(x.dtype)
        return convert_prediction(pred, x, times, pred_type, "flow")

    return flow


def _solve_for_x0(
    flow: Flow,
    x: Tensor,
    earlier_t: float | Tensor,
    share: float | Tensor,
    x0: Tensor,
    rounds: int,
) -> tuple[Tensor, Tensor]:
    """x0 of a state x at a time t that a teacher isn't trusted at, by its flow at an earlier time T
    (formulas at the head of this module).

    Args:
        flow: the teacher's.
        x: (B, ...), the state at t.
        earlier_t: T, a float or (B, 1, ..., 1).
        share: T / t.
        x0: where the rounds start.
        rounds: how many, each a call of the teacher.

    Returns:
        `(x0, v)`: v is the flow that the last round asked for.
    """
    v = torch.zeros_like(x)
    for _ in range(rounds):
        earlier_x = share * x + (1.0 - share) * x0
        v = flow(earlier_x, earlier_t)
        x0 = earlier_x - earlier_t * v
    return x0, v


# ---- Samples -------------------------------------------------------------------------------------


@torch.no_grad()
def sample_teacher(
    net: Network,
    noise: Tensor,
    steps: int | None,
    cond: Cond = None,
    *,
    method: str = "euler",
    t_grid: Iterable[float] | None = None,
    pred_type: str = "flow",
    guidance_scale: float | None = None,
    negative_cond: Cond = None,
    return_all_steps: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Sample a teacher by solving dx/dt = flow in RF time, from noise (t = 1) to data (t = 0).

    Args:
        net: called `net(x_t, t, cond)` with t of shape (B,).
        noise: standard normal, shape (B, ...). The first state is t_grid[0] * noise.
        steps: number of solver steps, >= 1; None with `t_grid`.
        cond: condition, handed to the network. Where it carries masks, padding is 0 in all states.
        method: euler, midpoint, heun, rk4 or ab2.
        t_grid: strictly decreasing times ending at 0, in place of those that `net` declares, or of
            equal steps from 1 (from `net.t_max` if it has one).
        pred_type: what the network predicts. "eps" needs a grid that starts below 1, where eps says
            nothing about x0.
        guidance_scale, negative_cond: classifier-free guidance: `net` is called as a
            :class:`fastgen.teachers.guided.GuidedNetwork` of this scale and null condition.
        return_all_steps: also return the states.

    Returns:
        x0 in the shape and dtype of `noise`; or `(xs (B, K+1, ...), ts (K+1,))`, beginning with the
        noise.

    Raises:
        ValueError: for an unknown method, steps < 1, a bad grid, guidance without
            `negative_cond`, or sizes that the network says it was not trained with.
    """
    check_choice("method", method, tuple(SOLVERS))
    check_guidance(guidance_scale, negative_cond)
    check_trained_sizes(net, noise, cond, "the network")
    grid = teacher_grid(net, steps, t_grid)
    if pred_type == "eps" and grid[0] == 1.0:
        raise ValueError(
            "expected t_grid to start below 1.0 for pred_type 'eps' (x0 is (x_t - t eps) / (1 - "
            "t)), got 1.0"
        )
    if guidance_scale is not None:
        inner: Any = net  # a function serves, too: the wrapper only calls it
        net = GuidedNetwork(inner, Guidance(guidance_scale), negative_cond, pred_type=pred_type)
    velocity = teacher_velocity(net, cond, dtype=noise.dtype, pred_type=pred_type)
    start = grid[0] * real_only(noise.to(wide_dtype(noise.device)), cond)
    return collect(integrate(velocity, start, grid, method), grid, noise.dtype, return_all_steps)


@torch.no_grad()
def teacher_step(
    teacher: Network,
    x_t: Tensor,
    t: Tensor,
    s: Tensor,
    cond: Cond = None,
    *,
    method: str = "midpoint",
    pred_type: str = "flow",
    dtype: torch.dtype | None = None,
) -> Tensor:
    """One solver step of the teacher's ODE from time t to time s, each sample with times of its
    own.

    Beyond the trusted time x0 is found by three rounds, since no step before it left an x0.

    Args:
        teacher: called `teacher(x_t, t, cond)`.
        x_t: shape (B, ...).
        t, s: shape (B,), 0 <= s <= t <= 1. "midpoint" never asks at s, so no prediction is divided
            by s = 0.
        cond: condition.
        method: euler (order 1, one call), midpoint or heun (order 2, two calls), rk4 (order 4, four
            calls).
        pred_type: what the teacher predicts.
        dtype: what a network without parameters is given; None: the dtype of `x_t`.

    Returns:
        x_s, without a graph, in the dtype of `x_t`.

    Raises:
        ValueError: for an unknown method or prediction, or times of other shapes.
    """
    check_choice("method", method, ONE_STEP_SOLVERS)
    check_pred_type(pred_type)
    trusted = trusted_time(teacher, pred_type)
    called_in = x_t.dtype if dtype is None else dtype
    flow = _flow_of(teacher, cond, pred_type, called_in)

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        if trusted == 1.0:
            return flow(x, t)
        beyond = t > trusted
        above_zero = t.clamp(min=EPSILON)
        earlier_t = t.clamp(max=trusted)
        # Where t is trusted the earlier state is x itself, and all rounds say the same.
        share = torch.where(beyond, earlier_t / above_zero, 1.0)
        x0, v = _solve_for_x0(flow, x, earlier_t, share, torch.zeros_like(x), ROUNDS)
        return torch.where(beyond, (x - x0) / above_zero, v)

    wide = wide_dtype(x_t.device)
    start = expand_like(t.to(x_t.device, wide), x_t)
    stop = expand_like(s.to(x_t.device, wide), x_t)
    # A step of `solvers` is arithmetic alone: times that broadcast serve it as well as floats.
    step: Any = SOLVERS[method]()
    return step(velocity, x_t.to(wide), start, stop).to(x_t.dtype)
