"""Flow matching on its own clock: **noise at t = 0, data at t = 1**.

This is the interface that other systems know, kept as it is. Everything else in this package runs
in RF time, noise at t = 1 and data at t = 0.

References:
    Lipman et al., Flow Matching, 2022, arXiv:2210.02747.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from .._core.checks import check_choice, check_count, check_shape, is_count
from .._core.seeds import draw_normal
from .._core.tensors import time_dtype, wide_dtype
from ..solvers import SOLVERS, collect, integrate

__all__ = ["BaseDiffusion", "FlowMatching", "StepFn"]


class StepFn(Protocol):
    """A velocity field dx/dt = x1 - x0 on the clock of `FlowMatching`: noise x0 at t = 0, data x1
    at t = 1."""

    def __call__(self, *, x: Tensor, t: Tensor) -> Tensor:
        """Velocity at state `x` of shape (B, *x_dims) and time `t` of shape (B, 1, ..., 1); shaped
        like `x`."""
        ...


class BaseDiffusion(abc.ABC):
    """A generative model of samples of shape `x_dims` that is sampled by iterating a step function.

    Args:
        x_dims: shape of one sample, an int or a sequence of ints, each >= 1.

    Raises:
        ValueError: for other `x_dims`.
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
    """Flow matching on its own clock, **noise at t = 0 and data at t = 1**: dx/dt = v(x, t) from
    x(0) ~ N(0, I).

    Args:
        x_dims: shape of one sample.
        int_method: euler, midpoint, heun, rk4 or ab2.
        num_inference_steps: number of solver steps, >= 1.

    Raises:
        ValueError: for an unknown `int_method`, or a number of steps below 1.
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
        steps = self.num_inference_steps
        if inference_step is not None:
            steps = check_count("inference_step", inference_step)
        shape = (check_count("batch_size", batch_size), *self.x_dims)
        dtype = torch.get_default_dtype()
        noise = draw_normal(shape, device=device, dtype=dtype, generator=generator)

        def velocity(x: Tensor, t: float) -> Tensor:
            one_per_sample = (batch_size, *(1,) * len(self.x_dims))
            times = torch.full(one_per_sample, t, dtype=time_dtype(dtype), device=noise.device)
            v = step_fn(x=x.to(dtype), t=times)
            check_shape("step_fn's output", v, shape)
            return v.to(x.dtype)

        grid = [i / steps for i in range(steps + 1)]
        states = integrate(velocity, noise.to(wide_dtype(noise.device)), grid, method)
        return collect(states, grid, dtype, return_all_steps)
