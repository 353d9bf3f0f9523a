"""Classifier-free guidance of a teacher: its prediction is moved away from what it says under a
negative condition.

With c = x0 under the condition and u = x0 under the negative (or null) one, all at one (x_t, t),

    guided = c + (s - 1) (c - u)                                    where lo <= t <= hi, else c
    rescaled = (phi rms(c) / rms(guided) + 1 - phi) guided          rms over each sample, phi in [0, 1]

The root mean square stands for the standard deviation of the original: it is that of a prediction
of mean 0, it is defined for a sample of one number, and unlike it no rotation changes it.

Only the teacher is guided: student and fake score see the plain condition, so that the student
learns the guided law in one call.

References:
    Ho & Salimans, Classifier-Free Diffusion Guidance, 2022, arXiv:2207.12598.
    Kynkaanniemi et al., Applying Guidance in a Limited Interval, 2024, arXiv:2404.07724.
    Lin et al., Common Diffusion Noise Schedules and Sample Steps are Flawed, 2023, arXiv:2305.08891
    (rescaling).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ._tensor import (
    at_hand,
    cond_to,
    expand_like,
    expand_mask,
    map_tensors,
    masked_mean,
    wide_dtype,
)
from .flow_matching import convert_prediction
from .losses import classifier_free_guidance
from .networks import DECLARED, Cond, NetworkWrapper, network_dtype, teacher_x0

__all__ = ["Guidance", "GuidedNetwork", "guide_x0"]


class Guidance(NamedTuple):
    """How a teacher is guided.

    Attributes:
        scale: s; 1 is the plain conditional prediction.
        interval: (lo, hi), RF times between which it is guided.
        rescale: phi in [0, 1]: 0 leaves the guided prediction, 1 gives it the plain one's root mean
            square.
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
        size, plain = (_rms(x, mask) for x in (guided, cond_x0))
        factor = guidance.rescale * plain / size.clamp(min=1e-6) + 1.0 - guidance.rescale
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


class GuidedNetwork(NetworkWrapper):
    """A teacher that guides itself: called `net(x_t, t, cond)`, it answers what `network` predicts
    when guided.

    For recipes, where everything that asks the teacher (pairs, scores, pictures, DMD) must ask the
    guided one.

    Args:
        network: called `network(x_t, t, cond)`, predicts `pred_type`.
        guidance: scale, interval and rescaling.
        null_cond: what to guide away from: like a condition, of one row or of as many rows as are
            asked for.
        pred_type: "flow", "x0" or "eps".
    """

    def __init__(
        self, network: nn.Module, guidance: Guidance, null_cond: Cond, *, pred_type: str = "flow"
    ) -> None:
        super().__init__(network)
        self.guidance = guidance
        self.null_cond = null_cond
        self.pred_type = pred_type
        for name in (*DECLARED, "call_dtype"):
            if hasattr(network, name):
                setattr(self, name, getattr(network, name))

    def predict_x0(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """The guided x0 (B, ...), in the dtype of `x_t`."""
        plain = teacher_x0(self.network, x_t, t, cond, pred_type=self.pred_type)
        if not self._guides(t):
            return plain
        null = teacher_x0(self.network, x_t, t, self._null(x_t), pred_type=self.pred_type)
        return guide_x0(plain, null, t, self.guidance)

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond = None) -> Tensor:
        """The guided prediction (B, ...) in `pred_type`."""
        if not self._guides(t):
            return self.network(x_t, t, cond)
        if not self.guidance.rescale:
            # Guidance is linear: predictions of any kind are guided as x0 is, without the rounding
            # of a way there.
            return guide_x0(
                self.network(x_t, t, cond), self.network(x_t, t, self._null(x_t)), t, self.guidance
            )
        return convert_prediction(self.predict_x0(x_t, t, cond), x_t, t, "x0", self.pred_type)

    def _guides(self, t: Tensor) -> bool:
        """Whether the null condition may be needed; on a GPU always, rather than waiting for it to
        read times."""
        lo, hi = self.guidance.interval
        return self.guidance.scale != 1.0 and (
            not at_hand(t) or bool(((t >= lo) & (t <= hi)).any())
        )

    def _null(self, x_t: Tensor) -> Cond:
        """The null condition, a row for each sample."""
        null = cond_to(self.null_cond, x_t.device, network_dtype(self.network, x_t.dtype))
        return map_tensors(lambda value: value.expand(len(x_t), *value.shape[1:]), null)
