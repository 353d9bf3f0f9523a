"""Norms: RMSNorm with a backward of its own, and the names under which norms are chosen."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .gradients import own_gradients

__all__ = ["NORM_EPS", "NORM_MODULES", "RMSNorm", "check_norm_module", "rms_norm"]

NORM_MODULES = ("rmsnorm", "layernorm")
# One value for every dtype, so that a folded or converted model divides by the same number.
NORM_EPS = 1e-6


def check_norm_module(norm_module: str) -> None:
    """Raise ValueError for an unknown name."""
    if norm_module not in NORM_MODULES:
        raise ValueError(
            f"unknown norm_module {norm_module!r}, expected one of: {', '.join(NORM_MODULES)}"
        )


class _RMSNorm(torch.autograd.Function):
    """y = r x with r = 1 / sqrt(mean(x^2) + eps), and its gradient

        grad_x = r (grad_y - y mean(grad_y y)).

    It keeps y and r and goes four times over the tokens in the backward, where autograd, operation
    by operation, goes seven times.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        r = x.square().mean(-1, keepdim=True).add_(NORM_EPS).rsqrt_()
        y = x * r
        ctx.save_for_backward(y, r)
        ctx.set_materialize_grads(False)
        # r is an output, too, so that the backward is differentiable in all that it uses.
        return y, r

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor | None, grad_r: Tensor | None) -> Tensor | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        y, r = ctx.saved_tensors
        if grad_y is None and grad_r is None:
            return None
        grad_y = torch.zeros_like(y) if grad_y is None else grad_y
        slope = (grad_y * y).sum(-1, keepdim=True)
        if grad_r is not None:
            slope = slope + grad_r * r
        return torch.addcmul(grad_y, y, slope, value=-1.0 / y.shape[-1]) * r


def rms_norm(x: Tensor, weight: Tensor | None) -> Tensor:
    """x / sqrt(mean(x^2) + eps) over the channels, times `weight` where there is one."""
    trained = torch.is_grad_enabled() and x.requires_grad
    if not (trained and own_gradients(x)):
        return F.rms_norm(x, (x.shape[-1],), weight, NORM_EPS)
    y, _ = _RMSNorm.apply(x)
    return y if weight is None else y * weight


class RMSNorm(nn.RMSNorm):
    """`nn.RMSNorm` over the last axis, with the eps of this package and a faster backward."""

    def __init__(self, dim: int, *, elementwise_affine: bool = True) -> None:
        super().__init__(dim, eps=NORM_EPS, elementwise_affine=elementwise_affine)

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight)
