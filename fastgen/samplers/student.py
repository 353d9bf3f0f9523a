"""The few-step student's sampler: one network call a rung.

At a rung at time t the student predicts x0 and moves to the next rung s. State and times are
float64; the network sees its own dtype.

References:
    Yin et al., DMD2, 2024, arXiv:2405.14867 (backward simulation).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from .._core.checks import check_choice, check_pred_type
from .._core.seeds import draw_normal
from .._core.tensors import wide_dtype, without_gradients
from ..flow_matching import add_noise, check_t_list, x0_to_eps
from ..networks import Cond, Network, check_trained_sizes, predict_x0
from ..solvers import collect

__all__ = ["SAMPLE_TYPES", "check_student", "sample_student", "served_steps", "unroll"]

SAMPLE_TYPES = ("ode", "sde")


def check_student(t_list: Sequence[float], sample_type: str, pred_type: str) -> list[float]:
    """`t_list` as floats, after a check of all that defines a student's sampler.

    Raises:
        ValueError: for an invalid `t_list`, an unknown `sample_type` or `pred_type`, or a student
            that predicts eps and starts at 1.0.
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
    each made when it is asked for.

    The first input is x_{t_1} = t_1 noise. A rung at t, with s the next one, predicts x0 and moves
    to x_s = (1 - s) x0 + s eps, where

        ode:  eps = (x_t - (1 - t) x0) / t      so that x_s is the Euler step x_t + (s - t) flow
        sde:  eps is drawn anew

    and the last rung answers x0. This is the only place where students are unrolled. Sampling runs
    it to the end, training stops at the rung it trains; so a training input has exactly the law of
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


@without_gradients
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
        pred_type: what the network predicts: "flow", "x0" or "eps", which needs t_list[0] < 1.
        generator: source of the sde noise.
        return_all_steps: also return the inputs of all rungs.

    Returns:
        x0 in the shape and dtype of `noise`; or `(xs (B, K+1, ...), ts (K+1,))`, beginning with the
        input t_1 noise.

    Raises:
        ValueError: for an invalid `t_list`, an unknown `sample_type` or `pred_type`, eps with
            t_list[0] = 1, or sizes that the network says it was not trained with.
    """
    times = check_student(t_list, sample_type, pred_type)
    check_trained_sizes(net, noise, cond, "the network")

    def draw_noise() -> Tensor:
        return draw_normal(noise.shape, device=noise.device, dtype=noise.dtype, generator=generator)

    states = unroll(
        net, noise, times, cond, sample_type=sample_type, pred_type=pred_type, draw_noise=draw_noise
    )
    return collect(states, times, noise.dtype, return_all_steps)


def served_steps(rungs: int, sample_type: str) -> list[int]:
    """The numbers of calls that a student of K = `rungs` rungs is trained for.

    Under "sde" every rung predicts the sample itself, so k calls at every (K / k)-th rung will do
    for each divisor k of K. Under "ode" a rung is trained to reach the next one, so only K calls
    make a sample.
    """
    if sample_type == "ode":
        return [rungs]
    return [k for k in range(1, rungs + 1) if rungs % k == 0]
