"""Samplers: the teacher's, the few-step student's, and flow matching on its own clock; solvers
stand in `solvers`.

State and time grid are float64; a network sees its own dtype. No sampler keeps a gradient graph,
and memory does not grow with the number of steps unless all states are asked for.

Clocks: `FlowMatching` keeps the interface it comes from, noise at t = 0 and data at t = 1.
Everything else runs in RF time, noise at t = 1 and data at t = 0.

References:
    Lipman et al., Flow Matching, 2022, arXiv:2210.02747.
    Yin et al., DMD2, 2024, arXiv:2405.14867 (backward simulation).
"""

from __future__ import annotations

import abc
import collections
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ._core.checks import check_choice, check_count, check_pred_type, check_shape, is_count
from ._core.seeds import draw_normal
from ._core.tensors import time_dtype, wide_dtype
from .flow_matching import add_noise, check_t_list, convert_prediction, x0_to_eps
from .guidance import check_guidance, classifier_free_guidance
from .networks import Cond, Network, call_network, predict_x0
from .solvers import SOLVERS, Velocity, integrate

__all__ = [
    "BaseDiffusion",
    "FlowMatching",
    "SAMPLE_TYPES",
    "StepFn",
    "TRUSTED_NOISE_TIME",
    "sample_student",
    "sample_teacher",
    "served_steps",
    "teacher_grid",
    "teacher_velocity",
    "unroll",
]

SAMPLE_TYPES = ("ode", "sde")
# Up to this RF time a sampler follows the x0 of a network that predicts noise: there its errors
# come out 19-fold.
TRUSTED_NOISE_TIME = 0.95

# ---- Teacher -------------------------------------------------------------------------------------


def teacher_grid(
    network: object, steps: int | None, t_grid: Iterable[float] | None = None
) -> list[float]:
    """Decreasing RF times: `t_grid` checked, or `steps` equal steps from the teacher's `t_max` (1
    if it has none) to 0.

    Raises:
        ValueError: if the grid does not decrease strictly from (0, 1] to 0, or contradicts `steps`.
    """
    if t_grid is None:
        steps = check_count("steps", steps)
        t_max = float(getattr(network, "t_max", 1.0))
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
    """The time T up to which a teacher's own x0 is followed: its `t_max`, and .95 for noise
    predictions."""
    trusted = float(getattr(network, "t_max", 1.0))
    if pred_type == "eps" or getattr(network, "predicts_noise", False):
        trusted = min(trusted, TRUSTED_NOISE_TIME)
    return trusted


def guided_flow(
    network: Network,
    x: Tensor,
    t: float | Tensor,
    cond: Cond,
    negative_cond: Cond,
    guidance_scale: float | None,
    *,
    pred_type: str,
    dtype: torch.dtype,
) -> Tensor:
    """The flow (B, ...) of a network that predicts `pred_type`, guided if there is a scale; in the
    dtype of `x`."""
    pred = call_network(network, x, t, cond, dtype=dtype).to(x.dtype)
    if guidance_scale is not None and guidance_scale != 1.0:
        negative = call_network(network, x, t, negative_cond, dtype=dtype).to(x.dtype)
        pred = classifier_free_guidance(pred, negative, guidance_scale)
    return convert_prediction(pred, x, t, pred_type, "flow")


def teacher_velocity(
    network: Network,
    cond: Cond,
    *,
    dtype: torch.dtype,
    pred_type: str = "flow",
    guidance_scale: float | None = None,
    negative_cond: Cond = None,
) -> Velocity:
    """The velocity field dx/dt of a network in RF time, guided if `guidance_scale` is given.

    Guidance moves the prediction to c + (s - 1) (c - u), with c under `cond` and u under
    `negative_cond`.

    A network that predicts noise has x0 = (x_t - t eps) / (1 - t), whose errors grow without bound
    towards t = 1, where x0 itself hardly changes. Beyond T = .95 its x0 is therefore the one at T
    for the same noise,

        velocity = (x_t - x0) / t,    x_T = (T / t) x_t + (1 - T / t) x0,

    found by three rounds from x0 = 0 at the first call and by one from the last x0 at each call
    after it: two calls more for a trajectory, and one object for each, as of a multi-step solver.
    Beyond the `t_max` of a network of any kind its x0 is the one at `t_max`, likewise.

    Args:
        network, cond, pred_type, guidance_scale, negative_cond: as in `sample_teacher`.
        dtype: what a network without parameters is given.

    Raises:
        ValueError: for `guidance_scale` without `negative_cond`.
    """
    check_pred_type(pred_type)
    check_guidance(guidance_scale, negative_cond)
    trusted = trusted_time(network, pred_type)
    last_x0: Tensor | None = None

    def flow(x: Tensor, t: float) -> Tensor:
        return guided_flow(
            network, x, t, cond, negative_cond, guidance_scale, pred_type=pred_type, dtype=dtype
        )

    def velocity(x: Tensor, t: float) -> Tensor:
        if t <= trusted:
            return flow(x, t)
        nonlocal last_x0
        rounds, x0 = (3, torch.zeros_like(x)) if last_x0 is None else (1, last_x0)
        for _ in range(rounds):
            earlier = trusted / t * x + (1.0 - trusted / t) * x0
            x0 = earlier - trusted * flow(earlier, trusted)
        last_x0 = x0
        return (x - x0) / t

    return velocity


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
        noise: standard normal, shape (B, ...); the start is t_grid[0] * noise.
        steps: number of solver steps, >= 1; None with `t_grid`.
        cond: condition, handed to the network.
        method: euler, midpoint, heun, rk4 or ab2.
        t_grid: strictly decreasing times ending at 0, in place of equal steps from 1 (from
            `net.t_max` if it has one).
        pred_type: what the network predicts. "eps" needs a grid that starts below 1, where eps says
            nothing about x0.
        guidance_scale, negative_cond: classifier-free guidance.
        return_all_steps: also return the states.

    Returns:
        x0 in the shape and dtype of `noise`; or `(xs (B, K+1, ...), ts (K+1,))`, beginning with the
        noise.

    Raises:
        ValueError: for an unknown method, steps < 1, a bad grid, or guidance without
            `negative_cond`.
    """
    check_choice("method", method, tuple(SOLVERS))
    grid = teacher_grid(net, steps, t_grid)
    if pred_type == "eps" and grid[0] == 1.0:
        raise ValueError(
            "expected t_grid to start below 1.0 for pred_type 'eps' (x0 is (x_t - t eps) / (1 - "
            "t)), got 1.0"
        )
    velocity = teacher_velocity(
        net,
        cond,
        dtype=noise.dtype,
        pred_type=pred_type,
        guidance_scale=guidance_scale,
        negative_cond=negative_cond,
    )
    start = grid[0] * noise.to(wide_dtype(noise.device))
    return _collect(integrate(velocity, start, grid, method), grid, noise.dtype, return_all_steps)


# ---- Student -------------------------------------------------------------------------------------


def check_student(t_list: Sequence[float], sample_type: str, pred_type: str) -> list[float]:
    """Validate what defines a student's sampler and return `t_list` as floats.

    Raises:
        ValueError: also for an eps-predicting student whose first rung is 1.0.
    """
    times = check_t_list(t_list)
    check_choice("sample_type", sample_type, SAMPLE_TYPES)
    check_pred_type(pred_type)
    if pred_type == "eps" and times[0] >= 1.0:
        raise ValueError(
            "expected t_list[0] < 1 for pred_type 'eps' (at t = 1 a noise prediction says nothing "
            f"about x0), got {times[0]}; use 0.999"
        )
    return times


def unroll(
    network: Network,
    noise: Tensor,
    t_list: Sequence[float],
    cond: Cond = None,
    *,
    sample_type: str = "ode",
    pred_type: str = "flow",
    draw_noise: Callable[[], Tensor],
) -> Iterator[Tensor]:
    """Yield the student's input at each rung of `t_list`, then its sample: K + 1 float64 tensors,
    lazily.

    The first input is x_{t_1} = t_1 noise. A rung at t, with s the next one, predicts x0 and moves
    to

        ode:  x_s = (1 - s) x0 + s eps,  eps = (x_t - (1 - t) x0) / t      (= the Euler step x_t + (s - t) flow)
        sde:  x_s = (1 - s) x0 + s eps,  eps drawn anew

    and the last rung answers x0. This is the only place where students are unrolled: sampling runs
    it to the end, training stops at the rung it trains, so a training input has exactly the law of
    the sampler's input.

    Args:
        network, cond, t_list, sample_type, pred_type: as in `sample_student`.
        noise: standard normal, shape (B, ...).
        draw_noise: called once for each sde rung but the last; returns fresh noise shaped like
            `noise`.
    """
    x_t = t_list[0] * noise.to(wide_dtype(noise.device))
    yield x_t
    for t, s in itertools.pairwise(t_list):
        x0 = predict_x0(network, x_t, t, cond, pred_type=pred_type, dtype=noise.dtype)
        if s == 0.0:
            x_t = x0
        elif sample_type == "ode":
            x_t = add_noise(x0, x0_to_eps(x0, x_t, t), s)
        else:
            x_t = add_noise(x0, draw_noise().to(x0.dtype), s)
        yield x_t


@torch.no_grad()
def sample_student(
    net: Network,
    noise: Tensor,
    t_list: Sequence[float],
    cond: Cond = None,
    *,
    sample_type: str = "ode",
    pred_type: str = "flow",
    generator: torch.Generator | None = None,
    return_all_steps: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Sample a few-step student along `t_list`; one network call a rung. The formulas stand at
    `unroll`.

    Args:
        net: called `net(x_t, t, cond)` with t of shape (B,).
        noise: standard normal, shape (B, ...).
        t_list: [t_1 > t_2 > ... > 0.0], the floats the student was trained with.
        cond: condition, handed to the network.
        sample_type: "ode" keeps the noise implied by the prediction, "sde" draws it anew at each
            rung.
        pred_type: what the network predicts: "flow", "x0" or "eps" (then t_list[0] must be below
            1).
        generator: source of the sde noise.
        return_all_steps: also return the inputs of all rungs.

    Returns:
        x0 in the shape and dtype of `noise`; or `(xs (B, K+1, ...), ts (K+1,))`, beginning with the
        input t_1 noise.

    Raises:
        ValueError: for an invalid `t_list`, an unknown `sample_type` or `pred_type`, or eps with
            t_list[0] = 1.
    """
    times = check_student(t_list, sample_type, pred_type)

    def draw_noise() -> Tensor:
        return draw_normal(noise.shape, device=noise.device, dtype=noise.dtype, generator=generator)

    states = unroll(
        net, noise, times, cond, sample_type=sample_type, pred_type=pred_type, draw_noise=draw_noise
    )
    return _collect(states, times, noise.dtype, return_all_steps)


# ---- Noise at 0, data at 1 -----------------------------------------------------------------------


class StepFn(Protocol):
    """A velocity field on the clock of `FlowMatching`: noise at t = 0, data at t = 1, velocity =
    dx/dt = x1 - x0."""

    def __call__(self, *, x: Tensor, t: Tensor) -> Tensor:
        """Velocity at state `x` of shape (B, *x_dims) and time `t` of shape (B, 1, ..., 1); shaped
        like `x`."""
        ...


class BaseDiffusion(abc.ABC):
    """A generative model of samples of shape `x_dims` that is sampled by iterating a step function.

    Args: x_dims, the shape of one sample: an int or a sequence of ints, each >= 1.
    """

    def __init__(self, x_dims: int | Sequence[int]) -> None:
        dims = (x_dims,) if isinstance(x_dims, int) else tuple(x_dims)
        if not dims or not all(map(is_count, dims)):
            raise ValueError(
                f"expected x_dims to be a positive int or a sequence of them, got {x_dims!r}"
            )
        self.x_dims = dims

    @abc.abstractmethod
    def sample(
        self,
        batch_size: int,
        step_fn: StepFn,
        device: torch.device | str = "cpu",
        return_all_steps: bool = False,
        inference_step: int | None = None,
        int_method: str | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Draw `batch_size` samples, shape (B, *x_dims)."""


class FlowMatching(BaseDiffusion):
    """Flow matching on its own clock, **noise at t = 0 and data at t = 1**: dx/dt = v(x, t), x(0) ~
    N(0, I).

    Args:
        x_dims: shape of one sample.
        int_method: euler, midpoint, heun, rk4 or ab2.
        num_inference_steps: number of solver steps, >= 1.
    """

    def __init__(
        self, x_dims: int | Sequence[int], int_method: str = "euler", num_inference_steps: int = 10
    ) -> None:
        super().__init__(x_dims)
        check_choice("int_method", int_method, tuple(SOLVERS))
        self.int_method = int_method
        self.num_inference_steps = check_count("num_inference_steps", num_inference_steps)

    @torch.no_grad()
    def sample(
        self,
        batch_size: int,
        step_fn: StepFn,
        device: torch.device | str = "cpu",
        return_all_steps: bool = False,
        inference_step: int | None = None,
        int_method: str | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Draw samples by integrating `step_fn` from t = 0 to t = 1 in equal steps.

        Noise is drawn, and `step_fn` called, in `torch.get_default_dtype()`; the solver's state is
        float64.

        Args:
            batch_size: number of samples B.
            step_fn: velocity field, called with keywords `x` (B, *x_dims) and `t` (B, 1, ..., 1).
            device: where to sample.
            return_all_steps: also return the states and times.
            inference_step, int_method: in place of the constructor's, if not None.
            generator: source of the initial noise, on any device.

        Returns:
            samples (B, *x_dims); or `(xs (B, T+1, *x_dims), ts (T+1,))` with times from 0.0 to 1.0,
            noise first.

        Raises:
            ValueError: for an unknown `int_method`, or a batch size or number of steps below 1.
        """
        method = self.int_method if int_method is None else int_method
        check_choice("int_method", method, tuple(SOLVERS))
        steps = (
            self.num_inference_steps
            if inference_step is None
            else check_count("inference_step", inference_step)
        )
        shape = (check_count("batch_size", batch_size), *self.x_dims)
        dtype = torch.get_default_dtype()
        noise = draw_normal(shape, device=device, dtype=dtype, generator=generator)

        def velocity(x: Tensor, t: float) -> Tensor:
            times = torch.full(
                (shape[0], *(1,) * len(self.x_dims)),
                t,
                dtype=time_dtype(dtype),
                device=noise.device,
            )
            v = step_fn(x=x.to(dtype), t=times)
            check_shape("step_fn's output", v, shape)
            return v.to(x.dtype)

        grid = [i / steps for i in range(steps + 1)]
        states = integrate(velocity, noise.to(wide_dtype(noise.device)), grid, method)
        return _collect(states, grid, dtype, return_all_steps)


# ---- Helpers -------------------------------------------------------------------------------------


def _collect(
    states: Iterable[Tensor], times: Sequence[float], dtype: torch.dtype, return_all_steps: bool
) -> Tensor | tuple[Tensor, Tensor]:
    """Run through `states`; return the last one, or all of them stacked on axis 1 with their
    times."""
    if not return_all_steps:
        return collections.deque(states, maxlen=1)[0].to(dtype)
    xs = torch.stack([x.to(dtype) for x in states], dim=1)
    return xs, torch.tensor(times, dtype=time_dtype(dtype), device=xs.device)


def served_steps(rungs: int, sample_type: str) -> list[int]:
    """The numbers of calls that a student of so many rungs is trained for.

    Under "sde" every rung predicts the sample itself, so each divisor k of K takes every (K / k)-th
    rung. Under "ode" a rung is trained to reach the next one, and only K calls make a sample.
    """
    return [
        k for k in range(1, rungs + 1) if rungs % k == 0 and (k == rungs or sample_type != "ode")
    ]
