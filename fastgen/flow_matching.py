"""Rectified flow: the convention of this package and the formulas that follow from it.

Time `t` lives in [0, 1]: **t = 0 is data, t = 1 is noise**. With data x0 and standard normal noise
eps,

    x_t  = alpha_t x0 + sigma_t eps,    alpha_t = 1 - t,    sigma_t = t,
    flow = dx_t/dt = eps - x0.

A network predicts one of three quantities, `pred_type`: "x0", "eps" or "flow". With x_t and t, each
gives the other two:

    x0   = x_t - t flow = (x_t - t eps) / (1 - t),
    eps  = x_t + (1 - t) flow,
    flow = (x_t - x0) / t.

`t` is a Python float or a float32/float64 tensor of shape (B,), never bfloat16, which rounds 0.999
to 1. All arithmetic runs in float64 and is cast back to the dtype each function names. A division
by t or by 1 - t clamps its denominator at `EPSILON` = 1e-6: results are finite at both ends, and
exact wherever the denominator is larger.

There is no scheduler object: these are plain functions. Other clocks and paths are turned into this
convention at one border, where a teacher is loaded (:mod:`fastgen.teachers`).

References:
    Liu et al., Flow Straight and Fast, 2022, arXiv:2209.03003. Lipman et al., Flow Matching, 2022,
    arXiv:2210.02747. Esser et al., Scaling Rectified Flow Transformers, 2024, arXiv:2403.03206
    (time samplers, the shift).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ._core.checks import check_choice, check_pred_type, check_shape
from ._core.seeds import draw_uniform
from ._core.tensors import EPSILON, expand_like, in_float64

if TYPE_CHECKING:
    from .config.groups import SampleTimestepConfig

__all__ = [
    "TIME_DISTRIBUTIONS",
    "add_noise",
    "check_t_list",
    "convert_prediction",
    "expand_like",
    "pred_noise_to_pred_x0",
    "pred_x0_from_flow",
    "rf_alpha",
    "rf_sigma",
    "sample_from_t_list",
    "sample_timesteps",
    "x0_to_eps",
    "x0_to_flow",
]

TIME_DISTRIBUTIONS = ("uniform", "logitnormal", "lognormal", "shifted", "polynomial")
POLYNOMIAL_GRID = 1000


# ---- The path ------------------------------------------------------------------------------------


def rf_alpha(t: float | Tensor) -> float | Tensor:
    """Data coefficient alpha_t = 1 - t, of the type, shape and dtype of `t`."""
    return _alpha(t)


def rf_sigma(t: float | Tensor) -> float | Tensor:
    """Noise coefficient sigma_t = t, of the type, shape and dtype of `t`."""
    return _sigma(t)


@in_float64(like="t")
def _alpha(t: float | Tensor) -> float | Tensor:
    return 1.0 - t


@in_float64(like="t")
def _sigma(t: float | Tensor) -> float | Tensor:
    return t


@in_float64(like="x0")
def add_noise(x0: Tensor, eps: Tensor, t: float | Tensor) -> Tensor:
    """Forward process x_t = (1 - t) x0 + t eps.

    Args:
        x0: data, shape (B, ...).
        eps: noise, the shape of `x0`.
        t: float or (B,), in [0, 1].

    Returns:
        x_t in the dtype of `x0`; `x0` itself at t = 0, `eps` at t = 1.

    Raises:
        ValueError: if shapes differ or t leaves [0, 1].
        TypeError: if t has less than float32.
    """
    check_shape("eps", eps, x0.shape)
    t = expand_like(t, x0)
    return (1.0 - t) * x0 + t * eps


# ---- Its inversions ------------------------------------------------------------------------------


@in_float64(like="noisy_latents")
def pred_noise_to_pred_x0(pred_noise: Tensor, noisy_latents: Tensor, t: float | Tensor) -> Tensor:
    """Data implied by a noise prediction: x0 = (x_t - t eps) / max(1 - t, 1e-6).

    Args:
        pred_noise: predicted eps, shape (B, ...).
        noisy_latents: x_t, the same shape.
        t: float or (B,), in [0, 1]. It amplifies an error of the prediction by t / (1 - t), which
            is large near t = 1.

    Returns:
        x0 in the dtype of `noisy_latents`.
    """
    check_shape("pred_noise", pred_noise, noisy_latents.shape)
    t = expand_like(t, noisy_latents)
    return (noisy_latents - t * pred_noise) / (1.0 - t).clamp(min=EPSILON)


@in_float64(like="noisy_latents")
def pred_x0_from_flow(pred_flow: Tensor, noisy_latents: Tensor, t: float | Tensor) -> Tensor:
    """Data implied by a flow prediction: x0 = x_t - t flow. No division, finite on all of [0, 1].

    Args:
        pred_flow: predicted eps - x0, shape (B, ...).
        noisy_latents: x_t, the same shape.
        t: float or (B,), in [0, 1].

    Returns:
        x0 in the dtype of `noisy_latents`.
    """
    check_shape("pred_flow", pred_flow, noisy_latents.shape)
    return noisy_latents - expand_like(t, noisy_latents) * pred_flow


@in_float64(like="x0")
def x0_to_eps(x0: Tensor, x_t: Tensor, t: float | Tensor) -> Tensor:
    """Noise implied by a data prediction: eps = (x_t - (1 - t) x0) / max(t, 1e-6).

    Args:
        x0: data (or its prediction), shape (B, ...).
        x_t: noisy sample, the same shape.
        t: float or (B,), in [0, 1].

    Returns:
        eps in the dtype of `x0`.
    """
    check_shape("x_t", x_t, x0.shape)
    t = expand_like(t, x0)
    return (x_t - (1.0 - t) * x0) / t.clamp(min=EPSILON)


@in_float64(like="x0")
def x0_to_flow(x0: Tensor, x_t: Tensor, t: float | Tensor) -> Tensor:
    """Flow implied by a data prediction: flow = (x_t - x0) / max(t, 1e-6).

    Args:
        x0: data (or its prediction), shape (B, ...).
        x_t: noisy sample, the same shape.
        t: float or (B,), in [0, 1].

    Returns:
        eps - x0 in the dtype of `x0`.
    """
    check_shape("x_t", x_t, x0.shape)
    return (x_t - x0) / expand_like(t, x0).clamp(min=EPSILON)


@in_float64(like="x_t")
def convert_prediction(
    pred: Tensor, x_t: Tensor, t: float | Tensor, source: str, target: str
) -> Tensor:
    """Turn a prediction of one kind into the prediction of another that says the same about x_t.

    Args:
        pred: prediction of kind `source`, shape (B, ...).
        x_t: the network's input, the same shape.
        t: float or (B,), in [0, 1].
        source, target: "flow", "x0" or "eps". A flow converts without any division.

    Returns:
        the prediction of kind `target`, in the dtype of `x_t`. Gradients flow through.
    """
    check_pred_type(source, "source")
    check_pred_type(target, "target")
    check_shape("pred", pred, x_t.shape)
    if source == target:
        return pred
    if source == "flow" and not isinstance(t, Tensor):
        return x_t - t * pred if target == "x0" else x_t + (1.0 - t) * pred
    t = expand_like(t, x_t)
    match source, target:
        case "flow", "x0":
            return x_t - t * pred
        case "flow", "eps":
            return x_t + (1.0 - t) * pred
        case "x0", "flow":
            return (x_t - pred) / t.clamp(min=EPSILON)
        case "x0", "eps":
            return (x_t - (1.0 - t) * pred) / t.clamp(min=EPSILON)
        case "eps", "x0":
            return (x_t - t * pred) / (1.0 - t).clamp(min=EPSILON)
        case _:  # eps -> flow
            return (pred - x_t) / (1.0 - t).clamp(min=EPSILON)


# ---- Times ---------------------------------------------------------------------------------------


def check_t_list(t_list: Sequence[float]) -> list[float]:
    """The student's trajectory as a list of floats, t_list = [t_1 > t_2 > ... > 0.0] with t_1 <= 1.

    Raises:
        ValueError: if it is too short, not strictly decreasing, starts outside (0, 1] or does not
            end at 0.
        TypeError: if it is not a sequence of numbers.
    """
    hint = (
        "expected t_list such as [0.999, 0.5, 0.0]: strictly decreasing, first in (0, 1], last 0.0"
    )
    try:
        times = [float(t) for t in t_list]
    except (TypeError, ValueError) as error:
        raise TypeError(f"{hint}; got {t_list!r}") from error
    if len(times) < 2 or times[-1] != 0.0 or not 0.0 < times[0] <= 1.0:
        raise ValueError(f"{hint}; got {times}")
    if not all(t > s for t, s in zip(times, times[1:], strict=False)):
        raise ValueError(f"{hint}; got {times}")
    return times


def sample_from_t_list(
    n: int,
    t_list: Sequence[float],
    *,
    device: torch.device | str,
    dtype: torch.dtype = torch.float32,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw `n` rungs uniformly from `t_list[:-1]`.

    Args:
        n: number of draws.
        t_list: [t_1 > t_2 > ... > 0.0], the student's trajectory.
        device, dtype: of the result; float32 or float64.
        generator: source of the draws, on any device.

    Returns:
        times of shape (n,).
    """
    _check_time_dtype(dtype)
    rungs = torch.tensor(check_t_list(t_list)[:-1], dtype=dtype)
    place = torch.device(device) if generator is None else generator.device
    index = torch.randint(len(rungs), (n,), device=place, generator=generator)
    return rungs.to(device)[index.to(device)]


def sample_timesteps(
    n: int,
    cfg: SampleTimestepConfig,
    *,
    device: torch.device | str,
    dtype: torch.dtype = torch.float32,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw `n` training times in [min_t, max_t] from the distribution `cfg` names; `cfg.t_list` is
    ignored.

    With u uniform, z standard normal and Phi its distribution function:

    * `uniform`: t = min_t + (max_t - min_t) u.
    * `logitnormal`: t = min_t + (max_t - min_t) sigmoid(p_mean + p_std z).
    * `lognormal`: log t = p_mean + p_std z, truncated to [min_t, max_t] by inverting Phi.
    * `shifted`: t = s u / (1 + (s - 1) u) with s = `shift`. Here u is uniform over the numbers
      whose t lies in [min_t, max_t], so that no times pile up at a bound.
    * `polynomial`: uniform over the 1000 points of linspace(min_t, max_t). On this path that is all
      that is left of the polynomial sigma grid of other noise schedules.

    Times are drawn in float64, and lie in [min_t, max_t] after they are rounded to `dtype`, too.

    Args:
        n: number of draws.
        cfg: `fastgen.config.dmd.SampleTimestepConfig`, or any object with its attributes.
        device, dtype: of the result; float32 or float64.
        generator: source of the draws, on any device.

    Returns:
        times of shape (n,).

    Raises:
        ValueError: for an unknown `time_dist_type`, a range that is not 0 <= min_t < max_t <= 1,
            shift <= 0, p_std <= 0, or a lognormal without mass in the range.
        TypeError: for a dtype below float32.
    """
    _check_time_dtype(dtype)
    check_choice("time_dist_type", cfg.time_dist_type, TIME_DISTRIBUTIONS)
    low = float(cfg.min_t)
    high = float(cfg.max_t)
    if not 0.0 <= low < high <= 1.0:
        raise ValueError(f"expected 0 <= min_t < max_t <= 1, got min_t={low}, max_t={high}")
    u = draw_uniform((n,), device=device, generator=generator)
    match cfg.time_dist_type:
        case "uniform":
            t = low + (high - low) * u
        case "logitnormal":
            t = low + (high - low) * torch.sigmoid(
                cfg.p_mean + _positive("p_std", cfg.p_std) * torch.special.ndtri(u)
            )
        case "lognormal":
            t = _truncated_lognormal(u, low, high, cfg.p_mean, _positive("p_std", cfg.p_std))
        case "shifted":
            s = _positive("shift", cfg.shift)
            u_low = _unshift(low, s)
            u_high = _unshift(high, s)
            u = u_low + (u_high - u_low) * u
            t = s * u / (1.0 + (s - 1.0) * u)
        case _:  # polynomial
            grid = torch.linspace(low, high, POLYNOMIAL_GRID, dtype=dtype).to(u.device)
            t = grid[(u * POLYNOMIAL_GRID).long()]
    return t.to(dtype).clamp(_round_inwards(low, dtype, 1.0), _round_inwards(high, dtype, 0.0))


def _truncated_lognormal(u: Tensor, low: float, high: float, mean: float, std: float) -> Tensor:
    """exp of a normal truncated to [log low, log high], by CDF inversion of the uniform `u`."""
    a = -math.inf if low == 0.0 else (math.log(low) - mean) / std
    b = (math.log(high) - mean) / std
    # In the upper tail Phi is 1 up to rounding. The mirrored interval in the lower tail has the
    # same mass, with all its digits.
    sign = -1.0 if a + b > 0 else 1.0
    p_a = _normal_cdf(sign * a)
    p_b = _normal_cdf(sign * b)
    if p_a == p_b:
        raise ValueError(
            f"expected a lognormal with mass in [{low}, {high}], got none for p_mean={mean}, "
            f"p_std={std} in float64"
        )
    return torch.exp(mean + std * sign * torch.special.ndtri(p_a + (p_b - p_a) * u))


def _normal_cdf(z: float) -> float:
    return 0.5 * math.erfc(-z / math.sqrt(2.0))


def _unshift(t: float, shift: float) -> float:
    """The u with shift u / (1 + (shift - 1) u) = t."""
    return t / (shift - (shift - 1.0) * t)


def _round_inwards(bound: float, dtype: torch.dtype, inside: float) -> float:
    """`bound` rounded to `dtype`, and if that is beyond it the next number towards `inside`."""
    nearest = torch.tensor(bound, dtype=dtype)
    too_high = inside < bound and nearest.item() > bound
    too_low = inside > bound and nearest.item() < bound
    if too_high or too_low:
        nearest = torch.nextafter(nearest, torch.tensor(inside, dtype=dtype))
    return nearest.item()


def _check_time_dtype(dtype: torch.dtype) -> None:
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"expected dtype torch.float32 or torch.float64 for times, got {dtype}")


def _positive(name: str, value: float) -> float:
    if not value > 0:
        raise ValueError(f"expected {name} > 0, got {value}")
    return float(value)
