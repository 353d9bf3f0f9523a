"""Classifier-free guidance of a teacher: its prediction is moved away from what it says under a
negative condition.

With c = x0 under the condition and u = x0 under the negative (or null) one, both at one (x_t, t),

    guided   = c + (s - 1) (c - u)                             where lo <= t <= hi, else c
    rescaled = (phi rms(c) / rms(guided) + 1 - phi) guided     rms over each sample, phi in [0, 1]

The original rescales by the standard deviation. Here it is the root mean square, which is the same
for a prediction of mean 0, exists for a sample of one number, and doesn't change under rotations.

Only the teacher is guided. Student and fake score see the plain condition, so one call of the
student makes guided samples. A teacher that guides itself is a
:class:`fastgen.teachers.guided.GuidedNetwork`.

References:
    Ho & Salimans, Classifier-Free Diffusion Guidance, 2022, arXiv:2207.12598.
    Kynkaanniemi et al., Applying Guidance in a Limited Interval, 2024, arXiv:2404.07724.
    Lin et al., Common Diffusion Noise Schedules and Sample Steps are Flawed, 2023, arXiv:2305.08891
    (rescaling).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ._core.checks import check_shape
from ._core.tensors import at_least_float32, expand_like, expand_mask, masked_mean, wide_dtype

__all__ = ["Guidance", "check_guidance", "classifier_free_guidance", "guide_x0"]


class Guidance(NamedTuple):
    """How a teacher is guided.

    Attributes:
        scale: s; 1 is the plain conditional prediction.
        interval: (lo, hi), RF times between which it is guided.
        rescale: phi in [0, 1]: 0 leaves the guided prediction as it is, 1 gives it the root mean
            square of the plain one.
    """

    scale: float
    interval: tuple[float, float] = (0.0, 1.0)
    rescale: float = 0.0


def guide_x0(
    cond_x0: Tensor,
    uncond_x0: Tensor,
    t: float | Tensor,
    guidance: Guidance,
    *,
    mask: Tensor | None = None,
) -> Tensor:
    """The guided x0, formulas at the head of this module.

    Args:
        cond_x0, uncond_x0: predictions (B, ...) at one (x_t, t).
        t: RF time, a float or (B,).
        mask: bool (B, T), True = real token, over the first axis of a sample; padding does not
            count in rms.

    Returns:
        shape and dtype of `cond_x0`. Samples outside the interval keep `cond_x0`.
    """
    guided = classifier_free_guidance(cond_x0, uncond_x0, guidance.scale)
    if guidance.rescale:
        size = _rms(guided, mask)
        wanted = _rms(cond_x0, mask)
        factor = guidance.rescale * wanted / size.clamp(min=1e-6) + 1.0 - guidance.rescale
        guided = guided * expand_like(factor, guided).to(guided.dtype)
    lo, hi = guidance.interval
    if not isinstance(t, Tensor):
        return guided if lo <= t <= hi else cond_x0
    inside = ((t >= lo) & (t <= hi)).to(cond_x0.device)
    return torch.where(expand_like(inside, guided), guided, cond_x0)


def _rms(x: Tensor, mask: Tensor | None) -> Tensor:
    """Root mean square (B,) of each sample of x (B, ...), of its real tokens."""
    real = None if mask is None else expand_mask(mask, x).flatten(1)
    return masked_mean(x.to(wide_dtype(x.device)).flatten(1).square(), real, 1).sqrt()


def classifier_free_guidance(
    cond_pred: Tensor, uncond_pred: Tensor, guidance_scale: float
) -> Tensor:
    """Guided prediction c + (s - 1) (c - u): s = 1 is the conditional one, s = 0 the unconditional
    one.

    Flow, x0 and eps may be guided alike: at one x_t and t they are affine maps of each other, so
    all give the same guided model.

    Returns:
        the shape of `cond_pred`, in its dtype.

    Raises:
        ValueError: if the shapes differ.
    """
    check_shape("uncond_pred", uncond_pred, cond_pred.shape)
    cond = at_least_float32(cond_pred)
    uncond = at_least_float32(uncond_pred)
    return (cond + (guidance_scale - 1.0) * (cond - uncond)).to(cond_pred.dtype)


def check_guidance(guidance_scale: float | None, negative_cond: object) -> None:
    """Refuse guidance without the condition to guide away from.

    Raises:
        ValueError: for `guidance_scale` without `negative_cond`.
    """
    if guidance_scale is not None and negative_cond is None:
        raise ValueError(f"expected negative_cond with guidance_scale={guidance_scale}, got None")
